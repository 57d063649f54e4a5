"""CPU bodies of the ops: allocation and threads; imported only when one of them runs.

The ops' wrappers have checked the arguments and made the tensors contiguous.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.backend import compute_dtype
from sdslab.kernels.cpu_kernels import (
    CHUNK,
    PREDICTIONS,
    degenerate_sds_gradient_kernel,
    perturb_kernel,
    sds_gradient_kernel,
)
from sdslab.kernels.degenerate_sds_gradient import weight_of_difference
from sdslab.kernels.noise_argument import draw_noise
from sdslab.machine import run_all, split, worker_count

# Elements that are worth a thread: to wake one takes as long as a hundred thousand.
_GRAIN = 2**17

_NUMPY_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


def _rows(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """[b, *dims] -> [b, n] of `dtype`."""
    return tensor.detach().to(dtype).numpy().reshape(len(tensor), -1)


def _each(values: Tensor, dtype: torch.dtype) -> np.ndarray:
    """A number per sample, [b] of `dtype`."""
    return values.detach().to(dtype).numpy()


def _run(kernel: Callable[..., None], x: np.ndarray, *arguments: Any) -> None:
    """Calls a kernel on the chunks of x [b, n], on as many threads as they are worth."""
    threads = min(worker_count(), x.size // _GRAIN)
    parts = split(len(x) * _chunks(x), threads)
    run_all(kernel, [(part.start, part.stop, x, *arguments) for part in parts])


def _chunks(x: np.ndarray) -> int:
    """Of one sample."""
    return -(-x.shape[1] // CHUNK)


def _run_with_sums(
    kernel: Callable[..., None], x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Calls a kernel that also wants a gradient to fill, and sums of chunks.

    Returns:
        The gradient like x, the loss and the count; chunks are added in their own order, on however
        many threads they were made.
    """
    dtype = compute_dtype(x)
    rows = _rows(x, dtype)
    gradient = torch.empty_like(x, dtype=dtype)
    loss = np.empty((len(rows), _chunks(rows)))
    nonfinite = np.empty(loss.shape, dtype=np.int64)
    _run(kernel, rows, *arguments, _rows(gradient, dtype), loss.ravel(), nonfinite.ravel())
    return (
        gradient,
        torch.from_numpy(loss.sum(1)).to(dtype),
        torch.from_numpy(nonfinite.sum(1)),
    )


def _bound(clamp: float | None, dtype: torch.dtype) -> np.floating:
    return _NUMPY_NUMBERS[dtype](math.inf if clamp is None else clamp)


def perturb_cpu(
    x: Tensor, alpha_bar: Tensor, noise: Tensor | None, sample: Tensor | None, words: Sequence[int]
) -> Tensor:
    """Body of `perturb`."""
    dtype = compute_dtype(x)
    eps = draw_noise(noise, sample, words, x, dtype)
    x_t = torch.empty_like(x, dtype=dtype)
    _run(
        perturb_kernel,
        _rows(x, dtype),
        _rows(eps, dtype),
        _each(alpha_bar, torch.float64),
        _rows(x_t, dtype),
    )
    return x_t.to(x.dtype)


def sds_gradient_cpu(
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
    dtype = compute_dtype(x)
    eps = draw_noise(noise, sample, words, x, dtype)
    if model_output.dtype != dtype:
        # A learned variance need not be converted.
        model_output = model_output[:, : x.shape[1]].to(dtype)
    return _run_with_sums(
        sds_gradient_kernel,
        x,
        _rows(model_output, dtype),
        _rows(eps, dtype),
        # In float64, because 1 - alpha_bar cancels at small t.
        _each(alpha_bar, torch.float64),
        _each(weight, dtype),
        _NUMPY_NUMBERS[dtype](guidance_scale),
        _bound(clamp, dtype),
        (PREDICTIONS[prediction_type], form == "x0", clamp is not None),
    )


def degenerate_sds_gradient_cpu(
    x: Tensor, target: Tensor, alpha_bar: Tensor, weight: Tensor, form: str, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `degenerate_sds_gradient`."""
    dtype = compute_dtype(x)
    return _run_with_sums(
        degenerate_sds_gradient_kernel,
        x,
        _rows(target, dtype),
        _each(weight_of_difference(weight, alpha_bar, form, dtype), dtype),
        _bound(clamp, dtype),
    )
