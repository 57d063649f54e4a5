"""What the texture-step study measures: that both steps agree, then what each costs."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import SqrtAnnealedTimesteps
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, philox_normal
from sdslab.machine import device_name
from sdslab.study.eager_texture_step import EagerStep
from sdslab.study.phase_clock import PHASES, PhaseClock
from sdslab.study.texture_step_problem import SEED, OurStep, StepProblem
from sdslab.study.texture_step_specification import StepCase, TextureStepSettings
from sdslab.study.timing import Quantiles, quantile_columns, quantiles_of
from sdslab.study.unet_configurations import parameter_count

WARM_UPS = 2
HIGHER = {torch.float16: torch.float32, torch.float32: torch.float64}
# Of the renderer, which is the same float32 code on both sides but sums in another order.
RENDERING_BUDGET = 1e-5


@dataclass(frozen=True)
class SplitTimes:
    """Milliseconds of a step and of its phases."""

    step: Quantiles
    phases: dict[str, Quantiles]

    @classmethod
    def of(cls, steps: list[dict[str, float]]) -> "SplitTimes":
        """From the phases' times of several steps."""
        phases = {phase: quantiles_of([step[phase] for step in steps]) for phase in PHASES}
        return cls(quantiles_of([sum(step.values()) for step in steps]), phases)

    @property
    def share_outside_unet(self) -> float:
        """Of the median phases."""
        total = sum(times[1] for times in self.phases.values())
        return 1 - self.phases["unet"][1] / total


@dataclass(frozen=True)
class StepRow:
    """A step, ours and plain eager; without times where the gradients differ."""

    case: StepCase
    stage: int
    parameters: int
    dtype: str
    disagreement: float
    """Of θ's gradient with the eager step's in the next higher precision, relative L2; the larger
    of the launched and the recorded step's."""
    budget: float
    """Twice the eager step's own, and the renderer's roundings."""
    ours: SplitTimes | None = None
    eager: SplitTimes | None = None
    ratio: float | None = None
    """Median over the repeats of eager / ours, which are timed in turn."""
    recorded: Quantiles | None = None
    """Milliseconds of our step where it is recorded."""
    recorded_ratio: float | None = None
    """Median of eager / recorded."""

    @property
    def accepted(self) -> bool:
        """Whether the gradient is right: no speed is reported of a wrong one."""
        return self.disagreement <= self.budget


def measure_step(case: StepCase, settings: TextureStepSettings, device: torch.device) -> StepRow:
    """Compares the steps' first gradients, then times them in turn."""
    problem = StepProblem.of(case, settings, device)
    clock = PhaseClock(device)
    disagreement, budget = _errors(problem, clock)
    row = StepRow(
        case,
        problem.stage,
        parameter_count(case.unet),
        str(problem.dtype).removeprefix("torch."),
        disagreement,
        budget,
    )
    if not row.accepted:
        return row
    unet = copy.deepcopy(problem.unet)
    steps = (
        OurStep(problem, unet, clock),
        OurStep(problem, unet, clock, recorded=True),
        EagerStep(problem, problem.unet, clock),
    )
    taken: tuple[list[dict[str, float]], ...] = ([], [], [])
    for _ in range(WARM_UPS + settings.repeats):
        for step, times in zip(steps, taken, strict=True):
            clock.milliseconds()
            step()
            times.append(clock.milliseconds())
    ours, recorded, eager = (times[WARM_UPS:] for times in taken)
    whole = [[sum(step.values()) for step in times] for times in (ours, recorded, eager)]
    return replace(
        row,
        ours=SplitTimes.of(ours),
        eager=SplitTimes.of(eager),
        ratio=_median_ratio(whole[2], whole[0]),
        recorded=quantiles_of(whole[1]),
        recorded_ratio=_median_ratio(whole[2], whole[1]),
    )


def _median_ratio(theirs: list[float], mine: list[float]) -> float:
    return float(np.median(np.array(theirs) / np.array(mine)))


def _errors(problem: StepProblem, clock: PhaseClock) -> tuple[float, float]:
    """Ours against the eager step in the next higher precision, and what is allowed."""
    unet, gradients = copy.deepcopy(problem.unet), []
    for recorded in (False, True):
        ours = OurStep(problem, unet, clock, recorded=recorded)
        ours()
        gradients.append(ours.theta.texels.grad)
    del ours, unet
    own = _eager_gradient(problem, problem.unet, clock, torch.float32)
    higher = HIGHER[problem.dtype]
    unet = torch.nn.Module.to(copy.deepcopy(problem.unet), higher)
    truth = _eager_gradient(problem, unet, clock, higher)
    disagreement = max(_distance(gradient, truth) for gradient in gradients)
    return disagreement, 2 * _distance(own, truth) + RENDERING_BUDGET


def _eager_gradient(
    problem: StepProblem, unet: Any, clock: PhaseClock, dtype: torch.dtype
) -> Tensor:
    """Θ's first gradient under the noise and the timestep that ours draws from its key."""
    eager = EagerStep(problem, unet, clock, dtype)
    sample = torch.arange(problem.views, device=problem.device)
    key = NoiseKey(SEED, 0, sample)
    shape = (3, problem.size, problem.size)
    t = SqrtAnnealedTimesteps()(key, 0.0, shared=True)
    condition_key = NoiseKey(SEED, 0, sample, SR_CONDITION_STREAM)
    eager.compute_gradient(
        0,
        t,
        philox_normal(key, shape, device=problem.device),
        philox_normal(condition_key, shape, device=problem.device),
    )
    assert eager.maps.grad is not None
    return eager.maps.grad


def _distance(gradient: Tensor, truth: Tensor) -> float:
    difference = (gradient.double() - truth.double()).norm() / truth.double().norm()
    return difference.item()


def numbers_of(row: StepRow, device: torch.device) -> dict[str, Any]:
    """A row as columns of a table."""
    case = row.case
    numbers: dict[str, Any] = {
        "row": case.name,
        "what": case.label,
        "stage": row.stage,
        "unet": case.unet,
        "parameters": row.parameters,
        "dtype": row.dtype,
        "views": case.views,
        "render_size": case.render_size,
        "texture_size": case.texture_size,
        "disagreement": row.disagreement,
        "budget": row.budget,
        "accepted": row.accepted,
        "ratio": row.ratio,
        "recorded_ratio": row.recorded_ratio,
    }
    if row.recorded is not None:
        numbers |= quantile_columns("recorded_step", row.recorded)
    for name in ("ours", "eager"):
        times: SplitTimes | None = getattr(row, name)
        if times is None:
            continue
        numbers |= quantile_columns(f"{name}_step", times.step)
        for phase, quantiles in times.phases.items():
            numbers |= quantile_columns(f"{name}_{phase}", quantiles)
        numbers[f"{name}_outside_unet"] = times.share_outside_unet
    return numbers | {"device": device_name(device), "threads": torch.get_num_threads()}
