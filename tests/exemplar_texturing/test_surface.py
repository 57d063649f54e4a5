"""Directions on surfaces, projections and pictures of maps."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdslab.exemplar_texturing.exemplars import Exemplar, ExemplarSet
from sdslab.exemplar_texturing.guide import GuidedPicture, TangentField
from sdslab.exemplar_texturing.triplanar import triplanar
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import Scene
from sdslab.rendering.texels import band_limit, rasterize_texels, uv_per_unit

BACKEND = CpuBackend()
WITH_NORMALS = (0, 1, 2, 5, 6, 7)


@pytest.fixture(scope="module", params=["sphere", "torus", "apple"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return load_mesh(request.param)


def view(*eye: float, roll: float = 0.0) -> Cameras:
    eyes = torch.tensor([eye]).double()
    cameras = Cameras.look_at(eyes, torch.zeros_like(eyes), torch.tensor([20.0]).double())
    return cameras.turned(torch.tensor([roll]).double())


@pytest.mark.parametrize("orient", ["up", "flow"])
def test_a_field_is_of_unit_tangent_vectors(orient, mesh: Mesh):
    field = TangentField.of(mesh, orient, BACKEND).vertices
    torch.testing.assert_close(field.norm(dim=1), torch.ones(len(field)))
    if orient == "up":
        upright = mesh.normals[:, 1].abs() < 0.99
        assert (field * mesh.normals).sum(1)[upright].abs().max() < 1e-5
        assert (field[upright, 1] > 0).all()


def bends(mesh: Mesh, field: torch.Tensor) -> float:
    """Mean of 1 − cos between the ends of an edge."""
    a, b = field[mesh.faces.long()][:, [0, 1]].unbind(1)
    return float(1 - (a * b).sum(1).mean())


def test_flow_bends_less_than_up_where_up_has_poles():
    sphere = load_mesh("sphere")
    up, flow = (TangentField.of(sphere, o, BACKEND).vertices for o in ("up", "flow"))
    assert bends(sphere, flow) < bends(sphere, up)


def test_at_a_pixel_up_is_up():
    sphere = load_mesh("sphere")
    surface = Renderer(sphere, BACKEND).see(view(0.0, 0.0, 8.0), 48)
    up = TangentField.of(sphere, "up", BACKEND).at(surface)
    expected = F.normalize(
        torch.tensor([0.0, 1.0, 0.0]) - surface.normal[:, 1:2] * surface.normal, dim=1
    )
    middle = surface.normal[:, 1].abs() < 0.8
    assert ((up * expected).sum(1)[middle] > 0.99).all()


@pytest.mark.parametrize("roll", [0.7, math.pi])
def test_normals_on_the_screen_turn_with_the_view(roll: float):
    mesh = load_mesh("torus")
    renderer = Renderer(mesh, BACKEND)
    maps = constant_material(8, 8)
    maps[..., 5:8] = (F.normalize(torch.tensor([0.4, 0.2, 0.8]), dim=0) + 1) / 2
    picture = GuidedPicture(renderer, WITH_NORMALS)
    directions = []
    for angle in (0.0, roll):
        cameras = view(1.0, 2.0, 8.0, roll=angle)
        surface = renderer.see(cameras, 64)
        shown = picture(surface, maps, Scene(cameras, None, torch.zeros(1, 6, 64, 64)))
        values = (2 * shown[0, 3:] - 1).movedim(0, -1).view(-1, 3)[surface.pixel]
        assert values.norm(dim=1).sub(1).abs().max() < 1e-5
        directions.append(values[:, :2].mean(0))
    cosine, sine = math.cos(roll), math.sin(roll)
    turned = torch.tensor([[cosine, -sine], [sine, cosine]]) @ directions[0]
    torch.testing.assert_close(directions[1], turned, atol=0.02, rtol=0)


def ramp() -> ExemplarSet:
    """Red grows to the right, green upwards."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    picture = torch.stack(((columns + 0.5) / 64, 1 - (rows + 0.5) / 64, torch.zeros(64, 64)))
    return ExemplarSet((Exemplar(picture),), (0, 1, 2))


def test_a_projected_photo_lies_upright_on_the_front_and_on_the_back():
    mesh = load_mesh("sphere")
    scale = 4.0  # so that nothing is mirrored
    maps = triplanar(mesh, constant_material(128, 128), ramp(), scale, 100.0)
    attributes = torch.cat(
        (mesh.uv, mesh.render_positions, mesh.normals), 1
    )[mesh.faces.long()]  # fmt: skip
    texels = rasterize_texels(mesh, (128, 128), BACKEND, attributes)
    _, place, normal = texels.attributes.split((2, 3, 3), 1)
    albedo = maps.view(-1, 8)[texels.pixel]
    for side in (1, -1):
        here = side * normal[:, 2] > 0.97
        assert here.sum() > 20
        expected = torch.stack((0.5 + side * place[:, 0] / scale, 0.5 + place[:, 1] / scale), 1)
        torch.testing.assert_close(albedo[here, :2], expected[here], atol=0.02, rtol=0)


def test_a_unit_of_the_surface_is_as_long_in_the_texture_as_the_areas_say(mesh: Mesh):
    per_unit = uv_per_unit(mesh)
    corners = mesh.render_positions[mesh.faces.long()].double()
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    covered = float((per_unit.square() * area.norm(dim=1) / 2).sum())
    assert 0.2 < covered <= 1.0


def test_band_limiting_takes_out_what_a_pixel_cannot_show():
    mesh = load_mesh("torus")
    noise = torch.rand(64, 64, 8, generator=torch.Generator().manual_seed(0))
    assert (band_limit(noise, mesh, 1e6) - noise).abs().max() < 1e-5
    coarse = band_limit(noise, mesh, 2.0)
    assert coarse.std() < 0.5 * noise.std()
    assert abs(coarse.mean() - noise.mean()) < 0.02
    flat = torch.full((64, 64, 8), 0.3)
    torch.testing.assert_close(band_limit(flat, mesh, 2.0), flat)
