"""``--exemplar``: a mesh textured like photographs, with no weights and no GPU.

Stage I lays the photograph's patches out on the surface, from coarse to fine; stage II sharpens the
result fourfold by SR-SDS.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from sdslab.denoisers.band_energy import BandEnergy
from sdslab.denoisers.exemplar import ExemplarDenoiser
from sdslab.denoisers.patch_bank import PatchBank
from sdslab.diffusion_space import PixelSpace
from sdslab.image_io import load_square
from sdslab.material_optimization import MaterialConfig, maps_of
from sdslab.meshes.material import constant_material
from sdslab.meshes.seam_dilation import dilate_seams
from sdslab.optimize import OptimizeConfig
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.seen_texels import SeenTexels
from sdslab.rendering.surface_views import SurfaceViews
from sdslab.texture.arguments import DEFAULT_EXEMPLAR
from sdslab.texture.estimated_material import estimate_material
from sdslab.texture.exemplar_guide import ExemplarGuide
from sdslab.texture.program import Textured
from sdslab.texture.stage import Outcome, Stage, run_stage
from sdslab.texture.target import resize_maps
from sdslab.texture.unseen_texels import fill_unseen
from sdslab.texture.workspace import Workspace

VIEWS = 4
LEARNING_RATE = 0.07
FACTOR = 4  # of stage II's super-resolution
TEXELS_PER_PIXEL = 1 / 0.7  # of stage II's pictures
PHOTO_SIZE = 1024  # pixels of a photo that are read, at most


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes:
        name: of its stage.
        coarseness: how many times fewer pixels per unit than stage II's pictures have.
        resolution: height and width of the pictures.
        shrink: of the maps' size.
        u: first and last noise level.
        steps: of optimisation.
        patch: height and width of a patch, in pixels.
    """

    name: str
    coarseness: int
    resolution: int
    shrink: int
    u: tuple[float, float]
    steps: int
    patch: int = 7


LEVELS = (
    Level("stage1-coarse", 16, 48, 8, (0.98, 0.03), 30),
    Level("stage1-middle", 8, 64, 4, (0.6, 0.03), 30),
    Level("stage1-fine", 4, 128, 2, (0.6, 0.03), 40),
    Level("stage2", 1, 256, 1, (0.6, 0.03), 30, patch=5),
)


def texture_like_exemplars(workspace: Workspace, progress: Progress) -> Textured:
    """Textures the mesh like its exemplars.

    Raises:
        UserError: a photo cannot be read, or another process works in the folder.
    """
    options, optimization = workspace.arguments.exemplar, workspace.arguments.optimization
    sources = workspace.arguments.subject.exemplar or (DEFAULT_EXEMPLAR,)
    photos = [load_square(source, PHOTO_SIZE) for source in sources]
    scale = options.exemplar_scale
    # No finer than the photos are: pictures would show their pixels as blobs.
    finest = min(
        _texels_per_unit(workspace) / TEXELS_PER_PIXEL,
        *(photo.shape[-1] / scale for photo in photos),
    )
    colour = torch.stack([photo.mean((1, 2)) for photo in photos]).mean(0)
    size = workspace.texture_size
    maps = constant_material(size, size, albedo=tuple(colour.tolist()), roughness=0.8)
    stage_one = maps
    workspace.begin()
    outcomes: list[Outcome] = []
    seen = SeenTexels((size, size), workspace.device)
    for number, level in _levels_to_do(workspace):
        if number and not outcomes:  # gone on from a checkpoint
            assert workspace.resumed is not None
            maps = workspace.resumed.tensors["maps"]
            stage_one = workspace.resumed.tensors["stage_one"]
        steps = level.steps if optimization.steps is None else optimization.steps
        pixels_per_unit = finest / level.coarseness
        side = max(16, round(scale * pixels_per_unit))
        side += -side % FACTOR
        small = [_resized(photo, side) for photo in photos]
        final = level.coarseness == 1
        bank = PatchBank.of(small, level.patch, factor=FACTOR if final else 1)
        energy = BandEnergy(_mosaic(small).to(workspace.device))
        theta = TexelGrid(resize_maps(maps, max(1, size // level.shrink)))
        theta.to(workspace.device)
        seen = SeenTexels((size, size), workspace.device)
        stage = Stage(
            level.name,
            theta,
            ExemplarGuide(
                ExemplarDenoiser(bank.to(workspace.device), band_energy=energy),
                workspace.renderer,
                level.u,
                steps,
                workspace.seed(number + 1),
                pixels_per_unit,
                stage_one=stage_one.to(workspace.device) if final else None,
            ),
            PixelSpace(),
            SurfaceViews.of(
                workspace.mesh,
                pixels_per_unit,
                level.resolution,
                colour,
                workspace.seed(number + 1),
                turned=options.orient == "free",
            ),
            MaterialConfig(
                optimization.views or VIEWS,
                OptimizeConfig(
                    steps,
                    learning_rate=optimization.learning_rate or LEARNING_RATE,
                    learning_rate_schedule="cosine",
                    adam_betas=(0.9, 0.99),
                ),
                ("roughness", "metallic", "normal"),
            ),
            carried={"maps": maps, "stage_one": stage_one},
        )
        outcomes.append(run_stage(stage, workspace, seen, progress))
        maps = resize_maps(maps_of(theta).detach().cpu(), size)
        if outcomes[-1].interrupt is not None:
            break
        if not final:
            maps = stage_one = fill_unseen(maps, seen.texels().cpu(), workspace.mesh)
    textured = fill_unseen(maps, seen.texels().cpu(), workspace.mesh)
    materials = {"textured": textured}
    if options.material == "auto":
        dilated = dilate_seams(textured, workspace.covered)
        feature = max(2.0, 0.04 * scale * _texels_per_unit(workspace))
        materials["textured"] = estimate_material(dilated, workspace.covered, feature)
    seconds = sum(outcome.seconds for outcome in outcomes)
    steps = sum(outcome.steps for outcome in outcomes)
    share = (seen.texels().cpu() & workspace.covered).sum() / workspace.covered.sum().clamp_min(1)
    return Textured(
        materials,
        {"steps": steps, "optimization_seconds": round(seconds, 2), "seen_share": float(share)},
        (
            f"{steps} steps in {seconds:.1f} s; {float(share):.1%} of the texels were seen, the "
            f"others take the nearest's colours",
        ),
        outcomes[-1].interrupt,
    )


def _levels_to_do(workspace: Workspace) -> Iterator[tuple[int, Level]]:
    names = [level.name for level in LEVELS]
    resumed = workspace.resumed
    first = names.index(resumed.state["stage"]) if resumed is not None else 0
    yield from list(enumerate(LEVELS))[first:]


def _texels_per_unit(workspace: Workspace) -> float:
    """Of the atlas, on average: the root of covered texels over the surface's area."""
    corners = workspace.mesh.render_positions[workspace.mesh.faces.long()].double()
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = float(cross.norm(dim=1).sum()) / 2
    return math.sqrt(max(1, int(workspace.covered.sum())) / max(area, 1e-9))


def _resized(photo: Tensor, side: int) -> Tensor:
    """[3, side, side] in [−1, 1]."""
    small = F.interpolate(photo[None], size=(side, side), mode="bilinear", antialias=True)
    return 2 * small[0] - 1


def _mosaic(photos: list[Tensor]) -> Tensor:
    return torch.cat(photos, dim=2)
