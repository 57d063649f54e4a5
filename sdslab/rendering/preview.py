"""A look at a result without a viewer: a turntable video and a contact sheet."""

import contextlib
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from sdslab.files.atomic_write import atomic_write
from sdslab.meshes.material import map_pictures
from sdslab.rendering.cameras import Cameras, six_views, turntable_views
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import sample_background

SHEET_WIDTH = 1400
LARGEST_ON_SHEET = 384  # of a view there: the sheet's columns are narrower
GAP = 20
LINE_HEIGHT = 22
LABEL_MARGIN = 8
FONT_SIZE = 18
PAGE, FRAME, INK = "#f5f5f4", "#d6d3d1", "#292524"


VIEW_NAMES = ("front", "right", "back", "left", "above", "below")  # of `six_views`


@dataclass(frozen=True, eq=False)
class Previewer:
    """Makes pictures for people.

    Attributes:
        renderer: of the mesh, supersampled.
        environment: the light, or None for the albedo alone.
        size: height and width of a picture; on a contact sheet it need not be large.
    """

    renderer: Renderer
    environment: Environment | None
    size: int = 384

    @torch.no_grad()
    def picture(self, cameras: Cameras, maps: Tensor) -> Tensor:
        """[b, 3, size, size] in [0, 1], on white, on the CPU."""
        return self._picture(cameras, maps, self.size)

    def _picture(self, cameras: Cameras, maps: Tensor, size: int) -> Tensor:
        lighting = self.environment and Lighting.fixed(self.environment, len(cameras))
        surface = self.renderer.see(cameras, size)
        background = sample_background("white", 0, 0, len(cameras), (size, size))
        maps = maps.to(self.renderer.device)
        return self.renderer.picture(surface, maps, lighting, background).clamp(0, 1).cpu()

    @property
    def _size_on_sheet(self) -> int:
        return min(self.size, LARGEST_ON_SHEET)

    @torch.no_grad()
    def views(self, name: str, maps: Tensor, count: int = 6) -> list[tuple[str, Tensor]]:
        """The first ``count`` of the six views, labelled, for a row of `contact_sheet`."""
        cameras = six_views(self.renderer.bounding_radius)[:count]
        pictures = self._picture(cameras, maps, self._size_on_sheet)
        return [(f"{name}, {view}", p) for view, p in zip(VIEW_NAMES, pictures, strict=False)]

    @torch.no_grad()
    def buffers(self, maps: Tensor) -> list[tuple[str, Tensor]]:
        """The front view's geometry and material, labelled, for a row of `contact_sheet`."""
        cameras = six_views(self.renderer.bounding_radius)[0:1]
        surface = self.renderer.see(cameras, self._size_on_sheet)
        buffers = self.renderer.g_buffer(surface, maps.to(self.renderer.device))
        mask, depth = buffers["mask"], buffers["depth"]
        covered = depth[mask == 1]
        if len(covered):  # near is bright
            low, high = covered.aminmax()
            near = 1 - 0.8 * (depth / mask.clamp(min=1e-6) - low) / (high - low).clamp(min=1e-6)
            buffers["depth"] = near.clamp(0, 1) * mask
        uv = buffers["uv"]
        buffers["uv"] = torch.cat((uv, torch.zeros_like(uv[:, :1])), dim=1)
        names = ("depth", "normal", "uv", "albedo", "roughness", "metallic")
        return [(name, buffers[name][0].expand(3, -1, -1).clamp(0, 1).cpu()) for name in names]

    def turntable(self, maps: Tensor, frames: int) -> Iterator[Tensor]:
        """[3, size, size] each, once around the object."""
        cameras = turntable_views(frames, self.renderer.bounding_radius)
        for frame in range(frames):
            yield self.picture(cameras[frame : frame + 1], maps)[0]


@dataclass(frozen=True)
class Turntable:
    """What `save_turntable` wrote.

    Attributes:
        path: the video or, in its place, the GIF.
        note: one line that says why it is a GIF; empty for a video.
    """

    path: Path
    note: str = ""


def save_turntable(
    frames: Callable[[], Iterable[Tensor | np.ndarray]], path: Path, fps: float = 24
) -> Turntable:
    """Writes a video that browsers play (H.264, 4:2:0), or a GIF beside it if ffmpeg fails.

    Args:
        frames: makes pictures of one size: [3, h, w], sRGB-encoded, in [0, 1] (brighter is shown as
            1), or [h, w, 3] uint8. Odd sides grow by a pixel. Each is encoded as it comes; for the
            GIF, all are made again.
        path: ends in .mp4; the GIF has the same stem.
        fps: pictures a second.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            _encode_h264(map(_even_sided, frames()), temporary, fps)
        return Turntable(path)
    except (ImportError, RuntimeError) as error:  # no imageio-ffmpeg, no ffmpeg or it failed
        reason = str(error).partition("\n")[0]
    path = path.with_suffix(".gif")
    pictures = (Image.fromarray(_even_sided(frame)).quantize() for frame in frames())
    with atomic_write(path) as temporary:
        next(pictures).save(
            temporary, "GIF", save_all=True, append_images=pictures, duration=1000 / fps, loop=0
        )
    return Turntable(path, f"{path.name} is written instead of a video: {reason}")


def contact_sheet(
    rows: Sequence[Sequence[tuple[str, Tensor]]], maps: Tensor | None, path: Path
) -> None:
    """Writes one PNG with labelled views and, below them, the maps.

    Args:
        rows: of (label, [3, h, w] picture, sRGB-encoded, in [0, 1]); at least one row of one.
        maps: [h, w, 8] as `material.py` describes; None leaves them out.
        path: ends in .png.

    Raises:
        UserError: the file cannot be written.
        ValueError: a map is not in [0, 1].
    """
    views = [
        [(label, Image.fromarray(_eight_bit(picture))) for label, picture in row] for row in rows
    ]
    columns = max(len(row) for row in views)
    strips = [_strip(row, columns) for row in views]
    if maps is not None:
        pictures = map_pictures(maps)
        layers = [
            (name, Image.fromarray(pictures[name]).convert("RGB"))
            for name in ("albedo", "roughness", "metallic", "normal")
        ]
        strips.append(_strip(layers, len(layers)))
    sheet = Image.new("RGB", (SHEET_WIDTH, GAP + sum(strip.height for strip in strips)), PAGE)
    top = GAP
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _encode_h264(pictures: Iterator[np.ndarray], path: Path, fps: float) -> None:
    """Runs ffmpeg; raises RuntimeError where it is missing or fails."""
    import imageio_ffmpeg

    first = next(pictures)
    height, width = first.shape[:2]
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}"),
        *("-i", "-", "-c:v", "libx264", "-crf", "17", "-pix_fmt", "yuv420p"),
        # Without these, players guess the matrix by the size and shift the colours.
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"),
        *("-color_primaries", "bt709", "-color_trc", "iec61966-2-1", "-color_range", "tv"),
        *("-movflags", "+faststart", "-f", "mp4", f"file:{path}"),
    ]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints
            )
        except OSError as error:
            raise RuntimeError(f"ffmpeg does not start: {error}") from error
        assert process.stdin is not None
        try:
            for picture in itertools.chain((first,), pictures):
                process.stdin.write(picture.tobytes())
        except BrokenPipeError:  # it has ended; its code tells why
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
        if code != 0:
            complaints.seek(0)
            message = complaints.read().decode(errors="replace").strip().rpartition("\n")[-1]
            raise RuntimeError(f"ffmpeg ended with code {code} {message}".strip())


def _even_sided(frame: Tensor | np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8, as 4:2:0 needs it."""
    picture = _eight_bit(frame)
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _eight_bit(picture: Tensor | np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8."""
    if isinstance(picture, np.ndarray):
        return picture
    levels = picture.detach().cpu().float().clamp(0, 1).mul(255).round()
    return levels.to(torch.uint8).movedim(0, -1).contiguous().numpy()


def _strip(cells: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Cells side by side, centred, each over its label; the gap below is included."""
    font = ImageFont.load_default(FONT_SIZE)
    width = (SHEET_WIDTH - GAP * (columns + 1)) // columns
    fitted = [
        (label_lines(label, font, width), ImageOps.contain(picture, (width, width)))
        for label, picture in cells
    ]
    height = max(picture.height for _, picture in fitted)
    labels = LABEL_MARGIN + LINE_HEIGHT * max(len(lines) for lines, _ in fitted)
    strip = Image.new("RGB", (SHEET_WIDTH, height + labels + GAP), PAGE)
    draw = ImageDraw.Draw(strip)
    left = (SHEET_WIDTH - len(cells) * width - (len(cells) - 1) * GAP) // 2
    for lines, picture in fitted:
        corner = left + (width - picture.width) // 2, (height - picture.height) // 2
        strip.paste(picture, corner)
        draw.rectangle(
            (corner, (corner[0] + picture.width - 1, corner[1] + picture.height - 1)), outline=FRAME
        )
        middle = height + LABEL_MARGIN + LINE_HEIGHT // 2
        for number, line in enumerate(lines):
            place = (left + width // 2, middle + number * LINE_HEIGHT)
            draw.text(place, line, INK, font, anchor="mm")
        left += width + GAP
    return strip


def label_lines(
    label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """The whole label on lines that fit a width in pixels; a word that does not is broken."""
    lines = [""]
    for word in label.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line] or [""]
