import pytest
import torch
from jaxtyping import TypeCheckError

from sdslab.denoisers.denoiser import x0_from
from sdslab.diffusion_space import PixelSpace


def test_shapes_in_signatures_are_checked_while_testing():
    with pytest.raises(TypeCheckError):
        PixelSpace().encode(torch.zeros(4, 8, 8))
    with pytest.raises(TypeCheckError):
        x0_from("v", torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.ones(2))
