"""The optimal denoiser of a photograph's patches: CasTex Eq. 3 for an empirical distribution."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.patch_bank import PatchBank, low_pass
from sdslab.kernels.patch_posterior import SIGMA_FLOOR, patch_posterior
from sdslab.machine import full_float32
from sdslab.tensor_types import Diffused, Timesteps

BANDS = 4
SCALE_LIMITS = (0.5, 2.5)
RATE = 0.2  # of the running mean of the scales


@final
class BandEnergy:
    """Scales four Laplacian bands of x̂_0 so that each varies as much as the photograph's.

    The scales are running means over the calls: make one for each level of resolution.

    Args:
        exemplar: [c, h, w], at the resolution of the pictures to come.
        mask: [1, h, w] bool, what of it counts; None is all.
    """

    def __init__(self, exemplar: Tensor, mask: Tensor | None = None) -> None:
        bands, _ = laplacian_bands(exemplar[None])
        inside = None if mask is None else mask[None].to(exemplar)
        self.deviations = torch.stack([_deviation(band, inside) for band in bands])
        self.scales = torch.ones_like(self.deviations)
        self._calls = torch.zeros((), dtype=torch.int64)

    @property
    def memory(self) -> dict[str, Tensor]:
        """State carried from call to call, changed in place, for a checkpoint to hold."""
        return {"band_scales": self.scales, "band_calls": self._calls}

    def __call__(self, x0_hat: Tensor, foreground: Tensor | None) -> Tensor:
        """Scales pictures [b, c, h, w]; in their deviations pixels count as the foreground says.

        Args:
            x0_hat: the pictures.
            foreground: [b, 1, h, w] in [0, 1], or None where all count alike.
        """
        bands, rest = laplacian_bands(x0_hat)
        deviations = torch.stack([_deviation(band, foreground) for band in bands])
        wanted = (self.deviations / deviations.clamp_min(1e-6)).clamp(*SCALE_LIMITS)
        self.scales.lerp_(wanted, RATE if self._calls else 1.0)
        self._calls += 1
        return rest + sum(scale * band for scale, band in zip(self.scales, bands, strict=True))


def laplacian_bands(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Splits pictures [b, c, h, w] into four bands, fine to coarse, and a low-pass rest."""
    taps = x.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 5, 5)
    bands = []
    for level in range(BANDS):
        step = 2**level  # à trous: the picture keeps its size
        margin = min(2 * step, min(x.shape[-2:]) - 1)
        padded = F.pad(x, (margin,) * 4, mode="reflect")
        if margin < 2 * step:
            padded = F.pad(padded, (2 * step - margin,) * 4, mode="replicate")
        blurred = F.conv2d(padded, kernel, dilation=step, groups=x.shape[1])
        bands.append(x - blurred)
        x = blurred
    return bands, x


def _deviation(band: Tensor, foreground: Tensor | None) -> Tensor:
    """The root mean square of a band, over the foreground."""
    if foreground is None:
        return band.square().mean().sqrt()
    weight = foreground.expand_as(band)
    return ((band.square() * weight).sum() / weight.sum().clamp_min(1)).sqrt()


TIMESTEPS = 1000


def cosine_schedule() -> NoiseSchedule:
    """√ᾱ = cos(πu/2), where u = (t + ½)/1000 runs through (0, 1)."""
    u = (torch.arange(TIMESTEPS, dtype=torch.float64) + 0.5) / TIMESTEPS
    return NoiseSchedule((math.pi / 2 * u).cos().square())


def timestep(u: float) -> int:
    """Timestep of `cosine_schedule` nearest to u in (0, 1)."""
    return min(TIMESTEPS - 1, max(0, round(u * TIMESTEPS - 0.5)))


@final
class ExemplarDenoiser(Denoiser):
    """x̂_0 from the posterior mean of every overlapping patch over the patches of a photograph.

    With a bank made for super-resolution it conditions on a low-resolution picture as well, and
    corrects x̂_0 until it shrinks to that picture.

    Args:
        bank: the photograph's patches; one whole picture as a single patch is Eq. 3 itself.
        stride: between a picture's patches.
        context_scale: s, how far a low-resolution patch may be from its key's.
        band_energy: matches the contrast of x̂_0 to the photograph's, or None.
        sigma_floor: √(1−ᾱ) counts as at least this.

    Source: Kamb & Ganguli 2024 (arXiv 2412.20292); one patch of a picture's own size is CasTex
    Eq. 3 (arXiv 2504.06856).
    """

    def __init__(
        self,
        bank: PatchBank,
        *,
        stride: int = 3,
        context_scale: float = 0.2,
        band_energy: BandEnergy | None = None,
        sigma_floor: float = SIGMA_FLOOR,
    ) -> None:
        self.bank, self.stride = bank, stride
        self.context_scale, self.sigma_floor = context_scale, sigma_floor
        self.band_energy = band_energy
        self.schedule = cosine_schedule()
        self.unconditional = int(bank.tags.max()) + 1
        """The prompt that stands for all exemplars together; a lower one is that exemplar's."""

    @torch.no_grad()
    @full_float32()
    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        condition = condition or Condition()
        if self.bank.factor > 1 and condition.low_resolution is None:
            raise ValueError("a super-resolution exemplar needs a low-resolution picture, got none")
        height, width = x_t.shape[-2:]
        if min(height, width) < self.bank.patch:
            raise ValueError(
                f"a picture's sides must be at least the patch's {self.bank.patch} pixels, got "
                f"{[height, width]}; enlarge it or take smaller patches"
            )
        padding = [-(side - self.bank.patch) % self.stride for side in (width, height)]
        means = self._posterior_means(x_t, padding, self.schedule.alpha_bar(t), condition)
        x0_hat = self.bank.overlap(means.movedim(-1, 1), self.stride)[..., :height, :width]
        if self.band_energy is not None:
            x0_hat = self.band_energy(x0_hat, condition.foreground)
        if self.bank.factor > 1 and condition.low_resolution is not None:
            x0_hat = x0_hat + condition.low_resolution - low_pass(x0_hat, self.bank.factor)
        return Prediction(x0_hat.contiguous(), "x0")

    def _posterior_means(
        self, x_t: Tensor, padding: list[int], alpha_bar: Tensor, condition: Condition
    ) -> Tensor:
        """The mean patch of each place in coordinates, [b, rows, columns, r]."""
        bank = self.bank
        coordinates = bank.project(_pad(x_t, padding), self.stride)
        b, r, rows, columns = coordinates.shape
        signal = alpha_bar.sqrt().to(x_t).view(b, 1, 1, 1)
        coordinates = coordinates - signal * bank.project_mean().view(1, r, 1, 1)
        queries = coordinates.movedim(1, -1)
        noise_levels = alpha_bar.view(b, 1, 1).expand(b, rows, columns)
        chosen = torch.ones(b, rows, columns, dtype=torch.bool, device=x_t.device)
        if condition.foreground is not None:
            seen = _pad(condition.foreground, padding)
            chosen = F.max_pool2d(seen, bank.patch, self.stride)[:, 0] > 0
        context = None
        if bank.factor > 1 and condition.low_resolution is not None:
            features = bank.context(_pad(condition.low_resolution, padding), self.stride)
            context = features.movedim(1, -1)
        means = torch.zeros_like(queries)  # the mean patch, where there is no foreground
        for prompt, tagged in self._keys_of(condition, b):
            for place, keys in self._poses_of(condition, padding, tagged):
                here = chosen & prompt.view(b, 1, 1) & place
                means[here] = patch_posterior(
                    queries[here],
                    bank.keys[keys],
                    noise_levels[here],
                    context=None if context is None else context[here],
                    key_context=None
                    if context is None or bank.key_context is None
                    else bank.key_context[keys],
                    context_scale=self.context_scale,
                    sigma_floor=self.sigma_floor,
                )
        return means

    def _poses_of(
        self, condition: Condition, padding: list[int], tagged: Tensor | slice
    ) -> list[tuple[Tensor, Tensor | slice]]:
        """Pairs of places [b, rows, columns] bool and the keys of a tag that they look at.

        A place sees the photograph turned as the surface is there, to the nearest pose.
        """
        poses = self.bank.poses
        if poses is None or condition.up is None:
            return [(torch.ones(1, 1, 1, dtype=torch.bool, device=self.bank.keys.device), tagged)]
        up = F.avg_pool2d(_pad(condition.up, padding), self.bank.patch, self.stride)
        turns = torch.atan2(-up[:, 0], up[:, 1]) / (2 * math.pi) * self.bank.pose_count
        pose_of = turns.round().long() % self.bank.pose_count
        everyone = torch.zeros(len(poses), dtype=torch.bool, device=poses.device)
        everyone[tagged] = True
        return [(pose_of == pose, everyone & (poses == pose)) for pose in pose_of.unique().tolist()]

    def _keys_of(self, condition: Condition, batch: int) -> list[tuple[Tensor, Tensor | slice]]:
        """Pairs of samples [b] bool and the keys that they look at."""
        device = self.bank.keys.device
        everyone = torch.ones(batch, dtype=torch.bool, device=device)
        if condition.prompt is None:
            return [(everyone, slice(None))]
        chosen: list[tuple[Tensor, Tensor | slice]] = []
        for row in condition.prompt.unique().tolist():
            if not 0 <= row <= self.unconditional:
                raise ValueError(
                    f"prompts must be within [0, {self.unconditional}], a photo each and the last "
                    f"for all, got {row}"
                )
            keys = slice(None) if row == self.unconditional else self.bank.tags == row
            chosen.append((condition.prompt.to(device) == row, keys))
        return chosen


def _pad(x: Tensor, right_and_bottom: list[int]) -> Tensor:
    """A few mirrored pixels, so that the last patch ends where the picture does."""
    right, bottom = right_and_bottom
    if not (right or bottom):
        return x
    return F.pad(x, (0, right, 0, bottom), mode="reflect")
