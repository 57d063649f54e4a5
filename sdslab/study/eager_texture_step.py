"""The same texture step in plain eager PyTorch: what ours is compared with.

As public score-distillation codes write it: every pixel of the picture is shaded, the background's
too; noise comes from ``torch.randn``; guidance, x̂_0 and weight are one operation after another; a
fake loss carries the gradient through autograd; Adam and the projection are torch's own. What is
not at issue is shared: cameras, lights, visibility, texture look-up and the shading model.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.noise_schedule import SqrtAnnealedTimesteps
from sdslab.denoisers.prompts import view_of
from sdslab.rendering.renderer import Surface
from sdslab.rendering.scene import Scene
from sdslab.rendering.texels import LOWER_BOUND, UPPER_BOUND
from sdslab.study.measuring import PhaseClock
from sdslab.study.texture_step_problem import (
    GUIDANCE_SCALE,
    LEARNING_RATE,
    STEPS,
    StepProblem,
)

CONDITION_LEVEL = 500  # the timestep that CasTex noises the condition to


class EagerStep:
    """A call takes one step.

    Args:
        problem: what it is given.
        unet: its copy of the UNet.
        clock: told where each phase begins.
        dtype: of the arithmetic from x on; the UNet's own is its weights'.
    """

    def __init__(
        self,
        problem: StepProblem,
        unet: Any,
        clock: PhaseClock,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._problem, self._unet, self._clock, self._dtype = problem, unet, clock, dtype
        self.maps = problem.initial.clone().requires_grad_()
        self._optimizer = torch.optim.Adam([self.maps], lr=LEARNING_RATE, foreach=True)
        self._index = 0
        # [1000] √ᾱ and √(1−ᾱ), as a scheduler keeps them
        alpha_bars = problem.schedule.alpha_bars.to(problem.device)
        self._signal = alpha_bars.sqrt().to(dtype)
        self._sigma = (1 - alpha_bars).sqrt().to(dtype)

    def __call__(self) -> None:
        """Computes a gradient and moves θ by it."""
        self.compute_gradient(self._index)
        self._clock.mark("optimizer")
        self._optimizer.step()
        self._project()
        self._clock.mark(None)
        self._index += 1

    def compute_gradient(
        self,
        index: int,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        condition_noise: Tensor | None = None,
    ) -> None:
        """Leaves the gradient in ``maps.grad``.

        Args:
            index: of the step.
            t: [b]; drawn where None, and so are the noises.
            noise: ε, [b, 3, h, w].
            condition_noise: of stage II's condition, like ``noise``.
        """
        problem = self._problem
        self._clock.mark("render")
        scene = problem.scenes.sample(index, problem.views, problem.renderer.extreme_points)
        surface = problem.renderer.see(scene.cameras, problem.scenes.resolution)
        covered = surface.coverage() > 0
        surface = _every_pixel(surface)
        image = self._picture(self.maps, surface, covered, scene)
        self._clock.mark("condition")
        x = 2 * _resized(image, problem.size).to(self._dtype) - 1
        with torch.no_grad():
            if t is None:
                low, high = SqrtAnnealedTimesteps().bounds(min(1.0, index / STEPS))
                t = torch.randint(low, high, (1,), device=x.device).expand(len(x))
            noise = torch.randn_like(x) if noise is None else noise.to(x)
            x_t = self._noised(x, t, noise)
            given, options = torch.cat((x_t, x_t)), {}
            if problem.stage_one is not None:
                shown = self._condition(surface, covered, scene, condition_noise)
                given = torch.cat((given, torch.cat((shown, shown))), dim=1)
                options["class_labels"] = torch.full((len(given),), CONDITION_LEVEL).to(x.device)
            rows = view_of(scene.cameras.eye).to(x.device)
            text = problem.embeddings.to(next(self._unet.parameters()).dtype)
            states = torch.cat((text[-1:].expand(len(x), -1, -1), text[rows]))
            self._clock.mark("unet")
            output = self._unet(
                given.to(states.dtype),
                torch.cat((t, t)),
                encoder_hidden_states=states,
                return_dict=False,
                **options,
            )[0]
            self._clock.mark("gradient")
            unconditional, conditional = output.to(self._dtype).chunk(2)
            scale = GUIDANCE_SCALE[problem.stage]
            guided = unconditional + scale * (conditional - unconditional)
            eps_hat, _ = guided.split(x.shape[1], dim=1)
            signal, sigma = (rates[t].view(-1, 1, 1, 1) for rates in (self._signal, self._sigma))
            x0_hat = ((x_t - sigma * eps_hat) / signal).clamp(-1, 1)
            weight = signal * sigma
        loss = 0.5 * (weight * (x - x0_hat) ** 2).sum() / len(x)
        self._optimizer.zero_grad()
        loss.backward()

    def _picture(self, maps: Tensor, surface: Surface, covered: Tensor, scene: Scene) -> Tensor:
        background = scene.background.to(maps.device)
        renderer = self._problem.renderer
        image = renderer.picture(surface, maps, scene.lighting, background)
        return torch.where(covered, image, background)

    def _condition(
        self, surface: Surface, covered: Tensor, scene: Scene, noise: Tensor | None
    ) -> Tensor:
        problem = self._problem
        assert problem.stage_one is not None
        self._clock.mark("render")
        image = self._picture(problem.stage_one, surface, covered, scene)
        self._clock.mark("condition")
        low = F.interpolate(image, size=(problem.size // 4,) * 2, mode="nearest")
        shown = F.interpolate(low, size=(problem.size,) * 2, mode="nearest")
        shown = 2 * shown.to(self._dtype) - 1
        noise = torch.randn_like(shown) if noise is None else noise.to(shown)
        level = torch.full((len(shown),), CONDITION_LEVEL, device=shown.device)
        return self._noised(shown, level, noise)

    def _noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self._signal[t].view(-1, 1, 1, 1) * x + self._sigma[t].view(-1, 1, 1, 1) * noise

    @torch.no_grad()
    def _project(self) -> None:
        normal = F.normalize(2 * self.maps[..., 5:] - 1, dim=-1)
        self.maps[..., 5:] = (normal + 1) / 2
        lower, upper = self.maps.new_tensor(LOWER_BOUND), self.maps.new_tensor(UPPER_BOUND)
        self.maps.copy_(torch.minimum(torch.maximum(self.maps, lower), upper))


def _resized(image: Tensor, size: int) -> Tensor:
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)


def _every_pixel(surface: Surface) -> Surface:
    """The surface with a row for each pixel; those that nothing covers show some surface."""
    b, height, width = surface.shape
    pixel = torch.arange(b * height * width, device=surface.pixel.device)

    def spread(values: Tensor, elsewhere: list[float]) -> Tensor:
        whole = values.new_tensor(elsewhere).repeat(len(pixel), 1)
        return whole.index_copy_(0, surface.pixel, values.view(len(values), -1))

    return replace(
        surface,
        pixel=pixel,
        view=pixel // (height * width),
        uv=spread(surface.uv, [0.5, 0.5]),
        uv_derivatives=spread(surface.uv_derivatives, [0.0] * 4),
        position=spread(surface.position, [0.0] * 3),
        normal=spread(surface.normal, [0.0, 0.0, 1.0]),
        tangent=spread(surface.tangent, [1.0, 0.0, 0.0, 1.0]),
        depth=spread(surface.depth, [1.0])[:, 0],
    )
