import pytest
import torch

from sdslab.parameterizations.pixel import PixelGrid
from tests.conftest import random_image


@pytest.mark.parametrize("channels", [3, 8])
def test_grey_and_noise_have_the_asked_shape_and_range(channels: int):
    shape = (2, channels, 5, 7)
    assert PixelGrid.grey(shape)().equal(torch.full(shape, 0.5))
    noise = PixelGrid.uniform_noise(shape, seed=1)()
    assert noise.shape == shape
    assert noise.min() >= 0
    assert noise.max() < 1


def test_noise_is_uniform_and_depends_on_the_seed():
    one, other = (PixelGrid.uniform_noise((1, 3, 64, 64), seed)() for seed in (1, 2))
    standard_error = (1 / 12 / one.numel()) ** 0.5
    assert one.mean().item() == pytest.approx(0.5, abs=4 * standard_error)
    assert one.var().item() == pytest.approx(1 / 12, rel=0.03)
    correlation = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1].abs()
    assert correlation < 4 / one.numel() ** 0.5


def test_a_sample_does_not_depend_on_the_batch():
    many = PixelGrid.uniform_noise((3, 3, 4, 4), seed=7)()
    assert many[:1].equal(PixelGrid.uniform_noise((1, 3, 4, 4), seed=7)())


def test_the_initial_image_is_copied():
    image = random_image(1, 3, 4, 4)
    grid = PixelGrid(image)
    with torch.no_grad():
        grid.values.zero_()
    assert image.abs().sum() > 0
    assert [name for name, _ in grid.named_parameters()] == ["values"]
