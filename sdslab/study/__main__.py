"""The command line of ``python -m sdslab.study``: parses, and calls the runner."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from sdslab.errors import UserError, exit_on_user_error
from sdslab.interrupts import exit_code
from sdslab.study.specification import (
    find_study,
    list_studies,
    load_study,
    select_cells,
    study_kind,
)

CHANGED_OUT = "figures/custom"


def _option(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Selection:
    """Which study, and which part of it."""

    study: Annotated[str | None, tyro.conf.Positional, _option("STUDY", "list the studies")] = None
    """A study's name, or a .toml file."""
    preset: Annotated[str | None, _option("NAME", "none")] = None
    """A variant that the study file defines, such as quick, full or paper."""
    quick: bool = False
    """The same as --preset quick."""
    only: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("CELL", "all; repeatable")
    ] = ()
    """Run this cell only."""
    fresh: bool = False
    """Run cells again that are saved from before."""


@dataclass(frozen=True)
class Overrides:
    """Settings in place of the study's own."""

    image: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("IMAGE", "the study's; repeatable")
    ] = ()
    """A picture file, or the name of a photograph that scikit-image ships."""
    mesh: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, _option("MESH", "the study's; repeatable")
    ] = ()
    """A mesh file, or the name of a built-in mesh, for a study of meshes."""
    size: Annotated[int | None, _option("PIXELS", "the study's")] = None
    """Height and width of the image."""
    vae: Annotated[str | None, _option("VAE", "the study's")] = None
    """"shipped", a diffusers autoencoder's folder, or a hub id."""
    steps: Annotated[int | None, _option("N", "each cell's")] = None
    """Optimisation steps of every cell."""
    seeds: Annotated[tuple[int, ...], _option("SEED ...", "the study's")] = ()
    """Of the initial θ and of the noise."""
    dtype: Annotated[
        Literal["float32", "float64"] | None, _option("float32|float64", "the study's")
    ] = None
    """Of θ, the VAE and the gradient."""
    device: Annotated[str | None, _option("DEVICE", "the study's")] = None
    """cpu, cuda, cuda:N or auto."""
    threads: Annotated[int | None, _option("N", "torch's own choice")] = None
    """CPU threads."""
    out: Annotated[
        str | None, _option("FOLDER", f"the study's own; {CHANGED_OUT} with options that change it")
    ] = None
    """Folder for the results."""


@dataclass(frozen=True)
class Arguments:
    """Runs a study and writes its table and pictures.

    Example: python -m sdslab.study figure2 --image photo.jpg --size 128
    """

    selection: tyro.conf.OmitArgPrefixes[Selection]
    overrides: tyro.conf.OmitArgPrefixes[Overrides]


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(
        Arguments, prog="python -m sdslab.study", config=(tyro.conf.FlagCreatePairsOff,)
    )
    with exit_on_user_error():
        try:
            run(arguments.selection, arguments.overrides)
        except KeyboardInterrupt as interrupt:
            print(  # noqa: T201
                "\ninterrupted: finished cells are saved; the same command goes on from there",
                file=sys.stderr,
            )
            raise SystemExit(exit_code(interrupt)) from None


def run(selection: Selection, overrides: Overrides) -> None:
    """Resolves the study and runs it."""
    if selection.study is None:
        for name, title in list_studies().items():
            print(f"{name:12} {title}")  # noqa: T201
        return
    if selection.quick and selection.preset not in (None, "quick"):
        raise UserError(f"--quick and --preset {selection.preset} exclude each other: give one")
    preset = "quick" if selection.quick else selection.preset
    _check_threads(overrides.threads)
    kind = study_kind(find_study(selection.study))
    if kind != "exemplar_mesh" and overrides.mesh:
        raise UserError(
            f"--mesh is for the study exemplar_mesh, got {selection.study}; leave it out"
        )
    if kind in ("exemplar", "exemplar_mesh"):
        _run_exemplar(kind, selection.study, preset, selection, overrides)
        return
    if kind != "reconstruction":
        _run_measurements(kind, selection.study, preset, selection, overrides)
        return
    study = select_cells(load_study(find_study(selection.study), preset), selection.only)
    replaced = {
        "images": overrides.image or None,
        "seeds": overrides.seeds or None,
        **{name: getattr(overrides, name) for name in ("size", "vae", "dtype", "device", "out")},
    }
    replaced = {name: value for name, value in replaced.items() if value is not None}
    changed = bool(
        selection.only or overrides.steps is not None or replaced.keys() - {"device", "out"}
    )
    if changed:  # the study's own figure is not overwritten by a part or a variant of it
        replaced.setdefault("out", CHANGED_OUT)
    settings = dataclasses.replace(study.settings, **replaced)
    cells = study.cells
    if overrides.steps is not None:
        cells = tuple(
            dataclasses.replace(
                cell,
                optimization=dataclasses.replace(cell.optimization, steps=overrides.steps),
            )
            for cell in cells
        )
    import torch  # here, so that --help and mistakes answer at once

    from sdslab.study.runner import run_study

    if overrides.threads is not None:
        torch.set_num_threads(overrides.threads)
    preset_label = f"{study.preset}, changed" if changed else study.preset
    study = dataclasses.replace(study, preset=preset_label, settings=settings, cells=cells)
    run_study(study, fresh=selection.fresh)


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1) * 4:
        raise UserError(f"--threads must be a positive number of CPU threads, got {threads}")


def _run_exemplar(
    kind: str, name: str, preset: str | None, selection: Selection, overrides: Overrides
) -> None:
    """Runs a study of the exemplar denoiser: photographs and seeds, no VAE and no steps.

    In two dimensions, or on meshes.
    """
    for option in ("size", "vae", "steps", "dtype"):
        if getattr(overrides, option) is not None:
            raise UserError(
                f"{name} takes --only, --preset, --fresh, --image, --seeds, --device, --threads "
                f"and --out, got --{option}; copy its file to change it"
            )
    import torch

    if kind == "exemplar":
        from sdslab.study.exemplar_runner import run_exemplar_study as run_rows
        from sdslab.study.exemplar_specification import load_exemplar_study as load_rows
    else:
        from sdslab.study.exemplar_mesh_runner import run_mesh_study as run_rows
        from sdslab.study.exemplar_mesh_specification import load_mesh_study as load_rows

    if overrides.threads is not None:
        torch.set_num_threads(overrides.threads)
    study: Any = load_rows(find_study(name), preset)
    replaced: dict[str, Any] = {
        "meshes": overrides.mesh or None,
        "photos": overrides.image or None,
        "seeds": overrides.seeds or None,
        "device": overrides.device,
        "out": overrides.out,
    }
    replaced = {field: value for field, value in replaced.items() if value is not None}
    changed = bool(selection.only or replaced.keys() - {"device", "out"})
    if changed:  # the study's own figure is not overwritten by a part or a variant of it
        replaced.setdefault("out", CHANGED_OUT)
    study = dataclasses.replace(
        study,
        preset=f"{study.preset}, changed" if changed else study.preset,
        settings=dataclasses.replace(study.settings, **replaced),
    )
    run_rows(study, selection.only, fresh=selection.fresh)


def _run_measurements(
    kind: str, name: str, preset: str | None, selection: Selection, overrides: Overrides
) -> None:
    """Runs a study of speeds: a device and a folder, no images or cells."""
    unset = Overrides()
    foreign = [
        field.name
        for field in dataclasses.fields(overrides)
        if field.name not in ("device", "out", "threads")
        and getattr(overrides, field.name) != getattr(unset, field.name)
    ]
    if selection.fresh:
        foreign.append("fresh")
    if foreign:
        raise UserError(
            f"{name} takes --only, --preset, --device, --threads and --out, got "
            f"--{foreign[0].replace('_', '-')}; copy its file to change it"
        )
    import torch

    match kind:
        case "renderer":
            from sdslab.study.renderer_runner import run_renderer_study as run_rows
            from sdslab.study.renderer_specification import load_renderer_study as load_rows
        case "texture_step":
            from sdslab.study.texture_step_runner import run_texture_step_study as run_rows
            from sdslab.study.texture_step_specification import (
                load_texture_step_study as load_rows,
            )
        case "figure2_speed":
            from sdslab.study.figure2_speed_runner import run_figure2_speed_study as run_rows
            from sdslab.study.figure2_speed_specification import (
                load_figure2_speed_study as load_rows,
            )
        case _:
            from sdslab.study.kernel_runner import run_kernel_study as run_rows
            from sdslab.study.kernel_specification import load_kernel_study as load_rows

    if overrides.threads is not None:
        torch.set_num_threads(overrides.threads)
    study: Any = load_rows(find_study(name), preset)
    changed = {"out": "figures/quick"} if preset == "quick" else {}
    changed |= {"out": CHANGED_OUT} if selection.only else {}
    for option in ("device", "out"):
        if getattr(overrides, option):
            changed[option] = getattr(overrides, option)
    settings = dataclasses.replace(study.settings, **changed)
    try:
        run_rows(dataclasses.replace(study, settings=settings), selection.only)
    except KeyboardInterrupt as interrupt:
        print(  # noqa: T201
            f"\ninterrupted: the rows so far are in {settings.out}/{study.name}.json; --only "
            f"measures the others",
            file=sys.stderr,
        )
        raise SystemExit(exit_code(interrupt)) from None


if __name__ == "__main__":
    main()
