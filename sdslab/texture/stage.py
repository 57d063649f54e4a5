"""One stage of optimisation as a user sees it: a bar, a log, previews, and Ctrl-C."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from torch import Tensor

from sdslab.diffusion_space import DiffusionSpace
from sdslab.errors import UserError
from sdslab.material_optimization import Guide, MaterialConfig, maps_of, optimize_material
from sdslab.optimize import Step
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.rendering.preview import Previewer, contact_sheet
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.seen_texels import SeenTexels
from sdslab.texture.metrics_log import MetricsLog
from sdslab.texture.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Stage:
    """What is optimised, and by what.

    Attributes:
        name: in file names and in ``metrics.csv``.
        theta: the material.
        guide: gives the gradient.
        space: of the diffusion model.
        scenes: views, lights and backgrounds.
        config: steps and optimiser.
        note: of a step, for the progress bar.
    """

    name: str
    theta: Parameterization
    guide: Guide
    space: DiffusionSpace
    scenes: SceneSampler
    config: MaterialConfig
    note: Callable[[Step], str] = lambda step: f"loss {step.loss:.4g}, |g| {step.gradient_norm:.3g}"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    Attributes:
        steps: that were taken.
        seconds: of this process.
        interrupted: whether Ctrl-C ended it early.
    """

    steps: int
    seconds: float
    interrupted: bool


def run_stage(
    stage: Stage,
    workspace: Workspace,
    seen: SeenTexels,
    progress: Progress,
) -> Outcome:
    """Runs a stage to its end, or to Ctrl-C.

    Raises:
        UserError: the optimisation diverged.
    """
    total = stage.config.optimization.steps
    preview_every, out = workspace.arguments.output.preview_every, workspace.out
    task = progress.add_task(stage.name, total=total, note="")
    finished = 0
    start = time.perf_counter()
    interrupted = False
    steps = optimize_material(
        stage.theta,
        workspace.renderer,
        stage.scenes,
        stage.space,
        stage.guide,
        stage.config,
        seen,
    )
    with MetricsLog(out, stage.name) as log:
        try:
            for step in steps:
                log.add(step)
                if preview_every and step.index % preview_every == 0:
                    path = out / "previews" / f"{stage.name}-{step.index:06d}.png"
                    preview(workspace.previewer, maps_of(stage.theta).detach(), path)
                    log.add_picture(path, step.index)
                finished = step.index + 1
                progress.update(task, completed=finished, note=stage.note(step))
        except FloatingPointError as error:
            raise UserError(f"{stage.name}: {error}") from error
        except KeyboardInterrupt:
            interrupted = True
            text = f"interrupted at step {finished} of {stage.name}: writing what there is"
            progress.console.print(text, markup=False, highlight=False)
    progress.remove_task(task)
    return Outcome(finished, time.perf_counter() - start, interrupted)


def preview(previewer: Previewer, maps: Tensor, path: Path) -> None:
    """Four fixed views of the material, and its maps."""
    maps = maps.cpu()
    contact_sheet([previewer.six_views("", maps)[:4]], maps, path)
