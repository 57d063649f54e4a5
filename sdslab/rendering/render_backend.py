"""What a rasteriser must do: find the visible faces, and look a texture up."""

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdslab.errors import UserError

RendererName = Literal["auto", "cpu", "nvdiffrast"]
NVDIFFRAST_HELP = (
    "install it with `pip install diffrp-nvdiffrast` (or NVIDIA's own repository; its licence "
    "allows non-commercial use only), or use --renderer cpu"
)


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


def make_backend(name: RendererName, device: torch.device) -> RenderBackend:
    """Imports and makes a backend; "auto" is nvdiffrast on a CUDA device, else the CPU's.

    Raises:
        UserError: the backend cannot run on that device, or nvdiffrast is not installed.
    """
    if name == "auto":
        name = "nvdiffrast" if device.type == "cuda" else "cpu"
    if name == "cpu":
        if device.type != "cpu":
            raise UserError(
                f"--renderer cpu renders on the CPU, got --device {device}; use --renderer "
                f"nvdiffrast there, or --device cpu"
            )
        from sdslab.rendering.cpu_backend import CpuBackend

        return CpuBackend()
    if device.type != "cuda":
        raise UserError(
            f"--renderer nvdiffrast needs a CUDA device, got {device}; use --renderer cpu"
        )
    if importlib.util.find_spec("nvdiffrast") is None:
        raise UserError(f"--renderer nvdiffrast needs the package nvdiffrast: {NVDIFFRAST_HELP}")
    from sdslab.rendering.nvdiffrast_backend import NvdiffrastBackend

    return NvdiffrastBackend(device)
