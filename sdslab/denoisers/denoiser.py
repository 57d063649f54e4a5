"""The contract of every guidance model, and sampling from any."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import final, get_args

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import NoiseSchedule, timesteps_for
from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.kernels.sds_gradients import PredictionType, guided_output, x0_from
from sdslab.kernels.validation import (
    require_one_of,
    require_type,
)
from sdslab.tensor_types import Diffused, Timesteps


@dataclass(frozen=True)
class Prediction:
    """A model's raw output, unconverted because the fused gradient reads both halves as they are.

    Attributes:
        output: [b or 2b, c or 2c, *spatial]. Twice the batch: the unconditional half, then the
            conditional one. Twice the channels: a learned variance, which distillation drops.
        prediction_type: meaning of the first c channels: ε̂, v̂, x̂_0 or the flow ε − x_0.
        guidance_scale: s of ε_u + s (ε_c − ε_u); without effect on a single batch.
    """

    output: Tensor
    prediction_type: PredictionType
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what cannot be converted."""
        require_type("output", self.output, Tensor, "pass the model's tensor itself")
        require_one_of("prediction_type", self.prediction_type, get_args(PredictionType))


@dataclass(frozen=True, eq=False)
class Condition:
    """Conditions of b samples; a model ignores those that it does not use.

    Attributes:
        prompt: [b] int64, a row of the prompts that the model was made with.
        low_resolution: [b, c, *spatial] in the diffusion space and of x_t's size, noised to
            ``noise_level``: the picture that a super-resolution model sharpens.
        noise_level: [b] int64, the timestep that ``low_resolution`` was noised to.
        foreground: [b, 1, *spatial] in [0, 1], how much a pixel counts; 0 where it shows no object.
        up: [b, 2, *spatial], unit vectors (right, up) on the screen: where the surface's own up
            points; 0 where there is none.
    """

    prompt: Tensor | None = None
    low_resolution: Tensor | None = None
    noise_level: Tensor | None = None
    foreground: Tensor | None = None
    up: Tensor | None = None

    def with_prompt(self, row: int | Tensor) -> "Condition":
        """The same condition, but for one prompt for all samples, or one for each, [b] int64."""
        if self.prompt is None:
            raise ValueError("the condition must have a prompt [b] to replace, got none")
        rows = row if isinstance(row, Tensor) else torch.full_like(self.prompt, row)
        return replace(self, prompt=rows)

    def and_then(self, other: "Condition") -> "Condition":
        """This batch of conditions with another, of the same fields, below it."""
        parts = {}
        for field in fields(self):
            above, below = getattr(self, field.name), getattr(other, field.name)
            parts[field.name] = None if above is None else torch.cat((above, below))
        return Condition(**parts)


class Denoiser(ABC):
    """Predicts the clean sample from a noisy one, under a noise schedule of its own."""

    schedule: NoiseSchedule

    @abstractmethod
    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        """Runs the model once, without a graph.

        Args:
            x_t: noisy samples [b, c, *spatial], as the schedule's forward process makes them.
            t: a timestep per sample, [b].
            condition: conditions of the same b samples.
        """

    def loaded(self) -> AbstractContextManager[None]:
        """A block of several predictions, for which a model that is kept elsewhere comes once."""
        return nullcontext()

    @final
    def checked_prediction(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        """`predict`, with its arguments' and its result's types checked.

        Raises:
            TypeError: it is no `Prediction`, or the condition no `Condition`.
        """
        if condition is not None:
            require_type("condition", condition, Condition, "Condition(prompt=...), for example")
        prediction = self.predict(x_t, t, condition)
        advice = 'wrap the output: Prediction(output, "epsilon"), or "v", "x0" or "flow"'
        require_type(f"{type(self).__name__}.predict's result", prediction, Prediction, advice)
        return prediction

    @final
    def x0_hat(
        self, x_t: Diffused, t: Timesteps | int, condition: Condition | None = None
    ) -> Diffused:
        """x̂_0(x_t; y, t), whatever the model predicts."""
        t = timesteps_for(t, x_t)
        prediction = self.checked_prediction(x_t, t, condition)
        output = guided_output(prediction.output, x_t, prediction.guidance_scale)
        rates = signal_and_noise_rates(self.schedule.alpha_bar(t), x_t)
        signal, sigma = (rate.to(x_t) for rate in rates)
        return x0_from(prediction.prediction_type, output, x_t, signal, sigma)


def require_denoiser(name: str, denoiser: object) -> None:
    """`denoiser` is one, with a schedule.

    Raises:
        TypeError: says what is missing.
    """
    advice = "derive a class from Denoiser, with a schedule and predict(x_t, t, condition)"
    require_type(name, denoiser, Denoiser, advice)
    schedule = getattr(denoiser, "schedule", None)
    advice = "set self.schedule = NoiseSchedule.deepfloyd_if(), or another, in __init__"
    require_type(f"{name}.schedule", schedule, NoiseSchedule, advice)


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
