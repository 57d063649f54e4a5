"""Runs the texture-step study and writes its table, picture and numbers."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from sdslab.errors import UserError
from sdslab.machine import device_name, keep_freed_memory, resolve_device
from sdslab.study.measured_table import MeasuredTable
from sdslab.study.phase_clock import PHASES, WHOLE
from sdslab.study.plots import close_figure, save_figure
from sdslab.study.specification import check_only
from sdslab.study.study_run import study_run
from sdslab.study.texture_step_benchmark import StepRow, measure_step, numbers_of
from sdslab.study.texture_step_specification import StepCase, TextureStepStudy
from sdslab.study.timing import Quantiles, clock_name, quantile_columns, spread

PHASE_LABELS = dict(
    zip(
        PHASES,
        ("render", "resize + condition", "UNet", "gradient + backward", "optimiser"),
        strict=True,
    )
)


def run_texture_step_study(study: TextureStepStudy, only: tuple[str, ...] = ()) -> None:
    """Runs the rows for this device (or those named) and writes ``NAME.{csv,md,json,png}``.

    Raises:
        UserError: something cannot run here, or a gradient was wrong; such rows are written too,
            but have no times.
    """
    device = resolve_device(study.settings.device)
    cases = _cases(study, only, device)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: it is what half is judged by
    keep_freed_memory()
    with study_run(study, "texture_step", device, only=only) as record:
        _run_cases(study, cases, device, record)


def _run_cases(
    study: TextureStepStudy,
    cases: list[StepCase],
    device: torch.device,
    record: dict[str, Any],
) -> None:
    table = MeasuredTable(
        study.name, Path(study.settings.out), record, ("torch", "diffusers", "triton")
    )
    rows: list[StepRow] = []
    for case in cases:
        row = measure_step(case, study.settings, device)
        rows.append(row)
        if row.ours is not None:
            record["metrics"][row.case.name] = quantile_columns("ours", row.ours.step)
        table.add(numbers_of(row, device), _line_of(row))
    table.finish(_markdown(study, rows, device), lambda path: _save_plot(rows, device, path))
    wrong = [row.case.name for row in rows if not row.accepted]
    if wrong:
        raise UserError(
            f"θ's gradient must equal the eager step's, got a larger difference in "
            f"{', '.join(wrong)}; no speed is reported of a wrong result"
        )


def _cases(study: TextureStepStudy, only: tuple[str, ...], device: torch.device) -> list[StepCase]:
    here = [case for case in study.steps if case.device == device.type]
    names = [case.name for case in here]
    check_only(only, names, f" on a {device.type} device")
    if not here:
        raise UserError(f"the study has no rows for a {device.type} device; give another --device")
    return [case for case in here if not only or case.name in only]


def _line_of(row: StepRow) -> str:
    if row.ours is None:
        return f"{row.case.name}: refused, {_refusal(row)}"
    text = f"{row.case.name}: {spread(row.ours.step)} ms, {row.ratio:.2f}× the eager speed"
    return f"{text}, recorded {row.recorded_ratio:.2f}×"


def _refusal(row: StepRow) -> str:
    return f"difference {row.disagreement:.2g} exceeds {row.budget:.2g}"


def _markdown(study: TextureStepStudy, rows: list[StepRow], device: torch.device) -> str:
    """Three rows a step, with medians and, in brackets, the 20 % and 80 % quantiles."""
    lines = [
        f"# {study.title}",
        "",
        f"{device_name(device)}, {clock_name(device)}; torch {torch.__version__}; "
        f"preset {study.preset}. Milliseconds: median (20–80 % quantile) over "
        f"{study.settings.repeats} steps, ours, recorded and eager in turn; the ratio to eager is "
        "the median of the pairs'. UNets have random weights. Rendering includes stage II's "
        "picture of stage I's material. Recorded is `--graph`: after visibility a step replays two "
        "CUDA graphs. On a CPU it takes the same way through their memory, with nothing recorded.",
        "",
        "| step | parameters | size | code | "
        + " | ".join(PHASE_LABELS.values())
        + " | step | ratio | outside the UNet |",
        "|" + " --- |" * (7 + len(PHASES)),
    ]
    for row in rows:
        case = row.case
        head = [case.label, f"{row.parameters / 1e6:.3g} M {row.dtype}", case.shape]
        if row.ours is None or row.eager is None or row.recorded is None:
            cells = [*head, f"refused: {_refusal(row)}", *[""] * (len(PHASES) + 3)]
            lines.append("| " + " | ".join(cells) + " |")
            continue
        for name, times in (("ours", row.ours), ("eager", row.eager)):
            cells = [*head, name, *(spread(times.phases[phase]) for phase in PHASES)]
            ratio = f"{row.ratio:.2f}×" if name == "ours" else ""
            cells += [spread(times.step), ratio, f"{times.share_outside_unet:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
            if name == "ours":
                cells = [*head, "recorded", *[""] * len(PHASES), spread(row.recorded)]
                cells += [f"{row.recorded_ratio:.2f}×", ""]
                lines.append("| " + " | ".join(cells) + " |")
    left = [case.name for case in study.steps if case.device != device.type]
    if left:
        lines += ["", f"Not measured, for they need another device: {', '.join(left)}."]
    return "\n".join(lines) + "\n"


def _save_plot(rows: list[StepRow], device: torch.device, path: Path) -> None:
    """A bar for each implementation of each step, split into phases but where it is recorded."""
    bars: list[tuple[str, dict[str, Quantiles]]] = []
    for row in rows:
        if row.ours is None or row.eager is None or row.recorded is None:
            continue
        for name, phases in (
            ("ours", row.ours.phases),
            ("recorded", {WHOLE: row.recorded}),
            ("eager", row.eager.phases),
        ):
            bars.append((f"{row.case.label}\n{row.case.shape}, {name}", phases))
    figure, ax = plt.subplots(figsize=(8.6, 1.2 + 0.55 * max(1, len(bars))), layout="constrained")
    tab10 = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    colors = {**dict(zip(PHASES, tab10, strict=False)), WHOLE: "silver"}
    for place, (_, phases) in enumerate(bars):
        left = 0.0
        for phase, (_, median, _) in phases.items():
            label = PHASE_LABELS[phase] if place == 0 else None
            ax.barh(place, median, left=left, color=colors[phase], label=label)
            left += median
    ax.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="ms a step (medians)", title=device_name(device))
    ax.grid(alpha=0.3, axis="x")
    if bars:
        figure.legend(loc="outside lower center", ncols=len(PHASES), fontsize=8)
    save_figure(figure, path)
    close_figure(figure)
