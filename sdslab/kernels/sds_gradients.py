"""Score-distillation gradients: from a diffusion model's raw output, or under Eq. 3's one image."""

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
    guidance_scale: float,
    prediction_type: PredictionType,
    form: Form,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.to(compute_dtype(x))
    signal, sigma = signal_and_noise_rates(alpha_bar, x)
    weight = weight.to(x.dtype).reshape(signal.shape)
    x_t = x if eps is None else (signal * x).add_(sigma * eps)
    output = guided_output(model_output[:, : x.shape[1]].to(x.dtype), x, guidance_scale)
    x0_hat = x0_from(prediction_type, output, x_t, signal, sigma)
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)

    if form == "x0":
        difference, coefficient = x - x0_hat, weight
    else:
        straight = prediction_type == "epsilon" and clamp is None
        eps_hat = output if straight else (x_t - signal * x0_hat) / sigma
        assert eps is not None
        difference, coefficient = eps_hat - eps, weight * (sigma / signal)
    gradient = weight * difference
    loss = 0.5 * coefficient.flatten() * difference.square().flatten(1).sum(1)
    return gradient, loss, _count_nonfinite(output, gradient)


def _degenerate_reference(
    x: Tensor, target: Tensor, weight: Tensor, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    x0_hat = target.to(weight.dtype)
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)
    difference = x.to(weight.dtype) - x0_hat
    gradient = weight.reshape(-1, *[1] * (x.ndim - 1)) * difference
    loss = 0.5 * weight * difference.square().flatten(1).sum(1)
    return gradient, loss, _count_nonfinite(target, gradient)


def _count_nonfinite(used: Tensor, gradient: Tensor) -> Tensor:
    """Elements of each sample that are NaN or infinite in either tensor: [b] int64.

    Args:
        used: [1 or b, *dims].
        gradient: [b, *dims].
    """
    finite = used.isfinite() & gradient.isfinite()
    return (~finite).flatten(1).sum(1)


def _alpha_bar_interval(prediction_type: PredictionType, form: Form) -> Interval:
    """The interval on which this form and prediction type do not divide by zero."""
    if form == "epsilon":
        return "(0, 1)"
    return "(0, 1]" if prediction_type == "epsilon" else "[0, 1]"


def sds_gradient_from_output(
    x: Tensor,
    model_output: Tensor,
    alpha_bar: Tensor,
    weight: Tensor,
    noise: Tensor | NoiseKey,
    *,
    guidance_scale: float = 1.0,
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
    require_alpha_bar(alpha_bar, x, _alpha_bar_interval(prediction_type, form))
    require_weight(weight, x)
    require_clamp(clamp)
    _require_model_output(model_output, x, guidance_scale)
    require_no_graph(x=x, model_output=model_output, alpha_bar=alpha_bar, weight=weight)
    noise = checked_noise(noise, x)
    body = body_for(backend, x.device)
    x, model_output, alpha_bar, weight = (
        tensor.contiguous() for tensor in (x, model_output, alpha_bar, weight)
    )
    settings = (float(guidance_scale), prediction_type, form, clamp)
    if body == "triton":
        from sdslab.kernels.triton_bodies import sds_gradient_triton

        tensors = (x, model_output, alpha_bar, weight, *launch_arguments(noise, x.device))
        return SDSResult(*sds_gradient_triton(*tensors, *settings))
    # w (x - m) has no noise in it.
    eps = None if prediction_type == form == "x0" else drawn_noise(noise, x)
    if body == "cpu":
        from sdslab.kernels.cpu_bodies import sds_gradient_cpu

        return SDSResult(*sds_gradient_cpu(x, model_output, alpha_bar, weight, eps, *settings))
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


def degenerate_sds_gradient(
    x: Tensor,
    target: Tensor,
    alpha_bar: Tensor,
    weight: Tensor,
    *,
    form: Form = "x0",
    clamp: float | None = None,
    backend: Backend = "auto",
) -> SDSResult:
    """The distillation gradient under δ(x - x*), where x̂_0 = x* whatever the noise.

    The same as `sds_gradient` with the model output ε̂ = (x_t - √ᾱ x*)/√(1 - ᾱ), but exact: the
    noise cancels on paper instead of in floating point. With the weight w in the chosen form

        x0:      gradient = w (x - x*),                loss = ½ w Σ (x - x*)²
        epsilon: gradient = w √(ᾱ/(1 - ᾱ)) (x - x*),   loss = ½ w √(ᾱ/(1 - ᾱ)) Σ (x - x*)²

    Computed in float32, or float64 for a float64 x. Inputs may be strided in any way: they are made
    contiguous first.

    Args:
        x: [b, c, *spatial] the clean z, floating point.
        target: x*, [b, c, *spatial] or [1, c, *spatial] for all samples, floating point.
        alpha_bar: [b] in [0, 1], or (0, 1) for the epsilon form. Values are checked on the CPU
            only.
        weight: [b] floating point, w(t) in the chosen form.
        form: Which of the two equations above.
        clamp: Bound of |x*|, applied as `sds_gradient` applies it to x̂_0, or None.
        backend: "auto" by device (on a CPU a compiled loop), "reference" (plain torch) or "triton".

    Returns:
        The gradient, its loss and, as `nonfinite`, the number of elements of each sample at which
        the target or the gradient is not finite.

    Raises:
        ValueError: Shapes, dtypes, devices, values or names do not fit, a tensor requires a
            gradient, or the backend cannot run here.

    Source: CasTex Eq. 3-5 (arXiv 2504.06856).
    """
    require_one_of("form", form, get_args(Form))
    require_samples("x", x, min_dims=2)
    require_alpha_bar(alpha_bar, x, "[0, 1]" if form == "x0" else "(0, 1)")
    require_weight(weight, x)
    require_clamp(clamp)
    shapes = (list(x.shape), [1, *x.shape[1:]])
    require_like("target", target, x, shapes, "encode or resize it as x was")
    require_no_graph(x=x, target=target, alpha_bar=alpha_bar, weight=weight)
    body = body_for(backend, x.device)
    x, target = x.contiguous(), target.contiguous()
    if body == "triton":
        from sdslab.kernels.triton_bodies import degenerate_sds_gradient_triton

        alpha_bar, weight = alpha_bar.contiguous(), weight.contiguous()
        return SDSResult(*degenerate_sds_gradient_triton(x, target, alpha_bar, weight, form, clamp))
    weight = weight.to(compute_dtype(x))
    if form == "epsilon":
        # In float64, because 1 - alpha_bar cancels at small t.
        alpha_bar = alpha_bar.double()
        weight = weight * (alpha_bar / (1 - alpha_bar)).sqrt().to(weight.dtype)
    if body == "cpu":
        from sdslab.kernels.cpu_bodies import degenerate_sds_gradient_cpu

        return SDSResult(*degenerate_sds_gradient_cpu(x, target, weight, clamp))
    return SDSResult(*_degenerate_reference(x, target, weight, clamp))
