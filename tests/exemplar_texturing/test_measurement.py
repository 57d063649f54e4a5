"""Seams that show and seams that do not."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdslab.exemplar_texturing.exemplars import load_exemplars
from sdslab.exemplar_texturing.measurement import measure_texture, seam_jump, straight_views
from sdslab.meshes.material import constant_material, dilate_seams
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.texels import covered_texels, rasterize_texels, texels_per_unit

SIZE = 256


@pytest.fixture(scope="module")
def apple() -> Mesh:
    return load_mesh("apple")


def of_places(mesh: Mesh, waves: float) -> torch.Tensor:
    """A pattern of the place in space alone: no seam shows in it."""
    attributes = torch.cat((mesh.uv, mesh.render_positions), 1)[mesh.faces.long()]
    texels = rasterize_texels(mesh, (SIZE, SIZE), CpuBackend(), attributes)
    maps = constant_material(SIZE, SIZE)
    colours = 0.5 + 0.4 * torch.sin(waves * texels.attributes[:, 2:5])
    maps.view(-1, 8)[texels.pixel, :3] = colours
    return dilate_seams(maps, covered_texels(mesh, (SIZE, SIZE), CpuBackend()))


def density(mesh: Mesh) -> float:
    return texels_per_unit(mesh, covered_texels(mesh, (SIZE, SIZE), CpuBackend()))


def test_a_pattern_of_space_has_no_seams_and_one_of_the_atlas_has(apple: Mesh):
    seamless = seam_jump(apple, of_places(apple, 20.0), density(apple))
    assert 0.6 < seamless < 1.5
    columns = torch.arange(SIZE) / SIZE
    of_atlas = constant_material(SIZE, SIZE)
    of_atlas[..., :3] = columns.view(1, -1, 1)
    assert seam_jump(apple, of_atlas, density(apple)) > 5


def test_an_atlas_that_wraps_has_no_seams():
    assert math.isnan(seam_jump(load_mesh("torus"), constant_material(64, 64), 20.0))


def test_straight_views_show_what_is_there(apple: Mesh):
    renderer = Renderer(apple, CpuBackend())
    pictures, mask = straight_views(
        renderer, constant_material(8, 8, albedo=(0.2, 0.4, 0.6)), 60, 64
    )
    inside = mask[:, 0]
    assert inside.float().mean() > 0.3
    colours = pictures.movedim(1, -1)[inside]
    torch.testing.assert_close(colours, torch.tensor([0.2, 0.4, 0.6]).expand_as(colours))


def test_grey_has_no_contrast_and_is_farther_from_the_photo_than_a_crop_of_it(apple: Mesh):
    renderer = Renderer(apple, CpuBackend())
    exemplars = load_exemplars(["gravel"])
    grey = constant_material(SIZE, SIZE)
    measured = measure_texture(renderer, grey, exemplars, 1.5, 60.0, density(apple))
    assert measured.contrast < 1e-5
    assert measured.gradient_energy < 1e-9
    assert measured.sliced_wasserstein > 5 * measured.crop


def test_only_what_may_be_copied_of_the_right_photo_counts(apple: Mesh, tmp_path: Path):
    """Red where the mask is bright, blue elsewhere; red all over is that photo, and no other."""
    both, mask = Image.new("RGB", (96, 96), (200, 40, 40)), Image.new("L", (96, 96), 255)
    both.paste((40, 40, 200), (48, 0, 96, 96))
    mask.paste(0, (48, 0, 96, 96))
    both.save(tmp_path / "both.png")
    mask.save(tmp_path / "mask.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "all.png")
    exemplars = load_exemplars(
        [str(tmp_path / "all.png"), str(tmp_path / "both.png")],
        masks=[str(tmp_path / "all.png"), str(tmp_path / "mask.png")],
    )
    red = constant_material(SIZE, SIZE, albedo=(200 / 255, 40 / 255, 40 / 255))
    renderer = Renderer(apple, CpuBackend())
    first, second = (
        measure_texture(renderer, red, exemplars, 1.5, 60.0, density(apple), number)
        for number in range(2)
    )
    assert first.sliced_wasserstein > 0.3
    assert second.sliced_wasserstein < 0.01
    assert math.isnan(first.contrast)  # one colour has none to be compared with
    assert math.isnan(first.gradient_energy)


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (1, 1)], ids=str)
def test_a_photo_of_any_shape_at_a_coarse_scale_is_measured(
    size: tuple[int, int], apple: Mesh, tmp_path: Path
):
    Image.new("RGB", size, (90, 120, 60)).save(tmp_path / "photo.png")
    exemplars = load_exemplars([str(tmp_path / "photo.png")])
    maps = constant_material(16, 16, albedo=(90 / 255, 120 / 255, 60 / 255))
    measured = measure_texture(Renderer(apple, CpuBackend()), maps, exemplars, 0.1, 24.0, 6.0)
    assert measured.sliced_wasserstein < 0.01
    assert measured.crop < 1e-6
