"""What the speed study of Figure 2 measures: that both steps agree, what each costs, and where."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdslab.diffusion_space import DiffusionSpace, LatentSpace
from sdslab.machine import device_name
from sdslab.optimization.optimize import Step, optimize
from sdslab.optimization.optimize_config import OptimizeConfig
from sdslab.parameterizations.latent import LatentGrid
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.study.figure2_speed_specification import Figure2SpeedSettings, TimedCell
from sdslab.study.reconstruct import (
    Problem,
    exact_gradient_of,
    gradient_of,
    initial_theta,
    timesteps_of,
)
from sdslab.study.specification import Cell
from sdslab.study.straightforward_cell import StraightforwardCell
from sdslab.study.timing import Quantiles, quantile_columns, quantiles_of, seconds_now

WARM_UPS = 2
SEED = 0
BURST = 20  # recorded steps between two looks at the clock: a launch takes less than a look
CHECKED_STEPS = 3
# Where rounding moves an activation across its kink, the error of either step is a hundred times
# larger: a gradient is wrong that is wrong from each of so many initial θ.
TRIES = 6
SHARES: tuple[str, ...] = ("convolution", "normalisation", "optimiser", "other")
"""Kinds of operators, by the names in torch's profile; products of matrices are convolutions."""


@dataclass(frozen=True)
class SpeedRow:
    """A cell's step, ours and straightforward; without times where the gradients differ."""

    timed: TimedCell
    disagreement: float
    """Of θ's first gradient with the straightforward one in float64, relative L2.

    Of a recorded cell, of θ itself with the loop's after a few steps where that is more.
    """
    budget: float
    """Four times the straightforward one's own in float32, and the bound of a sum over a picture.

    Torch's batch statistics are summed in float32 where the channels are last in memory.
    """
    ours_ms: Quantiles | None = None
    straightforward_ms: Quantiles | None = None
    ratio: float | None = None
    """Median over the repeats of straightforward / ours, which are timed in turn."""
    shares: dict[str, float] | None = None
    """Of our step's operators' own time, by `SHARES`."""
    gflop: float | None = None
    """Of our step's convolutions and products."""
    matmul_gflop_per_s: float | None = None
    """Of float32 matrices, timed in turn with the steps."""

    @property
    def accepted(self) -> bool:
        """Whether the gradient is right: no speed is reported of a wrong one."""
        return self.disagreement <= self.budget

    @property
    def convolution_gflop_per_s(self) -> float | None:
        """What our convolutions reach while they run."""
        if self.shares is None or self.ours_ms is None or not self.gflop:
            return None
        return self.gflop / (self.shares["convolution"] * self.ours_ms[1] / 1000)


def measure_cell(timed: TimedCell, problem: Problem, settings: Figure2SpeedSettings) -> SpeedRow:
    """Compares the two steps' first gradients, then times both in turn, and profiles ours."""
    cell, burst = timed.cell, BURST if timed.recorded else 1
    disagreement, budget = _errors(cell, problem)
    for seed in range(SEED + 1, SEED + TRIES):
        if disagreement <= budget:
            break
        disagreement, budget = _errors(cell, problem, seed)
    if timed.recorded:
        disagreement = max(disagreement, _recording_error(cell, problem))
    row = SpeedRow(timed, disagreement, budget)
    if not row.accepted:
        return row
    steps = burst * (2 * (WARM_UPS + settings.repeats) + 2)
    steady = _with_steps(cell, steps)
    # The study's loop, without the PSNRs that it records at 60 of a cell's steps.
    step = functools.partial(next, (_recorded if timed.recorded else _loop)(steady, problem)[0])
    straightforward = StraightforwardCell(steady, problem, SEED)
    side = settings.matmul_size
    matrix = torch.rand(side, side, device=problem.image.device)
    calls = (step, straightforward, lambda: matrix @ matrix)
    times = np.array(
        [
            [_milliseconds(call, matrix.device, burst) for call in calls]
            for _ in range(WARM_UPS + settings.repeats)
        ]
    )[WARM_UPS:]
    ours, theirs, product = times.T
    with FlopCounterMode(display=False) as counter:
        step()
    return dataclasses.replace(
        row,
        ours_ms=quantiles_of(ours),
        straightforward_ms=quantiles_of(theirs),
        ratio=float(np.median(theirs / ours)),
        shares=_shares(step, settings.repeats),
        gflop=counter.get_total_flops() / 1e9,
        matmul_gflop_per_s=2 * side**3 / float(np.median(product)) / 1e6,
    )


def _with_steps(cell: Cell, steps: int) -> Cell:
    optimization = dataclasses.replace(cell.optimization, steps=steps)
    return dataclasses.replace(cell, optimization=optimization)


def _loop(cell: Cell, problem: Problem) -> tuple[Iterator[Step], Parameterization]:
    theta, space = initial_theta(cell, problem, SEED), problem.space(cell)
    config = OptimizeConfig(**dataclasses.asdict(cell.optimization))
    gradient = gradient_of(cell, space.encode(problem.image).detach(), SEED, config.steps)
    steps = optimize(theta.parameters(), lambda _: _diffused(theta, space), gradient, config)
    return steps, theta


def _recorded(cell: Cell, problem: Problem) -> tuple[Iterator[Step], Parameterization]:
    theta, space = initial_theta(cell, problem, SEED), problem.space(cell)
    config = OptimizeConfig(**dataclasses.asdict(cell.optimization))
    z_star = space.encode(problem.image).detach()
    timesteps = timesteps_of(z_star, SEED, config.steps).to(z_star.device)
    t = timesteps[0].clone()
    steps = optimize(
        theta.parameters(),
        lambda _: _diffused(theta, space),
        exact_gradient_of(cell, z_star),
        config,
        inputs=lambda index: t.copy_(timesteps[index]),
        record=True,
    )
    return steps, theta


def _recording_error(cell: Cell, problem: Problem) -> float:
    """Of θ after a few recorded steps, against the loop's, relative L2."""
    few = _with_steps(cell, CHECKED_STEPS)
    steps, expected = _loop(few, problem)
    for _ in steps:
        pass
    recorded_steps, theta = _recorded(few, problem)
    for _ in recorded_steps:
        pass
    ours, theirs = (
        torch.cat([parameter.detach().flatten() for parameter in of.parameters()]).double()
        for of in (theta, expected)
    )
    return ((ours - theirs).norm() / theirs.norm()).item()


def _diffused(theta: Parameterization, space: DiffusionSpace) -> Tensor:
    return theta.latents if isinstance(theta, LatentGrid) else space.encode(theta())


def _milliseconds(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Of one of as many calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = seconds_now()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (seconds_now() - start) * 1000 / times


def _errors(cell: Cell, problem: Problem, seed: int = SEED) -> tuple[float, float]:
    """Ours against the straightforward step in float64, and what is allowed."""
    theta = initial_theta(cell, problem, seed)
    space = problem.space(cell)
    z, z_star = _diffused(theta, space), space.encode(problem.image).detach()
    z.backward(gradient_of(cell, z_star, seed, cell.optimization.steps)(z.detach(), 0).gradient)
    own = StraightforwardCell(cell, problem, seed)
    own.compute_gradient()
    truth = StraightforwardCell(cell, in_float64(problem), seed)
    # The same θ, which float32 has rounded.
    for exact, rounded in zip(truth.theta.parameters(), own.theta.parameters(), strict=True):
        exact.data.copy_(rounded.data)
    truth.compute_gradient()
    height, width = problem.image.shape[-2:]
    summed = height * width * torch.finfo(torch.float32).eps / 2
    budget = 4 * _distance(own.theta, truth.theta) + summed
    return _distance(theta, truth.theta), budget


def in_float64(problem: Problem) -> Problem:
    """The same problem, computed in double precision."""
    vae = None
    if problem.vae is not None:
        vae = LatentSpace(torch.nn.Module.to(copy.deepcopy(problem.vae.vae), torch.float64))
    return Problem.of(problem.image_name, problem.image.double(), vae)


def _distance(theta: Parameterization, truth: Parameterization) -> float:
    """Of all gradients together, relative L2."""
    ours, theirs = (_gradient(of).double() for of in (theta, truth))
    return ((ours - theirs).norm() / theirs.norm()).item()


def _gradient(theta: Parameterization) -> Tensor:
    gradients = [parameter.grad for parameter in theta.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def _shares(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """How the operators' own time is divided, from torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            step()
    total = dict.fromkeys(SHARES, 0.0)
    for event in profile.key_averages():
        on_device = event.self_device_time_total if on_gpu else 0.0
        total[_kind(event.key)] += on_device or event.self_cpu_time_total
    whole = sum(total.values())
    return {kind: value / whole for kind, value in total.items()}


def _kind(operator: str) -> str:
    name = operator.lower()
    if "conv" in name or name.removeprefix("aten::") in ("mm", "addmm", "bmm", "baddbmm"):
        return "convolution"
    if any(kind in name for kind in ("batch_norm", "group_norm", "layer_norm")):
        return "normalisation"
    return "optimiser" if "adam" in name or "sgd" in name else "other"


def numbers_of(row: SpeedRow, device: torch.device) -> dict[str, Any]:
    """A row as columns of a table."""
    cell = row.timed.cell
    numbers: dict[str, Any] = {
        "row": row.timed.name,
        "diffusion": cell.diffusion,
        "parameterization": cell.parameterization,
        "recorded": row.timed.recorded,
        "size": row.timed.size,
        "disagreement": row.disagreement,
        "budget": row.budget,
        "accepted": row.accepted,
        "ratio": row.ratio,
    }
    if row.ours_ms is not None and row.straightforward_ms is not None:
        numbers |= quantile_columns("ours", row.ours_ms)
        numbers |= quantile_columns("straightforward", row.straightforward_ms)
    numbers |= {f"{kind}_share": share for kind, share in (row.shares or {}).items()}
    return numbers | {
        "gflop": row.gflop,
        "convolution_gflop_per_s": row.convolution_gflop_per_s,
        "matmul_gflop_per_s": row.matmul_gflop_per_s,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
