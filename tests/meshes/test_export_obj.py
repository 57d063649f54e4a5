from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material import load_maps, map_pictures
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES


def random_maps(side: int = 32) -> torch.Tensor:
    return torch.rand(side, side, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="mesh", params=PROCEDURAL_MESHES)
def each_mesh(request: pytest.FixtureRequest) -> Mesh:
    """With coordinates that float32 cannot hold."""
    mesh = PROCEDURAL_MESHES[request.param]()
    return replace(mesh, positions=mesh.positions * torch.pi + 1e3)


def parse(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, int]]:
    """Values, [f, 3, 3] indices v/vt/vn from 0, and the number of faces of each object."""
    values: dict[str, list] = {"v": [], "vt": [], "vn": []}
    faces, objects = [], {}
    for line in path.read_text().splitlines():
        keyword, *words = line.split()
        if keyword in values:
            values[keyword].append([float(word) for word in words])
        elif keyword == "o":
            objects[words[0]] = 0
        elif keyword == "f":
            faces.append([[int(index) - 1 for index in word.split("/")] for word in words])
            objects[next(reversed(objects))] += 1
    return {name: np.array(rows) for name, rows in values.items()}, np.array(faces), objects


def test_every_corner_comes_back_exactly(mesh: Mesh, tmp_path: Path):
    model, *_ = export_obj(mesh, random_maps(), tmp_path)
    values, faces, objects = parse(model)
    corners = mesh.faces.long()
    np.testing.assert_array_equal(values["v"][faces[..., 0]], mesh.positions[corners])
    np.testing.assert_array_equal(values["vt"][faces[..., 1]].astype(np.float32), mesh.uv[corners])
    normals = values["vn"][faces[..., 2]].astype(np.float32)
    np.testing.assert_array_equal(normals, mesh.normals[corners])
    assert objects == {part.name: len(part.faces) for part in mesh.parts}


def test_vertices_split_by_unwrapping_are_one_again_in_the_files_order(tmp_path: Path):
    mesh = PROCEDURAL_MESHES["torus"]()
    positions = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = torch.tensor([0, 1, 1, 2, 3, 4])
    split = Mesh(
        name="split",
        positions=positions[source],
        faces=torch.tensor([[0, 1, 3], [2, 4, 5]], dtype=torch.int32),
        uv=mesh.uv[:6],
        normals=mesh.normals[:6],
        tangents=mesh.tangents[:6],
        parts=(replace(mesh.parts[0], name="the one  part", faces=range(2)),),
        source_vertex=source,
    )
    model, *_ = export_obj(split, random_maps(), tmp_path, stem="model")
    values, faces, objects = parse(model)
    np.testing.assert_array_equal(values["v"], positions)
    np.testing.assert_array_equal(faces[..., 0], [[0, 1, 2], [1, 3, 4]])
    assert objects == {"the_one_part": 2}
    assert model.name == "model.obj"


def test_our_own_reader_gives_the_mesh_and_its_albedo_back(mesh: Mesh, tmp_path: Path):
    maps = (random_maps() * 255).round() / 255
    model, *_ = export_obj(mesh, maps, tmp_path)
    again = load_mesh(model)
    corners, corners_again = mesh.faces.long(), again.faces.long()
    assert torch.equal(again.positions[corners_again], mesh.positions[corners])
    assert torch.equal(again.uv[corners_again], mesh.uv[corners])
    assert again.source_material is not None
    assert torch.equal(again.source_material.maps[..., :3], maps[..., :3])
    assert torch.equal(load_maps(tmp_path), maps)


def test_trimesh_finds_the_material(tmp_path: Path):
    maps = random_maps()
    model, material, *pictures = export_obj(PROCEDURAL_MESHES["sphere"](), maps, tmp_path)
    visual: Any = trimesh.load_mesh(model).visual
    albedo = np.asarray(visual.material.image.convert("RGB"))
    np.testing.assert_array_equal(albedo, map_pictures(maps)["albedo"])
    named = {line.split()[-1] for line in material.read_text().splitlines() if ".png" in line}
    assert named == {"albedo.png", "roughness.png", "metallic.png", "normal.png"}
    assert named <= {path.name for path in pictures}
    with Image.open(tmp_path / "roughness.png") as picture:
        assert picture.mode == "L"


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_obj(PROCEDURAL_MESHES["sphere"](), random_maps(), tmp_path / "file")
