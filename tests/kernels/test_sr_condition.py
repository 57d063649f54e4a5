from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, philox_normal, sr_condition

MODES = ["castex", "pipeline"]
# Render, then size and low_size of the condition.
SIZES = {
    "if-like": ((2, 1, 64, 64), 32, 8),
    "odd": ((1, 3, 37, 53), 19, 7),
    "more than a tile": ((1, 1, 21, 90), 35, 9),
    "no change": ((1, 2, 12, 12), 12, 12),
    "render smaller than the small picture": ((1, 1, 5, 3), 16, 9),
    "one small pixel": ((1, 1, 9, 4), 6, 1),
    "one pixel": ((2, 1, 1, 1), 1, 1),
}


def triangle_matrix(side: int, low: int) -> Tensor:
    """[low, side], antialiased bilinear."""
    width = max(side / low, 1.0)
    pixel = torch.arange(side, dtype=torch.float64) + 0.5
    centre = (torch.arange(low, dtype=torch.float64) + 0.5) * side / low
    weight = (1 - (pixel - centre[:, None]).abs() / width).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


def aligned_matrix(low: int, size: int) -> Tensor:
    """[size, low], bilinear with the corner pixels' centres aligned."""
    position = torch.arange(size, dtype=torch.float64) * (low - 1) / max(size - 1, 1)
    return (1 - (position[:, None] - torch.arange(low)).abs()).clamp(min=0)


def direct(render: Tensor, mode: str, size: int, low: int) -> Tensor:
    """The clean condition in float64, as one matrix for each axis."""
    matrices = []
    for side in render.shape[-2:]:
        if mode == "pipeline":
            matrices.append(aligned_matrix(low, size) @ triangle_matrix(side, low))
        else:
            shown = [((i * low // size) * side) // low for i in range(size)]
            matrices.append(torch.eye(side, dtype=torch.float64)[shown])
    return 2 * (matrices[0] @ render.double() @ matrices[1].T) - 1


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    render = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return render, torch.linspace(0.3, 0.9, shape[0])


def key(samples: int) -> NoiseKey:
    return NoiseKey(2**40 + 3, 12, torch.arange(samples) + 100, SR_CONDITION_STREAM)


def low_precision(render: Tensor, mode: str, size: int, low: int) -> Tensor:
    """The same by torch's own resampling, in the precision of the computation."""
    x = render.to(torch.promote_types(render.dtype, torch.float32))
    if mode == "castex":
        return direct(render, mode, size, low).to(x.dtype)
    x = F.interpolate(x, size=(low, low), mode="bilinear", antialias=True)
    return 2 * F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True) - 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SIZES)
def test_resampling_at_every_size(body, assert_within_budget, name, mode):
    shape, size, low = SIZES[name]
    render, _ = batch(shape)
    actual = sr_condition(
        render.to(body.device), None, None, mode=mode, size=size, low_size=low, backend=body.backend
    )
    truth = direct(render, mode, size, low)
    assert_within_budget("condition", actual, truth, low_precision(render, mode, size, low))


@pytest.mark.parametrize("noise", ["tensor", "key"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("mode", "size"), [("castex", 19), ("pipeline", 20)])
def test_noising_in_every_dtype(body, assert_within_budget, mode, size, dtype, noise):
    render, alpha_bar = batch((2, 1, 23, 31), dtype)
    compute = torch.promote_types(dtype, torch.float32)
    eps = philox_normal(key(2), (1, size, size), compute)
    if noise == "tensor":
        eps = eps.to(dtype)
    actual = sr_condition(
        render.to(body.device),
        alpha_bar.to(body.device),
        eps.to(body.device) if noise == "tensor" else key(2),
        mode=mode,
        size=size,
        low_size=7,
        backend=body.backend,
    )
    rate = alpha_bar.double()[:, None, None, None]
    truth = rate.sqrt() * direct(render, mode, size, 7) + (1 - rate).sqrt() * eps.double()
    rate = rate.to(compute)
    clean = low_precision(render, mode, size, 7)
    low = (rate.sqrt() * clean + (1 - rate).sqrt() * eps.to(compute)).to(dtype)
    assert_within_budget("condition", actual, truth, low)


def test_castex_at_its_own_sizes(body):
    render, _ = batch((1, 1, 512, 512))
    actual = sr_condition(render.to(body.device), None, None, backend=body.backend)
    small = F.interpolate(render, size=(64, 64), mode="nearest")
    assert torch.equal(actual.cpu(), 2 * F.interpolate(small, size=(256, 256), mode="nearest") - 1)


@pytest.mark.parametrize("mode", MODES)
def test_no_noise_is_noise_of_rate_zero(body, mode):
    render, _ = (value.to(body.device) for value in batch((2, 1, 24, 40)))
    options: dict[str, Any] = {"mode": mode, "size": 16, "low_size": 8, "backend": body.backend}
    clean = sr_condition(render, None, None, **options)
    assert torch.equal(clean, sr_condition(render, torch.ones(2).to(render), key(2), **options))


@pytest.mark.parametrize("mode", MODES)
def test_a_flat_render_is_a_flat_condition(body, mode):
    render = torch.full((1, 1, 37, 53), 0.75, device=body.device)
    options: dict[str, Any] = {"mode": mode, "size": 21, "low_size": 7, "backend": body.backend}
    actual = sr_condition(render, None, None, **options)
    torch.testing.assert_close(actual, torch.full_like(actual, 0.5), rtol=0, atol=1e-6)


def test_a_small_picture_comes_through_the_pipeline_as_diffusers_upsamples_it(body):
    small, _ = batch((1, 1, 8, 8), torch.float64)
    options: dict[str, Any] = {"mode": "pipeline", "size": 32, "low_size": 8}
    actual = sr_condition(small.to(body.device), None, None, **options, backend=body.backend)
    expected = F.interpolate(2 * small - 1, size=(32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_strides_do_not_matter(body, mode):
    render, alpha_bar = (value.to(body.device) for value in batch((1, 2, 20, 12)))
    options: dict[str, Any] = {"mode": mode, "size": 16, "low_size": 8, "backend": body.backend}
    strided = render.to(memory_format=torch.channels_last)
    expected = sr_condition(render, alpha_bar, key(1), **options)
    assert torch.equal(sr_condition(strided, alpha_bar, key(1), **options), expected)


@settings(deadline=None, max_examples=20)
@given(split=st.integers(1, 3), size=st.integers(2, 13), mode=st.sampled_from(MODES))
def test_a_sample_does_not_depend_on_its_batch(split, size, mode):
    render, alpha_bar = batch((4, 1, 17, 9))
    noise = key(4)
    options: dict[str, Any] = {"mode": mode, "size": size, "low_size": 2}
    parts = [
        sr_condition(
            render[part],
            alpha_bar[part],
            NoiseKey(noise.seed, noise.step, noise.sample[part], noise.stream),
            **options,
        )
        for part in (slice(None, split), slice(split, None))
    ]
    whole = sr_condition(render, alpha_bar, noise, **options)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "an image without a batch": (
        {"render": torch.zeros(3, 8, 8)},
        r"render must be \[b, c, h, w\], got \[3, 8, 8\]; add the missing dimension",
    ),
    "bytes": (
        {"render": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)},
        "render must be a floating-point tensor, got torch.uint8",
    ),
    "mode": ({"mode": "nearest"}, "mode must be one of castex, pipeline, got 'nearest'"),
    "a small picture that is larger": (
        {"low_size": 16},
        "low_size must be from 1 to size, 8, got 16; it is the small picture",
    ),
    "a size beyond exact indices": (
        {"size": 2**14 + 1},
        r"sides must be up to 16384, got a render of \[8, 8\] and size 16385",
    ),
    "noise without a rate": (
        {"alpha_bar": None},
        "alpha_bar and noise must come together, got noise without alpha_bar; pass both",
    ),
    "a rate without noise": (
        {"noise": None},
        "alpha_bar and noise must come together, got alpha_bar without noise",
    ),
    "noise of the render's size": (
        {"noise": torch.zeros(2, 3, 16, 16)},
        r"noise must be \[2, 3, 8, 8\] for x \[2, 3, 8, 8\], got \[2, 3, 16, 16\]",
    ),
    "a graph": (
        {"render": torch.zeros(2, 3, 8, 8, requires_grad=True)},
        r"render must not require a gradient.*pass render.detach\(\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_must_hold_and_what_came(name):
    changes, message = ERRORS[name]
    valid: dict[str, Any] = {
        "render": torch.zeros(2, 3, 8, 8),
        "alpha_bar": torch.tensor([0.5, 0.5]),
        "noise": key(2),
        "size": 8,
        "low_size": 4,
    }
    with pytest.raises(ValueError, match=message):
        sr_condition(**{**valid, **changes})
