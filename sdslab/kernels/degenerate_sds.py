"""The score-distillation gradient under Eq. 3's one image."""

from typing import get_args

from torch import Tensor

from sdslab.kernels.sds_gradients import Form, SDSResult, count_nonfinite
from sdslab.kernels.validation import (
    Backend,
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


def _degenerate_reference(
    x: Tensor, target: Tensor, weight: Tensor, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    x0_hat = target.to(weight.dtype)
    if clamp is not None:
        x0_hat = x0_hat.clamp(-clamp, clamp)
    difference = x.to(weight.dtype) - x0_hat
    gradient = weight.reshape(-1, *[1] * (x.ndim - 1)) * difference
    loss = 0.5 * weight * difference.square().flatten(1).sum(1)
    return gradient, loss, count_nonfinite(target, gradient)


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
