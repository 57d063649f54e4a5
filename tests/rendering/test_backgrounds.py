import pytest
import torch

from sdslab.rendering.scene import sample_background


@pytest.mark.parametrize(("kind", "value"), [("white", 1.0), ("black", 0.0), ("grey", 0.5)])
def test_solid_backgrounds(kind, value: float):
    picture = sample_background(kind, 0, 0, 2, (3, 4))
    assert picture.shape == (2, 3, 3, 4)
    assert (picture == value).all()


def test_random_backgrounds_are_one_colour_a_view():
    picture = sample_background("random", 0, 0, 3, (4, 4))
    assert (picture == picture[..., :1, :1]).all()
    assert len(picture[:, :, 0, 0].unique(dim=0)) == 3
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_a_shared_background_is_one_colour_a_step():
    first, second = (sample_background("shared", 0, step, 3, (4, 4)) for step in (0, 1))
    for picture in (first, second):
        assert (picture == picture[:1, :, :1, :1]).all()
    assert not first.equal(second)


def test_checkers_have_two_colours_in_equal_shares():
    picture = sample_background("checker", 0, 0, 4, (120, 120))
    for view in picture:
        colours, counts = view.flatten(1).unique(dim=1, return_counts=True)
        assert colours.shape[1] == 2
        assert counts.min() / counts.sum() > 0.4


@pytest.mark.parametrize("kind", ["random", "checker"])
def test_a_background_depends_on_seed_step_and_index_alone(kind):
    whole = sample_background(kind, 5, 2, 6, (8, 8))
    assert sample_background(kind, 5, 2, 3, (8, 8)).equal(whole[:3])
    assert not sample_background(kind, 5, 3, 6, (8, 8)).equal(whole)
    assert not torch.equal(whole[0], whole[1])
