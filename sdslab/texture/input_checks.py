"""The files that the command line names: each must be there before anything is loaded."""

import importlib.util
import os
import warnings
from pathlib import Path

from sdslab.errors import UserError, one_line
from sdslab.files.pickles import refuse_pickle
from sdslab.shell.named_inputs import (
    LIGHTS,
    MESH_SUFFIXES,
    MESHES,
    PHOTOGRAPHS,
    check_file_or_name,
    did_you_mean,
    tag_and_file,
)
from sdslab.shell.named_object import file_of, is_named_object
from sdslab.texture.arguments import Arguments

STARTS = ("random", "grey", "source", "triplanar")


def named_inputs(arguments: Arguments) -> dict[str, str]:
    """What is given that may be a file or a folder, by its option; a repeated one is numbered."""
    subject, exemplar, model = arguments.subject, arguments.exemplar, arguments.model
    options = {
        "MESH": (subject.mesh,),
        "--target": (subject.target,),
        "--init": (subject.init,),
        "--exemplar": tuple(tag_and_file(source)[1] for source in subject.exemplar),
        "--exemplar-normal": exemplar.exemplar_normal,
        "--exemplar-roughness": exemplar.exemplar_roughness,
        "--exemplar-mask": exemplar.exemplar_mask,
        "--light": arguments.rendering.light,
        "--guidance": (_own_source(subject.guidance),),
        "--embeddings": (model.embeddings,),
        "--model": (model.model,),
        "--sr-model": (model.sr_model,),
    }
    return {
        option if len(names) == 1 else f"{option} ({number})": name
        for option, names in options.items()
        for number, name in enumerate(names, 1)
        if name is not None
    }


def check_inputs(arguments: Arguments) -> None:
    """Refuses names of files that are not there, and files that cannot be what they are given as.

    Raises:
        UserError: says what must hold, and what may be meant.
    """
    subject, exemplar = arguments.subject, arguments.exemplar
    check_file_or_name(subject.mesh, MESHES, "mesh")
    is_mesh_file = os.path.isfile(subject.mesh) and subject.mesh.lower().endswith(MESH_SUFFIXES)
    if os.path.exists(subject.mesh) and not is_mesh_file and subject.mesh not in MESHES:
        raise UserError(
            f"mesh must be a file that ends in one of {', '.join(MESH_SUFFIXES)}, got "
            f"{one_line(subject.mesh)!r}; convert it"
        )
    for source in subject.exemplar:
        _check_picture(tag_and_file(source)[1], "--exemplar")
    for option in ("normal", "roughness", "mask"):
        given = getattr(exemplar, f"exemplar_{option}")
        for source in given:
            _check_picture(source, f"--exemplar-{option}")
        photos = max(1, len(subject.exemplar))
        if given and len(given) != photos:
            raise UserError(
                f"--exemplar-{option} must be given once for each --exemplar, {photos} times, or "
                f"not at all, got {len(given)}"
            )
    tags = [tag for tag, _ in map(tag_and_file, subject.exemplar) if tag is not None]
    if exemplar.tag is not None and exemplar.tag not in tags:
        raise UserError(
            f"--tag must be that of an exemplar given as --exemplar TAG=PHOTO "
            f"({', '.join(tags) or 'none'} here), got {exemplar.tag!r}"
            f"{did_you_mean(exemplar.tag, tags) if tags else ''}"
        )
    if subject.target is not None:
        must = "--target must be a material that fits the mesh"
        _check_material(subject.target, must, ())
    if subject.init is not None and subject.init not in STARTS:
        must = "--init must be grey, random, source, or a material that fits the mesh"
        _check_material(subject.init, must, STARTS)
    for light in arguments.rendering.light:
        check_file_or_name(light, LIGHTS, "--light")
    if arguments.model.embeddings is not None:
        check_file_or_name(arguments.model.embeddings, (), "--embeddings")
    if arguments.output.live and importlib.util.find_spec("viser") is None:
        raise UserError(
            '--live needs viser, which is not installed; install it: pip install "sdslab[live]"'
        )


def _check_material(given: str, must: str, names: tuple[str, ...]) -> None:
    known = (*names, *PHOTOGRAPHS)
    if given not in known and not os.path.exists(given):
        raise UserError(
            f"{must}, got {one_line(given)[:200]!r}, which is neither a file, nor a folder, nor "
            f"one of {', '.join(PHOTOGRAPHS)}{did_you_mean(given, known)}"
        )
    if given not in names:
        refuse_pickle(Path(given))
        _check_header(given, must)


def _check_picture(given: str, option: str) -> None:
    check_file_or_name(given, PHOTOGRAPHS, f"{option}: image")
    if os.path.isdir(given) and given not in PHOTOGRAPHS:
        raise UserError(f"{option} must be a picture, got the folder {one_line(given)!r}")
    _check_header(given, f"{option} must be a readable picture (PNG, JPEG, WebP, TIFF, …)")


def _check_header(given: str, must: str) -> None:
    """Refuses a file that is no picture at all; what else is wrong shows once it is decoded."""
    known_otherwise = (*MESH_SUFFIXES, ".npy", ".exr", ".hdr")
    if not os.path.isfile(given) or given.lower().endswith(known_otherwise):
        return
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(given).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{must}, got {given!r}: {error}; open it in a viewer and save it again"
        ) from error


def _own_source(guidance: str | None) -> str | None:
    return file_of(guidance) if guidance is not None and is_named_object(guidance) else None
