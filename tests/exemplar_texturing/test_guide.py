"""Noise that belongs to places on the surface, seen through the guide that draws it."""

from typing import cast

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.exemplar import ExemplarDenoiser, cosine_schedule
from sdslab.exemplar_texturing.guide import ExemplarGuide, GuidedPicture
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene

RESOLUTION = 96
PIXELS_PER_UNIT = 24.0


class NoiseWitness(Denoiser):
    """Keeps the x_t that it is shown."""

    def __init__(self) -> None:
        self.schedule = cosine_schedule()
        self.seen: list[Tensor] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        alpha_bar = self.schedule.alpha_bar(t).to(x_t).view(-1, 1, 1, 1)
        self.seen.append(x_t / (1 - alpha_bar).sqrt())
        return Prediction(torch.zeros_like(x_t), "x0")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(load_mesh("torus"), CpuBackend())


def views(*directions: tuple[float, float, float], roll: float = 0.0) -> Cameras:
    """Cameras around the origin, turned about their own axes by ``roll`` radians."""
    eyes = 8.0 * torch.nn.functional.normalize(torch.tensor(directions).double(), dim=1)
    fov = torch.full((len(eyes),), 18.0).double()
    cameras = Cameras.look_at(eyes, torch.zeros_like(eyes), fov)
    return cameras.turned(torch.full((len(eyes),), roll).double()) if roll else cameras


def noise_of(
    renderer: Renderer, cameras: Cameras, index: int = 0, seed: int = 0
) -> tuple[Tensor, Surface]:
    """ε of each picture, [b, 3, h, w], as the denoiser gets it for a grey picture."""
    witness = NoiseWitness()
    guide = ExemplarGuide(
        cast(ExemplarDenoiser, witness),
        GuidedPicture(renderer, (0, 1, 2)),
        (0.5, 0.1),
        10,
        seed,
        PIXELS_PER_UNIT,
    )
    surface = renderer.see(cameras, RESOLUTION)
    z = torch.zeros(len(cameras), 3, RESOLUTION, RESOLUTION)
    guide(z, index, Scene(cameras, None, z), surface)
    return witness.seen[0], surface


def test_a_view_turned_upside_down_shows_the_same_noise_upside_down(renderer: Renderer):
    upright, surface = noise_of(renderer, views((1, 2, 3)))
    turned, _ = noise_of(renderer, views((1, 2, 3), roll=torch.pi))
    covered = surface.coverage().expand_as(upright) > 0
    same = (upright == turned.flip(2, 3))[covered]
    assert same.float().mean() > 0.99  # a pixel's middle may round to the next voxel
    assert covered.float().mean() > 0.2


def test_two_views_show_the_same_noise_at_the_same_place(renderer: Renderer):
    noise, surface = noise_of(renderer, views((1, 2, 3), (1.5, 2, 2.5)))
    values = noise.movedim(1, -1).reshape(-1, 3)[surface.pixel]
    first, second = surface.view == 0, surface.view == 1
    distances = torch.cdist(surface.position[first], surface.position[second])
    nearest, partner = distances.min(1)
    close = nearest < 0.1 / PIXELS_PER_UNIT
    assert close.sum() > 50
    same = (values[first][close] == values[second][partner[close]]).all(1)
    assert same.float().mean() > 0.8  # the others lie on either side of a voxel's face


def test_on_the_surface_noise_stays_while_steps_go_on_and_behind_it_is_fresh(renderer: Renderer):
    before, surface = noise_of(renderer, views((1, 2, 3)), index=0)
    after, _ = noise_of(renderer, views((1, 2, 3)), index=5)
    covered = surface.coverage().expand_as(before) > 0
    assert torch.allclose(before[covered], after[covered], atol=1e-5)
    assert not (before[~covered] == after[~covered]).any()


def test_another_seed_is_another_noise(renderer: Renderer):
    one, surface = noise_of(renderer, views((1, 2, 3)))
    other, _ = noise_of(renderer, views((1, 2, 3)), seed=1)
    covered = surface.coverage().expand_as(one) > 0
    correlation = torch.corrcoef(torch.stack((one[covered], other[covered])))[0, 1]
    assert abs(correlation) < 0.1


def test_noise_is_standard_normal_and_white_from_voxel_to_voxel(renderer: Renderer):
    directions = [(1, 2, 3), (-1, 2, 1), (2, -1, -1), (-1, -3, 0.5)]
    noise, surface = noise_of(renderer, views(*directions))
    covered = (surface.coverage() > 0)[:, 0]
    rows = noise.movedim(1, -1)
    values = rows[covered]
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05
    apart = 3  # pixels, so that no voxel holds both
    both = covered[..., apart:] & covered[..., :-apart]
    left, right = rows[..., :-apart, :][both], rows[..., apart:, :][both]
    pairs = torch.stack((left.flatten(), right.flatten()))
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.05
    channels = torch.corrcoef(values.T)
    assert (channels - torch.eye(3)).abs().max() < 0.05
