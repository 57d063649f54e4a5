import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from sdslab.pictures.metrics import mse, psnr_db
from tests.conftest import random_image


@pytest.mark.parametrize("noise", [1e-7, 1e-3, 0.3])
def test_psnr_equals_scikit_image(noise: float):
    reference = random_image(1, 3, 31, 17, dtype=torch.float64)
    image = reference + noise * torch.randn(
        reference.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = peak_signal_noise_ratio(reference.numpy(), image.numpy(), data_range=1.0)
    assert psnr_db(image, reference) == pytest.approx(expected, abs=1e-9)


def test_mse_accumulates_in_float64():
    reference = torch.zeros(2**22)
    image = torch.full_like(reference, 1e-3)  # a float32 running sum of 1e-6 would stall
    exact = float(np.float32(1e-3)) ** 2
    assert mse(image, reference) == pytest.approx(exact, rel=1e-12, abs=0)
    assert psnr_db(image, reference) == pytest.approx(-10 * math.log10(exact), rel=1e-13, abs=0)


def test_equal_images_have_infinite_psnr_and_nan_stays_nan():
    image = random_image(1, 3, 8, 8)
    assert psnr_db(image, image) == math.inf
    assert math.isnan(psnr_db(image * math.nan, image))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \[1, 3, 8, 8\] and \[3, 8, 8\]"):
        psnr_db(torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8))
