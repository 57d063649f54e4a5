import pytest
import torch

from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.renderer import make_backend
from tests.interpreted import INTERPRETED


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "nvdiffrast"]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every test of a backend runs on the CPU, and on CUDA where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device(request.param)


@pytest.fixture
def backend(device: torch.device) -> RenderBackend:
    if device.type == "cuda":
        pytest.importorskip("nvdiffrast", reason="needs nvdiffrast")
    return make_backend("auto", device)


_INTERPRETED = ["interpreted"] if INTERPRETED else []


@pytest.fixture(params=[*_INTERPRETED, pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton's kernels run: the CPU in its interpreter, and a GPU where there is one."""
    pytest.importorskip("triton", reason="triton is not installed")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cpu" if request.param == "interpreted" else "cuda")
