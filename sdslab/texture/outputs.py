"""What a run leaves: the textured mesh, its maps, pictures, and what the report shows beside."""

from collections.abc import Iterator, Mapping
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
from sdslab.meshes.material import ALBEDO, constant_material, dilate_seams, save_maps
from sdslab.rendering.cameras import six_views
from sdslab.rendering.environment_map import load_environment, resize, write_hdr
from sdslab.rendering.preview import contact_sheet, save_turntable
from sdslab.shell.progress_lines import ProgressLines
from sdslab.texture.inputs import own_maps
from sdslab.texture.workspace import Workspace

FRAMES_PER_SECOND = 24
FIXED_OUTPUTS = 4  # beside the turntable's frames, for a progress bar
LIGHT_HEIGHT = 256  # of light.hdr, in pixels
PHOTOGRAPH_SIDE = 384  # of the larger side, in pixels
FADED = 0.15  # how much is left of what a mask excludes


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


def write_outputs(
    workspace: Workspace, materials: Mapping[str, Tensor], progress: ProgressLines
) -> tuple[str, ...]:
    """Writes the textured mesh, its maps and pictures, and what the report shows beside them.

    Args:
        workspace: of the run; its record is told the materials' names.
        materials: [h, w, 8] by name, on the CPU; the first is the result. All are on the contact
            sheet, and each of the others has a ``mesh.glb`` in a folder of its name.
        progress: shows which output is written.

    Returns:
        What was written and what did not go as asked, a line each.

    Raises:
        UserError: a file cannot be written.
    """
    out, mesh, previewer = workspace.out, workspace.mesh, workspace.previewer
    output, record = workspace.arguments.output, workspace.record
    materials = {  # the target is shown as it came
        name: maps if name == "target" else dilate_seams(maps, workspace.covered)
        for name, maps in materials.items()
    }
    maps, *others = materials.values()
    extras = {name: record[name] for name in ("command", "sdslab", "commit", "started")}
    task = progress.add_task("writing", total=FIXED_OUTPUTS + output.turntable)

    def begin(name: str) -> None:
        progress.update(task, advance=1, note=name)

    begin("mesh.glb")
    export_glb(mesh, maps, out / "mesh.glb", extras=extras)
    names = ["mesh.glb", *(f"{name}/mesh.glb" for name in list(materials)[1:])]
    for name, material in zip(names[1:], others, strict=True):
        export_glb(mesh, material, out / name, extras=extras)
    begin("obj")
    export_obj(mesh, maps, out / "obj")
    begin("maps")
    save_maps(maps, out / "maps", exr=output.exr)
    begin("contact_sheet.png")
    rows = [previewer.views(name, material) for name, material in materials.items()]
    contact_sheet([*rows, previewer.buffers(maps)], maps, out / "contact_sheet.png")
    names += ["obj/", "maps/", "contact_sheet.png"]

    def frames() -> Iterator[Tensor]:
        for frame in previewer.turntable(maps, output.turntable):
            begin("turntable")
            yield frame

    notes: tuple[str, ...] = ()
    if output.turntable:
        turntable = save_turntable(frames, out / "turntable.mp4", FRAMES_PER_SECOND)
        names.append(turntable.path.name)
        notes = (turntable.note,) if turntable.note else ()
    _write_report_inputs(workspace, materials)
    return (*notes, f"written to {out}/: {', '.join(names)}, run.json")


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
    """Writes ``inputs/target.png``: the front of the mesh with the material [h, w, 8] to recover.

    Raises:
        UserError: the file cannot be written.
    """
    _save(_front(workspace, target), workspace.out / "inputs" / "target.png")


def _write_report_inputs(workspace: Workspace, materials: Mapping[str, Tensor]) -> None:
    """Writes ``original/mesh.glb``, ``front.png`` and, unless unlit, ``light.hdr``."""
    out, mesh = workspace.out, workspace.mesh
    original = constant_material(4, 4)
    if mesh.source_material is not None:
        original = own_maps(mesh, workspace.texture_size)
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
