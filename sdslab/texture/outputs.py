"""What a run leaves: the textured mesh, its maps, pictures, and what the report shows beside."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet
from sdslab.files.atomic_write import atomic_write
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material import ALBEDO, constant_material, save_maps
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cameras import six_views
from sdslab.rendering.environment_map import load_environment, resize
from sdslab.rendering.preview import Previewer, contact_sheet, save_turntable
from sdslab.rendering.radiance_hdr import write_hdr
from sdslab.rendering.renderer import make_backend
from sdslab.texture.target import own_maps
from sdslab.texture.workspace import CPU, Workspace

FRAMES_PER_SECOND = 24
FIXED_OUTPUTS = 4  # beside the turntable's frames, for a progress bar


@dataclass(frozen=True, eq=False)
class TextureResult:
    """A textured mesh, not yet written: what each guidance gives back to the runner.

    Attributes:
        materials: [size, size, 8] by name, on the CPU; the first is the result.
        results: numbers for ``run.json``.
        lines: the same for people.
        interrupt: Ctrl-C or SIGTERM, where one ended it early.
    """

    materials: Mapping[str, Tensor]
    results: Mapping[str, Any]
    lines: tuple[str, ...]
    interrupt: KeyboardInterrupt | None


def seen_words(seen: Tensor, covered: Tensor) -> tuple[str, float]:
    """How many of the covered texels were seen, in words and as a share.

    Args:
        seen: [h, w] bool.
        covered: [h, w] bool, texels that a face covers.
    """
    total = int(covered.sum())
    unseen = total - int((seen & covered).sum())
    if unseen == 0:
        return "every texel was seen", 1.0
    words = f"{unseen:,} of {total:,} texels were not seen: they take the nearest's colours"
    return words, 1 - unseen / total


@dataclass(frozen=True)
class Written:
    """What `write_outputs` made.

    Attributes:
        names: of files and folders, within the run's folder.
        notes: what did not go as asked, a line each.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


def write_outputs(
    out: Path,
    mesh: Mesh,
    materials: Mapping[str, Tensor],
    previewer: Previewer,
    *,
    extras: Mapping[str, object],
    exr: bool,
    frames: int,
    progress: Callable[[str], None],
) -> Written:
    """Writes ``mesh.glb``, ``obj/``, ``maps/``, ``contact_sheet.png`` and the turntable.

    Args:
        out: the run's folder.
        mesh: with its own scale, pose, vertex order and texture coordinates.
        materials: [h, w, 8] by name; the first is the result. All are on the contact sheet, and
            each of the others has a ``mesh.glb`` in a folder of its name.
        previewer: for the pictures.
        extras: where the mesh comes from, for the GLB.
        exr: whether to write the maps as EXR too.
        frames: of the turntable; 0 makes none.
        progress: is called with a name before each output, and before each frame.
    """
    maps = next(iter(materials.values()))
    progress("mesh.glb")
    export_glb(mesh, maps, out / "mesh.glb", extras=dict(extras))
    others = list(materials)[1:]
    for name in others:
        export_glb(mesh, materials[name].cpu(), out / name / "mesh.glb", extras=dict(extras))
    progress("obj")
    export_obj(mesh, maps, out / "obj")
    progress("maps")
    save_maps(maps, out / "maps", exr=exr)
    progress("contact_sheet.png")
    rows = [previewer.views(name, material) for name, material in materials.items()]
    contact_sheet([*rows, previewer.buffers(maps)], maps, out / "contact_sheet.png")
    names = (
        "mesh.glb",
        *(f"{name}/mesh.glb" for name in others),
        "obj/",
        "maps/",
        "contact_sheet.png",
    )
    if not frames:
        return Written(names, ())

    def counted() -> Iterator[Tensor]:
        for frame in previewer.turntable(maps, frames):
            progress("turntable")
            yield frame

    turntable = save_turntable(counted, out / "turntable.mp4", FRAMES_PER_SECOND)
    return Written((*names, turntable.path.name), (turntable.note,) if turntable.note else ())


LIGHT_HEIGHT = 256  # of light.hdr, in pixels
PHOTOGRAPH_SIDE = 384  # of the larger side, in pixels
FADED = 0.15  # how much is left of what a mask excludes


def write_photographs(out: Path, exemplars: ExemplarSet) -> None:
    """Writes ``inputs/photograph-N.png``: what is used of each, faded where a mask excludes it.

    Raises:
        UserError: a file cannot be written.
    """
    for number, exemplar in enumerate(exemplars.exemplars, start=1):
        picture = exemplar.channels[ALBEDO]
        if exemplar.mask is not None:
            picture = picture.where(exemplar.mask, 1 - FADED * (1 - picture))
        shrink = min(1.0, PHOTOGRAPH_SIDE / max(picture.shape[1:]))
        size = [max(1, round(side * shrink)) for side in picture.shape[1:]]
        picture = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
        _save(picture, out / "inputs" / f"photograph-{number}.png")


def write_target(workspace: Workspace, target: Tensor) -> None:
    """Writes ``inputs/target.png``: the front of the mesh with the material to recover.

    Args:
        workspace: of the run.
        target: [h, w, 8].

    Raises:
        UserError: the file cannot be written.
    """
    _save(_front(workspace, target), workspace.out / "inputs" / "target.png")


def write_report_inputs(workspace: Workspace, materials: Mapping[str, Tensor]) -> None:
    """Writes ``original/mesh.glb``, ``front.png`` and, unless unlit, ``light.hdr``.

    Args:
        workspace: of the run; its record is told the materials' names.
        materials: [h, w, 8] by name; the first is the result.

    Raises:
        UserError: a file cannot be written.
    """
    out, mesh = workspace.out, workspace.mesh
    original = constant_material(4, 4)
    if mesh.source_material is not None:
        original = own_maps(mesh, workspace.texture_size, make_backend("cpu", CPU))
    export_glb(mesh, original, out / "original" / "mesh.glb")
    workspace.record["details"]["materials"] = [*materials, "original"]
    _save(_front(workspace, next(iter(materials.values()))), out / "front.png")
    if workspace.lights is not None:
        radiance = load_environment(workspace.arguments.rendering.light[0])
        if len(radiance) > LIGHT_HEIGHT:
            radiance = resize(radiance, LIGHT_HEIGHT)
        write_hdr(radiance.numpy(), out / "light.hdr")


def _front(workspace: Workspace, maps: Tensor) -> Tensor:
    """[3, h, h] in [0, 1]."""
    previewer = workspace.previewer
    front = six_views(previewer.renderer.bounding_radius)[0:1]
    return previewer.picture(front, maps)[0]


def _save(picture: Tensor, path: Path) -> None:
    """Writes [3, h, w] in [0, 1] as a PNG."""
    levels = (picture.movedim(0, -1).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    with atomic_write(path) as temporary:
        Image.fromarray(levels).save(temporary, "PNG")
