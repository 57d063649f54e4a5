"""The forward process: noises a batch, and the condition of a super-resolution model."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.philox import NoiseKey, checked_noise, drawn_noise, launch_arguments
from sdslab.kernels.validation import (
    Backend,
    body_for,
    compute_dtype,
    require_alpha_bar,
    require_no_graph,
    require_one_of,
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


def _perturb_reference(x: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
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
    return _perturb_reference(x, alpha_bar, eps)


SRMode = Literal["castex", "pipeline"]

# The GPU body computes its exact indices in 32-bit integers.
_LARGEST_SIDE = 2**14


def _nearest(size: int, low_size: int, source_size: int, device: torch.device) -> Tensor:
    """Index of the source pixel that each of `size` shows, through `low_size`: [size] int64."""
    index = torch.arange(size, device=device)
    return index * low_size // size * source_size // low_size


def _resample(x: Tensor, mode: str, size: int, low_size: int) -> Tensor:
    if mode == "castex":
        rows, columns = (_nearest(size, low_size, side, x.device) for side in x.shape[-2:])
        return x[:, :, rows[:, None], columns]
    low = F.interpolate(x, size=(low_size, low_size), mode="bilinear", antialias=True)
    return F.interpolate(low, size=(size, size), mode="bilinear", align_corners=True)


def _sr_condition_reference(
    render: Tensor,
    alpha_bar: Tensor | None,
    noise: Tensor | NoiseKey | None,
    mode: SRMode,
    size: int,
    low_size: int,
) -> Tensor:
    condition = 2 * _resample(render.to(compute_dtype(render)), mode, size, low_size) - 1
    if alpha_bar is not None and noise is not None:
        signal, sigma = signal_and_noise_rates(alpha_bar, condition)
        condition = signal * condition + sigma * drawn_noise(noise, condition)
    return condition.to(render.dtype)


def sr_condition(
    render: Tensor,
    alpha_bar: Tensor | None,
    noise: Tensor | NoiseKey | None,
    *,
    mode: SRMode = "castex",
    size: int = 256,
    low_size: int = 64,
    backend: Backend = "auto",
) -> Tensor:
    """Makes a super-resolution model's condition from a stage-I render, in one pass.

    The render is made small (low_size²) and large again (size²), mapped to c = 2x - 1 and noised:
    √ᾱ c + √(1 - ᾱ) ε.

        castex:   nearest down and nearest up; pixel i of n shows pixel ⌊i m / n⌋ of m
        pipeline: antialiased bilinear down, bilinear with aligned corners up

    Neither the small picture nor, with a `NoiseKey` on CUDA, ε is stored. Computed in float32, or
    float64 for a float64 render. The render may be strided in any way: it is made contiguous first.

    Args:
        render: [b, c, h, w] floating point, finite, sRGB-encoded in [0, 1]; sides up to 16384.
        alpha_bar: [b] in [0, 1], floating point: ᾱ at the condition's noise level. Values are
            checked on the CPU only. None, with no noise either, leaves the condition clean.
        noise: ε as a tensor [b, c, size, size], or a `NoiseKey` with b samples, which stands for
            `philox_normal(noise, (c, size, size))` in the precision of the computation.
        mode: How the render is resampled.
        size: Height and width of the condition, those of the model's x_t.
        low_size: Height and width of the small picture, up to `size`.
        backend: "auto" by device, "reference" (plain torch) or "triton".

    Returns:
        The condition [b, c, size, size], of the render's dtype, contiguous.

    Raises:
        ValueError: Shapes, sizes, dtypes, devices or values do not fit, a tensor requires a
            gradient, or the backend cannot run here.

    Source: CasTex's public code ("castex", at t = 500); diffusers' IFSuperResolutionPipeline
    ("pipeline", at noise level 250), which takes a 64² image where we make one.
    """
    require_one_of("mode", mode, get_args(SRMode))
    require_samples("render", render)
    _require_sizes(render, size, low_size)
    require_no_graph(render=render)
    if alpha_bar is not None and noise is not None:
        condition = render[:, :, :1, :1].expand(-1, -1, size, size)  # its shape, not its memory
        require_alpha_bar(alpha_bar, condition, "[0, 1]")
        require_no_graph(alpha_bar=alpha_bar)
        alpha_bar, noise = alpha_bar.contiguous(), checked_noise(noise, condition)
    elif alpha_bar is not None or noise is not None:
        given, missing = ("noise", "alpha_bar") if alpha_bar is None else ("alpha_bar", "noise")
        raise ValueError(
            f"alpha_bar and noise must come together, got {given} without {missing}; "
            "pass both, or neither for a clean condition"
        )
    render, size, low_size = render.contiguous(), int(size), int(low_size)
    if body_for(backend, render.device) != "triton":
        return _sr_condition_reference(render, alpha_bar, noise, mode, size, low_size)
    from sdslab.kernels.triton_sr_condition import sr_condition_triton

    noise_arguments = launch_arguments(noise, render.device)
    return sr_condition_triton(render, alpha_bar, *noise_arguments, mode, size, low_size)


def _require_sizes(render: Tensor, size: int, low_size: int) -> None:
    if render.ndim != 4:
        raise ValueError(
            f"render must be [b, c, h, w], got {list(render.shape)}; add the missing dimension"
        )
    if not 1 <= low_size <= size:
        raise ValueError(
            f"low_size must be from 1 to size, {size}, got {low_size}; "
            "it is the small picture, 64 for DeepFloyd's 256"
        )
    if max(*render.shape[-2:], size) > _LARGEST_SIDE:
        raise ValueError(
            f"sides must be up to {_LARGEST_SIDE}, got a render of {list(render.shape[-2:])} "
            f"and size {size}; render smaller"
        )
