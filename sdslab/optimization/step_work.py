"""The two halves of an optimisation step, launched one by one or replayed as CUDA graphs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import final

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import SDSResult
from sdslab.optimization.cuda_graph import Recorded, Recordings
from sdslab.optimization.optimize_config import OptimizeConfig

Diffused = Callable[[int], Tensor]
Gradient = Callable[[Tensor, int], SDSResult]


class StepWork(ABC):
    """What a step computes; between its halves the loop looks at what came out.

    Args:
        optimizer: moves θ.
        diffused: as of `optimize`.
        gradient: as of `optimize`.
        project: as of `optimize`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        diffused: Diffused,
        gradient: Gradient,
        project: Callable[[], None],
    ) -> None:
        self.optimizer = optimizer
        self._diffused, self._gradient, self._project = diffused, gradient, project

    @abstractmethod
    def descend(self, index: int) -> tuple[SDSResult, Tensor]:
        """Leaves the gradient of θ in its ``grad``; the distillation's result, and z detached."""

    @abstractmethod
    def move(self, rate: float) -> None:
        """Moves θ by its gradient at a learning rate, and back into its valid range."""

    def _backward(self, index: int) -> tuple[SDSResult, Tensor]:
        """Adds the step's gradient to θ's."""
        z = self._diffused(index)
        result = self._gradient(z.detach(), index)
        z.backward(result.gradient)
        return result, z.detach()


@final
class LaunchedWork(StepWork):
    """Each operation is launched when its turn comes; arguments as of `optimize`."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        diffused: Diffused,
        gradient: Gradient,
        config: OptimizeConfig,
        project: Callable[[], None],
    ) -> None:
        super().__init__(make_optimizer(parameters, config), diffused, gradient, project)
        self._index = 0
        self._searches = config.optimizer == "lbfgs"

    def descend(self, index: int) -> tuple[SDSResult, Tensor]:
        self._index = index
        self.optimizer.zero_grad()
        return self._backward(index)

    def move(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # L-BFGS evaluates again along its search direction.
        self.optimizer.step(self._loss if self._searches else None)
        self._project()

    def _loss(self) -> float:
        result, _ = self.descend(self._index)
        return result.loss.sum().item()


@final
class RecordedWork(StepWork):
    """Each half is one CUDA graph; on a CPU the same calls are made unrecorded.

    Args:
        parameters: θ.
        diffused: as of `optimize`, but it reads what ``load`` filled and leaves the index aside.
        gradient: likewise.
        config: without L-BFGS, which decides by what it computes.
        project: in place, and without a look at θ's values by the host.
        load: fills the memory that ``diffused`` and ``gradient`` read for a step, and returns its
            shape: they are recorded anew for each.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        diffused: Diffused,
        gradient: Gradient,
        config: OptimizeConfig,
        project: Callable[[], None],
        load: Callable[[int], Hashable],
    ) -> None:
        self._parameters, self._load, self._device = parameters, load, parameters[0].device
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        rate = torch.tensor(config.learning_rate, device=self._device)
        super().__init__(make_optimizer(parameters, config, rate), diffused, gradient, project)
        self._descents = Recordings(self._descend, self._device)
        self._update: Recorded[None] | None = None

    def descend(self, index: int) -> tuple[SDSResult, Tensor]:
        return self._descents(self._load(index))

    def _descend(self) -> tuple[SDSResult, Tensor]:
        self.optimizer.zero_grad(set_to_none=False)
        return self._backward(0)

    def move(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        if self._update is None:
            self._update = Recorded(
                self._move, self._device, restoring(self._parameters, self.optimizer)
            )
        self._update()

    def _move(self) -> None:
        self.optimizer.step()
        self._project()


def make_optimizer(
    parameters: Sequence[Tensor], config: OptimizeConfig, rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """What moves θ.

    Args:
        parameters: θ.
        config: which one, and its settings.
        rate: the learning rate in memory that recorded steps read; None is ``config``'s number.

    Raises:
        UserError: L-BFGS cannot be recorded.
    """
    learning_rate = config.learning_rate if rate is None else rate
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(
                parameters,
                lr=learning_rate,
                betas=config.adam_betas,
                eps=config.adam_eps,
                fused=True,
                capturable=rate is not None and rate.is_cuda,
            )
        case "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate, fused=rate is not None)
        case "lbfgs":
            if rate is not None:
                raise UserError(
                    "a recorded step must be adam's or sgd's, got lbfgs, whose line search decides "
                    "by what it computes"
                )
            return torch.optim.LBFGS(
                parameters, lr=learning_rate, max_iter=1, line_search_fn="strong_wolfe"
            )


def restoring(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Remembers θ and the optimiser's memory, and returns what puts them back, in place."""
    values = [parameter.detach().clone() for parameter in parameters]
    memories = [
        {name: tensor.clone() for name, tensor in _memory_of(parameter, optimizer).items()}
        for parameter in parameters
    ]

    @torch.no_grad()
    def restore() -> None:
        for parameter, value, memory in zip(parameters, values, memories, strict=True):
            parameter.copy_(value)
            for name, tensor in _memory_of(parameter, optimizer).items():
                if name in memory:
                    tensor.copy_(memory[name])
                else:  # what the first step makes begins at zero
                    tensor.zero_()

    return restore


def _memory_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    memory = optimizer.state.get(parameter, {})
    return {name: value for name, value in memory.items() if isinstance(value, Tensor)}
