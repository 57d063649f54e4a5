"""Diffusers' UNets through the product's own loading code, against the equations in float64."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import WEIGHTINGS
from sdslab.denoisers.pipelines import PipelineSource
from sdslab.denoisers.prompts import Prompts
from sdslab.denoisers.unet import GuidanceModel, load_guidance
from sdslab.denoisers.wrappers import ClassifierFreeGuidance, PerpendicularNegatives
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import sr_sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, SDSResult, philox_normal
from tests.conftest import random_image
from tests.tiny_pipelines import (
    TEXT_CHANNELS,
    save_deepfloyd_one,
    save_deepfloyd_two,
    save_sdxl,
    save_stable_diffusion,
    save_upscaler,
)

T = torch.tensor([350, 350])
KEY = NoiseKey(7, 3, torch.arange(2))
SR_KEY = NoiseKey(7, 3, torch.arange(2), SR_CONDITION_STREAM)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save_deepfloyd_one(folder / "if-1")
    save_deepfloyd_two(folder / "if-2")
    save_stable_diffusion(folder / "sd")
    save_sdxl(folder / "sdxl")
    save_upscaler(folder / "upscaler")
    return folder


def load(folder: Path, stage: Any = 1, dtype: torch.dtype = torch.float32) -> GuidanceModel:
    return load_guidance(PipelineSource(str(folder)), stage, CPU, dtype)


def prompts(channels: int = TEXT_CHANNELS, pooled: bool = False) -> Prompts:
    rows = torch.randn(3, 7, channels, generator=torch.Generator().manual_seed(0))
    return Prompts(rows, rows[:, 0, :TEXT_CHANNELS].contiguous() if pooled else None)


def guided(model: GuidanceModel, scale: float, **options: Any) -> Denoiser:
    return ClassifierFreeGuidance(model.denoiser(prompts()), 2, scale, **options)


def castex_gradient(denoiser: Denoiser, z: Tensor, clamp: float | None = 1.0) -> SDSResult:
    condition = Condition(prompt=torch.tensor([0, 1]))
    return sds_gradient(
        z, denoiser, T, KEY, weighting=WEIGHTINGS["x0_castex"], condition=condition, clamp=clamp
    )


def alpha_bar_of(folder: Path, t: int, part: str = "scheduler") -> Tensor:
    """ᾱ of squaredcos_cap_v2 or scaled_linear, from their formulas."""
    config = json.loads((folder / part / "scheduler_config.json").read_text())
    if config["beta_schedule"] == "squaredcos_cap_v2":
        u = torch.arange(1001).double() / 1000
        level = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    else:
        betas = torch.linspace(config["beta_start"], config["beta_end"], 1000)
    return torch.cumprod(1 - betas.double(), 0)[t]


def reference(folder: Path, z: Tensor, scale: float, low: Tensor | None = None, **options: Any):
    """FACTS of the paper in float64: guidance, dropped variance, clamp, w = √(ᾱ(1−ᾱ))."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float64)
    alpha_bar = alpha_bar_of(folder, 350)
    eps = philox_normal(KEY, tuple(z.shape[1:]), torch.float64)
    z = z.double()
    z_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps
    sample = z_t if low is None else torch.cat((z_t, low), 1)
    rows = prompts().embeddings.double()
    with torch.no_grad():
        unconditional, conditional = (
            unet(sample, T, encoder_hidden_states=rows[list(row)], **options).sample[:, :3]
            for row in ((2, 2), (0, 1))
        )
    eps_hat = unconditional + scale * (conditional - unconditional)
    x0_hat = ((z_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()).clamp(-1, 1)
    return (alpha_bar * (1 - alpha_bar)).sqrt() * (z - x0_hat)


def assert_near(actual: Tensor, expected: Tensor, budget: float = 1e-4) -> None:
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < budget, f"relative error {error:.2e}"


@pytest.mark.parametrize("scale", [0.0, 1.0, 15.0])
@pytest.mark.parametrize("low_memory", [False, True], ids=["one batch", "two"])
def test_the_gradient_of_stage_one(scale: float, low_memory: bool, folders: Path):
    model = load(folders / "if-1")
    picture = random_image(2, 3, 64, 64)
    z = model.space.encode(picture)
    small = F.interpolate(picture, size=(16, 16), mode="bilinear", antialias=True)
    assert z.equal(2 * small - 1)
    result = castex_gradient(guided(model, scale, low_memory=low_memory), z)
    assert_near(result.gradient, reference(folders / "if-1", z, scale))


@pytest.mark.parametrize("mode", ["castex", "pipeline"])
def test_the_gradient_of_stage_two(mode: Any, folders: Path):
    """The condition is noised at t = 500 by the model's scheduler, or at 250 by the noising one."""
    folder = folders / "if-2"
    model = load(folder, 2)
    z = model.space.encode(random_image(2, 3, 64, 64))
    stage_one = random_image(2, 3, 64, 64, seed=5)
    result = sr_sds_gradient(
        z, stage_one, guided(model, 10.0), T, KEY, SR_KEY,
        weighting=WEIGHTINGS["x0_castex"], condition=Condition(prompt=torch.tensor([0, 1])),
        clamp=1.0, mode=mode, low_size=model.low_size,
        condition_schedule=model.condition_schedule if mode == "pipeline" else None,
    )  # fmt: skip
    assert model.low_size == 8
    low = stage_one.double()
    if mode == "castex":
        low, level = low[..., ::8, ::8].repeat_interleave(4, 2).repeat_interleave(4, 3), 500
        alpha_bar = alpha_bar_of(folder, level)
    else:
        low = F.interpolate(low, size=(8, 8), mode="bilinear", antialias=True)
        low = F.interpolate(low, size=(32, 32), mode="bilinear", align_corners=True)
        level, alpha_bar = 250, alpha_bar_of(folder, 250, "image_noising_scheduler")
    eps = philox_normal(SR_KEY, (3, 32, 32), torch.float64)
    low = alpha_bar.sqrt() * (2 * low - 1) + (1 - alpha_bar).sqrt() * eps
    expected = reference(folder, z, 10.0, low, class_labels=torch.tensor([level, level]))
    assert_near(result.gradient, expected)


def test_learned_variance_is_dropped(folders: Path, tmp_path: Path):
    other = Path(shutil.copytree(folders / "if-1", tmp_path / "other"))
    unet = UNet2DConditionModel.from_pretrained(other / "unet")
    with torch.no_grad():
        unet.conv_out.weight[3:] += 5
    unet.save_pretrained(other / "unet")
    z = 2 * random_image(2, 3, 16, 16) - 1
    gradients = [
        castex_gradient(guided(load(folder), 7.0), z).gradient
        for folder in (folders / "if-1", other)
    ]
    assert gradients[0].equal(gradients[1])


def test_v_and_epsilon_agree_where_one_is_the_other_converted(folders: Path, tmp_path: Path):
    v_folder = save_stable_diffusion(tmp_path / "v", "v_prediction")
    models = [load(folders / "sd"), load(v_folder)]
    assert [model.prediction_type for model in models] == ["epsilon", "v"]
    unet = models[1].unet
    schedule = models[1].schedule

    class AsV(torch.nn.Module):
        """v = √ᾱ ε − √(1−ᾱ) x_0 of the same UNet's ε̂."""

        config = unet.config

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Tensor, t: Tensor, **options: Any) -> tuple[Tensor]:
            eps = self.unet(sample, t, **options)[0]
            alpha_bar = schedule.alpha_bar(t).to(sample).view(-1, 1, 1, 1)
            x0 = (sample - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
            return (alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0,)

    models[1] = replace(models[1], unet=AsV())
    z = random_image(2, 4, 8, 8)
    gradients = [castex_gradient(guided(model, 7.5), z, None).gradient for model in models]
    assert_near(gradients[1], gradients[0].double())


def test_latents_carry_the_gradient_to_the_picture(folders: Path):
    model = load(folders / "sd")
    picture = random_image(2, 3, 16, 16).requires_grad_()
    z = model.space.encode(picture)
    vae: Any = AutoencoderKL.from_pretrained(folders / "sd" / "vae")
    mean = vae.encode(2 * picture - 1).latent_dist.mode() * vae.config["scaling_factor"]
    torch.testing.assert_close(z, mean)
    gradient = castex_gradient(guided(model, 7.5), z.detach(), None).gradient
    z.backward(gradient)
    (expected,) = torch.autograd.grad(mean, picture, gradient)
    assert picture.grad is not None
    torch.testing.assert_close(picture.grad, expected)
    assert expected.abs().max() > 0


def test_sdxl_is_told_sizes_and_pooled_text(folders: Path):
    model = load(folders / "sdxl")
    text = prompts(2 * TEXT_CHANNELS, pooled=True)
    assert text.pooled is not None
    z_t, row = random_image(2, 4, 8, 8), torch.tensor([0, 1])
    actual = model.denoiser(text).predict(z_t, T, Condition(prompt=row)).output
    unet = UNet2DConditionModel.from_pretrained(folders / "sdxl" / "unet")
    size = 8 * model.space.factor  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = unet(
            z_t, T, text.embeddings[row],
            added_cond_kwargs={
                "text_embeds": text.pooled[row],
                "time_ids": torch.tensor([[size, size, 0, 0, size, size]] * 2).float(),
            },
        ).sample  # fmt: skip
    torch.testing.assert_close(actual, expected)
    with pytest.raises(UserError, match="SDXL needs pooled prompt embeddings"):
        model.denoiser(prompts(2 * TEXT_CHANNELS))


def test_the_upscaler_takes_the_small_picture_beside_its_latents(folders: Path):
    model = load(folders / "upscaler", 2)
    assert (model.prediction_type, model.size, model.low_size) == ("v", 64, 16)
    z_t, low, row = random_image(2, 4, 16, 16), random_image(2, 3, 16, 16), torch.tensor([0, 1])
    level = torch.tensor([20, 20])
    condition = Condition(prompt=row, low_resolution=low, noise_level=level)
    actual = model.denoiser(prompts()).predict(z_t, T, condition).output
    unet = UNet2DConditionModel.from_pretrained(folders / "upscaler" / "unet")
    with torch.no_grad():
        expected = unet(
            torch.cat((z_t, low), 1), T, prompts().embeddings[row], class_labels=level
        ).sample
    torch.testing.assert_close(actual, expected)


def test_half_precision_stays_near(folders: Path):
    z = 2 * random_image(2, 3, 16, 16) - 1
    model = load(folders / "if-1", dtype=torch.bfloat16)
    result = castex_gradient(guided(model, 2.0), z)
    assert result.gradient.dtype == torch.float32
    assert_near(result.gradient, reference(folders / "if-1", z, 2.0), 0.05)


class Copies(TorchDispatchMode):
    """Counts the bytes of copies between devices, or of what stands for them on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "_to_copy" and (kwargs or {}).get("non_blocking"):
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("low_memory", [False, True], ids=["one batch", "two"])
@pytest.mark.parametrize("perp_neg", [False, True], ids=["guidance", "Perp-Neg"])
def test_offloaded_weights_go_to_the_device_once_a_step_and_never_back(
    perp_neg: bool, low_memory: bool, folders: Path
):
    model = load_guidance(
        PipelineSource(str(folders / "if-1")), 1, CPU, torch.float32, offload=True
    )
    weights = [*model.unet.parameters(), *model.unet.buffers()]
    denoiser = model.denoiser(prompts())
    kept = [tensor.data_ptr() for tensor in weights]
    seen: list[bool] = []
    model.unet.register_forward_pre_hook(
        lambda *_: seen.append(all(w.data_ptr() != k for w, k in zip(weights, kept, strict=True)))
    )
    wrapped: Denoiser = ClassifierFreeGuidance(denoiser, 2, 7.0, low_memory=low_memory)
    if perp_neg:
        others = torch.tensor([[1], [0]])
        wrapped = PerpendicularNegatives(denoiser, 2, others, 7.0, 0.5, low_memory=low_memory)
    z, condition = random_image(2, 3, 16, 16), Condition(prompt=torch.tensor([0, 1]))
    output = z
    for _ in range(2):
        seen.clear()
        with Copies() as copies:
            output = wrapped.predict(z, T, condition).output
        assert sum(copies.sizes) == sum(tensor.nbytes for tensor in weights)
        assert seen == [True] * ((2 + perp_neg) if low_memory else 1)
        assert [tensor.data_ptr() for tensor in weights] == kept
    resident = load(folders / "if-1").denoiser(prompts())
    wrapped.model = resident  # type: ignore[attr-defined]
    assert output.equal(wrapped.predict(z, T, condition).output)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_offloaded_weights_lie_in_page_locked_memory_and_the_gpu_keeps_none(folders: Path):
    device = torch.device("cuda")
    model = load_guidance(
        PipelineSource(str(folders / "if-1")), 1, device, torch.float16, offload=True
    )
    denoiser = model.denoiser(prompts())
    assert all(tensor.is_pinned() for tensor in model.unet.parameters())
    before, size = torch.cuda.memory_allocated(), sum(w.nbytes for w in model.unet.parameters())
    with denoiser.loaded():
        assert all(tensor.is_cuda for tensor in model.unet.parameters())
        assert torch.cuda.memory_allocated() - before >= size
    assert torch.cuda.memory_allocated() == before


def test_what_is_never_needed_is_never_looked_at(folders: Path, tmp_path: Path):
    """No text encoder, tokenizer, safety checker or watermarker is read with the UNet."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in ("model_index.json", "unet", "scheduler"):
        source = folders / "if-1" / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, bare / part)
    assert load(bare).kind == "IF-I"


def break_pickled(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def break_truncated(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])


def break_missing_part(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def break_class(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "FluxPipeline"}))


def break_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_pickled, "must be safetensors"),
        (break_truncated, "the UNet cannot be loaded"),
        (break_missing_part, "must have a scheduler folder"),
        (break_class, "must be one of IFPipeline, .* a FluxPipeline"),
        (break_index, "must have a readable model_index.json"),
    ],
    ids=["pickles", "truncated", "missing part", "unknown class", "broken index"],
)
def test_broken_pipelines_are_one_line(damage: Any, message: str, folders: Path, tmp_path: Path):
    folder = Path(shutil.copytree(folders / "if-1", tmp_path / "broken"))
    damage(folder)
    with pytest.raises(UserError, match=message) as info:
        load(folder)
    assert "\n" not in str(info.value)
    assert "--model" in str(info.value) or str(folder) in str(info.value)


def test_embeddings_of_another_model_are_refused(folders: Path):
    with pytest.raises(UserError, match="must have 32 channels for this IF-I model, got 48"):
        load(folders / "if-1").denoiser(prompts(48))
