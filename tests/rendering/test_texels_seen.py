"""What counts as looked at, against the look-up's own adjoint."""

import torch

from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.cameras import Cameras, six_views
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.texels import SeenTexels


def looked_at(renderer: Renderer, cameras: Cameras, resolution: int, size: int):
    surface = renderer.see(cameras, resolution)
    seen = SeenTexels((size, size))
    seen.mark(surface)
    texture = torch.zeros(size, size, 1, requires_grad=True)
    renderer.look_up(surface, texture).sum().backward()
    assert texture.grad is not None
    return seen.texels(), texture.grad[..., 0] > 0


def test_seen_texels_have_weight_in_the_look_up():
    """All of them; and where pixels are fine enough, nearly all texels with weight are seen."""
    renderer = Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend())
    for resolution, size in ((256, 32), (64, 64), (16, 128)):
        seen, weight = looked_at(renderer, six_views(), resolution, size)
        assert seen.any()
        assert not (seen & ~weight).any()
        assert seen.sum() > 0.85 * weight.sum()


def test_one_view_does_not_see_the_back():
    renderer = Renderer(PROCEDURAL_MESHES["sphere"](), CpuBackend())
    seen, _ = looked_at(renderer, six_views()[0:1], 128, 64)
    assert 0.3 < seen.double().mean() < 0.55


def test_pictures_add_up():
    renderer = Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend())
    seen = SeenTexels((32, 64))
    assert not seen.texels().any()
    shares = []
    for view in range(3):
        seen.mark(renderer.see(six_views()[view : view + 1], 64))
        shares.append(seen.texels().double().mean().item())
    assert seen.texels().shape == (32, 64)
    assert shares[0] < shares[1] < shares[2]
