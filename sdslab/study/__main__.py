"""The command line of ``python -m sdslab.study``: parses, and calls the runner."""

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sdslab.errors import UserError, exit_on_user_error
from sdslab.runs.from_toml import check_bounds
from sdslab.shell.command_line import parse
from sdslab.shell.named_inputs import MESHES, PHOTOGRAPHS, check_file_or_name
from sdslab.shell.process import exit_code, keep_streams
from sdslab.study.study_file import (
    claim_study_folder,
    experiment_of,
    find_study,
    list_studies,
    load_study,
    resumed_study,
    study_kind,
)

CHANGED_OUT = "figures/custom"
GPU_OUT = "gpu"


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
    accept_code_change: bool = False
    """Take cells that another version of sdslab or of its packages made; the record says so."""
    resume: Annotated[str | None, _option("RUN", "none")] = None
    """Go on with a study that was stopped, from anywhere: its folder, such as figures/figure2."""


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
    """"shipped", "sd", "taesd", a diffusers autoencoder's folder, or a hub id."""
    steps: Annotated[int | None, _option("N", "each cell's")] = None
    """Optimisation steps of every cell."""
    seeds: Annotated[tuple[int, ...], _option("SEED ...", "the study's")] = ()
    """Seeds of the initial θ and of the noise."""
    dtype: Annotated[
        Literal["float32", "float64"] | None, _option("float32|float64", "the study's")
    ] = None
    """Precision of θ, the VAE and the gradient."""
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

    Examples:
      python -m sdslab.study                              lists the studies
      python -m sdslab.study figure2 --quick              a try, in two minutes
      python -m sdslab.study figure2 --image photo.jpg --size 128
      python -m sdslab.study --resume figures/figure2     where it stopped
    """

    selection: tyro.conf.OmitArgPrefixes[Selection]
    overrides: tyro.conf.OmitArgPrefixes[Overrides]


def main() -> None:
    """Entry point."""
    keep_streams()
    with exit_on_user_error():
        arguments = parse(Arguments, "python -m sdslab.study", sys.argv[1:])
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
    if selection.resume is not None:
        _go_on(selection, overrides)
        return
    if selection.study is None:
        for name, title in list_studies().items():
            print(f"{name:12} {title}")  # noqa: T201
        return
    if selection.quick and selection.preset not in (None, "quick"):
        raise UserError(f"--quick and --preset {selection.preset} exclude each other: give one")
    preset = "quick" if selection.quick else selection.preset
    path = find_study(selection.study)
    kind = study_kind(path)
    _check_options(kind, selection, overrides)
    study = _changed(kind, load_study(path, preset), selection, overrides)
    how = {"fresh": selection.fresh, "accept_code": selection.accept_code_change}
    try:
        _start(kind, study, selection.only, overrides.threads, apart=overrides.out is None, **how)
    except KeyboardInterrupt as interrupt:
        if experiment_of(kind).sources:
            raise
        print(  # noqa: T201
            f"\ninterrupted: the rows so far are in {study.settings.out}/{study.name}.json; "
            f"--only measures the others",
            file=sys.stderr,
        )
        raise SystemExit(exit_code(interrupt)) from None


def _go_on(selection: Selection, overrides: Overrides) -> None:
    assert selection.resume is not None
    accept = selection.accept_code_change
    given = _given(selection, Selection(resume=selection.resume, accept_code_change=accept))
    given += _given(overrides, Overrides(threads=overrides.threads))
    if given:
        raise UserError(
            f"--resume goes on with the study's own settings and takes --threads and "
            f"--accept-code-change alone, got {given[0]}; leave it out"
        )
    resumed = resumed_study(selection.resume)
    with contextlib.chdir(resumed.folder):
        _start(resumed.kind, resumed.study, resumed.only, overrides.threads, accept_code=accept)


def _start(
    kind: str,
    study: Any,
    only: tuple[str, ...],
    threads: int | None,
    *,
    apart: bool = False,
    **how: bool,
) -> None:
    """Runs it; with ``apart`` a GPU's results go to a folder of their own, beside a CPU's."""
    settings = study.settings
    pictures, meshes = getattr(settings, _pictures(settings), ()), getattr(settings, "meshes", ())
    for picture in pictures:
        check_file_or_name(picture, PHOTOGRAPHS, "--image")
    for mesh in meshes:
        check_file_or_name(mesh, MESHES, "--mesh")
    inputs = {"--image": pictures, "--mesh": meshes, "--vae": (getattr(settings, "vae", ""),)}
    named = {f"{option} {name}": name for option, names in inputs.items() for name in names}
    claim_study_folder(Path(settings.out), study.name, named)
    # Here, so that --help and mistakes answer at once.
    import torch

    from sdslab.machine import resolve_device
    from sdslab.study.engine import run_study

    if apart and resolve_device(settings.device).type == "cuda":
        settings = dataclasses.replace(settings, out=f"{settings.out}/{GPU_OUT}")
        study = dataclasses.replace(study, settings=settings)
        claim_study_folder(Path(settings.out), study.name, named)

    if threads is not None:
        if not 1 <= threads <= (os.cpu_count() or 1) * 4:
            raise UserError(f"--threads must be a positive number of CPU threads, got {threads}")
        torch.set_num_threads(threads)
    run_study(kind, experiment_of(kind), study, only, **how)


def _given(options: Selection | Overrides, unset: Selection | Overrides) -> list[str]:
    """Names of the options that differ from those of ``unset``."""
    return [
        _option_of(field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != getattr(unset, field.name)
    ]


def _option_of(name: str) -> str:
    """The option that sets a field of the arguments or of the settings."""
    name = {"images": "image", "photos": "image", "meshes": "mesh"}.get(name, name)
    return "STUDY" if name == "study" else f"--{name.replace('_', '-')}"


def _pictures(settings: Any) -> str:
    return "photos" if hasattr(settings, "photos") else "images"


def _check_options(kind: str, selection: Selection, overrides: Overrides) -> None:
    """Refuses options that a kind of study has no use for."""
    experiment = experiment_of(kind)
    kept = ("fresh", "accept_code_change") if experiment.sources else ()
    names = ("preset", "only", *kept, *experiment.options, "device", "threads", "out")
    valid = [_option_of(name) for name in names]
    for option in (*_given(selection, Selection()), *_given(overrides, Overrides())):
        if option not in ("STUDY", "--quick", *valid):
            raise UserError(
                f"{selection.study} takes {', '.join(valid[:-1])} and {valid[-1]}, got {option}; "
                f"copy its file to change it"
            )


def _changed(kind: str, study: Any, selection: Selection, overrides: Overrides) -> Any:
    """The study with the command line's settings; a variant does not overwrite its own figure."""
    settings, kept = study.settings, bool(experiment_of(kind).sources)
    replaced: dict[str, Any] = {
        _pictures(settings): overrides.image or None,
        "meshes": overrides.mesh or None,
        "seeds": overrides.seeds or None,
        **{name: getattr(overrides, name) for name in ("size", "vae", "dtype", "device", "out")},
    }
    replaced = {name: value for name, value in replaced.items() if value is not None}
    quick = not kept and study.preset == "quick"
    if selection.only or overrides.steps is not None or replaced.keys() - {"device", "out"}:
        replaced.setdefault("out", CHANGED_OUT)
        # Of a study of speeds the device is no part, and neither are the rows that are left out.
        study = dataclasses.replace(study, preset=f"{study.preset}, changed") if kept else study
    if quick:
        replaced.setdefault("out", "figures/quick")
    if overrides.steps is not None:
        study = experiment_of(kind).with_steps(study, overrides.steps)
    settings = dataclasses.replace(settings, **replaced)
    check_bounds(settings, lambda name: _option_of(name) if name in replaced else name)
    return dataclasses.replace(study, settings=settings)


if __name__ == "__main__":
    main()
