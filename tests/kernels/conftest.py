"""Every op is tested through all its bodies: plain torch, the CPU's, Triton's by both its ways."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdslab.kernels import Backend
from tests.interpreted import INTERPRETED, interpreted_process

CPU_BODIES = ["reference", "cpu", *(["interpreted"] if INTERPRETED else [])]


@dataclass(frozen=True)
class Body:
    device: str
    backend: Backend


@pytest.fixture(params=[*CPU_BODIES, pytest.param("cuda", marks=pytest.mark.gpu)], scope="session")
def body(request: pytest.FixtureRequest) -> Body:
    if request.param == "reference":
        return Body("cpu", "reference")
    if request.param == "cpu":
        return Body("cpu", "auto")
    if request.param == "interpreted":
        pytest.importorskip("triton", reason="triton is not installed")
        return Body("cpu", "triton")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Body("cuda", "auto")


@pytest.fixture(scope="session")
def assert_within_budget() -> Callable[..., None]:
    """Compares with float64: within twice the equation's own error in low precision."""

    def check(name: str, actual: Tensor, truth: Tensor, low_precision: Tensor) -> None:
        assert actual.dtype == low_precision.dtype, name
        assert actual.shape == truth.shape, name
        truth = truth.double()
        error = (actual.cpu().double() - truth).abs().max().item()
        own_error = (low_precision.double() - truth).abs().max().item()
        compute = torch.promote_types(actual.dtype, torch.float32)
        size = truth.abs().max().item()
        # Triton's interpreter truncates to bfloat16, where a GPU rounds to nearest.
        truncation = torch.finfo(actual.dtype).eps * size
        # Of float64 the truth rounds as well, and its own error is not known.
        roundings = 4 if compute == torch.float32 else 32
        budget = max(2 * own_error, truncation) + roundings * torch.finfo(compute).eps * size
        assert error <= budget, f"{name}: error {error:.3e} exceeds the budget of {budget:.3e}"

    return check


@pytest.fixture(scope="session", autouse=True)
def interpreted_tests(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str] | None]:
    """A process that tests the interpreted bodies while the other tests run: it takes a minute."""
    if not any(item.name == "test_interpreted_bodies" for item in request.session.items):
        yield None
        return
    with interpreted_process(Path(__file__).parent) as process:
        yield process


@pytest.fixture(scope="module")
def triton_cache(tmp_path_factory: pytest.TempPathFactory):
    """Kernels are compiled anew, and leave nothing behind."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton_cache"))
        yield
