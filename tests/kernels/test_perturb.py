import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.kernels import NoiseKey, perturb, philox_normal

SHAPES = [(1, 1, 1), (3, 3, 7, 5), (2, 4, 63), (5, 3, 17, 31)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def direct(x: Tensor, alpha_bar: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
    alpha_bar = alpha_bar.to(dtype).reshape(-1, *[1] * (x.ndim - 1))
    return alpha_bar.sqrt() * x.to(dtype) + (1 - alpha_bar).sqrt() * eps.to(dtype)


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x, torch.linspace(0.02, 0.98, shape[0]), eps


def key(samples: int) -> NoiseKey:
    return NoiseKey(2**40 + 3, 12, torch.arange(samples) + 100)


@pytest.mark.parametrize("noise", ["tensor", "key"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_perturb_is_the_forward_process(body, assert_within_budget, shape, dtype, noise):
    x, alpha_bar, eps = batch(shape, dtype)
    if noise == "key":
        eps = philox_normal(key(len(x)), shape[1:], torch.promote_types(dtype, torch.float32))
    actual = perturb(
        x.to(body.device),
        alpha_bar.to(body.device),
        eps.to(body.device) if noise == "tensor" else key(len(x)),
        backend=body.backend,
    )
    truth = direct(x, alpha_bar, eps, torch.float64)
    compute = torch.promote_types(dtype, torch.float32)
    low_precision = direct(x, alpha_bar, eps, compute).to(dtype)
    assert_within_budget("x_t", actual, truth, low_precision)


def test_strides_do_not_matter(body):
    x, alpha_bar, eps = (value.to(body.device) for value in batch((3, 4, 6, 5)))
    strided = perturb(
        x.transpose(1, 3).contiguous().transpose(1, 3),
        alpha_bar.repeat_interleave(2)[::2],
        eps.to(memory_format=torch.channels_last),
        backend=body.backend,
    )
    assert strided.is_contiguous()
    assert torch.equal(strided, perturb(x, alpha_bar, eps, backend=body.backend))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_body_of_a_cpu_rounds_as_plain_torch_does(dtype, threads):
    x, alpha_bar, eps = batch((3, 3, 401, 227), dtype)
    expected = perturb(x, alpha_bar, eps, backend="reference")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(perturb(x, alpha_bar, eps), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("alpha_bar", "expected"), [(1.0, "x"), (0.0, "eps")])
def test_ends_of_the_process_are_exact(body, alpha_bar, expected):
    x, _, eps = batch((2, 4, 63))
    actual = perturb(
        x.to(body.device),
        torch.full((2,), alpha_bar, device=body.device),
        eps.to(body.device),
        backend=body.backend,
    )
    assert torch.equal(actual.cpu(), x if expected == "x" else eps)


@settings(deadline=None, max_examples=20)
@given(split=st.integers(1, 5), size=st.integers(1, 50))
def test_a_sample_does_not_depend_on_its_batch(split, size):
    x, alpha_bar, _ = batch((6, 3, size))
    noise = key(6)
    parts = [
        perturb(x[part], alpha_bar[part], NoiseKey(noise.seed, noise.step, noise.sample[part]))
        for part in (slice(None, split), slice(split, None))
    ]
    assert torch.equal(torch.cat(parts), perturb(x, alpha_bar, noise))


def test_inputs_are_left_alone():
    x, alpha_bar, eps = batch((2, 4, 63))
    copies = x.clone(), alpha_bar.clone(), eps.clone()
    perturb(x, alpha_bar, eps)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x, alpha_bar, eps), strict=True))


ERRORS = {
    "integer x": (
        {"x": torch.zeros(2, 3, dtype=torch.int64)},
        "x must be a floating-point tensor, got torch.int64",
    ),
    "empty x": ({"x": torch.zeros(0, 3)}, r"x must be \[b, \*dims\] and not empty, got \[0, 3\]"),
    "alpha_bar of another length": (
        {"alpha_bar": torch.ones(3)},
        r"alpha_bar must be \[2\] for x \[2, 3\], got \[3\]; look it up",
    ),
    "alpha_bar above 1": (
        {"alpha_bar": torch.tensor([0.5, 1.5])},
        r"alpha_bar must be in \[0, 1\] here, got \[1.5\]; restrict the timesteps",
    ),
    "alpha_bar not a number": (
        {"alpha_bar": torch.tensor([0.5, float("nan")])},
        r"alpha_bar must be in \[0, 1\] here, got \[nan\]",
    ),
    "noise of another shape": (
        {"noise": torch.zeros(2, 4)},
        r"noise must be \[2, 3\] for x \[2, 3\], got \[2, 4\]; draw it",
    ),
    "integer noise": (
        {"noise": torch.zeros(2, 3, dtype=torch.int32)},
        "noise must be a floating-point tensor, got torch.int32",
    ),
    "key of another length": (
        {"noise": key(3)},
        "noise.sample must hold one index per sample of x, 2, got 3; index the key's samples",
    ),
    "another device": (
        {"noise": torch.zeros(2, 3, device="meta")},
        "noise must be on the device of x, cpu, got meta; move it",
    ),
    "a graph": (
        {"x": torch.zeros(2, 3, requires_grad=True)},
        r"x must not require a gradient.*pass x.detach\(\)",
    ),
    "unknown backend": (
        {"backend": "cuda"},
        "backend must be one of auto, reference, triton, got 'cuda'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_must_hold_and_what_came(name):
    changes, message = ERRORS[name]
    arguments = {"x": torch.zeros(2, 3), "alpha_bar": torch.ones(2), "noise": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        perturb(**{**arguments, **changes})


def test_triton_refuses_cpu_tensors_without_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' needs CUDA tensors, got tensors on cpu"):
        perturb(torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3), backend="triton")
