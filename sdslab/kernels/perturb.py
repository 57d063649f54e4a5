"""The forward process: noise a clean batch to its timesteps."""

from torch import Tensor

from sdslab.kernels.philox import NoiseKey, checked_noise, drawn_noise, launch_arguments
from sdslab.kernels.validation import (
    Backend,
    body_for,
    compute_dtype,
    require_alpha_bar,
    require_no_graph,
    require_samples,
)


def signal_and_noise_rates(alpha_bar: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 - ᾱ), shaped to broadcast over x, in the dtype that x is computed in.

    Args:
        alpha_bar: [b] in [0, 1].
        x: [b, *dims].

    Returns:
        Two tensors [b, 1, ..., 1].
    """
    # In float64, because 1 - alpha_bar cancels at small t.
    alpha_bar = alpha_bar.double().reshape(-1, *[1] * (x.ndim - 1))
    return alpha_bar.sqrt().to(compute_dtype(x)), (1 - alpha_bar).sqrt().to(compute_dtype(x))


def _reference(x: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    signal, sigma = signal_and_noise_rates(alpha_bar, x)
    return (signal * x.to(eps.dtype)).add_(sigma * eps).to(x.dtype)


def perturb(
    x: Tensor, alpha_bar: Tensor, noise: Tensor | NoiseKey, *, backend: Backend = "auto"
) -> Tensor:
    """Noises a clean batch: x_t = √ᾱ x + √(1 - ᾱ) ε.

    On CUDA with a `NoiseKey`, ε is generated in registers and never stored. Computed in float32, or
    float64 for a float64 x. Inputs may be strided in any way: they are made contiguous first.

    Args:
        x: [b, *dims] clean samples, floating point.
        alpha_bar: [b] in [0, 1], floating point. Values are checked on the CPU only.
        noise: ε as a tensor [b, *dims], or a `NoiseKey` with b samples, which stands for
            `philox_normal(noise, dims)` in the precision of the computation.
        backend: "auto" by device (on a CPU a compiled loop), "reference" (plain torch) or "triton".

    Returns:
        x_t, [b, *dims], of x's dtype, contiguous.

    Raises:
        ValueError: Shapes, dtypes, devices or values do not fit, a tensor requires a gradient, or
            the backend cannot run here.

    Source: Ho et al. 2020, Eq. 4 (arXiv 2006.11239).
    """
    require_samples("x", x)
    require_alpha_bar(alpha_bar, x, "[0, 1]")
    require_no_graph(x=x, alpha_bar=alpha_bar)
    noise = checked_noise(noise, x)
    body = body_for(backend, x.device)
    x, alpha_bar = x.contiguous(), alpha_bar.contiguous()
    if body == "triton":
        from sdslab.kernels.triton_bodies import perturb_triton

        return perturb_triton(x, alpha_bar, *launch_arguments(noise, x.device))
    eps = drawn_noise(noise, x)
    if body == "cpu":
        from sdslab.kernels.cpu_bodies import perturb_cpu

        return perturb_cpu(x, alpha_bar, eps)
    return _reference(x, alpha_bar, eps)
