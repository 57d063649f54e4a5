"""The contract of every guidance model, and the one place where predictions are converted."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.kernels import PredictionType
from sdslab.tensor_types import Diffused, PerSample, Timesteps


@dataclass(frozen=True)
class Prediction:
    """What a model said, before any conversion: kernels take it as it is.

    Attributes:
        output: [b or 2b, c or 2c, *spatial]. Twice the batch: the unconditional half, then the
            conditional one. Twice the channels: a learned variance, which distillation drops.
        prediction_type: what the first c channels are: ε̂, v̂ or x̂_0.
        guidance_scale: s of ε_u + s (ε_c − ε_u); without effect on a single batch.
    """

    output: Tensor
    prediction_type: PredictionType
    guidance_scale: float = 1.0


class Denoiser(ABC):
    """Predicts the clean sample from a noisy one, under a noise schedule of its own."""

    schedule: NoiseSchedule

    @abstractmethod
    def predict(self, x_t: Diffused, t: Timesteps, condition: Tensor | None = None) -> Prediction:
        """Runs the model once, without a graph.

        Args:
            x_t: noisy samples [b, c, *spatial], as the schedule's forward process makes them.
            t: a timestep per sample, [b].
            condition: what the model is conditioned on (text embeddings, a low-resolution render);
                its first dimension is b.
        """

    @final
    def x0_hat(self, x_t: Diffused, t: Timesteps, condition: Tensor | None = None) -> Diffused:
        """x̂_0(x_t; y, t), whatever the model predicts."""
        prediction = self.predict(x_t, t, condition)
        guided = guided_output(prediction, x_t)
        return x0_from(prediction.prediction_type, guided, x_t, self.schedule.alpha_bar(t))

    @final
    def epsilon_hat(self, x_t: Diffused, t: Timesteps, condition: Tensor | None = None) -> Diffused:
        """ε̂(x_t; y, t), whatever the model predicts."""
        alpha_bar = _like(self.schedule.alpha_bar(t), x_t)
        x0_hat = self.x0_hat(x_t, t, condition)
        return (x_t - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()


@final
class ClassifierFreeGuidance(Denoiser):
    """Guides ``model`` by ε_u + s (ε_c − ε_u), both halves in one batch.

    Args:
        model: a denoiser that takes a condition.
        unconditional: its condition for the empty (or negative) prompt, [1, ...].
        scale: s. Codes that write ε_c + s (ε_c − ε_u) mean s + 1.

    Source: Ho & Salimans 2022 (arXiv 2207.12598).
    """

    def __init__(self, model: Denoiser, unconditional: Tensor, scale: float) -> None:
        self.model, self.unconditional, self.scale = model, unconditional, scale
        self.schedule = model.schedule

    def predict(self, x_t: Diffused, t: Timesteps, condition: Tensor | None = None) -> Prediction:
        if condition is None:
            raise ValueError("classifier-free guidance needs a condition [b, ...], got None")
        both = torch.cat((self.unconditional.expand_as(condition), condition))
        halves = self.model.predict(torch.cat((x_t, x_t)), torch.cat((t, t)), both)
        return Prediction(halves.output, halves.prediction_type, self.scale)


def guided_output(prediction: Prediction, x_t: Diffused) -> Diffused:
    """Drops learned variance channels and combines the unconditional and conditional halves."""
    output = prediction.output[:, : x_t.shape[1]]
    if len(output) == len(x_t):
        return output
    unconditional, conditional = output.chunk(2)
    return unconditional + prediction.guidance_scale * (conditional - unconditional)


def x0_from(
    prediction_type: PredictionType, output: Diffused, x_t: Diffused, alpha_bar: PerSample
) -> Diffused:
    """Converts an ε̂, v̂ or x̂_0 prediction to x̂_0.

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for v = √ᾱ ε − √(1−ᾱ) x_0.
    """
    alpha_bar = _like(alpha_bar, x_t)
    match prediction_type:
        case "epsilon":
            return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
        case "v":
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
        case "x0":
            return output


def _like(per_sample: Tensor, x: Tensor) -> Tensor:
    return per_sample.to(x).view(-1, *[1] * (x.ndim - 1))
