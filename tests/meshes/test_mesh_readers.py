"""What other programs write is read, or a note or an error says what is not."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdslab.meshes.mesh_file import MeshFile, MeshFileError, split_corners
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.mesh_io import READERS

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"
PLY = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
PNG = b"\x89PNG\r\n\x1a\n and so on"


def read(name: str, content: str | bytes, folder: Path = Path("/nonexistent")) -> MeshFile:
    data = content.encode() if isinstance(content, str) else content
    return READERS[Path(name).suffix](data, MeshFolder(folder / name))


@pytest.mark.parametrize(
    "text",
    [
        (SQUARE + FACE).replace(" ", "\t"),
        (SQUARE + FACE).replace(" ", " \t\f"),
        (SQUARE + FACE).replace("\n", "\r\n"),
        (SQUARE + FACE).replace("\n", "\r"),
        "\ufeff" + SQUARE + FACE,
        (SQUARE + FACE).upper(),
        SQUARE + "f 1/1 2/2 \\\n3/3 4/4",
        SQUARE + "# a comment that ends in a backslash \\\n" + FACE,
        SQUARE + "f -4/-4 -3/-3 -2/-2 -1/-1 # and more",
    ],
)
def test_an_obj_with_other_white_space_is_the_same(text: str):
    expected, mesh = read("a.obj", SQUARE + FACE), read("a.obj", text)
    assert np.array_equal(mesh.positions, expected.positions)
    assert np.array_equal(mesh.faces, expected.faces)
    assert mesh.uv is not None
    assert np.array_equal(mesh.uv, expected.positions[:, :2])
    assert mesh.notes == []


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("f 1/9 2/9 3/9", "3 corners name texture coordinates (vt) that the file lacks: it has 4"),
        ("f 1 2", "1 face of fewer than three corners"),
        ("f,1,2,3", "1 line not understood"),
        ("vn 0 0 1,", "1 comma between values passed over"),
        ("usemtl stone\nf 1 2 3", "1 material defined nowhere: stone"),
        ("mtllib no.mtl", "material file 'no.mtl' is missing"),
    ],
)
def test_what_an_obj_lacks_is_noted(line: str, note: str):
    mesh = read("a.obj", f"{SQUARE}{FACE}{line}\n")
    assert any(note in n for n in mesh.notes), mesh.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("f 1 x 3", "line 10 is 'f 1 x 3': 'x' is not of the form"),
        ("f 1.5 2 3", "not of the form"),
        ("f 1-2/3 4 1", "not of the form"),
        ("f 1/2/3/4 2 3", "not of the form"),
        ("f 1 2 -9", "there is no index -9"),
        ("v 1,5 2 3", "decimals have a point"),
        ("v a 0 0", "'a' is no number"),
        ("v 1 2", "it needs 3 numbers"),
    ],
)
def test_a_line_that_cannot_be_used_is_an_error(line: str, message: str):
    with pytest.raises(MeshFileError) as caught:
        read("a.obj", f"{SQUARE}{FACE}{line}\n")
    assert message in str(caught.value)


@pytest.mark.parametrize("third", ["0", "0 1"])
def test_a_third_texture_coordinate_is_left_out(third: str, tmp_path: Path):
    """Also where the material moves the look-up, and where a normal has a fourth number."""
    (tmp_path / "t.png").write_bytes(PNG)
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd -s 2 2 t.png\n")
    text = re.sub("(vt .*)", rf"\1 {third}", SQUARE) + "vn 0 0 1 7\n"
    mesh = read("a.obj", f"mtllib m.mtl\nusemtl a\n{text}f 1/1/1 2/2/1 3/3/1\nf 1 3 4\n", tmp_path)
    assert mesh.uv is not None
    first = mesh.faces[0]
    assert mesh.uv[first].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert mesh.normals is not None
    assert mesh.normals[first].tolist() == [[0, 0, 1]] * 3
    assert mesh.texture_uv is not None
    assert mesh.texture_uv[first].tolist() == [[0, 0], [2, 0], [2, 2]]


def materials(text: str, folder: Path, uses: tuple[str, ...] = ("a",)) -> MeshFile:
    """A mesh whose faces use materials, in turn, of a library of this text."""
    (folder / "m.mtl").write_text(text)
    faces = "".join(f"usemtl {name}\n{FACE}" for name in uses)
    return read("a.obj", f"mtllib m.mtl\n{SQUARE}{faces}", folder)


def test_materials_of_different_scales_look_up_apart(tmp_path: Path):
    (tmp_path / "t.png").write_bytes(PNG)
    text = "newmtl a\nmap_Kd -s 2 t.png\nnewmtl b\nmap_Kd -o 0.5 0.25 t.png\nnewmtl c\n"
    mesh = materials(text, tmp_path, ("a", "b", "c"))
    assert mesh.uv is not None
    assert mesh.texture_uv is not None
    square = mesh.positions[mesh.faces][:, :, :2]
    assert np.array_equal(mesh.uv[mesh.faces], square)
    looked_up = mesh.texture_uv[mesh.faces]
    for part, (scale, offset) in enumerate([((2, 1), (0, 0)), ((1, 1), (0.5, 0.25)), (1, 0)]):
        own = mesh.face_part == part
        assert own.sum() == 2
        assert looked_up[own] == pytest.approx(square[own] * scale + offset), part


def picture(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("keyword", ["map_Bump", "bump", "norm"])
@pytest.mark.parametrize("color", [(128, 128, 255), (90, 90, 90)], ids=["normals", "heights"])
def test_normal_maps_are_told_from_heights(
    keyword: str, color: tuple[int, int, int], tmp_path: Path
):
    (tmp_path / "n.png").write_bytes(picture(color))
    mesh = materials(f"newmtl a\n{keyword} -bm 0.5 n.png\n", tmp_path)
    (material,) = mesh.materials
    if color[2] == 255 or keyword == "norm":
        assert material.normal_image == picture(color)
        assert material.normal_scale == 0.5
        assert mesh.lost == []
    else:
        assert material.normal_image is None
        assert mesh.lost == ["the bump map 'n.png'"]


def test_light_of_a_material_is_read(tmp_path: Path):
    (tmp_path / "t.png").write_bytes(PNG)
    text = "newmtl a\nKe 0.5 0.25 0\nnewmtl b\nKe 0 0 0\nmap_Ke t.png\nnewmtl c\nKd 1 0 0\n"
    a, b, c = materials(text, tmp_path, ("a", "b", "c")).materials
    assert (a.emissive, a.emissive_image) == ((0.5, 0.25, 0), None)
    assert (b.emissive, b.emissive_image) == ((1, 1, 1), PNG)
    assert (c.emissive, c.color) == ((0, 0, 0), (1, 0, 0))


@pytest.mark.parametrize(
    ("statement", "note", "lost"),
    [
        ("map_d t.png", "", "the map_d texture 't.png'"),
        ("disp t.png", "", "the disp texture 't.png'"),
        ("map_Kd t.<UDIM>.png", "is a set of UDIM tiles", ""),
        ("map_Kd -clamp on t.png", "map_kd: option -clamp on not applied", ""),
        ("map_Kd -mm 0.5 2 t.png", "map_kd: option -mm 0.5 2 not applied", ""),
        ("map_Kd -s 2 t.png\nmap_Ke t.png", "material 'a': all maps placed as its first", ""),
        ("map_Kd e.exr", "'e.exr' is an OpenEXR picture, which is not read", ""),
        ("Kd red", "'kd red' is not a colour", ""),
    ],
)
def test_what_a_material_loses_is_noted(statement: str, note: str, lost: str, tmp_path: Path):
    (tmp_path / "t.png").write_bytes(PNG)
    (tmp_path / "e.exr").write_bytes(b"\x76\x2f\x31\x01 and so on")
    mesh = materials(f"newmtl a\n{statement}\n", tmp_path)
    assert [note in n for n in mesh.notes] == [True] * bool(note)
    assert mesh.lost == [lost] * bool(lost)


def test_what_files_have_and_a_mesh_has_not_is_listed():
    obj = read("a.obj", f"{SQUARE}{FACE}l 1 2\np 1\np 2\ncurv 0 1 1 2\n#MRGB ffffffff\n")
    assert obj.lost == ["1 line element", "2 point elements", "free-form curves or surfaces",
                        "vertex colours in #MRGB comments"]  # fmt: skip
    head = f"ply\nformat ascii 1.0\n{PLY}property float quality\nelement edge 1\n"
    head += "property int vertex1\nelement face 1\nproperty list uchar int vertex_indices\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    ply = read("a.ply", head + "0 0 0 1\n1 0 0 1\n1 1 0 1\n0 1 0 1\n0\n3 0 1 2 9 9 9\n")
    assert ply.lost == ["colours of faces", "values quality", "1 row of 'edge'"]
    off = read("a.off", "OFF\n3 1 0\n0 0 0 5\n1 0 0 5\n0 1 0 5\n3 0 1 2 1 0 0\n")
    assert off.lost == ["colours of faces", "further values of vertices"]


def test_corners_written_in_several_ways_in_one_file():
    text = SQUARE + "vn 0 0 1\nf 1//1 2/2 3\nf 1/1/1 -2/3/-1 4/4/\n"
    mesh = read("a.obj", text)
    assert mesh.normals is not None
    assert np.isfinite(mesh.normals).all(1).sum() == 3
    assert np.array_equal(mesh.positions[mesh.faces][1], [[0, 0, 0], [1, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize("scale", ["1 0.5 0", "255 127.5 0"])
def test_vertex_colours_become_linear(scale: str):
    mesh = read("a.obj", f"v 0 0 0 {scale}\nv 1 0 0 {scale}\nv 0 1 0 {scale}\nf 1 2 3\n")
    assert mesh.colors is not None
    assert mesh.colors[0] == pytest.approx([1, ((0.5 + 0.055) / 1.055) ** 2.4, 0, 1])


@pytest.mark.parametrize(
    ("statement", "file"),
    [
        ("map_Kd\ttex.png", "tex.png"),
        ("map_Kd TEX.PNG", "tex.png"),
        ("map_Kd my tex.png", "my tex.png"),
        ('map_Kd "my tex.png"', "my tex.png"),
        ("map_Kd -s 1 1 1 my tex.png", "my tex.png"),
        ("map_Kd -clamp off -bm 1 -o 0 0 0 tex.png", "tex.png"),
        ("map_Kd tex.png -bm 1", "tex.png"),
        (r"map_Kd C:\Users\me\tex.png", "tex.png"),
        (r"map_Kd sub\tex.png", "sub/tex.png"),
        ("map_Kd Fläche.png", "Fläche.png"),
        ("map_Kd -s 2 tex.png", "tex.png"),
    ],
)
@pytest.mark.parametrize("place", ["m.mtl", "mats/m.mtl"])
def test_the_picture_that_lies_there_is_found(
    statement: str, file: str, place: str, tmp_path: Path
):
    for path, content in ((file, PNG), (place, f"newmtl my mat\n{statement}\n".encode("latin-1"))):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    mesh = read("a.obj", f"mtllib {place}\nusemtl my mat\n{SQUARE}{FACE}", tmp_path)
    assert [m.color_image for m in mesh.materials] == [PNG]
    assert mesh.notes == []


def test_a_maps_scale_and_offset_move_its_look_up(tmp_path: Path):
    (tmp_path / "t.png").write_bytes(PNG)
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd -s 2 3 1 -o 0.1 0.2 0 t.png\n")
    mesh = read("a.obj", f"mtllib m.mtl\nusemtl a\n{SQUARE}{FACE}", tmp_path)
    assert mesh.texture_uv is not None
    assert mesh.texture_uv == pytest.approx(mesh.positions[:, :2] * [2, 3] + [0.1, 0.2])


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_strips_restart_and_face_one_way(encoding: str):
    points, strip = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], [0, 1, 2, 3, -1, 0, 1, 2]
    head = f"ply\nformat {encoding} 1.0\n{PLY}element tristrips 1\n"
    head += "property list int int vertex_indices\nend_header\n"
    if encoding == "ascii":
        body = "\n".join(
            " ".join(map(str, row)) for row in [*points, [len(strip), *strip]]
        ).encode()
    else:
        order = ">" if "big" in encoding else "<"
        body = np.array(points, f"{order}f4").tobytes()
        body += np.array([len(strip), *strip], f"{order}i4").tobytes()
    mesh = read("a.ply", head.encode() + body)
    assert mesh.faces.tolist() == [[0, 1, 2], [2, 1, 3], [0, 1, 2]]
    if encoding != "ascii":
        with pytest.raises(MeshFileError, match="3 bytes more than its header"):
            read("a.ply", head.encode() + body + b"abc")


@pytest.mark.parametrize("missing", ["", "two.png"])
def test_the_textures_of_a_ply_belong_to_faces_by_number(missing: str, tmp_path: Path):
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    (tmp_path / missing).unlink() if missing else None
    head = "ply\nformat ascii 1.0\ncomment TextureFile one.png\ncomment TextureFile two.png\n"
    head += f"{PLY}element face 3\nproperty list uchar int vertex_indices\n"
    head += "property list uchar float texcoord\nproperty int texnumber\nend_header\n"
    points = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
    faces = "3 0 1 2 6 0 0 1 0 1 1 1\n3 0 2 3 6 0 0 1 1 0 1 0\n4 0 1 2 3 0 7\n"
    mesh = read("a.ply", head + points + faces, tmp_path)
    pictures = [m.color_image for m in mesh.materials]
    of_face = [
        pictures[mesh.part_material[part]] if mesh.part_material[part] >= 0 else None
        for part in mesh.face_part
    ]
    two = None if missing else PNG + b"two.png"
    assert of_face == [PNG + b"one.png", two, None, None]
    assert mesh.faces[0].tolist() != mesh.faces[1].tolist()
    assert mesh.uv is not None
    assert np.array_equal(mesh.uv[mesh.faces[:2]], mesh.positions[mesh.faces[:2]][:, :, :2])
    assert np.isnan(mesh.uv[mesh.faces[2:]]).all()
    lacking = ["texture 'two.png' is missing"] if missing else []
    assert mesh.notes == [*lacking, "1 face of a texnumber without a texture"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_binary_ply_lists_of_unequal_length(order: str):
    kind = "little" if order == "<" else "big"
    head = f"ply\nformat binary_{kind}_endian 1.0\n{PLY}element face 3\n"
    head += "property list uchar int vertex_indices\nproperty short flags\nend_header\n"
    body = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], f"{order}f4").tobytes()
    for face in ([0, 1, 2], [0, 1, 2, 3], [1, 2, 3]):
        body += bytes([len(face)]) + np.array(face, f"{order}i4").tobytes() + b"\1\2"
    mesh = read("a.ply", head.encode() + body)
    assert len(mesh.faces) == 4
    assert mesh.faces[[0, -1]].tolist() == [[0, 1, 2], [1, 2, 3]]
    diagonal = np.bincount(mesh.faces[1:3].reshape(-1), minlength=4).tolist()
    assert diagonal in ([2, 1, 2, 1], [1, 2, 1, 2])
    for cut in (1, 6, 20):
        with pytest.raises(MeshFileError, match="it ends before its 3 rows of 'face' do"):
            read("a.ply", head.encode() + body[:-cut])


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("N", "n"), ("C", "c"), ("CN", "nc"), ("ST", "t"), ("STC", "ct"), ("STCN", "nct")],
)
def test_off_vertices_have_normals_colours_and_coordinates(kind: str, columns: str):
    values = {"n": "0 0 1", "c": "255 0 255 255", "t": "0.25 0.75"}
    more = " ".join(values[c] for c in columns)
    points = "".join(f"{p} {more}\n" for p in ("0 0 0", "1 0 0", "0 1 0"))
    mesh = read("a.off", f"{kind}OFF\n3 1 0\n{points}3 0 1 2\n")
    assert mesh.positions.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    expected = {"n": [0, 0, 1], "c": [1, 0, 1, 1], "t": [0.25, 0.75]}
    for name, array in (("n", mesh.normals), ("c", mesh.colors), ("t", mesh.uv)):
        if name in columns:
            assert array is not None
            assert array.tolist() == [pytest.approx(expected[name])] * 3
        else:
            assert array is None
    assert mesh.lost == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.off", "off\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
        ("a.off", "OFF3 1 0 # counts\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 255 0 0\n"),
        ("a.off", "COFF\n3 1 0\n0 0 0 9 9 9 9\n1 0 0 9 9 9 9\n0 1 0 9 9 9 9\n3 0 1 2\n"),
        ("a.stl", "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\n"
                  "vertex 0 1 0\nendloop\nendfacet\nendsolid a\n"),
    ],
)  # fmt: skip
def test_off_and_stl_variants(name: str, text: str):
    mesh = read(name, text)
    assert mesh.positions[mesh.faces].tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


def test_split_corners_is_what_sorting_all_rows_gives():
    random = np.random.default_rng(0)
    for _ in range(100):
        n, c = random.integers(1, 9), random.integers(1, 25)
        corners = np.stack([random.integers(k, m, c) for k, m in ((0, n), (-1, 3), (-1, 2))])
        vertex, *rows = split_corners(*corners, vertex_count=int(n))
        assert np.array_equal(np.stack(rows)[:, vertex], corners)
        assert len(np.unique(np.stack(rows), axis=1).T) == len(rows[0])
        assert (np.diff(rows[0]) >= 0).all()


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not here")
def test_the_shared_cases_are_read():
    found = [p for k in ("obj", "off", "stl", "ply") for p in sorted(CASES.rglob(f"*.{k}"))]
    for path in found:
        if path.name == "ply_assimp6_bin.ply":
            with pytest.raises(MeshFileError, match="it ends before its 12 rows"):
                READERS[path.suffix](path.read_bytes(), MeshFolder(path))
            continue
        mesh = READERS[path.suffix](path.read_bytes(), MeshFolder(path))
        assert len(mesh.faces) in (12, 13), path
        pictures = [m.color_image for m in mesh.materials]
        if "mtl_" in str(path) and "udim" not in str(path):
            assert all(pictures), path
