"""The ways of making a picture like a photograph that the exemplar study compares, and scores."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, ddim_sample
from sdslab.denoisers.exemplar import BandEnergy, ExemplarDenoiser, timestep
from sdslab.denoisers.noise_schedule import WEIGHTINGS, UniformTimesteps
from sdslab.denoisers.patch_bank import PatchBank
from sdslab.denoisers.wrappers import ClassifierFreeGuidance, TemperedDenoiser
from sdslab.diffusion_space import PixelSpace, resize
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import sr_sds_gradient
from sdslab.kernels import NoiseKey, SDSResult, philox_normal
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import PixelGrid
from sdslab.pictures.metrics import (
    completeness,
    contrast,
    fidelity,
    gradient_energy,
    sliced_wasserstein,
)
from sdslab.runs.from_toml import Between

FACTOR = 4  # of the enlargement
PATCH, SR_PATCH = 7, 5
FIRST_U, RESTART_U, LAST_U = 0.98, 0.6, 0.03  # noise levels; √ᾱ = cos(πu/2)
PYRAMID_SHRINKS = (4, 2, 1)
COARSE_SHARE = 0.75  # of the finest level's steps that each coarser one takes
LEARNING_RATE = 0.07
WEIGHTING = WEIGHTINGS["x0_unit"]


@dataclass(frozen=True)
class ExemplarCase:
    """One way of making a picture like a photograph."""

    name: str
    label: str
    method: Literal["crop", "ddim", "sds", "pyramid", "bicubic", "sr_sds"]
    """A real crop; samples; SDS from grey at one resolution, or from coarse to fine; enlarged."""
    steps: Annotated[int, Between(2, 1_000_000)] = 100
    """Steps of the sampler or the optimisation; a pyramid's at its finest level."""
    noise: Literal["fixed", "fresh"] = "fixed"
    """One ε for the whole run, or another one each step."""
    timesteps: Literal["annealed", "random"] = "annealed"
    """t falls evenly, or is drawn anew each step."""
    band_energy: bool = False
    """Whether x̂_0 gets the photograph's contrast back."""
    temperature: float = 1.0
    """That the posterior's log-likelihood is divided by."""
    guidance: float | None = None
    """w of ε_all + w (ε_photo − ε_all), among the sweeps' photographs; absent: its own alone."""
    enlarges: str | None = None
    """The case whose pictures are enlarged."""
    enlarged: bool = False
    """Whether a crop is one of the enlarged size."""
    pictured: bool = True
    """Whether the contact sheet shows it; the table always does."""

    @property
    def is_large(self) -> bool:
        """Whether its pictures have the enlarged size."""
        return self.enlarged or self.enlarges is not None


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph at the enlarged pictures' resolution.

    Attributes:
        name: as the study names it.
        pixels: [1, 3, h, h] in [0, 1], sRGB-encoded.
    """

    name: str
    pixels: Tensor

    def shrunk(self, factor: int) -> Tensor:
        """[1, 3, h / factor, h / factor]."""
        return resize(self.pixels, self.pixels.shape[-1] // factor)


@dataclass(frozen=True, eq=False)
class Problem:
    """What a case is run on.

    Attributes:
        photo: that the picture is to be like.
        others: the photographs that a tag tells it from, itself among them.
        seed: of the noise.
        size: height and width of small pictures.
        start: [1, 3, size, size], what is enlarged; None where nothing is.
    """

    photo: Photo
    others: tuple[Photo, ...]
    seed: int
    size: int
    start: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """How alike a picture and a photograph of the same scale are."""

    sliced_wasserstein: float
    """Between 7 × 7 patches, in pixel values of [0, 1]; 0 is alike."""
    contrast: float
    """Standard deviation over the photograph's; 1 is alike."""
    gradient_energy: float
    """Over the photograph's; below 1 is blurred."""
    fidelity: float
    """Distance of the picture's patches from the photograph's nearest ones."""
    completeness: float
    """Distance of the photograph's patches from the picture's nearest ones."""

    @classmethod
    def of(cls, picture: Tensor, photo: Tensor) -> "Scores":
        """Compares [1, 3, h, h] with [1, 3, h', h'], both in [0, 1]."""
        # A uniform photograph has no contrast to be compared with.
        return cls(
            sliced_wasserstein(picture, photo),
            _ratio(contrast(picture), contrast(photo)),
            _ratio(gradient_energy(picture), gradient_energy(photo)),
            fidelity(picture, photo),
            completeness(picture, photo),
        )


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Made:
    """A picture [1, 3, h, h], not clamped, and the seconds of all cores and of the clock."""

    picture: Tensor
    cpu_seconds: float
    seconds: float


def make(case: ExemplarCase, problem: Problem) -> Made:
    """Runs a case."""
    cpu, clock = time.process_time(), time.perf_counter()
    picture = METHODS[case.method](case, problem)
    return Made(picture, time.process_time() - cpu, time.perf_counter() - clock)


def _crop(case: ExemplarCase, problem: Problem) -> Tensor:
    """A corner of the photograph: another one for each of four seeds."""
    whole = problem.photo.shrunk(1 if case.enlarged else FACTOR)
    size = problem.size * (FACTOR if case.enlarged else 1)
    top, left = problem.seed % 2, problem.seed // 2 % 2
    rest = whole.shape[-1] - size
    return whole[..., rest * top : rest * top + size, rest * left : rest * left + size]


def _sample(case: ExemplarCase, problem: Problem) -> Tensor:
    denoiser, condition = _denoiser(case, problem, FACTOR)
    key = NoiseKey(problem.seed, 0, torch.arange(1))
    noise = philox_normal(key, (3, problem.size, problem.size)).to(problem.photo.pixels)
    levels = torch.linspace(FIRST_U, LAST_U, case.steps, dtype=torch.float64).tolist()
    z = ddim_sample(denoiser, noise, [timestep(u) for u in levels], condition)
    return PixelSpace().decode(z)


def _sds(case: ExemplarCase, problem: Problem) -> Tensor:
    denoiser, condition = _denoiser(case, problem, FACTOR)
    grey = torch.full((1, 3, problem.size, problem.size), 0.5).to(problem.photo.pixels)
    return _distil(case, grey, denoiser, case.steps, (FIRST_U, LAST_U), problem.seed, 0, condition)


def _pyramid(case: ExemplarCase, problem: Problem) -> Tensor:
    """From coarse to fine with a patch of constant size; each level starts from the one before."""
    picture = problem.photo.pixels.mean((2, 3), keepdim=True)
    for level, shrink in enumerate(PYRAMID_SHRINKS):
        denoiser, condition = _denoiser(case, problem, FACTOR * shrink)
        steps = case.steps if shrink == 1 else max(2, round(COARSE_SHARE * case.steps))
        u = (RESTART_U if level else FIRST_U, LAST_U)
        start = resize(picture, problem.size // shrink)
        picture = _distil(case, start, denoiser, steps, u, problem.seed, level, condition)
    return picture


def _bicubic(case: ExemplarCase, problem: Problem) -> Tensor:  # noqa: ARG001
    assert problem.start is not None
    return F.interpolate(problem.start, scale_factor=FACTOR, mode="bicubic")


def _sr_sds(case: ExemplarCase, problem: Problem) -> Tensor:
    assert problem.start is not None
    exemplar = PixelSpace().encode(problem.photo.pixels)[0]
    denoiser = ExemplarDenoiser(
        PatchBank.of([exemplar], SR_PATCH, factor=FACTOR).to(exemplar.device),
        band_energy=BandEnergy(exemplar) if case.band_energy else None,
    )
    # As low_pass of the denoiser makes large again what is small.
    shown = F.interpolate(problem.start, scale_factor=FACTOR, mode="bilinear")
    return _distil(
        case, shown, denoiser, case.steps, (RESTART_U, LAST_U), problem.seed, 0, shown=shown
    )


METHODS: dict[str, Callable[[ExemplarCase, Problem], Tensor]] = {
    "crop": _crop,
    "ddim": _sample,
    "sds": _sds,
    "pyramid": _pyramid,
    "bicubic": _bicubic,
    "sr_sds": _sr_sds,
}


def _denoiser(
    case: ExemplarCase, problem: Problem, shrink: int
) -> tuple[Denoiser, Condition | None]:
    """The denoiser of the photograph made smaller, and the condition that tells its tag."""
    photos = (problem.photo,) if case.guidance is None else problem.others
    exemplars = [PixelSpace().encode(photo.shrunk(shrink))[0] for photo in photos]
    own = exemplars[photos.index(problem.photo)]
    model = ExemplarDenoiser(
        PatchBank.of(exemplars, PATCH).to(own.device),
        band_energy=BandEnergy(own) if case.band_energy else None,
    )
    denoiser: Denoiser = model
    if case.temperature != 1:
        denoiser = TemperedDenoiser(denoiser, case.temperature)
    if case.guidance is None:
        return denoiser, None
    prompt = torch.tensor([photos.index(problem.photo)], device=own.device)
    guided = ClassifierFreeGuidance(denoiser, model.unconditional, case.guidance)
    return guided, Condition(prompt=prompt)


def _distil(
    case: ExemplarCase,
    start: Tensor,
    denoiser: Denoiser,
    steps: int,
    u: tuple[float, float],
    seed: int,
    level: int,
    condition: Condition | None = None,
    shown: Tensor | None = None,
) -> Tensor:
    """Moves pixels along Eq. 1, from ``start`` [1, 3, h, h] in [0, 1].

    Args:
        case: says where noise and timesteps come from.
        start: θ at first.
        denoiser: that distils.
        steps: of Adam.
        u: first and last noise level; random ones are drawn between them.
        seed: of noise and timesteps.
        level: of a pyramid; each has noise of its own.
        condition: of the denoiser.
        shown: [1, 3, h, h], the small picture made large, for SR-SDS.
    """
    theta = PixelGrid(start)
    space = PixelSpace()
    between = UniformTimesteps(timestep(u[1]), timestep(u[0]) + 1)

    def gradient(z: Tensor, index: int) -> SDSResult:
        sample = torch.arange(1, device=z.device)
        if case.timesteps == "random":
            t = between(NoiseKey(seed, index, sample), index / steps)
        else:
            share = index / (steps - 1)
            t = torch.tensor([timestep(u[0] + (u[1] - u[0]) * share)], device=z.device)
        # No step of a pyramid's level comes near the next one's first.
        noise = NoiseKey(seed, level * 2**20 + (index if case.noise == "fresh" else 0), sample)
        if shown is None:
            return sds_gradient(
                z, denoiser, t, noise, weighting=WEIGHTING, condition=condition, clamp=1.0
            )
        return sr_sds_gradient(
            z, shown, denoiser, t, noise, None, weighting=WEIGHTING, clamp=1.0,
            low_size=z.shape[-1],  # it is small already
        )  # fmt: skip

    config = OptimizeConfig(
        steps,
        learning_rate=LEARNING_RATE,
        learning_rate_schedule="cosine",
        adam_betas=(0.9, 0.99),
    )
    for _ in optimize(theta.parameters(), lambda _: space.encode(theta()), gradient, config):
        pass
    return theta().detach()
