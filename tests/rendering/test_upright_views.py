"""A file with another axis up looks, and is textured, as its Y-up twin."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import Exemplar, ExemplarSet
from sdslab.exemplar_texturing.guide import TangentField
from sdslab.exemplar_texturing.triplanar import triplanar
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh import QUATERNIONS, Mesh, Up, turned_up
from sdslab.meshes.mesh_assembly import assemble_mesh
from sdslab.meshes.mesh_file import MeshFile
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import apple
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import six_views
from sdslab.rendering.renderer import Renderer

CPU = torch.device("cpu")
OTHERS = [up for up in QUATERNIONS if up != "y"]


def twin(up: Up) -> Mesh:
    """The apple, as a file has it whose axis ``up`` points up."""
    mesh = apple()
    turn = turned_up(torch.eye(3, dtype=torch.float64), up)  # the transpose of what brings up to +Y
    positions = mesh.positions @ turn.T
    assert torch.equal(turned_up(positions, up), mesh.positions)
    file = MeshFile(
        positions.numpy(), mesh.faces.long().numpy(), torch.zeros(len(mesh.faces)).long().numpy(),
        ["apple"], [-1], uv=mesh.uv.double().numpy(),
    )  # fmt: skip
    return dataclasses.replace(assemble_mesh("apple", file, "never"), up=up)


@pytest.fixture(scope="module")
def upright() -> Mesh:
    return twin("y")


def exemplars() -> ExemplarSet:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ExemplarSet((Exemplar(picture),), (0, 1, 2))


@pytest.mark.parametrize("up", OTHERS)
def test_pictures_are_those_of_the_upright_twin(up: Up, upright: Mesh):
    def buffers(mesh: Mesh) -> dict[str, Tensor]:
        renderer = Renderer(mesh, make_backend("cpu", CPU))
        surface = renderer.see(six_views(), 48)
        maps = constant_material(16, 16)
        lit = {"tangent": surface.tangent, "normal of each": surface.normal}
        return renderer.g_buffer(surface, maps) | lit

    seen, expected = buffers(twin(up)), buffers(upright)
    for name, values in expected.items():
        torch.testing.assert_close(seen[name], values, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("up", OTHERS)
def test_photographs_lie_on_it_alike(up: Up, upright: Mesh):
    photos, maps = exemplars(), constant_material(64, 64)
    laid, expected = (triplanar(m, maps, photos, 1.5, 20.0) for m in (twin(up), upright))
    torch.testing.assert_close(laid, expected, atol=1e-4, rtol=0)
    backend = make_backend("cpu", CPU)
    field, other = (TangentField.of(m, "up", backend).vertices for m in (twin(up), upright))
    torch.testing.assert_close(field, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("up", OTHERS)
def test_the_export_keeps_the_files_axes(up: Up, tmp_path: Path):
    mesh = twin(up)
    export_glb(mesh, constant_material(16, 16), tmp_path / "a.glb")
    again = load_mesh(tmp_path / "a.glb", "never")
    corners, expected = (m.positions[m.faces.long()].float() for m in (again, mesh))
    assert torch.equal(corners, expected)
