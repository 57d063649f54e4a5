"""What the study of objectives measures of each, against exact scores."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition, Denoiser, ddim_sample
from sdslab.denoisers.mixture import MixtureDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, TimestepSampler, UniformTimesteps
from sdslab.distillation.objective_gradient import Predictor, distillation_gradient
from sdslab.distillation.objectives import OBJECTIVES
from sdslab.kernels import NoiseKey, philox_normal, philox_uniform
from sdslab.kernels.philox import INITIALIZATION_STREAM
from sdslab.pictures.image_io import load_image
from sdslab.pictures.metrics import psnr_db
from sdslab.runs.from_toml import Between
from sdslab.study.experiment import Result, Step

Panel = Literal["conformance", "modes", "particles", "variance"]
DIMENSIONS = 49  # of the points whose modes are left
SPREAD = 0.3  # their standard deviation
RING = 8  # modes of the two-dimensional mixture, every other one of the prompt
RING_DEVIATION = 0.06
COVERED = 3.0  # standard deviations within which a particle covers a mode
LEVELS = (100, 300, 500, 700, 900)  # timesteps that the variance is taken at


@dataclass(frozen=True)
class ObjectiveCase:
    """One objective in one panel."""

    name: str
    """For ``--only``."""
    label: str
    """For the tables and the figure."""
    panel: Panel
    """conformance: with Eq. 3, from grey; modes: from one of K modes; particles: 64 of them on a
    mixture in the plane; variance: of the gradient at one z."""
    objective: str = "sds"
    """A row of docs/objectives.md; "ode" samples the mixture by DDIM instead."""
    guidance: float = 1.0
    """s."""
    timesteps: tuple[int, int] | None = None
    """Draw t uniformly within these bounds; absent: as the objective does."""
    weighting: str = "x0_unit"
    """w(t), one for all objectives, so that they can be compared."""
    counts: tuple[int, ...] = ()
    """K, of the modes."""
    steps: Annotated[int, Between(1, 100_000)] = 400
    """Steps of plain gradient descent; for the variance, the number of draws."""
    learning_rate: float = 0.1
    """Share of the gradient that a step takes."""
    why: str = ""
    """Why it must end at x*, or why not."""
    must: bool = False
    """Whether it must."""

    @property
    def sampler(self) -> TimestepSampler:
        """Where t is drawn."""
        if self.timesteps is not None:
            return UniformTimesteps(*self.timesteps)
        return OBJECTIVES[self.objective].timesteps


def work(case: ObjectiveCase, seed: int) -> Iterator[Step | Result]:
    """Measures a case.

    Args:
        case: which.
        seed: of the noise, of t and of the starting points.
    """
    start = time.perf_counter()
    for update in _PANELS[case.panel](case, seed):
        if isinstance(update, Result):
            seconds = time.perf_counter() - start
            yield Result(update.tensors, update.numbers | {"seconds": round(seconds, 3)})
        else:
            yield update


def descended(
    case: ObjectiveCase, z: Tensor, roles: dict[str, Denoiser | Predictor], seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields (step, z) of plain gradient descent; φ of "variational" is exact, over z itself.

    Args:
        case: objective, t, weighting, steps and learning rate.
        z: [b, c, *spatial], where it starts.
        roles: who predicts what.
        seed: of the noise and of t.
    """
    objective, predictors = OBJECTIVES[case.objective], _predictors(roles)
    schedule = predictors["conditional"].denoiser.schedule
    for step in range(case.steps):
        progress, key = step / case.steps, NoiseKey(seed, step, torch.arange(len(z)))
        t = case.sampler(key, progress)
        if "variational" in objective.needs:
            predictors["variational"] = Predictor(MixtureDenoiser(z, schedule))
        noise = NoiseKey(seed, 0, key.sample) if objective.noise == "fixed" else key
        result = distillation_gradient(
            z, case.objective, predictors, t, noise, progress=progress, guidance=case.guidance,
            weighting=case.weighting,
        )  # fmt: skip
        z = z - case.learning_rate * result.gradient
        yield step + 1, z


def _predictors(roles: dict[str, Denoiser | Predictor]) -> dict[str, Predictor]:
    return {
        name: role if isinstance(role, Predictor) else Predictor(role)
        for name, role in roles.items()
    }


def _conformance(case: ObjectiveCase, seed: int) -> Iterator[Step | Result]:
    """PSNR of what descent from grey ends at, and the gradient at x* itself."""
    schedule, x_star = NoiseSchedule.deepfloyd_if(), 2 * load_image("astronaut", 32) - 1
    others = {"conditional": x_star, "unconditional": 0 * x_star, "negative": 0 * x_star - 1}
    needs = OBJECTIVES[case.objective].needs
    roles: dict[str, Denoiser | Predictor] = {
        name: DegenerateDenoiser(image, schedule) for name, image in others.items() if name in needs
    }
    z = x_star
    for step, z in descended(case, torch.zeros_like(x_star), roles, seed):  # noqa: B007
        yield Step(step)
    first = next(iter(descended(case, x_star, roles, seed)))[1]
    picture = (z + 1) / 2
    yield Result(
        {"picture": picture},
        {
            "psnr_db": psnr_db(picture, (x_star + 1) / 2),
            "gradient_at_x_star": float((first - x_star).norm() / case.learning_rate),
        },
    )


def points(count: int, seed: int) -> Tensor:
    """K equally likely points, [K, 1, 49], normal with the deviation 0.3."""
    key = NoiseKey(seed, 0, torch.arange(count), INITIALIZATION_STREAM)
    return SPREAD * philox_normal(key, (1, DIMENSIONS))


def _modes(case: ObjectiveCase, seed: int) -> Iterator[Step | Result]:
    """The share of a mode's distance from the mean that is left of 16 chains that start there."""
    shares, done = [], 0
    for count in case.counts:
        means = points(count, seed)
        model = MixtureDenoiser(means, NoiseSchedule.deepfloyd_if())
        away = means[0] - (means.mean(0) if count > 1 else 0)
        z = means[:1].repeat(16, 1, 1)
        for _, z in descended(case, z, {"conditional": model}, seed):  # noqa: B007, B020
            done += 1
            yield Step(done)
        kept = (z - means[0] + away).flatten(1) @ away.flatten() / away.square().sum()
        shares.append(float(kept.mean()))
    yield Result({}, {"counts": list(case.counts), "shares": shares})


def ring() -> MixtureDenoiser:
    """Eight narrow modes on a circle; those of the prompt (label 0) alternate with others."""
    angle = torch.arange(RING) * (2 * torch.pi / RING)
    means = 0.7 * torch.stack((angle.cos(), angle.sin()), 1)[:, None]  # [8, 1, 2]
    labels = torch.arange(RING) % 2
    return MixtureDenoiser(
        means, NoiseSchedule.deepfloyd_if(), deviation=RING_DEVIATION, labels=labels
    )


def _particles(case: ObjectiveCase, seed: int) -> Iterator[Step | Result]:
    """Where 64 particles end that start spread over the plane, and the paths of some."""
    model, count = ring(), 64
    rows = {"conditional": 0, "unconditional": model.unconditional, "negative": 1}
    roles: dict[str, Denoiser | Predictor] = {
        name: Predictor(model, Condition(prompt=torch.full((count,), row)))
        for name, row in rows.items()
    }
    key = NoiseKey(seed, 0, torch.arange(count), INITIALIZATION_STREAM)
    path = []
    if case.objective == "ode":
        noise = philox_normal(key, (1, 2))
        condition = Condition(prompt=torch.zeros(count, dtype=torch.int64))
        z = ddim_sample(model, noise, list(range(990, 0, -10)), condition)
        path.append(z)
    else:
        z = 2 * philox_uniform(key, 2).float().view(count, 1, 2) - 1
        path.append(z)
        for step, z in descended(case, z, roles, seed):  # noqa: B020
            if step % max(1, case.steps // 50) == 0:
                path.append(z)
            yield Step(step)
    ours = model.means[model.labels == 0].flatten(1)
    distance = torch.cdist(z.flatten(1), ours)
    covered = (distance.min(0).values < COVERED * RING_DEVIATION).float().mean()
    t = torch.zeros(count, dtype=torch.int64)
    log_density = model.posterior(z, t, Condition(prompt=torch.zeros_like(t)))[1]
    numbers: dict[str, Any] = {
        "distance": float(distance.min(1).values.mean()),
        "covered": float(covered),
        "within": float((distance.min(1).values < COVERED * RING_DEVIATION).float().mean()),
        "log_density": float(log_density.median()),
    }
    yield Result({"paths": torch.stack(path)}, numbers)


def _variance(case: ObjectiveCase, seed: int) -> Iterator[Step | Result]:
    """Variance of the gradient over ε at each of five t, and over t, relative to its square mean.

    z lies between two of 64 points, so that the posterior has something to choose.
    """
    means, draws = points(64, seed), case.steps
    model = MixtureDenoiser(means, NoiseSchedule.deepfloyd_if())
    z = (0.7 * means[:1] + 0.3 * means[1:2]).expand(draws, -1, -1)
    predictors = {"conditional": Predictor(model)}
    if "variational" in OBJECTIVES[case.objective].needs:
        # Four particles around z, of which it is one.
        others = z[:1] + 0.1 * philox_normal(NoiseKey(seed, 1, torch.arange(3)), (1, DIMENSIONS))
        phi = MixtureDenoiser(torch.cat((z[:1], others)), model.schedule)
        predictors["variational"] = Predictor(phi)
    averages, spreads = [], []
    for number, t in enumerate(LEVELS):
        key = NoiseKey(seed, number, torch.arange(draws))
        gradient = distillation_gradient(
            z, case.objective, predictors, t, key, guidance=1.0, weighting=case.weighting
        ).gradient.flatten(1).double()  # fmt: skip
        averages.append(gradient.mean(0))
        spreads.append(gradient.var(0).sum())
        yield Step(number + 1)
    mean = torch.stack(averages)
    size = mean.square().sum(1).mean()
    yield Result(
        {},
        {
            "over_noise": float(torch.stack(spreads).mean() / size),
            "over_t": float(mean.var(0).sum() / size),
            "size": float(size.sqrt()),
        },
    )


_PANELS = {
    "conformance": _conformance,
    "modes": _modes,
    "particles": _particles,
    "variance": _variance,
}
