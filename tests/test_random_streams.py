"""What is drawn at random comes from the documented numbers of one counter-based generator."""

import math
import re
from pathlib import Path

import torch

import sdslab
from sdslab.denoisers.noise_schedule import UniformTimesteps
from sdslab.kernels import philox
from sdslab.kernels.philox import (
    BACKGROUND_STREAM,
    CAMERA_STREAM,
    INITIALIZATION_STREAM,
    LIGHT_STREAM,
    TIMESTEP_STREAM,
    NoiseKey,
    philox_uniform,
)
from sdslab.parameterizations.pixel import PixelGrid
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.lighting import LAMP_DISTANCE, Environment, LightSampler
from sdslab.rendering.scene import sample_background

SEED, STEP, BATCH = 11, 5, 6


def uniform(stream: int, columns: int, step: int = STEP, batch: int = BATCH) -> torch.Tensor:
    return philox_uniform(NoiseKey(SEED, step, torch.arange(batch), stream), columns)


def test_every_stream_differs_and_stands_in_one_place():
    streams = {name: value for name, value in vars(philox).items() if name.endswith("_STREAM")}
    assert len(streams) >= 10
    assert len(set(streams.values())) == len(streams), streams
    for path in Path(sdslab.__file__).parent.rglob("*.py"):
        defined = re.findall(r"^(\w+_STREAM) =", path.read_text(encoding="utf-8"), re.M)
        assert path == Path(philox.__file__) or not defined


def test_timesteps_are_the_documented_ones():
    t = UniformTimesteps(100, 900)(NoiseKey(SEED, STEP, torch.arange(BATCH)), 0.3)
    assert t.equal(100 + (uniform(TIMESTEP_STREAM, 1)[:, 0] * 800).long())


def test_initial_values_are_the_documented_ones():
    grid = PixelGrid.uniform_noise((2, 3, 4, 5), SEED)()
    expected = uniform(INITIALIZATION_STREAM, 60, step=0, batch=2)
    assert grid.equal(expected.view(2, 3, 4, 5).to(grid.dtype))


def test_every_camera_column_is_the_documented_one():
    """Azimuth, elevation, field of view, distance, and the point looked at, in this order."""
    sampler = CameraSampler(
        azimuth_deg=(10, 80),
        elevation_deg=(-40, 50),
        fov_deg=(20, 70),
        radius=(3, 6),
        shared_radius=False,
        look_at_jitter=0.3,
    )
    cameras = sampler.sample(SEED, STEP, BATCH)
    columns = uniform(CAMERA_STREAM, 8).double()
    azimuth, elevation, fov, radius = (
        low + (high - low) * columns[:, k]
        for k, (low, high) in enumerate(((10, 80), (-40, 50), (20, 70), (3, 6)))
    )
    distance = radius * math.sin(math.radians(15)) / (fov / 2).deg2rad().sin()
    phi, theta = azimuth.deg2rad(), elevation.deg2rad()
    direction = torch.stack((phi.cos() * theta.cos(), theta.sin(), phi.sin() * theta.cos()), 1)
    eye = distance[:, None] * direction
    torch.testing.assert_close(cameras.eye.double(), eye, atol=1e-5, rtol=1e-5)
    target = torch.nn.functional.pad(0.3 * (2 * columns[:, 4:7] - 1), (0, 1), value=1.0)
    clip = (cameras.world_to_clip.double() @ target[..., None])[..., 0]
    assert (clip[:, :2] / clip[:, 3:]).abs().max() < 1e-5  # in the middle of the picture
    edge = 1 / (fov / 2).deg2rad().tan()
    scale = cameras.world_to_clip[:, 0, :3].double().norm(dim=1)
    torch.testing.assert_close(scale, edge, atol=1e-5, rtol=1e-5)


def test_the_papers_distance_is_one_for_the_step():
    first = CameraSampler().sample(SEED, STEP, BATCH).eye.norm(dim=1)
    expected = 2.2 + 4.4 * uniform(CAMERA_STREAM, 8)[0, 3]
    torch.testing.assert_close(first, expected.float().expand(BATCH), atol=1e-5, rtol=1e-5)


def test_light_is_the_documented_one():
    environments = tuple(
        Environment(torch.full((3, 2, 4, 4), float(i)), torch.zeros(9, 3)) for i in range(5)
    )
    sampler = LightSampler(environments, (-90, 90), (0.5, 2), SEED, lamp="point")
    for step in range(8):
        light = sampler.sample(step, BATCH)
        shared = NoiseKey(SEED, step, torch.tensor([2**32 - 1]), LIGHT_STREAM)
        assert light.environment is environments[int(philox_uniform(shared, 1) * 5)]
        columns = uniform(LIGHT_STREAM, 4, step)
        torch.testing.assert_close(light.yaw, (180 * columns[:, 0] - 90).deg2rad().float())
        torch.testing.assert_close(light.intensity, (0.5 + 1.5 * columns[:, 1]).float())
        assert light.points is not None
        place = light.points.position[:, 0] / LAMP_DISTANCE
        torch.testing.assert_close(place[:, 1], (2 * columns[:, 2] - 1).float())
        angle = torch.atan2(place[:, 2], place[:, 0]).remainder(2 * math.pi)
        torch.testing.assert_close(angle, (2 * math.pi * columns[:, 3]).float())


def test_backgrounds_are_the_documented_ones():
    columns = uniform(BACKGROUND_STREAM, 7).float()
    picture = sample_background("random", SEED, STEP, BATCH, (2, 2))
    assert picture[..., 0, 0].equal(columns[:, :3])
    checker = sample_background("checker", SEED, STEP, BATCH, (480, 480))
    assert checker[..., 0, 0].equal(columns[:, :3])
    squares = 4 + (12 * columns[:, 6]).long()
    for view, count, second in zip(checker, squares.tolist(), columns[:, 3:6], strict=True):
        along = view[:, 0]  # the first row of pixels
        changes = (along[:, 1:] != along[:, :-1]).any(0).sum()
        assert int(changes) == count - 1
        assert view[:, 0, int(480 / count) + 1].equal(second)
