"""``--exemplar``: a mesh textured like photographs, with no weights and no GPU.

Stage I lays the photographs' patches out on the surface, from coarse to fine. Stage II shows the
photographs' own pixels where stage I has what is most like them, or sharpens its result fourfold by
super-resolution. ``--guidance none`` keeps what the texture starts from.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet, load_exemplars
from sdslab.exemplar_texturing.measurement import TextureMeasurement, measure_texture
from sdslab.exemplar_texturing.mode_stage import PASSES, mode_texture
from sdslab.exemplar_texturing.pyramid import (
    LEVELS,
    STAGE_ONE,
    ExemplarConfig,
    ExemplarPyramid,
    Reached,
)
from sdslab.exemplar_texturing.triplanar import estimate_material, triplanar
from sdslab.meshes.material import MAPS, NORMAL, ROUGHNESS, dilate_seams
from sdslab.rendering.texels import texels_per_unit
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.texture.outputs import TextureResult, seen_words, write_photographs
from sdslab.texture.stage import Outcome, Stage, run_stage
from sdslab.texture.workspace import Workspace

MODE = "stage2"  # the name of the stage, in checkpoints and files


def texture_like_exemplars(workspace: Workspace, progress: ProgressLines) -> TextureResult:
    """Textures the mesh like its exemplars.

    Raises:
        UserError: a photo cannot be read, or another process works in the folder.
    """
    options = workspace.arguments.exemplar
    exemplars = load_exemplars(
        workspace.arguments.subject.exemplar,
        normals=options.exemplar_normal,
        roughness=options.exemplar_roughness,
        masks=options.exemplar_mask,
    )
    by_mode = options.stage_two == "mode"
    pyramid = ExemplarPyramid.of(
        workspace.renderer,
        workspace.covered,
        exemplars,
        _config(workspace, exemplars),
        STAGE_ONE if by_mode else LEVELS,
    )
    maps = _initial(workspace, pyramid)
    if workspace.guidance != "none":
        pyramid.check()
        workspace.record["config"]["stages"] = {
            level.name: {**dataclasses.asdict(level), "steps": pyramid.steps_of(level)}
            for level in pyramid.levels
        }
        if by_mode:
            workspace.record["config"]["stages"][MODE] = {"passes": sum(PASSES)}
    workspace.begin()
    write_photographs(workspace.out, exemplars)
    if workspace.guidance == "none":
        return _textured(workspace, pyramid, maps, {"steps": 0}, ("kept as it starts",), None)
    reached, outcomes, seen = _reached(workspace, pyramid, maps), list[Outcome](), None
    from_texture = workspace.arguments.subject.init != "grey"
    while reached.level < len(pyramid.levels):
        problem = pyramid.problem(reached, from_texture=from_texture)
        stage = Stage(
            pyramid.levels[reached.level].name,
            problem,
            # Copies: a checkpoint holds no tensor twice.
            carried={"maps": reached.maps.clone(), "stage_one": reached.stage_one.clone()},
        )
        outcomes.append(run_stage(stage, workspace, progress))
        reached, seen = pyramid.finish(reached, problem), problem.seen
        if outcomes[-1].interrupt is not None:
            break
    seconds = sum(outcome.seconds for outcome in outcomes)
    results: dict[str, Any] = {"steps": sum(outcome.steps for outcome in outcomes)}
    results["optimization_seconds"] = round(seconds, 2)
    line = f"{results['steps']} steps in {seconds:.1f} s"
    if seen is not None:  # or the run went on from the last checkpoint, after all levels
        words, results["seen_share"] = seen_words(seen.texels().cpu(), workspace.covered)
        line += f"; {words}"
    lines, interrupt = [line], outcomes[-1].interrupt if outcomes else None
    maps = reached.maps
    if by_mode and interrupt is None:
        if outcomes:
            carried = {"maps": maps.clone(), "stage_one": reached.stage_one.clone()}
            workspace.checkpoints.save(carried, {"stage": MODE})
        started = time.perf_counter()
        try:
            maps = _by_mode(workspace, pyramid, maps, progress)
        except KeyboardInterrupt as error:
            interrupt = error
            tell("interrupted in stage II; stage I's result is saved: writing what there is")
        else:
            results["mode_seconds"] = round(time.perf_counter() - started, 2)
            lines.append(f"stage II: the photo's own pixels in {results['mode_seconds']:.1f} s")
    return _textured(workspace, pyramid, maps, results, tuple(lines), interrupt)


def _by_mode(
    workspace: Workspace, pyramid: ExemplarPyramid, maps: Tensor, progress: ProgressLines
) -> Tensor:
    """Stage II as the posterior's mode, with a bar, and shown on the live page at its end."""
    total, live = sum(PASSES), workspace.live
    task = progress.add_task(MODE, total=total)
    if live is not None:
        live.begin(MODE, 0, total, lambda: maps)
    try:
        result = mode_texture(
            pyramid,
            dilate_seams(maps, workspace.covered),
            lambda done: progress.update(task, completed=done, note="neighbours agree"),
        )
    finally:
        progress.remove_task(task)
    if live is not None:
        live.begin(MODE, total, total, lambda: result)
    return result


def _config(workspace: Workspace, exemplars: ExemplarSet) -> ExemplarConfig:
    """What the command line says, in place of the defaults."""
    options, optimization = workspace.arguments.exemplar, workspace.arguments.optimization
    changed = {
        "views": optimization.views,
        "learning_rate": optimization.learning_rate,
        "steps": optimization.steps,
    }
    return ExemplarConfig(
        scale=options.exemplar_scale,
        orient=options.orient,
        texture_size=workspace.texture_size,
        tag=None if options.tag is None else exemplars.tags.index(options.tag),
        tag_guidance=options.tag_guidance,
        seed=workspace.seed(),
        **{name: value for name, value in changed.items() if value is not None},  # type: ignore[arg-type]
    )


def _initial(workspace: Workspace, pyramid: ExemplarPyramid) -> Tensor:
    """What the texture starts from, [size, size, 8]: the photographs' mean colour by default."""
    match workspace.arguments.subject.init:
        case "grey":
            return pyramid.grey()
        case "triplanar":
            density = texels_per_unit(workspace.mesh, workspace.covered)
            scale = pyramid.config.scale
            return triplanar(workspace.mesh, pyramid.grey(), pyramid.exemplars, scale, density)
        case _:
            return workspace.initial_maps()


def _reached(workspace: Workspace, pyramid: ExemplarPyramid, initial: Tensor) -> Reached:
    """Where the run begins, or goes on."""
    resumed = workspace.resumed
    if resumed is None:
        return Reached(0, initial, initial)
    names = [level.name for level in pyramid.levels]
    stage = resumed.state["stage"]
    level = len(names) if stage == MODE and MODE not in names else names.index(stage)
    return Reached(level, resumed.tensors["maps"], resumed.tensors["stage_one"])


def _textured(
    workspace: Workspace,
    pyramid: ExemplarPyramid,
    maps: Tensor,
    results: Mapping[str, Any],
    lines: tuple[str, ...],
    interrupt: KeyboardInterrupt | None,
) -> TextureResult:
    """The finished material beside the photo that leads; says which of its maps are estimates."""
    guided, covered, scale = pyramid.exemplars.guided, workspace.covered, pyramid.config.scale
    density = texels_per_unit(workspace.mesh, covered)
    given = {"albedo": True, "roughness": ROUGHNESS in guided, "normal": NORMAL.start in guided}
    origin = {name: "exemplar" if given[name] else "constant" for name in given}
    estimated = [name for name in given if not given[name]]
    if workspace.arguments.exemplar.material == "albedo-only":
        estimated = []
    if estimated:
        feature = max(2.0, 0.04 * scale * density)
        guess = estimate_material(dilate_seams(maps, covered), covered, feature)
        maps = maps.clone()
        for name in estimated:
            maps[..., MAPS[name]] = guess[..., MAPS[name]]
            origin[name] = "estimated from the albedo"
    started = time.perf_counter()
    measured = measure_texture(
        workspace.renderer,
        dilate_seams(maps, covered),
        pyramid.exemplars,
        scale,
        pyramid.pixels_per_unit,
        density,
        pyramid.config.tag or 0,
    )
    workspace.record["seconds"]["measuring"] = round(time.perf_counter() - started, 2)
    notes = (
        f"beside the photo: {_words_of(measured)}",
        "the albedo was matched to the photo without light: what shade the photo has stays in it",
    )
    if estimated:
        names = " and ".join(estimated)
        notes += (f"{names} are estimates from the albedo (--material albedo-only omits them)",)
    scores, material = dataclasses.asdict(measured), {**origin, "metallic": "constant"}
    return TextureResult(
        {"textured": maps},
        {**results, "scores": scores, "material": material},
        (*lines, *notes),
        interrupt,
    )


def _words_of(measured: TextureMeasurement) -> str:
    """The scores that are known, on one line."""
    scores = {
        f"patch distance {measured.sliced_wasserstein:.3f} (a piece of the photo itself has "
        f"{measured.crop:.3f})": measured.sliced_wasserstein,
        f"contrast {measured.contrast:.0%} of the photo's": measured.contrast,
        f"sharpness {measured.gradient_energy:.0%}": measured.gradient_energy,
        f"colour jump at seams {measured.seam_jump:.2f} times other edges'": measured.seam_jump,
    }
    known = [words for words, value in scores.items() if not math.isnan(value)]
    return ", ".join(known) or "nothing on the surface is large and flat enough to be measured"
