import pytest
import torch

from sdslab.rendering.backends import RendererName, make_backend
from sdslab.rendering.render_backend import RenderBackend
from tests.interpreted import INTERPRETED

# Triton's kernels run on the CPU in its interpreter, and on a GPU where there is one.
TRITON = [*(["interpreted"] if INTERPRETED else []), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=TRITON)
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    return triton_device_of(request.param)


@pytest.fixture
def wide_programs(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """More faces and larger tiles a program, which cost the interpreter no more."""
    from sdslab.rendering import triton_visibility

    if triton_device.type == "cpu":
        monkeypatch.setitem(triton_visibility.BLOCK, "BLOCK", 4096)
        monkeypatch.setattr(triton_visibility, "TILE", {"ROWS": 64, "COLUMNS": 64})


def triton_device_of(name: str) -> torch.device:
    """Device of a value of `TRITON`."""
    pytest.importorskip("triton", reason="triton is not installed")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cpu" if name == "interpreted" else "cuda")


@pytest.fixture(
    params=[
        "cpu",
        *(["triton interpreted"] if INTERPRETED else []),
        pytest.param("triton", marks=pytest.mark.gpu),
        pytest.param("nvdiffrast", marks=pytest.mark.gpu),
    ]
)
def renderer_name(request: pytest.FixtureRequest) -> str:
    """Every test of a backend runs with all of them that can run here."""
    name = request.param
    pytest.importorskip("triton" if "triton" in name else "torch", reason="triton is missing")
    if name in ("triton", "nvdiffrast") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if name == "nvdiffrast":
        pytest.importorskip("nvdiffrast", reason="needs nvdiffrast")
    return name


@pytest.fixture
def device(renderer_name: str) -> torch.device:
    return torch.device("cuda" if renderer_name in ("triton", "nvdiffrast") else "cpu")


@pytest.fixture
def backend(renderer_name: str, device: torch.device) -> RenderBackend:
    names: dict[str, RendererName] = {
        "cpu": "cpu", "triton interpreted": "triton", "triton": "triton",
        "nvdiffrast": "nvdiffrast",
    }  # fmt: skip
    return make_backend(names[renderer_name], device)
