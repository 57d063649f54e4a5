import pytest
import torch

from sdslab.pictures.color import linear_to_srgb, srgb_to_linear


def test_known_values_of_the_standard():
    encoded = torch.tensor([0.0, 10.31475 / 255, 0.5, 188 / 255, 1.0], dtype=torch.float64)
    linear = torch.tensor([0.0, 0.00313080, 0.21404114, 0.50288646, 1.0], dtype=torch.float64)
    torch.testing.assert_close(srgb_to_linear(encoded), linear, atol=1e-6, rtol=0)
    torch.testing.assert_close(linear_to_srgb(linear), encoded, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.float64, 3e-8)])
def test_encoding_undoes_decoding_below_zero_and_above_one(dtype: torch.dtype, budget: float):
    x = torch.linspace(-2, 4, 60001, dtype=dtype)
    # The standard's two pieces miss each other by 3e-8.
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(x)), x, atol=budget, rtol=1e-6)


@pytest.mark.parametrize("function", [srgb_to_linear, linear_to_srgb])
def test_derivatives_are_finite_positive_and_exact(function):
    x = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, 0.001, 0.03, 0.3, 1.0, 2.0], dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    assert (gradient > 0).all()
    assert gradient.max() <= 12.93
    assert gradient.min() >= 1 / 12.93
    assert torch.autograd.gradcheck(function, x)


@pytest.mark.parametrize("function", [srgb_to_linear, linear_to_srgb])
def test_brighter_stays_brighter(function):
    values = function(torch.linspace(-1, 8, 9001, dtype=torch.float64))
    assert (values.diff() > 0).all()
