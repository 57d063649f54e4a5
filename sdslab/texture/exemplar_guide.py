"""Guidance by a photograph: noise fixed to the surface, steep views weighed down, SR-SDS last."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.denoiser import Condition
from sdslab.denoisers.exemplar import ExemplarDenoiser, timestep
from sdslab.denoisers.noise_schedule import WEIGHTINGS
from sdslab.denoisers.patch_bank import low_pass
from sdslab.distillation.sds import sds_gradient
from sdslab.kernels import NoiseKey, SDSResult, philox_normal
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene

ANCHORED_NOISE_STREAM = 8  # of the counter-based generator
TABLE_SIZE = 2**16
# Large primes that spread neighbouring voxels over the table (Teschner et al. 2003).
VOXEL_HASH = (73856093, 19349663, 83492791)


@dataclass(frozen=True, eq=False)
class ExemplarGuide:
    """A `Guide` for `optimize_material`: Eq. 1 with an exemplar's exact denoiser.

    Attributes:
        denoiser: of one level of resolution.
        renderer: of the mesh.
        u: (first, last) noise level of the stage; √ᾱ = cos(πu/2).
        steps: of the stage.
        seed: of the noise.
        pixels_per_unit: of the pictures; a voxel of the anchored noise is a pixel wide.
        power: of (n·v), the weight of a pixel.
        stage_one: [h, w, 8], the material that super-resolution starts from; None is stage I.
    """

    denoiser: ExemplarDenoiser
    renderer: Renderer
    u: tuple[float, float]
    steps: int
    seed: int
    pixels_per_unit: float
    power: float = 2.0
    stage_one: Tensor | None = None

    @torch.no_grad()
    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        first, last = self.u
        share = index / max(1, self.steps - 1)
        t = torch.full((len(z),), timestep(first + (last - first) * share), device=z.device)
        foreground = surface.coverage()
        weight = self._weight(surface)
        condition = Condition(foreground=foreground)
        if self.stage_one is None:
            noise = self._anchored_noise(z, index, surface)
        else:
            picture = self.renderer.picture(surface, self.stage_one, None, scene.background)
            low_resolution = low_pass(2 * picture - 1, self.denoiser.bank.factor)
            condition = Condition(foreground=foreground, low_resolution=low_resolution)
            # Fresh noise does no harm here: the condition leaves little to choose.
            noise = NoiseKey(self.seed, index, torch.arange(len(z), device=z.device))
        result = sds_gradient(
            z, self.denoiser, t, noise, weighting=WEIGHTINGS["x0_unit"], condition=condition
        )
        gradient = result.gradient * weight
        loss = 0.5 * (result.gradient.square() * weight).flatten(1).sum(1)
        return SDSResult(gradient, loss, result.nonfinite)

    def _weight(self, surface: Surface) -> Tensor:
        """(n·v)^power of each pixel, [b, 1, h, w]; 0 where there is no surface."""
        towards = F.normalize(surface.eye[surface.view] - surface.position, dim=1)
        cosine = (towards * surface.normal).sum(1, keepdim=True).clamp(0, 1)
        b, height, width = surface.shape
        return surface.fill(cosine**self.power, cosine.new_zeros(b, 1, height, width))

    def _anchored_noise(self, z: Tensor, index: int, surface: Surface) -> Tensor:
        """Noise that belongs to the place on the surface, whatever view looks at it.

        The voxels are cubes as wide as a pixel; behind the object the noise is fresh.
        """
        table_key = NoiseKey(self.seed, 0, torch.arange(1, device=z.device), ANCHORED_NOISE_STREAM)
        table = philox_normal(table_key, (TABLE_SIZE, z.shape[1]))[0]
        voxel = (surface.position * self.pixels_per_unit).floor().long()
        place = voxel[:, 0] * VOXEL_HASH[0]
        place = place ^ (voxel[:, 1] * VOXEL_HASH[1]) ^ (voxel[:, 2] * VOXEL_HASH[2])
        behind = philox_normal(
            NoiseKey(self.seed, index, torch.arange(len(z), device=z.device)), z.shape[1:]
        )
        return surface.fill(table[place % TABLE_SIZE].to(z.dtype), behind.to(z.dtype)).contiguous()
