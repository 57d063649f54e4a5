"""A cell's step as one would first write it: what ours is compared with.

The network is evaluated as it is printed, everything upsampled and concatenated at full size and
the channels apart in memory; a fake loss carries the gradient through autograd; noise comes from
``torch.randn``; the optimisers are torch's own with their default implementation.
"""

import copy
import math

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import (
    NoiseSchedule,
    UniformTimesteps,
    weighting_named,
)
from sdslab.diffusion_space import LatentSpace, PixelSpace
from sdslab.kernels import NoiseKey
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.parameterizations.latent import LatentGrid
from sdslab.study.reconstruct import Problem, initial_theta
from sdslab.study.specification import Cell


class StraightforwardCell:
    """A call takes one step.

    Args:
        cell: what to run.
        problem: what to recover.
        seed: of θ and of the timesteps.
    """

    def __init__(self, cell: Cell, problem: Problem, seed: int) -> None:
        self._cell, self._seed, self._index = cell, seed, 0
        self.theta = initial_theta(cell, problem, seed)
        if isinstance(self.theta, DeepImagePrior):
            as_printed(self.theta)
        self._space = problem.space(cell)
        if isinstance(self._space, LatentSpace):
            vae = copy.deepcopy(self._space.vae).to(memory_format=torch.contiguous_format)
            self._space = LatentSpace(vae)
        with torch.no_grad():
            self._z_star = self._space.encode(problem.image)
        pixels = isinstance(self._space, PixelSpace)
        self._schedule = (
            NoiseSchedule.deepfloyd_if() if pixels else NoiseSchedule.stable_diffusion()
        )
        optimization = cell.optimization
        optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self._optimizer = optimizers[optimization.optimizer](
            list(self.theta.parameters()), lr=optimization.learning_rate
        )

    def __call__(self) -> None:
        """Computes a gradient and moves θ by it."""
        self.compute_gradient()
        optimization = self._cell.optimization
        for group in self._optimizer.param_groups:
            if optimization.learning_rate_schedule == "cosine":
                cosine = math.cos(math.pi * self._index / optimization.steps)
                group["lr"] = optimization.learning_rate * (1 + cosine) / 2
        self._optimizer.step()
        self._index += 1

    def compute_gradient(self) -> None:
        """Leaves the gradient in θ."""
        theta, cell = self.theta, self._cell
        z = theta.latents if isinstance(theta, LatentGrid) else self._space.encode(theta())
        key = NoiseKey(self._seed, self._index, torch.arange(len(z), device=z.device))
        t = UniformTimesteps()(key, self._index / cell.optimization.steps)
        alpha_bar = self._schedule.alpha_bar(t)
        weighting = weighting_named(cell.weighting)
        weight = _like(weighting(alpha_bar), z)
        signal, sigma = _like(alpha_bar.sqrt(), z), _like((1 - alpha_bar).sqrt(), z)
        with torch.no_grad():
            if cell.noise == "sampled":
                eps = torch.randn_like(z)
                z_t = signal * z + sigma * eps
                eps_hat = (z_t - signal * self._z_star) / sigma
                difference = eps_hat - eps
                if weighting.form == "x0":
                    difference = difference * sigma / signal
            else:
                difference = z - self._z_star
                if weighting.form == "epsilon":
                    difference = difference * signal / sigma
            target = z - weight * difference
        loss = 0.5 * ((z - target) ** 2).sum()
        self._optimizer.zero_grad()
        loss.backward()


def as_printed(network: DeepImagePrior) -> None:
    """Makes the network compute what its description says, at full size; the same function."""
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        if isinstance(module, torch.nn.Upsample) and module.mode == "nearest":
            module.mode = "nearest-exact"  # the same for a factor of two, but not recognised


def _like(per_sample: Tensor, z: Tensor) -> Tensor:
    return per_sample.to(z).view(-1, 1, 1, 1)
