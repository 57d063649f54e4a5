"""The renderer's backend for CUDA, on nvdiffrast (not shipped; its licence is non-commercial)."""

from typing import Any, final

import torch
from torch import Tensor

from sdslab.rendering import torch_reference
from sdslab.rendering.render_backend import Fragments, RenderBackend


@final
class NvdiffrastBackend(RenderBackend):
    """Visibility and texture look-ups by nvdiffrast, attributes by plain torch.

    nvdiffrast snaps vertices to 1/16 of a pixel, so ids along edges differ a little from the CPU's.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        import nvdiffrast.torch  # type: ignore[import-not-found]

        self._nvdiffrast: Any = nvdiffrast.torch
        self._context = self._nvdiffrast.RasterizeCudaContext(device=device)
        self._flip = torch.tensor([1.0, -1.0, 1.0, 1.0], device=device)

    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        # Its first row is the one at y/w = −1.
        upside_down = clip * self._flip
        raster, _ = self._nvdiffrast.rasterize(
            self._context, upside_down.contiguous(), faces.contiguous(), resolution, grad_db=False
        )
        return raster[..., 3].int()

    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        return torch_reference.resolve(clip, faces, ids, attributes)

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        looked_up = self._nvdiffrast.texture(
            maps[None].contiguous(),
            uv[None, None].contiguous(),
            uv_da=uv_derivatives[None, None].contiguous(),
            filter_mode="linear-mipmap-linear",
            boundary_mode="wrap",
        )
        return looked_up[0, 0]
