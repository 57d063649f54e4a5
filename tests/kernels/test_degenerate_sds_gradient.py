from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.kernels import (
    NoiseKey,
    SDSResult,
    degenerate_sds_gradient,
    perturb,
    philox_normal,
    sds_gradient_from_output,
)

SHAPES = [(1, 1, 1), (3, 3, 7, 5), (2, 4, 63), (5, 3, 17, 31), (2, 3, 50, 50), (1, 3, 80, 80)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FORMS = ["x0", "epsilon"]


def direct(inputs: dict[str, Any], dtype: torch.dtype, form: str, clamp: float | None) -> SDSResult:
    x, target, alpha_bar, weight = (
        inputs[name].to(dtype) for name in ("x", "target", "alpha_bar", "weight")
    )
    if clamp is not None:
        target = target.clamp(-clamp, clamp)
    if form == "epsilon":
        weight = weight * (alpha_bar / (1 - alpha_bar)).sqrt()
    weight = weight.reshape(-1, *[1] * (x.ndim - 1))
    loss = (0.5 * weight * (x - target) ** 2).flatten(1).sum(1)
    return SDSResult(weight * (x - target), loss, torch.zeros(len(x), dtype=torch.int64))


def batch(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, targets: int = 1
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(shape, generator=generator).to(dtype),
        "target": torch.randn(targets, *shape[1:], generator=generator).to(dtype),
        "alpha_bar": torch.linspace(0.1, 0.9, shape[0]),
        "weight": torch.linspace(0.5, 1.5, shape[0]),
    }


def run(body, inputs: dict[str, Any], **options: Any) -> SDSResult:
    moved = {name: value.to(body.device) for name, value in inputs.items()}
    return degenerate_sds_gradient(**moved, **options, backend=body.backend)


def compare(assert_within_budget, body, inputs: dict[str, Any], form: str, clamp: float | None):
    actual = run(body, inputs, form=form, clamp=clamp)
    compute = torch.promote_types(inputs["x"].dtype, torch.float32)
    truth = direct(inputs, torch.float64, form, clamp)
    low_precision = direct(inputs, compute, form, clamp)
    assert_within_budget("gradient", actual.gradient, truth.gradient, low_precision.gradient)
    assert_within_budget("loss", actual.loss, truth.loss, low_precision.loss)
    assert torch.equal(actual.nonfinite.cpu(), truth.nonfinite), "nonfinite"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_dtype(body, assert_within_budget, shape, dtype):
    compare(assert_within_budget, body, batch(shape, dtype), "epsilon", 1.0)


@pytest.mark.parametrize("clamp", [None, 0.5], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", [1, 3], ids=["one target", "a target each"])
def test_every_equation(body, assert_within_budget, targets, form, clamp):
    compare(assert_within_budget, body, batch((3, 3, 7, 5), targets=targets), form, clamp)


@pytest.mark.parametrize("form", FORMS)
def test_is_sds_with_the_denoiser_of_one_image(body, form):
    inputs = batch((3, 3, 7, 5), torch.float64)
    noise = NoiseKey(5, 6, torch.arange(3))
    alpha_bar = inputs["alpha_bar"].double()[:, None, None, None]
    x_t = perturb(inputs["x"], inputs["alpha_bar"], noise)
    eps_hat = (x_t - alpha_bar.sqrt() * inputs["target"]) / (1 - alpha_bar).sqrt()
    sds = sds_gradient_from_output(
        inputs["x"], eps_hat, inputs["alpha_bar"], inputs["weight"], noise, form=form
    )
    actual = run(body, inputs, form=form)
    torch.testing.assert_close(actual.gradient.cpu(), sds.gradient, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(actual.loss.cpu(), sds.loss, rtol=1e-12, atol=0)


def test_noise_cancels_out_of_eq_3():
    inputs = batch((3, 3, 7, 5), torch.float64)
    alpha_bar = inputs["alpha_bar"].double()[:, None, None, None]
    for step in range(3):
        eps = philox_normal(NoiseKey(0, step, torch.arange(3)), (3, 7, 5), torch.float64)
        x_t = alpha_bar.sqrt() * inputs["x"] + (1 - alpha_bar).sqrt() * eps
        eps_hat = (x_t - alpha_bar.sqrt() * inputs["target"]) / (1 - alpha_bar).sqrt()
        expected = (alpha_bar / (1 - alpha_bar)).sqrt() * (inputs["x"] - inputs["target"])
        torch.testing.assert_close(eps_hat - eps, expected, rtol=1e-12, atol=1e-13)
        unit = {**inputs, "weight": torch.ones(3)}
        actual = degenerate_sds_gradient(**unit, form="epsilon").gradient
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_unit_weight_gives_half_the_gradient_of_the_squared_error(body):
    inputs = {**batch((2, 4, 63)), "weight": torch.ones(2)}
    x = inputs["x"].clone().requires_grad_()
    ((x - inputs["target"]) ** 2).sum().backward()
    assert x.grad is not None
    assert torch.equal(run(body, inputs).gradient.cpu(), x.grad / 2)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_vanishes_at_the_target(body, form):
    inputs = batch((1, 3, 7, 5))
    result = run(body, {**inputs, "x": inputs["target"]}, form=form)
    assert not result.gradient.any()
    assert not result.loss.any()


def test_nonfinite_elements_are_counted_and_left_in_place(body):
    inputs = batch((3, 3, 7, 5), targets=3)
    inputs["x"][0, 0, 0, :2] = float("nan")
    inputs["target"][1, 2, 1, 1] = float("inf")
    result = run(body, inputs, clamp=1.0)
    assert result.nonfinite.tolist() == [2, 1, 0]
    assert result.gradient[0, 0, 0, :2].isnan().all()


def test_strides_do_not_matter(body):
    inputs = batch((2, 4, 6, 5), targets=2)
    strided = {
        "x": inputs["x"].to(memory_format=torch.channels_last),
        "target": inputs["target"].transpose(1, 3).contiguous().transpose(1, 3),
        "alpha_bar": inputs["alpha_bar"].repeat_interleave(2)[::2],
        "weight": inputs["weight"].repeat_interleave(3)[::3],
    }
    expected, actual = run(body, inputs), run(body, strided)
    assert actual.gradient.is_contiguous()
    assert torch.equal(actual.gradient, expected.gradient)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("targets", [1, 3], ids=["one target", "a target each"])
def test_the_compiled_body_of_a_cpu_rounds_as_plain_torch_does(targets, threads):
    inputs = batch((3, 3, 401, 227), targets=targets)
    expected = degenerate_sds_gradient(**inputs, clamp=1.0, backend="reference")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        actual = degenerate_sds_gradient(**inputs, clamp=1.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual.gradient, expected.gradient)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=20)
@given(step=st.floats(0.01, 1.0), size=st.integers(1, 40), clamp=st.floats(0.1, 3.0))
def test_descent_reaches_the_clamped_target(step, size, clamp):
    inputs = {**batch((1, 2, size), torch.float64), "weight": torch.ones(1)}
    x0_hat = inputs["target"].clamp(-clamp, clamp)
    before = (inputs["x"] - x0_hat).square().sum()
    gradient = degenerate_sds_gradient(**inputs, clamp=clamp).gradient
    after = (inputs["x"] - step * gradient - x0_hat).square().sum()
    torch.testing.assert_close(after, (1 - step) ** 2 * before, rtol=1e-9, atol=1e-12)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "target of another size": (
        {"target": torch.zeros(1, 3, 6)},
        r"target must be \[2, 3, 5\] or \[1, 3, 5\] for x \[2, 3, 5\], got \[1, 3, 6\]; encode or",
    ),
    "target without a batch": (
        {"target": torch.zeros(3, 5)},
        r"target must be \[2, 3, 5\] or \[1, 3, 5\] for x \[2, 3, 5\], got \[3, 5\]",
    ),
    "integer target": (
        {"target": torch.zeros(1, 3, 5, dtype=torch.uint8)},
        "target must be a floating-point tensor, got torch.uint8",
    ),
    "form": ({"form": "eps"}, "form must be one of x0, epsilon, got 'eps'"),
    "no noise in epsilon form": (
        {"alpha_bar": torch.tensor([1.0, 0.5]), "form": "epsilon"},
        r"alpha_bar must be in \(0, 1\) here, got \[1.0\]",
    ),
    "negative clamp": ({"clamp": 0.0}, "clamp must be positive or None, got 0.0"),
    "a graph": (
        {"x": torch.zeros(2, 3, 5, requires_grad=True)},
        r"x must not require a gradient.*pass x.detach\(\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_must_hold_and_what_came(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        degenerate_sds_gradient(**{**batch((2, 3, 5)), **changes})
