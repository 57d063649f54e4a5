"""The nvdiffrast backend against a stand-in that keeps nvdiffrast's conventions, on the CPU.

The real one needs CUDA: the tests of every backend repeat on it under the `gpu` marker.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from sdslab.meshes.material import constant_material
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.backends import NvdiffrastBackend
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer


def rasterize(
    context: object, pos: Tensor, tri: Tensor, resolution: tuple[int, int], *, grad_db: bool
) -> tuple[Tensor, Tensor]:
    """Row 0 lies at y/w = −1; channel 3 is 1 + the triangle's index, as a float."""
    assert context == "context"
    assert not grad_db
    assert pos.is_contiguous()
    ids = CpuBackend().visibility(pos, tri, resolution).flip(1)
    raster = torch.zeros(*ids.shape, 4)
    raster[..., 3] = ids.float()
    return raster, torch.empty(0)


def texture(
    tex: Tensor, uv: Tensor, *, uv_da: Tensor, filter_mode: str, boundary_mode: str
) -> Tensor:
    """[1, h, w, c] textures at [1, 1, n, 2] points, to [1, 1, n, c]."""
    assert (filter_mode, boundary_mode) == ("linear-mipmap-linear", "wrap")
    assert tex.ndim == uv.ndim == uv_da.ndim == 4
    return CpuBackend().sample_texture(tex[0], uv[0, 0], uv_da[0, 0])[None, None]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> NvdiffrastBackend:
    package, module = ModuleType("nvdiffrast"), ModuleType("nvdiffrast.torch")
    operations = SimpleNamespace(
        rasterize=rasterize,
        texture=texture,
        RasterizeCudaContext=lambda device: "context",  # noqa: ARG005
    )
    module.__dict__.update(operations.__dict__)
    package.__dict__["torch"] = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    return NvdiffrastBackend(torch.device("cpu"))


def test_its_pictures_and_gradients_equal_the_cpus(backend: NvdiffrastBackend):
    mesh = PROCEDURAL_MESHES["torus"]()
    cameras = CameraSampler(radius=(4, 4)).sample(5, 0, 2)
    maps = constant_material(16, 16)
    maps[:, :8, :3] = torch.tensor([0.9, 0.1, 0.2])
    maps.requires_grad_()
    pictures, gradients = [], []
    for chosen in (backend, CpuBackend()):
        renderer = Renderer(mesh, chosen)
        picture = renderer.picture(renderer.see(cameras, 64), maps, None, torch.ones(2, 3, 64, 64))
        pictures.append(picture.detach())
        gradients.append(torch.autograd.grad(picture.square().sum(), maps)[0])
    assert psnr_db(*pictures) > 50
    assert (gradients[0] - gradients[1]).abs().max() < 1e-2 * gradients[1].abs().max()
