"""Sampling from a denoiser, without distillation: what its distribution looks like."""

from collections.abc import Sequence

import torch

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.tensor_types import Diffused


@torch.no_grad()
def ddim_sample(
    denoiser: Denoiser,
    noise: Diffused,
    timesteps: Sequence[int],
    condition: Condition | None = None,
) -> Diffused:
    """Follows the probability flow from noise to a sample.

    Args:
        denoiser: any denoiser.
        noise: standard normal, [b, c, *spatial]; counts as x_t of the first timestep.
        timesteps: falling, such as 999, 979, …, 19.
        condition: conditions of the b samples.

    Returns:
        x̂_0 at the last timestep.

    Source: Song et al. 2020, Eq. 12 with σ = 0 (arXiv 2010.02502).
    """
    x_t = x0_hat = noise
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        here = torch.full((len(x_t),), t, device=x_t.device)
        x0_hat = denoiser.x0_hat(x_t, here, condition)
        if following is None:
            break
        alpha_bar = float(denoiser.schedule.alpha_bars[t])
        alpha_bar_next = float(denoiser.schedule.alpha_bars[following])
        eps_hat = (x_t - alpha_bar**0.5 * x0_hat) / (1 - alpha_bar) ** 0.5
        x_t = alpha_bar_next**0.5 * x0_hat + (1 - alpha_bar_next) ** 0.5 * eps_hat
    return x0_hat
