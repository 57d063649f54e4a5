"""A material moved by a distillation gradient through the renderer: every stage, every recovery."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import final

import torch
from torch import Tensor

from sdslab.diffusion_space import DiffusionSpace
from sdslab.kernels import SDSResult
from sdslab.meshes.material import CHANNELS, MAPS, renormalized
from sdslab.optimization.optimize import Step, copy_into, optimize, static_copy
from sdslab.optimization.optimizer_state import OptimizeConfig, OptimizerState
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, Scenes
from sdslab.rendering.texels import SeenTexels, material_bounds, project_material_
from sdslab.tensor_types import Timesteps

# From (z detached, step index, the step's scene, what its pixels show) to the gradient of z.
Guide = Callable[[Tensor, int, Scene, Surface], SDSResult]
# From what the pixels show, the maps [h, w, 8] and the scene to pictures [b, c, height, width].
Picture = Callable[[Surface, Tensor, Scene], Tensor]


@dataclass(frozen=True, eq=False)
class Draws:
    """What a guide draws for one step.

    Attributes:
        step: [1] int64, counts the noise.
        t: [b], the timesteps.
        prompt: [b] int64, rows of the prompts.
    """

    step: Tensor
    t: Timesteps
    prompt: Tensor


class RecordableGuide(ABC):
    """A `Guide` that draws on the host and computes on the device: the latter can be recorded."""

    @abstractmethod
    def draw(self, index: int, cameras: Cameras) -> Draws:
        """Draws for step ``index``, on the CPU."""

    @abstractmethod
    def gradient(self, z: Tensor, draws: Draws, scene: Scene, surface: Surface) -> SDSResult:
        """The gradient of z; all tensors on its device, but for the cameras, which are not read.

        Args:
            z: detached.
            draws: of the step.
            scene: its light and background.
            surface: what its pixels show.
        """

    @final
    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        """The gradient of z in step ``index``."""
        draws = static_copy(self.draw(index, scene.cameras), z.device)
        return self.gradient(z, draws, scene, surface)


@dataclass(frozen=True)
class MaterialConfig:
    """What each step does."""

    views: int
    """Pictures a step."""
    optimization: OptimizeConfig
    """How θ moves."""
    frozen: tuple[str, ...] = ()
    """Names of `MAPS` that stay as they start."""
    initial: Tensor | None = None
    """[h, w, 8] that a network's frozen maps are taken from, for it starts where it likes."""

    def frozen_channels(self, device: torch.device) -> Tensor:
        """Which of the eight channels are frozen, [8] bool."""
        return _channels_of(self.frozen, device)


@cache
def _channels_of(names: tuple[str, ...], device: torch.device) -> Tensor:
    channels = torch.zeros(CHANNELS, dtype=torch.bool)
    for name in names:
        channels[MAPS[name]] = True
    return channels.to(device)


def maps_of(theta: Parameterization, config: MaterialConfig | None = None) -> Tensor:
    """g(θ) as the material's maps [h, w, 8], attached to θ's graph.

    A grid of texels is kept valid by projection after each step, its frozen maps too. The output
    of a network, in (0, 1), is spread over the valid range instead, its normals are normalised, and
    ``config.initial`` takes the place of the frozen maps.
    """
    maps = theta().squeeze(0).movedim(0, -1)
    if isinstance(theta, TexelGrid):
        return maps
    lower, upper = material_bounds(maps.device, maps.dtype)
    maps = renormalized(lower + (upper - lower) * maps)
    if config is None or config.initial is None or not config.frozen:
        return maps
    return torch.where(config.frozen_channels(maps.device), config.initial.to(maps), maps)


@dataclass(frozen=True, eq=False)
class MaterialProblem:
    """What is moved, how it is seen, what leads it, and by which optimiser.

    Attributes:
        theta: eight channels.
        renderer: of the mesh.
        scenes: views, lights and backgrounds of each step.
        space: of the diffusion model.
        guide: the gradient of z; it may render other materials in the same scene.
        config: steps, optimiser and frozen maps.
        seen: of the maps' size; what the views look at is marked.
        picture: what the space encodes, differentiable in the maps; None is the shaded material.
        memory: tensors that the guide carries from step to step, changed in place.
    """

    theta: Parameterization
    renderer: Renderer
    scenes: Scenes
    space: DiffusionSpace
    guide: Guide
    config: MaterialConfig
    seen: SeenTexels
    picture: Picture | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def maps(self) -> Tensor:
        """The material as it is now, [h, w, 8], detached."""
        with torch.no_grad():
            return maps_of(self.theta, self.config).detach()


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a step's gradient reads.

    Attributes:
        index: of the step.
        scene: its views, lights and backgrounds.
        surface: what its pixels show.
        draws: the guide's, where the step is recorded.
    """

    index: int
    scene: Scene
    surface: Surface
    draws: Draws | None = None


def optimize_material(
    problem: MaterialProblem, state: OptimizerState | None = None, *, record: bool = False
) -> Iterator[Step]:
    """Moves θ along a distillation gradient of its pictures, step by step.

    Cameras, lights, backgrounds and timesteps are drawn on the host and visibility is found by the
    rasterizer, which waits for the GPU. With ``record`` the rest is two CUDA graphs: look-up,
    shading, encoding, the model, the distillation gradient and its way back to θ; Adam and
    projection. The covered pixels are padded to one of 13 lengths, of which each has a graph.

    Args:
        problem: what is moved, seen how, led by what.
        state: what to go on from, as `optimize` takes it.
        record: replay the steps as CUDA graphs; the guide must be a `RecordableGuide`.

    Yields:
        One `Step` before each update; its ``z`` is what the diffusion model saw.

    Raises:
        TypeError: the guide cannot be recorded.
    """
    guide, config, device = problem.guide, problem.config, problem.renderer.device
    if record and not isinstance(guide, RecordableGuide):
        raise TypeError(f"a recorded guide must be a RecordableGuide, got {type(guide).__name__}")
    if config.initial is not None:
        config = replace(config, initial=config.initial.to(device))
    renderer, scenes, theta = problem.renderer, problem.scenes, problem.theta
    static: _StaticInputs | None = None

    def inputs(index: int) -> _Inputs:
        nonlocal static
        scene = scenes.sample(index, config.views, renderer.extreme_points)
        surface = renderer.see(scene.cameras, scenes.resolution)
        problem.seen.mark(surface)
        if not record:
            return _Inputs(index, scene, surface)
        assert isinstance(guide, RecordableGuide)
        draws = guide.draw(index, scene.cameras)
        if static is None:
            static = _StaticInputs(surface, scene, draws, device)
        return static.filled(surface, scene, draws)

    def diffused(step: _Inputs) -> Tensor:
        scene, surface, maps = step.scene, step.surface, maps_of(theta, config)
        if problem.picture is not None:
            return problem.space.encode(problem.picture(surface, maps, scene))
        picture = renderer.picture(surface, maps, scene.lighting, scene.background)
        return problem.space.encode(picture)

    def gradient(z: Tensor, step: _Inputs) -> SDSResult:
        if step.draws is None:
            return guide(z, step.index, step.scene, step.surface)
        assert isinstance(guide, RecordableGuide)
        return guide.gradient(z, step.draws, step.scene, step.surface)

    yield from optimize(
        theta.parameters(),
        diffused,
        gradient,
        config.optimization,
        projection(theta, config),
        state,
        inputs,
        record=record,
    )


def projection(theta: Parameterization, config: MaterialConfig) -> Callable[[], None]:
    """A function that keeps a grid of texels valid, and its frozen maps as they are now."""
    if not isinstance(theta, TexelGrid):
        return lambda: None
    texels, scale = theta.texels.detach(), theta.scale
    initial = texels.clone() if config.frozen else None
    frozen = config.frozen_channels(texels.device)

    def project() -> None:
        if scale is not None:
            texels.mul_(scale)
        project_material_(texels)
        if scale is not None:
            texels.div_(scale)
        if initial is not None:
            texels.copy_(torch.where(frozen, initial, texels))

    return project


@final
class _StaticInputs:
    """Memory on the device that recorded steps read.

    Args:
        surface: like those to come.
        scene: likewise; its cameras, which no recorded step reads, stay.
        draws: likewise.
        device: where the steps are recorded.
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
        self._surface = replace(surface, eye=surface.eye.clone(), padded=True, **per_row)
        self._row_names = tuple(per_row)
        # Rows that no step has filled must have finite derivatives, for 0 · NaN is NaN.
        self._surface.normal[:, 2] = 1
        self._surface.tangent[:, 0] = self._surface.tangent[:, 3] = 1
        self._scene, self._draws = static_copy(scene, device), static_copy(draws, device)
        self._of_length: dict[int, _Inputs] = {}

    def filled(self, surface: Surface, scene: Scene, draws: Draws) -> _Inputs:
        """Copies a step's; the same object for each padded length."""
        n = len(surface.pixel)
        rows = padded_length(n, self._capacity)
        for name in self._row_names:
            getattr(self._surface, name)[:n].copy_(getattr(surface, name))
        self._surface.pixel[n:rows] = self._pixels
        self._surface.eye.copy_(surface.eye)
        copy_into(self._scene.lighting, scene.lighting)
        copy_into(self._scene.background, scene.background)
        copy_into(self._draws, draws)
        if rows not in self._of_length:
            padded = {name: getattr(self._surface, name)[:rows] for name in self._row_names}
            self._of_length[rows] = _Inputs(
                0, self._scene, replace(self._surface, **padded), self._draws
            )
        return self._of_length[rows]


def padded_length(n: int, capacity: int) -> int:
    """The least of capacity · 2^(−k/2), k = 0, …, 12, that is not below n."""
    lengths = (math.ceil(capacity * 2 ** (-k / 2)) for k in range(12, -1, -1))
    return next(length for length in lengths if length >= n)
