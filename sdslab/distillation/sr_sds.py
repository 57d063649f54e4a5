"""SR-SDS: score distillation from a super-resolution model, conditioned on a stage-I render."""

from dataclasses import replace
from typing import get_args

import torch

from sdslab.denoisers.denoiser import Condition, Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, Weighting, timesteps_for
from sdslab.distillation.sds import sds_gradient
from sdslab.kernels import NoiseKey, SDSResult, SRMode, sr_condition
from sdslab.kernels.validation import require_layout, require_one_of
from sdslab.tensor_types import Diffused, Pictures, Timesteps

# The timestep that each mode's own code noises the condition to.
NOISE_LEVELS: dict[SRMode, int] = {"castex": 500, "pipeline": 250}


@torch.no_grad()
def sr_sds_gradient(
    z: Diffused,
    stage_one_render: Pictures,
    denoiser: Denoiser,
    t: Timesteps | int,
    noise: torch.Tensor | NoiseKey,
    condition_noise: torch.Tensor | NoiseKey | None,
    *,
    weighting: Weighting | str,
    condition: Condition | None = None,
    clamp: float | None = None,
    mode: SRMode = "castex",
    low_size: int = 64,
    noise_level: int | None = None,
    condition_schedule: NoiseSchedule | None = None,
) -> SDSResult:
    """`sds_gradient` of a super-resolution model that is shown what stage I made of the same view.

    Args:
        z: clean samples [b, c, h, h] in pixel space, [−1, 1].
        stage_one_render: [b, c', h', w'] in [0, 1], the frozen stage-I texture under the camera,
            light and background of z.
        denoiser: predicts x̂_0, ε̂ or v̂ from z_t and ``Condition.low_resolution``.
        t: a timestep per sample, [b], or one for all.
        noise: ε of z_t, like z, or its key.
        condition_noise: ε of the condition, like z, or a key of another stream
            (``SR_CONDITION_STREAM``): the two are independent. None leaves the condition clean, at
            noise level 0.
        weighting: w(t) and the form it belongs to.
        condition: what else the denoiser takes; its low resolution and noise level are replaced.
        clamp: bounds x̂_0 to [−clamp, clamp].
        mode: how the render is resampled; ``sr_condition`` says how.
        low_size: height and width that it is reduced to.
        noise_level: timestep of the condition's noise; ``NOISE_LEVELS[mode]`` where None.
        condition_schedule: ᾱ of the condition's noise; the denoiser's own where None.

    Returns:
        As ``sds_gradient`` does.

    Raises:
        ValueError: the two noises are one, or shapes or values do not fit.

    Source: CasTex's second stage (arXiv 2504.06856) and its public code.
    """
    require_layout("stage_one_render", stage_one_render, "b c h w", b=len(z))
    require_one_of("mode", mode, get_args(SRMode))
    require_denoiser("denoiser", denoiser)
    t = timesteps_for(t, z)
    if z.ndim != 4 or z.shape[-1] != z.shape[-2]:
        raise ValueError(f"z must be square pictures [b, c, h, h], got {list(z.shape)}; crop it")
    _require_independent(noise, condition_noise)
    if condition_noise is None:
        levels, alpha_bar = torch.zeros_like(t), None
    else:
        levels = torch.full_like(t, NOISE_LEVELS[mode] if noise_level is None else noise_level)
        alpha_bar = (condition_schedule or denoiser.schedule).alpha_bar(levels)
    low_resolution = sr_condition(
        stage_one_render,
        alpha_bar,
        condition_noise,
        mode=mode,
        size=z.shape[-1],
        low_size=low_size,
    )
    shown = replace(
        condition or Condition(), low_resolution=low_resolution.to(z.dtype), noise_level=levels
    )
    return sds_gradient(z, denoiser, t, noise, weighting=weighting, condition=shown, clamp=clamp)


def _require_independent(
    noise: torch.Tensor | NoiseKey, condition_noise: torch.Tensor | NoiseKey | None
) -> None:
    same = noise is condition_noise
    if isinstance(noise, NoiseKey) and isinstance(condition_noise, NoiseKey):
        same = noise.words == condition_noise.words
    if same:
        raise ValueError(
            "condition_noise must be independent of noise, got the same draw; give its key "
            "stream=SR_CONDITION_STREAM"
        )
