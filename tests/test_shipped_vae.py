"""The autoencoder in the package is the one that its model card describes."""

import pytest
import torch
from diffusers import AutoencoderKL

from sdslab.diffusion_space import SHIPPED_VAE, LatentSpace
from sdslab.pictures.image_io import load_image
from sdslab.pictures.metrics import psnr_db
from sdslab.train_vae import HELD_OUT


def test_it_is_small_and_in_diffusers_own_format():
    model = AutoencoderKL.from_pretrained(SHIPPED_VAE, low_cpu_mem_usage=False)
    assert isinstance(model, AutoencoderKL)
    weights = SHIPPED_VAE / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= 5_000_000
    assert (SHIPPED_VAE / "README.md").is_file()


@torch.no_grad()
def test_it_reconstructs_photographs_that_it_never_saw():
    space = LatentSpace.load()
    psnrs = []
    for name in HELD_OUT:
        image = load_image(name, 256)
        psnrs.append(psnr_db(space.decode(space.encode(image)).clamp(0, 1), image))
    assert sum(psnrs) / len(psnrs) >= 25, psnrs


@torch.no_grad()
def test_latents_have_about_unit_variance():
    space = LatentSpace.load()
    assert (space.factor, space.channels) == (8, 4)
    latents = torch.cat([space.encode(load_image(name, 256)) for name in HELD_OUT])
    assert latents.var().item() == pytest.approx(1, abs=0.5)
