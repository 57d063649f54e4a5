"""Triton bodies of the ops: allocation and launch; imported only when one of them runs.

The ops' wrappers have checked the arguments and made the tensors contiguous.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for types of arguments.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.kernels.triton_kernels import (
    bits_kernel,
    degenerate_sds_gradient_kernel,
    normal_kernel,
    perturb_kernel,
    sds_gradient_kernel,
)
from sdslab.kernels.validation import compute_dtype

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# Unfused arithmetic rounds as the reference does; these kernels wait for memory anyway.
_LAUNCH = {"BLOCK": 1024, "num_warps": 4, "enable_fp_fusion": False}
# A small sample, up to the size of 3 × 64² and a little more, is one program's: tiles of so many.
SMALL_BLOCK, MOST_TILES = 4096, 4


def launch_with_sums(n: int, dtype: torch.dtype) -> dict[str, Any]:
    """Launch options of a kernel with sums over a sample.

    A small sample is a single program's, whose sums need no second launch to add them up.

    Args:
        n: Elements of a sample.
        dtype: Precision of the computation.
    """
    tiles = triton.cdiv(n, SMALL_BLOCK)
    if dtype == torch.float64 or n <= _LAUNCH["BLOCK"] or tiles > MOST_TILES:
        return _LAUNCH | {"TILES": 1}
    return _LAUNCH | {"BLOCK": SMALL_BLOCK, "TILES": tiles, "num_warps": 16}


def _grid(b: int, n: int, launch: Mapping[str, Any] = _LAUNCH) -> tuple[int]:
    return (b * triton.cdiv(n, launch["BLOCK"] * launch.get("TILES", 1)),)


def _gradient_buffers(x: Tensor, launch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, and partial sums [b, programs] of the loss and of the count."""
    gradient = torch.empty_like(x, dtype=compute_dtype(x))
    (programs,) = _grid(1, x[0].numel(), launch)
    loss = gradient.new_empty(len(x), programs)
    return gradient, loss, loss.new_empty(loss.shape, dtype=torch.int64)


def _added_up(partial: Tensor) -> Tensor:
    """[b, programs] -> [b]."""
    return partial[:, 0] if partial.shape[1] == 1 else partial.sum(1)


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
    coefficients: Tensor | None,
    guidance_scale: float,
    prediction_type: str,
    form: str,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `sds_gradient`."""
    n = x[0].numel()
    launch = launch_with_sums(n, compute_dtype(x))
    gradient, loss, nonfinite = _gradient_buffers(x, launch)
    output_stride = model_output[0].numel()
    if coefficients is not None:
        # The first prediction's own coefficient is the sum of all, as `combined_output` has it.
        total = coefficients[:-1].double().sum(0)
        coefficients = torch.cat((total[None], coefficients[1:].double()))
    with torch.cuda.device_of(x):
        sds_gradient_kernel[_grid(len(x), n, launch)](
            x,
            model_output,
            alpha_bar,
            weight,
            noise,
            sample,
            *(words or (0, 0, 0, 0)),
            guidance_scale,
            coefficients,
            gradient,
            loss,
            nonfinite,
            n,
            output_stride,
            len(x) * output_stride,
            len(x),
            PREDICTIONS=len(model_output) // len(x),
            PREDICTION_TYPE=prediction_type,
            FORM=form,
            CLAMP=clamp,
            DTYPE=_TRITON_DTYPES[compute_dtype(x)],
            **launch,
        )
    return gradient, _added_up(loss), _added_up(nonfinite)


def degenerate_sds_gradient_triton(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `degenerate_sds_gradient`."""
    n = x[0].numel()
    launch = launch_with_sums(n, compute_dtype(x))
    gradient, loss, nonfinite = _gradient_buffers(x, launch)
    with torch.cuda.device_of(x):
        degenerate_sds_gradient_kernel[_grid(len(x), n, launch)](
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
            **launch,
        )
    return gradient, _added_up(loss), _added_up(nonfinite)
