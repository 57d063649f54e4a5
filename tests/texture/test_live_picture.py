"""Pictures of the live page: maps of any size, and what ``front.png`` shows."""

import math

import pytest
import torch

from sdslab.meshes.material import MAPS, constant_material
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.pictures.color import srgb_to_linear
from sdslab.rendering.cameras import six_views
from sdslab.rendering.lighting import Environment
from sdslab.rendering.preview import Previewer
from sdslab.texture.live_picture import LOOKS, LiveScene, Pose, covered_at, fitted


@pytest.fixture(scope="module")
def scene() -> LiveScene:
    return LiveScene(PROCEDURAL_MESHES["apple"](), {"sky": Environment.of("sky")}, "srgb")


def material(size: int) -> torch.Tensor:
    maps = constant_material(size, size, roughness=0.6)
    maps[..., :3] = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(0))
    return maps


@pytest.mark.parametrize("size", [16, 64, 256])
def test_texels_outside_the_charts_contribute_nothing_at_any_size(scene: LiveScene, size: int):
    """At 16 and 64 they come from maps of 64, at 256 the same: smaller, equal and larger."""
    covered = covered_at(scene.mesh, 64)
    assert not covered.all()
    wanted = constant_material(64, 64, albedo=(0.25, 0.5, 0.75), roughness=0.25)
    given = torch.where(covered[..., None], wanted, constant_material(64, 64, metallic=1.0))
    result = fitted(given, covered, size)
    torch.testing.assert_close(result, wanted[:1, :1].expand(size, size, 8), rtol=0, atol=1e-5)


def test_a_view_looks_like_front_png(scene: LiveScene):
    renderer, maps = scene.renderer(2), material(64)
    camera = six_views(renderer.bounding_radius)[:1]
    shown = scene.picture(renderer, camera, (96, 96), maps, "result", "sky", 0.0)
    front = Previewer(renderer, scene.lights["sky"], 96).picture(camera, maps)[0].movedim(0, -1)
    assert ((front * 255).round() - shown).abs().max() <= 1


@pytest.mark.parametrize("look", LOOKS[1:])
def test_a_single_map_is_shown_as_its_file_holds_it(scene: LiveScene, look):
    renderer = scene.renderer(1)
    maps = constant_material(16, 16, albedo=(0.2, 0.4, 0.6), roughness=0.8, metallic=0.4)
    camera = six_views(renderer.bounding_radius)[:1]
    picture = scene.picture(renderer, camera, (32, 48), maps, look, "sky", 0.0)
    assert picture.shape == (32, 48, 3)
    levels = (maps[0, 0, MAPS[look]] * 255).expand(3)
    seen = (picture != 255).any(-1) if look != "normal" else picture[..., 0] != 255
    assert seen.sum() > 100
    assert (picture[seen] - levels).abs().max() < 0.51


def test_a_stop_of_exposure_doubles_the_light(scene: LiveScene):
    renderer, maps = scene.renderer(1), constant_material(16, 16, albedo=(0.3, 0.3, 0.3))
    camera = six_views(renderer.bounding_radius)[:1]
    one, two = (
        srgb_to_linear(
            scene.picture(renderer, camera, (64, 64), maps, "result", "sky", stops) / 255
        )
        for stops in (-2.0, -1.0)
    )
    seen = (two < 0.9) & (one > 0.01)
    assert seen.sum() > 1000
    torch.testing.assert_close(two[seen], 2 * one[seen], rtol=0.05, atol=0.005)


def test_a_run_without_light_shows_its_albedo(scene: LiveScene):
    unlit = LiveScene(scene.mesh, {}, "srgb")
    renderer, maps = unlit.renderer(1), material(32)
    camera = six_views(renderer.bounding_radius)[:1]
    pictures = [
        unlit.picture(renderer, camera, (48, 48), maps, look, "none", 0.0).int()
        for look in ("result", "albedo")
    ]
    assert (pictures[0] - pictures[1]).abs().max() <= 1


def test_the_browsers_camera_is_ours():
    """viser's looks along its +z, and its +y is the picture's bottom."""
    viser = pytest.importorskip("viser", reason="needs viser, the extra `live`")
    ours = six_views(1.0, 40.0)[1:2]
    rows = ours.world_to_camera[0, :3, :3].double() * torch.tensor([[1.0], [-1.0], [-1.0]])
    wxyz = viser.transforms.SO3.from_matrix(rows.T.numpy()).wxyz
    eye = ours.eye[0].tolist()
    pose = Pose(tuple(wxyz), tuple(eye), math.radians(40.0), 2.0, 100)
    torch.testing.assert_close(pose.view(1.0).world_to_clip, ours.world_to_clip)
    wide = pose.view(2.0).world_to_clip[0]
    torch.testing.assert_close(wide[0] * 2, ours.world_to_clip[0, 0])


@pytest.mark.parametrize("aspect", [0.4, 0.8])
def test_what_fits_a_square_fits_an_upright_window(aspect: float):
    pose = Pose((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), math.radians(40.0), aspect, 800)
    square, upright = (pose.view(a).world_to_clip[0] for a in (1.0, aspect))
    torch.testing.assert_close(upright[0], square[0])
    torch.testing.assert_close(upright[1], square[1] * aspect)


@pytest.mark.parametrize(("width", "free"), [(390, 0.44), (700, 1.0), (956, 1.0)])
def test_on_a_phone_the_object_lies_above_the_panel(width: int, free: float):
    assert Pose((1, 0, 0, 0), (0, 0, 0), 1.0, width / 844, 844).free == free
