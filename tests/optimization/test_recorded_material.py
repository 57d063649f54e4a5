"""A material's recorded steps are the ordinary ones; captured where there is a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import (
    WEIGHTINGS,
    NoiseSchedule,
    SqrtAnnealedTimesteps,
)
from sdslab.diffusion_guide import DiffusionGuide, Draw, SuperResolution
from sdslab.diffusion_space import PixelSpace
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.optimization.material_optimization import (
    MaterialConfig,
    MaterialProblem,
    maps_of,
    optimize_material,
    padded_length,
)
from sdslab.optimization.optimize import Step, copy_into, static_copy
from sdslab.optimization.optimizer_state import OptimizeConfig, Optimizer, OptimizerState
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.lighting import Environment, Lamp, LightSampler
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.texels import SeenTexels
from tests.recorded_calls import watch_recorded_calls

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
STEPS, SIZE, RESOLUTION = 7, 32, 48


class Shifted(Denoiser):
    """Depends on all that it is given."""

    def __init__(self, device: str) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()
        self.rows = torch.linspace(-0.5, 0.5, 4, device=device)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        assert condition.prompt is not None
        x0_hat = 0.3 * x_t + self.rows[condition.prompt].view(-1, 1, 1, 1)
        if condition.low_resolution is not None:
            x0_hat = x0_hat + 0.2 * condition.low_resolution
        return Prediction(x0_hat * (t.view(-1, 1, 1, 1) / 1000), "x0")


class SometimesNaN(Shifted):
    """Fails at the first view's smallest timesteps."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        prediction = super().predict(x_t, t, condition)
        broken = torch.where(t < 400, torch.nan, 1.0).view(-1, 1, 1, 1)
        return replace(prediction, output=prediction.output * broken)


@dataclass
class Run:
    """What one optimisation is made of; `steps` takes it."""

    device: str
    stage: int = 1
    lamp: Lamp = "none"
    supersampling: int = 1
    network: bool = False
    frozen: tuple[str, ...] = ()
    denoiser: type[Shifted] = Shifted
    optimizer: Optimizer = "adam"
    rate: float = 0.02

    def __post_init__(self) -> None:
        device = torch.device(self.device)
        self.renderer = Renderer(
            PROCEDURAL_MESHES["torus"](), make_backend("auto", device), device,
            supersampling=self.supersampling,
        )  # fmt: skip
        rows = torch.linspace(0.2, 1.5, 16)[:, None, None].expand(16, 32, 3).contiguous()
        lights = tuple(
            Environment.from_radiance(scale * rows, resolution=16).to(device) for scale in (1, 0.5)
        )
        light = LightSampler(lights, intensity_range=(0.5, 2.0), seed=1, lamp=self.lamp)
        # From so near and so far that the covered pixels are of several lengths.
        cameras = CameraSampler(radius=(2.2, 6.6))
        self.scenes = SceneSampler(cameras, light, "random", RESOLUTION, 1, device)
        generator = torch.Generator().manual_seed(0)
        maps = 0.3 + 0.4 * torch.rand(SIZE, SIZE, 8, generator=generator)
        theta: Parameterization = TexelGrid(maps)
        if self.network:
            maps = maps.tile(2, 2, 1)
            theta = DeepImagePrior((1, 8, 2 * SIZE, 2 * SIZE), seed=0)
        self.theta = theta.to(device)
        sr = SuperResolution(maps.flip(0).to(device), 8) if self.stage == 2 else None
        self.guide = DiffusionGuide(
            self.denoiser(self.device),
            lambda cameras: (cameras.eye[:, 1] > 0).long(),
            self.renderer,
            Draw(SqrtAnnealedTimesteps(), STEPS, 7),
            WEIGHTINGS["x0_castex"],
            1.0,
            super_resolution=sr,
        )
        self.config = MaterialConfig(
            2,
            OptimizeConfig(STEPS, self.optimizer, self.rate, "cosine"),
            self.frozen,
            maps,
        )
        self.seen = SeenTexels((maps.shape[0], maps.shape[1]), device)

    def steps(self, *, recorded: bool, state: OptimizerState | None = None) -> Iterator[Step]:
        problem = MaterialProblem(
            self.theta, self.renderer, self.scenes, PixelSpace(24), self.guide, self.config,
            self.seen,
        )  # fmt: skip
        return optimize_material(problem, state, record=recorded)


RUNS: dict[str, dict[str, Any]] = {
    "stage I": {},
    "stage II": {"stage": 2},
    "stage II, gradient descent": {"stage": 2, "optimizer": "sgd"},
    "a point light": {"lamp": "point"},
    "a directional light, sub-pixels": {"lamp": "directional", "supersampling": 2},
    "frozen maps": {"frozen": ("metallic", "normal")},
    # Not Adam: it moves biases whose gradient is nothing but rounding, in whichever direction.
    "a network with a frozen map": {
        "network": True,
        "frozen": ("roughness",),
        "optimizer": "sgd",
        "rate": 1e-7,
    },
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RUNS)
def test_its_steps_are_the_ordinary_ones(name: str, device: str):
    ordinary, recorded = Run(device, **RUNS[name]), Run(device, **RUNS[name])
    before = maps_of(recorded.theta).detach().clone()
    expected = [(step.loss, step.gradient_norm) for step in ordinary.steps(recorded=False)]
    actual = [(step.loss, step.gradient_norm) for step in recorded.steps(recorded=True)]
    assert len(actual) == STEPS
    # Padding adds zeros, and so the sums another order; the learning rate is float32.
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0)
    # A network's kinks make more of the difference at every step.
    tolerance = 1e-3 if recorded.network else 2e-4
    losses, true_losses = ([loss for loss, _ in steps] for steps in (actual, expected))
    torch.testing.assert_close(losses, true_losses, rtol=tolerance, atol=0)
    maps, truth = maps_of(recorded.theta, recorded.config), maps_of(ordinary.theta, ordinary.config)
    moved = (truth - before).norm()
    assert moved > 0.01
    assert (maps - truth).norm() < 0.02 * moved
    assert recorded.seen.marks.equal(ordinary.seen.marks)


@pytest.mark.parametrize("device", DEVICES)
def test_it_goes_on_from_a_snapshot(device: str):
    whole, stopped, resumed = (Run(device, stage=2) for _ in range(3))
    list(whole.steps(recorded=True))
    state = OptimizerState()
    for step in stopped.steps(recorded=True, state=state):
        if step.index == 3:
            break
    tensors, numbers = state.snapshot()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    later = [s.index for s in resumed.steps(recorded=True, state=OptimizerState(tensors, numbers))]
    assert later == [3, 4, 5, 6]
    difference = maps_of(resumed.theta) - maps_of(whole.theta)
    # A GPU adds a texel's gradients in any order.
    assert difference.abs().max() < (1e-3 if device == "cuda" else 1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_of_a_broken_output_leave_the_material_as_it_is(device: str):
    run = Run(device, denoiser=SometimesNaN)
    before, skipped = maps_of(run.theta).detach().clone(), []
    for step in run.steps(recorded=True):
        if skipped and skipped[-1]:
            assert maps_of(run.theta).equal(before)
        before = maps_of(run.theta).detach().clone()
        skipped.append(step.skipped)
    assert True in skipped
    assert False in skipped
    assert maps_of(run.theta).isfinite().all()


@pytest.mark.parametrize("name", RUNS)
def test_nothing_that_is_recorded_needs_the_host(name: str, monkeypatch: pytest.MonkeyPatch):
    calls = watch_recorded_calls(monkeypatch)
    list(Run("cpu", **RUNS[name]).steps(recorded=True))
    assert len(calls) == 2 * (STEPS - 1)
    assert min(calls) > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_replays_two_graphs(monkeypatch: pytest.MonkeyPatch):
    replays: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))[1]
    )
    run = Run("cuda", stage=2)
    list(run.steps(recorded=True))
    assert len(replays) == 2 * STEPS
    assert 2 < len(set(replays)) <= STEPS + 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("supersampling", [1, 2])
def test_padding_shows_nothing(supersampling: int, device: str):
    run = Run(device, supersampling=supersampling)
    scene = run.scenes.sample(0, 2, run.renderer.extreme_points)
    surface = run.renderer.see(scene.cameras, RESOLUTION)
    n, b = len(surface.pixel), len(scene.cameras)
    rows = {
        name: torch.cat((value, value.flip(0)))
        for name, value in vars(surface).items()
        if isinstance(value, Tensor) and name != "eye"
    }
    rows["pixel"][n:] = b * RESOLUTION**2
    padded = replace(surface, padded=True, **rows)
    assert padded.coverage().equal(surface.coverage())
    maps = maps_of(run.theta)
    pictures = [
        run.renderer.picture(seen, maps, scene.lighting, scene.background)
        for seen in (surface, padded)
    ]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(p.square().sum(), maps, retain_graph=True) for p in pictures]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capacity", [1, 7, 4096, 8 * 512**2])
def test_lengths_are_few_and_long_enough(capacity: int):
    counts = sorted({*range(0, capacity, max(1, capacity // 997)), capacity})
    lengths = [padded_length(n, capacity) for n in counts]
    assert all(n <= length <= capacity for n, length in zip(counts, lengths, strict=True))
    assert len(set(lengths)) <= 13
    assert lengths == sorted(lengths)
    smallest = min(lengths)
    assert all(
        length <= 1.42 * n + 1 for n, length in zip(counts, lengths, strict=True) if n > smallest
    )


def test_memory_is_filled_with_values_like_the_first():
    @dataclass(frozen=True)
    class Inner:
        value: Tensor

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        other: Tensor | None
        name: str = "a"

    first = Outer(Inner(torch.zeros(1).expand(3)), None)
    memory = static_copy(first, torch.device("cpu"))
    where = memory.inner.value.data_ptr()
    copy_into(memory, Outer(Inner(torch.arange(3.0)), None))
    assert memory.inner.value.tolist() == [0, 1, 2]
    assert memory.inner.value.data_ptr() == where
    assert first.inner.value.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"given \[3\] as at first, got \[4\]; capture it anew"):
        copy_into(memory, Outer(Inner(torch.zeros(4)), None))
    with pytest.raises(ValueError, match="given None as at first, got tensor"):
        copy_into(memory, Outer(Inner(torch.zeros(3)), torch.zeros(1)))
    with pytest.raises(ValueError, match="given 'a' as at first, got 'b'"):
        copy_into(memory, Outer(Inner(torch.zeros(3)), None, "b"))
