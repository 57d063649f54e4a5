"""CPU bodies of the ops: one pass over memory, compiled by numba, rounded as plain torch does.

Each kernel takes a range of chunks, so that threads can share a batch; a chunk lies within one
sample. Sums are made per chunk, whichever thread makes them. Arrays and numbers have the precision
of the computation where nothing else is said. The ops have checked the arguments and made the
tensors contiguous.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.compiled import njit
from sdslab.kernels.validation import compute_dtype
from sdslab.machine import run_all, split, worker_count

# Elements that are worth a thread: to wake one takes as long as a hundred thousand.
_GRAIN = 2**17

_NUMPY_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}

_CHUNK = 1024

_EPSILON, _V, _X0, _FLOW = range(4)
_PREDICTIONS = {"epsilon": _EPSILON, "v": _V, "x0": _X0, "flow": _FLOW}


# Only where a chunk is added up may the order change, which lets the loop be vectorised.
@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _plus(a, b):
    return a + b


@njit(nogil=True, cache=True)
def _clamped(value, bound):
    """Clamps to [-bound, bound]; NaN stays NaN."""
    if value < -bound:
        return -bound
    return bound if value > bound else value


@njit(nogil=True, cache=True)
def _place(index, n):
    """The sample of a chunk, and where in it the chunk starts and ends."""
    chunks = (n + _CHUNK - 1) // _CHUNK
    start = index % chunks * _CHUNK
    return index // chunks, start, min(start + _CHUNK, n)


@njit(nogil=True, cache=True)
def _perturb_kernel(first, last, x, eps, alpha_bar, x_t):
    """Fills x_t.

    Args:
        first: Chunk.
        last: One past the last chunk.
        x: [b, n].
        eps: [b, n].
        alpha_bar: [b] float64.
        x_t: [b, n].
    """
    number = x.dtype.type
    for index in range(first, last):
        row, start, end = _place(index, x.shape[1])
        signal, sigma = number(math.sqrt(alpha_bar[row])), number(math.sqrt(1 - alpha_bar[row]))
        clean, noise, noisy = x[row, start:end], eps[row, start:end], x_t[row, start:end]
        for i in range(len(clean)):
            noisy[i] = signal * clean[i] + sigma * noise[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _sds_gradient_kernel(
    first, last, x, output, eps, alpha_bar, weight, scale, clamp, choices, gradient, loss, nonfinite
):
    """Fills the gradient, and two sums for each chunk.

    Args:
        first: Chunk.
        last: One past the last chunk.
        x: [b, n].
        output: [b, n or more], or [2b, n or more] where it has two halves.
        eps: [b, n].
        alpha_bar: [b] float64.
        weight: [b].
        scale: Guidance scale.
        clamp: Bound of |x̂_0|, infinite for none.
        choices: One of `_PREDICTIONS`, whether the form is x0, whether x̂_0 is clamped.
        gradient: [b, n].
        loss: [b · chunks] float64, each chunk's part.
        nonfinite: [b · chunks] int64, how many outputs or gradients are.
    """
    prediction, in_x0_form, clamped = choices
    guided, predicts_x0 = len(output) > len(x), prediction == _X0
    straight = prediction == _EPSILON and not clamped
    number = x.dtype.type
    zero, one = number(0), number(1)
    for index in range(first, last):
        row, start, end = _place(index, x.shape[1])
        signal, sigma = number(math.sqrt(alpha_bar[row])), number(math.sqrt(1 - alpha_bar[row]))
        # x̂_0 = (p x_t - √(1 - ᾱ) m) / q; a factor of one rounds nothing.
        p, q = signal if prediction == _V else one, one
        if prediction == _EPSILON:
            q = signal
        elif prediction == _FLOW:
            q = signal + sigma
        w = weight[row]
        unconditional = output[row, start:end]
        conditional = output[row + len(x) if guided else row, start:end]
        clean, noise, filled = x[row, start:end], eps[row, start:end], gradient[row, start:end]
        squares = bad = zero
        for i in range(len(clean)):
            m = conditional[i]
            if guided:
                m = unconditional[i] + scale * (m - unconditional[i])
            x_t = signal * clean[i] + sigma * noise[i]
            x0_hat = _clamped(m if predicts_x0 else (p * x_t - sigma * m) / q, clamp)
            if in_x0_form:
                difference = clean[i] - x0_hat
            else:
                difference = (m if straight else (x_t - signal * x0_hat) / sigma) - noise[i]
            g = w * difference
            filled[i] = g
            squares = _plus(squares, difference * difference)
            bad = _plus(bad, zero if np.isfinite(m) and np.isfinite(g) else one)
        coefficient = w if in_x0_form else w * (sigma / signal)
        loss[index], nonfinite[index] = 0.5 * np.float64(coefficient) * squares, bad


@njit(nogil=True, cache=True)
def _degenerate_sds_gradient_kernel(
    first, last, x, target, weight, clamp, gradient, loss, nonfinite
):
    """Fills the gradient, and two sums for each chunk.

    Args:
        first: Chunk.
        last: One past the last chunk.
        x: [b, n].
        target: [1 or b, n].
        weight: [b], of x - x*.
        clamp: Bound of |x*|, infinite for none.
        gradient: [b, n].
        loss: [b · chunks] float64, each chunk's part.
        nonfinite: [b · chunks] int64, how many targets or gradients are.
    """
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for index in range(first, last):
        row, start, end = _place(index, x.shape[1])
        w, known = weight[row], row % len(target)
        clean, true, filled = x[row, start:end], target[known, start:end], gradient[row, start:end]
        squares = bad = zero
        for i in range(len(clean)):
            difference = clean[i] - _clamped(true[i], clamp)
            g = w * difference
            filled[i] = g
            squares = _plus(squares, difference * difference)
            bad = _plus(bad, zero if np.isfinite(true[i]) and np.isfinite(g) else one)
        loss[index], nonfinite[index] = 0.5 * np.float64(w) * squares, bad


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
    """Number of chunks of one sample."""
    return -(-x.shape[1] // _CHUNK)


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


def perturb_cpu(x: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """Body of `perturb`."""
    dtype = compute_dtype(x)
    x_t = torch.empty_like(x, dtype=dtype)
    _run(
        _perturb_kernel,
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
    eps: Tensor | None,
    guidance_scale: float,
    prediction_type: str,
    form: str,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `sds_gradient_from_output`; no ε where the equation has none."""
    dtype = compute_dtype(x)
    if model_output.dtype != dtype:
        # A learned variance need not be converted.
        model_output = model_output[:, : x.shape[1]].to(dtype)
    return _run_with_sums(
        _sds_gradient_kernel,
        x,
        _rows(model_output, dtype),
        _rows(x if eps is None else eps, dtype),
        # In float64, because 1 - alpha_bar cancels at small t.
        _each(alpha_bar, torch.float64),
        _each(weight, dtype),
        _NUMPY_NUMBERS[dtype](guidance_scale),
        _bound(clamp, dtype),
        (_PREDICTIONS[prediction_type], form == "x0", clamp is not None),
    )


def degenerate_sds_gradient_cpu(
    x: Tensor, target: Tensor, weight: Tensor, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Body of `degenerate_sds_gradient`, given the weight of x - x* in the computation's dtype."""
    return _run_with_sums(
        _degenerate_sds_gradient_kernel,
        x,
        _rows(target, weight.dtype),
        _each(weight, weight.dtype),
        _bound(clamp, weight.dtype),
    )
