import math

import pytest
import torch

from sdslab.pictures.image_io import load_picture
from sdslab.pictures.metrics import (
    completeness,
    contrast,
    fidelity,
    gabor_distance,
    gradient_energy,
    patch_rows,
    sliced_wasserstein,
)


@pytest.fixture
def noise():
    return torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("measure", [sliced_wasserstein, fidelity, completeness])
def test_a_picture_is_no_distance_from_itself(measure, noise):
    assert measure(noise, noise) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shift", [0.01, -0.2])
def test_sliced_wasserstein_of_a_brighter_picture_is_the_difference(noise, shift, seed):
    assert sliced_wasserstein(noise, noise + shift, seed=seed) == pytest.approx(abs(shift))


def test_sliced_wasserstein_does_not_see_where_a_patch_lies():
    # The same patches in another order, along a period that both pictures hold whole.
    stripes = torch.arange(4.0).repeat(8)[None, None, None].expand(1, 3, 16, -1) / 4
    moved = stripes.roll(4, -1)
    assert sliced_wasserstein(stripes, moved) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(stripes, stripes[..., ::2]) > 0.05


def test_sliced_wasserstein_of_two_greys_of_unequal_size_is_their_difference():
    dark, light = torch.full((1, 3, 9, 9), 0.2), torch.full((3, 3, 12, 30), 0.7)
    assert sliced_wasserstein(dark, light) == pytest.approx(0.5)


def test_sliced_wasserstein_of_gaussian_pixels_is_the_difference_of_deviations():
    # W₂ of N(0, s²) and N(0, t²) is |s − t|, in every direction.
    normal = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(1))
    distance = sliced_wasserstein(0.1 * normal, 0.3 * other, patch=3)
    assert distance == pytest.approx(0.2, abs=0.01)


def test_fidelity_and_completeness_of_a_shifted_grey():
    grey, lighter = torch.full((1, 3, 9, 9), 0.25), torch.full((1, 3, 9, 9), 0.5)
    assert fidelity(grey, lighter) == pytest.approx(0.25)
    assert completeness(grey, lighter) == pytest.approx(0.25)


def test_one_corner_repeated_is_faithful_and_incomplete(noise):
    corner = noise[:1, :, :8, :8]
    assert fidelity(corner, noise) == 0
    assert completeness(corner, noise) > 0.1


def test_gradient_energy_of_a_ramp_is_its_slope_squared():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    ramp = (0.03 * rows + 0.02 * columns).expand(1, 3, -1, -1)
    assert gradient_energy(ramp) == pytest.approx(0.03**2 + 0.02**2, rel=1e-5)


def test_contrast_is_of_each_channel_around_its_own_mean():
    halves = torch.zeros(1, 3, 4, 4)
    halves[..., 2:] = 0.6
    halves[:, 1] += 0.3  # a tint is no contrast
    assert contrast(halves) == pytest.approx(0.3)
    assert contrast(torch.full((1, 3, 4, 4), 0.7)) == 0


def test_what_lies_outside_a_mask_does_not_count(noise):
    mask = torch.zeros(2, 1, 24, 20, dtype=torch.bool)
    mask[:, :, 4:20, 3:18] = True
    spoiled = torch.where(mask, noise, 9.0)
    inside = noise[:, :, 4:20, 3:18]
    assert len(patch_rows(spoiled, 7, mask)) == 2 * 10 * 9
    assert sliced_wasserstein(spoiled, inside, mask_a=mask) == pytest.approx(0, abs=1e-12)
    assert fidelity(inside, spoiled, mask_b=mask) == 0
    assert contrast(spoiled, mask=mask) == pytest.approx(contrast(inside))
    assert gradient_energy(spoiled, mask=mask) == pytest.approx(gradient_energy(inside))


def test_an_empty_mask_measures_nothing(noise):
    nothing = torch.zeros(2, 1, 24, 20, dtype=torch.bool)
    assert math.isnan(sliced_wasserstein(noise, noise, mask_a=nothing))
    assert math.isnan(fidelity(noise, noise, mask_b=nothing))


def test_a_picture_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="at least 7"):
        sliced_wasserstein(torch.zeros(1, 3, 5, 9), torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("photo", ["gravel", "brick", "grass"])
def test_gabor_distance_ranks_a_real_piece_before_noise_and_blur(photo: str):
    whole = load_picture(photo, 256).channels[None]
    piece, other = whole[..., :128], whole[..., 128:]
    spectrum = torch.fft.rfft2(piece)
    random = torch.randn(piece.shape[-2:], generator=torch.Generator().manual_seed(0))
    phase = torch.fft.rfft2(random)
    noise = torch.fft.irfft2(spectrum * phase / phase.abs(), s=piece.shape[-2:])
    blurred = torch.nn.functional.avg_pool2d(piece, 5, 1, 2)
    real, of_noise, of_blur = (gabor_distance(x, other) for x in (piece, noise, blurred))
    assert real < of_noise
    assert real < of_blur
    assert gabor_distance(other, other) == 0


def test_gabor_distance_hears_no_brightness_and_counts_what_the_mask_shows():
    picture = load_picture("gravel", 128).channels[None]
    assert gabor_distance(picture + 0.2, picture) < 1e-5
    mask = torch.ones_like(picture[:, :1], dtype=torch.bool)
    mask[..., 64:] = False
    spoiled = picture.clone()
    spoiled[..., 64:] = torch.rand(picture[..., 64:].shape)
    clean = gabor_distance(picture[..., :64], picture)
    assert gabor_distance(spoiled, picture, mask_a=mask) == pytest.approx(clean)
    assert gabor_distance(spoiled, picture) > 2 * clean
    assert math.isnan(gabor_distance(picture[..., :24], picture))
    assert math.isnan(gabor_distance(picture, picture, mask_a=torch.zeros_like(mask)))
