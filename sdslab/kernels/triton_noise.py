"""Noise on the GPU: Philox words, normals and the rates of the forward process."""

# Triton annotates with values (tl.uint32, tl.constexpr), which a type checker takes for mistakes.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

import math

import triton
import triton.language as tl

# These words change at every step: specialised on, each value would compile its kernel anew.
KEY_WORDS = ["seed_low", "seed_high", "stream", "step"]
_UNIT = tl.constexpr(2.0**-32)
_HALF_UNIT = tl.constexpr(2.0**-33)
_TWO_PI = tl.constexpr(2 * math.pi)
_TWO_OVER_PI = tl.constexpr(2 / math.pi)
# π/2 in three parts, of which the first two have few bits: up to 4 times one is exact in float32.
_HALF_PI = tl.constexpr((1.5703125, 4.837512969970703125e-4, 7.549789954891882e-8))


@triton.jit
def philox_lanes(sample_ptr, row, counter, seed_low, seed_high, stream, step):
    """The four words of each Philox block."""
    same = tl.zeros_like(counter)
    seed = seed_low.to(tl.uint64) | (seed_high.to(tl.uint64) << 32)
    counters = tl.load(sample_ptr + row)
    sample, step = counters.to(tl.uint32), (counters >> 32).to(tl.uint32) + step.to(tl.uint32)
    return tl.philox(seed, counter, same + stream.to(tl.uint32), same + sample, same + step)


@triton.jit
def _cosine_and_sine(angle, DTYPE: tl.constexpr):
    """Both of an angle in [0, 2π], to an ulp or two.

    In float32 without the library's calls, which reduce the angle twice and prepare for huge ones
    with a table and a stack.

    Source: Cephes, sinf and cosf (Moshier 1989).
    """
    if tl.float32 != DTYPE:
        return tl.cos(angle), tl.sin(angle)
    quarter = tl.floor(tl.fma(angle, _TWO_OVER_PI, 0.5))
    r = tl.fma(-quarter, _HALF_PI[0], angle)
    r = tl.fma(-quarter, _HALF_PI[1], r)
    r = tl.fma(-quarter, _HALF_PI[2], r)  # in [-π/4, π/4]
    s = r * r
    sine = tl.fma(tl.fma(s, -1.9515295891e-4, 8.3321608736e-3), s, -1.6666654611e-1)
    sine = tl.fma(sine * s, r, r)
    cosine = tl.fma(tl.fma(s, 2.443315711809948e-5, -1.388731625493765e-3), s, 4.166664568298827e-2)
    cosine = tl.fma(cosine, s * s, tl.fma(s, -0.5, 1.0))
    turns = quarter.to(tl.int32)
    odd = (turns & 1) == 1
    first, second = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    first = tl.where(((turns + 1) & 2) == 2, -first, first)
    return first, tl.where((turns & 2) == 2, -second, second)


@triton.jit
def box_muller(p, q, DTYPE: tl.constexpr):
    """Two words -> two normals, in the steps that `philox_normal` documents."""
    u = p.to(DTYPE) * _UNIT + _HALF_UNIT
    v = q.to(DTYPE) * _UNIT + _HALF_UNIT
    radius = tl.sqrt(-2.0 * tl.log(u))
    cosine, sine = _cosine_and_sine(v * _TWO_PI, DTYPE)
    return radius * cosine, radius * sine


@triton.jit
def normals(
    sample_ptr,
    row,
    counter,
    seed_low,
    seed_high,
    stream,
    step,
    DTYPE: tl.constexpr,
):
    """[..., 4 k] normals in element order, four of each of the [..., k] Philox blocks."""
    a, b, c, d = philox_lanes(sample_ptr, row, counter, seed_low, seed_high, stream, step)
    a, b = box_muller(a, b, DTYPE)
    c, d = box_muller(c, d, DTYPE)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def rates(alpha_bar_ptr, row, DTYPE: tl.constexpr):
    """√ᾱ and √(1 - ᾱ), through float64 because 1 - alpha_bar cancels at small t."""
    alpha_bar = tl.load(alpha_bar_ptr + row).to(tl.float64)
    return tl.sqrt(alpha_bar).to(DTYPE), tl.sqrt(1.0 - alpha_bar).to(DTYPE)
