"""The study of whole texture steps: ours, recorded, and plain eager ones, split into phases."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import SqrtAnnealedTimesteps
from sdslab.errors import UserError
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, philox_normal
from sdslab.runs.table import Page, Table
from sdslab.study.eager_texture_step import EagerStep
from sdslab.study.experiment import (
    Experiment,
    Finished,
    Given,
    Piece,
    Result,
    check_only,
    save_figure,
)
from sdslab.study.measuring import (
    PHASES,
    WHOLE,
    PhaseClock,
    clock_name,
    median_ratio,
    quantile_columns,
    quantiles_in,
    quantiles_of,
    refusal,
    spread,
)
from sdslab.study.texture_step_problem import (
    SEED,
    OurStep,
    StepCase,
    StepProblem,
    TextureStepSettings,
)
from sdslab.study.unet_configurations import parameter_count

WARM_UPS = 2
HIGHER = {torch.float16: torch.float32, torch.float32: torch.float64}
# Of the renderer, which is the same float32 code on both sides but sums in another order.
RENDERING_BUDGET = 1e-5
PHASE_LABELS = dict(
    zip(
        PHASES,
        ("render", "resize + condition", "UNet", "gradient + backward", "optimiser"),
        strict=True,
    )
)


@dataclass(frozen=True)
class TextureStepStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: TextureStepSettings
    steps: tuple[StepCase, ...]


@final
class TextureStepSpeeds(Experiment):
    """Times the steps that are meant for this device; without times where gradients differ."""

    study_class = TextureStepStudy
    packages = ("torch", "diffusers", "triton")
    truth = "θ's gradient must equal the eager step's"
    study: TextureStepStudy

    def __init__(
        self, study: TextureStepStudy, only: tuple[str, ...], device: torch.device
    ) -> None:
        here = [case for case in study.steps if case.device == device.type]
        check_only(only, [case.name for case in here], f" on a {device.type} device")
        if not here:
            raise UserError(
                f"the study has no rows for a {device.type} device; give another --device"
            )
        super().__init__(study, only, device)
        self.here = here

    def pieces(self) -> list[Piece]:
        return [
            Piece(case.name, case.name, partial(self._row, case), case, watched=False)
            for case in self.chosen(self.here)
        ]

    def _row(self, case: StepCase, _: Given) -> Iterator[Result]:
        row = measure_step(case, self.study.settings, self.device)
        yield Result({}, row | {"device": self.device_name, "threads": torch.get_num_threads()})

    def line(self, finished: Finished) -> str:
        row = finished.result.numbers
        if not row["accepted"]:
            return refusal(row)
        text = f"{spread(quantiles_in(row, 'ours_step'))} ms, {row['ratio']:.2f}× the eager speed"
        return f"{text}, recorded {row['recorded_ratio']:.2f}×"

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        return {
            done.piece.title: quantile_columns("ours", quantiles_in(done.rows[0], "ours_step"))
            for done in finished
            if done.rows[0]["accepted"]
        }

    def page(self, finished: list[Finished]) -> Page:
        """Three rows a step, with medians and, in brackets, the 20 % and 80 % quantiles."""
        head = (
            f"{self.device_name}, {clock_name(self.device)}; torch {torch.__version__}; preset "
            f"{self.study.preset}. Milliseconds: median (20–80 % quantile) over "
            f"{self.study.settings.repeats} steps, ours, recorded and eager in turn; the ratio to "
            "eager is the median of the pairs'. UNets have random weights. Rendering includes "
            "stage II's picture of stage I's material. Recorded is `--graph`: after visibility a "
            "step replays two CUDA graphs. On a CPU it takes the same way through their memory, "
            "with nothing recorded."
        )
        columns = (
            "step", "parameters", "size", "code", *PHASE_LABELS.values(), "step", "ratio",
            "outside the UNet",
        )  # fmt: skip
        rows = [cells for done in finished for cells in _cells(done.piece.about, done.rows[0])]
        parts: list[str | Table] = [head, Table(columns, rows)]
        left = [case.name for case in self.study.steps if case not in self.here]
        if left:
            parts.append(f"Not measured, for they need another device: {', '.join(left)}.")
        return Page(self.study.title, parts)

    def draw(self, finished: list[Finished], path: Path) -> None:
        """A bar for each implementation of each step, split into phases unless it is recorded."""
        bars = [
            (f"{done.piece.about.label}\n{done.piece.about.shape}, {name}", name, done.rows[0])
            for done in finished
            if done.rows[0]["accepted"]
            for name in ("ours", "recorded", "eager")
        ]
        height = 1.2 + 0.55 * max(1, len(bars))
        figure, ax = plt.subplots(figsize=(8.6, height), layout="constrained")
        tab10 = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
        colors = {**dict(zip(PHASES, tab10, strict=False)), WHOLE: "silver"}
        for place, (_, name, row) in enumerate(bars):
            left = 0.0
            for phase in (WHOLE,) if name == "recorded" else PHASES:
                median = row[f"{name}_{phase}_ms_q50"]
                label = PHASE_LABELS[phase] if place == 0 else None
                ax.barh(place, median, left=left, color=colors[phase], label=label)
                left += median
        ax.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=8)
        ax.invert_yaxis()
        ax.set(xlabel="ms a step (medians)", title=self.device_name)
        ax.grid(alpha=0.3, axis="x")
        if bars:
            figure.legend(loc="outside lower center", ncols=len(PHASES), fontsize=8)
        save_figure(figure, path)


def measure_step(
    case: StepCase, settings: TextureStepSettings, device: torch.device
) -> dict[str, Any]:
    """Compares the steps' first gradients, then times them in turn.

    Returns:
        A row's columns: ``disagreement`` of θ's gradient with the eager step's in the next higher
        precision, relative L2, the larger of the launched and the recorded step's; ``budget``
        twice the eager step's own, and the renderer's roundings; ``ratio`` and
        ``recorded_ratio``, medians over the repeats of eager / ours; without times where the
        disagreement exceeds the budget.
    """
    problem, clock = StepProblem.of(case, settings, device), PhaseClock(device)
    disagreement, budget = _errors(problem, clock)
    row: dict[str, Any] = {
        "row": case.name,
        "what": case.label,
        "stage": problem.stage,
        "unet": case.unet,
        "parameters": parameter_count(case.unet),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "views": case.views,
        "render_size": case.render_size,
        "texture_size": case.texture_size,
        "disagreement": disagreement,
        "budget": budget,
        "accepted": disagreement <= budget,
        "ratio": None,
        "recorded_ratio": None,
    }
    if not row["accepted"]:
        return row
    unet = copy.deepcopy(problem.unet)
    replayed = OurStep(problem, unet, clock, recorded=True)
    steps = {
        "ours": OurStep(problem, unet, clock),
        "recorded": replayed,
        "eager": EagerStep(problem, problem.unet, clock),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    number = 0
    while len(taken["ours"]) < settings.repeats:
        times, known = {}, set(replayed.lengths)
        for name, step in steps.items():
            clock.milliseconds()
            step()
            times[name] = clock.milliseconds()
        number += 1
        # A step at a new padded length is captured, which takes longer than many replays.
        if number > WARM_UPS and replayed.lengths == known:
            for name, phases in times.items():
                taken[name].append(phases)
    whole = {name: [sum(step.values()) for step in times] for name, times in taken.items()}
    row["ratio"] = median_ratio(whole["eager"], whole["ours"])
    row["recorded_ratio"] = median_ratio(whole["eager"], whole["recorded"])
    for name in ("recorded", "ours", "eager"):
        row |= quantile_columns(f"{name}_step", quantiles_of(whole[name]))
        if name == "recorded":
            continue
        phases = {phase: quantiles_of([step[phase] for step in taken[name]]) for phase in PHASES}
        for phase, quantiles in phases.items():
            row |= quantile_columns(f"{name}_{phase}", quantiles)
        median = {phase: quantiles[1] for phase, quantiles in phases.items()}
        row[f"{name}_outside_unet"] = 1 - median["unet"] / sum(median.values())
    return row


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
    """θ's first gradient under the noise and the timestep that ours draws from its key."""
    eager = EagerStep(problem, unet, clock, dtype)
    sample = torch.arange(problem.views, device=problem.device)
    keys = NoiseKey(SEED, 0, sample), NoiseKey(SEED, 0, sample, SR_CONDITION_STREAM)
    shape = (3, problem.size, problem.size)
    noises = [philox_normal(key, shape, device=problem.device) for key in keys]
    eager.compute_gradient(0, SqrtAnnealedTimesteps()(keys[0], 0.0, shared=True), *noises)
    assert eager.maps.grad is not None
    return eager.maps.grad


def _distance(gradient: Tensor, truth: Tensor) -> float:
    difference = (gradient.double() - truth.double()).norm() / truth.double().norm()
    return difference.item()


def _cells(case: StepCase, row: dict[str, Any]) -> Iterator[list[str]]:
    head = [case.label, f"{row['parameters'] / 1e6:.3g} M {row['dtype']}", case.shape]
    if not row["accepted"]:
        yield [*head, refusal(row), *[""] * (len(PHASES) + 3)]
        return
    for name in ("ours", "recorded", "eager"):
        cells, ratio = [*head, name], {"ours": "ratio", "recorded": "recorded_ratio"}.get(name)
        if name == "recorded":
            cells += [""] * len(PHASES)
        else:
            cells += [spread(quantiles_in(row, f"{name}_{phase}")) for phase in PHASES]
        cells += [spread(quantiles_in(row, f"{name}_step")), f"{row[ratio]:.2f}×" if ratio else ""]
        outside = row.get(f"{name}_outside_unet")
        yield [*cells, "" if outside is None else f"{outside:.0%}"]
