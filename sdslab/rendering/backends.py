"""The renderer's backends for a GPU, and which backend renders on a device."""

import importlib.util
import os
import sys
from typing import Any, Literal, final

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.rendering.render_backend import Fragments, RenderBackend, resolve, sample_texture

RendererName = Literal["auto", "cpu", "triton", "nvdiffrast"]
NVDIFFRAST_HELP = (
    'install NVIDIA\'s 0.4.0 with `pip install --no-build-isolation "sdslab[nvdiffrast]"`, which '
    "compiles it (PyPI has no nvdiffrast, and its diffrp-nvdiffrast 0.3.3.1 cannot be imported "
    "under pybind11 3; the licence allows non-commercial use only), or use --renderer triton"
)
TRITON_HELP = "install it with `pip install triton`, in the version that this torch asks for"


@final
class TritonBackend(RenderBackend):
    """Visibility and look-ups by Triton's kernels, attributes in plain torch: on any GPU.

    Raises:
        ImportError: there is no Triton.
    """

    def __init__(self) -> None:
        from sdslab.rendering.triton_texture import sample_texture_triton
        from sdslab.rendering.triton_visibility import visible_faces_triton

        self._visible_faces, self._sample_texture = visible_faces_triton, sample_texture_triton

    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        return self._visible_faces(clip, faces, resolution)

    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        return resolve(clip, faces, ids, attributes)

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        return self._sample_texture(maps, uv, uv_derivatives)


@final
class TorchBackend(RenderBackend):
    """Visibility by the CPU's kernel, everything else in plain torch: a GPU without Triton."""

    def __init__(self) -> None:
        from sdslab.rendering.cpu_backend import CpuBackend

        self._on_cpu = CpuBackend()

    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        return self._on_cpu.visibility(clip.cpu(), faces.cpu(), resolution).to(clip.device)

    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        return resolve(clip, faces, ids, attributes)

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        return sample_texture(maps, uv, uv_derivatives)


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
        return resolve(clip, faces, ids, attributes)

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        looked_up = self._nvdiffrast.texture(
            maps[None].contiguous(),
            uv[None, None].contiguous(),
            uv_da=uv_derivatives[None, None].contiguous(),
            filter_mode="linear-mipmap-linear",
            boundary_mode="wrap",
        )
        return looked_up[0, 0]


def renderer_for(device: torch.device) -> RendererName:
    """What "auto" means on a device; "auto" itself on a GPU that Triton is missing for."""
    if device.type == "cpu":
        return "cpu"
    return "triton" if _is_installed("triton") else "auto"


def make_backend(name: RendererName, device: torch.device) -> RenderBackend:
    """Imports and makes a backend.

    Args:
        name: "auto" is the CPU's on a CPU, and Triton's on a GPU of any make; where Triton is
            missing, a note says what renders in its place.
        device: where the renderer is.

    Raises:
        UserError: the backend cannot run on that device, or its package is not installed.
    """
    if name == "auto":
        name = renderer_for(device)
    on_gpu = device.type == "cuda"  # ROCm's builds of torch call theirs so, too
    match name:
        case "auto":
            print(  # noqa: T201
                f"note: Triton is missing, so the CPU finds what is visible and plain torch looks "
                f"textures up, which is slower; {TRITON_HELP}",
                file=sys.stderr,
            )
            return TorchBackend()
        case "cpu":
            if on_gpu:
                raise UserError(
                    f"--renderer cpu renders on the CPU, got --device {device}; use --renderer "
                    f"triton there, or --device cpu"
                )
            from sdslab.rendering.cpu_backend import CpuBackend

            return CpuBackend()
        case "triton":
            if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
                raise UserError(f"--renderer triton needs a GPU, got {device}; use --renderer cpu")
            if not _is_installed("triton"):
                raise UserError(
                    f"--renderer triton needs the package triton: {TRITON_HELP}, or use --renderer "
                    f"auto"
                )
            return TritonBackend()
        case "nvdiffrast":
            if not on_gpu or torch.version.hip is not None:
                raise UserError(
                    f"--renderer nvdiffrast needs a CUDA device, got {device}; use --renderer auto"
                )
            if not _is_installed("nvdiffrast"):
                raise UserError(
                    f"--renderer nvdiffrast needs the package nvdiffrast: {NVDIFFRAST_HELP}"
                )
            return NvdiffrastBackend(device)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
