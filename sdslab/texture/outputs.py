"""What a run leaves: the textured mesh, its maps, and pictures of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material_io import save_maps
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.backgrounds import sample_background
from sdslab.rendering.cameras import Cameras, six_views, turntable_views
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.preview import contact_sheet, save_turntable
from sdslab.rendering.renderer import Renderer

VIEW_NAMES = ("front", "right", "back", "left", "above", "below")
FRAMES_PER_SECOND = 24
FIXED_OUTPUTS = 4  # beside the turntable's frames, for a progress bar


@dataclass(frozen=True, eq=False)
class Previewer:
    """Makes pictures for people.

    Attributes:
        renderer: of the mesh, supersampled.
        environment: the light, or None for the albedo alone.
        size: height and width of a picture.
    """

    renderer: Renderer
    environment: Environment | None
    size: int = 384

    @torch.no_grad()
    def picture(self, cameras: Cameras, maps: Tensor) -> Tensor:
        """[b, 3, size, size] in [0, 1], on white, on the CPU."""
        lighting = self.environment and Lighting.fixed(self.environment, len(cameras))
        surface = self.renderer.see(cameras, self.size)
        background = sample_background("white", 0, 0, len(cameras), (self.size, self.size))
        maps = maps.to(self.renderer.device)
        return self.renderer.picture(surface, maps, lighting, background).clamp(0, 1).cpu()

    def turntable(self, maps: Tensor, frames: int) -> Iterator[Tensor]:
        """[3, size, size] each, once around the object."""
        cameras = turntable_views(frames)
        for frame in range(frames):
            yield self.picture(cameras[frame : frame + 1], maps)[0]


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
    rows = [
        [
            (f"{name}, {view}", picture)
            for view, picture in zip(
                VIEW_NAMES, previewer.picture(six_views(), material), strict=True
            )
        ]
        for name, material in materials.items()
    ]
    contact_sheet(rows, maps, out / "contact_sheet.png")
    if not frames:
        return []

    def counted() -> Iterator[Tensor]:
        for frame in previewer.turntable(maps, frames):
            progress("turntable")
            yield frame

    turntable = save_turntable(counted(), out / "turntable.mp4", FRAMES_PER_SECOND)
    return [turntable.note] if turntable.note else []
