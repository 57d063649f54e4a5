import math

import pytest
import torch
from torch import Tensor

from sdslab.meshes.procedural_meshes import sphere, torus
from sdslab.meshes.surface_frame import (
    FaceFrames,
    vertex_normals,
    vertex_tangents,
    weld,
)

QUAD = torch.tensor([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], dtype=torch.float64)
QUAD_FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])
QUAD_UV = QUAD[:, :2] / 2


def random_rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


def random_surface(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A bumpy height field with sheared texture coordinates."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*2 * [torch.linspace(0, 1, 9, dtype=torch.float64)], indexing="ij")
    z = 0.2 * torch.rand(x.shape, generator=generator, dtype=torch.float64)
    corner = torch.arange(81).view(9, 9)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    faces = torch.stack([a, b, c, a, c, d], -1).reshape(-1, 3)
    uv = torch.stack([x + 0.3 * y, y - 0.1 * z], -1).reshape(-1, 2)
    return torch.stack([x, y, z], -1).reshape(-1, 3), faces, uv


def exploded(positions: Tensor, faces: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """Every corner a vertex of its own."""
    order = faces.reshape(-1)
    return positions[order], torch.arange(len(order)).view(-1, 3), *(m[order] for m in more)


def test_sphere_normals_are_its_positions():
    mesh = sphere()
    positions = mesh.positions
    normals = vertex_normals(positions, mesh.faces)
    assert (normals - positions).abs().max() < 0.01  # the discretisation's, 64 × 32
    coarse_mean = (normals - positions).norm(dim=1).mean()
    assert coarse_mean < 0.003


def test_torus_tangents_run_around_the_axis():
    mesh = torus()
    frame = vertex_tangents(mesh.positions, mesh.faces, mesh.uv, mesh.normals)
    x, _, z = mesh.positions.unbind(1)
    expected = torch.stack([z, torch.zeros_like(x), -x], dim=1)
    expected /= expected.norm(dim=1, keepdim=True)
    assert (
        (frame.tangents[:, :3] * expected).sum(1) > 0.9994
    ).all()  # cos(π/96): seams see one side
    assert (frame.tangents[:, 3] == 1).all()
    assert frame.torn == 0


def test_a_plane_has_the_frame_of_its_texture():
    normals = vertex_normals(QUAD, QUAD_FACES)
    assert torch.equal(normals, torch.tensor([[0.0, 0, 1]] * 4, dtype=torch.float64))
    frame = vertex_tangents(QUAD, QUAD_FACES, QUAD_UV, normals)
    torch.testing.assert_close(
        frame.tangents, torch.tensor([[1.0, 0, 0, 1]] * 4, dtype=torch.float64)
    )


def test_a_mirrored_texture_has_the_other_handedness():
    normals = vertex_normals(QUAD, QUAD_FACES)
    frame = vertex_tangents(QUAD, QUAD_FACES, QUAD_UV * torch.tensor([-1, 1]), normals)
    expected = torch.tensor([[-1.0, 0, 0, -1]] * 4, dtype=torch.float64)
    torch.testing.assert_close(frame.tangents, expected)


def test_mirrored_charts_do_not_cancel_where_they_meet():
    # two squares share the edge x = 0, where u = 0; u grows away from it on both sides
    right = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    left = torch.tensor([[-1, 0, 0], [0, 0, 0], [0, 1, 0], [-1, 1, 0]], dtype=torch.float64)
    positions = torch.cat([right, left])
    faces = torch.cat([QUAD_FACES, QUAD_FACES + 4])
    uv = torch.stack([positions[:, 0].abs(), positions[:, 1]], dim=1)
    normals = vertex_normals(positions, faces)
    frame = vertex_tangents(positions, faces, uv, normals)
    expected = torch.tensor([[1.0, 0, 0, 1]] * 4 + [[-1.0, 0, 0, -1]] * 4, dtype=torch.float64)
    torch.testing.assert_close(frame.tangents, expected)
    assert frame.torn == 0


def test_a_vertex_of_both_handednesses_takes_the_majority():
    positions = torch.tensor(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [-0.1, 0, 0]], dtype=torch.float64
    )
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4]])
    uv = torch.stack([positions[:, 0].abs(), positions[:, 1]], dim=1)
    normals = vertex_normals(positions, faces)
    frame = vertex_tangents(positions, faces, uv, normals)
    assert frame.torn == 2
    assert frame.tangents[0, 3] == frame.tangents[0, 0] == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_splitting_vertices_changes_nothing(seed: int):
    positions, faces, uv = random_surface(seed)
    normals = vertex_normals(positions, faces)
    frame = vertex_tangents(positions, faces, uv, normals)
    split, split_faces, split_uv, expected = exploded(positions, faces, uv, normals)
    again = vertex_normals(split, split_faces)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-14)
    split_frame = vertex_tangents(split, split_faces, split_uv, expected)
    torch.testing.assert_close(
        split_frame.tangents, frame.tangents[faces.reshape(-1)], rtol=0, atol=1e-13
    )


def test_the_frame_turns_with_the_surface():
    positions, faces, uv = random_surface()
    rotation = random_rotation(3)
    normals = vertex_normals(positions, faces)
    frame = vertex_tangents(positions, faces, uv, normals).tangents
    turned_normals = vertex_normals(positions @ rotation.T, faces)
    torch.testing.assert_close(turned_normals, normals @ rotation.T, rtol=0, atol=1e-12)
    turned = vertex_tangents(positions @ rotation.T, faces, uv, turned_normals).tangents
    torch.testing.assert_close(turned[:, :3], frame[:, :3] @ rotation.T, rtol=0, atol=1e-11)
    assert torch.equal(turned[:, 3], frame[:, 3])


@pytest.mark.parametrize("scale", [2.0**-200, 2.0**-60, 2.0**60, 2.0**200])
def test_the_frame_does_not_depend_on_scale(scale: float):
    positions, faces, uv = random_surface()
    normals = vertex_normals(positions, faces)
    torch.testing.assert_close(vertex_normals(positions * scale, faces), normals)
    frame = vertex_tangents(positions, faces, uv, normals).tangents
    scaled = vertex_tangents(positions * scale, faces, uv, normals).tangents
    torch.testing.assert_close(scaled, frame)


def test_frames_are_orthonormal():
    positions, faces, uv = random_surface()
    normals = vertex_normals(positions, faces)
    tangents = vertex_tangents(positions, faces, uv, normals).tangents
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(81, dtype=torch.float64))
    torch.testing.assert_close(tangents[:, :3].norm(dim=1), torch.ones(81, dtype=torch.float64))
    assert (normals * tangents[:, :3]).sum(1).abs().max() < 1e-12


def test_a_tetrahedrons_normals_have_unit_length():
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    torch.testing.assert_close(vertex_normals(corners, faces), corners / math.sqrt(3))


def test_angles_weigh_not_areas_or_counts():
    # a cube's corner: one of its three squares is cut so that two triangles meet there
    positions = torch.tensor(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, -9], [1, 0, -9], [0, 1, -9]],
        dtype=torch.float64,
    )
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 4, 5], [0, 5, 1], [0, 3, 6], [0, 6, 4]])
    normal = vertex_normals(positions, faces)[0]
    expected = torch.tensor([-1, -1, 1], dtype=torch.float64) / math.sqrt(3)
    torch.testing.assert_close(normal, expected)


def test_faces_without_area_contribute_nothing():
    positions = torch.cat([QUAD, torch.tensor([[1.0, 0.5, 7], [5, 5, 5]], dtype=torch.float64)])
    faces = torch.cat([QUAD_FACES, torch.tensor([[0, 4, 0], [0, 0, 0]])])
    normals = vertex_normals(positions, faces)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(6, 3)
    torch.testing.assert_close(normals, up)
    assert (FaceFrames.of(positions, faces).normals[2:] == 0).all()


@pytest.mark.parametrize("normal", [[0.0, 0, 1], [1, 0, 0], [0, -1, 0], [0.6, 0, -0.8]])
def test_degenerate_texture_coordinates_get_some_orthogonal_tangent(normal: list[float]):
    normals = torch.tensor([normal] * 4, dtype=torch.float64)
    frame = vertex_tangents(QUAD, QUAD_FACES, torch.zeros(4, 2), normals)
    tangent = frame.tangents[:, :3]
    assert (tangent * normals).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(tangent.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert (frame.tangents[:, 3] == 1).all()


def test_angles_of_a_triangle_sum_to_pi():
    positions, faces, _ = random_surface()
    sums = FaceFrames.of(positions, faces).angles.sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, math.pi))


def test_weld_takes_both_zeros_as_one():
    assert weld(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]])).tolist() == [0, 0, 1]


def fan(parts: int) -> tuple[Tensor, Tensor]:
    """Triangles at the origin: the quadrant x, y > 0 in `parts`, the one of x < 0 < y whole."""
    angle = torch.linspace(0, math.pi / 2, parts + 1, dtype=torch.float64) ** 2 / (math.pi / 2)
    arc = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    positions = torch.cat([torch.zeros(1, 3), arc, torch.tensor([[-5.0, 0, 0]])]).double()
    first = torch.arange(1, parts + 2)
    return positions, torch.stack([torch.zeros_like(first), first, first + 1], 1)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_angles_weigh_tangents_too(parts: int):
    positions, faces = fan(parts)
    x, y, _ = positions.unbind(1)
    # sheared by 45° where x < 0: there x increases with u along (1, −1)
    uv = torch.stack([x, y + x.clamp_max(0)], 1)
    normals = torch.tensor([[0.0, 0, 1]], dtype=torch.float64).expand(len(positions), 3)
    tangent = vertex_tangents(positions, faces, uv, normals).tangents[0]
    angle = -math.pi / 8  # halfway between 0° and −45°, as both quadrants have the same angle
    expected = torch.tensor([math.cos(angle), math.sin(angle), 0, 1], dtype=torch.float64)
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_angles_weigh_normals_of_a_cubes_corner(parts: int):
    top, faces = fan(parts)
    top[-1] = torch.tensor([0.0, 0, -3])
    # a cube's corner from outside: the top in `parts`, and two whole sides of other sizes
    faces = torch.cat([faces[:-1], torch.tensor([[0, parts + 1, parts + 2], [0, parts + 2, 1]])])
    normal = vertex_normals(top, faces)[0]
    expected = torch.tensor([-1.0, -1, 1], dtype=torch.float64) / math.sqrt(3)
    torch.testing.assert_close(normal, expected)


@pytest.mark.parametrize("differs", ["nothing", "position", "uv", "normal"])
def test_tangents_add_up_where_position_uv_and_normal_are_equal(differs: str):
    # The fan's two quadrants, each with a vertex of its own at the origin.
    positions, faces = fan(1)
    positions, faces = torch.cat([positions, positions[:1]]), faces.clone()
    faces[1, 0] = 4
    x, y, _ = positions.unbind(1)
    uv = torch.stack([x, y + x.clamp_max(0)], 1)
    normals = torch.tensor([[0.0, 0, 1]], dtype=torch.float64).repeat(5, 1)
    if differs == "position":
        positions[4, 2] = 1e-9
    elif differs == "uv":
        uv[faces[1]] += 1
    elif differs == "normal":
        normals[4] = torch.tensor([0.0, 1e-9, 1])
    tangents = vertex_tangents(positions, faces, uv, normals).tangents[[0, 4], :3]
    angles = [-math.pi / 8] * 2 if differs == "nothing" else [0.0, -math.pi / 4]
    expected = torch.tensor([[math.cos(a), math.sin(a), 0] for a in angles], dtype=torch.float64)
    torch.testing.assert_close(tangents, expected, atol=1e-7, rtol=0)


def test_a_mirrored_half_keeps_its_handedness_where_vertices_are_shared():
    # u = |x| on both halves of a strip: the seam's vertices are split, but equal in all columns
    left = QUAD * torch.tensor([-0.5, 1, 1]).double()
    positions = torch.cat([QUAD, left])
    faces = torch.cat([QUAD_FACES, QUAD_FACES.flip(1) + 4])
    uv = torch.stack([positions[:, 0].abs(), positions[:, 1]], 1)
    normals = vertex_normals(positions, faces)
    tangents = vertex_tangents(positions, faces, uv, normals).tangents
    right = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64).expand(4, 4)
    torch.testing.assert_close(tangents, torch.cat([right, -right]))
    bitangent = tangents[:, 3:] * torch.linalg.cross(normals, tangents[:, :3])
    torch.testing.assert_close(bitangent, torch.tensor([[0.0, 1, 0]]).double().expand(8, 3))
