"""Textures one mesh like one photograph, in one of the study's ways."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet
from sdslab.exemplar_texturing.pyramid import (
    LEVELS,
    PLAIN_SDS,
    STAGE_ONE,
    ExemplarConfig,
    ExemplarPyramid,
    Reached,
)
from sdslab.exemplar_texturing.triplanar import triplanar
from sdslab.meshes.texture_maps import dilate_seams
from sdslab.optimization.material_optimization import optimize_material
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.texels import texels_per_unit
from sdslab.study.exemplar_mesh_specification import MeshSettings, Method

LEVELS_OF = {
    "two_stages": LEVELS, "stage_one": STAGE_ONE, "plain_sds": PLAIN_SDS, "triplanar": LEVELS
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """What a method made.

    Attributes:
        maps: [size, size, 8], dilated across seams.
        pixels_per_unit: of the finest pictures that two stages are guided by: where all methods
            are measured.
        seconds: of wall clock, without loading the mesh.
        core_seconds: of all cores together.
    """

    maps: Tensor
    pixels_per_unit: float
    seconds: float
    core_seconds: float


def texture_mesh(
    method: Method,
    renderer: Renderer,
    covered: Tensor,
    exemplars: ExemplarSet,
    settings: MeshSettings,
    seed: int,
    progress: Callable[[str], None],
) -> TexturedMesh:
    """Runs a method.

    Args:
        method: which.
        renderer: of the mesh.
        covered: [size, size] bool, texels that a face covers.
        exemplars: what it should look like.
        settings: of the study.
        seed: of views and noise.
        progress: is called with a level's name before it.
    """
    wall, cores = time.perf_counter(), time.process_time()
    size = settings.texture_size
    config = ExemplarConfig(
        scale=settings.scale,
        orient=method.orient,
        texture_size=size,
        steps=settings.steps,
        seed=seed,
    )
    pyramid = ExemplarPyramid.of(renderer, covered, exemplars, config, LEVELS_OF[method.method])
    maps = pyramid.grey()
    if method.method == "triplanar":
        density = texels_per_unit(renderer.mesh, covered)
        maps = triplanar(renderer.mesh, maps, exemplars, settings.scale, density)
    else:
        reached = Reached(0, maps, maps)
        while reached.level < len(pyramid.levels):
            progress(pyramid.levels[reached.level].name)
            problem = pyramid.problem(reached)
            for _ in optimize_material(problem):
                pass
            reached = pyramid.finish(reached, problem)
        maps = reached.maps
    return TexturedMesh(
        dilate_seams(maps, covered.to(torch.bool)),
        pyramid.pixels_per_unit,
        time.perf_counter() - wall,
        time.process_time() - cores,
    )
