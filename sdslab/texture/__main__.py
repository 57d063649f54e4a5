"""The command line of ``python -m sdslab.texture``: parses, and calls the runner."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sdslab.errors import UserError, exit_on_user_error


def _option(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Subject:
    """What is textured, and towards what."""

    mesh: Annotated[str, tyro.conf.Positional, _option("MESH", "apple")] = "apple"
    """An OBJ, GLB, glTF, PLY, STL or OFF file, or the name of a built-in mesh."""
    guidance: Literal["degenerate"] = "degenerate"
    """The diffusion model: "degenerate" knows one material only (the paper's Eq. 3)."""
    target: Annotated[str | None, _option("TARGET", "none; degenerate guidance needs one")] = None
    """The material to recover: a textured GLB or OBJ of the same mesh, a folder of maps, or a
    picture for its albedo (a file, or the name of a photograph that scikit-image ships)."""
    init: Literal["grey", "source"] = "grey"
    """Start from grey, or from the mesh file's own maps."""
    unwrap: Literal["auto", "always", "never"] = "auto"
    """Make texture coordinates: where the file's own are no valid atlas, always, or never."""
    smooth: bool = False
    """Shade smoothly even where the file has normals of its own."""


@dataclass(frozen=True)
class Optimization:
    """How the material is optimised."""

    texture_size: int = 1024
    """Height and width of the maps, a power of two."""
    steps: int = 300
    """Optimisation steps."""
    views: int = 4
    """Pictures a step."""
    learning_rate: float = 0.05
    """Of Adam, at the first step; it falls to zero as a cosine."""
    frozen: Annotated[
        tuple[Literal["albedo", "roughness", "metallic", "normal"], ...],
        tyro.conf.UseAppendAction,
        _option("MAP", "none; repeatable"),
    ] = ()
    """Keep this map as it starts."""
    seed: int = 0
    """Of views, lights and backgrounds."""


@dataclass(frozen=True)
class Rendering:
    """How pictures are made."""

    render_size: int = 256
    """Height and width of a picture, in pixels."""
    cameras: Literal["castex", "wide"] = "castex"
    """Random views: the paper's, or a wider choice of angles, distances and fields of view."""
    light: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("LIGHT", "studio and sky; repeatable")
    ] = ()
    """studio, sky, constant, white, or a panorama (.hdr, .exr, a picture); each step takes one."""
    fixed_light: bool = False
    """Do not turn and dim the light at random."""
    unlit: bool = False
    """Render the albedo alone, without light."""
    background: Literal["random", "white", "black", "grey", "checker"] = "random"
    """Behind the object."""
    supersampling: Literal[1, 2, 4] = 1
    """Sub-pixels along each side of a pixel."""
    color_mode: Literal["srgb", "castex"] = "srgb"
    """Shade in linear light, or as the paper's code does: without any conversion."""
    renderer: Literal["auto", "cpu", "nvdiffrast"] = "auto"
    """The rasteriser; auto is nvdiffrast on CUDA."""
    held_out: Literal["castex", "six"] = "castex"
    """Views that the result is measured from: the paper's 20, or six."""


@dataclass(frozen=True)
class Output:
    """What is written, and where it is computed."""

    out: Annotated[str | None, _option("FOLDER", "runs/MESH-TARGET")] = None
    """Folder for the results."""
    exr: bool = False
    """Write the maps as 32-bit EXR as well."""
    turntable: Annotated[int, _option("FRAMES", "48")] = 48
    """Frames of the turntable; 0 makes none."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    threads: Annotated[int | None, _option("N", "torch's own choice")] = None
    """CPU threads."""


@dataclass(frozen=True)
class Arguments:
    """Textures a mesh by score distillation and writes a GLB, its maps and pictures of it.

    Example: python -m sdslab.texture cow.obj --target photo.jpg
    """

    subject: tyro.conf.OmitArgPrefixes[Subject]
    optimization: tyro.conf.OmitArgPrefixes[Optimization]
    rendering: tyro.conf.OmitArgPrefixes[Rendering]
    output: tyro.conf.OmitArgPrefixes[Output]


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(
        Arguments, prog="python -m sdslab.texture", config=(tyro.conf.FlagCreatePairsOff,)
    )
    with exit_on_user_error():
        check(arguments)
        from sdslab.texture.runner import run  # here, so that --help and mistakes answer at once

        try:
            run(arguments)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)  # noqa: T201
            raise SystemExit(130) from None


def check(arguments: Arguments) -> None:
    """Refuses numbers that cannot be meant, before anything is loaded.

    Raises:
        UserError: says what must hold.
    """
    optimization, rendering, output = (
        arguments.optimization,
        arguments.rendering,
        arguments.output,
    )
    size = optimization.texture_size
    if not 1 <= size <= 8192 or size & (size - 1):
        raise UserError(f"--texture-size must be a power of two up to 8192, got {size}")
    limits = {
        "--steps": (optimization.steps, 1, 10**6),
        "--views": (optimization.views, 1, 1024),
        "--seed": (optimization.seed, 0, 2**63),
        "--render-size": (rendering.render_size, 1, 4096),
        "--turntable": (output.turntable, 0, 720),
        "--threads": (output.threads or 1, 1, (os.cpu_count() or 1) * 4),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UserError(f"{name} must be a number from {low} to {high}, got {value}")
    if output.threads == 0:
        raise UserError("--threads must be a positive number, got 0")
    if rendering.unlit and (rendering.light or rendering.fixed_light):
        raise UserError("--unlit and --light or --fixed-light exclude each other: give one")
    if arguments.subject.target is None:
        raise UserError(
            "--guidance degenerate needs --target, the material that it knows, got none; give a "
            "textured GLB or OBJ of the mesh, a picture, or a photograph's name such as brick"
        )


def default_out(arguments: Arguments) -> Path:
    """runs/MESH-TARGET."""
    stems = (Path(name).stem for name in (arguments.subject.mesh, arguments.subject.target or ""))
    return Path("runs") / "-".join(stem for stem in stems if stem)


if __name__ == "__main__":
    main()
