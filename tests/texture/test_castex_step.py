"""``--preset castex`` against the paper's step, written out in float64 from its formulas.

Visibility, the light's two integrals and all random numbers are ours; docs/castex.md says what in
them is not the paper's. Everything between them is plain torch here: the look-up, the shading,
guidance, the loss and its own gradient, Adam on directions in [−1, 1], the projection.
"""

import copy
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from sdslab.denoisers.unet import UNetDenoiser
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.diffusion_guide import DiffusionGuide
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, philox_normal, philox_uniform
from sdslab.kernels.philox import TIMESTEP_STREAM
from sdslab.optimization.material_optimization import optimize_material
from sdslab.rendering.lighting import Environment
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene
from sdslab.rendering.shading import directional_albedo
from sdslab.texture import two_stages
from sdslab.texture.arguments import Arguments
from sdslab.texture.runner import run
from sdslab.texture.stage import Outcome, Stage
from sdslab.texture.workspace import Workspace
from tests.tiny_pipelines import save_deepfloyd_one, save_deepfloyd_two

STEPS = 25
# What docs/castex.md says to give for the paper's own scenes.
PAPER = (
    "--preset=castex", "--light=studio", "--light-intensity", "2", "2", "--turn-light=step",
    "--background=shared", "--color-mode=castex", "--view-names", "", "", "", "", "",
    "--guidance-scale=25", "--sr-guidance-scale=20", "--seed=42",
)  # fmt: skip
SMALL = (
    "--texture-size=32", "--render-size=32", f"--steps={STEPS}", f"--sr-steps={STEPS}", "--views=4",
    "--turntable=0", "--picture-size=32", "--preview-every=0", "--device=cpu",
)  # fmt: skip


class EnoughError(Exception):
    """Both stages are done: there is nothing to write."""


@dataclass
class Watched:
    """A stage, and what its steps made of what, [h, w, 8] encoded."""

    stage: Stage
    renderer: Renderer
    first: Tensor
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Watched]:
    """Both stages of a run of the command line."""
    folder = tmp_path_factory.mktemp("castex")
    models = (save_deepfloyd_one(folder / "if-1"), save_deepfloyd_two(folder / "if-2"))
    watched: list[Watched] = []

    def watch(stage: Stage, workspace: Workspace, _: object) -> Outcome:
        first = stage.problem.maps().clone()
        watched.append(Watched(stage, workspace.renderer, first))
        for step in optimize_material(stage.problem):
            watched[-1].losses.append(step.loss)
        watched[-1].last = stage.problem.maps().clone()
        if len(watched) == 2:
            raise EnoughError
        return Outcome(STEPS, 0, 0.0, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(two_stages, "run_stage", watch)
        panorama = 2 * torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0))
        small = Environment.from_radiance(panorama, resolution=16)
        patch.setattr(Environment, "of", lambda _: small)
        given = ("torus", "--prompt=a cow", f"--model={models[0]}", f"--sr-model={models[1]}",
                 f"--out={folder / 'run'}", *PAPER, *SMALL)  # fmt: skip
        with suppress(EnoughError):
            run(tyro.cli(Arguments, args=given))
    return watched


class PaperStage:
    """The paper's optimisation of one stage; ``move`` takes its steps."""

    def __init__(self, watched: Watched) -> None:
        self.stage, self.renderer = watched.stage, watched.renderer
        guide = self.stage.problem.guide
        assert isinstance(guide, DiffusionGuide)
        guidance = guide.denoiser
        assert isinstance(guidance, ClassifierFreeGuidance)
        assert isinstance(guidance.model, UNetDenoiser)
        self.seed, self.scale = guide.drawn.seed, guidance.scale
        self.unet: Any = copy.deepcopy(guidance.model.model.unet).double()
        self.prompts = guidance.model.prompts
        embeddings = self.prompts.embeddings.double()
        self.states = embeddings[[guidance.unconditional, 0]]
        self.alpha_bars = paper_alpha_bars()
        self.frozen = guide.super_resolution and raw(guide.super_resolution.stage_one)
        self.size = guidance.model.model.size
        self.theta = raw(watched.first)
        self.losses: list[float] = []

    def move(self) -> Tensor:
        """Returns the material after all steps, with directions in [−1, 1]."""
        theta = self.theta.requires_grad_()
        adam = torch.optim.Adam([theta], lr=0.01, foreach=False)
        decay = torch.optim.lr_scheduler.StepLR(adam, step_size=100, gamma=0.9)
        for index in range(STEPS):
            adam.zero_grad()
            loss = self.loss(theta, index)
            loss.backward()
            self.losses.append(loss.item())
            adam.step()
            decay.step()
            with torch.no_grad():
                normal = F.normalize(theta[..., 5:], dim=-1)
                theta[..., :5] = theta[..., :5].clamp(0, 1)
                theta[..., 5:7] = normal[..., :2].clamp(-0.5, 0.5)
                theta[..., 7:] = normal[..., 2:].clamp(0.5, 1)
        return theta.detach()

    def loss(self, theta: Tensor, index: int) -> Tensor:
        """½ w Σ (x − sg(x̂_0))² / B."""
        scene = self.stage.problem.scenes.sample(index, 4, self.renderer.extreme_points)
        surface = self.renderer.see(scene.cameras, 32)
        x = 2 * picture(theta, surface, scene) - 1
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        progress = (index / STEPS) ** 0.5
        t_min, t_max = int(300 - 100 * progress), int(980 - 480 * progress)
        one = NoiseKey(self.seed, index, torch.arange(1), TIMESTEP_STREAM)
        t = t_min + int(philox_uniform(one, 1) * (t_max - t_min))
        alpha_bar = self.alpha_bars[t]
        with torch.no_grad():
            x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * self.noise(x, index)
            given, options = x_t, {}
            if self.frozen is not None:
                given = torch.cat((x_t, self.condition(surface, scene, x, index)), dim=1)
                options["class_labels"] = torch.full((8,), 500)
            output = self.unet(
                torch.cat((given, given)),
                torch.full((8,), t),
                encoder_hidden_states=self.states.repeat_interleave(4, 0),
                return_dict=False,
                **options,
            )[0]
            uncond, cond = output[:, :3].chunk(2)
            eps_hat = uncond + self.scale * (cond - uncond)
            x0_hat = ((x_t - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()).clamp(-1, 1)
        weight = (alpha_bar * (1 - alpha_bar)).sqrt()
        return 0.5 * weight * (x - x0_hat).square().sum() / len(x)

    def noise(self, x: Tensor, index: int, stream: int = 0) -> Tensor:
        """ε like x: the run's own draw."""
        key = NoiseKey(self.seed, index, torch.arange(len(x)), stream)
        return philox_normal(key, x.shape[1:]).double()

    def condition(self, surface: Surface, scene: Scene, x: Tensor, index: int) -> Tensor:
        """Stage I's picture, to a quarter of its size and back by the nearest, noised to 500."""
        assert self.frozen is not None
        low = F.interpolate(picture(self.frozen, surface, scene), (self.size // 4,) * 2)
        shown = 2 * F.interpolate(low, (self.size,) * 2) - 1
        alpha_bar = self.alpha_bars[500]
        noise = self.noise(x, index, SR_CONDITION_STREAM)
        return alpha_bar.sqrt() * shown + (1 - alpha_bar).sqrt() * noise


def paper_alpha_bars() -> Tensor:
    """squaredcos_cap_v2, [1000]."""
    edges = ((torch.arange(1001).double() / 1000 + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    return (edges[1:] / edges[:-1]).clamp_min(0.001).cumprod(0)


def raw(maps: Tensor) -> Tensor:
    """The paper's θ: float64, with directions themselves in place of their encoding."""
    maps = maps.double().clone()
    maps[..., 5:] = 2 * maps[..., 5:] - 1
    return maps


def picture(theta: Tensor, surface: Surface, scene: Scene) -> Tensor:
    """[4, 3, 32, 32] without any conversion of colours."""
    lighting = scene.lighting
    assert lighting is not None
    texel = trilinear(theta, surface.uv.double(), surface.uv_derivatives.double())
    albedo, roughness, metallic = texel[:, :3], texel[:, 3].clamp(1e-3, 1), texel[:, 4:5]
    normal, tangent = surface.normal.double(), surface.tangent.double()
    along = tangent[:, :3] - normal * (normal * tangent[:, :3]).sum(1, keepdim=True)
    along = F.normalize(along, dim=1)
    across = torch.linalg.cross(normal, along) * tangent[:, 3:].sign()
    n = F.normalize(texel[:, 5:6] * along + texel[:, 6:7] * across + texel[:, 7:] * normal, dim=1)
    v = F.normalize(surface.eye.double()[surface.view] - surface.position.double(), dim=1)
    n_dot_v = (n * v).sum(1, keepdim=True)
    r = 2 * n_dot_v * n - v
    cosine, sine = (
        lighting.yaw.double().cos()[surface.view],
        lighting.yaw.double().sin()[surface.view],
    )

    def turned(d: Tensor) -> Tensor:
        x, y, z = d.unbind(1)
        return torch.stack((cosine * x - sine * z, y, sine * x + cosine * z), dim=1)

    environment = lighting.environment.to(dtype=torch.float64)
    a, b, _ = directional_albedo(n_dot_v[:, 0].clamp(1e-4, 1), roughness)
    f0 = 0.04 * (1 - metallic) + metallic * albedo
    color = environment.irradiance(turned(n)) * (1 - metallic) * albedo
    color = color + environment.radiance(turned(r), roughness) * (f0 * a[:, None] + b[:, None])
    color = 2.0 * color  # the paper's HDRI
    pixels = scene.background.double().movedim(1, -1).reshape(-1, 3)
    pixels = pixels.index_copy(0, surface.pixel, color)
    return pixels.view(4, 32, 32, 3).movedim(-1, 1)


def trilinear(maps: Tensor, uv: Tensor, derivatives: Tensor) -> Tensor:
    """[n, 8] from [s, s, 8] that repeats; the longer axis of a pixel's footprint is the level's."""
    levels = [maps]
    while len(levels[-1]) > 1:
        levels.append(F.avg_pool2d(levels[-1].movedim(-1, 0), 2).movedim(0, -1))
    footprint = torch.linalg.svdvals(derivatives.view(-1, 2, 2) * len(maps))[:, 0]
    lod = footprint.clamp_min(1e-12).log2().clamp(0, len(levels) - 1)
    result = torch.zeros(len(uv), maps.shape[-1], dtype=maps.dtype)
    for number, level in enumerate(levels):
        share = (1 - (lod - number).abs()).clamp_min(0)
        place = uv * len(level) - 0.5
        corner = place.floor()
        x, y = (place - corner).unbind(1)
        column, row = corner.long().unbind(1)
        for down, across, part in (
            (0, 0, (1 - x) * (1 - y)), (0, 1, x * (1 - y)), (1, 0, (1 - x) * y), (1, 1, x * y),
        ):  # fmt: skip
            value = level[(row + down) % len(level), (column + across) % len(level)]
            result = result + (share * part)[:, None] * value
    return result


@pytest.mark.parametrize("number", [0, 1], ids=["stage I", "stage II"])
def test_the_presets_steps_are_the_papers(number: int, stages: list[Watched]):
    watched = stages[number]
    paper = PaperStage(watched)
    start = paper.theta.clone()
    expected, moved = paper.move() - start, raw(watched.last) - start
    assert paper.losses == pytest.approx(watched.losses, rel=1e-3)
    assert expected.abs().max() > 0.05
    for channels in (slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 8)):
        ours, theirs = moved[..., channels], expected[..., channels]
        assert (ours - theirs).norm() < 0.01 * theirs.norm(), channels


@pytest.mark.parametrize("number", [0, 1], ids=["stage I", "stage II"])
def test_the_papers_scenes_and_numbers_can_be_had(number: int, stages: list[Watched]):
    """Every option that docs/castex.md names."""
    paper = PaperStage(stages[number])
    assert paper.scale == (25, 20)[number]
    assert paper.seed % 2**41 == 42
    scenes = [
        paper.stage.problem.scenes.sample(i, 4, paper.renderer.extreme_points) for i in range(2)
    ]
    for scene in scenes:
        assert scene.lighting is not None
        assert scene.lighting.intensity.tolist() == [2] * 4
        assert len(scene.lighting.yaw.unique()) == 1
        assert len(scene.background.movedim(1, -1).reshape(-1, 3).unique(dim=0)) == 1
        assert len(scene.cameras.eye.norm(dim=1).round(decimals=4).unique()) == 1
    yaws = {float(scene.lighting.yaw[0]) for scene in scenes if scene.lighting is not None}
    assert len(yaws) == 2
    assert not scenes[0].background.equal(scenes[1].background)
    rows = paper.prompts.embeddings[:5]
    assert rows.equal(rows[:1].expand_as(rows))  # no words for the view


def test_the_presets_material_starts_at_a_half_without_bumps(stages: list[Watched]):
    start = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0])
    assert (stages[0].first == start).all()
