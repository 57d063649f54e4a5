"""SR-SDS is SDS with a condition: the render of stage I, small, large again and noised."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.denoiser import (
    Condition,
    Denoiser,
    Prediction,
)
from sdslab.denoisers.noise_schedule import WEIGHTINGS, NoiseSchedule
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import NOISE_LEVELS, sr_sds_gradient
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, philox_normal, sr_condition
from tests.conftest import random_image

SCHEDULE = NoiseSchedule.deepfloyd_if()
SIZE, LOW = 32, 8
PROMPTS = torch.tensor([0.0, 0.3, -0.2], dtype=torch.float64)


@dataclass
class Upsampler(Denoiser):
    """A closed-form ε̂ with learned variance that sees all that it is given, and remembers it."""

    schedule: NoiseSchedule = SCHEDULE
    seen: list[Condition] = field(default_factory=list)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        self.seen.append(condition)
        output = epsilon_hat(x_t, t, condition)
        return Prediction(torch.cat((output, torch.full_like(output, 9.0)), 1), "epsilon")


def epsilon_hat(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    assert condition.low_resolution is not None
    assert condition.noise_level is not None
    drift = (t + condition.noise_level).to(x_t) / 1000
    if condition.prompt is not None:
        drift = drift + PROMPTS[condition.prompt].to(x_t)
    return 0.5 * x_t - 0.3 * condition.low_resolution + drift[:, None, None, None]


@dataclass
class ShownPicture(Denoiser):
    """Eq. 3 whose image is the condition itself."""

    schedule: NoiseSchedule = SCHEDULE

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:  # noqa: ARG002
        assert condition is not None
        assert condition.low_resolution is not None
        return Prediction(condition.low_resolution, "x0")


def keys(batch: int, step: int = 3) -> tuple[NoiseKey, NoiseKey]:
    sample = torch.arange(batch)
    return NoiseKey(7, step, sample), NoiseKey(7, step, sample, SR_CONDITION_STREAM)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    noise, condition_noise = keys(batch)
    return {
        "z": 2 * random_image(batch, 3, SIZE, SIZE, dtype=dtype) - 1,
        "stage_one_render": random_image(batch, 3, 64, 64, seed=1, dtype=dtype),
        "t": torch.tensor([300, 700])[:batch],
        "noise": noise,
        "condition_noise": condition_noise,
        "weighting": WEIGHTINGS["x0_castex"],
        "low_size": LOW,
    }


def resampled(render: Tensor, mode: str) -> Tensor:
    if mode == "castex":
        small = F.interpolate(render, size=(LOW, LOW), mode="nearest")
        return F.interpolate(small, size=(SIZE, SIZE), mode="nearest")
    small = F.interpolate(render, size=(LOW, LOW), mode="bilinear", antialias=True)
    return F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=True)


def noised(x: Tensor, alpha_bar: Tensor, key: NoiseKey) -> Tensor:
    eps = philox_normal(key, tuple(x.shape[1:]), torch.float64)
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * eps


@pytest.mark.parametrize("scale", [None, 10.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("mode", ["castex", "pipeline"])
@pytest.mark.parametrize("clamp", [None, 1.0], ids=["unclamped", "clamped"])
def test_the_gradient_is_the_one_that_the_paper_prints(mode, scale, clamp):
    given = arguments()
    z, t = given["z"], given["t"]
    prompt = torch.tensor([1, 2])
    model = Upsampler()
    denoiser = model if scale is None else ClassifierFreeGuidance(model, 0, scale)
    actual = sr_sds_gradient(
        denoiser=denoiser, mode=mode, clamp=clamp, condition=Condition(prompt), **given
    )

    level = torch.full((2,), {"castex": 500, "pipeline": 250}[mode])
    low = noised(
        2 * resampled(given["stage_one_render"], mode) - 1,
        SCHEDULE.alpha_bars[level],
        given["condition_noise"],
    )
    alpha_bar = SCHEDULE.alpha_bars[t]
    z_t = noised(z, alpha_bar, given["noise"])
    eps_hat = epsilon_hat(z_t, t, Condition(prompt, low, level))
    if scale is not None:
        empty = epsilon_hat(z_t, t, Condition(torch.zeros(2, dtype=torch.int64), low, level))
        eps_hat = empty + scale * (eps_hat - empty)
    alpha_bar = alpha_bar[:, None, None, None]
    x0_hat = (z_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)
    expected = (alpha_bar * (1 - alpha_bar)).sqrt() * (z - x0_hat)
    torch.testing.assert_close(actual.gradient, expected, rtol=1e-10, atol=1e-11)


def test_equal_materials_show_their_own_small_picture():
    given = arguments()
    given["stage_one_render"] = (given["z"] + 1) / 2
    given["condition_noise"] = None
    model = Upsampler()
    sr_sds_gradient(denoiser=model, **given)
    (shown,) = model.seen
    assert shown.low_resolution is not None
    assert shown.noise_level is not None
    expected = sr_condition(given["stage_one_render"], None, None, size=SIZE, low_size=LOW)
    assert torch.equal(shown.low_resolution, expected)
    torch.testing.assert_close(
        shown.low_resolution, 2 * resampled((given["z"] + 1) / 2, "castex") - 1
    )
    assert shown.noise_level.tolist() == [0, 0]


def test_two_stages_agree_where_the_second_can_only_repeat_the_first():
    given = arguments()
    picture = resampled(given["stage_one_render"], "castex")
    result = sr_sds_gradient(
        **{**given, "denoiser": ShownPicture(), "condition_noise": None,
           "weighting": WEIGHTINGS["x0_unit"], "z": 2 * picture - 1}
    )  # fmt: skip
    assert not result.gradient.any()
    result = sr_sds_gradient(
        **{**given, "denoiser": ShownPicture(), "condition_noise": None,
           "weighting": WEIGHTINGS["x0_unit"]}
    )  # fmt: skip
    torch.testing.assert_close(result.gradient, given["z"] - (2 * picture - 1))


def test_it_is_sds_with_that_condition():
    given = arguments(dtype=torch.float32)
    model = Upsampler()
    actual = sr_sds_gradient(denoiser=model, **given)
    expected = sds_gradient(
        given["z"],
        Upsampler(),
        given["t"],
        given["noise"],
        weighting=given["weighting"],
        condition=model.seen[0],
    )
    assert torch.equal(actual.gradient, expected.gradient)
    assert torch.equal(actual.loss, expected.loss)


def test_the_rest_of_the_condition_is_kept():
    foreground = torch.ones(2, 1, SIZE, SIZE)
    model = Upsampler()
    sr_sds_gradient(denoiser=model, condition=Condition(foreground=foreground), **arguments())
    assert model.seen[0].foreground is foreground


def test_noise_level_and_schedule_can_be_another():
    given = arguments()
    other = NoiseSchedule(torch.linspace(0.99, 0.01, 50))
    model = Upsampler()
    sr_sds_gradient(denoiser=model, noise_level=20, condition_schedule=other, **given)
    expected = sr_condition(
        given["stage_one_render"],
        other.alpha_bars[[20, 20]],
        given["condition_noise"],
        size=SIZE,
        low_size=LOW,
    )
    low = model.seen[0].low_resolution
    assert low is not None
    assert torch.equal(low, expected)
    assert NOISE_LEVELS == {"castex": 500, "pipeline": 250}


def test_the_two_noises_must_differ():
    given = arguments()
    eps = torch.randn(2, 3, SIZE, SIZE)
    for noise in (given["noise"], NoiseKey(7, 3, torch.arange(2)), eps):
        with pytest.raises(ValueError, match="condition_noise must be independent of noise, got"):
            sr_sds_gradient(
                denoiser=Upsampler(),
                **{**given, "noise": eps if noise is eps else given["noise"],
                   "condition_noise": noise},
            )  # fmt: skip


def test_pictures_must_be_square():
    given = arguments()
    with pytest.raises(ValueError, match=r"z must be square pictures.*got \[2, 3, 32, 16\]"):
        sr_sds_gradient(denoiser=Upsampler(), **{**given, "z": given["z"][..., :16]})
