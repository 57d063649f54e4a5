"""What the page of ``--live`` shows: any view of maps of any size, as ``front.png`` shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import MAPS, dilate_seams, renormalized, resize_maps
from sdslab.meshes.mesh import Mesh
from sdslab.pictures.color import ColorMode
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.renderer import Renderer, make_backend
from sdslab.rendering.scene import sample_background
from sdslab.rendering.texels import covered_texels

Look = Literal["result", "albedo", "roughness", "metallic", "normal"]
LOOKS: tuple[Look, ...] = ("result", "albedo", "roughness", "metallic", "normal")
CPU = torch.device("cpu")


def fitted(maps: Tensor, covered: Tensor, size: int) -> Tensor:
    """Maps of any size at another one, with every texel outside the charts filled.

    The stages of a run have maps of different sizes; this is where they become those of one.

    Args:
        maps: [h, h, 8] on the CPU.
        covered: [h, h] bool, the texels of these maps that a face covers.
        size: height and width of the result.

    Returns:
        [size, size, 8], to which texels outside the charts have contributed nothing.
    """
    shrink = len(maps) // size
    if shrink <= 1:
        return resize_maps(dilate_seams(maps, covered), size)
    weight = covered[None, None].float()
    share = F.avg_pool2d(weight, shrink)
    mean = F.avg_pool2d(maps.movedim(-1, 0)[None] * weight, shrink) / share.clamp_min(1e-6)
    return dilate_seams(renormalized(mean[0].movedim(0, -1)), share[0, 0] > 0)


def covered_at(mesh: Mesh, size: int) -> Tensor:
    """[size, size] bool, the texels of maps of that size that a face covers."""
    return covered_texels(mesh, (size, size), make_backend("cpu", CPU))


@dataclass(frozen=True, eq=False)
class LiveScene:
    """What is shown, but for its material.

    Attributes:
        mesh: what is textured.
        lights: of the run on the CPU, by name; the first is ``front.png``'s. None: unlit.
        color_mode: of the renderer.
    """

    mesh: Mesh
    lights: Mapping[str, Environment]
    color_mode: ColorMode

    def renderer(self, supersampling: int) -> Renderer:
        """Renderer on the CPU, whatever the run computes on."""
        return Renderer(self.mesh, make_backend("cpu", CPU), CPU, self.color_mode, supersampling)

    @torch.no_grad()
    def picture(
        self,
        renderer: Renderer,
        camera: Cameras,
        size: tuple[int, int],
        maps: Tensor,
        look: Look,
        light: str,
        exposure: float,
    ) -> Tensor:
        """Renders one view on white.

        Args:
            renderer: from `renderer`.
            camera: one view.
            size: (height, width) of the picture.
            maps: [h, w, 8] as `material.py` describes.
            look: "result" is shaded; a single map is shown as its file holds it.
            light: a name of `lights`; ignored where there are none.
            exposure: in stops; 0 is ``front.png``'s.

        Returns:
            [height, width, 3] uint8, sRGB-encoded.
        """
        surface = renderer.see(camera, size)
        white = sample_background("white", 0, 0, 1, size)
        if look == "result":
            lighting = None
            if self.lights:
                fixed = Lighting.fixed(self.lights[light], 1)
                lighting = replace(fixed, intensity=fixed.intensity * 2**exposure)
            picture = renderer.picture(surface, maps, lighting, white)
        else:
            texels = renderer.look_up(surface, maps)[:, MAPS[look]]
            picture = surface.fill(texels.expand(-1, 3), white)
        return (picture[0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
