"""The optimal denoiser of a photograph's patches: CasTex Eq. 3 for an empirical distribution."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.band_energy import BandEnergy
from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.patch_bank import PatchBank, low_pass
from sdslab.kernels.patch_posterior import SIGMA_FLOOR, patch_posterior
from sdslab.tensor_types import Diffused, Timesteps

TIMESTEPS = 1000


def cosine_schedule() -> NoiseSchedule:
    """√ᾱ = cos(πu/2), where u = (t + ½)/1000 runs through (0, 1)."""
    u = (torch.arange(TIMESTEPS, dtype=torch.float64) + 0.5) / TIMESTEPS
    return NoiseSchedule((math.pi / 2 * u).cos().square())


def timestep(u: float) -> int:
    """T of `cosine_schedule` nearest to u in (0, 1)."""
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
        padded = _pad(x_t, padding)
        alpha_bar = self.schedule.alpha_bar(t)
        coordinates = self.bank.project(padded, self.stride)
        b, r, rows, columns = coordinates.shape
        signal = alpha_bar.sqrt().to(x_t).view(b, 1, 1, 1)
        coordinates = coordinates - signal * self.bank.project_mean().view(1, r, 1, 1)
        queries = coordinates.movedim(1, -1)  # [b, rows, columns, r]
        chosen = torch.ones(b, rows, columns, dtype=torch.bool, device=x_t.device)
        if condition.foreground is not None:
            touched = F.max_pool2d(
                _pad(condition.foreground, padding), self.bank.patch, self.stride
            )
            chosen = touched[:, 0] > 0
        context = None
        if self.bank.factor > 1 and condition.low_resolution is not None:
            features = self.bank.context(_pad(condition.low_resolution, padding), self.stride)
            context = features.movedim(1, -1)
        means = torch.zeros_like(queries)  # the mean patch, where there is no foreground
        for prompt, keys in self._keys_of(condition, b):
            here = chosen & prompt.view(b, 1, 1)
            per_query = alpha_bar.view(b, 1, 1).expand(b, rows, columns)[here]
            has_context = context is not None and self.bank.key_context is not None
            means[here] = patch_posterior(
                queries[here],
                self.bank.keys[keys],
                per_query,
                context=context[here] if context is not None else None,
                key_context=self.bank.key_context[keys]
                if has_context and self.bank.key_context is not None
                else None,
                context_scale=self.context_scale,
                sigma_floor=self.sigma_floor,
            )
        x0_hat = self.bank.overlap(means.movedim(-1, 1), self.stride)[..., :height, :width]
        if self.band_energy is not None:
            x0_hat = self.band_energy(x0_hat, condition.foreground)
        if self.bank.factor > 1 and condition.low_resolution is not None:
            x0_hat = x0_hat + condition.low_resolution - low_pass(x0_hat, self.bank.factor)
        return Prediction(x0_hat.contiguous(), "x0")

    def _keys_of(self, condition: Condition, batch: int) -> list[tuple[Tensor, Tensor | slice]]:
        """Which samples [b] bool look at which keys."""
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
