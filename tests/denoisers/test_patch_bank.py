"""Patches in principal coordinates: nothing lost but what the rank leaves out."""

import pytest
import torch
import torch.nn.functional as F

from sdslab.denoisers.patch_bank import CONTEXT_PATCH, PatchBank, low_pass
from tests.conftest import random_image


def smooth_photo(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """[c, h, w] in [−1, 1]: neighbours are alike, as in a photograph."""
    noise = random_image(1, *shape, seed=seed, dtype=dtype)
    blurred = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), 3, stride=1)[0]
    return 2 * (blurred - blurred.min()) / (blurred.max() - blurred.min()) - 1


def test_a_full_basis_holds_every_patch():
    photo = smooth_photo(3, 9, 11)
    bank = PatchBank.of([photo], patch=4, rank=3 * 4 * 4)
    patches = F.unfold(photo[None], 4)[0].T
    rebuilt = bank.keys @ bank.basis.flatten(1) + bank.mean.flatten()
    assert bank.keys.shape == (6 * 8, 48)
    distances = torch.cdist(patches, rebuilt)
    torch.testing.assert_close(distances.amin(1), torch.zeros(48).double(), atol=1e-6, rtol=0)


def test_the_basis_is_orthonormal_and_sorted_by_variance():
    bank = PatchBank.of([smooth_photo(3, 20, 20)], patch=5, rank=12)
    rows = bank.basis.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12).double(), atol=1e-12, rtol=0)
    variances = bank.keys.var(0)
    assert (variances.diff() <= 1e-12).all()
    # What the basis leaves out is what the covariance's other directions hold.
    patches = F.unfold(smooth_photo(3, 20, 20)[None], 5)[0].T
    centred = patches - patches.mean(0)
    values = torch.linalg.svdvals(centred).square()
    left_out = (centred - centred @ rows.T @ rows).square().sum()
    torch.testing.assert_close(left_out, values[12:].sum())


def test_the_basis_does_not_depend_on_the_sign_of_an_eigenvector():
    photo = smooth_photo(3, 12, 12)
    bank, mirrored = (PatchBank.of([x], patch=3, rank=5) for x in (photo, photo.flip(1, 2)))
    for rows in (bank.basis.flatten(1), mirrored.basis.flatten(1)):
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        assert (largest > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_patches_keep_the_photo_s_precision(dtype):
    bank = PatchBank.of([smooth_photo(3, 12, 12, dtype=dtype)], patch=3, factor=2)
    tensors = [value for value in vars(bank).values() if isinstance(value, torch.Tensor)]
    assert {value.dtype for value in tensors} == {dtype, torch.int64}


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_overlap_undoes_project(stride):
    photo = smooth_photo(3, 16, 13)
    bank = PatchBank.of([photo], patch=4, rank=48)
    coordinates = bank.project(photo[None], stride) - bank.project_mean().view(1, -1, 1, 1)
    rebuilt = bank.overlap(coordinates, stride)[0]
    assert rebuilt.shape[1] > 16 - stride
    torch.testing.assert_close(rebuilt, photo[:, : rebuilt.shape[1], : rebuilt.shape[2]])


def test_few_keys_are_spread_over_the_brightness():
    # One bright stripe in a hundred: chosen at random, few of 16 patches would be of it.
    photo = torch.full((1, 200, 3), -0.5).double()
    photo[:, :, :] += torch.linspace(0, 0.1, 200).double().view(1, 200, 1)
    photo[:, 100] = 1.0
    bank = PatchBank.of([photo], patch=1, rank=1, count=100)
    colours = (bank.keys @ bank.basis.flatten(1) + bank.mean.flatten())[:, 0]
    assert len(bank.keys) == 100
    assert (colours > 0.9).any()
    quantiles = torch.linspace(0.1, 0.9, 9).double()
    expected = torch.quantile(photo.flatten(), quantiles)
    torch.testing.assert_close(torch.quantile(colours, quantiles), expected, atol=0.01, rtol=0)


def test_tags_say_which_photo_a_patch_is_of():
    dark, bright = torch.full((3, 6, 6), -0.5), torch.full((3, 7, 5), 0.5)
    bank = PatchBank.of([dark, bright], patch=3, rank=1)
    assert (bank.tags == 0).sum() == 4 * 4
    assert (bank.tags == 1).sum() == 5 * 3
    colours = bank.keys @ bank.basis.flatten(1) + bank.mean.flatten()
    assert (colours[bank.tags == 0] < 0).all()
    assert (colours[bank.tags == 1] > 0).all()


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("patch", [3, 4, 5, 7])
def test_the_context_of_a_picture_s_patch_is_that_of_its_key(patch, factor, stride):
    photo = smooth_photo(3, 24, 20)
    bank = PatchBank.of([photo], patch, rank=10**6, count=10**6, factor=factor)
    assert bank.key_context is not None
    low = low_pass(photo[None], factor)
    features = bank.context(low, stride)
    coordinates = bank.project(photo[None], stride) - bank.project_mean().view(1, -1, 1, 1)
    assert features.shape[-2:] == coordinates.shape[-2:]
    queries = coordinates[0].flatten(1).T
    nearest = torch.cdist(queries, bank.keys).argmin(1)
    torch.testing.assert_close(features[0].flatten(1).T, bank.key_context[nearest])


def test_a_context_is_the_low_resolution_around_the_patch_s_middle():
    photo = smooth_photo(1, 40, 40)
    patch, factor, row, column = 5, 4, 17, 18
    bank = PatchBank.of([photo], patch, factor=factor)
    assert bank.context_basis is not None
    assert bank.context_mean is not None
    low = low_pass(photo[None], factor)
    steps = torch.arange(CONTEXT_PATCH) - CONTEXT_PATCH // 2
    middle = patch // 2
    window = low[0, :, row + middle + factor * steps][:, :, column + middle + factor * steps]
    expected = ((window - bank.context_mean) * bank.context_basis).flatten(1).sum(1)
    torch.testing.assert_close(bank.context(low, 1)[0, :, row, column], expected)


@pytest.mark.parametrize("shape", [(3, 6, 8), (3, 8, 6)], ids=str)
def test_a_photo_smaller_than_a_patch_is_refused(shape):
    with pytest.raises(ValueError, match=rf"at least the patch's 7 pixels.*{list(shape)[1:]}"):
        PatchBank.of([torch.zeros(shape)], patch=7)


def test_low_pass_keeps_what_is_smooth():
    flat = torch.full((2, 3, 17, 12), 0.3)
    torch.testing.assert_close(low_pass(flat, 4), flat)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    torch.testing.assert_close(low_pass(ramp, 4)[..., 8:-8], ramp[..., 8:-8], atol=1e-4, rtol=0)
