import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont, ImageSequence

from sdslab.errors import UserError
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.preview import (
    FONT_SIZE,
    LARGEST_ON_SHEET,
    SHEET_WIDTH,
    VIEW_NAMES,
    Previewer,
    contact_sheet,
    label_lines,
    save_turntable,
)
from sdslab.rendering.renderer import Renderer

COLOR = (0.8, 0.3, 0.1)


def frames(count: int, height: int, width: int) -> list[torch.Tensor]:
    """A coloured square that wanders to the right on grey."""
    pictures = []
    for k in range(count):
        picture = torch.full((3, height, width), 0.5)
        left = k * width // (2 * count)
        picture[:, height // 4 : height // 2, left : left + width // 2] = torch.tensor(COLOR).view(
            3, 1, 1
        )
        pictures.append(picture)
    return pictures


def decode(path: Path, height: int, width: int) -> np.ndarray:
    """[n, h, w, 3] uint8."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)


def test_a_turntable_keeps_frames_and_colours(tmp_path: Path):
    turntable = save_turntable(lambda: frames(6, 64, 96), tmp_path / "new" / "turn.mp4", fps=12)
    assert turntable.note == ""
    assert [file.name for file in turntable.path.parent.iterdir()] == ["turn.mp4"]
    video = decode(turntable.path, 64, 96)
    assert len(video) == 6
    assert np.abs(video[0, 24, 24].astype(float) - 255 * np.array(COLOR)).max() < 6
    assert np.abs(video[5, 60, 48].astype(float) - 127.5).max() < 6


def test_a_turntable_plays_in_browsers(tmp_path: Path):
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    path = save_turntable(lambda: frames(2, 64, 64), tmp_path / "turn.mp4").path
    report = subprocess.run([ffmpeg, "-i", path], capture_output=True, check=False).stderr.decode()
    assert "Video: h264" in report
    assert "yuv420p(tv, bt709" in report
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it starts before it is all there


def test_odd_sides_and_arrays_are_taken(tmp_path: Path):
    pictures = [np.full((33, 47, 3), 128, np.uint8)] * 2
    turntable = save_turntable(lambda: iter(pictures), tmp_path / "turn.mp4")
    assert decode(turntable.path, 34, 48).shape == (2, 34, 48, 3)


def test_frames_are_encoded_as_they_come(tmp_path: Path):
    """None is kept: a long turntable needs no more memory than a short one."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched() -> Iterator[torch.Tensor]:
        for _ in range(8):
            assert sum(reference() is not None for reference in alive) <= 2
            frame = torch.rand(3, 64, 64)
            alive.append(weakref.ref(frame))
            yield frame

    assert len(decode(save_turntable(watched, tmp_path / "turn.mp4").path, 64, 64)) == 8


def test_a_failing_frame_is_no_reason_for_a_gif(tmp_path: Path):
    def failing() -> Iterator[torch.Tensor]:
        yield torch.rand(3, 16, 16)
        raise ValueError("no light")

    with pytest.raises(ValueError, match="no light"):
        save_turntable(failing, tmp_path / "turn.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["false", "no-such-program"])
def test_without_ffmpeg_a_gif_is_written_and_said(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: program)
    turntable = save_turntable(lambda: frames(3, 32, 32), tmp_path / "turn.mp4", fps=10)
    assert turntable.path == tmp_path / "turn.gif"
    assert turntable.note.startswith("turn.gif is written instead of a video: ")
    assert "\n" not in turntable.note
    assert [file.name for file in tmp_path.iterdir()] == ["turn.gif"]
    with Image.open(turntable.path) as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 3
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        pixels = np.array(ImageSequence.Iterator(gif)[0].convert("RGB"))
    assert np.abs(pixels[12, 4].astype(float) - 255 * np.array(COLOR)).max() < 6


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_turntable(lambda: frames(2, 16, 16), tmp_path / "file" / "turn.mp4")
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(
            [[("view", torch.zeros(3, 8, 8))]], constant_material(8, 8), tmp_path / "file" / "s.png"
        )


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_a_contact_sheet_shows_every_view_and_map(count: int, tmp_path: Path):
    colors = torch.linspace(30, 230, count).round() / 255
    renders = [
        (
            f"view {k}, a long label {'…' * 80}",
            torch.tensor([float(c), 0, 0.3]).view(3, 1, 1).expand(3, 64, 64),
        )
        for k, c in enumerate(colors)
    ]
    maps = constant_material(32, 64, albedo=(0, 0.6, 0), roughness=0.2, metallic=0.8)
    contact_sheet(
        [renders[:4], renders[4:]] if count > 4 else [renders], maps, tmp_path / "sheet.png"
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == SHEET_WIDTH
        shown = {color for n, color in sheet.getcolors(1 << 20) or [] if n > 1000}
    views = {(round(255 * float(c)), 0, 76) for c in colors}
    layers = {(0, 153, 0), (51, 51, 51), (204, 204, 204), (128, 128, 255)}
    assert views | layers <= shown


@pytest.mark.parametrize("width", [40, 210, 325])
@pytest.mark.parametrize(
    "label", ["front", "stage1-coarse step 20 of 30, front", "apple, " + 40 * "super", 30 * "two "]
)
def test_a_label_is_whole_and_fits(label: str, width: int):
    font = ImageFont.load_default(FONT_SIZE)
    lines = label_lines(label, font, width)
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")
    assert max(font.getlength(line) for line in lines) <= width


def test_an_empty_label_takes_a_line():
    assert label_lines(" ", ImageFont.load_default(FONT_SIZE), 40) == [""]


def test_views_for_a_sheet_are_no_larger_than_it_shows_them():
    """A turntable's frames are as large as was asked; more on a sheet would be time and memory."""
    previewer = Previewer(Renderer(load_mesh("torus"), CpuBackend()), None, LARGEST_ON_SHEET + 1)
    maps = constant_material(4, 4)
    (frame,) = previewer.turntable(maps, 1)
    assert frame.shape == (3, LARGEST_ON_SHEET + 1, LARGEST_ON_SHEET + 1)
    views = previewer.views("torus", maps, 4)
    assert [label for label, _ in views] == [f"torus, {name}" for name in VIEW_NAMES[:4]]
    for _, picture in (*views, *previewer.buffers(maps)):
        assert picture.shape == (3, LARGEST_ON_SHEET, LARGEST_ON_SHEET)


def test_radiance_above_one_is_shown_as_white(tmp_path: Path):
    contact_sheet(
        [[("bright", torch.full((3, 64, 64), 4.0))]],
        constant_material(8, 8),
        tmp_path / "sheet.png",
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((SHEET_WIDTH // 2, 100)) == (255, 255, 255)
