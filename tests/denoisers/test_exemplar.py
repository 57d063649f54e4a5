"""The exemplar denoiser against sums over every patch of the photograph, in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition
from sdslab.denoisers.exemplar import BandEnergy, ExemplarDenoiser, cosine_schedule, timestep
from sdslab.denoisers.patch_bank import PatchBank, low_pass
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.exemplar_texturing.exemplars import turned
from sdslab.pictures.image_io import load_image
from tests.conftest import random_image
from tests.denoisers.test_patch_bank import smooth_photo

EVERY = 10**6  # as many keys or coordinates as there are
T = torch.tensor([3, 200, 600, 950])


def noisy(x: Tensor, t: Tensor, seed: int = 1) -> Tensor:
    """x_t of each of b timesteps, [b, c, h, w]."""
    alpha_bar = cosine_schedule().alpha_bar(t).view(-1, 1, 1, 1).to(x)
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(len(t), *x.shape[-3:], generator=generator, dtype=x.dtype)
    return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * eps


def dense(photos: list[Tensor], patch: int, stride: int = 1, factor: int = 1) -> ExemplarDenoiser:
    """Nothing approximated: all patches, all coordinates, σ almost as small as it is."""
    bank = PatchBank.of(photos, patch, EVERY, EVERY, factor)
    return ExemplarDenoiser(bank, stride=stride, sigma_floor=1e-5)


def by_definition(
    photo: Tensor,
    x_t: Tensor,
    t: Tensor,
    patch: int,
    stride: int = 1,
    *,
    foreground: Tensor | None = None,
    log_prior: Tensor | None = None,
) -> Tensor:
    """Each patch's posterior mean from squared distances of pixels; the mean where they overlap.

    Args:
        photo: [c, h, w].
        x_t: [b, c, h', w'].
        t: [b].
        patch: P.
        stride: between the patches of x_t.
        foreground: [b, 1, h', w'], the patches that it does not touch are the mean one.
        log_prior: [b, patches of x_t, patches of the photo], from a low-resolution picture.
    """
    height, width = x_t.shape[-2:]
    beyond = [-(side - patch) % stride for side in (width, height)]
    padded = F.pad(x_t, (0, beyond[0], 0, beyond[1]), mode="reflect")
    alpha_bar = cosine_schedule().alpha_bar(t)
    keys = F.unfold(photo[None], patch)[0].T
    result = torch.empty_like(x_t)
    for sample in range(len(x_t)):
        rows = F.unfold(padded[sample : sample + 1], patch, stride=stride)[0].T
        differences = rows[:, None] - alpha_bar[sample].sqrt() * keys
        logits = -differences.square().sum(-1) / (2 * (1 - alpha_bar[sample]))
        if log_prior is not None:
            logits = logits + log_prior[sample]
        means = logits.softmax(1) @ keys
        if foreground is not None:
            mask = F.pad(foreground, (0, beyond[0], 0, beyond[1]), mode="reflect")
            touched = F.unfold(mask[sample : sample + 1], patch, stride=stride)[0].amax(0) > 0
            means = torch.where(touched[:, None], means, keys.mean(0))
        size = padded.shape[-2:]
        total = F.fold(means.T[None], size, patch, stride=stride)
        count = F.fold(torch.ones_like(means.T[None]), size, patch, stride=stride)
        result[sample] = (total / count)[0, :, :height, :width]
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("side", [1, 8, 64])
def test_one_patch_as_large_as_the_one_image_is_equation_3(side, dtype):
    x_star = random_image(3, side, side, dtype=dtype) * 2 - 1
    denoiser = ExemplarDenoiser(PatchBank.of([x_star], patch=side))
    x_t = noisy(x_star, T)
    x0_hat = denoiser.x0_hat(x_t, T)
    torch.testing.assert_close(x0_hat, x_star.expand_as(x_t), rtol=0, atol=1e-6)
    if dtype == torch.float64:  # Eq. 3's ε̂ divides by √(1−ᾱ)
        equation_3 = DegenerateDenoiser(x_star[None], denoiser.schedule).x0_hat(x_t, T)
        torch.testing.assert_close(x0_hat, equation_3, rtol=0, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(13, 13), (12, 17), (5, 9), (14, 5)], ids=str)
def test_it_is_the_posterior_mean_of_every_patch(size, stride):
    photo = smooth_photo(3, 16, 15)
    x_t = noisy(random_image(3, *size, dtype=torch.float64) * 2 - 1, T)
    actual = dense([photo], 5, stride).x0_hat(x_t, T)
    torch.testing.assert_close(actual, by_definition(photo, x_t, T, 5, stride), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [(13, 13), (12, 17)], ids=str)
def test_patches_that_do_not_touch_the_foreground_are_the_mean_patch(size):
    photo = smooth_photo(3, 16, 15)
    x_t = noisy(smooth_photo(3, *size, seed=1), T)
    foreground = torch.zeros(4, 1, *size).double()
    for sample, (row, column) in enumerate(((0, 0), (6, 6), (11, 12), (3, 9))):
        foreground[sample, :, row : row + 2, column] = 0.25
    denoiser = dense([photo], 5, stride=2)
    actual = denoiser.x0_hat(x_t, T, Condition(foreground=foreground))
    expected = by_definition(photo, x_t, T, 5, 2, foreground=foreground)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)
    nowhere = denoiser.x0_hat(x_t, T, Condition(foreground=torch.zeros_like(foreground)))
    assert nowhere.unique(dim=0).shape[0] == 1
    everywhere = denoiser.x0_hat(x_t, T, Condition(foreground=torch.ones_like(foreground)))
    torch.testing.assert_close(everywhere, denoiser.x0_hat(x_t, T))


def test_few_coordinates_give_the_posterior_given_those_coordinates():
    # y = V'x_t is √ᾱ V'p + √(1−ᾱ) n with n standard normal, as V is orthonormal.
    photo = smooth_photo(3, 16, 15)
    rank, patch = 10, 5
    bank = PatchBank.of([photo], patch, rank, EVERY)
    x_t = noisy(smooth_photo(3, patch, patch, seed=1), T)
    actual = ExemplarDenoiser(bank, sigma_floor=1e-5).x0_hat(x_t, T).flatten(1)

    keys = F.unfold(photo[None], patch)[0].T
    mean = keys.mean(0)
    directions = torch.linalg.svd(keys - mean, full_matrices=False).Vh[:rank]
    alpha_bar = cosine_schedule().alpha_bar(T)[:, None]
    observed = (x_t.flatten(1) - alpha_bar.sqrt() * mean) @ directions.T
    hidden = (keys - mean) @ directions.T
    likelihood = torch.distributions.Normal(
        alpha_bar.sqrt()[..., None] * hidden, (1 - alpha_bar).sqrt()[..., None]
    )
    weights = likelihood.log_prob(observed[:, None]).sum(-1).softmax(1)
    expected = mean + weights @ hidden @ directions
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("patch", [4, 5])
def test_super_resolution_weighs_patches_by_their_surroundings(patch):
    photo, factor, scale = smooth_photo(3, 16, 16), 2, 0.3
    picture = smooth_photo(3, 12, 14, seed=1)
    low = low_pass(picture[None], factor).expand(4, -1, -1, -1).contiguous()
    x_t = noisy(picture, T)
    denoiser = dense([photo], patch, factor=factor)
    denoiser.context_scale = scale
    bank = denoiser.bank
    assert bank.key_context is not None
    # Features of the low-resolution surroundings come from the bank, which has tests of its own.
    contexts = bank.context(low, 1).flatten(2).movedim(1, -1)
    key_contexts = bank.context(low_pass(photo[None], factor), 1).flatten(2)[0].T
    log_prior = -torch.cdist(contexts, key_contexts.expand(4, -1, -1)).square() / (2 * scale**2)
    posterior = by_definition(photo, x_t, T, patch, log_prior=log_prior)
    corrected = posterior + low - low_pass(posterior, factor)
    actual = denoiser.x0_hat(x_t, T, Condition(low_resolution=low))
    torch.testing.assert_close(actual, corrected, rtol=0, atol=1e-8)


def test_float32_is_enough_for_the_default_settings():
    photo = load_image("gravel", 40)[0] * 2 - 1
    errors = []
    for t in (0, 30, 400, 999):
        x_t = noisy(photo.double(), torch.tensor([t]))
        banks = [PatchBank.of([p], count=EVERY) for p in (photo, photo.double())]
        x0 = [ExemplarDenoiser(bank).x0_hat(x_t.to(bank.keys), torch.tensor([t])) for bank in banks]
        errors.append((x0[0] - x0[1]).abs().max().item())
    assert max(errors) < 1e-2, errors  # of a range of 2: a grey level of eight bits


def test_without_noise_the_photo_stays_and_another_picture_becomes_patches_of_it():
    photo, other = smooth_photo(3, 16, 16), smooth_photo(3, 7, 7, seed=5)
    denoiser, t = dense([photo], 7), torch.tensor([0])
    signal = denoiser.schedule.alpha_bar(t).sqrt()
    torch.testing.assert_close(denoiser.x0_hat(signal * photo[None], t)[0], photo)
    patches = F.unfold(photo[None], 7)[0].T
    nearest = patches[torch.cdist(other.view(1, -1), patches).argmin()]
    x0_hat = denoiser.x0_hat(signal * other[None], t)
    torch.testing.assert_close(x0_hat.flatten(), nearest)


@pytest.mark.parametrize("pose", range(8))
def test_a_place_sees_the_photo_turned_as_the_surface_is_there(pose):
    """Turned counter-clockwise by the angle from the screen's up to the surface's, not the other
    way round; halfway between two poses, to the nearer one."""
    photo = smooth_photo(3, 21, 21)
    copies = [turned(photo, None, math.pi / 4 * k, (0, 1, 2)) for k in range(8)]
    bank = PatchBank.of(
        [picture for picture, _ in copies], 7, EVERY, EVERY,
        masks=[mask for _, mask in copies], tags=[0] * 8, poses=range(8), pose_count=8,
    )  # fmt: skip
    denoiser, t = ExemplarDenoiser(bank, sigma_floor=1e-5), torch.tensor([0])
    x_t = denoiser.schedule.alpha_bar(t).sqrt() * copies[pose][0][None, :, 7:14, 7:14]

    def x0_hat(angle: float) -> Tensor:
        up = torch.tensor([-math.sin(angle), math.cos(angle)]).view(1, 2, 1, 1)
        return denoiser.x0_hat(x_t, t, Condition(up=up.expand(1, 2, 7, 7)))[0]

    expected = copies[pose][0][:, 7:14, 7:14]
    for angle in (math.pi / 4 * (pose + off) for off in (-0.4, 0.0, 0.4)):
        torch.testing.assert_close(x0_hat(angle), expected)
    if pose % 4:
        assert (x0_hat(-math.pi / 4 * pose) - expected).abs().max() > 0.05


def test_of_pure_noise_it_is_the_mean_patch():
    photo = smooth_photo(3, 30, 30)
    denoiser, t = dense([photo], 7), torch.tensor([999])
    mean = F.unfold(photo[None], 7)[0].mean(1).view(3, 7, 7)
    x_t = noisy(photo[:, :7, :7], t)
    torch.testing.assert_close(denoiser.x0_hat(x_t, t)[0], mean, rtol=0, atol=5e-3)


@pytest.mark.parametrize("shift", [(3, 0), (0, 6), (9, 3)], ids=str)
def test_moving_the_noisy_picture_moves_the_answer(shift):
    denoiser = ExemplarDenoiser(PatchBank.of([smooth_photo(3, 30, 30)]), stride=3)
    x_t = noisy(smooth_photo(3, 43, 40, seed=1), T)
    down, right = shift
    window = slice(down, down + 31), slice(right, right + 31)
    whole = denoiser.x0_hat(x_t, T)[..., window[0], window[1]]
    part = denoiser.x0_hat(x_t[..., window[0], window[1]].contiguous(), T)
    inner = (..., slice(6, -6), slice(6, -6))  # nearer to the border fewer patches overlap
    torch.testing.assert_close(part[inner], whole[inner], rtol=0, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch():
    photo = smooth_photo(3, 24, 24)
    low = low_pass(smooth_photo(3, 20, 20, seed=2)[None], 2).expand(4, -1, -1, -1).contiguous()
    x_t = noisy(smooth_photo(3, 20, 20, seed=1), T)
    foreground = (random_image(4, 1, 20, 20) > 0.95).double()
    condition = Condition(low_resolution=low, foreground=foreground, prompt=torch.arange(4) % 2)
    denoiser = ExemplarDenoiser(PatchBank.of([photo], 5, factor=2))
    whole = denoiser.x0_hat(x_t, T, condition)
    for part in (slice(0, 1), slice(1, 4)):
        own = Condition(
            prompt=(torch.arange(4) % 2)[part],
            low_resolution=low[part],
            foreground=foreground[part],
        )
        alone = denoiser.x0_hat(x_t[part], T[part], own)
        torch.testing.assert_close(alone, whole[part], rtol=0, atol=1e-10)


def test_the_number_of_threads_does_not_matter():
    photo = load_image("brick", 48)[0] * 2 - 1
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            denoiser = ExemplarDenoiser(PatchBank.of([photo], count=500))
            results.append(denoiser.x0_hat(noisy(photo, T), T))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.fixture
def tagged() -> ExemplarDenoiser:
    photos = [smooth_photo(3, 12, 12), smooth_photo(3, 11, 14, seed=1) * 0.3]
    return dense(photos, 4)


def test_a_tag_means_one_photo_and_the_last_prompt_means_all(tagged: ExemplarDenoiser):
    photos = [smooth_photo(3, 12, 12), smooth_photo(3, 11, 14, seed=1) * 0.3]
    x_t = noisy(smooth_photo(3, 9, 9, seed=2), T)
    assert tagged.unconditional == 2
    prompts = torch.tensor([1, 0, 2, 1])
    actual = tagged.x0_hat(x_t, T, Condition(prompt=prompts))
    own = [by_definition(photo, x_t, T, 4) for photo in photos]
    union = tagged.x0_hat(x_t, T)
    expected = torch.stack((own[1][0], own[0][1], union[2], own[1][3]))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("low_memory", [False, True])
def test_guidance_by_tag_goes_from_the_union_through_the_tag(tagged: ExemplarDenoiser, low_memory):
    x_t = noisy(smooth_photo(3, 9, 9, seed=2), T)
    condition = Condition(prompt=torch.ones(4, dtype=torch.int64))

    def guided(w: float) -> Tensor:
        model = ClassifierFreeGuidance(tagged, tagged.unconditional, w, low_memory=low_memory)
        return model.x0_hat(x_t, T, condition)

    union, own = tagged.x0_hat(x_t, T), tagged.x0_hat(x_t, T, condition)
    torch.testing.assert_close(guided(0.0), union)
    torch.testing.assert_close(guided(1.0), own)
    torch.testing.assert_close(guided(3.0), union + 3 * (own - union))
    assert not torch.allclose(union, own, atol=1e-2)


def test_a_prompt_that_no_photo_has_is_refused(tagged: ExemplarDenoiser):
    condition = Condition(prompt=torch.tensor([3]))
    with pytest.raises(ValueError, match=r"prompts must be within \[0, 2\].*got 3"):
        tagged.predict(torch.zeros(1, 3, 9, 9).double(), torch.tensor([500]), condition)


@pytest.mark.parametrize("name", ["brick", "grass"])
def test_super_resolution_of_the_photo_s_own_block_finds_that_block(name):
    photo = load_image(name, 96)[0].double() * 2 - 1
    block = photo[:, 20:68, 8:56]
    low = low_pass(photo[None], 4)[..., 20:68, 8:56].contiguous()
    bank = PatchBank.of([photo], 5, EVERY, EVERY, factor=4)
    denoiser = ExemplarDenoiser(bank, stride=1, context_scale=1e-3)
    t = torch.tensor([999])  # pure noise: all that is known of the block is its low resolution
    x0_hat = denoiser.x0_hat(noisy(block, t), t, Condition(low_resolution=low))[0]
    # The surroundings of patches at the border are cut off.
    inner = (..., slice(16, -16), slice(16, -16))
    torch.testing.assert_close(x0_hat[inner], block[inner], rtol=0, atol=1e-3)
    assert (low[0] - block)[inner].abs().max() > 0.3


def test_super_resolution_shrinks_to_the_picture_it_was_shown():
    photo = smooth_photo(3, 32, 32)
    low = low_pass(smooth_photo(3, 32, 32, seed=1)[None], 4)
    denoiser = ExemplarDenoiser(PatchBank.of([photo], 5, factor=4))
    t = torch.tensor([500])
    posterior = replace(denoiser.bank, factor=1)
    x_t = noisy(photo, t)
    corrected = denoiser.x0_hat(x_t, t, Condition(low_resolution=low))
    without = ExemplarDenoiser(posterior).x0_hat(x_t, t)
    after = (low_pass(corrected, 4) - low_pass(low, 4)).square().mean()
    before = (low_pass(without, 4) - low_pass(low, 4)).square().mean()
    assert after < 0.1 * before


def test_super_resolution_without_a_picture_is_refused():
    denoiser = ExemplarDenoiser(PatchBank.of([smooth_photo(3, 32, 32)], 5, factor=4))
    with pytest.raises(ValueError, match="needs a low-resolution picture, got none"):
        denoiser.predict(torch.zeros(1, 3, 16, 16).double(), torch.tensor([500]))


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (6, 6)], ids=str)
def test_a_picture_smaller_than_a_patch_is_refused(size):
    denoiser = ExemplarDenoiser(PatchBank.of([smooth_photo(3, 20, 20)], 7))
    with pytest.raises(ValueError, match=r"at least the patch's 7 pixels, got \[\d, \d\]"):
        denoiser.predict(torch.zeros(1, 3, *size).double(), torch.tensor([500]))


def test_band_energy_restores_the_contrast_that_averaging_takes():
    photo = load_image("gravel", 64)[0].double() * 2 - 1
    bank = PatchBank.of([photo])
    t = torch.tensor([800])
    x_t = noisy(torch.zeros(3, 64, 64).double(), t)
    plain = ExemplarDenoiser(bank).x0_hat(x_t, t)
    matched = ExemplarDenoiser(bank, band_energy=BandEnergy(photo)).x0_hat(x_t, t)
    assert plain.std() < 0.5 * photo.std()
    assert plain.std() < matched.std() <= photo.std() * 1.05
    torch.testing.assert_close(plain, ExemplarDenoiser(bank).x0_hat(x_t, t), rtol=0, atol=0)


def test_no_convolution_rounds_its_inputs_to_tf32(monkeypatch: pytest.MonkeyPatch):
    allowed: list[bool] = []

    def watched(convolve):
        def run(*arguments, **options):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return convolve(*arguments, **options)

        return run

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, watched(getattr(F, name)))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    photo = random_image(3, 16, 16)
    denoiser = ExemplarDenoiser(PatchBank.of([photo], 5), band_energy=BandEnergy(photo))
    allowed.clear()
    denoiser.x0_hat(random_image(1, 3, 16, 16), 300)
    assert len(allowed) > 4
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32


def test_the_schedule_is_a_cosine_and_timesteps_are_its_inverse():
    schedule = cosine_schedule()
    for u in (0.0005, 0.03, 0.5, 0.98):
        t = timestep(u)
        assert abs((t + 0.5) / 1000 - u) <= 0.00051
        root = schedule.alpha_bar(torch.tensor([t])).sqrt().item()
        assert root == pytest.approx(torch.tensor(torch.pi / 2 * u).cos().item(), abs=1e-3)
    assert (timestep(0.0), timestep(1.0)) == (0, 999)
