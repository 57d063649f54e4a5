"""CPU kernels of the ops, compiled by numba: one pass over memory, rounded as the plain bodies do.

Each takes a range of chunks, so that threads can share a batch; a chunk lies within one sample.
Sums are made per chunk, whichever thread makes them. Arrays and numbers have the precision of the
computation where nothing else is said.
"""

import math

import numpy as np

from sdslab.kernels.compiled import njit

CHUNK = 1024

_EPSILON, _V, _X0, _FLOW = range(4)
PREDICTIONS = {"epsilon": _EPSILON, "v": _V, "x0": _X0, "flow": _FLOW}


# Only where a chunk is added up may the order change, which lets the loop be vectorised.
@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _plus(a, b):
    return a + b


@njit(nogil=True, cache=True)
def _clamped(value, bound):
    """NaN is neither less nor greater, and stays."""
    if value < -bound:
        return -bound
    return bound if value > bound else value


@njit(nogil=True, cache=True)
def _place(index, n):
    """The sample of a chunk, and where in it the chunk starts and ends."""
    chunks = (n + CHUNK - 1) // CHUNK
    start = index % chunks * CHUNK
    return index // chunks, start, min(start + CHUNK, n)


@njit(nogil=True, cache=True)
def perturb_kernel(first, last, x, eps, alpha_bar, x_t):
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
def sds_gradient_kernel(
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
        scale: Of guidance.
        clamp: Bound of |x̂_0|, infinite for none.
        choices: One of `PREDICTIONS`, whether the form is x0, whether x̂_0 is clamped.
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
def degenerate_sds_gradient_kernel(
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
