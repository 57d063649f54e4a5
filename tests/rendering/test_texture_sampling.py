"""Texture look-up: exact cases, the adjoint, and every backend against the torch reference."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.rendering.cpu_texture import sample_texture_cpu
from sdslab.rendering.render_backend import (
    RenderBackend,
    level_of_detail,
    mip_pyramid,
    sample_texture,
)
from tests.rendering.conftest import TRITON, triton_device_of

Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZES = [(1, 1), (1, 8), (8, 1), (4, 16), (32, 32), (64, 8)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lookups(
    n: int, spread: float = 0.05, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Points that wrap, with footprints from a fraction of a texel to the whole texture."""
    uv = 3 * random(n, 2, seed=1, dtype=dtype)
    size = spread * 4 ** random(n, 1, seed=3, dtype=dtype)
    return uv, size * random(n, 4, seed=2, dtype=dtype)


@pytest.fixture(params=["reference", "cpu", *TRITON])
def sample(request: pytest.FixtureRequest) -> Sampler:
    """Every body of the look-up; tensors of the CPU in and out."""
    if request.param in ("reference", "cpu"):
        return sample_texture if request.param == "reference" else sample_texture_cpu
    device = triton_device_of(request.param)
    from sdslab.rendering.triton_texture import sample_texture_triton

    return lambda *tensors: sample_texture_triton(*(x.to(device) for x in tensors)).cpu()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_constant_texture_is_constant_everywhere(size: tuple[int, int], sample: Sampler):
    uv, derivatives = lookups(500)
    value = torch.tensor([0.3, -2.0, 7.0])
    looked_up = sample(value.expand(*size, 3).contiguous(), uv, derivatives)
    assert (looked_up - value).abs().max() < 2e-6


def test_a_linear_texture_is_exact_between_texel_centres(sample: Sampler):
    height, width = 16, 32
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    maps = torch.stack((columns, rows), -1)
    inside = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    half = torch.tensor([0.5 / width, 0.5 / height])
    uv = half + inside * (1 - 2 * half)
    assert (sample(maps, uv, torch.zeros(300, 4)) - uv).abs().max() < 1e-6


def test_across_the_border_the_texture_repeats(sample: Sampler):
    maps = random(8, 8, 3)
    between = torch.tensor([[0.0, 0.5 / 8], [1.0, 0.5 / 8], [-3.0, 0.5 / 8 + 2]])
    expected = (maps[0, 0] + maps[0, -1]) / 2
    assert (sample(maps, between, torch.zeros(3, 4)) - expected).abs().max() < 1e-6


def test_the_pyramid_halves_by_means_down_to_one_texel():
    maps = random(4, 16, 2, dtype=torch.float64)
    levels = mip_pyramid(maps)
    assert [tuple(level.shape[:2]) for level in levels] == [(4, 16), (2, 8), (1, 4), (1, 2), (1, 1)]
    assert torch.allclose(levels[-1][0, 0], maps.mean((0, 1)))
    assert torch.allclose(levels[1][1, 3], maps[2:4, 6:8].mean((0, 1)))


def test_a_footprint_of_four_texels_reads_level_two(sample: Sampler):
    maps = random(32, 32, 3)
    uv = torch.tensor([[(2 + 0.5) / 8, (5 + 0.5) / 8]])  # a texel centre of level 2
    for angle in (0.0, 0.4, 1.1):  # the major axis decides, wherever it points
        major = 4 / 32 * torch.tensor([np.cos(angle), np.sin(angle)])
        minor = 0.3 / 32 * torch.tensor([-np.sin(angle), np.cos(angle)])
        derivatives = torch.tensor([[major[0], minor[0], major[1], minor[1]]]).float()
        assert level_of_detail(derivatives, 32, 32).item() == pytest.approx(2, abs=1e-5)
        assert (sample(maps, uv, derivatives) - mip_pyramid(maps)[2][5, 2]).abs().max() < 1e-5


def test_the_references_gradient_is_right():
    maps = random(4, 8, 2, dtype=torch.float64).requires_grad_()
    uv, derivatives = lookups(40, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: sample_texture(m, uv, derivatives), maps)


@given(
    st.sampled_from(SIZES), st.integers(1, 9), st.integers(0, 300), st.sampled_from([0.001, 0.3])
)
@settings(max_examples=25, deadline=None)
def test_the_kernel_equals_the_reference_forward_and_back(
    size: tuple[int, int], channels: int, n: int, spread: float
):
    maps = random(*size, channels)
    uv, derivatives = lookups(n, spread)
    output = random(n, channels, seed=4)
    values, gradients = [], []
    for sample, dtype in ((sample_texture, torch.float64), (sample_texture_cpu, torch.float32)):
        attached = maps.to(dtype).requires_grad_()
        looked_up = sample(attached, uv.to(dtype), derivatives.to(dtype))
        looked_up.backward(output.to(dtype))
        values.append(looked_up.detach().double())
        assert attached.grad is not None
        gradients.append(attached.grad.double())
    # uv is float32: x = u w is off by up to |x| 2^-24 texels, times the slope between texels.
    if n:
        assert (values[0] - values[1]).abs().max() < 2e-4
        assert (gradients[0] - gradients[1]).abs().max() < 2e-4 * max(1, n / 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 9])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tritons_kernels_equal_the_reference_forward_and_back(
    size: tuple[int, int], channels: int, dtype: torch.dtype, triton_device: torch.device
):
    from sdslab.rendering.triton_texture import sample_texture_triton

    maps, output = random(*size, channels), random(70, channels, seed=4)
    uv, derivatives = lookups(70, 0.3)
    values, gradients = [], []
    for sample, device, precision in (
        (sample_texture, torch.device("cpu"), torch.float64),
        (sample_texture_triton, triton_device, dtype),
    ):
        attached = maps.to(device, precision).requires_grad_()
        points = (tensor.to(device, precision) for tensor in (uv, derivatives))
        looked_up = sample(attached, *points)
        looked_up.backward(output.to(looked_up))
        assert attached.grad is not None
        assert attached.grad.dtype == looked_up.dtype == precision
        values.append(looked_up.detach().cpu().double())
        gradients.append(attached.grad.cpu().double())
    # In float32 as of the CPU's kernel, above.
    tolerance = 1e-12 if dtype == torch.float64 else 2e-4
    assert (values[0] - values[1]).abs().max() < tolerance
    assert (gradients[0] - gradients[1]).abs().max() < tolerance * 7


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of ∞ − ∞
def test_samples_without_a_gradient_touch_no_texel(triton_device: torch.device):
    """The rows that pad a recorded step may hold anything, but for NaN in their gradient."""
    from sdslab.rendering.triton_texture import sample_texture_triton

    maps = random(16, 16, 8).to(triton_device).requires_grad_()
    uv, derivatives = (tensor.to(triton_device) for tensor in lookups(40))
    uv[20:], derivatives[20:] = torch.nan, torch.inf
    output = random(40, 8, seed=4).to(triton_device)
    output[20:] = 0
    (actual,) = torch.autograd.grad(sample_texture_triton(maps, uv, derivatives), maps, output)
    first = sample_texture_triton(maps, uv[:20], derivatives[:20])
    (expected,) = torch.autograd.grad(first, maps, output[:20])
    assert (actual - expected).abs().max() < 1e-6  # a GPU adds in any order


def test_no_samples_have_no_gradient(triton_device: torch.device):
    from sdslab.rendering.triton_texture import sample_texture_triton

    maps = random(8, 4, 3).to(triton_device).requires_grad_()
    empty = torch.empty(0, 4, device=triton_device)
    looked_up = sample_texture_triton(maps, empty[:, :2], empty)
    assert looked_up.shape == (0, 3)
    looked_up.sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()


def test_the_kernels_adjoint_is_its_transpose(backend: RenderBackend, device: torch.device):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""
    x, (uv, derivatives) = random(64, 32, 8), lookups(2000)
    x = x.to(device).requires_grad_()
    looked_up = backend.sample_texture(x, uv.to(device), derivatives.to(device))
    y = random(2000, 8, seed=5).to(device)
    (adjoint,) = torch.autograd.grad(looked_up, x, y)
    left = (looked_up.detach().double() * y.double()).sum()
    right = (x.detach().double() * adjoint.double()).sum()
    scale = looked_up.detach().double().norm() * y.double().norm()
    assert abs(left - right) < 1e-6 * scale


def test_a_backend_equals_the_reference(backend: RenderBackend, device: torch.device):
    maps, (uv, derivatives) = random(128, 64, 8), lookups(3000, 0.01)
    uv = uv - uv.floor()
    expected = sample_texture(maps, uv, derivatives)
    actual = backend.sample_texture(*(t.to(device) for t in (maps, uv, derivatives))).cpu()
    assert (actual - expected).abs().max() < 1e-4


def test_the_gradient_is_bit_identical_for_any_number_of_threads():
    maps = random(256, 128, 8).requires_grad_()
    uv, derivatives = lookups(20_000, 0.01)
    output = random(20_000, 8, seed=6)
    before = torch.get_num_threads()
    gradients = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            looked_up = sample_texture_cpu(maps, uv, derivatives)
            gradients.append(torch.autograd.grad(looked_up, maps, output)[0])
    finally:
        torch.set_num_threads(before)
    assert all(gradient.equal(gradients[0]) for gradient in gradients)


def test_strides_do_not_matter(sample: Sampler):
    """A channels-last parameter arrives as a permuted view."""
    maps = random(1, 8, 16, 32).to(memory_format=torch.channels_last)[0].movedim(0, -1)
    other = random(1, 8, 16, 32)[0].movedim(0, -1)
    uv, derivatives = lookups(100)
    assert sample(maps, uv, derivatives).equal(sample(other, uv, derivatives))


def test_sides_that_are_no_power_of_two_are_refused(sample: Sampler):
    uv, derivatives = lookups(4)
    with pytest.raises(ValueError, match=r"powers of two, got \[100, 64, 3\]"):
        sample(random(100, 64, 3), uv, derivatives)
