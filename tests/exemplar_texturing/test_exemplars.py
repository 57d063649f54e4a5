"""Photographs of any kind, and what is made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.exemplar_texturing.exemplars import anisotropy, load_exemplars, turned
from sdslab.meshes.material import NORMAL
from sdslab.shell.named_inputs import tag_and_file
from tests.conftest import random_image

ALBEDO_ONLY = (0, 1, 2)


def ramp(height: int = 30, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack((4 * rows, 3 * columns, rows + columns), -1).astype(np.uint8)


def channels(path: Path) -> torch.Tensor:
    return load_exemplars([str(path)]).exemplars[0].channels


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK", "P", "1"])
def test_a_photo_of_any_mode_has_three_channels(mode: str, tmp_path: Path):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    if mode == "I;16":
        Image.fromarray(ramp()[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(ramp()).convert(mode).save(path)
    read = channels(path)
    assert read.shape == (3, 30, 40)
    assert read.min() >= 0
    assert read.max() <= 1
    assert read.std() > 0.05


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.fromarray(ramp()).save(tmp_path / "held.png", exif=exif)
    Image.fromarray(ramp()).save(tmp_path / "plain.png")
    expected = torch.rot90(channels(tmp_path / "plain.png"), -1, (1, 2))
    torch.testing.assert_close(channels(tmp_path / "held.png"), expected)


@pytest.mark.parametrize(("size", "expected"), [((1, 1), (1, 1)), ((900, 3), (3, 6))])
def test_a_tiny_or_narrow_photo_keeps_its_middle(size, expected, tmp_path: Path):
    Image.new("RGB", size, (9, 90, 200)).save(tmp_path / "photo.png")
    assert channels(tmp_path / "photo.png").shape[1:] == expected


@pytest.mark.slow
def test_a_photo_of_144_megapixels_is_reduced_as_it_is_read(tmp_path: Path):
    Image.new("RGB", (12_000, 12_000), (10, 100, 200)).save(tmp_path / "huge.jpg")
    read = channels(tmp_path / "huge.jpg")
    assert read.shape == (3, 1024, 1024)
    expected = torch.tensor([10, 100, 200]).view(3, 1, 1) / 255
    torch.testing.assert_close(read, expected.expand_as(read), atol=0.02, rtol=0)


def test_a_tag_is_what_stands_before_the_first_equals_sign(tmp_path: Path):
    assert tag_and_file("moss=photos/moss.jpg") == ("moss", "photos/moss.jpg")
    assert tag_and_file("photos/a=b.jpg") == (None, "photos/a=b.jpg")
    assert tag_and_file("moss.jpg") == (None, "moss.jpg")
    named = tmp_path / "a=b.jpg"
    named.touch()
    assert tag_and_file(str(named)) == (None, str(named))


def test_a_map_of_another_aspect_is_refused(tmp_path: Path):
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="show what their photo shows"):
        load_exemplars(["gravel"], roughness=[str(tmp_path / "wide.png")])


def test_a_dark_mask_is_refused(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "dark.png")
    with pytest.raises(UserError, match="must be bright"):
        load_exemplars(["gravel"], masks=[str(tmp_path / "dark.png")])


def cutout(path: Path, opacity: int = 255) -> Path:
    """A ramp 64×64 that is opaque in its middle 32×32 and white around it, half so in between."""
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[14:50, 14:50, 3] = opacity // 2
    pixels[16:48, 16:48, :3] = ramp(32, 32)
    pixels[16:48, 16:48, 3] = opacity
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("opacity", [255, 160], ids=["opaque", "translucent"])
def test_opacity_is_the_mask(opacity: int, tmp_path: Path):
    (exemplar,) = load_exemplars([str(cutout(tmp_path / "a.png", opacity))]).exemplars
    assert exemplar.mask is not None
    assert exemplar.mask[0, 16:48, 16:48].all()
    assert int(exemplar.mask.sum()) == 32 * 32
    # Nothing of the white around it is left, and what is there instead is mirrored.
    inside = exemplar.channels[:, 16:48, 16:48]
    torch.testing.assert_close(inside * 255, torch.from_numpy(ramp(32, 32)).movedim(-1, 0).float())
    beyond = exemplar.channels[:, 16:48, 48:60]
    assert beyond.flip(-1).equal(inside[:, :, 19:31])


def test_a_given_mask_wins_over_opacity(tmp_path: Path):
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    photo, mask = str(cutout(tmp_path / "a.png")), str(tmp_path / "mask.png")
    (exemplar,) = load_exemplars([photo], masks=[mask]).exemplars
    assert exemplar.mask is not None
    assert exemplar.mask[0].equal(torch.from_numpy(half) > 0)


def test_a_photo_that_is_transparent_all_over_is_refused(tmp_path: Path):
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    with pytest.raises(UserError, match="transparent all over; remove its alpha"):
        load_exemplars([str(tmp_path / "clear.png")])


def test_an_opaque_alpha_channel_is_no_mask(tmp_path: Path):
    Image.fromarray(ramp()).convert("RGBA").save(tmp_path / "a.png")
    assert load_exemplars([str(tmp_path / "a.png")]).exemplars[0].mask is None


def test_stripes_have_a_direction_and_noise_has_none():
    stripes = torch.sin(torch.arange(64.0) / 2).expand(3, 64, 64)
    assert anisotropy(stripes) == pytest.approx(1)
    assert anisotropy(stripes.mT) == pytest.approx(1)
    assert anisotropy(random_image(3, 64, 64)) < 0.1
    assert anisotropy(torch.full((3, 64, 64), 0.5)) == 0


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact(quarters: int):
    picture = random_image(3, 12, 12) * 2 - 1
    result, _ = turned(picture, None, quarters * torch.pi / 2, ALBEDO_ONLY)
    expected = torch.rot90(picture, quarters, (1, 2))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_a_turned_picture_knows_what_it_shows():
    picture = torch.ones(3, 20, 40)
    _, mask = turned(picture, None, torch.pi / 2, ALBEDO_ONLY)
    assert mask is not None
    assert mask[0, :, 11:29].all()  # the upright strip of the picture's own height
    assert not mask[0, :, :8].any()
    kept = torch.zeros(1, 20, 40, dtype=torch.bool)
    _, mask = turned(picture, kept, 0.3, ALBEDO_ONLY)
    assert mask is not None
    assert not mask.any()


def test_normals_turn_with_their_picture():
    guided = (*ALBEDO_ONLY, *range(NORMAL.start, NORMAL.stop))
    right = torch.zeros(6, 9, 9)
    right[3] = 0.6
    right[5] = 0.8
    result, _ = turned(right, None, torch.pi / 2, guided)
    expected = right.clone()
    expected[3], expected[4] = 0.0, 0.6  # what leaned to the right now leans up
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
