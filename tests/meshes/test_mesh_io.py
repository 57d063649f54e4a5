import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
QUADS = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)
TRIANGLES = np.concatenate([QUADS[:, [0, 1, 2]], QUADS[:, [0, 2, 3]]])
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr("sdslab.files.disk_cache.cache_folder", lambda: folder)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def gltf(nodes: list[dict[str, Any]], primitive: dict[str, Any], **more: Any) -> str:
    """A unit square in the xy plane: positions, uv (v down), indices."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4").tobytes()
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4").tobytes()
    indices = np.array([0, 1, 2, 0, 2, 3], "<u2").tobytes()
    data = base64.b64encode(positions + uv + indices).decode()
    uri = {"byteLength": 92, "uri": f"data:application/octet-stream;base64,{data}"}
    attributes = {"POSITION": 0, "TEXCOORD_0": 1}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 2, **primitive}]}],
        "buffers": [uri],
        "bufferViews": [
            {"buffer": 0, "byteOffset": o, "byteLength": n}
            for o, n in ((0, 48), (48, 32), (80, 12))
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
    }
    return json.dumps(document | more)


def obj_cube(suffix: str = "") -> str:
    lines = [f"v {x:.17g} {y:.17g} {z:.17g}" for x, y, z in CUBE]
    return "\n".join(lines + [f"f {a} {b} {c} {d}" for a, b, c, d in QUADS + 1]) + suffix


@pytest.mark.parametrize("name", PROCEDURAL_MESHES)
def test_procedural_meshes_load_by_name(name: str):
    assert load_mesh(name, "never").name == name


def test_a_file_hides_a_procedural_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "sphere", "not a mesh")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ends in one of"):
        load_mesh("sphere")


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".off", ".stl", ".obj"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_positions_and_their_order_are_the_files(suffix: str, scale: float, tmp_path: Path):
    import trimesh

    positions = (CUBE.astype(np.float32) / np.float32(3) * np.float32(scale)).astype(np.float64)
    cube = trimesh.Trimesh(positions, TRIANGLES, process=False)
    more: dict[str, Any] = {"digits": 40} if suffix in (".off", ".obj") else {}
    cube.export(tmp_path / f"cube{suffix}", **more)
    mesh = load_mesh(tmp_path / f"cube{suffix}")
    expected = positions[TRIANGLES].reshape(-1, 3) if suffix == ".stl" else positions
    original = torch.empty(len(expected), 3, dtype=torch.float64)
    original[mesh.source_vertex] = mesh.positions
    assert np.array_equal(original.numpy(), expected)
    assert (mesh.source_vertex.diff() >= 0).all()
    assert np.array_equal(mesh.positions[mesh.faces.long()], positions[TRIANGLES])
    assert mesh.unwrapped
    assert not mesh.double_sided


def test_obj_vertices_stay_in_order_where_they_are_split(tmp_path: Path):
    text = SQUARE + "vt 0.5 0.5\nf 4/4 1/1 3/3\nf 1/5 2/2 3/3\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert mesh.source_vertex.tolist() == [0, 0, 1, 2, 3]
    assert mesh.uv[:2].tolist() == [[0, 0], [0.5, 0.5]]


def test_negative_indices_count_from_where_they_stand(tmp_path: Path):
    text = SQUARE + "f -4/-4 -3/-3 -2/-2 -1/-1\nv 9 9 9\nvt 0.1 0.1\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert len(mesh.positions) == 5
    assert "1 vertices of no face" in mesh.notes


@pytest.mark.parametrize(
    "outline",
    [
        [(0, 0), (2, 0), (2, 2), (0, 2)],
        [(0, 0), (2, 0), (0.5, 0.5), (0, 2)],
        [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)],
        [(0, 0), (3, 0), (3, 2), (2, 2), (2, 1), (1, 1), (1, 2), (0, 2)],
    ],
    ids=["square", "arrow", "l", "u"],
)
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_polygons_keep_their_area(outline: list[tuple[float, float]], turn: int, tmp_path: Path):
    points = np.roll(np.array(outline, np.float64), turn, axis=0)
    text = "".join(f"v 0 {x} {y}\n" for x, y in points)
    text += "f " + " ".join(str(k + 1) for k in range(len(points)))
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    a, b, c = mesh.positions[mesh.faces.long()].unbind(1)
    x, y = points.T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    normals = torch.linalg.cross(b - a, c - a)
    assert (normals[:, 0] > 0).all()
    assert float(normals[:, 0].sum() / 2) == pytest.approx(area)


def test_groups_become_contiguous_parts(tmp_path: Path):
    lines = [f"v {x} {y} {z}" for x, y, z in CUBE]
    for k, quad in enumerate(QUADS + 1):
        lines += [f"g side{k % 2}", "f " + " ".join(map(str, quad))]
    mesh = load_mesh(write(tmp_path / "a.obj", "\n".join(lines)))
    assert [(p.name, p.faces) for p in mesh.parts] == [
        ("side0", range(6)), ("side1", range(6, 12)),
    ]  # fmt: skip


@pytest.mark.parametrize("inside_out", [True, False])
def test_winding_is_repaired_and_points_outward(inside_out: bool, tmp_path: Path):
    quads = [q[::-1] if inside_out or k in (1, 4) else q for k, q in enumerate(QUADS + 1)]
    lines = [f"v {x} {y} {z}" for x, y, z in CUBE + 5]
    lines += ["f " + " ".join(map(str, q)) for q in quads]
    mesh = load_mesh(write(tmp_path / "a.obj", "\n".join(lines)))
    a, b, c = mesh.positions[mesh.faces.long()].unbind(1)
    outward = ((a + b + c) / 3 - 5.5) * torch.linalg.cross(b - a, c - a)
    assert (outward.sum(1) > 0).all()
    assert any("turned" in note for note in mesh.notes)
    assert not mesh.double_sided


def test_an_open_surface_is_double_sided(tmp_path: Path):
    mesh = load_mesh(write(tmp_path / "a.obj", SQUARE + "f 1/1 2/2 3/3 4/4\n"))
    assert mesh.double_sided
    assert not mesh.unwrapped
    assert "open surface (4 border edges)" in mesh.notes


def test_degenerate_triangles_are_dropped_and_counted(tmp_path: Path):
    text = SQUARE + "f 1/1 2/2 3/3 4/4\nf 1/1 1/1 2/2\nv 0.5 0 0\nf 1/1 5/1 2/2\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert len(mesh.faces) == 2
    assert "2 degenerate triangles dropped" in mesh.notes


def test_a_moebius_strip_is_double_sided(tmp_path: Path):
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    lines = []
    for side in (-0.3, 0.3):
        radius = 1 + side * np.cos(angle / 2)
        rows = np.stack([radius * np.cos(angle), radius * np.sin(angle), side * np.sin(angle / 2)])
        lines += [f"v {x} {y} {z}" for x, y, z in rows.T]
    for k in range(12):
        n = (k + 1) % 12
        a, b = (n + 1, n + 13) if n else (13, 1)
        lines.append(f"f {k + 1} {a} {b} {k + 13}")
    mesh = load_mesh(write(tmp_path / "a.obj", "\n".join(lines)))
    assert mesh.double_sided
    assert "one-sided surface" in mesh.notes


def test_the_files_normals_are_kept_at_unit_length(tmp_path: Path):
    text = SQUARE + "vn 0.2 0 2\nvn 0 0 3\nf 1/1/1 2/2/2 3/3/2 4/4/2\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    expected = torch.tensor([0.2, 0, 2]) / 4.04**0.5
    torch.testing.assert_close(mesh.normals[0], expected)
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("normal", ["0 0 -1", "0 0 0", "nan 0 1"])
def test_normals_that_do_not_fit_are_computed(normal: str, tmp_path: Path):
    text = SQUARE + f"vn {normal}\nf 1/1/1 2/2/1 3/3/1 4/4/1\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    torch.testing.assert_close(mesh.normals, torch.tensor([[0.0, 0, 1]]).expand(4, 3))
    assert any("normals computed" in note for note in mesh.notes)


def test_gltf_nodes_are_placed_and_mirrors_turn_the_winding(tmp_path: Path):
    nodes = [
        {"mesh": 0, "name": "twin"},
        {"mesh": 0, "name": "twin", "scale": [-2, 1, 1], "translation": [-1, 0, 0]},
    ]
    mesh = load_mesh(write(tmp_path / "a.gltf", gltf(nodes, {})))
    assert [p.name for p in mesh.parts] == ["twin", "twin.2"]
    a, b, c = mesh.positions[mesh.faces.long()].unbind(1)
    assert (torch.linalg.cross(b - a, c - a)[:, 2] > 0).all()
    assert mesh.positions[:, 0].min() == -3
    assert "texture coordinates of 2 parts laid side by side" in mesh.notes
    assert not mesh.unwrapped


def test_gltf_texture_coordinates_are_flipped_and_survive_without_a_material(tmp_path: Path):
    mesh = load_mesh(write(tmp_path / "a.gltf", gltf([{"mesh": 0}], {})), "never")
    torch.testing.assert_close(mesh.uv, mesh.positions[:, :2].float())


def test_gltf_maps_and_factors_become_one_material(tmp_path: Path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 128, 0)  # the picture's upper half
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write(tmp_path / "color.png", buffer.getvalue())
    write(tmp_path / "surface.png", picture((0, 128, 255), (4, 4)))
    write(tmp_path / "normal.png", picture((128, 128, 255), (4, 4)))
    more = {
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicRoughnessTexture": {"index": 1},
                    "roughnessFactor": 0.5,
                    "metallicFactor": 0.25,
                },
                "normalTexture": {"index": 2},
                "doubleSided": True,
            }
        ],
        "textures": [{"source": k} for k in range(3)],
        "images": [{"uri": f"{n}.png"} for n in ("color", "surface", "normal")],
    }
    mesh = load_mesh(write(tmp_path / "a.gltf", gltf([{"mesh": 0}], {"material": 0}, **more)))
    assert mesh.source_material is not None
    maps = mesh.source_material.maps
    assert maps.shape == (8, 8, 8)
    torch.testing.assert_close(maps[-1, 0, :3], torch.tensor([255, 128, 0]) / 255)
    assert (maps[0, :, :3] == 0).all()
    expected = torch.tensor([64 / 255, 0.25, 0.5, 0.5, 1])
    torch.testing.assert_close(maps[0, 0, 3:], expected, rtol=0, atol=0.005)
    torch.testing.assert_close(mesh.source_material.corner_uv, mesh.uv[mesh.faces.long()])
    assert mesh.parts[0].material.double_sided


def test_several_materials_lie_side_by_side_with_their_texture_coordinates(tmp_path: Path):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        write(tmp_path / f"{name}.png", picture(color, (16, 16)))
    write(tmp_path / "a.mtl", "newmtl red\nmap_Kd red.png\nPr 0.2\nnewmtl blue\nmap_Kd blue.png\n")
    text = "mtllib a.mtl\n" + SQUARE + "v 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1\n"
    text += "usemtl red\nf 1/1 2/2 3/3 4/4\nusemtl blue\nf 5/1 6/2 7/3 8/4\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert mesh.source_material is not None
    assert not mesh.unwrapped
    torch.testing.assert_close(mesh.source_material.corner_uv, mesh.uv[mesh.faces.long()])
    maps = mesh.source_material.maps
    side = len(maps)
    for part, color, roughness in zip(mesh.parts, ([1, 0, 0], [0, 0, 1]), (0.2, 0.5), strict=True):
        centres = mesh.source_material.corner_uv[part.faces.start : part.faces.stop].mean(1)
        column, row = (centres * side).long().unbind(1)
        torch.testing.assert_close(maps[row, column, :3], torch.tensor([color] * 2).float())
        torch.testing.assert_close(maps[row, column, 3], torch.full((2,), roughness))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "file:///etc/hostname", "http://a.b/c", "link.png"]
)
def test_textures_outside_the_folder_are_ignored(name: str, tmp_path: Path):
    write(tmp_path / "secret.png", picture((1, 2, 3)))
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    write(folder / "a.mtl", f"newmtl m\nmap_Kd {name}\n")
    path = write(folder / "a.obj", f"mtllib a.mtl\n{SQUARE}usemtl m\nf 1/1 2/2 3/3 4/4\n")
    mesh = load_mesh(path)
    assert any("outside the mesh's folder" in note for note in mesh.notes)


@pytest.mark.parametrize("uri", ["../a.bin", "/etc/hostname", "file:///etc/hostname", "no.bin"])
def test_a_buffer_that_cannot_be_read_is_an_error(uri: str, tmp_path: Path):
    text = gltf([{"mesh": 0}], {}, buffers=[{"uri": uri, "byteLength": 92}])
    with pytest.raises(UserError, match=r"outside the mesh's folder|is missing"):
        load_mesh(write(tmp_path / "a.gltf", text))


def test_ply_quads_triangles_and_texture_coordinates_of_faces(tmp_path: Path):
    header = (
        "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\n"
        "property float z\nelement face 2\nproperty list uchar int vertex_indices\n"
        "property list uchar float texcoord\nend_header\n"
    )
    body = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 2 0\n4 0 1 2 3 8 0 0 .5 0 .5 .5 0 .5\n"
    body += "3 3 2 4 6 0.6 .6 1 .6 .6 1\n"
    mesh = load_mesh(write(tmp_path / "a.ply", header + body), "never")
    assert mesh.source_vertex.tolist() == [0, 1, 2, 2, 3, 3, 4]
    assert len(mesh.faces) == 3


def test_kept_texture_coordinates_must_be_usable(tmp_path: Path):
    with pytest.raises(UserError, match="got no texture coordinates; let them be made"):
        load_mesh(write(tmp_path / "a.obj", obj_cube()), "never")


def test_always_unwraps(tmp_path: Path):
    path = write(tmp_path / "a.obj", SQUARE + "f 1/1 2/2 3/3 4/4\n")
    assert load_mesh(path, "always").unwrapped


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", "", "it is empty"),
        ("a.obj", "v 0 0 0\n", "it has no faces"),
        ("a.obj", "PK\3\4 and so on", "zip archive"),
        ("a.obj", "v 0 0\n", "line 1"),
        ("a.obj", "v 0 0 0\nf 1 2 3\n", "names v 3 of 1"),
        ("a.obj", "v 0 0 0\nf 0 1 1\n", "no index 0"),
        ("a.obj", "v 0 0 0\nv 1 1 1\nf 1 2 1\n", "no triangle with an area"),
        ("a.obj", "v nan 0 0\nv 1 1 1\nv 0 1 0\nf 1 2 3\n", "NaN or infinite"),
        ("a.obj", "v 1e200 0 0\nv 1 1 1\nv 0 1 0\nf 1 2 3\n", r"coordinates reach 1e\+200"),
        ("a.obj", "f" + " 1" * 600_000, "characters long"),
        ("a.glb", b"glTF\2\0\0\0\xff\0\0\0" + b"\0" * 30, "it is cut off"),
        ("a.gltf", "{]", "its JSON is damaged"),
        ("a.gltf", '{"asset": {"version": "1.0"}}', "it is glTF 1.0"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 999999999999\nproperty float x\n"
                  "end_header\n", "promises"),
        ("a.stl", b"\0" * 100, "length does not fit"),
        ("a.off", "OFF\n9 9 9\n", "ends too early"),
        ("a.fbx", "Kaydara", "ends in one of"),
    ],
)  # fmt: skip
def test_bad_files_are_named_in_one_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message) as caught:
        load_mesh(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_with_the_names_that_exist():
    with pytest.raises(UserError, match="one of apple, sphere, torus"):
        load_mesh("no-such.obj")


def test_coordinates_that_no_glb_can_hold_are_refused(tmp_path: Path):
    for name, size in (("huge", "1e39"), ("tiny", "1e-60")):
        path = tmp_path / f"{name}.obj"
        path.write_text(f"v 0 0 0\nv {size} 0 0\nv 0 {size} 0\nf 1 2 3\n")
        with pytest.raises(UserError, match="its coordinates reach"):
            load_mesh(path)


def test_vertices_of_no_face_may_lie_anywhere(tmp_path: Path):
    """They are kept, and neither the renderer nor a .glb file needs their place."""
    (tmp_path / "mesh.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1e39 0 0\nv 0 -1e300 0\nv nan 0 0\nf 1 2 3\n"
    )
    mesh = load_mesh(tmp_path / "mesh.obj")
    assert "3 vertices of no face" in mesh.notes
    assert mesh.positions[3, 0] == 1e39
    assert mesh.render_positions.abs().max() == 1
    export_glb(mesh, constant_material(4, 4), tmp_path / "mesh.glb")
    assert load_mesh(tmp_path / "mesh.glb").positions.equal(mesh.positions[:3])


def test_a_name_that_is_too_long_is_no_file():
    with pytest.raises(UserError, match="mesh must be an existing file"):
        load_mesh("x" * 300 + ".obj")


def test_primitives_that_share_many_vertices_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A few kilobytes of glTF may promise gigabytes: the promise is refused, not kept."""
    monkeypatch.setattr("sdslab.meshes.gltf_file.MOST_VERTICES", 1000)
    accessor = {"count": 600, "componentType": 5126, "type": "VEC3"}
    primitive = {"attributes": {"POSITION": 0}}
    document = {
        "asset": {"version": "2.0"},
        "accessors": [accessor],
        "meshes": [{"primitives": [primitive]}],
        "nodes": [{"mesh": 0}, {"mesh": 0}],
    }
    (tmp_path / "mesh.gltf").write_text(json.dumps(document))
    with pytest.raises(UserError, match="name more than 1,000 vertices"):
        load_mesh(tmp_path / "mesh.gltf")


def test_indices_that_are_only_promised_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sdslab.meshes.gltf_document.MOST_VERTICES", 1000)
    accessors = [
        {"count": 3, "componentType": 5126, "type": "VEC3"},
        {"count": 3000, "componentType": 5125, "type": "SCALAR"},
    ]
    primitive = {"attributes": {"POSITION": 0}, "indices": 1}
    document = {
        "asset": {"version": "2.0"},
        "accessors": accessors,
        "meshes": [{"primitives": [primitive]}],
    }
    (tmp_path / "mesh.gltf").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"accessors\[1\] promises 3,000 elements"):
        load_mesh(tmp_path / "mesh.gltf")


@pytest.mark.parametrize(
    ("line", "message"),
    [("v 0 0 0", "more than 30 lines of v"), ("f" + " 1" * 40, "more than 10 faces")],
    ids=["vertices", "corners"],
)
def test_obj_files_are_bounded(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sdslab.meshes.obj_file.MOST_FACES", 10)
    monkeypatch.setattr("sdslab.meshes.obj_file.MOST_ROWS", 30)
    path = write(tmp_path / "mesh.obj", SQUARE + "f 1 2 3\n" + f"{line}\n" * 40)
    with pytest.raises(UserError, match=message):
        load_mesh(path)
