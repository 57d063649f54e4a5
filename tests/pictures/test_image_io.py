import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from sdslab.errors import UserError, UserNote, exit_on_user_error
from sdslab.pictures.color import linear_to_srgb
from sdslab.pictures.image_io import load_image, load_picture
from sdslab.shell.named_inputs import PHOTOGRAPHS
from tests.color_profiles import (
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    grey_profile,
    rgb_profile,
    rgb_to_xyz,
)

COLORS = np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
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


def p3_in_srgb() -> torch.Tensor:
    """COLORS, encoded with an exponent of 2.2 in Display P3's primaries, [1, 3, 8, 8]."""
    to_srgb = np.linalg.inv(rgb_to_xyz(SRGB_PRIMARIES)) @ rgb_to_xyz(P3_PRIMARIES)
    linear = torch.from_numpy((COLORS / 255) ** 2.2 @ to_srgb.T).clamp(0, 1)
    return linear_to_srgb(linear).movedim(-1, 0)[None].float()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_an_embedded_profile_become_srgb(mode: str, tmp_path: Path):
    picture = Image.fromarray(COLORS)
    picture = picture.quantize(64, dither=Image.Dither.NONE) if mode == "P" else picture
    picture = picture.convert(mode)
    picture.save(tmp_path / "p3.png", icc_profile=rgb_profile(P3_PRIMARIES, 2.2))
    read = load_image(tmp_path / "p3.png", 8)
    atol = {"P": 4}.get(mode, 1.5) / 255
    torch.testing.assert_close(read, p3_in_srgb(), atol=atol, rtol=0)


def test_a_map_has_no_colours_to_convert(tmp_path: Path):
    Image.fromarray(COLORS).save(tmp_path / "map.png", icc_profile=rgb_profile(P3_PRIMARIES, 2.2))
    read = load_picture(tmp_path / "map.png", 8, colors=False).channels * 255
    torch.testing.assert_close(read.movedim(0, -1).round().byte(), torch.from_numpy(COLORS))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("profile", [grey_profile(1.0), rgb_profile(SRGB_PRIMARIES, 1.0)])
def test_linear_grey_becomes_srgb(dtype: type, profile: bytes, tmp_path: Path):
    share = np.linspace(0.1, 1, 64).reshape(8, 8)
    pixels = (share * np.iinfo(dtype).max).round().astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "grey.png", icc_profile=profile)
    expected = linear_to_srgb(torch.from_numpy(share)).float().expand(1, 3, 8, 8)
    read = load_image(tmp_path / "grey.png", 8)
    torch.testing.assert_close(read, expected, atol=2.5 / 255, rtol=0)


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"damaged", "cannot open profile"),
        ("RGB", rgb_profile(P3_PRIMARIES, 2.2)[:200], "profile"),
        ("CMYK", rgb_profile(P3_PRIMARIES, 2.2), "it is for RGB colours, the picture has CMYK"),
    ],
    ids=["no profile", "cut off", "of other colours"],
)
def test_a_profile_of_no_use_is_told_of_and_left(
    mode: str, profile: bytes, reason: str, tmp_path: Path
):
    for name, given in (("plain.tif", None), ("other.tif", profile)):
        Image.fromarray(COLORS).convert(mode).save(tmp_path / name, icc_profile=given)
    with pytest.warns(UserNote, match=rf"other.tif: its colour profile is left aside: .*{reason}"):
        read = load_image(tmp_path / "other.tif", 8)
    assert read.equal(load_image(tmp_path / "plain.tif", 8))


def test_a_program_says_a_note_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(COLORS).save(tmp_path / "a.png", icc_profile=b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with exit_on_user_error():
            load_image(tmp_path / "a.png", 8)
    error = capsys.readouterr().err
    assert error.startswith("note: a.png: its colour profile is left aside: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "tRNS"])
def test_opacity_is_read_and_hidden_colours_do_not_bleed(mode: str, tmp_path: Path):
    path = tmp_path / "cutout.png"
    shape = np.zeros((64, 64), np.uint8)
    shape[16:48, 16:48] = 255
    if mode == "tRNS":
        Image.fromarray(shape // 2).save(path, transparency=0)
    else:
        whole = np.stack((shape // 2, shape // 2, shape // 2, shape), -1)
        picture = Image.fromarray(whole)
        picture = picture.quantize(8) if mode == "PA" else picture.convert(mode)
        picture.save(path)
    photo = load_picture(path, 16)
    assert photo.opacity is not None
    expected = F.interpolate(torch.from_numpy(shape)[None, None] / 255, (16, 16), mode="area")
    assert (photo.opacity - expected[0]).abs().max() < 0.15  # bicubic, not area
    inside = photo.channels[:, photo.opacity[0] > 0.3]
    torch.testing.assert_close(inside, torch.full_like(inside, 127 / 255), atol=0.02, rtol=0)
    assert load_image(path, 64)[..., :15, :15].min() == 1


@pytest.mark.parametrize("suffix", ["exr", "hdr"])
def test_linear_light_is_no_photo(suffix: str, tmp_path: Path):
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(b"#?RADIANCE")
    with pytest.raises(UserError, match=r"sRGB-encoded .* linear light .* save it as PNG"):
        load_image(path, 8)


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
    """Stripes of period 3, which any sampling in steps of 4 shows as coarser stripes."""
    stripes = np.tile(np.array([0, 0, 255], np.uint8), (192, 64))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    inner = load_image(tmp_path / "stripes.png", 48)[..., 2:-2]  # apart from the filter at the edge
    assert (inner - 1 / 3).abs().max() < 0.06
    assert load_image(tmp_path / "stripes.png", 192)[0, 0, 0, ::4].std() > 0.4


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
