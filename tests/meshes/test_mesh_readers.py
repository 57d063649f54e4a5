"""What other programs write is read, or a note or an error says what is not."""

from pathlib import Path

import numpy as np
import pytest

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
        ("f 1/9 2/9 3/9", "3 corners name a vt that is not there"),
        ("f 1 2", "1 faces of fewer than three corners"),
        ("f,1,2,3", "1 lines not understood"),
        ("vn 0 0 1,", "1 commas passed over"),
        ("usemtl stone\nf 1 2 3", "1 materials defined nowhere: stone"),
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
