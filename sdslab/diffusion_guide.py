"""Guidance by a diffusion model: SDS in stage I, and SR-SDS on stage I's renders in stage II."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, TimestepSampler, Weighting
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import sr_sds_gradient
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, SDSResult, SRMode
from sdslab.optimization.material_optimization import Draws, RecordableGuide
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene

# From (z, t, the key of the noise, the views' prompts, step / steps) to the gradient of z.
Distill = Callable[[Tensor, Tensor, NoiseKey, Condition, float], SDSResult]


@dataclass(frozen=True)
class Draw:
    """How a step's t and ε are drawn.

    Attributes:
        timesteps: where t is drawn.
        steps: of the stage, for the annealing of t.
        seed: of t and ε.
        shared_timestep: one t a step, as CasTex has it, instead of one a picture.
    """

    timesteps: TimestepSampler
    steps: int
    seed: int
    shared_timestep: bool = False


@dataclass(frozen=True, eq=False)
class SuperResolution:
    """What makes a stage the second: SR-SDS's condition.

    Attributes:
        stage_one: the frozen material of stage I, [h, w, 8].
        low_size: height and width of the low-resolution picture.
        mode: how its render becomes the condition: as the paper's code does, or as diffusers'.
        schedule: of the condition's noise, where it is not the denoiser's.
    """

    stage_one: Tensor
    low_size: int = 64
    mode: SRMode = "castex"
    schedule: NoiseSchedule | None = None


@dataclass(frozen=True, eq=False)
class DiffusionGuide(RecordableGuide):
    """Eq. 1 for the pictures of a step, divided by their number; a `Guide` for `optimize_material`.

    The paper's loss and its peers' is a mean over the pictures. Adam divides a common factor out
    again, but for its ε of 1e-8, which the gradients of texels come close to: without the division
    a tenth of the movement of 25 steps differs.

    Attributes:
        denoiser: the model, classifier-free guidance included.
        prompt_of: the row of each view's prompt, [b].
        renderer: of the mesh, for stage I's picture.
        drawn: how t and ε are drawn.
        weighting: w(t).
        clamp: of x̂_0, or None.
        gradient_clamp: bound of each element of the gradient of a picture, or None.
        super_resolution: None is stage I.
        distill: another objective than SDS, of stage I; it has its own denoiser and weighting.
    """

    denoiser: Denoiser
    prompt_of: Callable[[Cameras], Tensor]
    renderer: Renderer
    drawn: Draw
    weighting: Weighting
    clamp: float | None
    gradient_clamp: float | None = None
    super_resolution: SuperResolution | None = None
    distill: Distill | None = None

    def draw(self, index: int, cameras: Cameras) -> Draws:
        drawn, key = self.drawn, NoiseKey(self.drawn.seed, index, torch.arange(len(cameras)))
        t = drawn.timesteps(key, index / drawn.steps, shared=drawn.shared_timestep)
        return Draws(torch.tensor([index]), t, self.prompt_of(cameras))

    @torch.no_grad()
    def gradient(self, z: Tensor, draws: Draws, scene: Scene, surface: Surface) -> SDSResult:
        sample = torch.arange(len(z), device=z.device)
        noise = NoiseKey(self.drawn.seed, draws.step, sample)
        t, condition = draws.t, Condition(prompt=draws.prompt)
        sr = self.super_resolution
        if self.distill is not None:
            progress = int(draws.step) / self.drawn.steps
            return self._mean(self.distill(z, t, noise, condition, progress))
        if sr is None:
            result = sds_gradient(
                z,
                self.denoiser,
                t,
                noise,
                weighting=self.weighting,
                condition=condition,
                clamp=self.clamp,
            )
            return self._mean(result)
        # The same view, light and background as θ's own picture: they differ in the maps alone.
        picture = self.renderer.picture(surface, sr.stage_one, scene.lighting, scene.background)
        result = sr_sds_gradient(
            z,
            picture,
            self.denoiser,
            t,
            noise,
            NoiseKey(self.drawn.seed, draws.step, sample, SR_CONDITION_STREAM),
            weighting=self.weighting,
            condition=condition,
            clamp=self.clamp,
            mode=sr.mode,
            low_size=sr.low_size,
            condition_schedule=sr.schedule,
        )
        return self._mean(result)

    def _mean(self, result: SDSResult) -> SDSResult:
        gradient, views = result.gradient, len(result.loss)
        if self.gradient_clamp is not None:
            gradient = gradient.clamp(-self.gradient_clamp, self.gradient_clamp)
        return result._replace(gradient=gradient / views, loss=result.loss / views)
