"""The study of score-distillation objectives: each against exact scores."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, final

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from sdslab.distillation.objectives import OBJECTIVES
from sdslab.errors import UserError
from sdslab.files.disk_cache import content_hash
from sdslab.runs.from_toml import Seeds
from sdslab.runs.table import Page, Table
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, Step, save_figure
from sdslab.study.objective_measures import LEVELS, RING_DEVIATION, ObjectiveCase, ring, work

PATHS_IN_A_ROW = 4
PRESENTATION = ("name", "label", "why")  # no number depends on them
# What each panel's table shows of a case: heading, number, format.
COLUMNS = {
    "conformance": (
        ("PSNR, dB", "psnr_db", "{:.1f}"),
        ("gradient at x*", "gradient_at_x_star", "{:.2g}"),
    ),
    "particles": (
        ("distance to a mode", "distance", "{:.3f}"),
        ("modes covered", "covered", "{:.0%}"),
        ("within 3 σ of one", "within", "{:.0%}"),
        ("log density", "log_density", "{:.1f}"),
    ),
    "variance": (("over ε", "over_noise", "{:.3f}"), ("over t", "over_t", "{:.3f}")),
}
NOTES = {
    "conformance": "With Eq. 3 as the model (astronaut at 32²; the unconditional model knows a "
    "grey picture, the negative one a black one; φ is the exact model of z), from grey, s = 1.",
    "modes": "The share of a mode's distance from the mean that is left of 16 chains that start "
    "there: K equally likely points in 49 dimensions.",
    "particles": "64 particles on eight narrow modes in the plane, of which every other is the "
    "prompt's; φ is the exact model of the particles.",
    "variance": f"Variance of the gradient at one z, relative to the square of its mean: over ε "
    f"at t = {', '.join(map(str, LEVELS))}, and of the mean over these t.",
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """What every case shares."""

    seeds: Annotated[tuple[int, ...], Seeds(64)] = (0,)
    """Seeds of the noise, of t and of the starting points."""
    device: str = "cpu"
    """The measures are small: the CPU."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class ObjectiveStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: ObjectiveSettings
    cases: tuple[ObjectiveCase, ...]


@final
class Objectives(Experiment):
    """Measures every case from every seed."""

    study_class = ObjectiveStudy
    options = ("seeds", "steps")
    sources = (
        "denoisers", "distillation", "kernels", "pictures", "study/objective_measures.py",
    )  # fmt: skip
    store = "measures"
    study: ObjectiveStudy

    def __init__(self, study: ObjectiveStudy, only: tuple[str, ...], device: torch.device) -> None:
        if device.type != "cpu":
            raise UserError(
                f"the study of objectives computes on the CPU, got device {device}; leave it out"
            )
        super().__init__(study, only, device)

    @staticmethod
    def finish_study(study: ObjectiveStudy, where: str, load: Any) -> ObjectiveStudy:
        """Refuses cases that make no sense."""
        del load
        for case in study.cases:
            place, valid = f"{where}: cases.{case.name}", [*OBJECTIVES]
            if case.panel == "particles":
                valid.append("ode")
            if case.objective not in valid:
                raise UserError(
                    f"{place}: objective must be one of {', '.join(valid)}, got {case.objective!r}"
                )
            if (case.panel == "modes") != bool(case.counts) or min(case.counts, default=1) < 1:
                raise UserError(
                    f"{place}: counts must be given for modes, from 1 up, and only so, got "
                    f"{list(case.counts)}"
                )
            low, high = case.timesteps or (20, 980)
            if not 0 <= low < high <= 1000:
                raise UserError(
                    f"{place}: timesteps must be two numbers from 0 to 1000, the lower one first, "
                    f"got {low} and {high}"
                )
            needs = OBJECTIVES[case.objective].needs if case.objective in OBJECTIVES else ()
            if case.panel in ("modes", "variance") and not set(needs) <= {
                "conditional", "variational",
            }:  # fmt: skip
                raise UserError(
                    f"{place}: {case.panel} has one model, and {case.objective} needs "
                    f"{', '.join(needs)}"
                )
        return study

    @staticmethod
    def with_steps(study: ObjectiveStudy, steps: int) -> ObjectiveStudy:
        """The study whose every case takes so many steps."""
        cases = tuple(replace(case, steps=steps) for case in study.cases)
        return replace(study, cases=cases)

    def pieces(self) -> list[Piece]:
        return [
            Piece(
                f"{case.name} seed {seed}",
                case.name,
                partial(self._work, case, seed),
                case,
                steps=case.steps * max(1, len(case.counts)) if case.panel != "variance" else None,
                stem=f"{case.name}-{seed}",
                key=content_hash(
                    {k: v for k, v in asdict(case).items() if k not in PRESENTATION},
                    seed,
                    self.device_name,
                )[:16],
            )
            for seed in self.study.settings.seeds
            for case in self.chosen(self.study.cases)
        ]

    @staticmethod
    def _work(case: ObjectiveCase, seed: int, given: Given) -> Iterator[Step | Result]:
        del given
        for update in work(case, seed):
            if isinstance(update, Result):
                yield Result(update.tensors, update.numbers | {"seed": seed})
            else:
                yield update

    def rows(self, piece: Piece, result: Result) -> list[dict[str, Any]]:
        case, numbers = piece.about, dict(result.numbers)
        head = {
            "case": case.name, "panel": case.panel, "objective": case.objective,
            "guidance": case.guidance, "seed": numbers.pop("seed"),
        }  # fmt: skip
        counts, shares = numbers.pop("counts", [None]), numbers.pop("shares", [None])
        return [
            head | numbers | ({} if count is None else {"K": count, "share": share})
            for count, share in zip(counts, shares, strict=True)
        ]

    def line(self, finished: Finished) -> str:
        row = finished.rows[0]
        panel = finished.piece.about.panel
        if panel == "modes":
            return "left " + ", ".join(f"{r['share']:.2f} of {r['K']}" for r in finished.rows)
        return ", ".join(f"{text} {form.format(row[key])}" for text, key, form in COLUMNS[panel])

    def page(self, finished: list[Finished]) -> Page:
        parts: list[str | Table] = [f"{self.device_name}, preset {self.study.preset}."]
        for panel, note in NOTES.items():
            cases = _by_case(finished, panel)
            if cases:
                parts += [f"## {panel}", note, _table(panel, cases)]
        return Page(self.study.title, parts)

    def draw(self, finished: list[Finished], path: Path) -> None:
        shown = [panel for panel in NOTES if _by_case(finished, panel)]
        first = [done for done in finished if done.rows[0]["seed"] == self.study.settings.seeds[0]]
        paths = _by_case(first, "particles")
        lines = -(-len(paths) // PATHS_IN_A_ROW)
        heights = [2.8 * lines if panel == "particles" else 3.2 for panel in shown]
        figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
        rows = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, row in zip(shown, rows, strict=True):
            row.suptitle(panel, x=0.01, ha="left", weight="bold")
            if panel != "particles":
                _DRAWINGS[panel](row.subplots(), _by_case(finished, panel))
                continue
            axes = row.subplots(lines, min(PATHS_IN_A_ROW, len(paths)), squeeze=False).flatten()
            for ax in axes:
                ax.axis("off")
            for ax, (case, (done, *_)) in zip(axes, paths, strict=False):
                _draw_paths(ax, case, done.result.tensors["paths"])
        save_figure(figure, path)


def _by_case(finished: list[Finished], panel: str) -> list[tuple[ObjectiveCase, list[Finished]]]:
    cases: dict[ObjectiveCase, list[Finished]] = {}
    for done in finished:
        if done.piece.about.panel == panel:
            cases.setdefault(done.piece.about, []).append(done)
    return list(cases.items())


def _table(panel: str, cases: list[tuple[ObjectiveCase, list[Finished]]]) -> Table:
    if panel == "modes":
        counts = sorted({row["K"] for _, group in cases for done in group for row in done.rows})
        rows = []
        for case, group in cases:
            found = {k: np.mean([r["share"] for d in group for r in d.rows if r["K"] == k])
                     for k in case.counts}  # fmt: skip
            cells = [f"{found[k]:.2f}" if k in found else "" for k in counts]
            rows.append([case.label, *cells])
        return Table(["objective", *(f"K = {k}" for k in counts)], rows)
    extra = panel == "conformance"
    columns = ["objective", *(text for text, _, _ in COLUMNS[panel])]
    rows = [
        [
            case.label,
            *(
                form.format(float(np.mean([done.rows[0][key] for done in group])))
                for _, key, form in COLUMNS[panel]
            ),
            *(["yes" if case.must else "no", case.why] if extra else []),
        ]
        for case, group in cases
    ]
    return Table([*columns, *(["must end at x*", "because"] if extra else [])], rows)


def _draw_conformance(ax: Axes, cases: list[tuple[ObjectiveCase, list[Finished]]]) -> None:
    heights = [float(np.mean([d.rows[0]["psnr_db"] for d in group])) for _, group in cases]
    colours = ["tab:green" if case.must else "tab:grey" for case, _ in cases]
    ax.bar([case.label for case, _ in cases], heights, color=colours)
    ax.set_ylabel("PSNR to x*, dB")
    ax.tick_params(axis="x", rotation=30)
    ax.set_title("green: must end at x*", fontsize=9)


def _draw_modes(ax: Axes, cases: list[tuple[ObjectiveCase, list[Finished]]]) -> None:
    for case, group in cases:
        shares = np.mean([[row["share"] for row in done.rows] for done in group], axis=0)
        ax.plot(case.counts, shares, marker="o", label=case.label)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("K, equally likely modes")
    ax.set_ylabel("share of the mode that is left")
    ax.axhline(0, color="black", linewidth=0.5)
    ax.legend(fontsize=7)


def _draw_variance(ax: Axes, cases: list[tuple[ObjectiveCase, list[Finished]]]) -> None:
    place = np.arange(len(cases))
    for offset, key, label in ((-0.2, "over_noise", "over ε"), (0.2, "over_t", "over t")):
        heights = [float(np.mean([d.rows[0][key] for d in group])) for _, group in cases]
        ax.bar(place + offset, heights, 0.4, label=label)
    ax.set_xticks(place, [case.label for case, _ in cases])
    ax.set_ylabel("variance / squared mean")
    ax.legend()


def _draw_paths(ax: Axes, case: ObjectiveCase, paths: torch.Tensor) -> None:
    """Paths over the density of the prompt's modes; the other modes are crosses."""
    ax.axis("on")
    model = ring()
    line = torch.linspace(-1.2, 1.2, 120)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
    ours, others = (model.means[model.labels == label].flatten(1) for label in (0, 1))
    density = (-torch.cdist(grid, ours).square() / (2 * (2 * RING_DEVIATION) ** 2)).exp().sum(1)
    ax.contourf(line, line, density.view(120, 120), levels=8, cmap="Greens")
    ax.plot(*others.T, "x", color="tab:red", markersize=4)
    for path in paths[:, ::2, 0].movedim(0, 1):
        ax.plot(*path.T, color="tab:blue", linewidth=0.4, alpha=0.6)
    ax.plot(*paths[-1, :, 0].T, ".", color="black", markersize=3)
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal")
    ax.set_title(case.label, fontsize=8)


_DRAWINGS = {
    "conformance": _draw_conformance, "modes": _draw_modes, "variance": _draw_variance,
}  # fmt: skip
