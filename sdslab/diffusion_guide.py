"""Guidance by a diffusion model: SDS in stage I, and SR-SDS on stage I's renders in stage II."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, TimestepSampler, Weighting
from sdslab.distillation.sds import sds_gradient, sr_sds_gradient
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, SDSResult, SRMode
from sdslab.optimization.material_optimization import Draws, RecordableGuide
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene


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
        timesteps: where t is drawn.
        steps: of the stage, for the annealing of t.
        seed: of t and ε.
        weighting: w(t).
        clamp: of x̂_0, or None.
        gradient_clamp: bound of each element of the gradient of a picture, or None.
        shared_timestep: one t a step, as CasTex has it, instead of one a picture.
        stage_one: the frozen material of stage I, [h, w, 8]; None is stage I itself.
        sr_mode: how its render becomes the condition: as the paper's code does, or as diffusers'.
        low_size: height and width of the low-resolution picture.
        condition_schedule: of the condition's noise, where it is not the denoiser's.
    """

    denoiser: Denoiser
    prompt_of: Callable[[Cameras], Tensor]
    renderer: Renderer
    timesteps: TimestepSampler
    steps: int
    seed: int
    weighting: Weighting
    clamp: float | None
    gradient_clamp: float | None = None
    shared_timestep: bool = False
    stage_one: Tensor | None = None
    sr_mode: SRMode = "castex"
    low_size: int = 64
    condition_schedule: NoiseSchedule | None = None

    def draw(self, index: int, cameras: Cameras) -> Draws:
        key = NoiseKey(self.seed, index, torch.arange(len(cameras)))
        t = self.timesteps(key, index / self.steps, shared=self.shared_timestep)
        return Draws(torch.tensor([index]), t, self.prompt_of(cameras))

    @torch.no_grad()
    def gradient(self, z: Tensor, draws: Draws, scene: Scene, surface: Surface) -> SDSResult:
        sample = torch.arange(len(z), device=z.device)
        noise = NoiseKey(self.seed, draws.step, sample)
        t, condition = draws.t, Condition(prompt=draws.prompt)
        if self.stage_one is None:
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
        picture = self.renderer.picture(surface, self.stage_one, scene.lighting, scene.background)
        result = sr_sds_gradient(
            z,
            picture,
            self.denoiser,
            t,
            noise,
            NoiseKey(self.seed, draws.step, sample, SR_CONDITION_STREAM),
            weighting=self.weighting,
            condition=condition,
            clamp=self.clamp,
            mode=self.sr_mode,
            low_size=self.low_size,
            condition_schedule=self.condition_schedule,
        )
        return self._mean(result)

    def _mean(self, result: SDSResult) -> SDSResult:
        gradient, views = result.gradient, len(result.loss)
        if self.gradient_clamp is not None:
            gradient = gradient.clamp(-self.gradient_clamp, self.gradient_clamp)
        return result._replace(gradient=gradient / views, loss=result.loss / views)
