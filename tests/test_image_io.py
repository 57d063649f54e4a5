from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.image_io import SKIMAGE_PHOTOGRAPHS, load_image


@pytest.mark.parametrize("name", SKIMAGE_PHOTOGRAPHS)
def test_photographs_of_scikit_image_load_by_name(name: str):
    image = load_image(name, 32)
    assert image.shape == (1, 3, 32, 32)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.01


def test_a_picture_of_the_right_size_keeps_its_bytes():
    astronaut = skimage.data.astronaut()
    loaded = (load_image("astronaut", 512)[0] * 255).movedim(0, -1)
    np.testing.assert_allclose(loaded, astronaut, atol=1e-4)


def test_the_central_square_is_cropped(tmp_path: Path):
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[:, 3:7] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png", 4).min() == 1


def test_transparency_is_laid_on_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png", 4).min() == 1


def test_a_folder_does_not_hide_a_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "coffee").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_image("coffee", 8).shape == (1, 3, 8, 8)


def test_pictures_are_turned_upright_as_their_exif_says(tmp_path: Path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    image = load_image(tmp_path / "phone.png", 8)
    assert image[..., 4:].min() == 1
    assert image[..., :4].max() == 0


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1", "CMYK"])
def test_other_pixel_formats_become_rgb_in_unit_range(mode: str, tmp_path: Path):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(path)
    else:
        Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    assert load_image(path, 8).min() == pytest.approx(1, abs=0.01)


def test_resizing_is_antialiased(tmp_path: Path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    inner = load_image(tmp_path / "stripes.png", 16)[..., 2:-2]  # apart from the filter at the edge
    assert (inner - 0.5).abs().max() < 0.001


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "existing file or one of astronaut"),
        (b"not a picture", "readable picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "readable picture"),
    ],
    ids=["missing", "text", "truncated"],
)
def test_unreadable_pictures_are_refused(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_image(path, 8)


def test_a_folder_is_no_picture(tmp_path: Path):
    with pytest.raises(UserError, match="existing file"):
        load_image(tmp_path, 8)


def test_non_finite_values_are_counted_and_refused(tmp_path: Path):
    pixels = np.zeros((8, 8, 3), np.float32)
    pixels[0, 0] = np.nan
    np.save(tmp_path / "picture.npy", pixels)
    with pytest.raises(UserError, match="finite values only, got 3 NaN"):
        load_image(tmp_path / "picture.npy", 8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 3), 200.0), "within \\[0, 1\\] where they are floats, got 200 to 200"),
        (np.full((8, 8, 3), 7, np.int64), "uint8, uint16 or floats within"),
        (np.full((8, 8), "x"), "uint8, uint16 or floats within"),
        (np.full((8, 8), 1j), "uint8, uint16 or floats within"),
        (np.zeros((8, 8, 5)), r"h×w or h×w×3, got shape \[8, 8, 5\]"),
        (np.zeros((0, 8)), "h×w or h×w×3"),
    ],
    ids=["float-255", "int64", "text", "complex", "channels", "empty"],
)
def test_arrays_of_unclear_meaning_are_refused(array: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "picture.npy", array)
    with pytest.raises(UserError, match=message):
        load_image(tmp_path / "picture.npy", 8)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip"], ids=["empty", "zip"])
def test_files_that_are_no_arrays_are_refused(content: bytes, tmp_path: Path):
    (tmp_path / "picture.npy").write_bytes(content)
    with pytest.raises(UserError, match="readable picture"):
        load_image(tmp_path / "picture.npy", 8)


def test_pickled_arrays_are_never_read(tmp_path: Path):
    np.save(tmp_path / "picture.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="readable picture"):
        load_image(tmp_path / "picture.npy", 8)
