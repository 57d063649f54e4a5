"""Noise that a model itself leads to: DDIM inversion, and one reversed step of a flow."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.errors import UserError
from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.kernels.philox import NoiseKey, checked_noise, drawn_noise
from sdslab.tensor_types import Diffused, Timesteps

# x̂_0(x_t, t), guided by a scale where it has two roles to guide between.
CleanPrediction = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class Inversion:
    """The probability-flow ODE walked from z towards t, in a few DDIM steps.

    Attributes:
        steps: of equal length in t, the last shorter where t is no multiple.
        guidance: scale of the predictions on the way; 0 is the unconditional one.
        eta: share of fresh noise that is mixed into each step's, 0 for the ODE.
        interval: timesteps between the last point before t and t itself; None: a step like others.

    Source: Song et al. 2020 (arXiv 2010.02502); Lukoianov et al. 2024 (arXiv 2405.15891) with
    10 steps, guidance -6.5 and η .3; Liang et al. 2023 (arXiv 2311.11284) with an interval.
    """

    steps: int
    guidance: float = 0.0
    eta: float = 0.0
    interval: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise UserError(
                f"an inversion needs at least 1 step and η within [0, 1], got {self.steps} steps "
                f"and η {self.eta}"
            )
        if self.interval is not None and self.interval < 1:
            raise UserError(f"an inversion's interval must be at least 1, got {self.interval}")

    def timesteps(self, t: Timesteps) -> list[Timesteps]:
        """The points from 0 to t, [steps + 1] of [b]."""
        if self.interval is None:
            return [t * i // self.steps for i in range(self.steps + 1)]
        before = (t - self.interval).clamp_min(0)
        return [before * i // max(1, self.steps - 1) for i in range(self.steps)] + [t]


@torch.no_grad()
def inverted(
    z: Diffused,
    t: Timesteps,
    schedule: NoiseSchedule,
    x0_hat: CleanPrediction,
    inversion: Inversion,
    noise: Tensor | NoiseKey,
) -> tuple[Tensor, Tensor]:
    """Walks z up to x_t as the model itself would have come from there.

    Args:
        z: clean samples [b, c, *spatial]; they count as x at t = 0.
        t: [b].
        schedule: ᾱ.
        x0_hat: the model, at the inversion's guidance.
        inversion: how.
        noise: ε that η mixes in, like z, or its key.

    Returns:
        n with x_t = √ᾱ z + √(1-ᾱ) n, and ε̂ at the last point before t; both like z.
    """
    fresh = drawn_noise(checked_noise(noise, z), z) if inversion.eta else None
    points = inversion.timesteps(t)
    x, eps_hat = z, torch.zeros_like(z)
    signal, sigma = signal_and_noise_rates(schedule.alpha_bar(t), z)
    for here, there in itertools.pairwise(points):
        signal_here, sigma_here = signal_and_noise_rates(schedule.alpha_bar(here), z)
        clean = x0_hat(x, here)
        eps_hat = (x - signal_here * clean) / sigma_here
        moved = eps_hat
        if fresh is not None:
            moved = (1 - inversion.eta**2) ** 0.5 * eps_hat + inversion.eta * fresh
        signal_there, sigma_there = signal_and_noise_rates(schedule.alpha_bar(there), z)
        x = signal_there * clean + sigma_there * moved
    return (x - signal * z) / sigma, eps_hat


@torch.no_grad()
def reversed_noise(
    z: Diffused,
    t: Timesteps,
    schedule: NoiseSchedule,
    x0_hat: CleanPrediction,
    noise: Tensor | NoiseKey,
) -> Tensor:
    """The noise n with which a flow of velocity n - z is the model's own: z + v̂(x_t).

    One gradient step of length 1 on ½‖v̂ - (n - z)‖² by n, v̂ held fixed.

    Args:
        z: clean samples [b, c, *spatial].
        t: [b].
        schedule: ᾱ.
        x0_hat: the model.
        noise: n before, like z, or its key.

    Source: Yang et al. 2024, RFDS-Rev (arXiv 2406.03293).
    """
    eps = drawn_noise(checked_noise(noise, z), z)
    signal, sigma = signal_and_noise_rates(schedule.alpha_bar(t), z)
    x_t = signal * z + sigma * eps
    clean = x0_hat(x_t, t)
    velocity = (x_t - signal * clean) / sigma - clean
    return z + velocity
