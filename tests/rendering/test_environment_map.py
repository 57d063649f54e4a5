import math
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.pictures.color import linear_to_srgb
from sdslab.rendering.environment_map import (
    MEAN_RADIANCE,
    directions,
    load_environment,
    resize,
    sample_equirectangular,
    solid_angles,
)

HDR = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n"


def energy(radiance: torch.Tensor) -> torch.Tensor:
    """∫ L dω, [3]."""
    return (radiance.double().sum(1) * solid_angles(len(radiance))[:, None]).sum(0)


def smooth_map(height: int = 32) -> torch.Tensor:
    d = directions(height)
    return (1.5 + 0.5 * torch.stack((d[..., 0], d[..., 1], d[..., 2]), dim=-1)).float()


def write_hdr(path: Path, pixels: np.ndarray, *, plain: bool) -> None:
    """As the format's description says, with every row a run of literals and one repetition."""
    height, width = pixels.shape[:2]
    exponent = np.floor(np.log2(pixels.max(-1, keepdims=True))).astype(np.int32) + 1
    mantissas = np.ldexp(pixels, 8 - exponent)
    rgbe = np.concatenate((mantissas, exponent + 128), axis=-1).astype(np.uint8)
    data = rgbe.tobytes()
    if not plain:
        rgbe[:, -9:] = rgbe[:, -9:-8]
        pixels[:, -9:] = pixels[:, -9:-8]
        data = b""
        for row in rgbe:
            data += bytes((2, 2, width >> 8, width & 255))
            for channel in row.T:
                literal, repeated = channel[:-9], channel[-1]
                data += bytes((len(literal),)) + literal.tobytes() + bytes((128 + 9, repeated))
    header = f"#?RADIANCE\n# a comment\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n"
    path.write_bytes(header.encode() + data)


def write_exr(path: Path, pixels: np.ndarray, **channels: np.ndarray) -> None:
    content: dict[str, Any] = channels or {"RGB": pixels}
    with OpenEXR.File({"type": OpenEXR.scanlineimage}, content) as file:
        file.write(str(path))


def test_the_sphere_has_4_pi_steradians():
    assert float(solid_angles(32).sum() * 64) == pytest.approx(4 * math.pi, rel=1e-12)


def test_the_middle_is_plus_x_the_top_plus_y_and_three_quarters_across_plus_z():
    d = directions(512)
    axis = d[255:257, 511:513].mean((0, 1))
    torch.testing.assert_close(axis, torch.tensor([1.0, 0, 0]).double(), atol=1e-4, rtol=0)
    assert d[0, :, 1].min() > 0.99999
    axis = d[255:257, 767:769].mean((0, 1))
    torch.testing.assert_close(axis, torch.tensor([0, 0, 1.0]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["studio", "sky", "constant"])
def test_a_white_sphere_shows_about_as_is_under_procedural_lights(name: str):
    radiance = load_environment(name)
    assert radiance.shape[1:] == (2 * len(radiance), 3)
    assert radiance.dtype == torch.float32
    assert radiance.min() > 0
    mean = energy(radiance).mean() / (4 * math.pi)
    assert float(mean) == pytest.approx(MEAN_RADIANCE, rel=1e-5)


def test_white_is_the_furnace():
    assert (load_environment("white") == 1).all()


def test_studio_is_neutral_and_the_sun_bounded():
    studio = energy(load_environment("studio"))
    assert studio.max() / studio.min() < 1.05
    sky = load_environment("sky")
    up = directions(len(sky))[..., 1:2]
    above = sky * (up > 0)
    sun = above * (above.amax(-1, keepdim=True) > 20)
    assert 0.15 < float(energy(sun).sum() / energy(above).sum()) < 0.6


@pytest.mark.parametrize("height", [8, 20, 31, 32])
def test_resizing_keeps_energy(height: int):
    generator = torch.Generator().manual_seed(0)
    radiance = torch.rand(64, 128, 3, generator=generator, dtype=torch.float64) ** 8
    torch.testing.assert_close(energy(resize(radiance, height)), energy(radiance))


def test_looking_up_the_centre_of_a_pixel_gives_the_pixel():
    radiance = torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(sample_equirectangular(radiance, directions(16)), radiance)


def test_looking_up_a_smooth_map_is_accurate_also_at_the_seam_and_the_poles():
    radiance = smooth_map(64).double()
    d = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    d[:100, [0, 2]] *= 1e-3
    d[100:200, 2] *= 1e-6
    d = torch.nn.functional.normalize(d, dim=-1)
    expected = 1.5 + 0.5 * d
    assert (sample_equirectangular(radiance, d) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["light.exr", "light.hdr", "plain.hdr", "light.png"])
def test_files_come_back_as_they_were_written(name: str, tmp_path: Path):
    path = tmp_path / name
    suffix = path.suffix[1:]
    radiance = smooth_map()
    if suffix == "exr":
        write_exr(path, radiance.numpy())
    elif suffix == "hdr":
        write_hdr(path, radiance.numpy(), plain="plain" in name)
    else:
        radiance = radiance / 2
        Image.fromarray((linear_to_srgb(radiance) * 255).round().byte().numpy()).save(path)
    budget = {"exr": 0.0, "hdr": 0.01, "png": 0.006}[suffix]
    assert (load_environment(path) - radiance).abs().max() <= budget


def test_exr_of_grey_or_with_alpha_or_negative_values(tmp_path: Path):
    grey = np.full((4, 8), 0.5, np.float32)
    write_exr(tmp_path / "grey.exr", grey, Y=grey)
    assert (load_environment(tmp_path / "grey.exr") == 0.5).all()
    rgba = np.full((4, 8, 4), 0.25, np.float32)
    rgba[0, 0, 0] = -1e-3
    write_exr(tmp_path / "rgba.exr", rgba, RGBA=rgba)
    loaded = load_environment(tmp_path / "rgba.exr")
    assert loaded.shape == (4, 8, 3)
    assert loaded.min() == 0


def test_large_maps_are_reduced(tmp_path: Path):
    pixels = np.zeros((520, 1040, 3), np.float32)
    pixels[100, 100] = 1000
    write_exr(tmp_path / "large.exr", pixels)
    loaded = load_environment(tmp_path / "large.exr")
    assert loaded.shape == (512, 1024, 3)
    torch.testing.assert_close(energy(loaded), energy(torch.from_numpy(pixels)), rtol=1e-5, atol=0)


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("sky").write_bytes(b"")
    with pytest.raises(UserError, match="ends in one of"):
        load_environment("sky")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.hdr", None, "existing file or one of studio, sky"),
        ("light.txt", b"x", r"ends in one of \.hdr, \.exr"),
        ("light.hdr", b"no picture", "readable .hdr file"),
        ("light.hdr", HDR + b"-Y 4 +X 8\n\0", "cut short"),
        ("light.hdr", HDR + b"-Y 4 +X 8\n" + b"\2\2\0\x08\xff\0" * 40, "longer than its row"),
        ("light.hdr", HDR + b"+X 4 +Y 8\n", "instead of -Y height"),
        ("light.hdr", HDR + b"-Y 4 +X 9\n", "got 9×4"),
        ("light.exr", b"no picture", "readable .exr file"),
        ("light.png", b"\x89PNG\r\n\x1a\n", "readable .png file"),
    ],
    ids=["missing", "suffix", "hdr", "hdr-cut", "hdr-run", "hdr-turned", "hdr-size", "exr", "png"],
)
def test_unreadable_files_are_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_environment(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_unsuitable_values_and_shapes_are_refused(tmp_path: Path):
    pixels = np.zeros((8, 16, 3), np.float32)
    pixels[0, 0] = np.nan
    pixels[1, 1, 0] = np.inf
    write_exr(tmp_path / "nan.exr", pixels)
    with pytest.raises(UserError, match="finite values only, got 4 NaN"):
        load_environment(tmp_path / "nan.exr")
    Image.new("RGB", (100, 80)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"twice as wide as high .* got 100×80"):
        load_environment(tmp_path / "photo.png")
    Image.new("1", (8194, 4097)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match="at most 8192 wide, got 8194×4097"):
        load_environment(tmp_path / "huge.png")
