"""Watches what a GPU would replay on a CPU, where the same calls are made unrecorded."""

import sys
from collections.abc import Callable, Hashable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sdslab.kernels import NoiseKey, cpu_bodies, philox_cpu
from sdslab.optimization.optimize import GraphedFunction
from sdslab.rendering.cpu_backend import CpuBackend


class NothingFromTheHost(TorchDispatchMode):
    """Refuses what would wait for a GPU, or copy to it from memory that a graph cannot read."""

    FORBIDDEN = (
        "_local_scalar_dense", "nonzero", "masked_select", "bincount", "lift_fresh", "equal",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, "a mask as an index"
        self.calls += 1
        return func(*args, **(kwargs or {}))


# A GPU launches one kernel in place of each.
CPU_BODIES = (
    (philox_cpu, "bits_cpu"),
    (philox_cpu, "normal_cpu"),
    (cpu_bodies, "perturb_cpu"),
    (cpu_bodies, "sds_gradient_cpu"),
    (cpu_bodies, "degenerate_sds_gradient_cpu"),
    (sys.modules["sdslab.kernels.noising"], "_sr_condition_reference"),
)


def _unwatched(body: Callable[..., object]) -> Callable[..., object]:
    def run(*arguments: object) -> object:
        with _disable_current_modes():
            return body(*arguments)

    return run


def watch_recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fails a call that no graph could hold; returns a list that gets each half step's calls.

    A function's first call is let pass, as a warm-up: tables are made once.
    """
    # What is given is looked at on a CPU only.
    monkeypatch.setattr(NoiseKey, "__post_init__", lambda _: None)
    for op in ("noising", "sds_gradients"):
        module = sys.modules[f"sdslab.kernels.{op}"]
        monkeypatch.setattr(module, "require_alpha_bar", lambda *_: None)
    for module, name in CPU_BODIES:
        monkeypatch.setattr(module, name, _unwatched(getattr(module, name)))
    monkeypatch.setattr(CpuBackend, "sample_texture", _nearest_texel)
    calls: list[int] = []

    original = GraphedFunction.__call__
    begun: list[GraphedFunction] = []

    def watching(self: GraphedFunction, *argument: Hashable) -> object:
        if self not in begun:
            begun.append(self)
            return original(self, *argument)
        with NothingFromTheHost() as mode:
            result = original(self, *argument)
        calls.append(mode.calls)
        return result

    monkeypatch.setattr(GraphedFunction, "__call__", watching)
    return calls


def _nearest_texel(_: CpuBackend, maps: Tensor, uv: Tensor, _derivatives: Tensor) -> Tensor:
    """In place of the GPU's look-up, which the compiled loops of the CPU's are not."""
    height, width = maps.shape[:2]
    row, column = (uv[:, 1] * height).long() % height, (uv[:, 0] * width).long() % width
    return maps.flatten(0, 1)[row * width + column]
