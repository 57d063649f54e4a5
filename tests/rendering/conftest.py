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


# Triton's kernels run on the CPU in its interpreter, and on a GPU where there is one.
TRITON = [*(["interpreted"] if INTERPRETED else []), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=TRITON)
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    return triton_device_of(request.param)


def triton_device_of(name: str) -> torch.device:
    """Device of a value of `TRITON`."""
    pytest.importorskip("triton", reason="triton is not installed")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cpu" if name == "interpreted" else "cuda")
