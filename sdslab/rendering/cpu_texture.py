"""Trilinear texture look-up on the CPU, forward and adjoint, as numba kernels.

The adjoint is a scatter. Each thread owns a run of the pyramid's rows and adds, in order of the
samples, what falls into them: every texel's sum is formed in the same order however many threads
there are, so the gradient is bit-identical. Gradients of the coarse levels then flow down the box
filters to level 0.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
from sdslab.rendering.render_backend import level_sizes


def _levels(shape: Sequence[int]) -> np.ndarray:
    """[levels, 4] int64: height, width, first row of all, and first texel within levels 1 and up.

    Levels 1 and up are one array of texels, for level 0 is the texture itself.
    """
    levels, first_row, texels = [], 0, -shape[0] * shape[1]
    for height, width in level_sizes(shape):
        levels.append((height, width, first_row, max(0, texels)))
        first_row, texels = first_row + height, texels + height * width
    return np.array(levels, dtype=np.int64)


@njit(nogil=True, cache=True)
def _halve(fine, coarse, first, last):
    """Rows [first, last) of the next level: means of 2×2 texels, or of 2 where one side is 1."""
    step_y = fine.shape[0] // coarse.shape[0]
    step_x = fine.shape[1] // coarse.shape[1]
    weight = np.float32(1 / (step_y * step_x))
    for y in range(first, last):
        for x in range(coarse.shape[1]):
            for c in range(fine.shape[2]):
                total = fine[step_y * y, step_x * x, c]
                if step_x == 2:
                    total += fine[step_y * y, 2 * x + 1, c]
                if step_y == 2:
                    total += fine[2 * y + 1, step_x * x, c]
                    if step_x == 2:
                        total += fine[2 * y + 1, 2 * x + 1, c]
                coarse[y, x, c] = total * weight


@njit(nogil=True, cache=True)
def _add_doubled(coarse, fine, first, last):
    """The adjoint of `_halve`, for the rows [first, last) of the fine level."""
    step_y = fine.shape[0] // coarse.shape[0]
    step_x = fine.shape[1] // coarse.shape[1]
    weight = np.float32(1 / (step_y * step_x))
    for y in range(first, last):
        for x in range(fine.shape[1]):
            for c in range(fine.shape[2]):
                fine[y, x, c] += weight * coarse[y // step_y, x // step_x, c]


@njit(nogil=True, cache=True)
def _level_of_detail(derivatives, height, width):
    """½ log2 of the squared major axis of a pixel's footprint, in texels."""
    ux, uy = derivatives[0] * width, derivatives[1] * width
    vx, vy = derivatives[2] * height, derivatives[3] * height
    a, b, c = ux * ux + vx * vx, uy * uy + vy * vy, ux * uy + vx * vy
    major = 0.5 * (a + b) + math.sqrt(0.25 * (a - b) * (a - b) + c * c)
    return 0.5 * math.log2(major) if major > 1 else 0.0


@njit(nogil=True, cache=True)
def _taps(u, v, height, width):
    """Columns, rows and weights of the four texels around a point, which wrap."""
    x, y = u * width - 0.5, v * height - 0.5
    x_floor, y_floor = math.floor(x), math.floor(y)
    x0, y0 = int(x_floor) & (width - 1), int(y_floor) & (height - 1)
    return x0, (x0 + 1) & (width - 1), y0, (y0 + 1) & (height - 1), x - x_floor, y - y_floor


@njit(nogil=True, cache=True)
def _look_up(base, rest, levels, uv, derivatives, first, last, out, lod):
    """Samples [first, last): ``base`` is level 0, ``rest`` the texels of the others."""
    channels = base.shape[1]
    for n in range(first, last):
        lod[n] = min(
            _level_of_detail(derivatives[n], levels[0, 0], levels[0, 1]), len(levels) - 1.0
        )
        lower = int(lod[n])
        fraction = lod[n] - lower
        for c in range(channels):
            out[n, c] = 0
        for level in range(lower, lower + (2 if fraction > 0 else 1)):
            height, width = levels[level, 0], levels[level, 1]
            x0, x1, y0, y1, fx, fy = _taps(uv[n, 0], uv[n, 1], height, width)
            share = fraction if level > lower else 1 - fraction
            w00, w01 = np.float32(share * (1 - fx) * (1 - fy)), np.float32(share * fx * (1 - fy))
            w10, w11 = np.float32(share * (1 - fx) * fy), np.float32(share * fx * fy)
            texels = base if level == 0 else rest
            row0, row1 = levels[level, 3] + y0 * width, levels[level, 3] + y1 * width
            for c in range(channels):
                out[n, c] += (
                    w00 * texels[row0 + x0, c] + w01 * texels[row0 + x1, c]
                    + w10 * texels[row1 + x0, c] + w11 * texels[row1 + x1, c]
                )  # fmt: skip


@njit(nogil=True, cache=True)
def _count_touches(levels, uv, lod, touches):
    """Counts the look-ups of every row of the pyramid, to share the rows out evenly."""
    for n in range(len(lod)):
        lower = int(lod[n])
        for level in range(lower, lower + (2 if lod[n] > lower else 1)):
            height, width = levels[level, 0], levels[level, 1]
            _, _, y0, y1, _, _ = _taps(uv[n, 0], uv[n, 1], height, width)
            touches[levels[level, 2] + y0] += 1
            touches[levels[level, 2] + y1] += 1


@njit(nogil=True, cache=True)
def _scatter(base, rest, levels, uv, lod, gradient, first_row, last_row):
    """The adjoint of `_look_up`, for the rows [first_row, last_row) of the pyramid."""
    channels = base.shape[1]
    for n in range(len(lod)):
        lower = int(lod[n])
        fraction = lod[n] - lower
        for level in range(lower, lower + (2 if fraction > 0 else 1)):
            height, width, row = levels[level, 0], levels[level, 1], levels[level, 2]
            if row + height <= first_row or row >= last_row:
                continue
            x0, x1, y0, y1, fx, fy = _taps(uv[n, 0], uv[n, 1], height, width)
            share = fraction if level > lower else 1 - fraction
            texels = base if level == 0 else rest
            for side in range(2):
                y = y1 if side else y0
                if not first_row <= row + y < last_row:
                    continue
                weight = share * (fy if side else 1 - fy)
                left, right = np.float32(weight * (1 - fx)), np.float32(weight * fx)
                start = levels[level, 3] + y * width
                for c in range(channels):
                    texels[start + x0, c] += left * gradient[n, c]
                for c in range(channels):
                    texels[start + x1, c] += right * gradient[n, c]


def _level(base: np.ndarray, rest: np.ndarray, levels: np.ndarray, level: int) -> np.ndarray:
    """A level's texels as [h, w, c]."""
    height, width, _, start = levels[level]
    texels = base if level == 0 else rest[start : start + height * width]
    return texels.reshape(height, width, -1)


def _pyramid(maps: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width, channels = maps.shape
    levels = _levels(maps.shape)
    base = maps.detach().numpy().reshape(height * width, channels)
    texels = int((levels[1:, 0] * levels[1:, 1]).sum())
    rest = np.empty((max(texels, 1), channels), dtype=np.float32)
    for level in range(1, len(levels)):
        fine, coarse = (_level(base, rest, levels, i) for i in (level - 1, level))
        rows = split(len(coarse), worker_count() if coarse.size > 2**14 else 1)
        run_all(_halve, [(fine, coarse, r.start, r.stop) for r in rows])
    return base, rest, levels


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: Tensor, uv: Tensor, derivatives: Tensor) -> Tensor:  # type: ignore[override]
        base, rest, levels = _pyramid(maps.contiguous())
        out = torch.empty(len(uv), maps.shape[2])
        lod = torch.empty(len(uv))
        shared = (base, rest, levels, uv.numpy(), derivatives.numpy())
        run_all(
            _look_up,
            [
                (*shared, part.start, part.stop, out.numpy(), lod.numpy())
                for part in split(len(uv), 4 * worker_count())
            ],
        )
        ctx.levels, ctx.channels = levels, maps.shape[2]
        ctx.save_for_backward(uv, lod)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        uv, lod = (tensor.numpy() for tensor in ctx.saved_tensors)
        levels, channels = ctx.levels, ctx.channels
        height, width = levels[0, :2]
        # calloc's pages are zero already: no pass over memory that the scatter hardly touches.
        base = np.zeros((height * width, channels), dtype=np.float32)
        texels = int((levels[1:, 0] * levels[1:, 1]).sum())
        rest = np.zeros((max(texels, 1), channels), dtype=np.float32)
        touches = np.zeros(levels[-1, 2] + levels[-1, 0], dtype=np.int64)
        _count_touches(levels, uv, lod, touches)
        run_all(
            _scatter,
            [
                (base, rest, levels, uv, lod, gradient.contiguous().numpy(), first, last)
                for first, last in _even_shares(touches, worker_count())
            ],
        )
        for level in range(len(levels) - 1, 0, -1):
            coarse, fine = (_level(base, rest, levels, i) for i in (level, level - 1))
            rows = split(len(fine), worker_count() if fine.size > 2**14 else 1)
            run_all(_add_doubled, [(coarse, fine, r.start, r.stop) for r in rows])
        return torch.from_numpy(base).view(height, width, channels), None, None


def _even_shares(touches: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Runs of rows with nearly equal numbers of look-ups."""
    total = np.cumsum(touches)
    bounds = np.searchsorted(total, [total[-1] * part // parts for part in range(1, parts)])
    edges = [0, *(int(bound) for bound in bounds), len(touches)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def sample_texture_cpu(maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
    """`sample_texture` on the CPU, in float32; differentiable in the maps.

    Raises:
        ValueError: a side is no power of two; wrapping is a bit mask.
    """
    return _Lookup.apply(maps, uv.contiguous(), uv_derivatives.contiguous())  # type: ignore[return-value]
