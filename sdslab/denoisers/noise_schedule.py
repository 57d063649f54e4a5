"""ᾱ_t, how t is sampled, and how the gradient is weighted over t."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import Form
from sdslab.kernels.philox import TIMESTEP_STREAM, NoiseKey, philox_uniform
from sdslab.kernels.validation import require_integer, require_type
from sdslab.tensor_types import PerSample, Timesteps


@final
class NoiseSchedule:
    """The forward process x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε.

    Args:
        alpha_bars: ᾱ for t = 0, 1, …; within (0, 1) and falling.
    """

    def __init__(self, alpha_bars: Tensor) -> None:
        require_type("alpha_bars", alpha_bars, Tensor, "convert it with torch.tensor")
        if alpha_bars.ndim != 1 or not len(alpha_bars):
            raise ValueError(f"alpha_bars must be one row, got shape {list(alpha_bars.shape)}")
        if not ((alpha_bars > 0) & (alpha_bars < 1)).all() or (alpha_bars.diff() > 0).any():
            raise ValueError(
                f"alpha_bars must be within (0, 1) and falling, got {alpha_bars[0]:.3g} to "
                f"{alpha_bars[-1]:.3g}; "
                f"a schedule rescaled to zero terminal SNR cannot be divided by its last ᾱ"
            )
        self.alpha_bars = alpha_bars.double()

    def __len__(self) -> int:
        return len(self.alpha_bars)

    def alpha_bar(self, t: Timesteps) -> PerSample:
        """ᾱ at each t [b], float64, on t's device.

        Raises:
            TypeError: t is no tensor of integers.
            ValueError: on the CPU, where looking costs nothing, some t is out of range.
        """
        require_type("t", t, Tensor, "pass one integer for each sample: torch.tensor([500])")
        if t.is_floating_point() or t.dtype == torch.bool:
            raise TypeError(f"t must be integers, got {t.dtype}; convert it with .long()")
        if t.device.type == "cpu":
            outside = [i for i in t.flatten().tolist() if not 0 <= i < len(self)]
            if outside:
                raise ValueError(f"t must be from 0 to {len(self) - 1}, got {outside}")
        if self.alpha_bars.device != t.device:
            self.alpha_bars = self.alpha_bars.to(t.device)
        return self.alpha_bars[t.long()]

    @classmethod
    def deepfloyd_if(cls) -> "NoiseSchedule":
        """DeepFloyd IF's: 1000 steps of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17)."""

        def alpha_bar(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [
            min(1 - alpha_bar((t + 1) / 1000) / alpha_bar(t / 1000), 0.999) for t in range(1000)
        ]
        return cls._of_betas(torch.tensor(betas, dtype=torch.float32))

    @classmethod
    def stable_diffusion(cls) -> "NoiseSchedule":
        """Stable Diffusion 1 and 2's: √β rises along a straight line, 1000 steps."""
        return cls._of_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)

    @classmethod
    def _of_betas(cls, betas: Tensor) -> "NoiseSchedule":
        # in float32 as diffusers does, and without it: it takes seconds to import
        return cls((1 - betas).cumprod(0))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any] | str | Path) -> "NoiseSchedule":
        """Reads ᾱ from any diffusers scheduler config that has one.

        Args:
            config: the config itself, a ``scheduler_config.json``, or the folder that holds it.

        Raises:
            UserError: unreadable, unknown to diffusers, or a scheduler without ᾱ (flow matching).
        """
        import diffusers

        if not isinstance(config, Mapping):
            config = _read_config(Path(config))
        name = config.get("_class_name", "DDPMScheduler")
        scheduler_class = getattr(diffusers, name, None)
        if not name.endswith("Scheduler") or scheduler_class is None:
            raise UserError(f"diffusers {diffusers.__version__} has no scheduler named {name!r}")
        try:
            scheduler = scheduler_class.from_config(dict(config))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(f"the scheduler config is not one of {name}'s: {error}") from error
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"the scheduler must have ᾱ (alphas_cumprod), got a {name}, which has none"
            )
        return cls(scheduler.alphas_cumprod)


def _read_config(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "scheduler_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"a scheduler config must be a readable scheduler_config.json, got "
            f"{str(path)!r}: {error}"
        ) from error


def timesteps_for(t: Tensor | int, x: Tensor) -> Timesteps:
    """One timestep for each sample of ``x``, [b] on its device, from one for each or one for all.

    Raises:
        TypeError: t is neither an integer nor a tensor of integers.
        ValueError: there is one for each of another number of samples.
    """
    require_type("x", x, Tensor, "convert it with torch.from_numpy or torch.as_tensor")
    if isinstance(t, (list, tuple)):
        raise TypeError(f"t must be an integer or a tensor, got {t}; pass torch.tensor({t})")
    if not isinstance(t, Tensor):
        require_integer("t", t)
        t = torch.tensor(int(t))
    if t.is_floating_point() or t.dtype == torch.bool:
        raise TypeError(f"t must be integers, got {t.dtype}; convert it with .long()")
    if t.ndim and t.shape != x.shape[:1]:
        raise ValueError(
            f"t must be one timestep for all samples, or one for each of {len(x)}, got "
            f"{list(t.shape)}; give x a batch dimension, or repeat t"
        )
    return t.to(x.device) if t.ndim else t.to(x.device).expand(len(x))


class TimestepSampler(ABC):
    """Draws the timestep of each sample from the counter-based generator."""

    @abstractmethod
    def bounds(self, progress: float) -> tuple[int, int]:
        """The half-open range [t_min, t_max) at ``progress`` = step / steps, within [0, 1]."""

    @final
    def __call__(self, key: NoiseKey, progress: float, *, shared: bool = False) -> Timesteps:
        """Draws t uniformly within the bounds.

        Args:
            key: seed, step and sample indices [b]; the stream is this sampler's own.
            progress: share of the run that is done, within [0, 1].
            shared: one t for the whole batch, as CasTex does, instead of one per sample.

        Returns:
            Integers [b], the same whatever batch the samples are in (unless ``shared``).
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be step / steps, within [0, 1], got {progress}")
        t_min, t_max = self.bounds(progress)
        sample = torch.zeros_like(key.sample) if shared else key.sample
        uniform = philox_uniform(NoiseKey(key.seed, key.step, sample, TIMESTEP_STREAM), 1)[:, 0]
        return t_min + (uniform * (t_max - t_min)).long()


@final
@dataclass(frozen=True)
class UniformTimesteps(TimestepSampler):
    """t ~ U[t_min, t_max) throughout."""

    t_min: int = 20
    t_max: int = 980

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max:
            raise UserError(
                f"timesteps must satisfy 0 ≤ t_min < t_max, got {self.t_min} and {self.t_max}"
            )

    def bounds(self, progress: float) -> tuple[int, int]:  # noqa: ARG002
        return self.t_min, self.t_max


@final
@dataclass(frozen=True)
class SqrtAnnealedTimesteps(TimestepSampler):
    """Both bounds fall with the square root of the progress.

    Source: CasTex's public code; t_min = ⌊300 − 100√f⌋, t_max = ⌊980 − 480√f⌋, f = step / steps.
    """

    t_min: tuple[int, int] = (300, 200)
    t_max: tuple[int, int] = (980, 500)

    def bounds(self, progress: float) -> tuple[int, int]:
        root = progress**0.5
        first, last = (int(start - (start - end) * root) for start, end in (self.t_min, self.t_max))
        return first, last


@final
@dataclass(frozen=True)
class SwitchedTimesteps(TimestepSampler):
    """One range [t_min, t_max) up to a share of the run, another from there."""

    first: tuple[int, int]
    then: tuple[int, int]
    at: float

    def bounds(self, progress: float) -> tuple[int, int]:
        return self.first if progress < self.at else self.then


@final
@dataclass(frozen=True)
class FallingTimestep(TimestepSampler):
    """One t for all samples, from ``start`` down to ``end`` with progress ** ``power``."""

    start: int
    end: int
    power: float = 1.0

    def bounds(self, progress: float) -> tuple[int, int]:
        t = round(self.start + (self.end - self.start) * progress**self.power)
        return t, t + 1


@final
@dataclass(frozen=True)
class Weighting:
    """w(t) together with the form of Eq. 1 that it multiplies.

    x0-form: w (x_0 − x̂_0). ε-form: w_ε (ε̂ − ε), where w_ε = w √((1−ᾱ)/ᾱ).
    """

    form: Form
    function: Callable[[Tensor], Tensor]

    def __call__(self, alpha_bar: PerSample) -> PerSample:
        """Weight of its own form at each ᾱ [b]."""
        return self.function(alpha_bar)


# A weighting's name says its form. x0_castex and epsilon_dreamfusion are the same gradient.
WEIGHTINGS = {
    "x0_unit": Weighting("x0", torch.ones_like),  # CasTex Eq. 4–5
    "x0_castex": Weighting("x0", lambda alpha_bar: (alpha_bar * (1 - alpha_bar)).sqrt()),
    "epsilon_unit": Weighting("epsilon", torch.ones_like),
    "epsilon_dreamfusion": Weighting("epsilon", lambda alpha_bar: 1 - alpha_bar),
    "epsilon_ism": Weighting("epsilon", lambda alpha_bar: ((1 - alpha_bar) / alpha_bar).sqrt()),
    # v̂ - (ε - z) of a flow at s = √(1-ᾱ) / (√ᾱ + √(1-ᾱ)) is (z - x̂_0) / s.
    "x0_flow": Weighting("x0", lambda alpha_bar: 1 + (alpha_bar / (1 - alpha_bar)).sqrt()),
}


def weighting_named(name: Weighting | str) -> Weighting:
    """Looks a weighting up by its name in ``WEIGHTINGS``; a `Weighting` is itself.

    Raises:
        UserError: there is none of that name.
        TypeError: neither a name nor a weighting.
    """
    if isinstance(name, Weighting):
        return name
    if not isinstance(name, str):
        raise TypeError(
            f"weighting must be a name ({', '.join(WEIGHTINGS)}) or a Weighting, got a "
            f'{type(name).__name__}; Weighting("x0", function of ᾱ) makes one'
        )
    if name not in WEIGHTINGS:
        raise UserError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {name!r}")
    return WEIGHTINGS[name]
