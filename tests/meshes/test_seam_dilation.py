import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import dilate_seams

CHART, FILL = 0.75, 0.0


def disc(side: int, center: tuple[float, float], radius: float) -> Tensor:
    """[side, side] bool; the distance goes over the borders."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    offsets = [
        ((x - c + side / 2) % side - side / 2) for x, c in zip((row, column), center, strict=True)
    ]
    return offsets[0] ** 2 + offsets[1] ** 2 <= radius**2


def test_covered_texels_keep_their_values():
    maps = torch.rand(32, 64, 8, generator=torch.Generator().manual_seed(0))
    covered = torch.rand(32, 64, generator=torch.Generator().manual_seed(1)) < 0.1
    before = maps.clone()
    filled = dilate_seams(maps, covered)
    assert torch.equal(filled[covered], maps[covered])
    assert torch.equal(maps, before)


def test_every_other_texel_takes_a_nearest_covered_one():
    side = 24
    covered = torch.rand(side, side, generator=torch.Generator().manual_seed(0)) < 0.02
    index = torch.arange(side * side).view(side, side, 1).double()
    source = dilate_seams(index, covered)[..., 0].long()
    points = torch.stack((source // side, source % side), -1)
    here = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1)

    def squared_distance(to: Tensor) -> Tensor:
        offset = ((here - to) + side // 2) % side - side // 2
        return offset.square().sum(-1)

    every = torch.stack([squared_distance(point) for point in covered.nonzero()])
    assert torch.equal(squared_distance(points), every.amin(0))


@pytest.mark.parametrize("center", [(32, 32), (0, 0), (63, 20)], ids=["inside", "corner", "border"])
def test_a_chart_of_one_colour_is_that_colour_at_every_mip_level(center: tuple[int, int]):
    covered = disc(64, center, 9)
    maps = torch.where(covered[..., None], CHART, FILL).repeat(1, 1, 3)
    level = dilate_seams(maps, covered).movedim(-1, 0)
    while level.shape[-1] > 1:
        assert (level == CHART).all()
        level = F.avg_pool2d(level, 2)


def test_two_charts_stay_apart_in_the_mip_levels_that_their_gutter_allows():
    left, right = disc(128, (64, 32), 20), disc(128, (64, 96), 20)
    maps = torch.stack((left, right), -1).double()
    level = dilate_seams(maps, left | right).movedim(-1, 0)
    mask = left.double()
    for _ in range(3):  # texels of 2, 4 and 8
        level, mask = F.avg_pool2d(level, 2), F.max_pool2d(mask[None], 2)[0]
        assert (level[0][mask > 0] == 1).all()
        assert (level[1][mask > 0] == 0).all()


@pytest.mark.parametrize("covers", [False, True], ids=["nothing", "everything"])
def test_no_texel_changes_where_no_or_every_texel_is_covered(covers: bool):
    maps = torch.rand(16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dilate_seams(maps, torch.full((16, 8), covers)), maps)


def test_maps_of_any_strides_and_sizes_are_filled():
    maps = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)).movedim(0, -1)
    covered = torch.zeros(5, 7, dtype=torch.bool)
    covered[4, 6] = True
    assert torch.equal(dilate_seams(maps, covered), maps[4, 6].expand(5, 7, 3))
