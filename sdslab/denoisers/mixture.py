"""The optimal denoiser of a Gaussian mixture: Eq. 3 for K samples instead of one."""

import math
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.tensor_types import Diffused, Timesteps


@final
class MixtureDenoiser(Denoiser):
    """Posterior mean under Σ_k p_k N(m_k, σ² I), exact at every t.

    A prompt chooses a label: the distribution is then that of its components alone. The prompt
    after the last label, and no prompt, stand for all.

    Args:
        means: m_k, [K, c, *spatial].
        schedule: ᾱ.
        deviation: σ; 0 is the empirical distribution of the means.
        log_weights: log p_k up to a constant, [K]; None is equal ones.
        labels: [K] int64 from 0; None is one label.

    Source: with K = 1 and σ = 0, CasTex Eq. 3 (arXiv 2504.06856).
    """

    def __init__(
        self,
        means: Tensor,
        schedule: NoiseSchedule,
        *,
        deviation: float = 0.0,
        log_weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        if means.ndim < 2 or not len(means):
            raise ValueError(f"means must be [K, c, *spatial], got {list(means.shape)}")
        if deviation < 0:
            raise ValueError(f"deviation must be at least 0, got {deviation}")
        for name, values in (("log_weights", log_weights), ("labels", labels)):
            if values is not None and values.shape != means.shape[:1]:
                raise ValueError(
                    f"{name} must be [{len(means)}], one for each mean, got {list(values.shape)}"
                )
        self.means, self.schedule, self.deviation = means, schedule, deviation
        self.log_weights = means.new_zeros(len(means)) if log_weights is None else log_weights
        self.labels = torch.zeros(len(means), dtype=torch.int64) if labels is None else labels
        self.unconditional = int(self.labels.max()) + 1
        """The prompt that stands for all labels."""

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        share, _ = self.posterior(x_t, t, condition)
        means = self.means.to(x_t)
        mean = (share @ means.flatten(1)).view_as(x_t)
        signal, sigma = (r.to(x_t) for r in signal_and_noise_rates(self.schedule.alpha_bar(t), x_t))
        variance = self.deviation**2
        gain = signal * variance / (signal.square() * variance + sigma.square())
        return Prediction(mean + gain * (x_t - signal * mean), "x0")

    def posterior(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each component's share of x_t, [b, K], and log p_t(x_t), [b], under the condition."""
        signal, sigma = (r.to(x_t) for r in signal_and_noise_rates(self.schedule.alpha_bar(t), x_t))
        variance = (signal.square() * self.deviation**2 + sigma.square()).view(-1, 1)
        offset = x_t.flatten(1)[:, None] - signal.view(-1, 1, 1) * self.means.to(x_t).flatten(1)
        priors = self._log_priors(len(x_t), condition).to(x_t)
        logits = priors - offset.square().sum(-1) / (2 * variance)
        dimensions = x_t[0].numel()
        normalizer = dimensions / 2 * (2 * math.pi * variance[:, 0]).log()
        return logits.softmax(1), logits.logsumexp(1) - priors.logsumexp(1) - normalizer

    def _log_priors(self, batch: int, condition: Condition | None) -> Tensor:
        priors = self.log_weights.expand(batch, -1)
        if condition is None or condition.prompt is None:
            return priors
        rows = condition.prompt.cpu()
        outside = [row for row in rows.tolist() if not 0 <= row <= self.unconditional]
        if outside:
            raise ValueError(
                f"prompts must be within [0, {self.unconditional}], a label each and the last for "
                f"all, got {outside}"
            )
        chosen = (rows[:, None] == self.unconditional) | (rows[:, None] == self.labels.cpu())
        return priors.masked_fill(~chosen.to(priors.device), -math.inf)
