import numpy as np
import pytest
import torch

from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_assembly import assemble_mesh
from sdslab.meshes.mesh_file import MeshFile
from sdslab.meshes.procedural_meshes import sphere

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
QUADS = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)


def assembled(
    positions: np.ndarray, faces: np.ndarray, normals: np.ndarray, uv: np.ndarray
) -> Mesh:
    part = np.zeros(len(faces), np.int64)
    file = MeshFile(positions, faces, part, ["a"], [-1], uv=uv, normals=normals)
    return assemble_mesh("a", file, "never")


def ball() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sphere's positions, which are its normals, faces and texture coordinates."""
    mesh = sphere()
    positions = mesh.positions.numpy() / np.linalg.norm(mesh.positions, axis=1, keepdims=True)
    return positions, mesh.faces.long().numpy(), mesh.uv.double().numpy()


def boxes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A cube with four vertices a side, each with the side's normal."""
    positions = CUBE[QUADS].reshape(-1, 3)
    first = 4 * np.arange(6)[:, None, None]
    faces = (first + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    normals = np.repeat(CUBE[QUADS].mean(1), 4, axis=0)
    square = np.array([[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]])
    uv = np.concatenate([square + 0.3 * np.array([k % 3, k // 3]) for k in range(6)])
    return positions, faces, normals, uv


def test_only_normals_that_do_not_fit_are_computed():
    positions, faces, uv = ball()
    normals = positions + 0.1 * np.roll(positions, 1, axis=1)  # not those that would be computed
    bad = np.random.default_rng(0).permutation(len(positions))[: len(positions) // 80]
    broken = normals.copy()
    broken[bad[::2]] *= -1
    broken[bad[1::2]] = np.nan
    mesh, sound = (assembled(positions, faces, n, uv) for n in (broken, normals))
    kept = np.setdiff1d(np.arange(len(positions)), bad)
    assert torch.equal(mesh.normals[kept], sound.normals[kept])
    assert (mesh.normals[bad].double() * torch.from_numpy(positions[bad])).sum(1).min() > 0.99
    assert any("normals computed at" in note for note in mesh.notes)
    assert torch.equal(mesh.source_vertex, torch.arange(len(positions)))


def test_random_normals_are_all_computed():
    positions, faces, uv = ball()
    normals = np.random.default_rng(0).normal(size=positions.shape)
    mesh = assembled(positions, faces, normals, uv)
    assert (mesh.normals.double() * torch.from_numpy(positions)).sum(1).min() > 0.99


def test_a_vertex_is_split_where_its_normal_fits_some_faces_only():
    # two sides of a sharp roof share the ridge; its normal lies behind the second
    points = np.array([[0, 0, 0], [0, 0, 1], [-1, -9, 0], [-1, -9, 1], [1, -9, 0], [1, -9, 1.0]])
    faces = np.array([[0, 3, 1], [0, 2, 3], [0, 5, 4], [0, 1, 5]])
    normals = np.array([[-1, 0.1, 0]] * 4 + [[1, 0.1, 0]] * 2)
    uv = points[:, [0, 2]] / 2
    mesh = assembled(points, faces, normals, uv)
    assert mesh.source_vertex.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    left, right = mesh.normals[mesh.faces[0].long()], mesh.normals[mesh.faces[2].long()]
    expected = torch.from_numpy(normals[:2] / np.linalg.norm(normals[0])).float()
    assert torch.equal(left[::2], expected)
    torch.testing.assert_close(right[0], torch.tensor([0.0, 1, 0]), rtol=0, atol=0.1)
    assert np.array_equal(mesh.positions[mesh.faces.long()], points[faces])
    assert torch.equal(mesh.uv[mesh.faces.long()], torch.from_numpy(uv[faces]).float())


@pytest.mark.parametrize("inward", [True, False], ids=["with-faces", "right-already"])
def test_normals_of_a_mesh_inside_out_end_outward(inward: bool):
    positions, faces, uv = ball()
    mesh = assembled(positions, faces[:, ::-1], -positions if inward else positions, uv)
    torch.testing.assert_close(
        mesh.normals.double(), torch.from_numpy(positions), atol=1e-6, rtol=0
    )
    assert torch.equal(mesh.source_vertex, torch.arange(len(positions)))
    assert not any("do not fit" in note for note in mesh.notes)
    assert any("normals of" in note for note in mesh.notes) == inward


def test_normals_turn_with_the_faces_that_are_turned():
    positions, faces, normals, uv = boxes()
    expected = torch.from_numpy(normals).float()
    turned = np.isin(np.arange(12) // 2, (1, 4))
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
    normals = np.where(np.repeat(turned[::2], 4)[:, None], -normals, normals)
    mesh = assembled(positions, faces, normals, uv)
    assert torch.equal(mesh.normals, expected)
    assert "normals of 4 triangles turned with them" in mesh.notes


def test_pieces_turn_their_normals_each_by_itself():
    positions, faces, uv = ball()
    count = len(positions)
    pair = np.concatenate([positions, positions + 5])
    both = np.concatenate([faces[:, ::-1], faces[:, ::-1] + count])
    normals = np.concatenate([-positions, positions])  # of its faces; already right
    coordinates = np.concatenate([uv * [0.5, 1], uv * [0.5, 1] + [0.5, 0]])
    mesh = assembled(pair, both, normals, coordinates)
    expected = torch.from_numpy(np.concatenate([positions, positions]))
    torch.testing.assert_close(mesh.normals.double(), expected, atol=1e-6, rtol=0)
    assert len(mesh.positions) == 2 * count


@pytest.mark.parametrize("far", [1e3, 1e30])
def test_a_far_degenerate_face_does_not_count_for_the_extent(far: float):
    positions, faces, *_ = boxes()
    stray = np.full((3, 3), far)
    longer = np.concatenate([positions, stray])
    more = np.concatenate([faces, [[24, 25, 26]]])
    file = MeshFile(longer, more, np.zeros(13, np.int64), ["a"], [-1])
    plain = MeshFile(positions, faces, np.zeros(12, np.int64), ["a"], [-1])
    with_stray, without = assemble_mesh("a", file), assemble_mesh("a", plain)
    assert torch.equal(with_stray.uv[with_stray.faces.long()], without.uv[without.faces.long()])
    assert with_stray.normalization.scale == without.normalization.scale
    assert "1 degenerate triangle dropped" in with_stray.notes
