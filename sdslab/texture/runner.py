"""One run of ``python -m sdslab.texture``, or of the same as a function."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sdslab.errors import UserError, one_line
from sdslab.machine import (
    full_float32,
    let_gpu_segments_grow,
    out_of_memory_message,
    resolve_device,
)
from sdslab.runs.folder import check_inputs_apart
from sdslab.shell.command_line import options_of, parse
from sdslab.shell.named_inputs import named_object
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.texture.argument_checks import check, default_out, guidance_of, named_inputs
from sdslab.texture.arguments import Arguments, GuidanceName
from sdslab.texture.inputs import Inputs
from sdslab.texture.outputs import TextureResult, write_outputs
from sdslab.texture.resolved_arguments import resolved
from sdslab.texture.run_folder import own_outputs, state_of
from sdslab.texture.stage import memory_remedy, stage_seconds
from sdslab.texture.workspace import Workspace

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
    let_gpu_segments_grow()
    device = resolve_device(arguments.output.device)
    inputs = Inputs.of(arguments)
    for path in inputs.beside:
        check_inputs_apart(out, {"a file of the mesh": path}, "--out")
    arguments = resolved(arguments, guidance_of(arguments), device)
    guidance = arguments.subject.guidance
    assert guidance is not None
    if not arguments.output.fresh:

        def said_in_full(before: Arguments) -> Arguments:
            return resolved(before, guidance, device)

        if state_of(out, said_in_full, arguments, inputs.digests) == "finished":
            _say(f"{out}/ holds this run's results already; --fresh makes them again")
            return
    try:
        _run(arguments, out, inputs)
    except KeyboardInterrupt:
        how = "nothing was lost but the time: the same command starts again"
        if any(out.glob("checkpoint-*.safetensors")):
            how = f"the same command, or --resume {shlex.quote(str(out))}, goes on from there"
        tell(f"interrupted: {how}")
        raise
    except (MemoryError, RuntimeError) as error:
        message = out_of_memory_message(error, memory_remedy(guidance))
        if message is None:
            raise
        raise UserError(message) from error


def _run(arguments: Arguments, out: Path, inputs: Inputs) -> None:
    start = time.perf_counter()
    for option, name in arguments.named_objects.items():
        named_object(name, option)  # told before anything is loaded
    with full_float32(), ExitStack() as held:
        with ProgressLines() as progress:
            workspace = Workspace.open(arguments, out, inputs, progress, held)
            workspace.record["seconds"]["loading"] = round(time.perf_counter() - start, 2)
            textured = program_of(workspace.guidance)(workspace, progress)
        _finish(workspace, textured)
        if textured.interrupt is not None:
            raise textured.interrupt


def _finish(workspace: Workspace, textured: TextureResult) -> None:
    record = workspace.record
    record["metrics"] = dict(textured.results)
    record["seconds"] |= stage_seconds(workspace.out)
    for line in textured.lines:
        _say(line)
    start = time.perf_counter()
    with ProgressLines() as progress:
        lines = write_outputs(workspace, textured.materials, progress)
    for line in lines:
        _say(line)
    record["seconds"]["writing"] = round(time.perf_counter() - start, 2)
    if textured.interrupt is None:
        workspace.checkpoints.clear()


def program_of(guidance: GuidanceName) -> Callable[[Workspace, ProgressLines], TextureResult]:
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


def _say(line: str) -> None:
    tell(one_line(line), console)


def texture_mesh(mesh: str | Path = "apple", **options: Any) -> Path:
    """Textures a mesh as the command line does: the same checks, files, checkpoints and report.

    Args:
        mesh: a file, or the name of a built-in mesh.
        options: those of ``python -m sdslab.texture --help``, with ``_`` for ``-``:
            ``exemplar="moss.jpg"``, ``steps=200``, ``unlit=True``. Those that take several values,
            or may be repeated, take a sequence; None and False leave an option out.

    Returns:
        The run's folder: mesh.glb, maps/, run.json, report.html and the rest.

    Raises:
        UserError: an option is unknown or something cannot work; nothing was written.
        KeyboardInterrupt: after what was reached has been written; the same call goes on.
    """
    arguments = parse(Arguments, "texture_mesh", [*_command_line(options), "--", os.fspath(mesh)])
    check(arguments)
    run(arguments)
    return Path(arguments.output.out or default_out(arguments))


def _command_line(options: dict[str, Any]) -> Iterator[str]:
    """The words that say the same."""
    known = {name: option for option in options_of(Arguments) for name in option.names}
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        several = known[option].count != 1 if option in known else False
        if value is None or value is False:
            value = []
        values = value if isinstance(value, (tuple, list)) else [value]
        words = [os.fspath(v) if isinstance(v, os.PathLike) else str(v) for v in values]
        if value is True:
            yield option
        elif several and words:
            yield from (option, *words)
        else:  # a repeated option, or one value
            yield from (f"{option}={word}" for word in words)
