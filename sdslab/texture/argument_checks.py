"""What the command line may say: which options go together, and which files must be there."""

import importlib.util
import os
import re
import socket
import warnings
from dataclasses import fields
from pathlib import Path

from sdslab.errors import UserError, one_line
from sdslab.files.weights import refuse_pickle
from sdslab.runs.from_toml import OneOfOrOwn
from sdslab.shell.named_inputs import (
    LIGHTS,
    MESH_SUFFIXES,
    MESHES,
    PHOTOGRAPHS,
    check_file_or_name,
    did_you_mean,
    file_of,
    is_named_object,
    tag_and_file,
)
from sdslab.texture.arguments import DEFAULT_EXEMPLAR, GUIDANCES, Arguments, GuidanceName, Rendering
from sdslab.texture.run_folder import own_outputs

LONGEST_STEM = 120  # bytes, of each part of a folder's name


def guidance_of(arguments: Arguments) -> GuidanceName:
    """Which guidance runs: the one named, or the one that what is given asks for.

    Raises:
        UserError: what is given does not go together.
    """
    subject = arguments.subject
    leads = {
        "--prompt": subject.prompt,
        "--exemplar": subject.exemplar or None,
        "--target": subject.target,
    }
    given = [name for name, value in leads.items() if value is not None]
    if len(given) > 1:
        raise UserError(
            f"one of --prompt, --exemplar and --target must lead, got {' and '.join(given)}; "
            f"give one"
        )
    lead, guidance = (given[0] if given else None), subject.guidance
    own = guidance is not None and is_named_object(guidance)
    if guidance is None:
        guidance = next(name for name in GUIDANCES if GUIDANCES[name] == (lead or "--exemplar"))
    elif guidance not in GUIDANCES and not own:
        raise UserError(
            f"--guidance must be one of {', '.join(GUIDANCES)}, or MODULE:NAME, got "
            f"{one_line(guidance)!r}{did_you_mean(guidance, GUIDANCES)}"
        )
    needed = GUIDANCES.get(guidance)
    if own and lead not in (None, "--prompt"):
        raise UserError(f"{lead} is not for --guidance {guidance}; leave it out")
    if needed == "--exemplar" and lead not in (None, "--exemplar"):
        raise UserError(
            f"--guidance {guidance} needs --exemplar, a photo, got {lead}; a prompt needs "
            f"--guidance deepfloyd or stable-diffusion"
        )
    if needed in ("--prompt", "--target") and lead != needed:
        what = "the text that leads the model"
        if needed == "--target":
            what = (
                "the material that it knows: a textured GLB or OBJ of the mesh, or a picture such "
                "as brick"
            )
        raise UserError(f"--guidance {guidance} needs {needed}, {what}, got {lead or 'none'}")
    for section, owner in (
        (arguments.model, "--prompt"),
        (arguments.distillation, "--prompt"),
        (arguments.exemplar, "--exemplar"),
    ):
        changed = [f.name for f in fields(section) if getattr(section, f.name) != f.default]
        if changed and needed != owner:
            raise UserError(
                f"--{changed[0].replace('_', '-')} is for {owner}, got --guidance {guidance}; "
                f"leave it out"
            )
    theta = arguments.optimization.parameterization
    if needed == "--exemplar" and theta != "texels":
        raise UserError(
            f"--parameterization {one_line(theta)} is for --prompt, --target and a guidance of "
            f"one's own, got --guidance {guidance}, which is laid out in texels; leave it out"
        )
    if subject.prompt is not None and not subject.prompt.strip():
        raise UserError("--prompt must say something, got an empty text")
    for name, text in (
        ("--prompt", subject.prompt),
        ("--negative-prompt", arguments.model.negative_prompt),
        *(("--view-names", text) for text in arguments.model.view_names or ()),
    ):
        if text is not None and not text.isprintable():
            raise UserError(
                f"{name} must be one line of text that can be printed, got control characters: "
                f"{text[:60]!a}; leave them out"
            )
    return guidance


def check(arguments: Arguments) -> None:
    """Refuses what cannot be meant, before anything is loaded.

    Raises:
        UserError: says what must hold.
    """
    guidance = guidance_of(arguments)
    optimization, rendering = arguments.optimization, arguments.rendering
    distillation, output = arguments.distillation, arguments.output
    size = optimization.texture_size
    if not 1 <= size <= 8192 or size & (size - 1):
        raise UserError(f"--texture-size must be a power of two up to 8192, got {size}")
    OneOfOrOwn("texels", "dip").check(optimization.parameterization, "--parameterization")
    limits = {
        "--steps": (optimization.steps, 1, 10**6),
        "--sr-steps": (optimization.sr_steps, 1, 10**6),
        "--views": (optimization.views, 1, 1024),
        "--seed": (optimization.seed, 0, 2**40),
        "--learning-rate": (optimization.learning_rate, 1e-9, 1e3),
        "--render-size": (rendering.render_size, 1, 4096),
        "--exemplar-scale": (arguments.exemplar.exemplar_scale, 0.01, 100),
        "--tag-guidance": (arguments.exemplar.tag_guidance, 0, 100),
        "--guidance-scale": (distillation.guidance_scale, 0, 1000),
        "--sr-guidance-scale": (distillation.sr_guidance_scale, 0, 1000),
        "--perp-neg": (distillation.perp_neg, 0, 100),
        "--gradient-clamp": (distillation.gradient_clamp, 1e-9, 1e9),
        "--turntable": (output.turntable, 0, 720),
        "--picture-size": (output.picture_size, 16, 2048),
        "--preview-every": (output.preview_every, 0, 10**6),
        "--checkpoint-every": (output.checkpoint_every, 0, 10**6),
        "--live-port": (output.live_port, 0, 65535),
        "--threads": (output.threads, 1, (os.cpu_count() or 1) * 4),
    }
    for name, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} must be a number from {low} to {high}, got {value}")
    if distillation.timesteps is not None:
        low, high = distillation.timesteps
        if not 1 <= low < high <= 1000:
            raise UserError(
                f"--timesteps must be two numbers from 1 to 1000, the lower one first, got {low} "
                f"{high}"
            )
    if output.live and not _is_free(output.live_port):
        raise UserError(
            f"--live-port must be a port that this program may listen on, got {output.live_port}, "
            f"which is in use or reserved; give another one, or 0 for any"
        )
    _check_light(rendering)
    if distillation.objective != "sds":
        from sdslab.texture.objective import check_objective  # which imports torch

        check_objective(arguments)
    if arguments.subject.init == "triplanar" and guidance not in ("exemplar", "none"):
        raise UserError(
            f"--init triplanar lays an --exemplar on the object, got --guidance {guidance}; use "
            f"--init grey or source"
        )
    if rendering.lamp != "none" and (rendering.unlit or rendering.fixed_light):
        raise UserError("--lamp and --unlit or --fixed-light exclude each other: give one")
    if optimization.sr_steps is not None and guidance not in ("deepfloyd", "stable-diffusion"):
        raise UserError(f"--sr-steps is for --prompt, got --guidance {guidance}; leave it out")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", output.device):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {output.device!r}")
    check_inputs(arguments)
    own_outputs(Path(output.out or default_out(arguments)), named_inputs(arguments))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":  # as servers do: a port that was just left is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _check_light(rendering: Rendering) -> None:
    """How the light is turned and dimmed is said once."""
    low, high = rendering.light_intensity
    if not 0 <= low <= high <= 1000:
        raise UserError(
            f"--light-intensity must be two numbers from 0 to 1000, the lower one first, got {low} "
            f"{high}"
        )
    moved = (rendering.turn_light, rendering.light_intensity) != ("picture", (0.6, 1.4))
    if rendering.fixed_light and moved:
        raise UserError(
            "--fixed-light and --turn-light or --light-intensity exclude each other: give one"
        )
    if rendering.unlit and (rendering.light or rendering.fixed_light or moved):
        raise UserError(
            "--unlit and --light, --fixed-light, --turn-light or --light-intensity exclude each "
            "other: give one"
        )


def default_out(arguments: Arguments) -> Path:
    """runs/MESH-WHAT."""
    subject = arguments.subject
    if subject.prompt is not None:
        words = re.findall(r"[a-z0-9]+", subject.prompt.lower())
        what = "-".join(words)[:60].strip("-") or "prompt"
    elif subject.target is not None:
        what = Path(subject.target).stem
    else:
        names = subject.exemplar or (DEFAULT_EXEMPLAR,)
        if subject.guidance is not None and is_named_object(subject.guidance):
            names = (subject.guidance.rpartition(":")[2],)
        what = "-".join(Path(name).stem for name in names)
    stems = (Path(subject.mesh).stem, what)
    return Path("runs") / "-".join(_cut(stem) for stem in stems if stem)


def _cut(stem: str) -> str:
    """Cuts a name so that two fit into one, which may have 255 bytes."""
    while len(os.fsencode(stem)) > LONGEST_STEM:
        stem = stem[:-1]
    return stem


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
        **{option: (file_of(name),) for option, name in arguments.named_objects.items()},
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
