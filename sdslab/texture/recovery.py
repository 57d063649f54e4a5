"""``--target``: a known material, recovered by Eq. 3's guidance and measured."""

import dataclasses
import math

from sdslab.material_recovery import Measurement, measure, recovery_optimization, recovery_problem
from sdslab.optimization.optimize import Step
from sdslab.shell.progress_lines import ProgressLines
from sdslab.texture.outputs import TextureResult, write_target
from sdslab.texture.stage import Stage, run_stage
from sdslab.texture.workspace import Workspace


def recover_target(workspace: Workspace, progress: ProgressLines) -> TextureResult:
    """Recovers ``--target`` and measures how near the result is.

    Raises:
        UserError: the target or ``--init`` does not fit the mesh, or the optimisation diverged.
    """
    target = workspace.target().to(workspace.device)
    initial = workspace.initial_maps()
    theta, scenes = workspace.theta(initial), workspace.scenes()
    config = workspace.config(recovery_optimization, initial)
    problem = recovery_problem(
        theta, target, workspace.renderer, scenes, config, workspace.unseen()
    )
    stage = Stage("recovery", problem, note=_psnr_note)
    workspace.record["config"]["stages"] = {"recovery": dataclasses.asdict(config.optimization)}
    workspace.begin()
    write_target(workspace, target)
    outcome = run_stage(stage, workspace, progress)
    maps = problem.maps()
    views, seen = workspace.arguments.rendering.held_out, problem.seen.texels()
    measurement = measure(maps, target, workspace.renderer, scenes, seen, views)
    results = dataclasses.asdict(measurement)
    return TextureResult(
        {"recovered": maps.cpu(), "target": target.cpu()},
        results | {"steps": outcome.steps},
        (*_lines(measurement), f"{outcome.steps} steps in {outcome.seconds:.1f} s"),
        outcome.interrupt,
    )


def _psnr_note(step: Step) -> str:
    mean_square = 2 * step.loss / step.z.numel() / 4  # pictures are in [0, 1], z in [−1, 1]
    return f"{-10 * math.log10(mean_square):.2f} dB" if mean_square else "exact"


def _lines(measurement: Measurement) -> tuple[str, str]:
    pictures = (
        f"held-out views: {measurement.view_psnr_db:.2f} dB over {measurement.pictures} pictures"
    )
    if measurement.white_room_psnr_db is not None:
        pictures += f", {measurement.white_room_psnr_db:.2f} dB in white light instead"
    maps = ", ".join(f"{name} {value:.2f}" for name, value in measurement.map_psnr_db.items())
    seen, covered = measurement.seen_texels, measurement.covered_texels
    where = f"the {seen:,} of {covered:,} texels that were seen"
    if seen == covered:
        where = "all texels, each of which was seen"
    return pictures, f"maps: {maps} dB over {where}"
