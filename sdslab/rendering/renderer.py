"""A mesh, a camera, a material and a light become a picture; gradients go to the material.

A picture is made in two calls, so that several materials share one visibility: `Renderer.see` finds
what each pixel shows, `Renderer.picture` looks the maps up and shades them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.meshes.material import ALBEDO, METALLIC, NORMAL, ROUGHNESS
from sdslab.meshes.mesh import Mesh
from sdslab.pictures.color import ColorMode, linear_to_srgb, srgb_to_linear
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.lighting import Lighting
from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.shading import shade, shade_unlit


@dataclass(frozen=True, eq=False)
class Surface:
    """What the covered sub-pixels of b pictures show, in world space; n of them.

    Attributes:
        shape: (b, height, width) of the pictures.
        supersampling: s; there are s × s sub-pixels to a pixel.
        pixel: [n] int64, into the flattened [b, height, width].
        view: [n] int64.
        uv: [n, 2].
        uv_derivatives: [n, 4] per sub-pixel.
        position: [n, 3].
        normal: [n, 3] unit, on the side that is seen.
        tangent: [n, 4], w its handedness.
        eye: [b, 3].
        depth: [n], distance from the eye along the direction of view.
        padded: whether some rows are of no pixel at all: their `pixel` is b · height · width, the
            rest of them is whatever.
    """

    shape: tuple[int, int, int]
    supersampling: int
    pixel: Tensor
    view: Tensor
    uv: Tensor
    uv_derivatives: Tensor
    position: Tensor
    normal: Tensor
    tangent: Tensor
    eye: Tensor
    depth: Tensor
    padded: bool = False

    def fill(self, values: Tensor, background: Tensor) -> Tensor:
        """Averages values over each pixel; what is not covered has the background's.

        Args:
            values: [n, k] of the sub-pixels.
            background: [b, k, height, width].

        Returns:
            [b, k, height, width].
        """
        b, height, width = self.shape
        pixels = b * height * width
        flat = background.movedim(1, -1).reshape(pixels, -1)
        if self.supersampling > 1:
            flat = flat * (1 - self.coverage().view(-1, 1))
        if self.padded:
            flat = F.pad(flat, (0, 0, 0, 1))  # for the rows of no pixel
        if self.supersampling == 1:
            filled = flat.index_copy(0, self.pixel, values)
        else:
            filled = flat.index_add(0, self.pixel, values / self.supersampling**2)
        return filled[:pixels].view(b, height, width, -1).movedim(-1, 1)

    def coverage(self) -> Tensor:
        """[b, 1, height, width], the covered share of each pixel."""
        b, height, width = self.shape
        # Not bincount, for which a GPU would have to be waited for.
        counts = self.depth.new_zeros(b * height * width + 1)
        counts.index_add_(0, self.pixel, torch.ones_like(self.depth))
        return (counts[:-1] / self.supersampling**2).view(b, 1, height, width)


@final
class Renderer:
    """Renders one mesh.

    Args:
        mesh: never modified; it is seen normalised into [−1, 1]³, its up along +Y.
        backend: where visibility and texture look-ups are computed.
        device: where everything else is.
        color_mode: "srgb" (albedo decoded, radiance encoded), or "castex" (no conversion anywhere).
        supersampling: sub-pixels along each side of a pixel: 1, 2 or 4.
    """

    def __init__(
        self,
        mesh: Mesh,
        backend: RenderBackend,
        device: torch.device | str = "cpu",
        color_mode: ColorMode = "srgb",
        supersampling: int = 1,
    ) -> None:
        if supersampling not in (1, 2, 4):
            raise UserError(f"supersampling must be 1, 2 or 4, got {supersampling}")
        self.mesh, self.backend, self.device = mesh, backend, torch.device(device)
        self.color_mode: ColorMode = color_mode
        self.supersampling = supersampling
        self.faces = mesh.faces.int().to(device)
        self.positions = mesh.render_positions.to(device)
        used = mesh.normalization.apply(mesh.used_positions).clamp(-1, 1).float()
        self.extreme_points = _extreme_points(used)  # [k, 3] on the CPU, for framing views
        self.bounding_radius = used.norm(dim=1).max().item()  # around the origin
        self._attributes = torch.cat(
            (mesh.uv, mesh.render_positions, mesh.render_normals, mesh.render_tangents), dim=1
        ).to(device, torch.float32)

    @torch.no_grad()
    def see(self, cameras: Cameras, resolution: int | tuple[int, int]) -> Surface:
        """Finds what each pixel shows.

        Args:
            cameras: b views.
            resolution: of the pictures, (height, width) where the two differ.
        """
        cameras = cameras.to(self.device)
        b, s = len(cameras), self.supersampling
        height, width = (resolution,) * 2 if isinstance(resolution, int) else resolution
        clip = F.pad(self.positions, (0, 1), value=1.0) @ cameras.world_to_clip.mT
        ids = self.backend.visibility(clip, self.faces, (height * s, width * s))
        fragments = self.backend.resolve(clip, self.faces, ids, self._attributes)
        uv, position, normal, tangent = fragments.attributes.split((2, 3, 3, 4), dim=1)
        view = fragments.sample
        # The back of a face has the whole frame reversed, as glTF viewers do.
        side = torch.where(fragments.front_facing, 1.0, -1.0)[:, None]
        row, column = (
            fragments.pixel // (width * s) % (height * s) // s,
            fragments.pixel % (width * s) // s,
        )
        forward = cameras.world_to_camera[:, 2, :3]
        eye = cameras.eye
        return Surface(
            shape=(b, height, width),
            supersampling=s,
            pixel=(view * height + row) * width + column,
            view=view,
            uv=uv.contiguous(),
            uv_derivatives=fragments.uv_derivatives,
            position=position,
            normal=F.normalize(normal, dim=1) * side,
            tangent=tangent * side,
            eye=eye,
            depth=((eye[view] - position) * forward[view]).sum(1),
        )

    def look_up(self, surface: Surface, maps: Tensor) -> Tensor:
        """The material's eight channels at each sub-pixel, [n, 8]; differentiable in ``maps``."""
        return self.backend.sample_texture(maps, surface.uv, surface.uv_derivatives)

    def picture(
        self, surface: Surface, maps: Tensor, lighting: Lighting | None, background: Tensor
    ) -> Tensor:
        """Shades a material; differentiable in it.

        Args:
            surface: from `see`.
            maps: [h, w, 8] as `material.py` describes.
            lighting: of the b views, or None for the albedo alone.
            background: [b, 3, height, width], sRGB-encoded, as `sample_background` draws it.

        Returns:
            [b, 3, height, width], sRGB-encoded (with "castex": as CasTex leaves it), not clamped.
        """
        texels = self.look_up(surface, maps)
        if lighting is None:
            radiance = shade_unlit(texels, self.color_mode)
        else:
            radiance = shade(
                texels,
                surface.position,
                surface.normal,
                surface.tangent,
                surface.eye,
                surface.view,
                lighting,
                self.color_mode,
            )
        background = background.to(self.device)
        if self.color_mode == "castex":
            return surface.fill(radiance, background)
        if surface.supersampling == 1:  # encoding before filling is the same, and less of it
            return surface.fill(linear_to_srgb(radiance), background)
        return linear_to_srgb(surface.fill(radiance, srgb_to_linear(background)))

    @torch.no_grad()
    def g_buffer(self, surface: Surface, maps: Tensor) -> dict[str, Tensor]:
        """Pictures of the geometry and of each map, for previews; 0 where nothing is covered.

        Returns:
            [b, k, height, width] each: "mask" (covered share), "depth" (distance along the view),
            "normal" (world space, (n + 1)/2), "uv" (wrapped into [0, 1)), "albedo", "roughness",
            "metallic", "normal_map".
        """
        texels = self.look_up(surface, maps)
        values: dict[str, Callable[[], Tensor]] = {
            "depth": lambda: surface.depth[:, None],
            "normal": lambda: (surface.normal + 1) / 2,
            "uv": lambda: surface.uv - surface.uv.floor(),
            "albedo": lambda: texels[:, ALBEDO],
            "roughness": lambda: texels[:, ROUGHNESS : ROUGHNESS + 1],
            "metallic": lambda: texels[:, METALLIC : METALLIC + 1],
            "normal_map": lambda: texels[:, NORMAL],
        }
        b, height, width = surface.shape
        pictures = {"mask": surface.coverage()}
        for name, value in values.items():
            sub_pixels = value()
            background = sub_pixels.new_zeros(b, sub_pixels.shape[1], height, width)
            pictures[name] = surface.fill(sub_pixels, background)
        return pictures


def _extreme_points(points: Tensor, directions: int = 256) -> Tensor:
    """The points [k, 3] that lie farthest in evenly spread directions: nearly the convex hull."""
    index = torch.arange(directions, dtype=torch.float64)
    height = 1 - (2 * index + 1) / directions  # a Fibonacci lattice on the sphere
    angle = index * math.pi * (3 - math.sqrt(5))
    rim = (1 - height.square()).sqrt()
    direction = torch.stack((rim * angle.cos(), height, rim * angle.sin()), dim=1).float()
    # The farthest ones of each run first: a table of all products would take gigabytes.
    farthest = [run[(run @ direction.T).argmax(0)] for run in points.split(2**16)]
    candidates = torch.cat(farthest)
    return candidates[(candidates @ direction.T).argmax(0).unique()]
