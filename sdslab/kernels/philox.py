"""Counter-based noise: a value depends on seed, step, sample, stream and element, and no more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.kernels.validation import (
    Backend,
    body_for,
    compute_dtype,
    require_integer,
    require_like,
    require_no_graph,
    require_type,
)

# Streams: what is drawn from one never repeats in another. All of the project's are here.
NOISE_STREAM = 0
TIMESTEP_STREAM = 1
INITIALIZATION_STREAM = 2  # of θ
CAMERA_STREAM = 3
LIGHT_STREAM = 4
BACKGROUND_STREAM = 5
SR_CONDITION_STREAM = 6
VIEW_STREAM = 7  # of points on the surface
ANCHORED_NOISE_STREAM = 8  # of noise that moves with the surface
NOISE_LEVEL_STREAM = 9

_MASK = 2**32 - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_NORMAL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class NoiseKey:
    """Names a batch of noise without holding it: equal keys give equal noise, on every device.

    Args:
        seed: The run's seed, in [0, 2^64).
        step: The optimisation step, in [0, 2^32); or [1] int64 on the device of `sample`, for work
            that is recorded once and replayed at every step.
        sample: [b] int64, global index of each sample in [0, 2^32): position in the whole batch of
            the step, not in this device's share of it.
        stream: In [0, 2^32), keeps draws of different purposes apart (`NOISE_STREAM`,
            `TIMESTEP_STREAM`, `SR_CONDITION_STREAM`).

    Raises:
        ValueError: A number is out of range, or `sample` is not a vector of int64.
    """

    seed: int
    step: int | Tensor
    sample: Tensor
    stream: int = NOISE_STREAM

    def __post_init__(self) -> None:
        """Refuses numbers that would not fit the generator's key and counter."""
        for name, bits in (("seed", 64), ("step", 32), ("stream", 32)):
            value = getattr(self, name)
            if name == "step" and isinstance(value, Tensor):
                _require_step(value)
                continue
            require_integer(name, value)
            if not 0 <= value < 2**bits:
                raise ValueError(f"{name} must be in [0, 2^{bits}), got {value}; number it from 0")
        require_type("sample", self.sample, Tensor, "build it with torch.arange(b)")
        if self.sample.dtype != torch.int64 or self.sample.ndim != 1:
            raise ValueError(
                f"sample must be a [b] int64 tensor, got {list(self.sample.shape)} of "
                f"{self.sample.dtype}; build it with torch.arange(first, first + b)"
            )
        # On a GPU this would wait for the device at every step.
        if self.sample.device.type != "cpu":
            return
        outside = [index for index in self.sample.tolist() if not 0 <= index <= _MASK]
        if outside:
            raise ValueError(f"sample must be in [0, 2^32), got {outside}; number samples from 0")

    @property
    def words(self) -> list[int]:
        """The numbers shared by all samples as 32-bit words: seed (low, high), stream, step.

        A step that is a tensor is 0 here, for `counters` has it.
        """
        step = 0 if isinstance(self.step, Tensor) else self.step
        return [self.seed & _MASK, self.seed >> 32, self.stream, step]

    @property
    def counters(self) -> Tensor:
        """[b] int64: the sample in the low 32 bits; above them what is added to `words`' step."""
        if isinstance(self.step, Tensor):
            return self.sample + (self.step << 32)
        return self.sample.contiguous()


def _require_step(step: Tensor) -> None:
    if step.dtype != torch.int64 or step.shape != (1,):
        raise ValueError(
            f"step must be a number or a [1] int64 tensor, got {list(step.shape)} of {step.dtype}; "
            f"build it with torch.tensor([step])"
        )


def philox_4x32_10(even: Tensor, odd: Tensor, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Ten rounds of Philox-4x32, in place.

    Words 0 and 2 are multiplied in every round, 1 and 3 are not: stacked by parity, a round is
    a handful of calls.

    Args:
        even: [2, *dims] int64, counter words 0 and 2, in [0, 2^32); overwritten.
        odd: [2, *dims] int64, counter words 1 and 3, in [0, 2^32); overwritten.
        key: Two integers in [0, 2^32).

    Returns:
        `even` and `odd`, which now hold the words of the result, in [0, 2^32).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.
    """
    product = torch.empty_like(even)
    keys = torch.tensor(key, device=even.device).reshape(2, *[1] * (even.ndim - 1))
    increments = torch.tensor(_KEY_INCREMENTS, device=even.device).reshape(keys.shape)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves intact.
        torch.mul(even[1], _MULTIPLIERS[1], out=product[0])
        torch.mul(even[0], _MULTIPLIERS[0], out=product[1])
        torch.bitwise_right_shift(product, 32, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(keys).bitwise_and_(_MASK)
        torch.bitwise_and(product, _MASK, out=odd)
        keys = (keys + increments) & _MASK
    return even, odd


def _blocks(sample: Tensor, words: Sequence[int], blocks: int) -> tuple[Tensor, Tensor]:
    """The first blocks of every sample: words (0, 2) and words (1, 3), each [2, b, blocks]."""
    seed_low, seed_high, stream, step = words
    even = sample.new_empty(2, len(sample), blocks)
    odd = torch.empty_like(even)
    even[0] = torch.arange(blocks, device=sample.device)
    even[1] = (sample & _MASK)[:, None]
    odd[0] = stream
    odd[1] = ((sample >> 32) + step & _MASK)[:, None]
    return philox_4x32_10(even, odd, (seed_low, seed_high))


def _by_parity(lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Views of [b, 4 blocks] lanes as (0, 2) and as (1, 3), each [2, b, blocks]."""
    pairs = lanes.unflatten(1, (-1, 2, 2)).permute(2, 0, 1, 3)  # [2, b, blocks, 2]
    return pairs[..., 0], pairs[..., 1]


def _bits_reference(sample: Tensor, words: Sequence[int], n: int) -> Tensor:
    blocks = -(-n // 4)
    lanes = sample.new_empty(len(sample), 4 * blocks)
    for view, values in zip(_by_parity(lanes), _blocks(sample, words, blocks), strict=True):
        view.copy_(values)
    return lanes[:, :n].contiguous()


def _normal_reference(sample: Tensor, words: Sequence[int], n: int, dtype: torch.dtype) -> Tensor:
    """Plain torch body of `philox_normal`, over flat samples.

    Args:
        sample: `NoiseKey.counters`.
        words: `NoiseKey.words`.
        n: Elements of one sample.
        dtype: Data type of the result.

    Returns:
        [b, n] standard normals.

    Source: Box and Muller 1958.
    """
    blocks = -(-n // 4)
    compute = torch.promote_types(dtype, torch.float32)
    even, odd = _blocks(sample, words, blocks)
    u = even.to(compute).mul_(2.0**-32).add_(2.0**-33)  # [2, b, blocks]
    v = odd.to(compute).mul_(2.0**-32).add_(2.0**-33)  # [2, b, blocks]
    radius = u.log_().mul_(-2).sqrt_()
    angle = v.mul_(2 * math.pi)
    lanes = torch.empty(len(sample), 4 * blocks, dtype=dtype, device=sample.device)
    cosines, sines = _by_parity(lanes)
    cosines.copy_(angle.cos().mul_(radius))
    sines.copy_(angle.sin().mul_(radius))
    return lanes[:, :n].contiguous()


def philox_bits(key: NoiseKey, n: int, *, backend: Backend = "auto") -> Tensor:
    """Random 32-bit words, n for each sample.

    Word i of a sample is word i % 4 of the Philox-4x32-10 block whose counter is (i // 4, stream,
    sample, step) and whose key is the seed's (low, high) 32 bits.

    Args:
        key: Names the draw.
        n: Words per sample; the first words of a longer draw are the same.
        backend: "auto" by device (on a CPU a compiled loop), "reference" (plain torch) or "triton".

    Returns:
        [b, n] int64 with values in [0, 2^32), on the device of `key.sample`.

    Raises:
        ValueError: n is negative, or the backend is unknown or cannot run here.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.
    """
    _require_count("n", n)
    match body_for(backend, key.sample.device):
        case "triton":
            from sdslab.kernels.triton_bodies import philox_bits_triton as body
        case "cpu":
            from sdslab.kernels.philox_cpu import bits_cpu as body
        case "reference":
            body = _bits_reference
    return body(key.counters, key.words, n)


def philox_uniform(
    key: NoiseKey, n: int, dtype: torch.dtype = torch.float64, *, backend: Backend = "auto"
) -> Tensor:
    """Uniform numbers in [0, 1), n for each sample: word · 2^-32.

    Args:
        key: Names the draw.
        n: Numbers per sample; the first numbers of a longer draw are the same.
        dtype: float64, or float32, which takes the upper 24 bits of each word so that 1 is never
            reached.
        backend: "auto" by device, "reference" (plain torch) or "triton".

    Returns:
        [b, n] of `dtype`, on the device of `key.sample`.

    Raises:
        ValueError: n is negative, the dtype is another one, or the backend is unknown or cannot run
            here.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be torch.float32 or torch.float64, got {dtype}; convert the result"
        )
    bits = philox_bits(key, n, backend=backend)
    if dtype == torch.float32:
        return (bits >> 8).to(dtype) * 2.0**-24
    return bits.to(dtype) * 2.0**-32


def philox_normal(
    key: NoiseKey,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Standard normal noise, one draw for each sample.

    Element i of a sample, in row-major order over `shape`, is lane i % 4 of block i // 4 of
    `philox_bits`. Lanes (0, 1) and (2, 3) are pairs of words (p, q), and become normals by
    Box-Muller:

        u = p · 2^-32 + 2^-33,  v = q · 2^-32 + 2^-33  (in [2^-33, 1], so the logarithm is finite)
        even lane = sqrt(-2 ln u) · cos(2π v),  odd lane = sqrt(-2 ln u) · sin(2π v)

    All of it in float32, or float64 where that is the dtype; words are rounded to nearest on
    conversion, and half precision is rounded at the end. CPU and CUDA share the words exactly and
    the normals to a few units in the last place. The largest magnitude is sqrt(66 ln 2) = 6.76.

    Args:
        key: Names the draw; its samples may be on any device.
        shape: Dimensions of one sample.
        dtype: float32, float64, bfloat16 or float16.
        device: Device of the result; by default that of `key.sample`.
        backend: "auto" by device (on a CPU a compiled loop with the reference's own bits),
            "reference" (plain torch) or "triton".

    Returns:
        [b, *shape] of `dtype`, contiguous.

    Raises:
        ValueError: A dimension is negative, or the dtype or backend is unknown or cannot run here.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller 1958.
    """
    if dtype not in _NORMAL_DTYPES:
        names = ", ".join(map(str, _NORMAL_DTYPES))
        raise ValueError(f"dtype must be one of {names}, got {dtype}; convert the result")
    for size in shape:
        _require_count("every dimension of shape", size)
    sample = key.counters.to(device or key.sample.device)
    match body_for(backend, sample.device):
        case "triton":
            from sdslab.kernels.triton_bodies import philox_normal_triton as body
        case "cpu":
            from sdslab.kernels.philox_cpu import normal_cpu as body
        case "reference":
            body = _normal_reference
    return body(sample, key.words, math.prod(shape), dtype).reshape(len(sample), *shape)


def _require_count(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(
            f"{name} must be 0 or more, got {value}; pass the number of elements wanted"
        )


def checked_noise(noise: Tensor | NoiseKey, x: Tensor) -> Tensor | NoiseKey:
    """Noise as an op takes it: a contiguous tensor like x, or a key with a sample for each of x's.

    Raises:
        ValueError: The noise does not match x.
    """
    if isinstance(noise, NoiseKey):
        if len(noise.sample) != len(x):
            raise ValueError(
                f"noise.sample must hold one index per sample of x, {len(x)}, "
                f"got {len(noise.sample)}; index the key's samples as you index x"
            )
        return noise
    require_type("noise", noise, Tensor, "or a NoiseKey(seed, step, sample=torch.arange(b))")
    require_like(
        "noise", noise, x, (list(x.shape),), "draw it for every sample, or pass a NoiseKey"
    )
    require_no_graph(noise=noise)
    return noise.contiguous()


def drawn_noise(noise: Tensor | NoiseKey, x: Tensor) -> Tensor:
    """Noise as a tensor like x, in the precision that x is computed in."""
    if isinstance(noise, NoiseKey):
        return philox_normal(noise, x.shape[1:], compute_dtype(x), x.device)
    return noise.to(compute_dtype(x))


def launch_arguments(
    noise: Tensor | NoiseKey | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None, list[int]]:
    """Noise as the Triton bodies take it: a tensor or the key's counters, and the key's words."""
    if isinstance(noise, NoiseKey):
        return None, noise.counters.to(device), noise.words
    return noise, None, []
