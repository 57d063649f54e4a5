"""Denoisers around another: guidance by prompts, bounds of x̂_0, and a posterior's temperature."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction, require_denoiser
from sdslab.tensor_types import Diffused, Timesteps


@final
class ClassifierFreeGuidance(Denoiser):
    """Guides ``model`` by ε_u + s (ε_c − ε_u).

    Args:
        model: a denoiser that takes prompts.
        unconditional: the row of the empty (or negative) prompt.
        scale: s. Codes that write ε_c + s (ε_c − ε_u) mean s + 1.
        low_memory: run the two halves one after the other instead of in one batch.

    Source: Ho & Salimans 2022 (arXiv 2207.12598).
    """

    def __init__(
        self, model: Denoiser, unconditional: int, scale: float, *, low_memory: bool = False
    ) -> None:
        require_denoiser("model", model)
        self.model, self.unconditional, self.scale = model, unconditional, scale
        self.low_memory = low_memory
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        if condition is None or condition.prompt is None:
            raise ValueError("classifier-free guidance needs a condition with a prompt, got none")
        conditions = [condition.with_prompt(self.unconditional), condition]
        prediction = _predict_each(self.model, x_t, t, conditions, self.low_memory)
        return replace(prediction, guidance_scale=self.scale)


@final
class PerpendicularNegatives(Denoiser):
    """Guides ``model`` by ε_u + s (d − w Σ_i d_i⊥), with d = ε_c − ε_u and d_i = ε_i − ε_u.

    d_i⊥ is what is left of a negative prompt's direction without its part along d: what the two
    prompts share is kept. The weight 0 is classifier-free guidance.

    Args:
        model: a denoiser that takes prompts.
        unconditional: the row of the empty prompt.
        negatives: [n, k] int64, for each of n positive prompts the rows of its k negatives.
        scale: s.
        weight: w, at least 0.
        low_memory: run the 2 + k prompts one after the other instead of in one batch.

    Source: Armandpour et al. 2023 (arXiv 2304.04968).
    """

    def __init__(
        self,
        model: Denoiser,
        unconditional: int,
        negatives: Tensor,
        scale: float,
        weight: float,
        *,
        low_memory: bool = False,
    ) -> None:
        self.model, self.unconditional, self.negatives = model, unconditional, negatives
        self.scale, self.weight, self.low_memory = scale, weight, low_memory
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        if condition is None or condition.prompt is None:
            raise ValueError("Perp-Neg needs a condition with a prompt, got none")
        self.negatives = self.negatives.to(condition.prompt.device)
        rows = self.negatives[condition.prompt]  # [b, k]
        conditions = [
            condition.with_prompt(self.unconditional),
            condition,
            *(condition.with_prompt(row) for row in rows.unbind(1)),
        ]
        prediction = _predict_each(self.model, x_t, t, conditions, self.low_memory)
        outputs = prediction.output[:, : x_t.shape[1]].float().chunk(len(conditions))
        unconditional, positive, *others = outputs
        direction = positive - unconditional
        guided = direction.clone()
        for other in others:
            guided -= self.weight * perpendicular(other - unconditional, direction)
        return Prediction(unconditional + self.scale * guided, prediction.prediction_type)


@final
class DynamicThresholding(Denoiser):
    """Clamps each sample's x̂_0 to [−s, s] and divides it by s, the given quantile of |x̂_0|.

    s is at least 1 and at most ``largest``: pictures within [−1, 1] stay as they are.

    Args:
        model: any denoiser, guidance included: guided pictures are what leaves the range.
        ratio: the quantile; DeepFloyd IF's schedulers say 0.95.
        largest: upper bound of s; DeepFloyd IF's say 1.5.

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    def __init__(self, model: Denoiser, ratio: float = 0.95, largest: float = 1.5) -> None:
        self.model, self.ratio, self.largest = model, ratio, largest
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        x0_hat = self.model.x0_hat(x_t, t, condition)
        magnitude = x0_hat.float().abs().flatten(1)
        bound = torch.quantile(magnitude, self.ratio, dim=1).clamp(1, self.largest).to(x0_hat)
        bound = bound.view(-1, *[1] * (x0_hat.ndim - 1))
        return Prediction(x0_hat.clamp(-bound, bound) / bound, "x0")


@final
class TemperedDenoiser(Denoiser):
    """Divides the log-likelihood of ``model``'s posterior by a temperature T.

    −‖x_t − √ᾱ x_0‖² / 2(1−ᾱ)T is what x_t √(ᾱ'/ᾱ) has at the timestep t' whose signal-to-noise
    ratio ᾱ'/(1−ᾱ') is T times smaller, so the model is asked there. T = 1 is the model itself;
    T → 0 ends at the nearest sample, T → ∞ at the mean of all. Nothing else that the model knows
    (a prompt, a low-resolution picture) is tempered.

    Args:
        model: any denoiser.
        temperature: T, positive.
    """

    def __init__(self, model: Denoiser, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}; 1 changes nothing")
        self.model, self.temperature = model, temperature
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        alpha_bar = self.schedule.alpha_bar(t)
        ratio = alpha_bar / (1 - alpha_bar) / self.temperature
        wanted = ratio / (1 + ratio)
        there = (self.schedule.alpha_bars - wanted[:, None]).abs().argmin(1)
        rescaling = (self.schedule.alpha_bar(there) / alpha_bar).sqrt().to(x_t)
        x_there = x_t * rescaling.view(-1, *[1] * (x_t.ndim - 1))
        if torch.equal(there, t):
            x_there = x_t
        return Prediction(self.model.x0_hat(x_there, there, condition), "x0")


def _predict_each(
    model: Denoiser, x_t: Tensor, t: Tensor, conditions: Sequence[Condition], low_memory: bool
) -> Prediction:
    """The model's output under each of n conditions, [n · b, …]: in one batch or one by one."""
    if low_memory:
        with model.loaded():
            parts = [model.checked_prediction(x_t, t, condition) for condition in conditions]
        return replace(parts[0], output=torch.cat([part.output for part in parts]))
    together = conditions[0]
    for condition in conditions[1:]:
        together = together.and_then(condition)
    n = len(conditions)
    return model.checked_prediction(torch.cat([x_t] * n), torch.cat([t] * n), together)


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """Component of each sample of ``a`` perpendicular to ``b``; both [n, *]."""
    along = (a * b).flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp_min(1e-20)
    return a - along.view(-1, *[1] * (a.ndim - 1)) * b
