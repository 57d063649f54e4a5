"""Steps of θ that leave nothing to the host, so that one CUDA graph holds a whole step."""

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import SDSResult
from sdslab.optimization.cuda_graph import Recorded
from sdslab.optimization.optimize_config import OptimizeConfig, learning_rate_at
from sdslab.optimization.step_work import make_optimizer, restoring


@final
class RecordedDescent:
    """What `optimize` does, without a look at what came out until it is asked for.

    The step's counter, its timesteps and its learning rate are tensors on the device, read and
    advanced by the step itself; gradients and losses go into buffers that stay where they are. So
    nothing stops it early and no step is skipped: ``losses`` tells afterwards.

    Where ``diffused`` is fixed work on fixed memory (the toy study's cells) all of it is recorded.
    A mesh's pictures are not: `optimize_recorded_material` records their steps.

    Args:
        theta: the parameters; on a GPU for a graph.
        diffused: z = encode(g(θ)), attached to θ's graph.
        gradient: from (z detached, t) to the gradient with respect to z; noise that it draws must
            not depend on the step in any other way, for a key's words are recorded with it.
        timesteps: [steps, b] int64, of every step.
        config: Adam or gradient descent, without limits on the gradient.

    Attributes:
        losses: [steps], of the steps taken.
    """

    def __init__(
        self,
        theta: Iterable[Tensor],
        diffused: Callable[[], Tensor],
        gradient: Callable[[Tensor, Tensor], SDSResult],
        timesteps: Tensor,
        config: OptimizeConfig,
    ) -> None:
        self._parameters = list(theta)
        device = self._parameters[0].device
        _check(config, timesteps)
        self._diffused, self._gradient = diffused, gradient
        self._timesteps = timesteps.to(device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        rates = [learning_rate_at(config, index) for index in range(config.steps)]
        self._rates = torch.tensor(rates, dtype=torch.float32, device=device)
        self._rate = self._rates[0].clone()
        self.losses = self._rates.new_zeros(config.steps)
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer = make_optimizer(self._parameters, config, self._rate)
        restore_theta = restoring(self._parameters, self._optimizer)

        def restore() -> None:
            restore_theta()
            self._counter.zero_()

        self.step = Recorded(self._step, device, restore)

    @property
    def index(self) -> int:
        """Steps taken; waits for the device."""
        return int(self._counter)

    def _step(self) -> None:
        self._rate.copy_(self._rates.index_select(0, self._counter)[0])
        t = self._timesteps.index_select(0, self._counter)[0]
        for parameter in self._parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()
        z = self._diffused()
        result = self._gradient(z.detach(), t)
        z.backward(result.gradient)
        self.losses.index_copy_(0, self._counter, result.loss.sum().to(self.losses)[None])
        self._optimizer.step()
        self._counter += 1


def _check(config: OptimizeConfig, timesteps: Tensor) -> None:
    limits = (config.gradient_norm_limit, config.converged_below)
    if config.optimizer == "lbfgs" or limits != (float("inf"), 0.0):
        raise UserError(
            f"a recorded step must be adam or sgd without limits on the gradient, got "
            f"{config.optimizer} with {limits[0]:g} and {limits[1]:g}; use optimize instead"
        )
    if len(timesteps) != config.steps:
        raise ValueError(
            f"timesteps must have a row for each of {config.steps} steps, got {len(timesteps)}"
        )
