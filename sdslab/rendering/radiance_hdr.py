"""Radiance's .hdr pictures: three mantissas and a shared exponent, run-length encoded or plain.

Source: Ward, "Real pixels", Graphics Gems II (1991), and Radiance's file format description.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdslab.files.atomic_write import atomic_write

_LONGEST_HEADER = 65536


def read_hdr(path: Path, check_size: Callable[[int, int], None]) -> np.ndarray:
    """Decodes a picture whose rows run from the top and columns from the left.

    Args:
        path: of the file.
        check_size: is called with (width, height) before anything is decoded.

    Returns:
        [height, width, 3] float32 linear radiance; the header's EXPOSURE is not undone.

    Raises:
        ValueError: it is no such picture, or is cut short.
    """
    content = path.read_bytes()
    if not content.startswith(b"#?"):
        raise ValueError("it does not begin with #?")
    header_end = content.find(b"\n\n", 0, _LONGEST_HEADER)
    size_end = content.find(b"\n", header_end + 2, header_end + 100)
    if header_end < 0 or size_end < 0:
        raise ValueError("its header does not end")
    if b"FORMAT=32-bit_rle_rgbe" not in content[:header_end].splitlines():
        raise ValueError("its header lacks FORMAT=32-bit_rle_rgbe")
    match content[header_end + 2 : size_end].split():
        case [b"-Y", rows, b"+X", columns]:
            height, width = int(rows), int(columns)
        case other:
            size = b" ".join(other).decode("latin-1")
            raise ValueError(f"its size reads {size!r} instead of -Y height +X width")
    check_size(width, height)
    data = content[size_end + 1 :]
    pixels = _decode(data, height, width)
    scale = np.ldexp(np.float32(1), pixels[..., 3:].astype(np.int32) - 136)
    return pixels[..., :3] * np.where(pixels[..., 3:] == 0, np.float32(0), scale)


def write_hdr(radiance: np.ndarray, path: Path) -> None:
    """Writes a picture without run-length encoding, whole or not at all.

    Args:
        radiance: [height, width, 3], linear, not negative; eight bits of the largest channel's
            mantissa are kept.
        path: ends in .hdr.

    Raises:
        UserError: the file cannot be written.
    """
    largest = radiance.max(-1)
    mantissa, exponent = np.frexp(largest)
    scale = np.where(largest < 1e-32, 0, mantissa * 256 / np.maximum(largest, 1e-32))
    pixels = np.empty((*radiance.shape[:2], 4), np.uint8)
    pixels[..., :3] = radiance * scale[..., None]
    pixels[..., 3] = np.where(largest < 1e-32, 0, exponent + 128)
    height, width = radiance.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n"
    with atomic_write(path) as temporary:
        temporary.write_bytes(header.encode() + pixels.tobytes())


def _decode(data: bytes, height: int, width: int) -> np.ndarray:
    """[height, width, 4] uint8: the mantissas and the exponent."""
    row_mark = bytes((2, 2, width >> 8, width & 255))
    if not 8 <= width < 32768 or not data.startswith(row_mark):
        return _plain(data, height, width)
    pixels = np.empty((height, 4, width), np.uint8)
    at = 0
    for row in pixels:
        if data[at : at + 4] != row_mark:
            raise ValueError("a row does not begin where it should")
        at += 4
        for channel in row:
            at = _decode_runs(data, at, channel)
    return pixels.swapaxes(1, 2)


def _decode_runs(data: bytes, at: int, channel: np.ndarray) -> int:
    """Fills one channel of a row from ``data[at:]``; returns where the next one begins."""
    x, width = 0, len(channel)
    while x < width:
        if at + 1 >= len(data):
            raise ValueError("it is cut short")
        count, repeated = data[at], data[at] > 128
        if repeated:
            count -= 128
        if not 0 < count <= width - x:
            raise ValueError("a run is longer than its row")
        if repeated:
            channel[x : x + count] = data[at + 1]
            at += 2
        else:
            literal = data[at + 1 : at + 1 + count]
            if len(literal) < count:
                raise ValueError("it is cut short")
            channel[x : x + count] = np.frombuffer(literal, np.uint8)
            at += 1 + count
        x += count
    return at


def _plain(data: bytes, height: int, width: int) -> np.ndarray:
    if len(data) < height * width * 4:
        raise ValueError("it is cut short")
    pixels = np.frombuffer(data, np.uint8, height * width * 4).reshape(height, width, 4)
    if (pixels[..., :3] == 1).all(-1).any():
        raise ValueError("its runs are encoded in the format's first way, which is not supported")
    return pixels
