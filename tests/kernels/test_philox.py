import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdslab.kernels import (
    NOISE_STREAM,
    TIMESTEP_STREAM,
    NoiseKey,
    philox_bits,
    philox_normal,
    philox_uniform,
)
from sdslab.kernels.philox import philox_4x32_10

SIZE = 1 << 17
EXTREME_KEY = NoiseKey(2**64 - 5, 2**32 - 1, torch.tensor([0, 1, 2**32 - 1]), stream=2**32 - 2)


def key(
    seed: int = 0, step: int = 0, samples: int = 1, first: int = 0, stream: int = 0
) -> NoiseKey:
    return NoiseKey(seed, step, torch.arange(first, first + samples), stream)


# Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = {
    "zeros": (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    "ones": (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(name):
    counter, words, expected = KNOWN_ANSWERS[name]
    even, odd = philox_4x32_10(
        torch.tensor(counter[0::2])[:, None], torch.tensor(counter[1::2])[:, None], words
    )
    assert torch.stack((even, odd), dim=1).flatten().tolist() == list(expected)


def test_counter_and_key_have_the_documented_layout():
    draw = NoiseKey((7 << 32) | 5, step=11, sample=torch.tensor([13]), stream=17)
    even, odd = philox_4x32_10(torch.tensor([[3], [13]]), torch.tensor([[17], [11]]), (5, 7))
    block = torch.stack((even, odd), dim=1).flatten()
    assert torch.equal(philox_bits(draw, 16)[0, 12:], block)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 63, 1025])
def test_bits_are_the_same_in_every_body(body, n):
    draw = NoiseKey(
        EXTREME_KEY.seed, EXTREME_KEY.step, EXTREME_KEY.sample.to(body.device), EXTREME_KEY.stream
    )
    expected = philox_bits(EXTREME_KEY, n, backend="reference")
    assert torch.equal(philox_bits(draw, n, backend=body.backend).cpu(), expected)


@pytest.mark.parametrize("step", [0, 11, 2**32 - 1])
def test_a_step_on_the_device_draws_as_the_number_does(body, step):
    sample = EXTREME_KEY.sample.to(body.device)
    given = NoiseKey(5, step, sample, stream=3)
    recorded = NoiseKey(5, torch.tensor([step], device=body.device), sample, stream=3)
    bits = philox_bits(recorded, 9, backend=body.backend)
    assert torch.equal(bits, philox_bits(given, 9, backend=body.backend))
    normals, expected = (
        philox_normal(draw, (3, 7), device=body.device, backend=body.backend)
        for draw in (recorded, given)
    )
    assert torch.equal(normals, expected)
    assert torch.equal(philox_normal(recorded, (3, 7)), philox_normal(given, (3, 7)))


def normals_from_bits(draw: NoiseKey, n: int, dtype: torch.dtype) -> torch.Tensor:
    bits = philox_bits(draw, 4 * -(-n // 4)).unflatten(1, (-1, 2)).to(dtype)
    u, v = (bits * 2.0**-32 + 2.0**-33).unbind(-1)
    radius = (-2 * u.log()).sqrt()
    pairs = torch.stack((radius * (2 * math.pi * v).cos(), radius * (2 * math.pi * v).sin()), -1)
    return pairs.flatten(1)[:, :n]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("shape", [(1,), (4, 63), (3, 17, 31)], ids=str)
def test_normals_are_box_muller_of_the_bits(body, assert_within_budget, shape, dtype):
    draw = key(seed=3, step=5, samples=2)
    actual = philox_normal(draw, shape, dtype, body.device, backend=body.backend)
    compute = torch.promote_types(dtype, torch.float32)
    # Words are rounded to the precision of the computation, so the truth starts from rounded words.
    truth = normals_from_bits(draw, math.prod(shape), compute).reshape(2, *shape)
    low_precision = truth.to(dtype)
    assert_within_budget("normals", actual, truth, low_precision)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("n", [0, 1, 63, 1000, 70_001])
def test_the_compiled_body_of_a_cpu_draws_the_same_bits_as_plain_torch(n, dtype):
    reference = philox_normal(EXTREME_KEY, (n,), dtype, backend="reference")
    assert torch.equal(philox_normal(EXTREME_KEY, (n,), dtype, backend="auto"), reference)


def test_normals_do_not_depend_on_precision():
    single, double = (
        philox_normal(key(), (4096,), dtype) for dtype in (torch.float32, torch.float64)
    )
    assert (single - double).abs().max() < 2e-6


def test_normals_have_the_moments_of_a_standard_normal():
    x = philox_normal(key(seed=1), (SIZE,), torch.float64)[0]
    # Standard errors of the mean, variance, skewness and kurtosis of n normals.
    for name, value, expected, variance in (
        ("mean", x.mean(), 0, 1),
        ("variance", x.var(), 1, 2),
        ("skewness", (x**3).mean(), 0, 15),
        ("kurtosis", (x**4).mean(), 3, 96),
    ):
        assert abs(value - expected) < 4 * math.sqrt(variance / SIZE), name


def test_normals_pass_kolmogorov_smirnov():
    assert stats.kstest(philox_normal(key(seed=2), (SIZE,))[0].numpy(), "norm").pvalue > 0.01


def test_uniforms_pass_kolmogorov_smirnov():
    assert stats.kstest(philox_uniform(key(seed=2), SIZE)[0].numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniforms_are_the_words_scaled_into_the_half_open_interval(dtype):
    draw = key(seed=4, samples=3)
    uniforms = philox_uniform(draw, 4096, dtype)
    assert uniforms.dtype == dtype
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    exact = philox_bits(draw, 4096).double() * 2.0**-32
    assert (uniforms.double() - exact).abs().max() < torch.finfo(dtype).eps


OTHER_KEYS: dict[str, NoiseKey] = {
    "seed": key(seed=1),
    "high half of the seed": key(seed=1 << 32),
    "step": key(step=1),
    "sample": key(first=1),
    "stream": key(stream=TIMESTEP_STREAM),
}


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_draws_of_different_keys_are_independent(name):
    a = philox_normal(key(stream=NOISE_STREAM), (SIZE,), torch.float64)[0]
    b = philox_normal(OTHER_KEYS[name], (SIZE,), torch.float64)[0]
    assert abs((a * b).mean()) < 4 / math.sqrt(SIZE)
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4 * 2 / math.sqrt(SIZE)


@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_elements_of_a_draw_are_independent(lag):
    x = philox_normal(key(seed=9), (SIZE,), torch.float64)[0]
    assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(SIZE)


@settings(deadline=None, max_examples=25)
@given(split=st.integers(1, 6), n=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_a_sample_does_not_depend_on_its_batch(split, n, seed):
    whole = philox_normal(key(seed, samples=7), (n,))
    first, rest = key(seed, samples=split), key(seed, samples=7 - split, first=split)
    parts = torch.cat((philox_normal(first, (n,)), philox_normal(rest, (n,))))
    assert torch.equal(whole, parts)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(0, 200), more=st.integers(0, 200))
def test_a_longer_draw_begins_with_the_shorter_one(n, more):
    draw = key(samples=2)
    assert torch.equal(philox_bits(draw, n), philox_bits(draw, n + more)[:, :n])
    assert torch.equal(philox_normal(draw, (n,)), philox_normal(draw, (n + more,))[:, :n])
    assert torch.equal(philox_uniform(draw, n), philox_uniform(draw, n + more)[:, :n])


def test_order_and_strides_of_the_samples_do_not_matter():
    samples = torch.tensor([4, 0, 2, 0, 9, 0])
    strided = NoiseKey(0, 0, samples[::2])
    assert torch.equal(
        philox_normal(strided, (5,)), philox_normal(key(samples=10), (5,))[[4, 2, 9]]
    )


def test_the_number_of_threads_does_not_matter():
    threads = torch.get_num_threads()
    draws = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            draws.append(philox_normal(key(samples=2), (100_003,)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*draws)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    philox_normal(key(), (8,))
    assert torch.equal(before, torch.get_rng_state())


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "negative seed": (lambda: key(seed=-1), r"seed must be in \[0, 2\^64\), got -1; number it"),
    "large seed": (lambda: key(seed=2**64), r"seed must be in \[0, 2\^64\)"),
    "large step": (lambda: key(step=2**32), r"step must be in \[0, 2\^32\), got 4294967296"),
    "step of another dtype": (
        lambda: NoiseKey(0, torch.tensor([1.0]), torch.arange(2)),
        r"step must be a number or a \[1\] int64 tensor, got \[1\] of torch.float32; build it",
    ),
    "large stream": (lambda: key(stream=2**32), r"stream must be in \[0, 2\^32\)"),
    "negative sample": (
        lambda: NoiseKey(0, 0, torch.tensor([3, -1])),
        r"sample must be in \[0, 2\^32\), got \[-1\]; number samples from 0",
    ),
    "sample of another dtype": (
        lambda: NoiseKey(0, 0, torch.zeros(2)),
        r"sample must be a \[b\] int64 tensor, got \[2\] of torch.float32; build it with",
    ),
    "sample of another shape": (
        lambda: NoiseKey(0, 0, torch.zeros(2, 1, dtype=torch.int64)),
        r"sample must be a \[b\] int64 tensor, got \[2, 1\]",
    ),
    "negative n": (lambda: philox_bits(key(), -1), "n must be 0 or more, got -1; pass the number"),
    "negative shape": (lambda: philox_normal(key(), (3, -2)), "shape must be 0 or more, got -2"),
    "integer normals": (
        lambda: philox_normal(key(), (3,), torch.int32),
        "dtype must be one of torch.float32, .*, got torch.int32",
    ),
    "half uniforms": (
        lambda: philox_uniform(key(), 3, torch.float16),
        "dtype must be torch.float32 or torch.float64, got torch.float16",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_must_hold_and_what_came(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
