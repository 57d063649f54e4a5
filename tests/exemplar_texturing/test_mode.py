"""Stage II as the posterior's mode: on a flat square, where the answer is known, and on meshes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdslab.errors import UserError
from sdslab.exemplar_texturing.coherent_mode import (
    Photographs,
    Sources,
    agreement,
    nearest_patches,
    settle,
    window,
)
from sdslab.exemplar_texturing.exemplars import Exemplar, ExemplarSet, load_exemplars
from sdslab.exemplar_texturing.mode_stage import mode_texture
from sdslab.exemplar_texturing.pyramid import STAGE_ONE, ExemplarConfig, ExemplarPyramid
from sdslab.exemplar_texturing.surface_points import FACING, SurfacePoints, neighbours
from sdslab.exemplar_texturing.triplanar import triplanar
from sdslab.meshes.material import NORMAL, ROUGHNESS
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.texels import covered_texels, rasterize_texels

SIDE = 32


def square(side: int = SIDE, *, quarter_turns: int = 0) -> SurfacePoints:
    """A point a pixel, row by row, seen from +z; their frames turned counter-clockwise."""
    row, column = (values.reshape(-1) for values in np.mgrid[:side, :side])
    position = np.stack((column, -row, np.zeros_like(row)), 1).astype(np.float32)
    normal = np.tile(np.array([0, 0, 1], dtype=np.float32), (len(position), 1))
    angle = quarter_turns * math.pi / 2
    up = np.tile(
        np.array([-math.sin(angle), math.cos(angle), 0], dtype=np.float32), (len(position), 1)
    )
    return SurfacePoints(position, normal, up, position[:, :2], np.zeros(len(position), np.int64))


def photograph(side: int = SIDE, channels: int = 3) -> torch.Tensor:
    """Blobs of a few pixels, no two alike, [c, side, side] in [−1, 1]."""
    noise = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)
    return blurred[0].clamp(-1, 1)


def around(points: SurfacePoints):
    return neighbours(points, points, window(), 1.0)


def identity(side: int = SIDE, margin: int = 0) -> Sources:
    row, column = (values.reshape(-1) for values in np.mgrid[:side, :side])
    place = np.stack((column, row), 1).astype(np.float32) + margin
    return Sources(place, np.zeros(side**2, np.float32), np.zeros(side**2, np.int32))


def test_neighbours_on_a_square_are_those_of_the_grid():
    near = around(square())
    middle = (SIDE // 2) * SIDE + SIDE // 2
    expected = [middle + int(y) * SIDE + int(x) for x, y in window()]
    assert near.index[middle].tolist() == expected
    np.testing.assert_allclose(near.displacement[middle], window(), atol=1e-5)
    np.testing.assert_allclose(near.turn[middle], 0, atol=1e-6)
    assert (near.index[0] == -1).sum() > 8  # a corner has nothing on two sides


def test_a_sheet_s_other_side_is_no_neighbour():
    front = square(8)
    back = replace(front, normal=-front.normal, position=front.position - [0, 0, 0.1])
    both = SurfacePoints(
        *(
            np.concatenate((getattr(front, name), getattr(back, name))).astype(kind)
            for name, kind in (
                ("position", np.float32), ("normal", np.float32), ("up", np.float32),
                ("uv", np.float32), ("face", np.int64),
            )
        )
    )  # fmt: skip
    near = around(both)
    assert near.index[:64].max() < 64
    assert near.index[64:][near.index[64:] >= 0].min() >= 64


def test_a_photograph_that_lies_on_the_square_already_stays():
    picture = Photographs.of([(photograph(), None)])
    near, start = around(square()), identity()
    colours = start.colours(picture)
    np.testing.assert_array_equal(colours, photograph().flatten(1).T.numpy())
    ended = settle(start, colours, near, picture, 3, turned=False)
    np.testing.assert_array_equal(ended.place, start.place)
    assert agreement(ended, near) == 1


def test_the_photograph_is_found_again_in_a_piece_of_it_with_noise():
    """A 32² piece of 48²: nearest patches of noisy colours, then neighbours agree."""
    picture = photograph(48)
    random = torch.Generator().manual_seed(1)
    piece = picture[:, 8 : 8 + SIDE, 8 : 8 + SIDE]
    noisy = piece + 0.15 * torch.randn(piece.shape, generator=random)
    colours = noisy.flatten(1).T.contiguous().numpy()
    photographs, near = Photographs.of([(picture, None)]), around(square())
    start = nearest_patches(colours, near, photographs, turned=False)
    ended = settle(start, colours, near, photographs, 6, turned=False)
    found = np.abs(ended.place - identity(margin=8).place).max(1) < 0.5
    assert found.mean() > 0.95
    assert agreement(ended, near) > max(0.85, agreement(start, near))


def test_turning_the_frames_turns_the_sources_and_not_what_is_shown():
    picture = Photographs.of([(photograph(48), None)])
    piece = photograph(48)[:, 8 : 8 + SIDE, 8 : 8 + SIDE].flatten(1).T.contiguous().numpy()
    for quarter_turns in range(4):
        near = around(square(quarter_turns=quarter_turns))
        start = nearest_patches(piece, near, picture, turned=True)
        ended = settle(start, piece, near, picture, 4, turned=True)
        right = np.abs(ended.colours(picture) - piece).max(1) < 0.05
        assert right.mean() > 0.9, quarter_turns
        # The frame is turned counter-clockwise, the photograph in it clockwise.
        turned = np.cos(ended.angle[right] + quarter_turns * math.pi / 2)
        assert np.mean(turned > 0.99) > 0.9, quarter_turns


def test_sources_stay_where_masks_allow():
    picture, mask = photograph(48), torch.zeros(1, 48, 48, dtype=torch.bool)
    mask[:, 4:40, 4:30] = True
    photographs, near = Photographs.of([(picture, mask)]), around(square())
    colours = photograph(SIDE).flatten(1).T.contiguous().numpy()
    start = nearest_patches(colours, near, photographs, turned=True)
    ended = settle(start, colours, near, photographs, 4, turned=True)
    x, y = np.rint(ended.place).astype(int).T
    assert mask[0].numpy()[y, x].all()
    assert (ended.place != start.place).any()


def test_photographs_of_different_widths_are_told_apart():
    red, blue = torch.full((3, 24, 40), -0.5), torch.full((3, 24, 24), -0.5)
    red[0], blue[2] = 0.8, 0.8
    photographs, near = Photographs.of([(red, None), (blue, None)]), around(square(16))
    colours = np.tile(np.array([-0.5, -0.5, 0.8], dtype=np.float32), (256, 1))
    colours[:128] = [0.8, -0.5, -0.5]
    sources = nearest_patches(colours, near, photographs, turned=False)
    ended = settle(sources, colours, near, photographs, 2, turned=False)
    assert (ended.photo[:96] == 0).all()
    assert (ended.photo[160:] == 1).all()
    np.testing.assert_allclose(ended.colours(photographs)[160:], colours[160:], atol=1e-6)


def test_sharpening_leaves_ramps_and_raises_what_alternates():
    ramp = torch.arange(16.0).expand(1, 16, 16) / 32
    flat = Photographs.of([(ramp, None)]).sharpened(0.8).pixels[0, :, 1:-1, 0]
    np.testing.assert_allclose(flat, ramp[0, :, 1:-1], atol=1e-6)
    board = 0.5 * (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16))
    sharp = Photographs.of([(board[None], None)]).sharpened(0.8).pixels[0, 1:-1, 1:-1, 0]
    np.testing.assert_allclose(sharp, board[1:-1, 1:-1] * (1 + 0.8 * 8 / 9), atol=1e-6)


def pyramid_of(exemplars: ExemplarSet, mesh: str = "sphere", **options) -> ExemplarPyramid:
    config = ExemplarConfig(**{"texture_size": 128, "scale": 2.0, **options})
    renderer = Renderer(load_mesh(mesh), CpuBackend())
    size = (config.texture_size, config.texture_size)
    covered = covered_texels(renderer.mesh, size, CpuBackend())
    return ExemplarPyramid.of(renderer, covered, exemplars, config, STAGE_ONE)


def projected(pyramid: ExemplarPyramid) -> torch.Tensor:
    """What the mode starts from here, in place of stage I."""
    mesh, config = pyramid.renderer.mesh, pyramid.config
    return triplanar(mesh, pyramid.grey(), pyramid.exemplars, config.scale, 40.0)


def test_points_are_spread_evenly_and_none_is_missing():
    mesh, per_unit = load_mesh("sphere"), 20.0
    field = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(mesh.render_positions), 3)
    points = SurfacePoints.spread(mesh, field, per_unit)
    area = float(mesh.face_vectors.norm(dim=1).sum()) / 2
    assert 0.9 < len(points.position) / (area * per_unit**2) < 1.1
    from scipy.spatial import KDTree

    tree = KDTree(points.position)
    apart = tree.query(points.position, k=2)[0][:, 1]
    assert apart.min() > 0.7499 / per_unit
    vertices = tree.query(mesh.render_positions.numpy())[0]
    assert vertices.max() < 1.1 / per_unit
    upright = np.abs(points.normal[:, 1]) < 1 - FACING
    assert (points.up[upright, 1] > 0).all()
    np.testing.assert_allclose((points.up * points.normal).sum(1), 0, atol=1e-4)


@pytest.mark.parametrize("photo", ["gravel", "brick"])
def test_same_bits_on_any_number_of_threads(photo: str):
    pyramid = pyramid_of(load_exemplars([photo]))
    maps = projected(pyramid)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(mode_texture(pyramid, maps))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert not torch.equal(results[0], maps)


def test_the_seed_is_heard_and_passes_are_told():
    done: list[int] = []
    exemplars = load_exemplars(["gravel"])
    one, two = (pyramid_of(exemplars, seed=seed) for seed in (0, 1))
    maps = projected(one)
    assert not torch.equal(mode_texture(one, maps, done.append), mode_texture(two, maps))
    assert done == list(range(1, 15))


def test_colours_are_the_photograph_s_own_even_from_a_blurred_start():
    """Two colours in stripes, from a faint copy: both come back, and nothing in between."""
    stripes = torch.full((3, 64, 64), 0.2)
    stripes[:, :, (torch.arange(64) // 8) % 2 == 0] = 0.8
    pyramid = pyramid_of(ExemplarSet((Exemplar(stripes),), (0, 1, 2)))
    maps = projected(pyramid)
    maps[..., :3] = 0.5 + 0.3 * (maps[..., :3] - 0.5)
    covered = covered_texels(pyramid.renderer.mesh, (128, 128), CpuBackend())
    shown = mode_texture(pyramid, maps)[covered][:, 0]
    assert float(maps[covered][:, 0].std()) < 0.1
    assert 0.85 < float(shown.std()) / float(stripes.std()) < 1.1


def test_roughness_and_normals_come_from_the_same_places_and_normals_turn_with_the_frames():
    albedo = (photograph(64) + 1) / 2
    roughness = albedo.mean(0, keepdim=True)
    flat = torch.tensor([0.5, 0.5, 1.0])[:, None, None].expand(3, 64, 64)
    pyramid = pyramid_of(
        ExemplarSet((Exemplar(torch.cat((albedo, roughness, flat))),), (0, 1, 2, 3, 5, 6, 7))
    )
    covered = covered_texels(pyramid.renderer.mesh, (128, 128), CpuBackend())
    shown = mode_texture(pyramid, projected(pyramid))[covered]
    torch.testing.assert_close(shown[:, ROUGHNESS], shown[:, :3].mean(1), atol=0.02, rtol=0)
    torch.testing.assert_close(shown[:, NORMAL], flat[:, 0, 0].expand(len(shown), 3))
    # A normal that leans along the photograph's up leans along the field.
    lean = torch.tensor([0.5, 0.5 + 0.3, 0.5 + 0.4])[:, None, None].expand(3, 64, 64)
    bricks = load_exemplars(["brick"]).exemplars[0].channels[:, :64, :64]
    pyramid = pyramid_of(
        ExemplarSet((Exemplar(torch.cat((bricks, lean))),), (0, 1, 2, 5, 6, 7)), "torus"
    )
    assert pyramid.field is not None
    mesh = pyramid.renderer.mesh
    parts = (mesh.uv, mesh.render_normals, pyramid.field.vertices, mesh.render_tangents)
    corners = torch.cat([part[mesh.faces.long()].float() for part in parts], -1)
    texels = rasterize_texels(mesh, (128, 128), CpuBackend(), corners)
    _, normal, up, along, side = texels.attributes.split((2, 3, 3, 3, 1), 1)
    normal, along = F.normalize(normal, dim=1), F.normalize(along, dim=1)
    up = F.normalize(up - (up * normal).sum(1, keepdim=True) * normal, dim=1)
    beside = side.sign() * torch.linalg.cross(normal, along)
    expected = torch.stack(
        (0.6 * (up * along).sum(1), 0.6 * (up * beside).sum(1), torch.full((len(up),), 0.8)), 1
    )
    shown = 2 * mode_texture(pyramid, projected(pyramid)).flatten(0, 1)[texels.pixel, NORMAL] - 1
    torch.testing.assert_close(shown.norm(dim=1), torch.ones(len(shown)), atol=1e-4, rtol=0)
    assert ((shown * expected).sum(1) > 0.99).float().mean() > 0.99


def test_the_tag_s_photograph_is_the_only_one_that_is_copied():
    red, blue = torch.full((3, 48, 48), 0.2), torch.full((3, 48, 48), 0.2)
    red[0], blue[2] = 0.9, 0.9
    exemplars = ExemplarSet((Exemplar(red, tag="red"), Exemplar(blue, tag="blue")), (0, 1, 2))
    pyramid = pyramid_of(exemplars, tag=1)
    covered = covered_texels(pyramid.renderer.mesh, (128, 128), CpuBackend())
    shown = mode_texture(pyramid, projected(pyramid))[covered][:, :3]
    torch.testing.assert_close(shown, blue[:, 0, 0].expand_as(shown))


@pytest.mark.parametrize("side", [16, 700])
def test_photographs_of_any_size_and_of_one_colour(side: int):
    exemplars = ExemplarSet((Exemplar(torch.full((3, side, side), 0.3)),), (0, 1, 2))
    pyramid = pyramid_of(exemplars)
    covered = covered_texels(pyramid.renderer.mesh, (128, 128), CpuBackend())
    shown = mode_texture(pyramid, projected(pyramid))[covered][:, :3]
    torch.testing.assert_close(shown, torch.full_like(shown, 0.3))


def test_a_mask_that_is_too_thin_to_be_seen_is_refused():
    mask = torch.zeros(1, 512, 512, dtype=torch.bool)
    mask[:, 256] = True
    exemplars = ExemplarSet((Exemplar(torch.rand(3, 512, 512), mask),), (0, 1, 2))
    pyramid = pyramid_of(exemplars)
    with pytest.raises(UserError, match="--exemplar-mask must leave a pixel"):
        mode_texture(pyramid, pyramid.grey())
