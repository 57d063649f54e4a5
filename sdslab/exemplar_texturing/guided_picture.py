"""What an exemplar's denoiser is shown of a surface: the bare maps that the photographs have."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.exemplar_texturing.tangent_field import on_screen
from sdslab.meshes.material import NORMAL
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene


@dataclass(frozen=True, eq=False)
class GuidedPicture:
    """Pictures of some channels of a material, without light: colours do not hang on it.

    Attributes:
        renderer: of the mesh.
        guided: indices of the material's channels, in order.
    """

    renderer: Renderer
    guided: tuple[int, ...]

    def __call__(self, surface: Surface, maps: Tensor, scene: Scene) -> Tensor:
        """[b, c, h, w] in [0, 1], differentiable in the maps; normals are turned to the screen."""
        texels = self.renderer.look_up(surface, maps)
        if NORMAL.start in self.guided:
            x, y, z = (2 * texels[:, NORMAL] - 1).unbind(1)
            across, up = on_screen(
                surface.tangent[:, :3], surface, scene.cameras.world_to_camera
            ).unbind(1)
            side = surface.tangent[:, 3]  # the bitangent lies a quarter turn on, or back
            turned = torch.stack((x * across - y * side * up, x * up + y * side * across, z), 1)
            texels = torch.cat((texels[:, : NORMAL.start], (turned + 1) / 2), 1)
        values = texels[:, : len(self.guided)]
        if self.guided != tuple(range(len(self.guided))):
            values = texels[:, list(self.guided)]
        return surface.fill(values, scene.background.to(values))
