"""The mesh in UV space: covered texels, wrapping, and moving maps between unwrappings."""

import dataclasses

import torch

from sdslab.meshes.material import FLAT_NORMAL, NORMAL, constant_material
from sdslab.meshes.mesh import Mesh, Part
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.texels import covered_texels, rasterize_texels, transfer_maps


def square(uv: list[list[float]]) -> Mesh:
    """Two triangles in the xy plane whose corners have the given texture coordinates."""
    return Mesh(
        name="square",
        positions=torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64),
        faces=torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32),
        uv=torch.tensor(uv),
        normals=torch.tensor([[0.0, 0, 1]]).repeat(4, 1),
        tangents=torch.tensor([[1.0, 0, 0, 1]]).repeat(4, 1),
        parts=(Part("square", range(2)),),
        source_vertex=torch.arange(4),
    )


def test_texels_whose_centre_is_inside_are_covered_and_row_0_is_v_0():
    mesh = square([[0.0, 0.0], [0.5, 0.0], [0.5, 0.25], [0.0, 0.25]])
    covered = covered_texels(mesh, (8, 8), CpuBackend())
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :4] = True
    assert covered.equal(expected)


def test_what_leaves_on_one_side_comes_in_on_the_other():
    mesh = square([[-0.25, 0.75], [0.25, 0.75], [0.25, 1.25], [-0.25, 1.25]])
    covered = covered_texels(mesh, (8, 8), CpuBackend())
    rows = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    assert covered.equal(rows[:, None] & rows)


def test_attributes_are_interpolated_at_texel_centres():
    mesh = square([[0.1, 0.2], [0.9, 0.2], [0.9, 0.8], [0.1, 0.8]])
    uv = mesh.uv[mesh.faces.long()]
    fragments = rasterize_texels(mesh, (32, 16), CpuBackend(), uv)
    row, column = fragments.pixel // 16, fragments.pixel % 16
    expected = torch.stack(((column + 0.5) / 16, (row + 0.5) / 32), -1)
    assert (fragments.attributes - expected).abs().max() < 1e-6


def smooth_maps(size: int) -> torch.Tensor:
    """A material that is smooth and repeats."""
    angle = 2 * torch.pi * (torch.arange(size) + 0.5) / size
    waves = torch.stack([angle.sin() * 0.3 + 0.5, angle.cos() * 0.3 + 0.5], -1)
    maps = constant_material(size, size)
    maps[..., 0], maps[..., 1] = waves[:, None, 0], waves[None, :, 1]
    return maps


def test_moving_maps_there_and_back_keeps_them():
    mesh = PROCEDURAL_MESHES["torus"]()
    maps = smooth_maps(128)
    # The same faces, laid out mirrored and shrunk to a quarter.
    other_uv = torch.stack((0.5 - 0.5 * mesh.uv[:, 0], 0.25 + 0.5 * mesh.uv[:, 1]), -1)
    other = dataclasses.replace(mesh, uv=other_uv)
    here, there = mesh.uv[mesh.faces.long()], other_uv[mesh.faces.long()]
    moved = transfer_maps(maps, here, other, (256, 256), CpuBackend())
    back = transfer_maps(moved, there, mesh, (128, 128), CpuBackend())
    covered = covered_texels(mesh, (128, 128), CpuBackend())
    assert psnr_db(back[covered][:, :5], maps[covered][:, :5]) > 38


def test_normals_turn_with_the_tangent_frame():
    """A chart turned by 90°: what leaned along u leans along −v or v."""
    mesh = square([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    turned = dataclasses.replace(mesh, uv=torch.stack((1 - mesh.uv[:, 1], mesh.uv[:, 0]), -1))
    maps = constant_material(16, 16)
    maps[..., NORMAL] = torch.tensor([0.8, 0.5, 0.9])  # leans along +u
    moved = transfer_maps(maps, mesh.uv[mesh.faces.long()], turned, (16, 16), CpuBackend())
    # In the turned chart the old u increases along the new v.
    assert (moved[..., NORMAL] - torch.tensor([0.5, 0.8, 0.9])).abs().max() < 1e-5
    maps[..., NORMAL] = torch.tensor(FLAT_NORMAL)
    moved = transfer_maps(maps, mesh.uv[mesh.faces.long()], turned, (16, 16), CpuBackend())
    assert (moved[..., NORMAL] - torch.tensor(FLAT_NORMAL)).abs().max() < 1e-6


def test_a_long_face_covers_each_texel_once():
    """A strip over 40 repeats: the first crossing of each texel counts."""
    mesh = square([[0.0, 0.25], [40.0, 0.25], [40.0, 0.5], [0.0, 0.5]])
    uv = mesh.uv[mesh.faces.long()]
    fragments = rasterize_texels(mesh, (16, 16), CpuBackend(), uv)
    assert len(fragments.pixel) == 4 * 16
    assert fragments.pixel.unique().equal(fragments.pixel)
    fraction = fragments.attributes - fragments.attributes.floor()
    row, column = fragments.pixel // 16, fragments.pixel % 16
    assert (fraction[:, 0] - (column + 0.5) / 16).abs().max() < 1e-4
    assert (fraction[:, 1] - (row + 0.5) / 16).abs().max() < 1e-4
