"""The score-distillation gradient from a diffusion model's raw output."""

from typing import Literal, NamedTuple, get_args

from torch import Tensor

from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.kernels.philox import NoiseKey, checked_noise, drawn_noise, launch_arguments
from sdslab.kernels.validation import (
    Backend,
    Interval,
    body_for,
    compute_dtype,
    require_alpha_bar,
    require_clamp,
    require_like,
    require_no_graph,
    require_one_of,
    require_samples,
    require_type,
    require_weight,
)

PredictionType = Literal["epsilon", "v", "x0", "flow"]
# Which difference a weighting multiplies: the ops print a gradient and a loss for each.
Form = Literal["x0", "epsilon"]


class SDSResult(NamedTuple):
    """Result of one distillation step.

    Attributes:
        gradient: [b, c, *spatial] float32 (float64 for a float64 x), contiguous: what the paper
            prints, not divided by the batch size.
        loss: [b], the scalar whose derivative by x, with x̂_0 held fixed, is `gradient`.
        nonfinite: [b] int64, how many elements were NaN or infinite.
    """

    gradient: Tensor
    loss: Tensor
    nonfinite: Tensor


def guided_output(output: Tensor, x: Tensor, guidance_scale: float) -> Tensor:
    """Drops learned variance channels, and combines an unconditional and a conditional half.

    Args:
        output: [b or 2b, c or 2c, *spatial].
        x: [b, c, *spatial].
        guidance_scale: s of u + s (c - u); without effect on a single batch.
    """
    output = output[:, : x.shape[1]]
    if len(output) == len(x):
        return output
    unconditional, conditional = output.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def combined_output(output: Tensor, x: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Σ c_i m_i, written as (Σ c_i) m_0 + Σ c_i (m_i - m_0): guidance where the sum is 1.

    Args:
        output: [k·b, c or 2c, *spatial].
        x: [b, c, *spatial].
        coefficients: [k, b].

    Returns:
        The combination like x, and Σ c_i as [b, 1, ..., 1].
    """
    first, *others = output[:, : x.shape[1]].chunk(len(coefficients))
    # In float64, so that (1 - s) + s is 1.
    total, *rest = (
        c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        for c in (coefficients.double().sum(0), *coefficients[1:])
    )
    combination = total * first
    for c, other in zip(rest, others, strict=True):
        combination = combination + c * (other - first)
    return combination, total


def x0_from(
    prediction_type: PredictionType, output: Tensor, x_t: Tensor, signal: Tensor, sigma: Tensor
) -> Tensor:
    """Converts an ε̂, v̂, x̂_0 or flow prediction to x̂_0; signal and sigma are √ᾱ and √(1 - ᾱ).

    A flow-matching model walks the straight line (1 - s) x_0 + s ε. Here its picture is
    x_t / (√ᾱ + √(1 - ᾱ)), at s = √(1 - ᾱ) / (√ᾱ + √(1 - ᾱ)): its denoiser scales x_t and asks at
    that s.

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for v = √ᾱ ε - √(1 - ᾱ) x_0; Lipman et al. 2023
    (arXiv 2210.02747) for the flow ε - x_0.
    """
    match prediction_type:
        case "epsilon":
            return (x_t - sigma * output) / signal
        case "v":
            return signal * x_t - sigma * output
        case "flow":
            return (x_t - sigma * output) / (signal + sigma)
        case "x0":
            return output


def _reference(
    x: Tensor,
    model_output: Tensor,
    alpha_bar: Tensor,
    weight: Tensor,
    eps: Tensor | None,
    coefficients: Tensor | None,
    guidance_scale: float,
    prediction_type: PredictionType,
    form: Form,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.to(compute_dtype(x))
    signal, sigma = signal_and_noise_rates(alpha_bar, x)
    weight = weight.to(x.dtype).reshape(signal.shape)
    x_t = x if eps is None else (signal * x).add_(sigma * eps)
    model_output = model_output[:, : x.shape[1]].to(x.dtype)
    of_noise = rest = None
    if coefficients is None:
        output = guided_output(model_output, x, guidance_scale)
    else:
        output, total = combined_output(model_output, x, coefficients[:-1])
        of_noise = coefficients[-1].to(x.dtype).reshape(total.shape)
        rest = total + of_noise
        x, x_t = total * x, total * x_t
    x0_hat = x0_from(prediction_type, output, x_t, signal, sigma)
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)

    if form == "x0":
        difference, coefficient = x - x0_hat, weight
        if rest is not None:
            assert eps is not None
            difference = difference + rest * (sigma / signal) * eps
    else:
        straight = prediction_type == "epsilon" and clamp is None
        eps_hat = output if straight else (x_t - signal * x0_hat) / sigma
        assert eps is not None
        difference = eps_hat - eps if of_noise is None else eps_hat + of_noise * eps
        coefficient = weight * (sigma / signal)
    gradient = weight * difference
    loss = 0.5 * coefficient.flatten() * difference.square().flatten(1).sum(1)
    return gradient, loss, count_nonfinite(output, gradient)


def count_nonfinite(used: Tensor, gradient: Tensor) -> Tensor:
    """Elements of each sample that are NaN or infinite in either tensor: [b] int64.

    Args:
        used: [1 or b, *dims].
        gradient: [b, *dims].
    """
    finite = used.isfinite() & gradient.isfinite()
    return (~finite).flatten(1).sum(1)


def _alpha_bar_interval(
    prediction_type: PredictionType, form: Form, coefficients: Tensor | None
) -> Interval:
    """The interval on which this form and prediction type do not divide by zero."""
    if form == "epsilon":
        return "(0, 1)"
    divided = prediction_type == "epsilon" or coefficients is not None
    return "(0, 1]" if divided else "[0, 1]"


def sds_gradient_from_output(
    x: Tensor,
    model_output: Tensor,
    alpha_bar: Tensor,
    weight: Tensor,
    noise: Tensor | NoiseKey,
    *,
    guidance_scale: float = 1.0,
    coefficients: Tensor | None = None,
    prediction_type: PredictionType = "epsilon",
    form: Form = "x0",
    clamp: float | None = None,
    backend: Backend = "auto",
) -> SDSResult:
    """Computes the distillation gradient from the raw model output, in one pass.

    With x_t = √ᾱ x + √(1 - ᾱ) ε, recomputed here in full precision, and m the guided output, the
    model's x̂_0 is

        epsilon: (x_t - √(1 - ᾱ) m) / √ᾱ        v: √ᾱ x_t - √(1 - ᾱ) m        x0: m
        flow: (x_t - √(1 - ᾱ) m) / (√ᾱ + √(1 - ᾱ)), where m stands for ε - x_0

    then optionally clamped, and with the weight w in the chosen form

        x0:      gradient = w (x - x̂_0),   loss = ½ w Σ (x - x̂_0)²
        epsilon: gradient = w (ε̂ - ε),     loss = ½ w √((1 - ᾱ)/ᾱ) Σ (ε̂ - ε)²

    where ε̂ is m itself for an unclamped epsilon prediction and (x_t - √ᾱ x̂_0) / √(1 - ᾱ)
    otherwise. As x - x̂_0 = √((1 - ᾱ)/ᾱ) (ε̂ - ε), either loss has the gradient beside it as its
    derivative by x, x̂_0 fixed.

    Other objectives compare other predictions: with ``coefficients`` c_i of k predictions m_i and
    c_n of the noise, the ε-form is w (Σ c_i ε̂_i + c_n ε), the x0-form √((1 - ᾱ)/ᾱ) of that:

        x0:      gradient = w ((Σ c_i) x - Σ c_i x̂_0i + √((1 - ᾱ)/ᾱ) (Σ c_i + c_n) ε)

    Guidance is (1 - s, s) with c_n = -1; its loss is the one above, other losses are only the size
    of their gradient.

    On CUDA nothing but the results is stored, and with a `NoiseKey` ε is generated again in
    registers. Computed in float32, or float64 for a float64 x. Inputs may be strided in any way:
    they are made contiguous first.

    Args:
        x: [b, c, *spatial] the clean z, floating point.
        model_output: [b, c, *spatial] or, with an unconditional half stacked above a conditional
            one, [2b, c, *spatial], combined as u + s(c - u); a model with learned variance gives
            2c channels, of which the first c are used. Any floating dtype.
        alpha_bar: [b], in [0, 1] and off the ends that the equations divide by. Values are checked
            on the CPU only.
        weight: [b] floating point, w(t) in the chosen form.
        noise: The ε that x_t was made with: a tensor [b, c, *spatial] or the `NoiseKey` given to
            `perturb`.
        guidance_scale: s; anything but 1 needs both halves.
        coefficients: [k + 1, b] floating point, of k predictions stacked on dim 0, [k·b, ...], and
            of the noise. None is guidance. In float64 (1 - s) + s is 1.
        prediction_type: What the model predicts.
        form: Which of the two equations above.
        clamp: Bound of |x̂_0| (CasTex: 1 in the pixel space [-1, 1]), or None.
        backend: "auto" by device (on a CPU a compiled loop), "reference" (plain torch) or "triton".

    Returns:
        The gradient, its loss and, as `nonfinite`, the number of elements of each sample at which
        the guided output or the gradient is not finite; a clamp would hide the former. Nothing is
        replaced.

    Raises:
        ValueError: Shapes, dtypes, devices, values or names do not fit, a tensor requires a
            gradient, or the backend cannot run here.

    Source: CasTex Eq. 1 (arXiv 2504.06856); epsilon form: DreamFusion Eq. 3 (arXiv 2209.14988).
    """
    require_one_of("prediction_type", prediction_type, get_args(PredictionType))
    require_one_of("form", form, get_args(Form))
    require_samples("x", x, min_dims=2)
    require_alpha_bar(alpha_bar, x, _alpha_bar_interval(prediction_type, form, coefficients))
    require_weight(weight, x)
    require_clamp(clamp)
    if coefficients is None:
        _require_model_output(model_output, x, guidance_scale)
    else:
        _require_combination(model_output, x, coefficients, guidance_scale, clamp)
    require_no_graph(x=x, model_output=model_output, alpha_bar=alpha_bar, weight=weight)
    noise = checked_noise(noise, x)
    body = body_for(backend, x.device)
    x, model_output, alpha_bar, weight = (
        tensor.contiguous() for tensor in (x, model_output, alpha_bar, weight)
    )
    coefficients = None if coefficients is None else coefficients.detach().contiguous()
    settings = (coefficients, float(guidance_scale), prediction_type, form, clamp)
    if body == "triton":
        from sdslab.kernels.triton_bodies import sds_gradient_triton

        tensors = (x, model_output, alpha_bar, weight, *launch_arguments(noise, x.device))
        return SDSResult(*sds_gradient_triton(*tensors, *settings))
    # w (x - m) has no noise in it.
    noiseless = prediction_type == form == "x0" and coefficients is None
    eps = None if noiseless else drawn_noise(noise, x)
    if body == "cpu" and coefficients is None:
        from sdslab.kernels.cpu_bodies import sds_gradient_cpu

        return SDSResult(*sds_gradient_cpu(x, model_output, alpha_bar, weight, eps, *settings[1:]))
    return SDSResult(*_reference(x, model_output, alpha_bar, weight, eps, *settings))


def _require_model_output(model_output: Tensor, x: Tensor, guidance_scale: float) -> None:
    b, c, *spatial = x.shape
    shapes = tuple([rows, channels, *spatial] for rows in (b, 2 * b) for channels in (c, 2 * c))
    advice = "stack (unconditional, conditional) on dim 0 and keep the model's channels as they are"
    require_like("model_output", model_output, x, shapes, advice)
    if guidance_scale != 1 and len(model_output) == b:
        raise ValueError(
            f"model_output must hold an unconditional and a conditional half, {2 * b} rows, for "
            f"guidance_scale {guidance_scale}, got {b} rows; stack both, or pass "
            "guidance_scale=1.0 if they are already combined"
        )


def _require_combination(
    model_output: Tensor,
    x: Tensor,
    coefficients: Tensor,
    guidance_scale: float,
    clamp: float | None,
) -> None:
    b, c, *spatial = x.shape
    require_type("coefficients", coefficients, Tensor, "make it with torch.tensor")
    if coefficients.ndim != 2 or len(coefficients) < 2 or coefficients.shape[1] != b:
        raise ValueError(
            f"coefficients must be [k + 1, {b}], of k predictions and of the noise, for x "
            f"{list(x.shape)}, got {list(coefficients.shape)}"
        )
    if not coefficients.is_floating_point():
        raise ValueError(f"coefficients must be floating point, got {coefficients.dtype}")
    if coefficients.device != x.device:
        raise ValueError(
            f"coefficients must be on the device of x, {x.device}, got {coefficients.device}"
        )
    k = len(coefficients) - 1
    shapes = tuple([k * b, channels, *spatial] for channels in (c, 2 * c))
    advice = "stack the predictions on dim 0 in the order of the coefficients"
    require_like("model_output", model_output, x, shapes, advice)
    if guidance_scale != 1:
        raise ValueError(
            f"guidance_scale must be 1 where coefficients are given, got {guidance_scale}; write "
            "guidance as the coefficients 1 - s and s"
        )
    if clamp is not None:
        raise ValueError(
            f"clamp must be None where coefficients are given, got {clamp}: a combination of "
            "predictions is no picture whose range is known"
        )
