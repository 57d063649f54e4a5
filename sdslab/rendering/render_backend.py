"""What a rasteriser must do: find the visible faces, and look a texture up."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


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
            faces are equally near, the lower index wins.
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
