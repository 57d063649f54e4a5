"""Triton bodies of the ops: allocation and launch; imported only when one of them runs.

The ops' wrappers have checked the arguments and made the tensors contiguous.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for types of arguments.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.kernels.backend import compute_dtype
from sdslab.kernels.triton_kernels import (
    bits_kernel,
    degenerate_sds_gradient_kernel,
    normal_kernel,
    perturb_kernel,
    sds_gradient_kernel,
)

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# Unfused arithmetic rounds as the reference does; these kernels wait for memory anyway.
_LAUNCH = {"BLOCK": 1024, "enable_fp_fusion": False}


def _grid(b: int, n: int) -> tuple[int]:
    return (b * triton.cdiv(n, _LAUNCH["BLOCK"]),)


def _gradient_buffers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, and partial sums [b, programs] of the loss and of the count."""
    gradient = torch.empty_like(x, dtype=compute_dtype(x))
    programs = triton.cdiv(x[0].numel(), _LAUNCH["BLOCK"])
    loss = gradient.new_empty(len(x), programs)
    return gradient, loss, loss.new_empty(loss.shape, dtype=torch.int32)


def philox_bits_triton(sample: Tensor, words: Sequence[int], n: int) -> Tensor:
    """Body of `philox_bits`."""
    bits = sample.new_empty(len(sample), n)
    if bits.numel():
        with torch.cuda.device_of(sample):
            bits_kernel[_grid(*bits.shape)](sample, bits, *words, n, **_LAUNCH)
    return bits


def philox_normal_triton(
    sample: Tensor, words: Sequence[int], n: int, dtype: torch.dtype
) -> Tensor:
    """Body of `philox_normal`."""
    normals = sample.new_empty(len(sample), n, dtype=dtype)
    if normals.numel():
        with torch.cuda.device_of(sample):
            normal_kernel[_grid(*normals.shape)](
                sample, normals, *words, n, DTYPE=_TRITON_DTYPES[compute_dtype(normals)], **_LAUNCH
            )
    return normals


def perturb_triton(
    x: Tensor, alpha_bar: Tensor, noise: Tensor | None, sample: Tensor | None, words: Sequence[int]
) -> Tensor:
    """Body of `perturb`."""
    x_t = torch.empty_like(x)
    n = x[0].numel()
    with torch.cuda.device_of(x):
        perturb_kernel[_grid(len(x), n)](
            x,
            alpha_bar,
            noise,
            sample,
            *(words or (0, 0, 0, 0)),
            x_t,
            n,
            DTYPE=_TRITON_DTYPES[compute_dtype(x)],
            **_LAUNCH,
        )
    return x_t


def sds_gradient_triton(
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
    """Body of `sds_gradient`."""
    gradient, loss, nonfinite = _gradient_buffers(x)
    n = x[0].numel()
    output_stride = model_output[0].numel()
    with torch.cuda.device_of(x):
        sds_gradient_kernel[_grid(len(x), n)](
            x,
            model_output,
            alpha_bar,
            weight,
            noise,
            sample,
            *(words or (0, 0, 0, 0)),
            guidance_scale,
            gradient,
            loss,
            nonfinite,
            n,
            output_stride,
            len(x) * output_stride,
            GUIDED=len(model_output) == 2 * len(x),
            PREDICTION_TYPE=prediction_type,
            FORM=form,
            CLAMP=clamp,
            DTYPE=_TRITON_DTYPES[compute_dtype(x)],
            **_LAUNCH,
        )
    return gradient, loss.sum(1), nonfinite.sum(1)


def degenerate_sds_gradient_triton(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `degenerate_sds_gradient`."""
    gradient, loss, nonfinite = _gradient_buffers(x)
    n = x[0].numel()
    with torch.cuda.device_of(x):
        degenerate_sds_gradient_kernel[_grid(len(x), n)](
            x,
            target,
            alpha_bar,
            weight,
            gradient,
            loss,
            nonfinite,
            n,
            0 if len(target) == 1 else n,
            FORM=form,
            CLAMP=clamp,
            DTYPE=_TRITON_DTYPES[compute_dtype(x)],
            **_LAUNCH,
        )
    return gradient, loss.sum(1), nonfinite.sum(1)
