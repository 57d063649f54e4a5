"""The levels that a texture is made at, coarse to fine, and what each of them optimises."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdslab.denoisers.exemplar import BandEnergy, ExemplarDenoiser
from sdslab.denoisers.patch_bank import PatchBank
from sdslab.diffusion_space import PixelSpace
from sdslab.errors import UserError
from sdslab.exemplar_texturing.exemplars import ExemplarSet, turned
from sdslab.exemplar_texturing.guide import ExemplarGuide, GuidedPicture, TangentField
from sdslab.meshes.material import constant_material, dilate_seams, resize_maps
from sdslab.optimization.material_optimization import MaterialConfig, MaterialProblem
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SurfaceViews
from sdslab.rendering.texels import (
    SeenTexels,
    band_limit,
    covered_texels,
    fill_unseen,
    texels_per_unit,
)

Orient = Literal["up", "free", "flow"]

FACTOR = 4  # of stage II's super-resolution
PIXELS_PER_TEXEL = 0.7  # of stage II's pictures
LEAST_PHOTO_HEIGHT = 16  # pixels; a coarser level would show no texture
LEAST_PIXELS_PER_UNIT = 24.0
FIRST_U = 0.98  # where the first level starts: nearly pure noise
KEPT_U = 0.5  # where levels start at most, if they start from a texture
POSES = 16
ADAM_EPS = 1e-3  # of gradients of about .1 a texel: rounding errors alone must not move one
ROUGHNESS = 0.8  # of the material where nothing is known: stone, bark, plaster, cloth


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes:
        name: of its stage.
        coarseness: how many times fewer pixels per unit than stage II's pictures have.
        resolution: height and width of the pictures.
        shrink: of the maps' size.
        u: first and last noise level; the first level that runs starts at ``FIRST_U``.
        steps: of optimisation.
        patch: height and width of a patch, in pixels.
        directional_patch: the same for photographs that have a direction.
        learning_rate: of Adam, at the first step, in texel values of [0, 1].
        super_resolution: whether it sharpens what the levels before have made.
        anchored: whether its noise is fixed to the surface: views then agree on which of the
            details that a texture may have it gets. With fresh noise they average them away.
        annealed: whether the noise level falls, or is drawn at random.
        band_energy: whether the contrast of x̂_0 is kept at the photograph's.
    """

    name: str
    coarseness: int
    resolution: int
    shrink: int
    u: tuple[float, float]
    steps: int
    patch: int = 7
    directional_patch: int = 9
    learning_rate: float = 0.07
    super_resolution: bool = False
    anchored: bool = True
    annealed: bool = True
    band_energy: bool = True


STAGE_ONE = (
    Level("stage1-coarse", 16, 48, 8, (0.6, 0.03), 30),
    Level("stage1-middle", 8, 64, 4, (0.6, 0.03), 30),
    Level("stage1-fine", 4, 128, 2, (0.6, 0.03), 40),
)
# Stage II starts at little noise: more would blur what the views before have agreed on. It takes
# smaller steps: larger ones leave speckles of colour where texels are many times finer than pixels.
STAGE_TWO = Level(
    "stage2", 1, 256, 1, (0.4, 0.02), 40, patch=5, directional_patch=5, learning_rate=0.04,
    super_resolution=True,
)  # fmt: skip
LEVELS = (*STAGE_ONE, STAGE_TWO)
# One scale, fresh noise, random t: what SDS is elsewhere. It ends in the mean colour.
PLAIN_SDS = (
    Level(
        "plain", 4, 128, 2, (0.98, 0.02), 100, anchored=False, annealed=False, band_energy=False
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ExemplarConfig:
    """How photographs lie on an object."""

    scale: float = 1.5
    """World size of a photo's height; the object's largest extent is 2."""
    orient: Orient = "up"
    """Whether the photo's up follows the object's, any direction will do, or the form's flow."""
    texture_size: int = 1024
    """Height and width of the maps, a power of two."""
    views: int = 4
    """Pictures a step."""
    learning_rate: float | None = None
    """Learning rate of each level's first step, in place of its own."""
    steps: int | None = None
    """Steps of each level, in place of its own."""
    tag: int | None = None
    """The exemplar that leads."""
    tag_guidance: float = 3.0
    """How strongly it does: ε_all + s (ε_tag − ε_all)."""
    seed: int = 0
    """Seed of views and noise."""


@dataclass(frozen=True, eq=False)
class Reached:
    """A texture between two levels.

    Attributes:
        level: the number of the one to come.
        maps: [size, size, 8], what it starts from.
        stage_one: the same that super-resolution sharpens.
    """

    level: int
    maps: Tensor
    stage_one: Tensor


@dataclass(frozen=True, eq=False)
class ExemplarPyramid:
    """The levels of one mesh and its exemplars.

    Attributes:
        renderer: of the mesh.
        exemplars: what it should look like.
        config: how they lie on it.
        levels: those that run, coarse to fine.
        pixels_per_unit: of the finest pictures, where a unit is half the object's extent.
        field: which way the photographs' up points, where it matters.
    """

    renderer: Renderer
    exemplars: ExemplarSet
    config: ExemplarConfig
    levels: tuple[Level, ...]
    pixels_per_unit: float
    field: TangentField | None

    @classmethod
    def of(
        cls,
        renderer: Renderer,
        covered: Tensor,
        exemplars: ExemplarSet,
        config: ExemplarConfig,
        levels: tuple[Level, ...] = LEVELS,
    ) -> "ExemplarPyramid":
        """Chooses the scale of the levels.

        Args:
            renderer: of the mesh.
            covered: [h, w] bool, texels that a face covers.
            exemplars: what the mesh should look like.
            config: how they lie on it.
            levels: all there are; those too coarse to show the photographs are left out.
        """
        finest = min(
            PIXELS_PER_TEXEL * texels_per_unit(renderer.mesh, covered),
            exemplars.height / config.scale,  # finer pictures would show its pixels as blobs
        )
        finest = max(finest, LEAST_PIXELS_PER_UNIT)
        shown = [
            level
            for level in levels
            if config.scale * finest / level.coarseness >= LEAST_PHOTO_HEIGHT
            or level.super_resolution
            or level is [other for other in levels if not other.super_resolution][-1]
        ]
        field = None
        if config.orient != "free" and exemplars.is_directional:
            field = TangentField.of(renderer.mesh, config.orient, renderer.backend)
        return cls(renderer, exemplars, config, tuple(shown), finest, field)

    def grey(self) -> Tensor:
        """The photographs' mean material, [size, size, 8]."""
        size = self.config.texture_size
        maps = constant_material(size, size, roughness=ROUGHNESS)
        for channel, mean in zip(self.exemplars.guided, self.exemplars.mean, strict=True):
            maps[..., channel] = mean
        return maps

    def steps_of(self, level: Level) -> int:
        """Optimisation steps of a level."""
        return level.steps if self.config.steps is None else self.config.steps

    def problem(self, reached: Reached, *, from_texture: bool = False) -> MaterialProblem:
        """What the next level optimises.

        Args:
            reached: what it starts from.
            from_texture: whether the first level starts from a texture worth keeping.
        """
        number, config, device = reached.level, self.config, self.renderer.device
        level = self.levels[number]
        pixels_per_unit = self.pixels_per_unit / level.coarseness
        steps = self.steps_of(level)
        first, last = level.u
        if level.annealed and number == 0:
            first = FIRST_U
        if from_texture:
            first = min(first, KEPT_U)
        seed = config.seed + (number << 41)  # no two levels, or runs of near seeds, share numbers
        denoiser = self._denoiser(level)
        energy = denoiser.band_energy
        size = max(1, config.texture_size // level.shrink)
        picture = GuidedPicture(self.renderer, self.exemplars.guided)
        guide = ExemplarGuide(
            denoiser,
            picture,
            (first, last),
            steps,
            seed,
            pixels_per_unit,
            power=2.0 if self.field is None else 4.0,
            anchored=level.anchored,
            annealed=level.annealed,
            stage_one=reached.stage_one.to(device) if level.super_resolution else None,
            field=self.field,
            tag=None if config.tag is None else (config.tag, config.tag_guidance),
        )
        scenes = SurfaceViews.of(
            self.renderer.mesh,
            pixels_per_unit,
            level.resolution,
            self.exemplars.mean,
            seed,
            turned=config.orient == "free",
            directions=self.field.vertices if self.field and config.orient == "flow" else None,
        )
        optimization = OptimizeConfig(
            steps,
            learning_rate=level.learning_rate
            if config.learning_rate is None
            else config.learning_rate,
            learning_rate_schedule="cosine",
            adam_betas=(0.9, 0.99),
            adam_eps=ADAM_EPS,
        )
        return MaterialProblem(
            TexelGrid(resize_maps(reached.maps, size)).to(device),
            self.renderer,
            scenes,
            PixelSpace(),
            guide,
            MaterialConfig(config.views, optimization),
            SeenTexels((config.texture_size, config.texture_size), device),
            picture,
            energy.memory if energy is not None else {},
        )

    def finish(self, reached: Reached, problem: MaterialProblem) -> Reached:
        """An optimised level's maps at full size on the CPU, no finer than its pictures and filled.

        Args:
            reached: before the level.
            problem: what it optimised.
        """
        mesh, level, maps = self.renderer.mesh, self.levels[reached.level], problem.maps().cpu()
        covered = covered_texels(mesh, (maps.shape[0], maps.shape[1]), CpuBackend())
        pixels_per_unit = self.pixels_per_unit / level.coarseness
        limited = band_limit(
            dilate_seams(maps, covered), mesh, pixels_per_unit, whole=level.super_resolution
        )
        full = resize_maps(limited, self.config.texture_size)
        maps = fill_unseen(full, problem.seen.texels().cpu(), mesh)
        stage_one = reached.stage_one if level.super_resolution else maps
        return Reached(reached.level + 1, maps, stage_one)

    def check(self) -> None:
        """Refuses photographs and masks that leave a level nothing to copy.

        Raises:
            UserError: says how large a square must be left.
        """
        widest = max(self.levels, key=lambda level: self._patch_of(level) / self._height_of(level))
        self._bank(widest, count=1)

    def _height_of(self, level: Level) -> int:
        """Pixels of a photograph's height in a level's pictures."""
        pixels = self.config.scale * self.pixels_per_unit / level.coarseness
        return max(LEAST_PHOTO_HEIGHT, round(pixels))

    def _patch_of(self, level: Level) -> int:
        return level.patch if self.field is None else level.directional_patch

    def _bank(self, level: Level, **options: int) -> PatchBank:
        height, factor = self._height_of(level), FACTOR if level.super_resolution else 1
        patch = self._patch_of(level)
        poses = POSES if self.field is not None else 1
        copies = [
            (tag, pose, *turned(picture, mask, 2 * math.pi * pose / poses, self.exemplars.guided))
            for pose in range(poses)
            for tag, exemplar in enumerate(self.exemplars.exemplars)
            for picture, mask in [exemplar.at_height(height, factor)]
        ]
        try:
            return PatchBank.of(
                [picture for _, _, picture, _ in copies],
                patch,
                factor=factor,
                masks=[mask for _, _, _, mask in copies],
                tags=[tag for tag, _, _, _ in copies],
                poses=[pose for _, pose, _, _ in copies],
                pose_count=poses,
                **options,
            )
        except ValueError as error:  # masks or photographs are too narrow for any patch
            raise UserError(
                f"--exemplar must show, within its --exemplar-mask or where it is opaque, a square "
                f"of {patch / height:.0%} of its height"
                f"{' that can be turned' if poses > 1 else ''}, got none; give another, enlarge "
                f"the mask or give a larger --exemplar-scale"
            ) from error

    def _denoiser(self, level: Level) -> ExemplarDenoiser:
        bank, energy = self._bank(level), None
        if level.band_energy:
            height, factor = self._height_of(level), FACTOR if level.super_resolution else 1
            pairs = [exemplar.at_height(height, factor) for exemplar in self.exemplars.exemplars]
            mosaic = torch.cat([picture for picture, _ in pairs], 2)
            masks = [
                mask if mask is not None else torch.ones_like(picture[:1], dtype=torch.bool)
                for picture, mask in pairs
            ]
            energy = BandEnergy(mosaic.to(self.renderer.device), torch.cat(masks, 2))
        return ExemplarDenoiser(bank.to(self.renderer.device), band_energy=energy)
