"""Trilinear texture look-up on any GPU, in Triton: forward and adjoint.

The adjoint adds with atomics, so that its sums are rounded in no fixed order. Nothing waits for the
host, and every buffer's size depends on the arguments' shapes alone, so that it can be recorded.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for types of arguments.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.rendering.render_backend import level_sizes

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# A program's samples, of a single warp: what they share need not wait in shared memory.
SAMPLES = {"BLOCK": 32, "num_warps": 1}
TEXELS = {"BLOCK": 128, "num_warps": 4}
_SIZES = ["n", "height", "width", "coarse_height", "coarse_width"]


@triton.jit
def _channels(C: tl.constexpr, PADDED: tl.constexpr):
    """[1, PADDED]: the channels' numbers, and which of them there are."""
    channel = tl.arange(0, PADDED)[None, :]
    return channel, channel < C


@triton.jit
def _level_of_detail(
    derivatives_ptr, sample, shown, height, width, top, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """`level_of_detail`, at most ``top``."""
    offsets = sample[:, None] * 4 + tl.arange(0, 4)[None, :]
    derivatives = tl.load(derivatives_ptr + offsets, mask=shown[:, None], other=0.0).to(DTYPE)
    by_x, by_y = tl.split(tl.reshape(derivatives, (BLOCK, 2, 2)))
    ux, vx = tl.split(by_x)
    uy, vy = tl.split(by_y)
    ux, uy, vx, vy = ux * width, uy * width, vx * height, vy * height
    a, b, c = ux * ux + vx * vx, uy * uy + vy * vy, ux * uy + vx * vy
    major = 0.5 * (a + b) + tl.sqrt(0.25 * (a - b) * (a - b) + c * c)
    lod = tl.where(major > 1, 0.5 * tl.log2(tl.where(major > 1, major, 1.0)), 0.0)
    return tl.minimum(lod, top.to(DTYPE))


@triton.jit
def _point(uv_ptr, sample, shown, DTYPE: tl.constexpr):
    """Coordinates u and v of each sample."""
    offsets = sample[:, None] * 2 + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(uv_ptr + offsets, mask=shown[:, None], other=0.0).to(DTYPE))


@triton.jit
def _tap(u, size, SIDE: tl.constexpr):
    """Index along one axis, wrapped, of one of the two texels around a point; and its weight."""
    x = u * size - 0.5
    floor = tl.floor(x)
    index = (floor.to(tl.int64) + SIDE) & (size - 1)
    return index, (x - floor if SIDE == 1 else 1 - (x - floor))


@triton.jit(do_not_specialize=_SIZES)
def look_up_kernel(
    maps_ptr, rest_ptr, starts_ptr, uv_ptr, derivatives_ptr, out_ptr, n, height, width, top,
    C: tl.constexpr, PADDED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blends up to eight texels of two levels.

    Args:
        maps_ptr: [height, width, C], level 0.
        rest_ptr: [texels, C], the levels above one after the other.
        starts_ptr: [top + 1] int64, texels before each level, those of level 0 counted.
        uv_ptr: [n, 2].
        derivatives_ptr: [n, 4].
        out_ptr: [n, C].
        n: samples.
        height: of level 0, a power of two.
        width: likewise.
        top: the last level.
        C: channels.
        PADDED: the power of two that is not below C.
        DTYPE: of the computation.
        BLOCK: samples of a program.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    shown = sample < n
    channel, real = _channels(C, PADDED)
    lod = _level_of_detail(derivatives_ptr, sample, shown, height, width, top, DTYPE, BLOCK)
    u, v = _point(uv_ptr, sample, shown, DTYPE)
    lower = lod.to(tl.int32)
    fraction = lod - lower
    total = tl.zeros((BLOCK, PADDED), DTYPE)
    for above in tl.static_range(2):
        level = tl.minimum(lower + above, top)
        share = fraction if above else 1 - fraction
        read = (shown & (share > 0))[:, None] & real
        rows, columns = tl.maximum(height >> level, 1), tl.maximum(width >> level, 1)
        texels_ptr = tl.where((level == 0)[:, None], maps_ptr, rest_ptr)
        start = tl.load(starts_ptr + level) - height.to(tl.int64) * width
        start = tl.where(level == 0, 0, start)
        for below in tl.static_range(2):
            row, along_y = _tap(v, rows, below)
            for right in tl.static_range(2):
                column, along_x = _tap(u, columns, right)
                texel = (start + row * columns + column)[:, None] * C + channel
                weight = (share * along_x * along_y)[:, None]
                texel_ptr = texels_ptr + texel
                if C % 4 == 0:  # which the choice between two pointers hides
                    texel_ptr = tl.max_contiguous(tl.multiple_of(texel_ptr, (1, 4 * 4)), (1, 4))
                total += weight * tl.load(texel_ptr, mask=read, other=0.0).to(DTYPE)
    tl.store(out_ptr + sample[:, None] * C + channel, total, mask=shown[:, None] & real)


@triton.jit(do_not_specialize=_SIZES)
def scatter_kernel(
    texels_ptr, starts_ptr, uv_ptr, derivatives_ptr, gradient_ptr, n, height, width, top,
    C: tl.constexpr, PADDED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint of `look_up_kernel`; a sample whose gradient is 0 touches no memory.

    Args:
        texels_ptr: [texels, C], all levels one after the other; added to.
        starts_ptr: [top + 1] int64, texels before each level.
        uv_ptr: [n, 2].
        derivatives_ptr: [n, 4].
        gradient_ptr: [n, C], of what was looked up.
        n: samples.
        height: of level 0, a power of two.
        width: likewise.
        top: the last level.
        C: channels.
        PADDED: the power of two that is not below C.
        DTYPE: of the computation.
        BLOCK: samples of a program.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    shown = sample < n
    channel, real = _channels(C, PADDED)
    gradient = tl.load(
        gradient_ptr + sample[:, None] * C + channel, mask=shown[:, None] & real, other=0.0
    )
    # The rows that pad a recorded step's samples would all wait for one another.
    touched = tl.sum((gradient != 0).to(tl.int32), 1) > 0
    lod = _level_of_detail(derivatives_ptr, sample, touched, height, width, top, DTYPE, BLOCK)
    u, v = _point(uv_ptr, sample, touched, DTYPE)
    lower = lod.to(tl.int32)
    fraction = lod - lower
    for above in tl.static_range(2):
        level = tl.minimum(lower + above, top)
        share = fraction if above else 1 - fraction
        added = (touched & (share > 0))[:, None] & real
        rows, columns = tl.maximum(height >> level, 1), tl.maximum(width >> level, 1)
        start = tl.load(starts_ptr + level)
        for below in tl.static_range(2):
            row, along_y = _tap(v, rows, below)
            for right in tl.static_range(2):
                column, along_x = _tap(u, columns, right)
                texel = (start + row * columns + column)[:, None] * C + channel
                weight = (share * along_x * along_y)[:, None]
                tl.atomic_add(texels_ptr + texel, weight * gradient, mask=added, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def halve_kernel(
    fine_ptr, coarse_ptr, coarse_height, coarse_width,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, C: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The next level of a pyramid: means of DOWN × ACROSS texels, each 2, or 1 where a side is."""
    texel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel, real = _channels(C, PADDED)
    kept = (texel < coarse_height.to(tl.int64) * coarse_width)[:, None] & real
    row, column = texel // coarse_width, texel % coarse_width
    total = tl.zeros((BLOCK, PADDED), coarse_ptr.dtype.element_ty)
    for y in tl.static_range(DOWN):
        for x in tl.static_range(ACROSS):
            fine = (row * DOWN + y) * (coarse_width * ACROSS) + column * ACROSS + x
            total += tl.load(fine_ptr + fine[:, None] * C + channel, mask=kept, other=0.0)
    mean = total * (1 / (DOWN * ACROSS))
    tl.store(coarse_ptr + texel[:, None] * C + channel, mean, mask=kept)


@triton.jit(do_not_specialize=_SIZES)
def add_doubled_kernel(
    fine_ptr, coarse_ptr, coarse_height, coarse_width,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, C: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint of `halve_kernel`, added to the fine level."""
    texel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel, real = _channels(C, PADDED)
    width = coarse_width * ACROSS
    kept = (texel < coarse_height.to(tl.int64) * DOWN * width)[:, None] & real
    coarse = texel // width // DOWN * coarse_width + texel % width // ACROSS
    added = tl.load(coarse_ptr + coarse[:, None] * C + channel, mask=kept, other=0.0)
    fine_ptr += texel[:, None] * C + channel
    total = tl.load(fine_ptr, mask=kept, other=0.0) + added * (1 / (DOWN * ACROSS))
    tl.store(fine_ptr, total, mask=kept)


@cache
def _starts(height: int, width: int, device: torch.device) -> Tensor:
    """[levels] int64: texels before each level; made once, for a recorded step copies nothing."""
    areas = torch.tensor([0] + [h * w for h, w in level_sizes((height, width))])
    return areas.cumsum(0)[:-1].to(device)


def _between(
    levels: list[Tensor], channels: dict[str, int], *, over_coarse: bool
) -> Iterator[tuple[Any, ...]]:
    """Grid, arguments and constants for each pair of levels, the finest first."""
    for fine, coarse in pairwise(levels):
        height, width = coarse.shape[:2]
        constants = {"DOWN": len(fine) // height, "ACROSS": fine.shape[1] // width, **channels}
        texels = (coarse if over_coarse else fine).shape[:2].numel()
        yield (triton.cdiv(texels, TEXELS["BLOCK"]),), (fine, coarse, height, width), constants


def _as_levels(texels: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """[h, w, c] views of the levels that lie one after the other in [texels, c]."""
    parts = texels.split([height * width for height, width in sizes])
    return [part.view(*size, -1) for part, size in zip(parts, sizes, strict=True)]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: Tensor, uv: Tensor, derivatives: Tensor) -> Tensor:  # type: ignore[override]
        (height, width, c), n = maps.shape, len(uv)
        sizes = level_sizes(maps.shape)
        channels = {"C": c, "PADDED": triton.next_power_of_2(c)}
        starts = _starts(height, width, maps.device)
        maps = maps.contiguous()
        rest = maps.new_empty(sum(h * w for h, w in sizes[1:]), c)
        out = maps.new_empty(n, c)
        ctx.save_for_backward(uv, derivatives)
        ctx.sizes, ctx.channels = sizes, channels
        with torch.cuda.device_of(maps):
            levels = [maps, *_as_levels(rest, sizes[1:])]
            for grid, arguments, constants in _between(levels, channels, over_coarse=True):
                halve_kernel[grid](*arguments, **constants, **TEXELS)
            if n:
                look_up_kernel[(triton.cdiv(n, SAMPLES["BLOCK"]),)](
                    maps, rest, starts, uv, derivatives, out,
                    n, height, width, len(sizes) - 1,
                    **channels, DTYPE=_TRITON_DTYPES[maps.dtype], **SAMPLES,
                )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        uv, derivatives = ctx.saved_tensors
        sizes, channels = ctx.sizes, ctx.channels
        (height, width), n = sizes[0], len(uv)
        texels = gradient.new_zeros(sum(h * w for h, w in sizes), channels["C"])
        levels = _as_levels(texels, sizes)
        with torch.cuda.device_of(gradient):
            if n:
                scatter_kernel[(triton.cdiv(n, SAMPLES["BLOCK"]),)](
                    texels, _starts(height, width, gradient.device), uv, derivatives,
                    gradient.contiguous(), n, height, width, len(sizes) - 1,
                    **channels, DTYPE=_TRITON_DTYPES[gradient.dtype], **SAMPLES,
                )  # fmt: skip
            for grid, arguments, constants in reversed(
                list(_between(levels, channels, over_coarse=False))
            ):
                add_doubled_kernel[grid](*arguments, **constants, **TEXELS)
        return levels[0], None, None


def sample_texture_triton(maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
    """`sample_texture` in the maps' precision, float32 or float64; differentiable in the maps.

    Raises:
        ValueError: a side is no power of two; wrapping is a bit mask.
    """
    return _Lookup.apply(maps, uv.contiguous(), uv_derivatives.contiguous())  # type: ignore[return-value]
