import pytest
import torch

from sdslab.meshes.mesh import Mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.meshes.unwrap import inspect_uv

MESHES = {name: make() for name, make in PROCEDURAL_MESHES.items()}


@pytest.fixture(params=MESHES, name="mesh")
def each_mesh(request: pytest.FixtureRequest) -> Mesh:
    return MESHES[request.param]


def test_it_is_closed_and_outward(mesh: Mesh):
    assert not mesh.double_sided
    assert mesh.notes == ()
    for part in mesh.parts:
        a, b, c = mesh.positions[mesh.faces[part.faces.start : part.faces.stop].long()].unbind(1)
        assert (a * torch.linalg.cross(b, c)).sum() > 0


def test_its_texture_coordinates_are_unmirrored_and_do_not_overlap(mesh: Mesh):
    assert not mesh.unwrapped
    assert 0 <= mesh.uv.min() <= mesh.uv.max() <= 1
    corners, positions = mesh.faces.long().numpy(), mesh.positions.numpy()
    report = inspect_uv(positions, corners, mesh.uv.double().numpy())
    assert report.problem is None
    assert report.overlap == 0
    assert report.fill > 0.6
    assert (mesh.tangents[:, 3] == 1).all()


def test_its_distortion_is_low(mesh: Mesh):
    """Nine tenths of the surface are stretched by no more than 4 to 1."""
    corners = mesh.positions[mesh.faces.long()]
    texture = mesh.uv.double()[mesh.faces.long()]
    sides = (corners[:, 1:] - corners[:, :1]).transpose(1, 2)  # [f, 3, 2]
    uv_sides = (texture[:, 1:] - texture[:, :1]).transpose(1, 2)
    singular = torch.linalg.svdvals(sides @ torch.linalg.inv(uv_sides))
    area = torch.linalg.cross(sides[..., 0], sides[..., 1]).norm(dim=1)
    stretched = singular[:, 0] > 4 * singular[:, 1]
    assert area[stretched].sum() < 0.1 * area.sum()


def test_it_is_made_of_a_few_thousand_triangles_in_parts(mesh: Mesh):
    assert 2000 <= len(mesh.faces) <= 6500
    assert [p.faces.start for p in mesh.parts] == [0, *(p.faces.stop for p in mesh.parts[:-1])]
    assert mesh.parts[-1].faces.stop == len(mesh.faces)


def test_the_torus_has_its_closed_form_area_and_volume():
    mesh = MESHES["torus"]
    a, b, c = mesh.positions[mesh.faces.long()].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    area = torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2
    assert volume == pytest.approx(2 * torch.pi**2 * 0.16, rel=0.01)
    assert area == pytest.approx(4 * torch.pi**2 * 0.4, rel=0.01)
