"""What a result keeps of its file: opacity, emission, occlusion, colours, coordinates, names."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.gltf_file import read_gltf
from sdslab.meshes.material import ALBEDO, constant_material
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_file import MeshFile
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.mesh_io import load_mesh
from sdslab.pictures.color import linear_to_srgb
from sdslab.texture.inputs import own_maps, with_opacity
from tests.meshes.gltf_builder import SQUARE_UV, GltfBuilder
from tests.meshes.test_export_glb import run_node

SIZE = 32


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr("sdslab.files.disk_cache.cache_folder", lambda: folder)


def picture(pixels: np.ndarray, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **more)
    return content.getvalue()


def load(file: GltfBuilder, folder: Path, unwrap: Any = "auto") -> Mesh:
    (folder / "mesh.glb").write_bytes(file.glb())
    return with_opacity(load_mesh(folder / "mesh.glb", unwrap), SIZE)


def export(mesh: Mesh, folder: Path) -> tuple[MeshFile, dict[str, Any], Path]:
    """What our reader finds in the exported .glb, its JSON, and the file."""
    path = folder / "result.glb"
    export_glb(mesh, constant_material(SIZE, SIZE), path)
    content = path.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    return read_gltf(content, MeshFolder(path)), json.loads(content[20 : 20 + length]), path


GLOW = picture(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "JPEG")
SHADE = picture(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
TRANSFORM = {"offset": [0.25, 0], "rotation": 0.5, "scale": [2, 2]}


def everything() -> GltfBuilder:
    """Two materials: one with whatever a result can keep, and a plain one."""
    file = GltfBuilder()
    alpha = np.full((8, 8, 4), 255, np.uint8)
    alpha[:, 4:, 3] = 0  # the right half is cut out
    paint = {
        "name": "Paint",
        "pbrMetallicRoughness": {"baseColorTexture": {"index": file.image(picture(alpha))}},
        "alphaMode": "MASK",
        "alphaCutoff": 0.25,
        "doubleSided": True,
        "emissiveFactor": [1, 0.5, 0],
        "emissiveTexture": {
            "index": file.image(GLOW, "jpeg"),
            "extensions": {"KHR_texture_transform": TRANSFORM},
        },
        "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 4}},
        "occlusionTexture": {"index": file.image(SHADE), "texCoord": 1, "strength": 0.5},
    }
    file.json["materials"] = [paint, {"name": "Plain"}]
    primitive = file.square({"name": "front"}, material=0)
    file.json["meshes"][0]["name"] = "card"
    primitive["attributes"]["TEXCOORD_1"] = file.accessor(SQUARE_UV / 4)
    file.square({"name": "back", "translation": [0, 0, 1]}, material=1)
    return file


@pytest.mark.parametrize("unwrap", ["auto", "always"])
def test_materials_come_back_as_they_were(unwrap: str, tmp_path: Path):
    file = everything()
    source = read_gltf(file.glb(), MeshFolder(tmp_path / "mesh.glb"))
    mesh = load(file, tmp_path, unwrap)
    result, document, _ = export(mesh, tmp_path)
    assert [m.name for m in result.materials] == ["Paint", "Plain"]
    for name in ("alpha_mode", "alpha_cutoff", "emissive", "emissive_image", "occlusion_image"):
        for before, after in zip(source.materials, result.materials, strict=True):
            assert getattr(after, name) == getattr(before, name), name
    assert result.materials[0].occlusion_strength == 0.5
    assert [entry["name"] for entry in document["meshes"]] == ["card", "back"]
    # Both pictures are looked up where they were, whatever became of the albedo's coordinates.
    paint = document["materials"][0]
    assert paint["emissiveTexture"]["extensions"]["KHR_texture_transform"] == TRANSFORM
    for name, expected in (("emissiveTexture", SQUARE_UV), ("occlusionTexture", SQUARE_UV / 4)):
        attributes = document["meshes"][0]["primitives"][0]["attributes"]
        accessor = attributes[f"TEXCOORD_{paint[name]['texCoord']}"]
        found = accessor_values(tmp_path / "result.glb", document, accessor)
        vertex = mesh.source_vertex.numpy()[mesh.source_vertex < 4]
        np.testing.assert_allclose(found, expected[vertex], atol=1e-7)


def accessor_values(path: Path, document: dict[str, Any], index: int) -> np.ndarray:
    content = path.read_bytes()
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    start = 28 + int.from_bytes(content[12:16], "little") + view["byteOffset"]
    return np.frombuffer(content[start : start + view["byteLength"]], "<f4").reshape(
        accessor["count"], -1
    )


@pytest.mark.parametrize("unwrap", ["auto", "always"])
def test_opacity_is_the_alpha_of_the_new_albedo(unwrap: str, tmp_path: Path):
    """Half of the square is cut out, wherever its texels are now."""
    file = everything()
    file.json["nodes"].pop()
    mesh = load(file, tmp_path, unwrap)
    assert mesh.opacity is not None
    assert "opacity is kept (MASK of 'Paint')" in "; ".join(mesh.notes)
    corners = mesh.faces.long()
    for weights in torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]):
        place = (mesh.positions[corners] * weights[:, None]).sum(1)
        column, row = ((mesh.uv[corners] * weights[:, None]).sum(1) * SIZE).long().unbind(1)
        far = (place[:, 0] - 0.5).abs() > 0.1
        expected = (place[:, 0] < 0.5).float()
        torch.testing.assert_close(mesh.opacity[row, column][far], expected[far], atol=0.02, rtol=0)
    result, *_ = export(mesh, tmp_path)
    assert result.materials[0].color_image is not None
    with Image.open(io.BytesIO(result.materials[0].color_image)) as albedo:
        levels = np.asarray(albedo.getchannel("A"))
    np.testing.assert_allclose(levels / 255, mesh.opacity.flip(0), atol=0.002)
    export_obj(mesh, constant_material(SIZE, SIZE), tmp_path / "obj")
    assert "newmtl Paint" in (tmp_path / "obj" / "mesh.mtl").read_text()
    assert "map_d opacity.png" in (tmp_path / "obj" / "mesh.mtl").read_text()
    with Image.open(tmp_path / "obj" / "opacity.png") as opacity:
        np.testing.assert_array_equal(np.asarray(opacity), levels)


@pytest.mark.parametrize("white", [True, False])
def test_vertex_colours_never_tint_the_new_albedo(white: bool, tmp_path: Path):
    colors = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]], "f4")
    file = GltfBuilder()
    primitive = file.square()
    primitive["attributes"]["COLOR_0"] = file.accessor(np.ones_like(colors) if white else colors)
    mesh = load(file, tmp_path)
    _, document, path = export(mesh, tmp_path)
    (primitive,) = document["meshes"][0]["primitives"]
    name, other = ("COLOR_0", "_COLOR_0") if white else ("_COLOR_0", "COLOR_0")
    assert other not in primitive["attributes"]
    found = accessor_values(path, document, primitive["attributes"][name])
    np.testing.assert_array_equal(found[:, :3], 1 if white else colors)
    assert any("_COLOR_0" in note for note in mesh.notes) != white


def test_vertex_colours_are_the_albedo_to_start_from(tmp_path: Path):
    """Red falls from 1 at x = 0 to 0 at x = 1, in linear light."""
    colors = np.array([[255, 255, 255], [0, 255, 255], [0, 255, 255], [255, 255, 255]], "u1")
    file = GltfBuilder()
    primitive = file.square()
    primitive["attributes"]["COLOR_0"] = file.accessor(colors, normalized=True)
    albedo = own_maps(load(file, tmp_path), SIZE)[..., ALBEDO]
    x = (torch.arange(SIZE) + 0.5) / SIZE
    torch.testing.assert_close(
        albedo[..., 0], linear_to_srgb(1 - x).expand(SIZE, SIZE), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(albedo[..., 1:], torch.ones(SIZE, SIZE, 2))


def test_pictures_that_cannot_be_passed_on_are_told(tmp_path: Path):
    file = everything()
    for index, content in ((1, b"\xabKTX 20\xbb"), (2, b"\x89PNG\r\n\x1a\n damaged")):
        file.json["images"][index]["bufferView"] = file.view(content)
    mesh = load(file, tmp_path)
    notes = "; ".join(mesh.notes)
    assert "emissive picture of 'Paint' ignored: it is KTX, which is not read" in notes
    assert "occlusion picture of 'Paint' ignored" in notes
    _, document, _ = export(mesh, tmp_path)
    assert not {"emissiveTexture", "occlusionTexture"} & document["materials"][0].keys()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "PNG with a profile"])
def test_the_khronos_validator_accepts_what_is_kept(kind: str, tmp_path: Path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    more = {"icc_profile": b"x" * 200} if " " in kind else {}
    content = picture(pixels, kind.split()[0], **more)
    file = everything()
    file.json["images"][1]["bufferView"] = file.view(content)
    texcoord = file.accessor(SQUARE_UV / 3)
    colors = file.accessor(np.linspace(0, 1, 16, dtype="f4").reshape(4, 4))
    file.json["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_1"] = texcoord
    file.json["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = colors
    paths = []
    for unwrap in ("auto", "always"):
        mesh = load(file, tmp_path, unwrap)
        result, _, path = export(mesh, tmp_path)
        if kind in ("PNG", "JPEG", "WEBP"):
            assert result.materials[0].emissive_image == content
        paths.append(path.rename(tmp_path / f"{unwrap}.glb"))
    for report in json.loads(run_node("validate_glb.mjs", "gltf-validator", *paths)).values():
        problems = [m for m in report["issues"]["messages"] if m["severity"] < 2]
        assert problems == []


CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/data/cases")
def test_reported_files_are_read_and_come_out_valid(tmp_path: Path):
    paths = []
    for case in [*CASES.glob("gl*.gl*")]:
        mesh = with_opacity(load_mesh(case), SIZE)
        assert len(mesh.faces) >= 12, case.name
        paths.append(tmp_path / f"{case.stem}.glb")
        export_glb(mesh, constant_material(SIZE, SIZE), paths[-1])
    reports = json.loads(run_node("validate_glb.mjs", "gltf-validator", *paths))
    assert len(reports) == len(paths) > 10
    for report in reports.values():
        assert not report["issues"]["numErrors"] + report["issues"]["numWarnings"]
