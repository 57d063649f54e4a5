"""The posterior mean against the sum that defines it, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.kernels.patch_posterior import SIGMA_FLOOR, patch_posterior
from tests.kernels.conftest import Body

# queries, keys, coordinates, features of the context
SIZES = [(1, 1, 1, 1), (5, 63, 7, 3), (63, 500, 31, 16), (100, 700, 147, 16)]
VARIANTS = ["plain", "bias", "context", "bias and context"]
ALPHA_BARS = (0.0, 0.01, 0.3, 0.9, 0.999, 0.999999)


def posterior(body: Body, y: Tensor, keys: Tensor, alpha_bar: Tensor, **options: Any) -> Tensor:
    """`patch_posterior` of the body, brought back to the CPU."""
    options = {
        name: value.to(body.device) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }
    tensors = (tensor.to(body.device) for tensor in (y, keys, alpha_bar))
    return patch_posterior(*tensors, **options).cpu()


def by_definition(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    bias: Tensor | None = None,
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
    if bias is not None:
        logits = logits + bias.double()
    if context is not None and key_context is not None:
        distances = (context.double()[:, None] - key_context.double()).square().sum(-1)
        logits = logits - distances / (2 * context_scale**2)
    return logits.softmax(1) @ keys


def in_float32(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    bias: Tensor | None = None,
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
    if bias is not None:
        logits = logits + bias
    if context is not None and key_context is not None:
        products = (context / context_scale**2) @ key_context.T
        logits = logits + products - key_context.square().sum(1) / (2 * context_scale**2)
    return logits.softmax(1) @ keys


def problem(
    size: tuple[int, int, int, int], variant: str = "plain", dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Noisy keys at all noise levels, and what else is known of them."""
    n, k, r, m = size
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
        options = {name: value.to(dtype) for name, value in options.items()}
        options["context_scale"] = 0.5
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
    arguments, options = problem((63, 500, 31, 16), variant, torch.float64)
    torch.testing.assert_close(
        posterior(body, *arguments, **options),
        by_definition(*arguments, **options),
        rtol=0,
        atol=1e-10,
    )


def test_of_one_key_the_mean_is_that_key(body):
    (y, keys, alpha_bar), _ = problem((50, 1, 12, 1))
    assert torch.equal(posterior(body, y, keys, alpha_bar), keys.expand(50, 12))


def test_without_noise_it_is_the_nearest_key(body):
    (y, keys, _), _ = problem((63, 500, 31, 16))
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
    (y, keys, _), options = problem((5, 63, 7, 3), "bias")
    actual = posterior(body, 100 * y, keys, torch.zeros(5), **options)
    mean = options["bias"].softmax(0) @ keys
    torch.testing.assert_close(actual, mean.expand(5, 7), rtol=0, atol=1e-6)


def test_two_keys_make_a_hyperbolic_tangent(body):
    # E[p | y] of ±p is p tanh(√ᾱ ⟨y, p⟩ / (1−ᾱ))
    (y, keys, alpha_bar), _ = problem((60, 1, 9, 1), dtype=torch.float64)
    actual = posterior(body, y, torch.cat((keys, -keys)), alpha_bar, sigma_floor=0.0)
    argument = alpha_bar.sqrt() * (y @ keys[0]) / (1 - alpha_bar)
    torch.testing.assert_close(actual, argument.tanh()[:, None] * keys, rtol=0, atol=1e-10)


def test_a_key_of_no_prior_weight_does_not_count(body):
    (y, keys, alpha_bar), _ = problem((63, 500, 31, 16), dtype=torch.float64)
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
    (y, keys, alpha_bar), options = problem((63, 500, 31, 16), variant)
    whole = patch_posterior(y, keys, alpha_bar, **options)
    parts = []
    for part in (slice(None, cut), slice(cut, None)):
        own = {name: value[part] if name == "context" else value for name, value in options.items()}
        parts.append(patch_posterior(y[part], keys, alpha_bar[part], **own))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)


def test_the_number_of_threads_does_not_matter():
    arguments, options = problem((200, 1000, 147, 16), "bias and context")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(patch_posterior(*arguments, **options))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


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


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit_are_refused(case: str):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
