"""Guidance by a diffusion model: SDS in stage I, and SR-SDS on stage I's renders in stage II."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import TimestepSampler, Weighting
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import SuperResolution, sr_sds_gradient
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene

CONDITION_STREAM = 6  # of the counter-based generator: the low-resolution picture's own noise


@dataclass(frozen=True, eq=False)
class DiffusionGuide:
    """A `Guide` for `optimize_material`: Eq. 1 for the pictures of a step.

    Attributes:
        denoiser: the model, classifier-free guidance included.
        prompt_of: the row of each view's prompt, [b].
        renderer: of the mesh, for stage I's picture.
        timesteps: where t is drawn.
        steps: of the stage, for the annealing of t.
        seed: of t and ε.
        weighting: w(t).
        clamp: of x̂_0, or None.
        shared_timestep: one t a step, as CasTex has it, instead of one a picture.
        stage_one: the frozen material of stage I, [h, w, 8]; None is stage I itself.
        super_resolution: how its render becomes the condition, in stage II.
    """

    denoiser: Denoiser
    prompt_of: Callable[[Cameras], Tensor]
    renderer: Renderer
    timesteps: TimestepSampler
    steps: int
    seed: int
    weighting: Weighting
    clamp: float | None
    shared_timestep: bool = False
    stage_one: Tensor | None = None
    super_resolution: SuperResolution | None = None

    @torch.no_grad()
    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        sample = torch.arange(len(z), device=z.device)
        noise = NoiseKey(self.seed, index, sample)
        t = self.timesteps(noise, index / self.steps, shared=self.shared_timestep)
        condition = Condition(prompt=self.prompt_of(scene.cameras).to(z.device))
        if self.stage_one is None or self.super_resolution is None:
            return sds_gradient(
                z,
                self.denoiser,
                t,
                noise,
                weighting=self.weighting,
                condition=condition,
                clamp=self.clamp,
            )
        # The same view, light and background as θ's own picture: they differ in the maps alone.
        picture = self.renderer.picture(surface, self.stage_one, scene.lighting, scene.background)
        return sr_sds_gradient(
            z,
            picture,
            self.denoiser,
            t,
            noise,
            NoiseKey(self.seed, index, sample, CONDITION_STREAM),
            weighting=self.weighting,
            condition=condition,
            clamp=self.clamp,
            super_resolution=self.super_resolution,
        )
