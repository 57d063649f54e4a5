import pytest
import torch
from jaxtyping import TypeCheckError

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.diffusion_space import PixelSpace


def test_shapes_in_signatures_are_checked_while_testing():
    with pytest.raises(TypeCheckError):
        PixelSpace().encode(torch.zeros(4, 8, 8))
    with pytest.raises(TypeCheckError):
        DegenerateDenoiser(torch.zeros(1, 3, 4), NoiseSchedule.deepfloyd_if()).predict(
            torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64)
        )
