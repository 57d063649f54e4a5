"""What ``report.html`` shows beside a run's results: its input, light, front, and bare mesh."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet
from sdslab.files.atomic_write import atomic_write
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import ALBEDO, constant_material
from sdslab.rendering.cameras import six_views
from sdslab.rendering.environment_map import load_environment, resize
from sdslab.rendering.radiance_hdr import write_hdr
from sdslab.rendering.renderer import make_backend
from sdslab.texture.target import own_maps
from sdslab.texture.workspace import CPU, Workspace

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
