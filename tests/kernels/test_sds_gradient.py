from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.kernels import (
    NoiseKey,
    SDSResult,
    perturb,
    philox_normal,
    sds_gradient_from_output,
    sds_gradients,
)

SHAPES = [(1, 1, 1), (3, 3, 7, 5), (2, 4, 63), (5, 3, 17, 31), (2, 3, 50, 50), (1, 3, 80, 80)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PREDICTION_TYPES = ["epsilon", "v", "x0", "flow"]
FORMS = ["x0", "epsilon"]


def direct(
    inputs: dict[str, Any],
    dtype: torch.dtype,
    *,
    guidance_scale: float,
    prediction_type: str,
    form: str,
    clamp: float | None,
) -> SDSResult:
    x, output, alpha_bar, weight, eps = (
        inputs[name].to(dtype) for name in ("x", "model_output", "alpha_bar", "weight", "noise")
    )
    alpha_bar, weight = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in (alpha_bar, weight))
    x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * eps
    output = output[:, : x.shape[1]]
    if len(output) > len(x):
        unconditional, conditional = output.chunk(2)
        output = (1 - guidance_scale) * unconditional + guidance_scale * conditional
    x0_hat = {
        "epsilon": (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt(),
        "v": alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output,
        "x0": output,
        "flow": (x_t - (1 - alpha_bar).sqrt() * output)
        / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt()),
    }[prediction_type]
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)
    # Both forms through x - x0_hat, which the epsilon form multiplies by its own factor.
    factor = 1 if form == "x0" else (alpha_bar / (1 - alpha_bar)).sqrt()
    difference = x - x0_hat
    loss = 0.5 * (weight * factor * difference**2).flatten(1).sum(1)
    return SDSResult(weight * factor * difference, loss, torch.zeros(len(x), dtype=torch.int64))


def batch(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, rows: int = 2, channels: int = 2
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    b, c, *spatial = shape
    return {
        "x": torch.rand(shape, generator=generator).mul(2).sub(1).to(dtype),
        "model_output": torch.randn(rows * b, channels * c, *spatial, generator=generator).to(
            dtype
        ),
        "alpha_bar": torch.linspace(0.1, 0.9, b),
        "weight": torch.linspace(0.5, 1.5, b),
        "noise": torch.randn(shape, generator=generator).to(dtype),
    }


def key(samples: int, device: str = "cpu") -> NoiseKey:
    return NoiseKey(2**40 + 3, 12, torch.arange(samples, device=device) + 100)


def run(body, inputs: dict[str, Any], **options: Any) -> SDSResult:
    moved = {
        name: value.to(body.device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    return sds_gradient_from_output(**moved, **options, backend=body.backend)


def compare(assert_within_budget, actual: SDSResult, inputs: dict[str, Any], options) -> None:
    compute = torch.promote_types(inputs["x"].dtype, torch.float32)
    truth = direct(inputs, torch.float64, **options)
    low_precision = direct(inputs, compute, **options)
    assert_within_budget("gradient", actual.gradient, truth.gradient, low_precision.gradient)
    assert_within_budget("loss", actual.loss, truth.loss, low_precision.loss)
    assert torch.equal(actual.nonfinite.cpu(), truth.nonfinite), "nonfinite"


@pytest.mark.parametrize("clamp", [None, 1.0], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_equation(body, assert_within_budget, prediction_type, form, clamp):
    options = {
        "guidance_scale": 3.7,
        "prediction_type": prediction_type,
        "form": form,
        "clamp": clamp,
    }
    inputs = batch((2, 4, 63))
    compare(assert_within_budget, run(body, inputs, **options), inputs, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_dtype(body, assert_within_budget, shape, dtype):
    options = {"guidance_scale": 2.0, "prediction_type": "epsilon", "form": "x0", "clamp": 1.0}
    inputs = batch(shape, dtype)
    compare(assert_within_budget, run(body, inputs, **options), inputs, options)


@pytest.mark.parametrize("channels", [1, 2], ids=["mean only", "learned variance"])
@pytest.mark.parametrize("rows", [1, 2], ids=["combined", "two halves"])
def test_every_layout_of_the_model_output(body, assert_within_budget, rows, channels):
    options = {"guidance_scale": 1.0, "prediction_type": "v", "form": "epsilon", "clamp": None}
    inputs = batch((3, 3, 7, 5), rows=rows, channels=channels)
    compare(assert_within_budget, run(body, inputs, **options), inputs, options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_model_output_may_have_its_own_dtype(body, assert_within_budget, dtype):
    options = {"guidance_scale": 1.0, "prediction_type": "epsilon", "form": "x0", "clamp": None}
    inputs = batch((2, 4, 63))
    inputs["model_output"] = inputs["model_output"].to(dtype)
    compare(assert_within_budget, run(body, inputs, **options), inputs, options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_key_stands_for_the_noise_that_it_names(body, assert_within_budget, dtype, form):
    options = {"guidance_scale": 1.0, "prediction_type": "epsilon", "form": form, "clamp": None}
    inputs = batch((3, 3, 7, 5), dtype)
    actual = run(body, {**inputs, "noise": key(3)}, **options)
    inputs["noise"] = philox_normal(key(3), (3, 7, 5), dtype)
    compare(assert_within_budget, actual, inputs, options)


def test_the_true_noise_gives_no_gradient(body):
    inputs = {**batch((3, 3, 7, 5), torch.float64, rows=1, channels=1), "noise": key(3)}
    inputs["model_output"] = philox_normal(key(3), (3, 7, 5), torch.float64)
    for form in FORMS:
        result = run(body, inputs, form=form)
        assert result.gradient.abs().max() < 1e-14, form
        assert result.loss.max() < 1e-26, form


def test_x_t_is_what_perturb_made(body):
    inputs = {**batch((2, 4, 63), torch.float64, rows=1, channels=1), "noise": key(2)}
    x_t = perturb(inputs["x"], inputs["alpha_bar"], key(2))
    alpha_bar = inputs["alpha_bar"].double()[:, None, None]
    x0_hat = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * inputs["model_output"]
    expected = inputs["weight"][:, None, None] * (inputs["x"] - x0_hat)
    actual = run(body, inputs, prediction_type="v").gradient.cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("clamp", [None, 0.5], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_derivative_of_the_loss(form, prediction_type, clamp):
    inputs = batch((2, 4, 63), torch.float64)
    options = {"guidance_scale": 2.0, "prediction_type": prediction_type, "clamp": clamp}
    result = sds_gradient_from_output(**inputs, **options, form=form)
    ones = {**inputs, "weight": torch.ones(2, dtype=torch.float64)}
    x0_hat = inputs["x"] - sds_gradient_from_output(**ones, **options).gradient
    x = inputs["x"].clone().requires_grad_()
    alpha_bar = inputs["alpha_bar"].double()
    factor = 1 if form == "x0" else (alpha_bar / (1 - alpha_bar)).sqrt()
    loss = 0.5 * inputs["weight"] * factor * (x - x0_hat).square().flatten(1).sum(1)
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-10, atol=0)
    (derivative,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(result.gradient, derivative, rtol=1e-10, atol=1e-12)


def test_castex_weight_in_x0_form_is_dreamfusions_in_epsilon_form():
    inputs = batch((3, 3, 7, 5), torch.float64, rows=1)
    alpha_bar = inputs["alpha_bar"].double()
    castex = {**inputs, "weight": (alpha_bar * (1 - alpha_bar)).sqrt()}
    dreamfusion = {**inputs, "weight": 1 - alpha_bar}
    a, b = (
        sds_gradient_from_output(**castex),
        sds_gradient_from_output(**dreamfusion, form="epsilon"),
    )
    torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-12, atol=0)


def test_guidance_extrapolates_from_the_unconditional_half(body):
    inputs = batch((2, 4, 63), channels=1)
    halves = inputs["model_output"].chunk(2)
    for scale, half in ((0.0, halves[0]), (1.0, halves[1])):
        guided = run(body, inputs, guidance_scale=scale, form="epsilon").gradient
        alone = run(body, {**inputs, "model_output": half}, form="epsilon").gradient
        torch.testing.assert_close(guided, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clamp", [None, 1.0], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("form", FORMS)
def test_nonfinite_elements_are_counted_and_left_in_place(body, form, clamp):
    inputs = batch((3, 3, 7, 5))
    inputs["model_output"][0, 0, 0, :2] = float("nan")
    inputs["model_output"][4, 2, 1, 1] = float("inf")
    inputs["model_output"][:, 3:] = float("nan")
    result = run(body, inputs, guidance_scale=2.0, form=form, clamp=clamp)
    assert result.nonfinite.tolist() == [2, 1, 0]
    assert result.nonfinite.dtype == torch.int64
    assert result.gradient[0, 0, 0, :2].isnan().all()
    assert result.gradient[2].isfinite().all()


def test_the_result_is_the_same_each_time(body):
    inputs = {**batch((2, 3, 40, 33)), "noise": key(2)}
    first, second = (run(body, inputs, guidance_scale=7.5, clamp=1.0) for _ in range(2))
    for name in SDSResult._fields:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_strides_do_not_matter(body):
    inputs = batch((2, 4, 6, 5))
    strided = {
        "x": inputs["x"].to(memory_format=torch.channels_last),
        "model_output": inputs["model_output"].transpose(0, 3).contiguous().transpose(0, 3),
        "alpha_bar": inputs["alpha_bar"].repeat_interleave(2)[::2],
        "weight": inputs["weight"].repeat_interleave(3)[::3],
        "noise": inputs["noise"].to(memory_format=torch.channels_last),
    }
    expected, actual = run(body, inputs), run(body, strided)
    assert actual.gradient.is_contiguous()
    assert torch.equal(actual.gradient, expected.gradient)
    assert torch.equal(actual.loss, expected.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clamp", [None, 1.0], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("rows", [1, 2], ids=["combined", "two halves"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 1025), (1, 1, 1), (700, 1, 3)], ids=str)
def test_the_compiled_body_of_a_cpu_rounds_as_plain_torch_does(
    shape, prediction_type, form, rows, clamp, dtype
):
    inputs = batch(shape, dtype, rows=rows)
    inputs["alpha_bar"] = torch.linspace(0.001, 0.999, shape[0], dtype=torch.float64)
    for value in (float("nan"), float("inf"), -float("inf"), -0.0):
        for name, place in (("x", 0), ("model_output", 1), ("noise", 2)):
            inputs[name][0].view(-1)[place % inputs[name][0].numel()] = value
        options = {
            "guidance_scale": 3.7 if rows == 2 else 1.0,
            "prediction_type": prediction_type,
            "form": form,
            "clamp": clamp,
        }
        reference, actual = (
            sds_gradient_from_output(**inputs, **options, backend=backend)
            for backend in ("reference", "auto")
        )
        assert torch.equal(actual.nonfinite, reference.nonfinite), value
        # Torch's square root of a float64 may be off by a rounding, which float32 hides.
        tolerance = 0 if dtype == torch.float32 else 1e-13
        sums = 8 * torch.finfo(dtype).eps + 2 * tolerance  # of squares of what may be off by that
        torch.testing.assert_close(actual.loss, reference.loss, rtol=sums, atol=0, equal_nan=True)
        torch.testing.assert_close(
            actual.gradient, reference.gradient, rtol=tolerance, atol=tolerance, equal_nan=True
        )


def test_the_number_of_threads_does_not_matter():
    inputs = batch((3, 3, 401, 227))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(sds_gradient_from_output(**inputs, guidance_scale=7.5, clamp=1.0))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for name in SDSResult._fields:
            assert torch.equal(getattr(result, name), getattr(results[0], name)), name


def test_a_sample_does_not_depend_on_its_batch():
    inputs = batch((5, 3, 50, 31), rows=1)
    whole = sds_gradient_from_output(**inputs)
    for first, last in ((0, 2), (2, 5)):
        part = sds_gradient_from_output(
            **{name: value[first:last] for name, value in inputs.items()}
        )
        for name in SDSResult._fields:
            assert torch.equal(getattr(part, name), getattr(whole, name)[first:last]), name


def test_what_requires_a_gradient_may_be_passed_where_none_is_recorded(body):
    inputs = batch((2, 3, 5), rows=1)
    expected = run(body, inputs)
    with torch.no_grad():
        actual = run(body, {name: value.clone().requires_grad_() for name, value in inputs.items()})
    assert torch.equal(actual.gradient, expected.gradient)
    assert not actual.gradient.requires_grad


@settings(deadline=None, max_examples=20)
@given(
    b=st.integers(1, 4),
    c=st.integers(1, 4),
    spatial=st.lists(st.integers(1, 6), max_size=3),
    scale=st.floats(0.0, 30.0),
    factor=st.floats(0.125, 8.0),
)
def test_gradient_and_loss_are_linear_in_the_weight(b, c, spatial, scale, factor):
    inputs = {**batch((b, c, *spatial), torch.float64), "noise": key(b)}
    once = sds_gradient_from_output(**inputs, guidance_scale=scale)
    inputs["weight"] = factor * inputs["weight"].double()
    scaled = sds_gradient_from_output(**inputs, guidance_scale=scale)
    torch.testing.assert_close(scaled.gradient, factor * once.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled.loss, factor * once.loss, rtol=1e-12, atol=1e-12)


def combined(inputs: dict[str, Any], coefficients: Tensor, prediction_type: str, form: str):
    """w (Σ c_i ε̂_i + c_n ε) in float64, times √((1 - ᾱ)/ᾱ) in x0-form."""
    x, output, alpha_bar, weight, eps = (
        inputs[name].double() for name in ("x", "model_output", "alpha_bar", "weight", "noise")
    )
    alpha_bar, weight = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in (alpha_bar, weight))
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t = signal * x + sigma * eps
    residual = torch.zeros_like(x)
    for c, m in zip(
        coefficients, [*output[:, : x.shape[1]].chunk(len(coefficients) - 1), None], strict=True
    ):
        eps_hat = eps
        if m is not None:
            eps_hat = {
                "epsilon": m,
                "v": signal * m + sigma * x_t,
                "x0": (x_t - signal * m) / sigma,
                "flow": (x_t + signal * m) / (signal + sigma),
            }[prediction_type]
        residual += c.double().reshape(alpha_bar.shape) * eps_hat
    return weight * residual * (sigma / signal if form == "x0" else 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(
    "rows",
    [
        [[0.3, 1.0], [-1.0, 0.5]],
        [[-6.5, 0.5], [7.5, -0.5], [0.0, 0.0]],
        [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25], [-1.0, 0.7]],
    ],
    ids=["one", "two", "three"],
)
def test_any_combination_of_predictions(body, prediction_type, form, rows):
    coefficients = torch.tensor(rows, dtype=torch.float64)
    inputs = batch((2, 4, 63), torch.float64, rows=len(rows) - 1)
    inputs["model_output"] = inputs["model_output"].float()
    options = {"prediction_type": prediction_type, "form": form, "coefficients": coefficients}
    if body.device != "cpu":
        options["coefficients"] = coefficients.to(body.device)
    actual = run(body, inputs, **options)
    expected = combined(inputs, coefficients, prediction_type, form)
    torch.testing.assert_close(actual.gradient.cpu(), expected, rtol=1e-11, atol=1e-11)
    assert actual.nonfinite.tolist() == [0, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, 33.3])
def test_guidance_is_a_combination_bit_for_bit(scale, prediction_type, form):
    inputs = batch((2, 4, 63))
    options = {"prediction_type": prediction_type, "form": form, "backend": "reference"}
    coefficients = torch.tensor([[1 - scale] * 2, [scale] * 2, [-1, -1]], dtype=torch.float64)
    guided = sds_gradient_from_output(**inputs, **options, guidance_scale=scale)
    combination = sds_gradient_from_output(**inputs, **options, coefficients=coefficients)
    for name in SDSResult._fields:
        assert torch.equal(getattr(combination, name), getattr(guided, name)), name


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "prediction type": (
        {"prediction_type": "noise"},
        "prediction_type must be one of epsilon, v, x0, flow, got 'noise'; pass one of those",
    ),
    "form": ({"form": "v"}, "form must be one of x0, epsilon, got 'v'"),
    "backend": ({"backend": "gpu"}, "backend must be one of auto, reference, triton, got 'gpu'"),
    "x without channels": (
        {"x": torch.zeros(2)},
        r"x must be \[b, c, \*spatial\] and not empty, got \[2\]; add the missing dimension",
    ),
    "integer x": (
        {"x": torch.zeros(2, 3, 5, dtype=torch.uint8)},
        "x must be a floating-point tensor, got torch.uint8; convert it",
    ),
    "model output of another size": (
        {"model_output": torch.zeros(2, 3, 6)},
        r"model_output must be \[2, 3, 5\] or \[2, 6, 5\] or \[4, 3, 5\] or \[4, 6, 5\] for x "
        r"\[2, 3, 5\], got \[2, 3, 6\]; stack \(unconditional, conditional\)",
    ),
    "guidance without two halves": (
        {"guidance_scale": 7.5},
        "model_output must hold an unconditional and a conditional half, 4 rows, for "
        "guidance_scale 7.5, got 2 rows; stack both",
    ),
    "weight of another shape": (
        {"weight": torch.ones(2, 1)},
        r"weight must be \[2\] for x \[2, 3, 5\], got \[2, 1\]; evaluate the weighting",
    ),
    "integer weight": ({"weight": torch.ones(2, dtype=torch.int64)}, "weight must be a floating"),
    "no signal": (
        {"alpha_bar": torch.tensor([0.5, 0.0])},
        r"alpha_bar must be in \(0, 1\] here, got \[0.0\]; restrict the timesteps",
    ),
    "no noise in epsilon form": (
        {"alpha_bar": torch.tensor([1.0, 0.5]), "form": "epsilon"},
        r"alpha_bar must be in \(0, 1\) here, got \[1.0\]",
    ),
    "negative clamp": ({"clamp": -1.0}, "clamp must be positive or None, got -1.0; pass 1.0"),
    "coefficients of another batch": (
        {"coefficients": torch.ones(2, 3)},
        r"coefficients must be \[k \+ 1, 2\], of k predictions and of the noise, .*got \[2, 3\]",
    ),
    "integer coefficients": (
        {"coefficients": torch.ones(2, 2, dtype=torch.int64)},
        "coefficients must be floating point, got torch.int64",
    ),
    "too few predictions for the coefficients": (
        {"coefficients": torch.ones(3, 2)},
        r"model_output must be \[4, 3, 5\] or \[4, 6, 5\] for x .*in the order of the coefficients",
    ),
    "guidance and coefficients": (
        {"coefficients": torch.ones(2, 2), "guidance_scale": 2.0},
        "guidance_scale must be 1 where coefficients are given, got 2.0; write",
    ),
    "a clamp and coefficients": (
        {"coefficients": torch.ones(2, 2), "clamp": 1.0},
        "clamp must be None where coefficients are given, got 1.0: a combination",
    ),
    "coefficients and no signal": (
        {
            "alpha_bar": torch.tensor([0.5, 0.0]),
            "coefficients": torch.ones(2, 2),
            "prediction_type": "v",
        },
        r"alpha_bar must be in \(0, 1\] here",
    ),
    "a graph": (
        {"model_output": torch.zeros(2, 3, 5, requires_grad=True)},
        r"model_output must not require a gradient.*pass model_output.detach\(\)",
    ),
    "another device": (
        {"weight": torch.ones(2, device="meta")},
        "weight must be on the device of x, cpu, got meta; move it",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_must_hold_and_what_came(name):
    changes, message = ERRORS[name]
    arguments = batch((2, 3, 5), rows=1, channels=1)
    with pytest.raises(ValueError, match=message):
        sds_gradient_from_output(**{**arguments, **changes})


@pytest.mark.parametrize("clamp", [None, 0.5], ids=["unclamped", "clamped"])
def test_an_x0_prediction_in_x0_form_draws_no_noise(monkeypatch, clamp):
    inputs = {**batch((2, 3, 5)), "noise": key(2)}
    options = {"guidance_scale": 2.0, "prediction_type": "x0", "clamp": clamp}
    drawing = sds_gradient_from_output(**{**inputs, "noise": torch.zeros(2, 3, 5)}, **options)
    monkeypatch.setattr(sds_gradients, "drawn_noise", None)
    for backend in ("reference", "auto"):
        result = sds_gradient_from_output(**inputs, **options, backend=backend)
        assert torch.equal(result.gradient, drawing.gradient)
    with pytest.raises(TypeError, match="not callable"):
        sds_gradient_from_output(**inputs, **options, form="epsilon")


@pytest.mark.parametrize("prediction_type", ["v", "x0", "flow"])
def test_pure_noise_is_allowed_where_nothing_divides_by_the_signal(prediction_type):
    inputs = {**batch((2, 3, 5)), "alpha_bar": torch.tensor([0.0, 1.0])}
    result = sds_gradient_from_output(**inputs, prediction_type=prediction_type)
    assert result.nonfinite.tolist() == [0, 0]
