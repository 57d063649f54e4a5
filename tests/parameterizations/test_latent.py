import torch

from sdslab.diffusion_space import LatentSpace
from sdslab.parameterizations.latent import LatentGrid
from tests.conftest import random_image


def test_the_picture_is_the_decoded_latent(latent_space: LatentSpace):
    latents = latent_space.encode(random_image(2, 3, 32, 32))
    grid = LatentGrid(latents, latent_space.decode)
    assert grid().shape == (2, 3, 32, 32)
    assert grid().equal(latent_space.decode(latents))


def test_only_the_latent_is_optimised(latent_space: LatentSpace):
    grid = LatentGrid(torch.zeros(1, 4, 4, 4), latent_space.decode)
    assert [name for name, _ in grid.named_parameters()] == ["latents"]
