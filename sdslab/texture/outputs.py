"""What a run leaves: the textured mesh, its maps, and pictures of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material_io import save_maps
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.preview import Previewer, contact_sheet, save_turntable

FRAMES_PER_SECOND = 24
FIXED_OUTPUTS = 4  # beside the turntable's frames, for a progress bar


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
