"""Visibility on any GPU, in Triton: the CPU kernel's edge functions, and so its ids, bit for bit.

Faces of few pixels take a lane each; the others are listed by number and are then drawn tile by
tile. Neither waits for the host, and every buffer's size depends on the shapes alone, so that both
launches can be recorded. Multiplications and additions must not be fused: the CPU's are not.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for types of arguments.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.rendering.render_backend import ON_EDGE, face_bits

_ON_EDGE = tl.constexpr(ON_EDGE)
_SLACK = tl.constexpr(1e-6)
# Pixels in the bounds of a face that a single lane walks through.
SMALL = 64
# Faces of a program, and warps: a warp waits for its largest face only.
BLOCK = {"BLOCK": 32, "SMALL": SMALL, "num_warps": 1}
TILE = {"ROWS": 16, "COLUMNS": 16, "num_warps": 1}
# Programs that share the large faces, and those that share the tiles of each of them.
PROGRAMS, SHARES = 2048, 4
_SIZES = ["v", "f", "height", "width", "face_bits"]


@triton.jit
def _corners(clip_ptr, vertex, shown, LANES: tl.constexpr):
    """x, y, z, w of a vertex for each lane: 16 bytes at a time."""
    offsets = vertex[:, None] * 4 + tl.arange(0, 4)[None, :]
    clip = tl.load(clip_ptr + offsets, mask=shown[:, None], other=0.0).to(tl.float64)
    xz, yw = tl.split(tl.reshape(clip, (LANES, 2, 2)))
    x, z = tl.split(xz)
    y, w = tl.split(yw)
    return x, y, z, w


@triton.jit
def _corner(clip_ptr, vertex):
    """x, y, z, w of one vertex."""
    x, y = tl.load(clip_ptr + vertex * 4), tl.load(clip_ptr + vertex * 4 + 1)
    z, w = tl.load(clip_ptr + vertex * 4 + 2), tl.load(clip_ptr + vertex * 4 + 3)
    return x.to(tl.float64), y.to(tl.float64), z.to(tl.float64), w.to(tl.float64)


@triton.jit
def _range(a0, a1, a2, size):
    """First and last index along one axis whose centre may be covered: `_pixel_bounds`' half."""
    low, high = tl.minimum(tl.minimum(a0, a1), a2), tl.maximum(tl.maximum(a0, a1), a2)
    size = size.to(tl.float64)
    first = tl.ceil(tl.minimum(tl.maximum((low + 1) / 2 * size - 0.5 - _SLACK, 0.0), size))
    last = tl.floor(tl.maximum(tl.minimum((high + 1) / 2 * size - 0.5 + _SLACK, size - 1.0), -1.0))
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def _bounds(x0, y0, w0, x1, y1, w1, x2, y2, w2, height, width):
    """First and last column and row whose centres the face may cover; all where it straddles."""
    before = (w0 > 0) & (w1 > 0) & (w2 > 0)
    v0, v1, v2 = tl.where(before, w0, 1.0), tl.where(before, w1, 1.0), tl.where(before, w2, 1.0)
    left, right = _range(x0 / v0, x1 / v1, x2 / v2, width)
    # Rows run downwards.
    first, last = _range(-y0 / v0, -y1 / v1, -y2 / v2, height)
    left, right = tl.where(before, left, 0), tl.where(before, right, width - 1)
    first, last = tl.where(before, first, 0), tl.where(before, last, height - 1)
    seen = (w0 > 0) | (w1 > 0) | (w2 > 0)
    return left, tl.where(seen, right, -1), first, last


@triton.jit
def _edges(x0, y0, w0, x1, y1, w1, x2, y2, w2, mx, my):
    """a_k = e_k + b_k (f_x − m_x) + c_k (f_y − m_y), scaled; and whether there are any."""
    u0, u1, u2 = x0 - mx * w0, x1 - mx * w1, x2 - mx * w2
    v0, v1, v2 = y0 - my * w0, y1 - my * w1, y2 - my * w2
    e0, e1, e2 = u1 * v2 - v1 * u2, u2 * v0 - v2 * u0, u0 * v1 - v0 * u1
    determinant = e0 * w0 + e1 * w1 + e2 * w2
    exists = (determinant != 0) & (tl.abs(determinant) < float("inf"))
    scale = 1.0 / tl.where(exists, determinant, 1.0)
    e0, e1, e2 = e0 * scale, e1 * scale, e2 * scale
    b0, b1 = (v1 * w2 - w1 * v2) * scale, (v2 * w0 - w2 * v0) * scale
    b2 = (v0 * w1 - w0 * v1) * scale
    c0, c1 = (w1 * u2 - u1 * w2) * scale, (w2 * u0 - u2 * w0) * scale
    c2 = (w0 * u1 - u0 * w1) * scale
    return e0, e1, e2, b0, b1, b2, c0, c1, c2, exists


@triton.jit
def _draw(
    e0, e1, e2, b0, b1, b2, c0, c1, c2, z0, z1, z2, mx, my,
    face, row, column, drawn, nearest_ptr, height, width, face_bits,
):  # fmt: skip
    """Puts a face into the pixels that it covers and is the nearest of, as yet."""
    fy = 1 - (2 * row + 1) * (1.0 / height.to(tl.float64)) - my
    fx = (2 * column + 1) * (1.0 / width.to(tl.float64)) - 1 - mx
    r0, r1, r2 = e0 + c0 * fy, e1 + c1 * fy, e2 + c2 * fy
    depth = r0 * z0 + r1 * z1 + r2 * z2 + (b0 * z0 + b1 * z1 + b2 * z2) * fx
    inside = (r0 + b0 * fx >= -_ON_EDGE) & (r1 + b1 * fx >= -_ON_EDGE)
    inside = inside & (r2 + b2 * fx >= -_ON_EDGE) & (depth >= -1) & (depth <= 1) & drawn
    one = tl.full((), 1, tl.int64)
    steps = (one << (61 - face_bits)).to(tl.float64)
    depth = tl.where(inside, depth, 0.0)
    order = (((depth + 1) * steps).to(tl.int64) << face_bits) | (face.to(tl.int64) + 1)
    tl.atomic_min(nearest_ptr + row * width + column, order, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def small_faces_kernel(
    clip_ptr, faces_ptr, nearest_ptr, large_ptr, large_count_ptr,
    v, f, height, width, face_bits,
    SMALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws the faces whose bounds hold at most SMALL pixels, and lists the others.

    Args:
        clip_ptr: [b, v, 4] float32.
        faces_ptr: [f, 3] int32.
        nearest_ptr: [b, height, width] int64, depth and 1 + face, packed; lowered.
        large_ptr: [b f] int64, view · f + face; written as far as the count goes.
        large_count_ptr: [1] int32, 0 at first.
        v: vertices.
        f: faces.
        height: of the pictures.
        width: of the pictures.
        face_bits: of the packed numbers.
        SMALL: pixels.
        BLOCK: faces of a program.
    """
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    view = tl.program_id(1).to(tl.int64)
    shown = face < f
    clip_ptr += view * v * 4
    i = tl.load(faces_ptr + face * 3, mask=shown, other=0)
    j = tl.load(faces_ptr + face * 3 + 1, mask=shown, other=0)
    k = tl.load(faces_ptr + face * 3 + 2, mask=shown, other=0)
    x0, y0, z0, w0 = _corners(clip_ptr, i, shown, BLOCK)
    x1, y1, z1, w1 = _corners(clip_ptr, j, shown, BLOCK)
    x2, y2, z2, w2 = _corners(clip_ptr, k, shown, BLOCK)
    left, right, first, last = _bounds(x0, y0, w0, x1, y1, w1, x2, y2, w2, height, width)
    shown = shown & (left <= right) & (first <= last)
    pixels = tl.where(shown, (right - left + 1) * (last - first + 1), 0)

    large = pixels > SMALL
    counted = large.to(tl.int32)
    start = tl.atomic_add(large_count_ptr, tl.sum(counted), sem="relaxed")
    slot = start + tl.cumsum(counted) - 1
    tl.store(large_ptr + slot, view * f + face, mask=large)

    mx = (left + right + 1) * (1.0 / width.to(tl.float64)) - 1
    my = 1 - (first + last + 1) * (1.0 / height.to(tl.float64))
    e0, e1, e2, b0, b1, b2, c0, c1, c2, exists = _edges(x0, y0, w0, x1, y1, w1, x2, y2, w2, mx, my)
    pixels = tl.where(exists & (pixels <= SMALL), pixels, 0)
    row, column = first, left
    for pixel in range(0, tl.max(pixels)):
        _draw(
            e0, e1, e2, b0, b1, b2, c0, c1, c2, z0, z1, z2, mx, my, face, row, column,
            pixel < pixels, nearest_ptr + view * height * width, height, width, face_bits,
        )  # fmt: skip
        ends = column == right
        row, column = tl.where(ends, row + 1, row), tl.where(ends, left, column + 1)


@triton.jit(do_not_specialize=_SIZES)
def large_faces_kernel(
    clip_ptr, faces_ptr, nearest_ptr, large_ptr, large_count_ptr,
    v, f, height, width, face_bits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Draws the listed faces, tile by tile; arguments as above.

    The programs of the grid's first axis share the faces, those of its second a face's tiles.
    """
    for number in range(tl.program_id(0), tl.load(large_count_ptr), tl.num_programs(0)):
        item = tl.load(large_ptr + number)
        view, face = item // f, item % f
        corners_ptr = clip_ptr + view * v * 4
        x0, y0, z0, w0 = _corner(corners_ptr, tl.load(faces_ptr + face * 3))
        x1, y1, z1, w1 = _corner(corners_ptr, tl.load(faces_ptr + face * 3 + 1))
        x2, y2, z2, w2 = _corner(corners_ptr, tl.load(faces_ptr + face * 3 + 2))
        left, right, first, last = _bounds(x0, y0, w0, x1, y1, w1, x2, y2, w2, height, width)
        mx = (left + right + 1) * (1.0 / width.to(tl.float64)) - 1
        my = 1 - (first + last + 1) * (1.0 / height.to(tl.float64))
        e0, e1, e2, b0, b1, b2, c0, c1, c2, exists = _edges(
            x0, y0, w0, x1, y1, w1, x2, y2, w2, mx, my
        )
        across = tl.cdiv(right - left + 1, COLUMNS)
        tiles = tl.where(exists, across * tl.cdiv(last - first + 1, ROWS), 0)
        for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
            row = first + tile // across * ROWS + tl.arange(0, ROWS)[:, None]
            column = left + tile % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            _draw(
                e0, e1, e2, b0, b1, b2, c0, c1, c2, z0, z1, z2, mx, my, face, row, column,
                (row <= last) & (column <= right), nearest_ptr + view * height * width,
                height, width, face_bits,
            )  # fmt: skip


def visible_faces_triton(clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
    """`RenderBackend.visibility`, in buffers whose sizes the arguments' shapes determine."""
    (b, v, _), f, (height, width) = clip.shape, len(faces), resolution
    clip, faces = clip.contiguous(), faces.contiguous()
    bits = face_bits(f)
    number = (1 << bits) - 1
    # No face, 0, at the greatest depth.
    nearest = torch.full(
        (b, height, width), (2**63 - 1) ^ number, dtype=torch.int64, device=clip.device
    )
    large = nearest.new_empty(max(1, b * f))
    large_count = nearest.new_zeros(1, dtype=torch.int32)
    arguments = (clip, faces, nearest, large, large_count, v, f, height, width, bits)
    tiles = triton.cdiv(height, TILE["ROWS"]) * triton.cdiv(width, TILE["COLUMNS"])
    with torch.cuda.device_of(clip):
        small_faces_kernel[(triton.cdiv(f, BLOCK["BLOCK"]), b)](
            *arguments, **BLOCK, enable_fp_fusion=False
        )
        large_faces_kernel[(min(b * f, PROGRAMS), min(tiles, SHARES))](
            *arguments, **TILE, enable_fp_fusion=False
        )
    return (nearest & number).int()
