"""What a run leaves: the textured mesh, its maps, and pictures of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material_io import save_maps
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.preview import Previewer, contact_sheet, save_turntable

FRAMES_PER_SECOND = 24
FIXED_OUTPUTS = 4  # beside the turntable's frames, for a progress bar


def write_outputs(
    out: Path,
    mesh: Mesh,
    materials: dict[str, Tensor],
    previewer: Previewer,
    *,
    exr: bool,
    frames: int,
    progress: Callable[[str], None],
) -> list[str]:
    """Writes ``mesh.glb``, ``obj/``, ``maps/``, ``contact_sheet.png`` and the turntable.

    Args:
        out: the run's folder.
        mesh: with its own scale, pose, vertex order and texture coordinates.
        materials: [h, w, 8] by name; the first is exported, all are on the contact sheet.
        previewer: for the pictures.
        exr: whether to write the maps as EXR too.
        frames: of the turntable; 0 makes none.
        progress: is called with a name before each output, and before each frame.

    Returns:
        What did not go as asked, a line each.
    """
    maps = next(iter(materials.values()))
    progress("mesh.glb")
    export_glb(mesh, maps, out / "mesh.glb")
    progress("obj")
    export_obj(mesh, maps, out / "obj")
    progress("maps")
    save_maps(maps, out / "maps", exr=exr)
    progress("contact_sheet.png")
    rows = [previewer.six_views(name, material) for name, material in materials.items()]
    contact_sheet(rows, maps, out / "contact_sheet.png")
    if not frames:
        return []

    def counted() -> Iterator[Tensor]:
        for frame in previewer.turntable(maps, frames):
            progress("turntable")
            yield frame

    turntable = save_turntable(counted(), out / "turntable.mp4", FRAMES_PER_SECOND)
    return [turntable.note] if turntable.note else []
