"""Bands that sum up to the picture, each as strong as the photograph's."""

import pytest
import torch

from sdslab.denoisers.exemplar import BANDS, RATE, SCALE_LIMITS, BandEnergy, laplacian_bands
from tests.conftest import random_image

SIZES = [(64, 64), (17, 40), (9, 5), (2, 3)]


def photo(height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return random_image(3, height, width, seed=seed, dtype=torch.float64) * 2 - 1


def strengths(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([band.square().mean().sqrt() for band in laplacian_bands(x)[0]])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bands_and_rest_are_the_picture(size):
    x = photo(*size)[None]
    bands, rest = laplacian_bands(x)
    assert len(bands) == BANDS
    torch.testing.assert_close(rest + sum(bands), x)


def test_bands_go_from_fine_to_coarse():
    columns = torch.arange(64.0)
    for band, period in enumerate((2, 6, 12, 24)):
        wave = torch.cos(2 * torch.pi * columns / period).expand(1, 1, 64, 64)
        assert strengths(wave).argmax() == band, period


def test_a_flat_picture_has_no_bands_and_stays():
    flat = torch.full((2, 3, 20, 20), 0.25).double()
    assert strengths(flat).max() < 1e-12
    torch.testing.assert_close(BandEnergy(photo())(flat, None), flat)


@pytest.mark.parametrize("contrast", [0.5, 0.8, 1.7])
def test_a_picture_of_less_or_more_contrast_gets_the_photo_s(contrast):
    exemplar = photo()
    faded = contrast * exemplar[None]
    matched = BandEnergy(exemplar)(faded, None)
    bands, rest = laplacian_bands(faded)
    expected = rest + sum(bands) / contrast
    torch.testing.assert_close(matched, expected)
    assert not torch.allclose(matched, faded, atol=0.01)


def test_the_photo_itself_stays():
    exemplar = photo()
    torch.testing.assert_close(BandEnergy(exemplar)(exemplar[None], None), exemplar[None])


def test_scales_are_limited():
    exemplar = photo()
    bands, rest = laplacian_bands(exemplar[None])
    for contrast, limit in ((1e-3, SCALE_LIMITS[1]), (1e3, SCALE_LIMITS[0])):
        matched = BandEnergy(exemplar)(contrast * exemplar[None], None)
        expected = contrast * (rest + limit * sum(bands))
        torch.testing.assert_close(matched, expected)


def test_scales_are_running_means_over_the_calls():
    exemplar = photo()
    energy = BandEnergy(exemplar)
    energy(exemplar[None], None)
    torch.testing.assert_close(energy.scales, torch.ones(BANDS).double())
    energy(0.5 * exemplar[None], None)
    expected = torch.full((BANDS,), 1 + RATE * (2 - 1)).double()
    torch.testing.assert_close(energy.scales, expected)


def test_only_the_foreground_counts():
    exemplar = photo(96, 96)
    picture = 0.5 * exemplar[None]
    foreground = torch.zeros(1, 1, 96, 96).double()
    foreground[..., 8:80, 8:80] = 1
    spoilt = torch.where(foreground.bool(), picture, torch.randn(96, 96).double() * 10)
    inner = torch.zeros_like(foreground)
    inner[..., 44:45, 44:45] = 1  # farther from the noise than the bands reach
    clean, among_noise = BandEnergy(exemplar), BandEnergy(exemplar)
    clean(picture, inner)
    among_noise(spoilt, inner)
    torch.testing.assert_close(among_noise.scales, clean.scales)


def test_pixels_count_as_much_as_the_foreground_says():
    exemplar, halves = photo(48, 96), torch.ones(1, 1, 48, 96).double()
    picture = exemplar[None].clone()
    picture[..., 48:] *= 0.5
    halves[..., 48:] = 1e-6
    weighted, whole, left = (BandEnergy(exemplar) for _ in range(3))
    weighted(picture, halves)
    whole(picture, None)
    left(picture, (halves == 1).double())
    torch.testing.assert_close(weighted.scales, left.scales, rtol=1e-4, atol=0)
    assert (whole.scales > 1.05 * weighted.scales).all()


def test_no_foreground_changes_nothing_to_infinity():
    picture = photo()[None]
    matched = BandEnergy(photo(seed=1))(picture, torch.zeros(1, 1, 32, 32).double())
    assert matched.isfinite().all()
