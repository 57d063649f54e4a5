"""What the renders of one step share."""

import torch

from sdslab.meshes.material import constant_material
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler


def test_two_renders_of_one_step_share_their_background():
    """CasTex's condition and its render disagree outside the mask: each draws its own colour."""
    renderer = Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend(), supersampling=2)
    scenes = SceneSampler(CameraSampler(), None, "random", 48, seed=3)
    scene, again, later = (scenes.sample(s, 2, renderer.extreme_points) for s in (7, 7, 8))
    materials = (constant_material(4, 4), constant_material(4, 4, albedo=(0.9, 0.1, 0.2)))
    surface = renderer.see(scene.cameras, scenes.resolution)
    first, second = (
        renderer.picture(surface, maps, s.lighting, s.background)
        for maps, s in zip(materials, (scene, again), strict=True)
    )
    outside = (surface.coverage() == 0).expand_as(first)
    assert outside.any()
    assert first[outside].equal(second[outside])
    assert not first[~outside].equal(second[~outside])
    assert not torch.equal(scene.background, later.background)
