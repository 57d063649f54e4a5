"""A texture step as data, and as the program takes it, with a clock at its seams."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import (
    NoiseSchedule,
    SqrtAnnealedTimesteps,
    weighting_named,
)
from sdslab.denoisers.prompts import VIEW_NAMES, Prompts, view_of
from sdslab.denoisers.unet import GuidanceModel
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.diffusion_guide import DiffusionGuide, Draw, SuperResolution
from sdslab.diffusion_space import PixelSpace
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh_io import load_mesh
from sdslab.optimization.material_optimization import (
    MaterialConfig,
    MaterialProblem,
    optimize_material,
    padded_length,
)
from sdslab.optimization.optimize import Step
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.lighting import Environment, LightSampler
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, Scenes, SceneSampler
from sdslab.rendering.texels import SeenTexels
from sdslab.runs.from_toml import Between, PowerOfTwo
from sdslab.study.measuring import WHOLE, PhaseClock
from sdslab.study.unet_configurations import STAGE_TWO, build_unet
from sdslab.tensor_types import Diffused, Timesteps

GUIDANCE_SCALE = {1: 15.0, 2: 10.0}
LEARNING_RATE = 0.01
SEED = 0
STEPS = 500  # of the stage whose beginning is timed
TOKENS = 77
# CasTex's cameras at the middle of their range: steps of equal work, so that a few tell the time.
MEAN_DISTANCE = CameraSampler(radius=(4.4, 4.4))


@dataclass(frozen=True)
class TextureStepSettings:
    """What every row shares."""

    mesh: str = "torus"
    """A file, or a built-in mesh."""
    light: str = "studio"
    """A built-in environment, or a panorama."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    repeats: int = 15
    """Timed steps of each row, after two that are not."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class StepCase:
    """A step of one stage, ours and plain eager."""

    name: str
    label: str
    device: Literal["cpu", "cuda"]
    """The kind of device that it is meant for; on another it is left out."""
    unet: Literal["IF-I-M", "IF-I-XL", "IF-II-L", "tiny-I", "tiny-II"]
    """A name of ``sdslab.study.unet_configurations.CONFIGURATIONS``; it decides the stage."""
    views: Annotated[int, Between(1, 1024)]
    render_size: Annotated[int, Between(1, 8192)]
    texture_size: Annotated[int, PowerOfTwo(1, 8192)]

    @property
    def shape(self) -> str:
        """Views, picture and texture, for people."""
        return f"{self.views} × {self.render_size}², {self.texture_size}²"


@dataclass(frozen=True, eq=False)
class StepProblem:
    """What both implementations are given.

    Attributes:
        stage: 1 or 2.
        unet: of random weights, contiguous in memory.
        dtype: of the UNet.
        embeddings: [6, tokens, channels], a random row for each view name and the empty prompt.
        schedule: of the noise.
        renderer: of the mesh.
        scenes: views, lights and backgrounds.
        initial: θ at the start, [h, w, 8].
        stage_one: the frozen material that stage II is shown, [h, w, 8]; None in stage I.
        views: pictures a step.
        size: height and width of x_t.
    """

    stage: int
    unet: Any
    dtype: torch.dtype
    embeddings: Tensor
    schedule: NoiseSchedule
    renderer: Renderer
    scenes: SceneSampler
    initial: Tensor
    stage_one: Tensor | None
    views: int
    size: int

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.renderer.device

    @classmethod
    def of(cls, case: StepCase, settings: TextureStepSettings, device: torch.device):
        """Builds everything that does not depend on the implementation."""
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        unet = build_unet(case.unet, device, dtype)
        channels = unet.config["encoder_hid_dim"]
        generator = torch.Generator().manual_seed(SEED)
        embeddings = torch.randn(len(VIEW_NAMES) + 1, TOKENS, channels, generator=generator)
        lights = LightSampler((Environment.of(settings.light).to(device),), seed=SEED)
        size = case.texture_size
        shaded = constant_material(size, size)
        # Stage II begins with something to sharpen.
        noise = 0.2 * torch.rand(shaded.shape, generator=generator) - 0.1
        material = (shaded + noise).clamp(0, 1).to(device)
        stage = 2 if case.unet in STAGE_TWO else 1
        return cls(
            stage,
            unet,
            dtype,
            embeddings.to(device, dtype),
            NoiseSchedule.deepfloyd_if(),
            Renderer(load_mesh(settings.mesh), make_backend("auto", device), device),
            SceneSampler(MEAN_DISTANCE, lights, "random", case.render_size, SEED, device),
            material,
            material.clone() if stage == 2 else None,
            case.views,
            int(unet.config["sample_size"]),
        )


class OurStep:
    """The program's own loop; a call takes one step, from one gradient to the next.

    Args:
        problem: what it is given.
        unet: its copy of the UNet, which it may lay out as it likes.
        clock: told where each phase begins.
        recorded: replay CUDA graphs, whose inside the clock does not see.
    """

    def __init__(
        self, problem: StepProblem, unet: Any, clock: PhaseClock, *, recorded: bool = False
    ) -> None:
        self._clock, self._recorded = clock, recorded
        self.theta = TexelGrid(problem.initial).to(problem.device)
        unet = unet.to(memory_format=torch.channels_last)
        model = GuidanceModel(
            kind="IF-I" if problem.stage == 1 else "IF-II",
            unet=unet,
            schedule=problem.schedule,
            condition_schedule=problem.schedule,
            prediction_type="epsilon",
            space=PixelSpace(problem.size),
            size=problem.size,
            low_size=problem.size // 4,
            thresholds=(0.95, 1.5),
            device=problem.device,
        )
        prompts = Prompts(problem.embeddings)
        guided: Denoiser = ClassifierFreeGuidance(
            model.denoiser(prompts), prompts.unconditional, GUIDANCE_SCALE[problem.stage]
        )
        renderer, scenes = problem.renderer, problem.scenes
        self.lengths: set[int] = set()
        """Padded lengths of the steps so far; a recorded step is captured at each new one."""
        if recorded:
            renderer = _noting(renderer, self.lengths)
        else:
            renderer, scenes = _clocked(renderer, clock), _ClockedScenes(scenes, clock)
            guided = _ClockedDenoiser(guided, clock)
        frozen, sr = problem.stage_one, None
        if frozen is not None:
            sr = SuperResolution(frozen, model.low_size)
        guide = DiffusionGuide(
            guided,
            lambda cameras: view_of(cameras.eye),
            renderer,
            Draw(SqrtAnnealedTimesteps(), STEPS, SEED, shared_timestep=True),
            weighting_named("x0_castex"),
            clamp=1.0,
            super_resolution=sr,
        )
        size = (problem.initial.shape[0], problem.initial.shape[1])
        material = MaterialProblem(
            self.theta,
            renderer,
            scenes,
            model.space,
            guide,
            MaterialConfig(problem.views, OptimizeConfig(STEPS, learning_rate=LEARNING_RATE)),
            SeenTexels(size, problem.device),
        )
        self._steps: Iterator[Step] = optimize_material(material, record=recorded)

    def __call__(self) -> None:
        """Moves θ by the last gradient and computes the next one."""
        self._clock.mark(WHOLE if self._recorded else "optimizer")
        next(self._steps)
        self._clock.mark(None)


@final
class _ClockedDenoiser(Denoiser):
    def __init__(self, denoiser: Denoiser, clock: PhaseClock) -> None:
        self.denoiser, self.schedule, self._clock = denoiser, denoiser.schedule, clock

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        self._clock.mark("unet")
        prediction = self.denoiser.predict(x_t, t, condition)
        self._clock.mark("gradient")
        return prediction


@dataclass(frozen=True)
class _ClockedScenes:
    scenes: Scenes
    clock: PhaseClock

    @property
    def resolution(self) -> int:
        return self.scenes.resolution

    def sample(self, step: int, batch: int, points: Tensor) -> Scene:
        self.clock.mark("render")
        return self.scenes.sample(step, batch, points)


def _noting(renderer: Renderer, lengths: set[int]) -> Renderer:
    """The same renderer, which notes the padded length of what it sees."""
    copy = Renderer(renderer.mesh, renderer.backend, renderer.device)
    see: Callable[..., Surface] = copy.see

    def noted(*arguments: Any) -> Surface:
        surface = see(*arguments)
        b, height, width = surface.shape
        capacity = b * height * width * surface.supersampling**2
        lengths.add(padded_length(len(surface.pixel), capacity))
        return surface

    copy.see = noted  # pyright: ignore[reportAttributeAccessIssue]
    return copy


def _clocked(renderer: Renderer, clock: PhaseClock) -> Renderer:
    """The same renderer, whose pictures are timed as such."""
    copy = Renderer(renderer.mesh, renderer.backend, renderer.device)
    picture: Callable[..., Tensor] = copy.picture

    def timed(*arguments: Any) -> Tensor:
        clock.mark("render")
        result = picture(*arguments)
        clock.mark("condition")
        return result

    copy.picture = timed  # pyright: ignore[reportAttributeAccessIssue]
    return copy
