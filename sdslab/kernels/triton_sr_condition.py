"""Triton body of `sr_condition`: from the render to the noised condition in one launch.

A program makes one tile of one channel of the condition. It resamples the few small pixels that the
tile shows, at most LOW each way, and keeps them in registers. All positions are exact: fractions of
32-bit integers, rounded only when they become weights.
"""

# Triton annotates with values (tl.uint32, tl.constexpr), which a type checker takes for mistakes.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.kernels.triton_noise import KEY_WORDS, box_muller, normals, philox_lanes, rates
from sdslab.kernels.validation import compute_dtype

# Wide rows where nothing is shared between them, squares where small pixels are.
TILES = {"castex": (8, 128), "pipeline": (32, 32)}
# Columns of the render that are resampled at a time.
CHUNK = 64
_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _nearest(index, size, low_size, side):
    """The pixel of the render that a pixel of the condition shows."""
    return index * low_size // size * side // low_size


@triton.jit
def _taps(side, low_size):
    """Number of pixels that a small pixel may weigh, counted from `_first_tap`."""
    return 2 * tl.maximum(side, low_size) // low_size + 2


@triton.jit
def _first_tap(low, side, low_size):
    """The first pixel of the render that a small pixel may weigh."""
    numerator = (2 * low + 1) * side - 2 * tl.maximum(side, low_size) - low_size
    return tl.maximum(numerator, 0) // (2 * low_size)


@triton.jit
def _antialiased(pixel, low, side, low_size, DTYPE: tl.constexpr):
    """A triangle as wide as two small pixels, not normalised (or two large ones, if those are)."""
    distance = tl.abs((2 * pixel + 1) * low_size - (2 * low + 1) * side)
    ratio = distance.to(DTYPE) / (2 * tl.maximum(side, low_size)).to(DTYPE)
    return tl.where(pixel < side, tl.maximum(1.0 - ratio, 0.0), 0.0)


@triton.jit
def _last_before(index, size, low_size):
    """The small pixel at or before a pixel of the condition, corners aligned."""
    return index * (low_size - 1) // tl.maximum(size - 1, 1)


@triton.jit
def _between(index, low, size, low_size, DTYPE: tl.constexpr):
    """The weights of the two small pixels around a pixel of the condition."""
    span = tl.maximum(size - 1, 1)
    before = _last_before(index, size, low_size)
    after = (index * (low_size - 1) % span).to(DTYPE) / span.to(DTYPE)
    return tl.where(low == before, 1.0 - after, tl.where(low == before + 1, after, 0.0))


@triton.jit
def _small_tile(
    plane_ptr,
    height,
    width,
    low_size,
    low_rows,
    low_columns,
    last_row,
    first_column,
    last_column,
    LOW: tl.constexpr,
    CHUNK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The antialiased small picture at low_rows × low_columns, 0 after the last of each."""
    top = _first_tap(low_rows, height, low_size)
    # From a multiple of 16, so that rows are loaded in whole vectors.
    left = _first_tap(first_column, width, low_size) // 16 * 16
    right = tl.minimum(_first_tap(last_column, width, low_size) + _taps(width, low_size), width)
    small = tl.zeros([LOW, LOW], DTYPE)
    row_sum = tl.zeros([LOW], DTYPE)
    column_sum = tl.zeros([LOW], DTYPE)
    for tap in range(_taps(height, low_size)):
        row_sum += _antialiased(top + tap, low_rows, height, low_size, DTYPE)
    for start in range(left, right, CHUNK):
        columns = tl.multiple_of(start, 16) + tl.arange(0, CHUNK)
        narrow = tl.zeros([LOW, CHUNK], DTYPE)
        # Unrolled for the sake of four loads in flight.
        for tap in tl.range(
            0, _taps(height, low_size), loop_unroll_factor=4 if tl.float32 == DTYPE else 1
        ):
            rows = top + tap
            weight = _antialiased(rows, low_rows, height, low_size, DTYPE)
            needed = (weight > 0) & (low_rows <= last_row)
            x = tl.load(
                plane_ptr + (rows[:, None] * width + columns[None, :]),
                mask=needed[:, None] & (columns < width)[None, :],
                other=0.0,
            )
            narrow += weight[:, None] * x.to(DTYPE)
        weight = _antialiased(columns[:, None], low_columns[None, :], width, low_size, DTYPE)
        column_sum += tl.sum(weight, axis=0)
        small = tl.dot(narrow, weight, small, input_precision="ieee", out_dtype=DTYPE)
    # Beyond the last small pixel there is nothing to weigh.
    exists = (low_rows <= last_row)[:, None] & (low_columns <= last_column)[None, :]
    return small / tl.where(exists, row_sum[:, None] * column_sum[None, :], float("inf"))


@triton.jit
def _tile_noise(
    sample_ptr,
    row,
    start,
    column,
    seed_low,
    seed_high,
    stream,
    step,
    WHOLE_BLOCKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """ε of COLUMNS elements after `column` of the rows that begin at `start`, [ROWS, COLUMNS]."""
    if WHOLE_BLOCKS:  # four neighbours in a row share a block
        counter = start[:, None] // 4 + column // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        counter = counter.to(tl.uint32)
        return normals(sample_ptr, row, counter, seed_low, seed_high, stream, step, DTYPE)
    element = start[:, None] + column + tl.arange(0, COLUMNS)[None, :]
    counter = (element // 4).to(tl.uint32)
    a, b, c, d = philox_lanes(sample_ptr, row, counter, seed_low, seed_high, stream, step)
    lane = element % 4
    cosine, sine = box_muller(tl.where(lane < 2, a, c), tl.where(lane < 2, b, d), DTYPE)
    return tl.where(lane % 2 == 0, cosine, sine)


@triton.jit(do_not_specialize=KEY_WORDS)
def sr_condition_kernel(
    render_ptr,
    alpha_bar_ptr,
    noise_ptr,
    sample_ptr,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    stream: tl.uint32,
    step: tl.uint32,
    condition_ptr,
    channels,
    height,
    width,
    size,
    low_size,
    MODE: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOW: tl.constexpr,
    CHUNK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Resamples [b * channels, height, width] to the noised [b * channels, size, size]."""
    down, across = tl.cdiv(size, ROWS), tl.cdiv(size, COLUMNS)
    plane = (tl.program_id(0) // (down * across)).to(tl.int64)
    part = tl.program_id(0) % (down * across)
    first_y, first_x = part // across * ROWS, part % across * COLUMNS
    y, x = first_y + tl.arange(0, ROWS), first_x + tl.arange(0, COLUMNS)
    inside = (y < size)[:, None] & (x < size)[None, :]
    plane_ptr = render_ptr + plane * height * width

    if MODE == "castex":
        source_y = _nearest(y, size, low_size, height)
        source_x = _nearest(x, size, low_size, width)
        source = source_y[:, None] * width + source_x[None, :]
        image = tl.load(plane_ptr + source, mask=inside, other=0.0).to(DTYPE)
    else:
        first_row = _last_before(first_y, size, low_size)
        first_column = _last_before(first_x, size, low_size)
        end_y, end_x = tl.minimum(first_y + ROWS, size), tl.minimum(first_x + COLUMNS, size)
        last_row = tl.minimum(_last_before(end_y - 1, size, low_size) + 1, low_size - 1)
        last_column = tl.minimum(_last_before(end_x - 1, size, low_size) + 1, low_size - 1)
        low_rows = first_row + tl.arange(0, LOW)
        low_columns = first_column + tl.arange(0, LOW)
        small = _small_tile(
            plane_ptr,
            height,
            width,
            low_size,
            low_rows,
            low_columns,
            last_row,
            first_column,
            last_column,
            LOW,
            CHUNK,
            DTYPE,
        )
        by_row = _between(y[:, None], low_rows[None, :], size, low_size, DTYPE)
        by_column = _between(x[None, :], low_columns[:, None], size, low_size, DTYPE)
        tall = tl.dot(by_row, small, input_precision="ieee", out_dtype=DTYPE)
        image = tl.dot(tall, by_column, input_precision="ieee", out_dtype=DTYPE)

    condition = 2.0 * image - 1.0
    offsets = plane * size * size + (y[:, None].to(tl.int64) * size + x[None, :])
    if alpha_bar_ptr is not None:
        row = plane // channels
        signal, sigma = rates(alpha_bar_ptr, row, DTYPE)
        if noise_ptr is None:
            start = plane % channels * size * size + y.to(tl.int64) * size
            eps = _tile_noise(
                sample_ptr,
                row,
                start,
                first_x,
                seed_low,
                seed_high,
                stream,
                step,
                WHOLE_BLOCKS,
                COLUMNS,
                DTYPE,
            )
        else:
            eps = tl.load(noise_ptr + offsets, mask=inside, other=0.0).to(DTYPE)
        condition = signal * condition + sigma * eps
    tl.store(condition_ptr + offsets, condition, mask=inside)


def sr_condition_triton(
    render: Tensor,
    alpha_bar: Tensor | None,
    noise: Tensor | None,
    sample: Tensor | None,
    words: Sequence[int],
    mode: str,
    size: int,
    low_size: int,
) -> Tensor:
    """Body of `sr_condition`, whose wrapper has checked the arguments."""
    b, channels, height, width = render.shape
    condition = render.new_empty(b, channels, size, size)
    rows, columns = TILES[mode]
    tiles = triton.cdiv(size, rows) * triton.cdiv(size, columns)
    with torch.cuda.device_of(render):
        sr_condition_kernel[(b * channels * tiles,)](
            render,
            alpha_bar,
            noise,
            sample,
            *(words or (0, 0, 0, 0)),
            condition,
            channels,
            height,
            width,
            size,
            low_size,
            MODE=mode,
            WHOLE_BLOCKS=size % 4 == 0,
            ROWS=rows,
            COLUMNS=columns,
            LOW=small_pixels(max(rows, columns), size, low_size),
            CHUNK=CHUNK,
            DTYPE=_TRITON_DTYPES[compute_dtype(render)],
            enable_fp_fusion=False,
        )
    return condition


def small_pixels(side: int, size: int, low_size: int) -> int:
    """A power of two, at least 16 (what `tl.dot` takes), no less than a tile's side shows."""
    shown = (side - 1) * (low_size - 1) // max(size - 1, 1) + 3
    return max(16, triton.next_power_of_2(shown))
