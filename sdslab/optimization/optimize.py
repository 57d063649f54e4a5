"""The only optimisation loop of the project."""

import math
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.optimization.optimizer_state import (
    OptimizeConfig,
    OptimizerState,
    learning_rate_at,
    make_optimizer,
    save_in_place,
)
from sdslab.shell.process import interrupts_held
from sdslab.tensor_types import map_tensors

WARM_UPS = 3  # calls before the first capture, in which libraries choose their kernels and allocate

T = TypeVar("T")


@final
class GraphedFunction(Generic[T]):
    """A function that is captured once for each argument, and replayed from then on.

    The argument is memory that the function reads: the same object means the same memory, whose
    values the caller overwrites between the calls. Nothing in the function may wait for the GPU or
    decide by what the GPU computed.

    Args:
        function: it is called a few times before it is captured.
        device: on a CPU nothing is captured, and each call is an ordinary one.
        save: called before the warm-up, for a function that changes more than its result; what it
            returns puts that back, after the warm-up and after the capture.
    """

    def __init__(
        self,
        function: Callable[..., T],
        device: torch.device,
        save: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        self._function, self._device, self._save = function, device, save
        # The graphs share memory, for no two of them are replayed at once.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._graphs: dict[tuple[Hashable, ...], tuple[torch.cuda.CUDAGraph, T]] = {}

    def __call__(self, *argument: Hashable) -> T:
        """Calls it once more; on a GPU the result is the same memory each time."""
        if self._device.type != "cuda":
            return self._function(*argument)
        if argument not in self._graphs:
            self._graphs[argument] = self._captured(argument)
        graph, result = self._graphs[argument]
        graph.replay()
        return result

    def _captured(self, argument: tuple[Hashable, ...]) -> tuple[torch.cuda.CUDAGraph, T]:
        restore = self._save()
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), warnings.catch_warnings():
                # What is to be captured warns of not being captured.
                warnings.filterwarnings("ignore", ".*capturable=True.*")
                # Kernels are chosen and compiled once there is a graph.
                for _ in range(1 if self._graphs else WARM_UPS):
                    self._function(*argument)
            torch.cuda.current_stream().wait_stream(side)
            restore()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = self._function(*argument)
            restore()
        return graph, result


def static_copy(value: T, device: torch.device) -> T:
    """A copy on a device that graphs may read: of a tensor, or of a dataclass of tensors."""
    return map_tensors(
        value, lambda x: x.to(device, copy=True, memory_format=torch.contiguous_format)
    )


def copy_into(static: T, value: T) -> None:
    """Overwrites what `static_copy` made of an earlier value with one like it.

    Raises:
        ValueError: they are of different shapes, or differ in what is no tensor.
    """
    if isinstance(static, Tensor) and isinstance(value, Tensor):
        if static.shape != value.shape:
            raise ValueError(
                f"a captured function must be given {list(static.shape)} as at first, got "
                f"{list(value.shape)}; capture it anew"
            )
        static.copy_(value)
    elif is_dataclass(static) and type(static) is type(value):
        for field in fields(static):
            copy_into(getattr(static, field.name), getattr(value, field.name))
    elif static != value:
        raise ValueError(f"a captured function must be given {static!r} as at first, got {value!r}")


@dataclass(frozen=True)
class Step:
    """What happened in one step, before θ moved.

    Attributes:
        index: from 0; the first step sees the initial θ.
        loss: the distillation objective, summed over the batch.
        gradient_norm: L2 norm of θ's gradient.
        z: what was distilled, detached; a recorded step's is overwritten by the next.
        nonfinite: NaN and infinite values that the model or the gradient held.
        seconds: since the loop began, earlier processes included.
        skipped: θ does not move, as the model's output is not finite; `loss` may be NaN then.
    """

    index: int
    loss: float
    gradient_norm: float
    z: Tensor
    nonfinite: int
    seconds: float
    skipped: bool = False


def optimize(
    theta: Iterable[Tensor],
    diffused: Callable[[Any], Tensor],
    gradient: Callable[[Tensor, Any], SDSResult],
    config: OptimizeConfig,
    project: Callable[[], None] | None = None,
    state: OptimizerState | None = None,
    inputs: Callable[[int], Any] = lambda index: index,
    *,
    record: bool = False,
) -> Iterator[Step]:
    """Moves θ along a distillation gradient, step by step.

    Args:
        theta: the parameters.
        diffused: from the step's inputs to z = encode(render(g(θ))), attached to θ's graph.
        gradient: from (z detached, the step's inputs) to the gradient with respect to z.
        config: optimiser, learning rate and when to stop.
        project: moves θ, in place, back into its valid range after each update.
        state: what to go on from, θ included; it follows the loop, so that its ``snapshot()`` can
            be saved after any step, at the end or after an exception. None starts anew.
        inputs: from the step index to what the other two read, called once a step.
        record: replay what a step launches as CUDA graphs: one of the gradient for each object that
            ``inputs`` returns (the same object stands for the same memory, filled anew), and one of
            the update. The steps are the same; on a CPU they are launched as ever.

    Yields:
        One `Step` before each update of θ; the loop ends after ``config.steps`` of them or on
        convergence. A caller may stop after any of them: θ is whole then, also on Ctrl-C and
        SIGTERM, which are held back to the end of the step.

    Raises:
        FloatingPointError: z or the gradient of θ is not finite, or the model's output was not in
            ``config.nonfinite_limit`` steps in a row; θ is left as it was.
        UserError: L-BFGS is to be recorded.
        KeyboardInterrupt: Ctrl-C, or SIGTERM (`shell.process.Terminated`), after the step.
    """
    parameters = list(theta)
    work = _StepWork(parameters, diffused, gradient, config, project, record=record)
    state = state or OptimizerState()
    state.attach(parameters, work.optimizer)

    start = time.perf_counter() - state.seconds
    with closing(work), interrupts_held() as raise_if_interrupted:
        for index in range(state.index, config.steps):
            raise_if_interrupted()
            state.begin_step(index)
            result, z = work.compute_gradient(inputs(index))
            loss = result.loss.sum().item()
            nonfinite = int(result.nonfinite.sum())
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            skipped = nonfinite > 0 or not math.isfinite(norm)
            if skipped:
                _raise_if_diverged(result, z, norm, index, config)
                if state.skipped_in_a_row + 1 >= config.nonfinite_limit:
                    raise FloatingPointError(
                        f"the model's output must be finite, got NaN or infinite values in "
                        f"{state.skipped_in_a_row + 1} steps in a row ({nonfinite} at step "
                        f"{index}, where |z| is up to {z.abs().max():.3g}); compute in float32 or "
                        f"bfloat16, or lower the guidance scale or the learning rate "
                        f"({config.learning_rate:g})"
                    )
            state.seconds = time.perf_counter() - start - state.idle_seconds
            yield Step(index, loss, norm, z, nonfinite, state.seconds, skipped)
            if norm <= config.converged_below and not skipped:
                break
            if not skipped:
                if norm > config.gradient_norm_limit:
                    torch._foreach_mul_(gradients, config.gradient_norm_limit / norm)
                work.update(learning_rate_at(config, index))
            state.skipped += skipped
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            state.index = index + 1
        raise_if_interrupted()


@final
class _StepWork:
    """The two halves of a step, between which the loop looks at what came out.

    Arguments are those of `optimize`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        diffused: Callable[[Any], Tensor],
        gradient: Callable[[Tensor, Any], SDSResult],
        config: OptimizeConfig,
        project: Callable[[], None] | None,
        *,
        record: bool,
    ) -> None:
        self._diffused, self._gradient, self._project = diffused, gradient, project
        self._searches, self._inputs = config.optimizer == "lbfgs", None
        self._graphs: tuple[GraphedFunction, GraphedFunction] | None = None
        rate = None
        if record:
            device = parameters[0].device
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            rate = torch.tensor(config.learning_rate, device=device)
            self._graphs = (
                GraphedFunction(self._backward, device),
                GraphedFunction(
                    self._move, device, lambda: save_in_place(parameters, self.optimizer)
                ),
            )
        self.optimizer = make_optimizer(parameters, config, rate)

    def close(self) -> None:
        """Lets go of the graphs, which hold this object, and with it what the step was made of.

        Without it a model would stay on the GPU until Python looks for cycles.
        """
        self._graphs = None

    def compute_gradient(self, inputs: Any) -> tuple[SDSResult, Tensor]:
        """Leaves the gradient of θ in its ``grad``; the distillation's result, and z detached."""
        return self._backward(inputs) if self._graphs is None else self._graphs[0](inputs)

    def update(self, rate: float) -> None:
        """Moves θ by its gradient at a learning rate, and back into its valid range."""
        for group in self.optimizer.param_groups:
            if self._graphs is None:
                group["lr"] = rate
            else:
                group["lr"].fill_(rate)
        self._move() if self._graphs is None else self._graphs[1]()

    def _backward(self, inputs: Any) -> tuple[SDSResult, Tensor]:
        self._inputs = inputs
        # Graphs need gradients whose memory stays.
        self.optimizer.zero_grad(set_to_none=self._graphs is None)
        z = self._diffused(inputs)
        result = self._gradient(z.detach(), inputs)
        z.backward(result.gradient)
        return result, z.detach()

    def _move(self) -> None:
        # L-BFGS evaluates again along its search direction.
        self.optimizer.step(self._loss if self._searches else None)
        if self._project is not None:
            self._project()

    def _loss(self) -> float:
        result, _ = self._backward(self._inputs)
        return result.loss.sum().item()


def _raise_if_diverged(
    result: SDSResult, z: Tensor, norm: float, index: int, config: OptimizeConfig
) -> None:
    """Tells θ's own failure, which no other step repairs, from the model's."""
    if not z.isfinite().all():
        what = "z = encode(render(g(θ))) must be finite, got NaN or infinite values"
    elif result.gradient.isfinite().all() and not math.isfinite(norm):
        what = f"the gradient of θ must be finite, got a norm of {norm}"
    else:
        return
    raise FloatingPointError(
        f"{what} at step {index}; lower the learning rate ({config.learning_rate:g}) or use float64"
    )
