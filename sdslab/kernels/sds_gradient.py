"""The score-distillation gradient, from the raw output of a diffusion model."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sdslab.kernels.backend import Backend, choose_body, compute_dtype
from sdslab.kernels.noise_argument import draw_noise, flatten_noise
from sdslab.kernels.nonfinite import count_nonfinite
from sdslab.kernels.perturb import signal_and_noise_rates
from sdslab.kernels.philox import NoiseKey
from sdslab.kernels.validation import (
    Interval,
    require_alpha_bar,
    require_clamp,
    require_like,
    require_no_graph,
    require_one_of,
    require_samples,
    require_weight,
)

PredictionType = Literal["epsilon", "v", "x0", "flow"]
Form = Literal["x0", "epsilon"]


class SDSResult(NamedTuple):
    """What one distillation step yields.

    Attributes:
        gradient: [b, c, *spatial] float32 (float64 for a float64 x), contiguous: what the paper
            prints, not divided by the batch size.
        loss: [b], the scalar whose derivative by x, with x̂_0 held fixed, is `gradient`.
        nonfinite: [b] int64, how many elements were NaN or infinite.
    """

    gradient: Tensor
    loss: Tensor
    nonfinite: Tensor


def _reference(
    x: Tensor,
    model_output: Tensor,
    alpha_bar: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    sample: Tensor | None,
    words: Sequence[int],
    guidance_scale: float,
    prediction_type: str,
    form: str,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    eps = draw_noise(noise, sample, words, x, dtype)
    x = x.to(dtype)
    signal, sigma = signal_and_noise_rates(alpha_bar, x)
    weight = weight.to(dtype).reshape(signal.shape)
    x_t = (signal * x).add_(sigma * eps)

    output = model_output[:, : x.shape[1]].to(dtype)
    if len(output) == 2 * len(x):
        unconditional, conditional = output.chunk(2)
        output = unconditional + guidance_scale * (conditional - unconditional)

    if prediction_type == "epsilon":
        x0_hat = (x_t - sigma * output) / signal
    elif prediction_type == "v":
        x0_hat = signal * x_t - sigma * output
    elif prediction_type == "flow":
        x0_hat = (x_t - sigma * output) / (signal + sigma)
    else:
        x0_hat = output
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)

    if form == "x0":
        difference, coefficient = x - x0_hat, weight
    else:
        straight = prediction_type == "epsilon" and clamp is None
        eps_hat = output if straight else (x_t - signal * x0_hat) / sigma
        difference, coefficient = eps_hat - eps, weight * (sigma / signal)
    gradient = weight * difference
    loss = 0.5 * coefficient.flatten() * difference.square().flatten(1).sum(1)
    return gradient, loss, count_nonfinite(output, gradient)


_op = torch.library.custom_op("sdslab::sds_gradient", _reference, mutates_args=())


@_op.register_kernel("cpu")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from sdslab.kernels.cpu_bodies import sds_gradient_cpu

    return sds_gradient_cpu(*arguments)


@_op.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _load_triton()(*arguments)


@_op.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    gradient = x.new_empty(x.shape, dtype=compute_dtype(x))
    return gradient, gradient.new_empty(len(x)), x.new_empty(len(x), dtype=torch.int64)


def _load_triton() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from sdslab.kernels.triton_bodies import sds_gradient_triton

    return sds_gradient_triton


def _alpha_bar_interval(prediction_type: PredictionType, form: Form) -> Interval:
    """Where the equations of this form and prediction type do not divide by zero."""
    if form == "epsilon":
        return "(0, 1)"
    return "(0, 1]" if prediction_type == "epsilon" else "[0, 1]"


def sds_gradient(
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
    """From the raw model output to the distillation gradient, in one pass.

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
    body = choose_body(backend, x.device, auto=_op, reference=_reference, triton=_load_triton)
    return SDSResult(
        *body(
            x.contiguous(),
            model_output.contiguous(),
            alpha_bar.contiguous(),
            weight.contiguous(),
            *flatten_noise(noise, x),
            float(guidance_scale),
            prediction_type,
            form,
            clamp,
        )
    )


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
