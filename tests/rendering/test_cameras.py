import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.errors import UserError
from sdslab.rendering.cameras import (
    CAMERA_SAMPLERS,
    EVALUATION_VIEWS,
    FAR,
    NEAR,
    WIDE_SAMPLER,
    Cameras,
    CameraSampler,
    castex_20_views,
    fitting_distance,
    frame_fill,
    six_views,
    turntable_views,
)


def project(cameras: Cameras, point: list[float]) -> torch.Tensor:
    """[b, 3] normalised device coordinates of a world point."""
    clip = cameras.world_to_clip.double() @ torch.tensor([*point, 1.0]).double()
    return clip[:, :3] / clip[:, 3:]


def orbit(azimuth: float, elevation: float, radius: float = 3, fov: float = 30) -> Cameras:
    return Cameras.orbit(*(torch.tensor([value]) for value in (azimuth, elevation, radius, fov)))


def test_the_front_camera_sees_x_to_the_right_and_y_up():
    front = orbit(90, 0)
    assert torch.allclose(front.eye, torch.tensor([[0.0, 0, 3]]), atol=1e-6)
    assert project(front, [0.1, 0, 0])[0, 0] > 0
    assert project(front, [0, 0.1, 0])[0, 1] > 0
    assert project(front, [0, 0, 0.1])[0, 2] < project(front, [0, 0, -0.1])[0, 2]


@given(st.floats(0, 360), st.floats(-90, 90), st.floats(1, 9), st.floats(5, 120))
@settings(max_examples=60, deadline=None)
def test_the_origin_is_in_the_middle_and_up_is_up(
    azimuth: float, elevation: float, radius: float, fov: float
):
    cameras = orbit(azimuth, elevation, radius, fov)
    assert cameras.eye.norm().item() == pytest.approx(radius, rel=1e-5)
    assert project(cameras, [0, 0, 0])[0, :2].abs().max() < 1e-5
    if abs(elevation) < 89.9:
        above = project(cameras, [0, 0.01, 0])[0]
        assert above[1] > 0
        assert abs(above[0]) < 1e-4
    rotation = cameras.world_to_camera[0, :3, :3].double()
    assert (rotation @ rotation.T - torch.eye(3)).abs().max() < 1e-5
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)


def test_the_field_of_view_is_the_full_angle():
    cameras = orbit(90, 0, radius=2, fov=40)
    edge = 2 * math.tan(math.radians(20))
    assert project(cameras, [edge, 0, 0])[0, 0].item() == pytest.approx(1, abs=1e-5)


def test_the_near_and_the_far_plane_are_where_they_are_said_to_be():
    front = orbit(90, 0, radius=3)
    for distance, depth in ((NEAR, -1.0), (FAR, 1.0)):
        assert project(front, [0, 0, 3 - distance])[0, 2].item() == pytest.approx(depth, abs=1e-4)


@pytest.mark.parametrize(("elevation", "top"), [(90, -1.0), (-90, 1.0)], ids=["above", "below"])
def test_straight_above_the_front_is_at_the_bottom_and_straight_below_at_the_top(
    elevation: float, top: float
):
    """As if the camera had tilted there from the front: no jump on the way to the pole."""
    pole, near_it = orbit(90, elevation), orbit(90, elevation * 0.999)
    assert math.copysign(1, project(pole, [0, 0, 0.1])[0, 1].item()) == top
    assert (pole.world_to_camera - near_it.world_to_camera).abs().max() < 0.01


@pytest.mark.parametrize("fov", [10.0, 30.0, 60.0, 120.0])
def test_the_distance_goes_by_the_sine_of_half_the_field_of_view(fov: float):
    """Then the sphere that just fits the picture is the same for every field of view."""
    sampler = CameraSampler(fov_deg=(fov, fov), radius=(4.0, 4.0))
    distance = sampler.sample(0, 0, 1).eye.norm().item()
    fitting = 4 * math.sin(math.radians(15))  # the radius of that sphere
    assert distance == pytest.approx(fitting / math.sin(math.radians(fov / 2)), rel=1e-5)
    outline = fitting_distance(1.0, fov) * math.sin(math.radians(fov / 2))
    assert outline == pytest.approx(1.03, rel=1e-6)


def test_views_look_at_points_all_over_the_jitters_cube():
    cameras = dataclasses.replace(CameraSampler(), look_at_jitter=0.5).sample(0, 0, 4000)
    backward = cameras.world_to_camera[:, 2, :3].double()
    eye = cameras.eye.double()
    # The point of each line of sight that is nearest to the origin lies within the cube's sphere.
    nearest = eye - (eye * backward).sum(1, keepdim=True) * backward
    distance = nearest.norm(dim=1)
    assert distance.max() <= 0.5 * math.sqrt(3)
    assert distance.max() > 0.7
    assert nearest.mean(0).abs().max() < 0.02


def test_castexs_sampler_is_the_papers():
    cameras = CameraSampler().sample(0, 0, 4096)
    radius = cameras.eye.norm(dim=1)
    assert radius.std() < 1e-5  # one scalar a batch
    assert 4.4 * 0.5 <= radius[0] <= 4.4 * 1.5
    elevation = torch.rad2deg(torch.asin(cameras.eye[:, 1] / radius))
    assert elevation.min() >= -60.01
    assert elevation.max() <= 60.01
    assert abs(elevation.mean()) < 2
    assert elevation.std().item() == pytest.approx(120 / math.sqrt(12), rel=0.05)
    radii = torch.tensor([float(CameraSampler().sample(0, s, 1).eye.norm()) for s in range(300)])
    assert radii.mean().item() == pytest.approx(4.4, abs=0.25)


@pytest.mark.parametrize("name", CAMERA_SAMPLERS)
def test_a_view_depends_on_seed_step_and_index_alone(name: str):
    sampler = CAMERA_SAMPLERS[name]
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    whole = sampler.sample(7, 3, 8, points)
    assert sampler.sample(7, 3, 5, points).world_to_clip.equal(whole.world_to_clip[:5])
    assert not sampler.sample(8, 3, 8, points).eye.equal(whole.eye)
    assert not sampler.sample(7, 4, 8, points).eye.equal(whole.eye)


def test_the_wide_sampler_keeps_the_object_in_the_frame():
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cameras = WIDE_SAMPLER.sample(0, 0, 256, points)
    fill = frame_fill(cameras, points)
    low, high = WIDE_SAMPLER.frame_fill
    assert ((fill >= low) & (fill <= high)).double().mean() > 0.99
    assert cameras.eye.norm(dim=1).std() > 0.1


def test_frame_fill_of_a_square_is_its_share_of_the_frame():
    square = torch.tensor([[-0.5, -0.5, 0], [0.5, 0.5, 0]])
    half_frame = 3 * math.tan(math.radians(15))
    assert frame_fill(orbit(90, 0), square).item() == pytest.approx(0.5 / half_frame, rel=1e-4)
    assert frame_fill(orbit(90, 0, 0.1), torch.tensor([[0.0, 0, 1]])).item() == math.inf


def test_castexs_20_views():
    cameras = castex_20_views()
    elevation = torch.rad2deg(torch.asin(cameras.eye[:, 1] / 2.8)).round().int()
    assert len(cameras) == 20
    assert {angle: elevation.tolist().count(angle) for angle in (0, 30, 60)} == {0: 4, 30: 8, 60: 8}
    ball = torch.nn.functional.normalize(cameras.eye, dim=1)
    assert frame_fill(cameras, torch.cat((ball, -ball))).max() < 1.1
    assert all(len(views()) > 0 for views in EVALUATION_VIEWS.values())


def test_the_turntable_starts_in_front_and_goes_counter_clockwise():
    eye = turntable_views(4, 1.5).eye
    assert eye[0, 2] > 0
    assert eye[0, 0].abs() < 1e-5
    assert eye[1, 0] > 0  # from +Z (below, on a plan) to +X (on its right)


def test_a_cube_fits_the_turntable_and_the_six_views():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    for cameras in (turntable_views(12, math.sqrt(3)), six_views(math.sqrt(3))):
        clip = torch.nn.functional.pad(corners, (0, 1), value=1.0) @ cameras.world_to_clip.mT
        extent = (clip[..., :2] / clip[..., 3:]).abs()
        assert extent.max() <= 1
        assert extent.max() > 0.7


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fov_deg", (0, 30), "fov_deg must lie between 0 and 180"),
        ("radius", (0, 1), "radius must be positive"),
        ("elevation_deg", (10, -10), "elevation_deg must be a range"),
    ],
    ids=["fov", "radius", "range"],
)
def test_impossible_cameras_are_refused(field: str, value: tuple[float, float], message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CameraSampler(), **{field: value})
