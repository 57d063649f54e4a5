import json
import shutil
import struct
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from sdslab import __version__
from sdslab.errors import UserError
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import map_pictures
from sdslab.meshes.mesh import Mesh, Part
from sdslab.meshes.mesh_file import FileMaterial
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent / "node_modules"
COMPONENTS = {5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def random_maps(side: int = 32) -> torch.Tensor:
    return torch.rand(side, side, 8, generator=torch.Generator().manual_seed(0))


def two_parts() -> Mesh:
    """Two triangles each, interleaved vertices, far from the origin, wrapping and mirrored UVs."""
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    positions = torch.zeros(9, 3, dtype=torch.float64)
    positions[0:8:2, :2], positions[1:8:2, :2] = square, square + 2
    positions = positions * 123.456789 + 1e4
    uv = torch.zeros(9, 2)
    uv[0:8:2], uv[1:8:2] = square.float() * 3 - 1, (1 - square).float()
    uv[1:8:2, 1] = square[:, 1].float()  # mirrored in u
    tangents = torch.tensor([1.0, 0, 0, 1]).repeat(9, 1)
    tangents[1:8:2] = torch.tensor([-1.0, 0, 0, -1])
    faces = torch.tensor([[0, 2, 4], [0, 4, 6], [1, 3, 5], [1, 5, 7]], dtype=torch.int32)
    return Mesh(
        name="two parts",
        positions=positions,
        faces=faces,
        uv=uv,
        normals=torch.tensor([0.0, 0, 1]).repeat(9, 1),
        tangents=tangents,
        parts=(Part("left", range(2)), Part("right", range(2, 4), FileMaterial(double_sided=True))),
        source_vertex=torch.arange(9),  # no face uses the last one
    )


def read_glb(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    magic, version, size = struct.unpack_from("<3I", content)
    assert (magic, version, size) == (0x46546C67, 2, len(content))
    length, kind = struct.unpack_from("<2I", content, 12)
    assert kind == 0x4E4F534A
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def read_accessor(document: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    width = WIDTHS[accessor["type"]]
    values = np.frombuffer(
        binary,
        COMPONENTS[accessor["componentType"]],
        accessor["count"] * width,
        view["byteOffset"],
    )
    return values.reshape(-1, width)


@pytest.fixture(name="mesh", params=[*PROCEDURAL_MESHES, "two-parts"])
def each_mesh(request: pytest.FixtureRequest) -> Mesh:
    return two_parts() if request.param == "two-parts" else PROCEDURAL_MESHES[request.param]()


def test_every_attribute_of_every_part_is_kept_in_order(mesh: Mesh, tmp_path: Path):
    export_glb(mesh, random_maps(), tmp_path / "mesh.glb")
    document, binary = read_glb(tmp_path / "mesh.glb")
    assert [node["name"] for node in document["nodes"]] == [part.name for part in mesh.parts]
    for part, entry in zip(mesh.parts, document["meshes"], strict=True):
        faces = mesh.faces[part.faces.start : part.faces.stop].long()
        used = faces.unique()
        (primitive,) = entry["primitives"]
        read = {
            name: read_accessor(document, binary, index)
            for name, index in primitive["attributes"].items()
        }
        indices = read_accessor(document, binary, primitive["indices"]).reshape(-1, 3)
        assert torch.equal(used[torch.from_numpy(indices.astype(np.int64))], faces)
        np.testing.assert_array_equal(read["POSITION"], mesh.positions[used].float())
        np.testing.assert_array_equal(read["NORMAL"], mesh.normals[used])
        np.testing.assert_array_equal(read["TANGENT"], mesh.tangents[used])
        u, v = mesh.uv[used].numpy().T
        np.testing.assert_array_equal(read["TEXCOORD_0"][:, 0], u)
        np.testing.assert_allclose(1 - read["TEXCOORD_0"][:, 1], v, atol=1e-7)


def test_trimesh_reads_the_same_geometry_and_maps(tmp_path: Path):
    mesh, maps = PROCEDURAL_MESHES["torus"](), random_maps()
    export_glb(mesh, maps, tmp_path / "mesh.glb")
    scene = trimesh.load_scene(tmp_path / "mesh.glb", process=False)
    (geometry,) = scene.geometry.values()
    assert isinstance(geometry, trimesh.Trimesh)
    scale = float(mesh.positions.abs().max())
    np.testing.assert_allclose(geometry.vertices, mesh.positions, atol=1e-6 * scale)
    np.testing.assert_array_equal(geometry.faces, mesh.faces)
    visual: Any = geometry.visual
    np.testing.assert_allclose(visual.uv, mesh.uv, atol=1e-6)
    pictures = map_pictures(maps)
    for name, picture in {
        "albedo": visual.material.baseColorTexture,
        "metallic_roughness": visual.material.metallicRoughnessTexture,
        "normal": visual.material.normalTexture,
    }.items():
        np.testing.assert_array_equal(np.asarray(picture), pictures[name])


def test_our_own_reader_gives_the_mesh_and_its_maps_back(tmp_path: Path):
    mesh, maps = PROCEDURAL_MESHES["apple"](), (random_maps() * 255).round() / 255
    export_glb(mesh, maps, tmp_path / "mesh.glb")
    again = load_mesh(tmp_path / "mesh.glb")
    assert [part.name for part in again.parts] == [part.name for part in mesh.parts]
    corners, corners_again = mesh.faces.long(), again.faces.long()
    for name in ("positions", "uv", "normals"):
        torch.testing.assert_close(
            getattr(again, name)[corners_again],
            getattr(mesh, name)[corners],
            atol=1e-6,
            rtol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert again.source_material is not None
    torch.testing.assert_close(again.source_material.maps[..., :5], maps[..., :5])


def test_sides_and_sampler_are_those_of_the_mesh(tmp_path: Path):
    mesh = two_parts()
    export_glb(mesh, random_maps(), tmp_path / "mesh.glb")
    document, _ = read_glb(tmp_path / "mesh.glb")
    of_part = [entry["primitives"][0]["material"] for entry in document["meshes"]]
    assert [document["materials"][i]["doubleSided"] for i in of_part] == [False, True]
    assert document["samplers"] == [
        {"magFilter": 9729, "minFilter": 9987, "wrapS": 10497, "wrapT": 10497}
    ]
    export_glb(replace(mesh, double_sided=True), random_maps(), tmp_path / "mesh.glb")
    document, _ = read_glb(tmp_path / "mesh.glb")
    assert [material["doubleSided"] for material in document["materials"]] == [True]


def test_the_file_says_where_it_comes_from(tmp_path: Path):
    extras = {"prompt": "ein Apfel, grün", "seed": 42}
    export_glb(two_parts(), random_maps(), tmp_path / "mesh.glb", extras=extras)
    document, _ = read_glb(tmp_path / "mesh.glb")
    assert document["asset"]["generator"] == f"sdslab {__version__}"
    assert document["asset"]["extras"] == extras


def test_pictures_are_in_the_file(tmp_path: Path):
    maps = random_maps()
    export_glb(two_parts(), maps, tmp_path / "mesh.glb")
    document, binary = read_glb(tmp_path / "mesh.glb")
    pictures = map_pictures(maps)
    for image in document["images"]:
        view = document["bufferViews"][image["bufferView"]]
        content = binary[view["byteOffset"] :][: view["byteLength"]]
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pictures[image["name"]])


def test_positions_beyond_float32_are_refused(tmp_path: Path):
    mesh = two_parts()
    huge = replace(mesh, positions=mesh.positions * 1e300)
    with pytest.raises(ValueError, match="finite in float32"):
        export_glb(huge, random_maps(), tmp_path / "mesh.glb")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_glb(two_parts(), random_maps(), tmp_path / "file" / "mesh.glb")


def run_node(script: str, package: str, *arguments: Path) -> str:
    """Runs a script of this folder; skips the test where `npm ci --prefix tests` has not run."""
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / package).is_dir():
        pytest.skip(f"needs node and {package}: npm ci --prefix tests")
    done = subprocess.run(
        [node, HERE / script, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_khronos_validator_finds_nothing(tmp_path: Path):
    files = {name: tmp_path / f"{name}.glb" for name in [*PROCEDURAL_MESHES, "two parts"]}
    for name, path in files.items():
        mesh = PROCEDURAL_MESHES[name]() if name in PROCEDURAL_MESHES else two_parts()
        export_glb(mesh, random_maps(), path, extras={"seed": 42})
    reports = json.loads(run_node("validate_glb.mjs", "gltf-validator", *files.values()))
    assert len(reports) == len(files)
    for report in reports.values():
        assert report["issues"]["messages"] == []
        assert report["info"]["totalTriangleCount"] > 0


def screenshot(path: Path, **view: Any) -> np.ndarray:
    """[256, 256, 3] uint8: what three.js shows of a square in the xy plane, seen from +Z."""
    camera, out = path.with_suffix(".json"), path.with_suffix(".png")
    settings = {
        "eye": [0, 0, 4], "target": [0, 0, 0], "up": [0, 1, 0], "fov_deg": 28.072486935852957,
        "width": 256, "height": 256, **view,
    }  # fmt: skip
    camera.write_text(json.dumps(settings))
    run_node("browser_screenshot.mjs", "playwright-core", path, camera, out)
    with Image.open(out) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def square() -> Mesh:
    """[−1, 1]² in the xy plane; at a distance of 4 it fills a view of 2 atan(1/4)."""
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    return Mesh(
        name="square",
        positions=torch.nn.functional.pad(corners, (0, 1)).double(),
        faces=torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32),
        uv=(corners + 1) / 2,
        normals=torch.tensor([0.0, 0, 1]).repeat(4, 1),
        tangents=torch.tensor([1.0, 0, 0, 1]).repeat(4, 1),
        parts=(Part("square", range(2)),),
        source_vertex=torch.arange(4),
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_colours_where_they_belong(tmp_path: Path):
    maps = random_maps(4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    export_glb(square(), maps, tmp_path / "square.glb")
    shown = screenshot(tmp_path / "square.glb", light="none")
    # Row 0 of the maps is v = 0, the lower edge; the middles of the sixteen fields:
    expected = (maps[8::16, 8::16, :3].flip(0) * 255).round().numpy()
    np.testing.assert_allclose(shown[32::64, 32::64], expected, atol=2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
def test_a_bump_lit_from_above_is_brighter_on_top(mirrored: bool, tmp_path: Path):
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 32 - 1] * 2, indexing="ij")
    maps = torch.full((64, 64, 8), 0.5)
    maps[..., 4] = 0
    normal = torch.nn.functional.normalize(torch.stack((x, y, torch.full_like(x, 1.5)), -1), dim=-1)
    maps[..., 5:] = (normal + 1) / 2
    mesh = square()
    if mirrored:  # u runs to the left
        uv = mesh.uv.clone()
        uv[:, 0] = 1 - uv[:, 0]
        mesh = replace(mesh, uv=uv, tangents=torch.tensor([-1.0, 0, 0, -1]).repeat(4, 1))
    export_glb(mesh, maps, tmp_path / "bump.glb")
    shown = screenshot(tmp_path / "bump.glb", light="above").sum(-1)
    assert shown[40, 128] > shown[128, 128] > shown[216, 128]
    assert shown[128, 40] == pytest.approx(shown[128, 216], abs=6)  # even from side to side


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_what_our_renderer_shows(tmp_path: Path):
    """The silhouette to an IoU of 0.98, and the albedo inside it."""
    mesh = PROCEDURAL_MESHES["apple"]()
    maps = random_maps(64)
    maps[..., :3] = torch.nn.functional.interpolate(
        random_maps(8)[..., :3].movedim(-1, 0)[None], size=(64, 64), mode="bilinear"
    )[0].movedim(0, -1)
    export_glb(mesh, maps, tmp_path / "apple.glb")
    angle = [torch.tensor([value]) for value in (60.0, 20.0, 4.4, 30.0)]
    cameras = Cameras.orbit(*angle)
    place = mesh.normalization
    target = place.center
    eye = cameras.eye[0].double() / place.scale + target
    view = {"eye": eye.tolist(), "target": target.tolist(), "fov_deg": 30}
    renderer = Renderer(mesh, CpuBackend(), supersampling=4)
    surface = renderer.see(cameras, 256)
    ours = surface.coverage()[0, 0].numpy() > 0.5
    theirs = screenshot(tmp_path / "apple.glb", light="silhouette", **view)[..., 0] > 127
    assert 0.05 < ours.mean() < 0.9
    assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.98
    picture = renderer.picture(surface, maps, None, torch.zeros(1, 3, 256, 256))[0].movedim(0, -1)
    shown = torch.from_numpy(screenshot(tmp_path / "apple.glb", light="none", **view) / 255)
    inside = torch.from_numpy(ours & theirs) & (surface.coverage()[0, 0] == 1)
    assert psnr_db(shown[inside].float(), picture[inside]) > 30


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1.0, 1e9), (1e-30, 0.0), (1e30, 0.0), (1e-3, 5e4)],
    ids=["far", "tiny", "huge", "small and far"],
)
def test_a_mesh_keeps_its_shape_and_place_at_any_scale(scale: float, offset: float, tmp_path: Path):
    """Through a reload, relative to its extent; float32 would have put it all into one point."""
    torus = PROCEDURAL_MESHES["torus"]()
    mesh = replace(torus, positions=torus.positions * scale + offset)
    export_glb(mesh, random_maps(), tmp_path / "mesh.glb")
    reloaded = load_mesh(tmp_path / "mesh.glb")
    extent = 2 / mesh.normalization.scale
    assert (reloaded.positions - mesh.positions).abs().max() < 1e-4 * extent
    assert (reloaded.render_positions - mesh.render_positions).abs().max() < 1e-4
