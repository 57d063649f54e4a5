"""One stage of optimisation as a user sees it: a bar, the log of its steps, previews, Ctrl-C."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdslab.errors import UserError
from sdslab.files.atomic_write import atomic_write
from sdslab.machine import out_of_memory_message
from sdslab.optimization.material_optimization import MaterialProblem, optimize_material
from sdslab.optimization.optimize import Step
from sdslab.optimization.optimizer_state import OptimizerState
from sdslab.rendering.preview import contact_sheet
from sdslab.shell.process import interrupts_held
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.texture.arguments import GuidanceName
from sdslab.texture.workspace import Workspace

PREVIEWS = 4  # of a stage
PREVIEW_SIZE = 256  # pixels, of a view
COLUMNS = ("stage", "step", "loss", "gradient_norm", "nonfinite", "seconds")


@dataclass(frozen=True, eq=False)
class Stage:
    """A material to optimise under a name.

    Attributes:
        name: in file names and in ``metrics.csv``.
        problem: what is moved, seen how, led by what.
        carried: tensors that its checkpoints hold besides its own.
        record: replay the steps as CUDA graphs.
        note: of a step, for the progress bar.
    """

    name: str
    problem: MaterialProblem
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    record: bool = False
    note: Callable[[Step], str] = lambda step: f"loss {step.loss:.4g}, |g| {step.gradient_norm:.3g}"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    Attributes:
        steps: that were taken.
        skipped: steps of which the model's output was not finite.
        seconds: of all processes that ran it.
        interrupt: Ctrl-C or SIGTERM, where one ended it early.
    """

    steps: int
    skipped: int
    seconds: float
    interrupt: KeyboardInterrupt | None


def run_stage(stage: Stage, workspace: Workspace, progress: ProgressLines) -> Outcome:
    """Runs a stage to its end, or to Ctrl-C.

    Raises:
        UserError: the optimisation diverged, or memory ran out (the state is saved then).
    """
    output, resumed, live = workspace.arguments.output, workspace.resumed, workspace.live
    problem, total = stage.problem, stage.problem.config.optimization.steps
    state = OptimizerState(memory=problem.memory)
    if resumed is not None and resumed.state["stage"] == stage.name and "loop" in resumed.state:
        state = OptimizerState(resumed.tensors, resumed.state["loop"], problem.memory)
        problem.seen.marks.copy_(resumed.tensors["seen"])
        tell(f"{stage.name}: goes on from step {state.index} of {total}")

    def maps() -> Tensor:
        return problem.maps().cpu()

    def save() -> None:
        tensors, loop = state.snapshot()
        workspace.checkpoints.save(
            {**tensors, **stage.carried, "seen": problem.seen.marks},
            {"stage": stage.name, "loop": loop},
        )

    task = progress.add_task(stage.name, total=total, completed=state.index)
    if live is not None:
        live.begin(stage.name, state.index, total, maps)
    interrupt = None
    saved_at = time.monotonic()
    steps = optimize_material(problem, state, record=stage.record)
    faults = _faults_told(stage, state, save, memory_remedy(workspace.guidance))
    with MetricsLog(workspace.out, stage.name, state.index) as log, faults:
        try:
            for step in steps:
                log.add(step)
                if is_previewed(step.index, total, output.preview_every):
                    path = workspace.out / "previews" / f"{stage.name}-{step.index:06d}.png"
                    title = f"{stage.name} step {step.index} of {total}"
                    state.idle_seconds += preview(workspace, title, maps(), path)
                    log.add_picture(path, step.index)
                if time.monotonic() - saved_at >= output.checkpoint_every:
                    log.flush()
                    save()
                    saved_at = time.monotonic()
                progress.update(task, completed=step.index + 1, note=stage.note(step))
                if live is not None:
                    state.idle_seconds += live.follow(stage.name, step, total, maps, save)
            with interrupts_held() as raise_if_interrupted:
                save()
                raise_if_interrupted()
        except KeyboardInterrupt as error:
            interrupt = error
            if state.begun:
                save()
            where = f"step {state.index} of {total} of {stage.name}"
            tell(f"interrupted at {where}, which is saved: writing what there is")
    progress.remove_task(task)
    return Outcome(state.index, state.skipped, state.seconds, interrupt)


@contextmanager
def _faults_told(
    stage: Stage, state: OptimizerState, save: Callable[[], None], remedy: str
) -> Iterator[None]:
    """Saves and says where the stage is, when numbers or memory give out.

    Args:
        stage: that runs in the block.
        state: of its loop.
        save: writes a checkpoint.
        remedy: what helps where memory runs out.

    Raises:
        UserError: one of the two happened.
    """
    try:
        yield
    except FloatingPointError as error:
        saved = ""
        if all(parameter.isfinite().all() for parameter in stage.problem.theta.parameters()):
            save()
            saved = f"; the material before step {state.index} is saved"
        raise UserError(f"{stage.name}: {error}{saved}") from error
    except (MemoryError, RuntimeError) as error:
        message = out_of_memory_message(error, remedy)
        if message is None:
            raise
        if state.begun:
            save()
            where = f"step {state.index} of {stage.problem.config.optimization.steps}"
            message += f" ({where} is saved: the same command goes on from there)"
        raise UserError(f"{stage.name}: {message}") from error


def memory_remedy(guidance: GuidanceName) -> str:
    """What helps where memory runs out."""
    if guidance in ("deepfloyd", "stable-diffusion"):
        return (
            "give --low-memory or --offload, or start over with fewer --views or a smaller "
            "--render-size"
        )
    return "free some, or start over with fewer --views or a smaller --texture-size"


def is_previewed(index: int, total: int, every: int | None) -> bool:
    """Whether the step ``index`` of ``total`` gets a picture.

    Args:
        index: of the step, from 0.
        total: steps of the stage.
        every: steps between pictures, 0 for none; None spreads ``PREVIEWS`` over the stage, the
            first and the last step among them.
    """
    if every is not None:
        return every > 0 and index % every == 0
    return index in {round(share * (total - 1) / (PREVIEWS - 1)) for share in range(PREVIEWS)}


def preview(workspace: Workspace, title: str, maps: Tensor, path: Path) -> float:
    """Writes four fixed views of the material on the CPU, and its maps.

    Returns:
        Seconds that it took, which the run's record is told as well.
    """
    start = time.perf_counter()
    size = min(workspace.previewer.size, PREVIEW_SIZE)
    views = replace(workspace.previewer, size=size).views(title, maps, 4)
    contact_sheet([views], maps, path)
    seconds, spent = time.perf_counter() - start, workspace.record["seconds"]
    spent["previews"] = round(spent.get("previews", 0.0) + seconds, 2)
    return seconds


class MetricsLog:
    """Writes each step of a stage as it ends.

    Args:
        out: the run's folder.
        stage: its name, the first column.
        first: the step that comes first: lines of this stage from there on are dropped, for a
            continued run takes those steps again.
    """

    def __init__(self, out: Path, stage: str, first: int = 0) -> None:
        self.stage = stage
        path = out / "metrics.csv"
        kept = [COLUMNS, *(line for line in _lines(path) if not self._comes_again(line, first))]
        with (
            atomic_write(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._board = _tensorboard(out)
        self._before = 0.0

    def _comes_again(self, line: list[str], first: int) -> bool:
        return line[0] == self.stage and int(line[1]) >= first

    def add(self, step: Step) -> None:
        """Writes one step; its seconds are those since the step before."""
        seconds, self._before = step.seconds - self._before, step.seconds
        self._writer.writerow(
            (
                self.stage,
                step.index,
                f"{step.loss:.6g}",
                f"{step.gradient_norm:.6g}",
                step.nonfinite,
                f"{seconds:.4f}",
            )
        )
        if self._board is not None:
            self._board.add_scalar(f"{self.stage}/loss", step.loss, step.index)
            self._board.add_scalar(f"{self.stage}/gradient_norm", step.gradient_norm, step.index)

    def add_picture(self, path: Path, index: int) -> None:
        """Shows a preview in TensorBoard, too."""
        if self._board is not None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                self._board.add_image(self.stage, np.asarray(picture), index, dataformats="HWC")

    def flush(self) -> None:
        """Hands what was written to the disk."""
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def stage_seconds(out: Path) -> dict[str, float]:
    """How long the steps of each stage took, of all processes that ran it."""
    seconds: dict[str, float] = {}
    for line in _lines(out / "metrics.csv"):
        seconds[line[0]] = seconds.get(line[0], 0.0) + float(line[-1])
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _lines(path: Path) -> list[list[str]]:
    """The whole lines of an earlier log; the last one of a killed run may be torn."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.reader(file))[1:]
    return [line for line in lines if len(line) == len(COLUMNS) and line[1].isdigit()]


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # it is no dependency
        return None
    return SummaryWriter(str(out / "tensorboard"))
