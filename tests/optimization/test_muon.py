import pytest
import torch

from sdslab.optimization.muon import Muon
from tests.conftest import random_image


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (8, 8)])
def test_muon_s_update_is_nearly_orthogonal(shape: tuple[int, int]):
    update = Muon.orthogonalise(random_image(*shape) - 0.5)
    singular = torch.linalg.svdvals(update)
    assert singular.max() < 1.3
    assert singular.min() > 0.3
