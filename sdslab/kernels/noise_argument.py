"""Noise as an argument of an op: a tensor, or a key from which the op draws its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdslab.kernels.philox import NoiseKey, flat_normal
from sdslab.kernels.validation import require_like, require_no_graph, require_type

# What a custom op takes in place of a key: the tensor or the samples' counters, and its words.
FlatNoise = tuple[Tensor | None, Tensor | None, list[int]]


def flatten_noise(noise: Tensor | NoiseKey, x: Tensor) -> FlatNoise:
    """Splits noise into what a custom op can take.

    Args:
        noise: [b, *dims] like x, or a key with b samples.
        x: [b, *dims], the tensor that the noise is for.

    Returns:
        The tensor or None, the key's [b] counters on x's device or None, and its words (empty for a
        tensor).

    Raises:
        ValueError: The noise does not match x.
    """
    if isinstance(noise, NoiseKey):
        if len(noise.sample) != len(x):
            raise ValueError(
                f"noise.sample must hold one index per sample of x, {len(x)}, "
                f"got {len(noise.sample)}; index the key's samples as you index x"
            )
        return None, noise.counters.to(x.device), noise.words
    require_type("noise", noise, Tensor, "or a NoiseKey(seed, step, sample=torch.arange(b))")
    require_like(
        "noise", noise, x, (list(x.shape),), "draw it for every sample, or pass a NoiseKey"
    )
    require_no_graph(noise=noise)
    return noise.contiguous(), None, []


def draw_noise(
    noise: Tensor | None, sample: Tensor | None, words: Sequence[int], x: Tensor, dtype: torch.dtype
) -> Tensor:
    """The noise that `flatten_noise` split, [b, *dims] like x, in `dtype`."""
    if noise is not None:
        return noise.to(dtype)
    assert sample is not None
    return flat_normal(sample, words, x[0].numel(), dtype).reshape(x.shape)
