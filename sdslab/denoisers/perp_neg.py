"""Negative prompts that cannot cancel the positive one: Perp-Neg."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.kernels import PredictionType
from sdslab.tensor_types import Diffused, Timesteps


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
        outputs, prediction_type = self._outputs(x_t, t, conditions)
        unconditional, positive, *others = (output[:, : x_t.shape[1]].float() for output in outputs)
        direction = positive - unconditional
        guided = direction.clone()
        for other in others:
            guided -= self.weight * perpendicular(other - unconditional, direction)
        return Prediction(unconditional + self.scale * guided, prediction_type)

    def _outputs(
        self, x_t: Diffused, t: Timesteps, conditions: list[Condition]
    ) -> tuple[Sequence[Tensor], PredictionType]:
        if self.low_memory:
            predictions = [self.model.predict(x_t, t, condition) for condition in conditions]
            return [p.output for p in predictions], predictions[0].prediction_type
        together = conditions[0]
        for condition in conditions[1:]:
            together = together.and_then(condition)
        count = len(conditions)
        prediction = self.model.predict(torch.cat([x_t] * count), torch.cat([t] * count), together)
        return prediction.output.chunk(count), prediction.prediction_type


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """What is left of each sample of ``a`` without its part along ``b``; both [n, *]."""
    along = (a * b).flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp_min(1e-20)
    return a - along.view(-1, *[1] * (a.ndim - 1)) * b
