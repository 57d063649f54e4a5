import torch

from sdslab.meshes.material import FLAT_NORMAL, NORMAL, constant_material
from sdslab.rendering.texels import LOWER_BOUND, UPPER_BOUND, project_material_


def wild(size: int = 33) -> torch.Tensor:
    return 3 * torch.randn(size, size, 8, generator=torch.Generator().manual_seed(0))


def test_valid_materials_stay():
    maps = constant_material(4, 4, albedo=(0.1, 0.9, 0.4), roughness=0.3, metallic=1.0)
    before = maps.clone()
    project_material_(maps)
    assert (maps - before).abs().max() < 1e-6


def test_normals_get_unit_length_and_castexs_bounds():
    maps = constant_material(1, 2)
    maps[0, 0, NORMAL] = torch.tensor([0.5, 0.5, 0.7])  # straight up but short
    maps[0, 1, NORMAL] = torch.tensor([1.0, 0.5, 0.6])  # leaning too far
    project_material_(maps)
    assert (maps[0, 0, NORMAL] - torch.tensor(FLAT_NORMAL)).abs().max() < 1e-6
    assert maps[0, 1, NORMAL].tolist() == [0.75, 0.5, 0.75]


def test_whatever_comes_is_valid_afterwards():
    maps = wild()
    maps[0, 0] = 0.5  # a normal of length zero
    project_material_(maps)
    assert maps.isfinite().all()
    assert (maps >= torch.tensor(LOWER_BOUND)).all()
    assert (maps <= torch.tensor(UPPER_BOUND)).all()


def test_the_kernel_equals_plain_torch():
    """float64 takes the plain way."""
    kernel, plain = wild(), wild().double()
    project_material_(kernel)
    project_material_(plain)
    assert (kernel - plain).abs().max() < 1e-6
