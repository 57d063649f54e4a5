"""A step of Figure 2's cells three ways: the study's, recorded, and as one would first write it."""

import copy
import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import NoiseSchedule, UniformTimesteps, weighting_named
from sdslab.diffusion_space import DiffusionSpace, LatentSpace, PixelSpace
from sdslab.kernels import NoiseKey
from sdslab.optimization.optimize import Step, optimize
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.parameterizations.latent import LatentGrid
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.study.reconstruct import (
    Cell,
    Problem,
    exact_gradient_of,
    gradient_of,
    initial_theta,
    noise_and_timestep,
    with_steps,
)

SEED = 0
CHECKED_STEPS = 3


def loop(cell: Cell, problem: Problem) -> tuple[Iterator[Step], Parameterization]:
    """The study's loop, without the PSNRs that it records at 60 of a cell's steps, and its θ."""
    theta, space = initial_theta(cell, problem, SEED), problem.space(cell)
    config = OptimizeConfig(**dataclasses.asdict(cell.optimization))
    gradient = gradient_of(cell, problem, space.encode(problem.image).detach(), SEED)
    steps = optimize(theta.parameters(), lambda _: diffused(theta, space), gradient, config)
    return steps, theta


def recorded(cell: Cell, problem: Problem) -> tuple[Iterator[Step], Parameterization]:
    """The same steps, recorded as CUDA graphs on a GPU, and their θ."""
    theta, space = initial_theta(cell, problem, SEED), problem.space(cell)
    config = OptimizeConfig(**dataclasses.asdict(cell.optimization))
    z_star = space.encode(problem.image).detach()
    drawn = [noise_and_timestep(cell, z_star, SEED, i)[1] for i in range(config.steps)]
    timesteps = torch.stack(drawn).to(z_star.device)
    t = timesteps[0].clone()
    steps = optimize(
        theta.parameters(),
        lambda _: diffused(theta, space),
        exact_gradient_of(cell, z_star),
        config,
        inputs=lambda index: t.copy_(timesteps[index]),
        record=True,
    )
    return steps, theta


def recording_error(cell: Cell, problem: Problem) -> float:
    """Error of θ after a few recorded steps, against the loop's, relative L2."""
    few = with_steps(cell, CHECKED_STEPS)
    steps, expected = loop(few, problem)
    for _ in steps:
        pass
    recorded_steps, theta = recorded(few, problem)
    for _ in recorded_steps:
        pass
    ours, theirs = (
        torch.cat([parameter.detach().flatten() for parameter in of.parameters()]).double()
        for of in (theta, expected)
    )
    return ((ours - theirs).norm() / theirs.norm()).item()


def diffused(theta: Parameterization, space: DiffusionSpace) -> Tensor:
    """The picture or latents that diffusion sees."""
    return theta.latents if isinstance(theta, LatentGrid) else space.encode(theta())


def errors(cell: Cell, problem: Problem, seed: int = SEED) -> tuple[float, float]:
    """Ours against the straightforward step in float64, and what is allowed."""
    theta = initial_theta(cell, problem, seed)
    space = problem.space(cell)
    z, z_star = diffused(theta, space), space.encode(problem.image).detach()
    z.backward(gradient_of(cell, problem, z_star, seed)(z.detach(), 0).gradient)
    own = StraightforwardCell(cell, problem, seed)
    own.compute_gradient()
    truth = StraightforwardCell(cell, in_float64(problem), seed)
    # The same θ, which float32 has rounded.
    for exact, rounded in zip(truth.theta.parameters(), own.theta.parameters(), strict=True):
        exact.data.copy_(rounded.data)
    truth.compute_gradient()
    height, width = problem.image.shape[-2:]
    summed = height * width * torch.finfo(torch.float32).eps / 2
    budget = 4 * _distance(own.theta, truth.theta) + summed
    return _distance(theta, truth.theta), budget


def in_float64(problem: Problem) -> Problem:
    """The same problem, computed in double precision."""
    vae = None
    if problem.vae is not None:
        vae = LatentSpace(torch.nn.Module.to(copy.deepcopy(problem.vae.vae), torch.float64))
    return Problem.of(problem.image_name, problem.image.double(), vae)


def _distance(theta: Parameterization, truth: Parameterization) -> float:
    """Difference of all gradients together, relative L2."""
    ours, theirs = (_gradient(of).double() for of in (theta, truth))
    return ((ours - theirs).norm() / theirs.norm()).item()


def _gradient(theta: Parameterization) -> Tensor:
    gradients = [parameter.grad for parameter in theta.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


class StraightforwardCell:
    """A step as one would first write it; a call takes one.

    The network is evaluated as it is printed, everything upsampled and concatenated at full size
    and the channels apart in memory; a fake loss carries the gradient through autograd; noise comes
    from ``torch.randn``; the optimisers are torch's own with their default implementation.

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
        z = diffused(theta, self._space)
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
