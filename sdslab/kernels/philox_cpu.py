"""Random words and standard normals on a CPU: Philox compiled by numba, Box-Muller by torch.

Bit for bit what the plain torch bodies draw: those pass over memory, or for a few words call torch,
at every step of the ten rounds; the compiled loop keeps them in registers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.compiled import njit

# Blocks at a time: their words stay in the cache.
_BLOCKS_AT_ONCE = 2**15


# Inlined, or the loops around it would not be vectorised.
@njit(nogil=True, cache=True, inline="always")
def _block(a, b, c, d, low, high):
    """Ten rounds on a block: four counter words and the key's two, all uint64 in [0, 2^32)."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (q >> half) ^ b ^ low, q & mask
        c, d = (p >> half) ^ d ^ high, p & mask
        low = (low + np.uint64(0x9E3779B9)) & mask
        high = (high + np.uint64(0xBB67AE85)) & mask
    return a, b, c, d


@njit(nogil=True, cache=True)
def _sample_and_step(counters, step):
    """Counter words 2 and 3, from one of `NoiseKey.counters` and the key's step."""
    counters, mask = np.uint64(counters), np.uint64(0xFFFFFFFF)
    return counters & mask, (step + (counters >> np.uint64(32))) & mask


@njit(nogil=True, cache=True)
def _fill_bits(samples, words, lanes):
    """Fills lanes [b, blocks, 4] with the words of each sample's first blocks.

    Args:
        samples: [b] int64, `NoiseKey.counters`.
        words: [4] uint64: seed (low, high), stream, step.
        lanes: int64.
    """
    low, high, stream = words[0], words[1], words[2]
    for row in range(len(lanes)):
        sample, step = _sample_and_step(samples[row], words[3])
        out = lanes[row]
        for i in range(len(out)):
            first = np.uint64(i) & np.uint64(0xFFFFFFFF)
            a, b, c, d = _block(first, stream, sample, step, low, high)
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = a, b, c, d


@njit(nogil=True, cache=True)
def _words(counters, seed_low, seed_high, stream, step, start, even_0, odd_0, even_1, odd_1):
    """Fills one array with each word of a sample's blocks from `start` on, rounded to floats."""
    sample, step = _sample_and_step(counters, step)
    for i in range(len(even_0)):
        first = np.uint64(start + i) & np.uint64(0xFFFFFFFF)
        a, b, c, d = _block(first, stream, sample, step, seed_low, seed_high)
        even_0[i], odd_0[i] = np.uint32(a), np.uint32(b)
        even_1[i], odd_1[i] = np.uint32(c), np.uint32(d)


@njit(nogil=True, cache=True)
def _fill_words(samples, words, blocks, first, u, v):
    """Fills u and v [2, count] with words (0, 2) and (1, 3) of blocks of all samples.

    Args:
        samples: [b] int64, `NoiseKey.counters`.
        words: [4] uint64: seed (low, high), stream, step.
        blocks: Number of blocks of each sample.
        first: Which of all samples' blocks comes first.
        u: Floats, for the radii.
        v: Floats, for the angles.
    """
    done, count = 0, u.shape[1]
    while done < count:
        row, start = (first + done) // blocks, (first + done) % blocks
        end = done + min(blocks - start, count - done)
        _words(
            np.uint64(samples[row]),
            words[0],
            words[1],
            words[2],
            words[3],
            start,
            u[0, done:end],
            v[0, done:end],
            u[1, done:end],
            v[1, done:end],
        )
        done = end


@njit(nogil=True, cache=True)
def _interleave(radius, cosine, sine, lanes):
    """Normals [count, 4] in element order from the parts [2, count] of their two pairs."""
    for i in range(len(lanes)):
        lanes[i, 0] = radius[0, i] * cosine[0, i]
        lanes[i, 1] = radius[0, i] * sine[0, i]
        lanes[i, 2] = radius[1, i] * cosine[1, i]
        lanes[i, 3] = radius[1, i] * sine[1, i]


def bits_cpu(samples: Tensor, words: Sequence[int], n: int) -> Tensor:
    """Body of `philox_bits` on a CPU; arguments as of the plain torch body."""
    blocks = -(-n // 4)
    lanes = samples.new_empty(len(samples), blocks, 4)
    _fill_bits(samples.numpy(), np.array(words, dtype=np.uint64), lanes.numpy())
    return lanes.flatten(1)[:, :n].contiguous()


def normal_cpu(samples: Tensor, words: Sequence[int], n: int, dtype: torch.dtype) -> Tensor:
    """Body of `philox_normal` on a CPU; arguments as of the plain torch body."""
    blocks = -(-n // 4)
    lanes = torch.empty(len(samples) * blocks, 4, dtype=torch.promote_types(dtype, torch.float32))
    scratch = lanes.new_empty(3, 2, min(_BLOCKS_AT_ONCE, len(lanes)))
    key = np.array(words, dtype=np.uint64)
    for first in range(0, len(lanes), _BLOCKS_AT_ONCE):
        part = lanes[first : first + _BLOCKS_AT_ONCE]
        u, v, cosine = scratch[:, :, : len(part)]
        _fill_words(samples.numpy(), key, blocks, first, u.numpy(), v.numpy())
        radius = u.mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2).sqrt_()
        angle = v.mul_(2.0**-32).add_(2.0**-33).mul_(2 * math.pi)
        torch.cos(angle, out=cosine)
        _interleave(radius.numpy(), cosine.numpy(), angle.sin_().numpy(), part.numpy())
    return lanes.reshape(len(samples), 4 * blocks)[:, :n].to(dtype).contiguous()
