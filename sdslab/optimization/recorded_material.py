"""A material's steps as CUDA graphs: all that follows visibility, whatever the views show."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import final

import torch
from torch import Tensor

from sdslab.diffusion_space import DiffusionSpace
from sdslab.kernels import SDSResult
from sdslab.optimization.cuda_graph import held, refill
from sdslab.optimization.material_optimization import MaterialConfig, maps_of, projection
from sdslab.optimization.optimize import Step, optimize
from sdslab.optimization.optimizer_state import OptimizerState
from sdslab.optimization.recordable_guide import Draws, RecordableGuide
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, Scenes
from sdslab.rendering.texels import SeenTexels


def optimize_recorded_material(
    theta: Parameterization,
    renderer: Renderer,
    scenes: Scenes,
    space: DiffusionSpace,
    guide: RecordableGuide,
    config: MaterialConfig,
    seen: SeenTexels,
    state: OptimizerState | None = None,
) -> Iterator[Step]:
    """The steps of `optimize_material`, replayed; arguments as there.

    Cameras, lights, backgrounds and timesteps are drawn on the host and visibility is found as
    ever, for a rasteriser waits for the GPU. The rest is two graphs: look-up, shading, encoding,
    the model, the distillation gradient and its way back to θ; Adam and projection. They read the
    step's counter, t, prompts, light, background and surface from memory that stays. The covered
    pixels are padded to one of 13 lengths, of which each has a recording of its own.

    Yields:
        One `Step` before each update; its ``z`` is overwritten by the next.
    """
    if config.initial is not None:
        config = replace(config, initial=config.initial.to(renderer.device))
    memory: _Memory | None = None

    def load(index: int) -> int:
        nonlocal memory
        scene = scenes.sample(index, config.views, renderer.extreme_points)
        surface = renderer.see(scene.cameras, scenes.resolution)
        seen.mark(surface)
        draws = guide.draw(index, scene.cameras)
        if memory is None:
            memory = _Memory(surface, scene, draws, renderer.device)
        memory.fill(surface, scene, draws)
        return len(memory.surface.pixel)

    def diffused(_: int) -> Tensor:
        assert memory is not None
        scene, maps = memory.scene, maps_of(theta, config)
        image = renderer.picture(memory.surface, maps, scene.lighting, scene.background)
        return space.encode(image)

    def gradient(z: Tensor, _: int) -> SDSResult:
        assert memory is not None
        return guide.gradient(z, memory.draws, memory.scene, memory.surface)

    project = projection(theta, config)
    yield from optimize(
        theta.parameters(), diffused, gradient, config.optimization, project, state, load
    )


@final
class _Memory:
    """What recorded steps read, on the device.

    Args:
        surface: like those to come.
        scene: likewise.
        draws: likewise.
        device: where the steps are recorded.

    Attributes:
        surface: the step's, padded.
        scene: the step's light and background; its cameras are the first step's.
        draws: the step's.
    """

    def __init__(self, surface: Surface, scene: Scene, draws: Draws, device: torch.device) -> None:
        b, height, width = surface.shape
        self._pixels = b * height * width
        self._capacity = self._pixels * surface.supersampling**2
        per_row = {
            field.name: value.new_zeros(self._capacity, *value.shape[1:])
            for field in fields(surface)
            if isinstance(value := getattr(surface, field.name), Tensor) and field.name != "eye"
        }
        self._whole = replace(surface, eye=surface.eye.clone(), padded=True, **per_row)
        self._row_names = tuple(per_row)
        # Rows that no step has filled must have finite derivatives, for 0 · NaN is NaN.
        self._whole.normal[:, 2] = self._whole.tangent[:, 0] = self._whole.tangent[:, 3] = 1
        self.scene, self.draws = held(scene, device), held(draws, device)
        self.surface = self._whole

    def fill(self, surface: Surface, scene: Scene, draws: Draws) -> None:
        """Copies a step's."""
        n = len(surface.pixel)
        rows = padded_length(n, self._capacity)
        for name in self._row_names:
            getattr(self._whole, name)[:n].copy_(getattr(surface, name))
        self._whole.pixel[n:rows] = self._pixels
        self._whole.eye.copy_(surface.eye)
        self.surface = replace(
            self._whole,
            **{name: getattr(self._whole, name)[:rows] for name in self._row_names},
        )
        refill(self.scene.lighting, scene.lighting)
        refill(self.scene.background, scene.background)
        refill(self.draws, draws)


def padded_length(n: int, capacity: int) -> int:
    """The least of capacity · 2^(−k/2), k = 0, …, 12, that is not below n."""
    lengths = (math.ceil(capacity * 2 ** (-k / 2)) for k in range(12, -1, -1))
    return next(length for length in lengths if length >= n)
