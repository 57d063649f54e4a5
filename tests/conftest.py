import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from sdslab.diffusion_space import Autoencoder, LatentSpace

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal: a shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tiny_vae() -> Autoencoder:
    """An untrained f8 autoencoder; random weights are as good as any for equalities."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class: type[Autoencoder] = AutoencoderKL
        return model_class(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.7,
            mid_block_add_attention=False,
        )


@pytest.fixture(scope="session")
def tiny_vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_vae")
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def latent_space(tiny_vae_folder: Path) -> LatentSpace:
    return LatentSpace.load(tiny_vae_folder)


@pytest.fixture(scope="session")
def latent_space_float64(tiny_vae_folder: Path) -> LatentSpace:
    return LatentSpace.load(tiny_vae_folder, dtype=torch.float64)


def random_image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
