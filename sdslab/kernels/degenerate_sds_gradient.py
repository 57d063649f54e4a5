"""The score-distillation gradient of a diffusion model that knows a single image."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from sdslab.kernels.backend import Backend, choose_body, compute_dtype
from sdslab.kernels.nonfinite import count_nonfinite
from sdslab.kernels.sds_gradient import Form, SDSResult
from sdslab.kernels.validation import (
    require_alpha_bar,
    require_clamp,
    require_like,
    require_no_graph,
    require_one_of,
    require_samples,
    require_weight,
)


def weight_of_difference(
    weight: Tensor, alpha_bar: Tensor, form: str, dtype: torch.dtype
) -> Tensor:
    """What x - x* is multiplied by in either form: [b], of `dtype`."""
    weight = weight.to(dtype)
    if form == "x0":
        return weight
    # In float64, because 1 - alpha_bar cancels at small t.
    alpha_bar = alpha_bar.double()
    return weight * (alpha_bar / (1 - alpha_bar)).sqrt().to(dtype)


def _reference(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    weight = weight_of_difference(weight, alpha_bar, form, dtype)
    x0_hat = target.to(dtype)
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)
    difference = x.to(dtype) - x0_hat
    gradient = weight.reshape(-1, *[1] * (x.ndim - 1)) * difference
    loss = 0.5 * weight * difference.square().flatten(1).sum(1)
    return gradient, loss, count_nonfinite(target, gradient)


_op = torch.library.custom_op("sdslab::degenerate_sds_gradient", _reference, mutates_args=())


@_op.register_kernel("cpu")
def _(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    from sdslab.kernels.cpu_bodies import degenerate_sds_gradient_cpu

    return degenerate_sds_gradient_cpu(x, target, alpha_bar, weight, form, clamp)


@_op.register_kernel("cuda")
def _(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _load_triton()(x, target, alpha_bar, weight, form, clamp)


@_op.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    gradient = x.new_empty(x.shape, dtype=compute_dtype(x))
    return gradient, gradient.new_empty(len(x)), x.new_empty(len(x), dtype=torch.int64)


def _load_triton() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from sdslab.kernels.triton_bodies import degenerate_sds_gradient_triton

    return degenerate_sds_gradient_triton


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
    body = choose_body(backend, x.device, auto=_op, reference=_reference, triton=_load_triton)
    return SDSResult(
        *body(
            x.contiguous(),
            target.contiguous(),
            alpha_bar.contiguous(),
            weight.contiguous(),
            form,
            clamp,
        )
    )
