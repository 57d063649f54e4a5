"""The posterior mean against the sum that defines it, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.kernels.patch_posterior import ANY_BIN, SIGMA_FLOOR, patch_posterior
from tests.kernels.conftest import Body

# queries, keys, coordinates, features of the context, columns of other values
SIZES = [(1, 1, 1, 1, 1), (5, 63, 7, 3, 40), (63, 500, 31, 16, 9), (40, 70, 147, 40, 3)]
VARIANTS = ["plain", "bias", "context", "values", "bins", "bias, context, values and bins"]
ALPHA_BARS = (0.0, 0.01, 0.3, 0.9, 0.999, 0.999999)


def posterior(body: Body, y: Tensor, keys: Tensor, alpha_bar: Tensor, **options: Any) -> Tensor:
    """`patch_posterior` of the body, brought back to the CPU."""
    options = {
        name: value.to(body.device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }
    tensors = (tensor.to(body.device) for tensor in (y, keys, alpha_bar))
    return patch_posterior(*tensors, **options, backend=body.backend).cpu()


def by_definition(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    query_bin: Tensor | None = None,
    key_bin: Tensor | None = None,
    context: Tensor | None = None,
    key_context: Tensor | None = None,
    context_scale: float = 1.0,
    sigma_floor: float = SIGMA_FLOOR,
) -> Tensor:
    """The softmax over explicit squared distances, in float64."""
    y, keys, alpha_bar = y.double(), keys.double(), alpha_bar.double()
    variance = (1 - alpha_bar).clamp_min(sigma_floor**2)
    differences = y[:, None] - alpha_bar.sqrt()[:, None, None] * keys
    logits = -differences.square().sum(-1) / (2 * variance[:, None])
    if context is not None and key_context is not None:
        distances = (context.double()[:, None] - key_context.double()).square().sum(-1)
        logits = logits - distances / (2 * context_scale**2)
    return average(logits, keys if values is None else values, bias, query_bin, key_bin)


def in_float32(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    query_bin: Tensor | None = None,
    key_bin: Tensor | None = None,
    context: Tensor | None = None,
    key_context: Tensor | None = None,
    context_scale: float = 1.0,
    sigma_floor: float = SIGMA_FLOOR,
) -> Tensor:
    """The same with the square expanded, as products of matrices in float32."""
    variance = (1 - alpha_bar.double()).clamp_min(sigma_floor**2)
    towards, away = alpha_bar.double().sqrt() / variance, -alpha_bar.double() / (2 * variance)
    logits = (towards.float()[:, None] * y) @ keys.T
    logits = logits + away.float()[:, None] * keys.square().sum(1)
    if context is not None and key_context is not None:
        products = (context / context_scale**2) @ key_context.T
        logits = logits + products - key_context.square().sum(1) / (2 * context_scale**2)
    return average(logits, keys if values is None else values, bias, query_bin, key_bin)


def average(
    logits: Tensor,
    values: Tensor,
    bias: Tensor | None,
    query_bin: Tensor | None,
    key_bin: Tensor | None,
) -> Tensor:
    if bias is not None:
        logits = logits + bias
    if query_bin is not None and key_bin is not None:
        seen = (query_bin[:, None] == key_bin) | (query_bin[:, None] == ANY_BIN)
        logits = logits.masked_fill(~(seen | (key_bin == ANY_BIN)), -float("inf"))
    return logits.softmax(1) @ values.to(logits.dtype)


def problem(
    size: tuple[int, ...], variant: str = "plain", dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Noisy keys at all noise levels, and what else is known of them."""
    n, k, r, m, d = size
    generator = torch.Generator().manual_seed(n + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    keys = normal(k, r) / r**0.5
    alpha_bar = torch.tensor(ALPHA_BARS, dtype=torch.float64).repeat(n)[:n]
    origin = torch.arange(n) * 7 % k
    y = alpha_bar.sqrt()[:, None] * keys[origin] + (1 - alpha_bar).sqrt()[:, None] * normal(n, r)
    options: dict[str, Any] = {}
    if "bias" in variant:
        options["bias"] = normal(k).to(dtype)
    if "context" in variant:
        options["key_context"] = normal(k, m)
        options["context"] = options["key_context"][origin] + 0.3 * normal(n, m)
        for name in ("key_context", "context"):
            options[name] = options[name].to(dtype)
        options["context_scale"] = 0.5
    if "values" in variant:
        options["values"] = normal(k, d).to(dtype)
    if "bins" in variant:
        options["key_bin"] = torch.arange(k) % 5 + ANY_BIN
        options["query_bin"] = torch.where(origin % 7 == 0, ANY_BIN, options["key_bin"][origin])
    return (y.to(dtype), keys.to(dtype), alpha_bar), options


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_softmax_over_squared_distances(body, assert_within_budget, size, variant):
    arguments, options = problem(size, variant)
    assert_within_budget(
        f"E[p | y], {variant}",
        posterior(body, *arguments, **options),
        by_definition(*arguments, **options),
        in_float32(*arguments, **options),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_is_computed_in_float64(body, variant):
    arguments, options = problem((30, 200, 31, 16, 9), variant, torch.float64)
    torch.testing.assert_close(
        posterior(body, *arguments, **options),
        by_definition(*arguments, **options),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(body, assert_within_budget, dtype):
    (y, keys, alpha_bar), options = problem((63, 500, 31, 16, 9), VARIANTS[-1], dtype)
    widened = {
        name: value.float() if name in ("values", "bias", "context", "key_context") else value
        for name, value in options.items()
    }
    assert_within_budget(
        "E[p | y]",
        posterior(body, y, keys, alpha_bar, **options),
        by_definition(y, keys, alpha_bar, **options),
        in_float32(y.float(), keys.float(), alpha_bar, **widened).to(dtype),
    )


@pytest.mark.parametrize("n", [500, 1000])
def test_it_is_right_at_usual_sizes(body, assert_within_budget, n):
    arguments, options = problem((n, 200, 31, 16, 9), "bias and context")
    assert_within_budget(
        "E[p | y]",
        posterior(body, *arguments, **options),
        by_definition(*arguments, **options),
        in_float32(*arguments, **options),
    )


def test_of_one_key_the_mean_is_that_key(body):
    (y, keys, alpha_bar), _ = problem((50, 1, 12, 1, 1))
    assert torch.equal(posterior(body, y, keys, alpha_bar), keys.expand(50, 12))


def test_without_noise_it_is_the_nearest_key(body):
    (y, keys, _), _ = problem((63, 500, 31, 16, 9))
    nearest = keys[torch.cdist(y.double(), keys.double()).argmin(1)]
    actual = posterior(body, y, keys, torch.full((63,), 1 - 1e-9, dtype=torch.float64))
    # The runner-up keeps exp(−Δ/2σ²) of the weight at the floor of σ.
    torch.testing.assert_close(actual, nearest, rtol=0, atol=0.05)
    sharper = posterior(
        body,
        y.double(),
        keys.double(),
        torch.full((63,), 1 - 1e-9, dtype=torch.float64),
        sigma_floor=1e-4,
    )
    torch.testing.assert_close(sharper, nearest.double(), rtol=0, atol=1e-12)


def test_of_pure_noise_it_is_the_mean_of_the_prior(body):
    (y, keys, _), options = problem((5, 63, 7, 3, 1), "bias")
    actual = posterior(body, 100 * y, keys, torch.zeros(5), **options)
    mean = options["bias"].softmax(0) @ keys
    torch.testing.assert_close(actual, mean.expand(5, 7), rtol=0, atol=1e-6)


def test_two_keys_make_a_hyperbolic_tangent(body):
    # E[p | y] of ±p is p tanh(√ᾱ ⟨y, p⟩ / (1−ᾱ))
    (y, keys, alpha_bar), _ = problem((60, 1, 9, 1, 1), dtype=torch.float64)
    actual = posterior(body, y, torch.cat((keys, -keys)), alpha_bar, sigma_floor=0.0)
    argument = alpha_bar.sqrt() * (y @ keys[0]) / (1 - alpha_bar)
    torch.testing.assert_close(actual, argument.tanh()[:, None] * keys, rtol=0, atol=1e-10)


def test_a_key_of_no_prior_weight_does_not_count(body):
    (y, keys, alpha_bar), _ = problem((63, 500, 31, 16, 9), dtype=torch.float64)
    bias = torch.where(torch.arange(500) < 200, 0.0, -1e9).double()
    torch.testing.assert_close(
        posterior(body, y, keys, alpha_bar, bias=bias),
        by_definition(y, keys[:200], alpha_bar),
        rtol=0,
        atol=1e-6,
    )


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 63), variant=st.sampled_from(VARIANTS))
def test_a_query_does_not_depend_on_the_others(cut: int, variant: str):
    (y, keys, alpha_bar), options = problem((63, 500, 31, 16, 9), variant)
    whole = patch_posterior(y, keys, alpha_bar, **options)
    parts = []
    for part in (slice(None, cut), slice(cut, None)):
        own = {
            name: value[part] if name in ("context", "query_bin") else value
            for name, value in options.items()
        }
        parts.append(patch_posterior(y[part], keys, alpha_bar[part], **own))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)


def test_the_number_of_threads_does_not_matter():
    arguments, options = problem((200, 1000, 147, 16, 9), VARIANTS[-1])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(patch_posterior(*arguments, **options))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_bins_are_as_good_as_a_call_for_each(body):
    (y, keys, alpha_bar), options = problem((30, 200, 31, 16, 9), "bins", torch.float64)
    actual = posterior(body, y, keys, alpha_bar, **options)
    for number in range(-1, 4):
        seen = (options["key_bin"] == number) | (options["key_bin"] == ANY_BIN)
        keys_of_bin = keys if number == ANY_BIN else keys[seen]
        here = options["query_bin"] == number
        expected = posterior(body, y[here], keys_of_bin, alpha_bar[here])
        torch.testing.assert_close(actual[here], expected, rtol=0, atol=1e-12)


def test_the_order_of_keys_does_not_matter(body):
    (y, keys, alpha_bar), options = problem((30, 200, 31, 16, 9), VARIANTS[-1], torch.float64)
    order = torch.arange(200).flip(0)
    turned = {
        name: value[order] if name in ("bias", "values", "key_bin", "key_context") else value
        for name, value in options.items()
    }
    torch.testing.assert_close(
        posterior(body, y, keys[order], alpha_bar, **turned),
        posterior(body, y, keys, alpha_bar, **options),
        rtol=0,
        atol=1e-12,
    )


def test_a_hidden_key_does_not_count(body):
    (y, keys, alpha_bar), _ = problem((63, 700, 31, 16, 9), dtype=torch.float64)
    bias = torch.where(torch.arange(700) < 600, -float("inf"), 0.0).double()
    torch.testing.assert_close(
        posterior(body, y, keys, alpha_bar, bias=bias),
        by_definition(y, keys[600:], alpha_bar),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of Triton's interpreter
def test_what_is_not_finite_stays_in_its_row(body):
    (y, keys, alpha_bar), _ = problem((63, 500, 31, 16, 9))
    clean = posterior(body, y, keys, alpha_bar)
    y[5, 3] = float("nan")
    actual = posterior(body, y, keys, alpha_bar)
    assert actual[5].isnan().all()
    rest = torch.arange(63) != 5
    assert torch.equal(actual[rest], clean[rest])


def test_no_queries_give_no_rows(body):
    keys = torch.ones(3, 4)
    assert posterior(body, torch.empty(0, 4), keys, torch.empty(0)).shape == (0, 4)


WRONG: dict[str, tuple[Callable[[], Tensor], str]] = {
    "coordinates": (
        lambda: patch_posterior(torch.ones(2, 3), torch.ones(5, 4), torch.ones(2) / 2),
        r"\[n, r\] and \[k, r\] with k ≥ 1, got \[2, 3\] and \[5, 4\]; project both",
    ),
    "no keys": (
        lambda: patch_posterior(torch.ones(2, 3), torch.ones(0, 3), torch.ones(2) / 2),
        r"with k ≥ 1, got \[2, 3\] and \[0, 3\]",
    ),
    "alpha_bar": (
        lambda: patch_posterior(torch.ones(2, 3), torch.ones(5, 3), torch.ones(1) / 2),
        r"alpha_bar must be \[2\], got \[1\]",
    ),
    "half a context": (
        lambda: patch_posterior(
            torch.ones(2, 3), torch.ones(5, 3), torch.ones(2) / 2, context=torch.ones(2, 1)
        ),
        "context and key_context must come together",
    ),
    "widths of the context": (
        lambda: patch_posterior(
            torch.ones(2, 3),
            torch.ones(5, 3),
            torch.ones(2) / 2,
            context=torch.ones(2, 1),
            key_context=torch.ones(5, 2),
        ),
        r"key_context must be \[5, 1\], got \[5, 2\]",
    ),
}


def refused(**options: Any) -> Callable[[], Tensor]:
    return lambda: patch_posterior(torch.ones(2, 3), torch.ones(5, 3), torch.ones(2) / 2, **options)


WRONG |= {
    "rows of the values": (
        refused(values=torch.ones(2, 4)),
        r"values must be \[5, any\], got \[2, 4\]; give one row for each query, or for each key",
    ),
    "half the bins": (
        refused(key_bin=torch.zeros(5, dtype=torch.int64)),
        "query_bin and key_bin must come together, got no query_bin",
    ),
    "bins of another dtype": (
        refused(query_bin=torch.zeros(2), key_bin=torch.zeros(5, dtype=torch.int64)),
        r"query_bin must be int64, got torch.float32; convert it with .long\(\)",
    ),
    "an empty bin": (
        refused(query_bin=torch.tensor([0, 7]), key_bin=torch.zeros(5, dtype=torch.int64)),
        r"each query must see a key, got no key of bin \[7\]; give such queries bin -1",
    ),
    "a graph": (
        refused(bias=torch.zeros(5, requires_grad=True)),
        "bias must not require a gradient",
    ),
    "an unknown backend": (refused(backend="cuda"), "backend must be one of auto, reference"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit_are_refused(case: str):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
