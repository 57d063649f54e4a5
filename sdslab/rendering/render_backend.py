"""What a renderer's backend must do, and its reference in plain torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, stack

# A pixel centre this near to an edge, as a share of the face, lies in both of the edge's faces:
# rounding must not make it lie in neither.
ON_EDGE = 1e-12


def face_bits(faces: int) -> int:
    """Bits that hold the numbers 0 to ``faces``.

    The other 62 − `face_bits` of a positive 64-bit number hold (z/w + 1) · 2^(61 − `face_bits`), so
    that the least number is that of the nearest face, and of the lowest index among equals.
    """
    return max(1, faces.bit_length())


@dataclass(frozen=True, eq=False)
class Fragments:
    """The covered pixels of b pictures, in order of sample, row, column; n of them.

    Attributes:
        shape: (b, height, width) of the pictures.
        pixel: [n] int64, index into the flattened [b, height, width]; row 0 is the top.
        face: [n] int64.
        front_facing: [n] bool, whether the face's front (counter-clockwise) is seen.
        barycentrics: [n, 3], perspective-correct, of the face's corners.
        depth: [n], z/w in [−1, 1], −1 at the near plane.
        attributes: [n, k], interpolated.
        uv_derivatives: [n, 4] ∂u/∂X, ∂u/∂Y, ∂v/∂X, ∂v/∂Y per pixel, of the first two attributes.
    """

    shape: tuple[int, int, int]
    pixel: Tensor
    face: Tensor
    front_facing: Tensor
    barycentrics: Tensor
    depth: Tensor
    attributes: Tensor
    uv_derivatives: Tensor

    @property
    def sample(self) -> Tensor:
        """[n] int64, which picture each belongs to."""
        return self.pixel // (self.shape[1] * self.shape[2])


class RenderBackend(ABC):
    """Visibility, attributes and texture look-up on one kind of device."""

    @abstractmethod
    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        """Finds the nearest face at every pixel centre.

        Args:
            clip: [b, v, 4] float32, homogeneous clip coordinates; y/w = +1 is the picture's top.
            faces: [f, 3] int32; both sides are seen.
            resolution: (height, width).

        Returns:
            [b, height, width] int32: 0 where nothing is seen, else 1 + the face's index. Where two
            faces are equally near, to `face_bits`' step of z/w, the lower index wins.
        """

    @abstractmethod
    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        """Interpolates attributes at the covered pixels of `visibility`'s result.

        Args:
            clip: as in `visibility`.
            faces: as in `visibility`.
            ids: what `visibility` returned.
            attributes: [v, k] float32 per vertex, the texture coordinates first.
        """

    @abstractmethod
    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        """Trilinear look-up in the mip pyramid of a texture that repeats.

        Args:
            maps: [h, w, c] float32, row 0 at v = 0, sides powers of two; differentiable.
            uv: [n, 2]; texel (i, j) is centred at u = (j + ½)/w, v = (i + ½)/h.
            uv_derivatives: [n, 4], as in `Fragments`.

        Returns:
            [n, c].
        """


def resolve(clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
    """Interpolates vertex attributes at the covered pixels: the reference of the CPU's kernel.

    In float64, whatever it is given: in float32 small faces would lose their barycentrics.

    With corners p_k = (x, y, w) and the pixel centre f = (f_x, f_y, 1), the edge functions
    a_k = f · (p_i × p_j) are the perspective-correct barycentrics up to their sum; they are affine
    in f, which gives the derivatives: ∂t/∂f_x = (Σ ∂a_k/∂f_x t_k − t Σ ∂a_k/∂f_x) / Σ a_k.

    Args:
        clip: [b, v, 4].
        faces: [f, 3].
        ids: [b, h, w] from `RenderBackend.visibility`.
        attributes: [v, k], texture coordinates first.

    Source: Olano and Greer 1997, "Triangle scan conversion using 2D homogeneous coordinates".
    """
    batch, height, width = ids.shape
    pixel = ids.flatten().nonzero()[:, 0]
    face = ids.flatten()[pixel].long() - 1
    sample = pixel // (height * width)
    row, column = pixel % (height * width) // width, pixel % width
    corners = faces.long()[face]  # [n, 3]
    clip_corners = clip[sample[:, None], corners]  # [n, 3, 4]
    x, y, z, w = clip_corners.double().unbind(-1)
    fx = ((2 * column + 1).double() / width - 1)[:, None]
    fy = (1 - (2 * row + 1).double() / height)[:, None]
    # Corners shifted by f w: the same edge functions with less cancellation.
    a = _edge_functions(x - fx * w, y - fy * w)  # [n, 3]
    total = a.sum(-1, keepdim=True)
    barycentrics = a / total
    determinant = (a * w).sum(-1)
    corner_attributes = attributes[corners]  # [n, 3, k]
    uv_corners = corner_attributes[..., :2].double()
    uv = (barycentrics[..., None] * uv_corners).sum(1)
    gradient_x, gradient_y = _edge_functions(y, w), _edge_functions(w, x)  # ∂a/∂f_x, ∂a/∂f_y
    by_x = (gradient_x[..., None] * (uv_corners - uv[:, None])).sum(1) / total * (2 / width)
    by_y = (gradient_y[..., None] * (uv_corners - uv[:, None])).sum(1) / total * (-2 / height)
    return Fragments(
        shape=(batch, height, width),
        pixel=pixel,
        face=face,
        front_facing=determinant > 0,
        barycentrics=barycentrics.to(clip),
        depth=((a * z).sum(-1) / determinant).to(clip),
        attributes=(barycentrics.to(attributes)[..., None] * corner_attributes).sum(1),
        uv_derivatives=stack((by_x, by_y), -1).flatten(1).to(clip),
    )


def _edge_functions(p: Tensor, q: Tensor) -> Tensor:
    """p_i q_j − q_i p_j for the corner pairs (1, 2), (2, 0), (0, 1) of [n, 3] coordinates."""
    p_next, q_next = p.roll(-1, -1), q.roll(-1, -1)
    p_last, q_last = p.roll(-2, -1), q.roll(-2, -1)
    return p_next * q_last - q_next * p_last


def mip_pyramid(maps: Tensor) -> list[Tensor]:
    """Level 0 is the texture; each next one halves both sides (2×2 box) until one texel is left.

    Args:
        maps: [h, w, c], sides powers of two.
    """
    levels = [maps]
    for height, width in level_sizes(maps.shape)[1:]:
        kernel = (levels[-1].shape[0] // height, levels[-1].shape[1] // width)
        channels_first = levels[-1].movedim(-1, 0)[None]
        levels.append(F.avg_pool2d(channels_first, kernel)[0].movedim(0, -1))
    return levels


def level_sizes(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Heights and widths of the levels of a pyramid over maps [h, w, c].

    Raises:
        ValueError: a side is no power of two; kernels wrap by a bit mask.
    """
    height, width = shape[:2]
    if any(side < 1 or side & (side - 1) for side in (height, width)):
        raise ValueError(
            f"maps must be [h, w, c] with sides that are powers of two, got {list(shape)}; "
            f"resize them"
        )
    levels = max(height, width).bit_length()
    return [(max(1, height >> level), max(1, width >> level)) for level in range(levels)]


def level_of_detail(uv_derivatives: Tensor, height: int, width: int) -> Tensor:
    """½ log2 of the squared major axis of each pixel's footprint in texels, at least 0.

    The footprint is the ellipse that (du, dv) maps the unit disc of pixels to; its squared axes are
    the eigenvalues of the 2×2 matrix [[A, C], [C, B]].

    Args:
        uv_derivatives: [n, 4] ∂u/∂X, ∂u/∂Y, ∂v/∂X, ∂v/∂Y.
        height: of the texture.
        width: of the texture.
    """
    by_pixel = uv_derivatives.T
    (ux, uy), (vx, vy) = width * by_pixel[:2], height * by_pixel[2:]
    a, b, c = ux.square() + vx.square(), uy.square() + vy.square(), ux * uy + vx * vy
    major = (a + b) / 2 + ((a - b).square() / 4 + c.square()).sqrt()
    return major.clamp_min(1).log2() / 2


def sample_texture(maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
    """Looks a texture up; differentiable in the texture, any float dtype.

    Args:
        maps: [h, w, c], row 0 at v = 0, sides powers of two; repeats beyond [0, 1].
        uv: [n, 2]; texel (i, j) is centred at u = (j + ½)/w, v = (i + ½)/h.
        uv_derivatives: [n, 4], per pixel.

    Returns:
        [n, c].
    """
    levels = mip_pyramid(maps)
    lod = level_of_detail(uv_derivatives, *maps.shape[:2]).clamp_max(len(levels) - 1)
    lower = lod.long().clamp_max(max(0, len(levels) - 2))
    texels = torch.cat([level.flatten(0, 1) for level in levels])
    heights, widths = (
        torch.tensor([level.shape[axis] for level in levels], device=uv.device) for axis in (0, 1)
    )
    starts = torch.cumsum(heights * widths, 0) - heights * widths
    fraction = (lod - lower)[:, None]
    result = torch.zeros(len(uv), maps.shape[-1], dtype=maps.dtype, device=maps.device)
    for level, share in ((lower, 1 - fraction), ((lower + 1), fraction)):
        level = level.clamp_max(len(levels) - 1)
        height, width = heights[level], widths[level]
        x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        for dx, along_x in ((0, 1 - fx), (1, fx)):
            for dy, along_y in ((0, 1 - fy), (1, fy)):
                column, row = (x0.long() + dx) % width, (y0.long() + dy) % height
                result = (
                    result
                    + share * along_x * along_y * texels[starts[level] + row * width + column]
                )
    return result
