"""One run of ``python -m sdslab.texture``: loads, optimises, measures and writes."""

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from sdslab.errors import UserError, one_line
from sdslab.machine import out_of_memory_message, resolve_device
from sdslab.meshes.material import dilate_seams
from sdslab.runs.folder import check_inputs_apart
from sdslab.texture.argument_checks import default_out, guidance_of, named_inputs
from sdslab.texture.arguments import Arguments, GuidanceName
from sdslab.texture.inputs import Inputs
from sdslab.texture.metrics_log import stage_seconds
from sdslab.texture.outputs import FIXED_OUTPUTS, TextureResult, write_outputs, write_report_inputs
from sdslab.texture.resolved_arguments import resolved
from sdslab.texture.run_folder import own_outputs, state_of
from sdslab.texture.stage import memory_remedy
from sdslab.texture.workspace import Workspace, progress_bar, progress_console

console = Console(width=None if sys.stdout.isatty() else 110)


def run(arguments: Arguments) -> None:
    """Textures the mesh and writes it, its maps, pictures and numbers.

    Raises:
        UserError: something cannot work; nothing was written.
        KeyboardInterrupt: after what was reached has been written.
    """
    if arguments.output.threads is not None:
        torch.set_num_threads(arguments.output.threads)
    out = Path(arguments.output.out or default_out(arguments))
    own_outputs(out, named_inputs(arguments))
    device = resolve_device(arguments.output.device)
    inputs = Inputs.of(arguments)
    for path in inputs.beside:
        check_inputs_apart(out, {"a file of the mesh": path}, "--out")
    arguments = resolved(arguments, guidance_of(arguments), device)
    guidance = arguments.subject.guidance
    assert guidance is not None
    if not arguments.output.fresh:
        state = state_of(
            out, lambda before: resolved(before, guidance, device), arguments, inputs.digests
        )
        if state == "finished":
            _say(f"{out}/ holds this run's results already; --fresh makes them again")
            return
    try:
        _run(arguments, guidance, out, inputs)
    except KeyboardInterrupt:
        _say_how_to_go_on(out)
        raise
    except (MemoryError, RuntimeError) as error:
        message = out_of_memory_message(error, memory_remedy(guidance))
        if message is None:
            raise
        raise UserError(message) from error


def _run(arguments: Arguments, guidance: GuidanceName, out: Path, inputs: Inputs) -> None:
    start = time.perf_counter()
    with ExitStack() as held:
        with progress_bar() as progress:
            workspace = Workspace.open(arguments, guidance, out, inputs, progress, held)
            workspace.record["seconds"]["loading"] = round(time.perf_counter() - start, 2)
            textured = program_of(guidance)(workspace, progress)
        _finish(workspace, textured)
        if textured.interrupt is not None:
            raise textured.interrupt


def _say_how_to_go_on(out: Path) -> None:
    how = "nothing was lost but the time: the same command starts again"
    if any(out.glob("checkpoint-*.safetensors")):
        how = f"the same command, or --resume {shlex.quote(str(out))}, goes on from there"
    progress_console.print(f"interrupted: {how}", markup=False, highlight=False, soft_wrap=True)


def _finish(workspace: Workspace, textured: TextureResult) -> None:
    record = workspace.record
    record["metrics"] = dict(textured.results)
    record["seconds"] |= stage_seconds(workspace.out)
    for line in textured.lines:
        _say(line)
    start = time.perf_counter()
    _write(workspace, textured)
    record["seconds"]["writing"] = round(time.perf_counter() - start, 2)
    if textured.interrupt is None:
        workspace.checkpoints.clear()


def program_of(guidance: GuidanceName) -> Callable[[Workspace, Progress], TextureResult]:
    """What runs; imported here, for each needs libraries of its own."""
    match guidance:
        case "degenerate":
            from sdslab.texture.recovery import recover_target

            return recover_target
        case "exemplar" | "none":
            from sdslab.texture.exemplar import texture_like_exemplars

            return texture_like_exemplars
        case "deepfloyd" | "stable-diffusion":
            from sdslab.texture.two_stages import texture_from_prompt

            return texture_from_prompt
        case _:
            from sdslab.texture.own_guide import texture_by_own_guide

            return texture_by_own_guide


def _write(workspace: Workspace, textured: TextureResult) -> None:
    output, record = workspace.arguments.output, workspace.record
    materials = dict(textured.materials)
    for name, maps in textured.materials.items():
        if name != "target":  # which is shown as it came
            materials[name] = dilate_seams(maps, workspace.covered)
    with progress_bar() as progress:
        task = progress.add_task("writing", total=FIXED_OUTPUTS + output.turntable, note="")
        written = write_outputs(
            workspace.out,
            workspace.mesh,
            materials,
            workspace.previewer,
            extras={name: record[name] for name in ("command", "sdslab", "commit", "started")},
            exr=output.exr,
            frames=output.turntable,
            progress=lambda name: progress.update(task, advance=1, note=name),
        )
    write_report_inputs(workspace, materials)
    for line in written.notes:
        _say(line)
    _say(f"written to {workspace.out}/: {', '.join(written.names)}, run.json")


def _say(line: str) -> None:
    console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)
