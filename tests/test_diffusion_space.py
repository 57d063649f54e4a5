import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

from sdslab.diffusion_space import LatentSpace, PixelSpace
from sdslab.errors import UserError
from tests.conftest import random_image, tiny_vae


def test_pixel_space_is_minus_one_to_one_and_inverts():
    image = random_image(2, 3, 8, 8, dtype=torch.float64)
    z = PixelSpace().encode(image)
    torch.testing.assert_close(z, 2 * image - 1)
    torch.testing.assert_close(PixelSpace().decode(z), image, rtol=0, atol=1e-15)


def test_pixel_space_resizes_with_antialiasing_and_a_gradient():
    """Stripes of period 3, which any sampling in steps of 4 shows as coarser stripes."""
    stripes = torch.tensor([0.0, 0, 1]).repeat(32).expand(1, 3, 96, 96).clone().requires_grad_()
    z = PixelSpace(size=24).encode(stripes)
    assert z.shape == (1, 3, 24, 24)
    assert (z[..., 2:-2] + 1 / 3).abs().max() < 0.12
    z.sum().backward()
    assert stripes.grad is not None
    torch.testing.assert_close(
        stripes.grad.sum(), torch.tensor(2 * 3 * 24.0 * 24), rtol=1e-5, atol=0
    )


def test_latents_are_the_scaled_posterior_mean_and_not_a_sample():
    vae = tiny_vae().requires_grad_(False)
    image = random_image(2, 3, 32, 32)
    expected = vae.encode(2 * image - 1).latent_dist.mean * 0.7
    space = LatentSpace(vae)
    assert space.encode(image).equal(expected)
    torch.testing.assert_close(
        space.decode(expected), (vae.decode(expected / 0.7).sample + 1) / 2, rtol=1e-5, atol=1e-6
    )
    assert (space.factor, space.channels) == (8, 4)


def test_shift_factor_is_honoured():
    plain, shifted = tiny_vae(), tiny_vae()
    shifted.register_to_config(shift_factor=0.25)
    image = random_image(1, 3, 16, 16)
    one, other = LatentSpace(plain), LatentSpace(shifted)
    torch.testing.assert_close(other.encode(image), one.encode(image) - 0.25 * 0.7)
    torch.testing.assert_close(other.decode(other.encode(image)), one.decode(one.encode(image)))


def test_per_channel_statistics_are_honoured_as_diffusers_pipelines_do():
    plain, whitened = tiny_vae(), tiny_vae()
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    whitened.register_to_config(latents_mean=mean, latents_std=std)
    image = random_image(1, 3, 16, 16)
    raw = LatentSpace(plain).encode(image) / 0.7
    columns = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std))
    centre, spread = columns
    space = LatentSpace(whitened)
    torch.testing.assert_close(space.encode(image), (raw - centre) * 0.7 / spread)
    torch.testing.assert_close(
        space.decode(space.encode(image)), LatentSpace(plain).decode(raw * 0.7)
    )


def test_a_tiny_autoencoder_works_as_well(tmp_path: Path):
    with torch.random.fork_rng():
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
        ).save_pretrained(tmp_path)
    space = LatentSpace.load(tmp_path)
    z = space.encode(random_image(1, 3, 32, 32))
    assert z.shape == (1, 4, 4, 4)
    assert space.decode(z).shape == (1, 3, 32, 32)


def test_weights_are_frozen_but_the_image_gets_its_gradient(latent_space: LatentSpace):
    image = random_image(1, 3, 16, 16).requires_grad_()
    latent_space.encode(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in latent_space.vae.parameters())


def test_a_pipeline_s_folder_is_searched_for_its_vae(tiny_vae_folder: Path, tmp_path: Path):
    shutil.copytree(tiny_vae_folder, tmp_path / "vae")
    assert LatentSpace.load(tmp_path).channels == 4


def test_precision_is_the_one_asked_for(latent_space_float64: LatentSpace):
    image = random_image(1, 3, 16, 16, dtype=torch.float64)
    assert latent_space_float64.encode(image).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("forced", [True, False])
def test_an_autoencoder_that_overflows_float16_is_float32(
    forced: bool, dtype: torch.dtype, tiny_vae_folder: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(tiny_vae_folder, tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text()) | {"force_upcast": forced}
    (folder / "config.json").write_text(json.dumps(config))
    expected = torch.float32 if forced and dtype == torch.float16 else dtype
    assert (
        LatentSpace.load(folder, dtype=dtype).encode(random_image(1, 3, 16, 16)).dtype == expected
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])  # shapes and strides stand for any GPU
def test_channels_lie_side_by_side_on_every_device(device: str, tiny_vae_folder: Path):
    vae = LatentSpace.load(tiny_vae_folder, device).vae
    kernels = [module.weight for module in vae.modules() if isinstance(module, torch.nn.Conv2d)]
    assert kernels
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


def test_an_indivisible_size_is_refused_with_one_that_works(latent_space: LatentSpace):
    with pytest.raises(UserError, match="divisible by 8, got 20×24; use 16"):
        latent_space.encode(random_image(1, 3, 20, 24))


def break_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_only_a_pickle(folder: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.bin")


def break_truncated(folder: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def break_other_weights(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")


def break_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_a_unet(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))


@pytest.mark.parametrize(
    ("break_folder", "message"),
    [
        (break_nothing_there, "existing folder or a hub id"),
        (break_no_config, "no config.json"),
        (break_only_a_pickle, "a pickle can run any code"),
        (break_truncated, "cannot be loaded"),
        (break_other_weights, "cannot be loaded"),
        (break_not_json, "cannot be loaded"),
        (break_a_unet, "must name a diffusers autoencoder, got a UNet2DModel"),
    ],
)
def test_broken_folders_are_refused_in_one_line(
    break_folder, message: str, tiny_vae_folder: Path, tmp_path: Path
):
    folder = tmp_path / "vae_folder"
    shutil.copytree(tiny_vae_folder, folder)
    break_folder(folder)
    with pytest.raises(UserError, match=message) as info:
        LatentSpace.load(folder)
    assert "\n" not in str(info.value)


def test_a_half_precision_variant_is_found(tiny_vae_folder: Path, tmp_path: Path):
    AutoencoderKL.from_pretrained(tiny_vae_folder, low_cpu_mem_usage=False).half().save_pretrained(
        tmp_path, variant="fp16"
    )
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert LatentSpace.load(tmp_path).vae.dtype == torch.float32


def test_models_of_other_shapes_are_refused_in_one_line(tmp_path: Path):
    with torch.random.fork_rng():
        AutoencoderKL(in_channels=1, out_channels=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an image autoencoder like AutoencoderKL") as info:
        LatentSpace.load(tmp_path)
    assert "\n" not in str(info.value)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--vae stabilityai/sd-vae-ft-mse is no folder here"):
        LatentSpace.load("sd")
    with pytest.raises(UserError, match="--vae madebyollin/taesd is no folder here"):
        LatentSpace.load("taesd")


def test_a_folder_goes_before_a_short_name(
    tiny_vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(tiny_vae_folder, tmp_path / "sd")
    monkeypatch.chdir(tmp_path)
    assert LatentSpace.load("sd").factor == LatentSpace.load(tiny_vae_folder).factor


def test_a_hub_id_that_was_downloaded_before_loads_without_network(
    tiny_vae_folder: Path, tmp_path: Path
):
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_vae_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    code = "from sdslab.diffusion_space import *; print(LatentSpace.load('someone/tiny').scale)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "0.7" in done.stdout


def test_the_saved_and_loaded_models_agree(latent_space: LatentSpace, tiny_vae_folder: Path):
    image = random_image(1, 3, 16, 16)
    model = AutoencoderKL.from_pretrained(tiny_vae_folder)
    # Not bit for bit: one has its channels last in memory.
    torch.testing.assert_close(latent_space.encode(image), LatentSpace(model).encode(image))
