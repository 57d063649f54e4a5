"""What ``report.html`` shows beside a run's results: its light, its front, the mesh as it came."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from sdslab.atomic_write import atomic_write
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material
from sdslab.rendering.cameras import six_views
from sdslab.rendering.environment_map import load_environment, resize
from sdslab.rendering.radiance_hdr import write_hdr
from sdslab.rendering.render_backend import make_backend
from sdslab.texture.target import own_maps
from sdslab.texture.workspace import CPU, DEFAULT_LIGHTS, Workspace

LIGHT_HEIGHT = 256  # of light.hdr, in pixels


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
    previewer = workspace.previewer
    front = six_views(previewer.renderer.bounding_radius)[0:1]
    picture = previewer.picture(front, next(iter(materials.values())))[0]
    levels = (picture.movedim(0, -1).numpy() * 255).round().astype(np.uint8)
    with atomic_write(out / "front.png") as temporary:
        Image.fromarray(levels).save(temporary, "PNG")
    if workspace.lights is not None:
        names = workspace.arguments.rendering.light or DEFAULT_LIGHTS
        radiance = load_environment(names[0])
        if len(radiance) > LIGHT_HEIGHT:
            radiance = resize(radiance, LIGHT_HEIGHT)
        write_hdr(radiance.numpy(), out / "light.hdr")
