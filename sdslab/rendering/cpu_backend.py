"""The renderer's backend for any CPU: numba kernels on a pool of threads.

Homogeneous rasterization: with corners (x_k, y_k, w_k) in clip space and a pixel centre at
f = (f_x, f_y, 1), the edge functions a_k = f · (p_i × p_j) are the perspective-correct barycentrics
up to their sum, and need no clipping at the near plane. They are evaluated in float64 from corners
shifted towards the pixel: float32 would give neighbouring faces' edges to neither of them.

Source: Olano and Greer 1997, "Triangle scan conversion using 2D homogeneous coordinates".
"""

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
from sdslab.rendering.cpu_texture import sample_texture_cpu
from sdslab.rendering.render_backend import ON_EDGE, Fragments, RenderBackend, face_bits


@njit(nogil=True, cache=True)
def _pixel_bounds(x0, y0, w0, x1, y1, w1, x2, y2, w2, height, width):
    """First and last column and row whose centres the face may cover; all where it straddles."""
    if w0 <= 0 or w1 <= 0 or w2 <= 0:
        return 0, width - 1, 0, height - 1
    left = min(x0 / w0, x1 / w1, x2 / w2)
    right = max(x0 / w0, x1 / w1, x2 / w2)
    low = min(y0 / w0, y1 / w1, y2 / w2)
    high = max(y0 / w0, y1 / w1, y2 / w2)
    # Clamped before the conversion to integers, which huge numbers would overflow; the slack keeps
    # rounding from losing a centre that lies on an edge.
    first_column = math.ceil(min(max((left + 1) / 2 * width - 0.5 - 1e-6, 0.0), width))
    last_column = math.floor(max(min((right + 1) / 2 * width - 0.5 + 1e-6, width - 1.0), -1.0))
    first_row = math.ceil(min(max((1 - high) / 2 * height - 0.5 - 1e-6, 0.0), height))
    last_row = math.floor(max(min((1 - low) / 2 * height - 0.5 + 1e-6, height - 1.0), -1.0))
    return int(first_column), int(last_column), int(first_row), int(last_row)


@njit(nogil=True, cache=True)
def visible_faces(clip, faces, top, bottom, depth_steps, ids):
    """Writes 1 + the nearest face of every pixel of the rows [top, bottom) of one view.

    Args:
        clip: [v, 4] float32.
        faces: [f, 3] int32.
        top: first row.
        bottom: one past the last row.
        depth_steps: faces are equally near within 1/depth_steps of z/w.
        ids: [h, w] int32, zeros; written.
    """
    height, width = ids.shape
    pixel_width, pixel_height = 1 / width, 1 / height
    nearest = np.full((bottom - top, width), np.iinfo(np.int64).max)  # steps from the near plane
    for face in range(faces.shape[0]):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        w0, w1, w2 = float(clip[i, 3]), float(clip[j, 3]), float(clip[k, 3])
        if w0 <= 0 and w1 <= 0 and w2 <= 0:
            continue
        x0, x1, x2 = float(clip[i, 0]), float(clip[j, 0]), float(clip[k, 0])
        y0, y1, y2 = float(clip[i, 1]), float(clip[j, 1]), float(clip[k, 1])
        left, right, first, last = _pixel_bounds(x0, y0, w0, x1, y1, w1, x2, y2, w2, height, width)
        if left > right or first > last or first >= bottom or last < top:
            continue
        # Edge functions a_k = e_k + b_k (f_x − m_x) + c_k (f_y − m_y) around a point m amid the
        # face, from corners shifted by m w: around the picture's middle, faces seen edge-on would
        # lose their depth to cancellation.
        mx = (left + right + 1) * pixel_width - 1
        my = 1 - (first + last + 1) * pixel_height
        u0, u1, u2 = x0 - mx * w0, x1 - mx * w1, x2 - mx * w2
        v0, v1, v2 = y0 - my * w0, y1 - my * w1, y2 - my * w2
        e0, e1, e2 = u1 * v2 - v1 * u2, u2 * v0 - v2 * u0, u0 * v1 - v0 * u1
        determinant = e0 * w0 + e1 * w1 + e2 * w2
        if determinant == 0 or not math.isfinite(determinant):
            continue
        # With this factor the edge functions are positive inside and Σ a_k w_k = 1.
        scale = 1 / determinant
        e0, e1, e2 = e0 * scale, e1 * scale, e2 * scale
        b0, b1, b2 = (
            (v1 * w2 - w1 * v2) * scale, (v2 * w0 - w2 * v0) * scale, (v0 * w1 - w0 * v1) * scale,
        )  # fmt: skip
        c0, c1, c2 = (
            (w1 * u2 - u1 * w2) * scale, (w2 * u0 - u2 * w0) * scale, (w0 * u1 - u0 * w1) * scale,
        )  # fmt: skip
        # z/w is affine in f as well: Σ a_k z_k.
        z0, z1, z2 = float(clip[i, 2]), float(clip[j, 2]), float(clip[k, 2])
        depth_by_x = b0 * z0 + b1 * z1 + b2 * z2
        for row in range(max(first, top), min(last + 1, bottom)):
            fy = 1 - (2 * row + 1) * pixel_height - my
            r0, r1, r2 = e0 + c0 * fy, e1 + c1 * fy, e2 + c2 * fy
            depth_of_row = r0 * z0 + r1 * z1 + r2 * z2
            for column in range(left, right + 1):
                fx = (2 * column + 1) * pixel_width - 1 - mx
                if (
                    r0 + b0 * fx >= -ON_EDGE
                    and r1 + b1 * fx >= -ON_EDGE
                    and r2 + b2 * fx >= -ON_EDGE
                ):
                    depth = depth_of_row + depth_by_x * fx
                    if -1 <= depth <= 1:
                        order = int((depth + 1) * depth_steps)
                        if order < nearest[row - top, column]:
                            nearest[row - top, column] = order
                            ids[row, column] = face + 1


@njit(nogil=True, cache=True)
def interpolate(
    clip, faces, ids, attributes, view, offset,
    pixel, face_out, front, barycentrics, depth, values, uv_derivatives,
):  # fmt: skip
    """Fills the fragments of one view, from index ``offset`` on; shapes as in `Fragments`."""
    height, width = ids.shape
    channels = attributes.shape[1]
    n = offset
    for row in range(height):
        fy = 1 - (2 * row + 1) / height
        for column in range(width):
            if ids[row, column] == 0:
                continue
            face = ids[row, column] - 1
            i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
            w0, w1, w2 = float(clip[i, 3]), float(clip[j, 3]), float(clip[k, 3])
            x0, x1, x2 = float(clip[i, 0]), float(clip[j, 0]), float(clip[k, 0])
            y0, y1, y2 = float(clip[i, 1]), float(clip[j, 1]), float(clip[k, 1])
            fx = (2 * column + 1) / width - 1
            u0, u1, u2 = x0 - fx * w0, x1 - fx * w1, x2 - fx * w2
            v0, v1, v2 = y0 - fy * w0, y1 - fy * w1, y2 - fy * w2
            a0 = u1 * v2 - v1 * u2
            a1 = u2 * v0 - v2 * u0
            a2 = u0 * v1 - v0 * u1
            total = a0 + a1 + a2
            b0, b1, b2 = a0 / total, a1 / total, a2 / total
            determinant = a0 * w0 + a1 * w1 + a2 * w2
            pixel[n] = (view * height + row) * width + column
            face_out[n] = face
            front[n] = determinant > 0
            barycentrics[n, 0], barycentrics[n, 1], barycentrics[n, 2] = b0, b1, b2
            z0, z1, z2 = float(clip[i, 2]), float(clip[j, 2]), float(clip[k, 2])
            depth[n] = (a0 * z0 + a1 * z1 + a2 * z2) / determinant
            for c in range(channels):
                values[n, c] = b0 * attributes[i, c] + b1 * attributes[j, c] + b2 * attributes[k, c]
            # ∂a_k/∂f_x and ∂a_k/∂f_y.
            d0x, d1x, d2x = y1 * w2 - w1 * y2, y2 * w0 - w2 * y0, y0 * w1 - w0 * y1
            d0y, d1y, d2y = w1 * x2 - x1 * w2, w2 * x0 - x2 * w0, w0 * x1 - x0 * w1
            for c in range(2):
                t0, t1, t2 = attributes[i, c], attributes[j, c], attributes[k, c]
                t = b0 * t0 + b1 * t1 + b2 * t2
                along_x = d0x * (t0 - t) + d1x * (t1 - t) + d2x * (t2 - t)
                along_y = d0y * (t0 - t) + d1y * (t1 - t) + d2y * (t2 - t)
                uv_derivatives[n, 2 * c] = along_x / total * (2 / width)
                uv_derivatives[n, 2 * c + 1] = -along_y / total * (2 / height)
            n += 1


@final
class CpuBackend(RenderBackend):
    """float32 in and out; results do not depend on the number of threads."""

    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        height, width = resolution
        ids = torch.zeros(len(clip), height, width, dtype=torch.int32)
        bands = split(height, -(-worker_count() // len(clip)))
        depth_steps = 2.0 ** (61 - face_bits(len(faces)))
        run_all(
            visible_faces,
            [
                (clip_of_view, faces.numpy(), band.start, band.stop, depth_steps, ids_of_view)
                for clip_of_view, ids_of_view in zip(
                    clip.contiguous().numpy(), ids.numpy(), strict=True
                )
                for band in bands
            ],
        )
        return ids

    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        views = ids.numpy()
        ends = np.cumsum(np.count_nonzero(views, axis=(1, 2)))
        n, k = int(ends[-1]), attributes.shape[1]
        fragments = Fragments(
            shape=(len(ids), ids.shape[1], ids.shape[2]),
            pixel=torch.empty(n, dtype=torch.int64),
            face=torch.empty(n, dtype=torch.int64),
            front_facing=torch.empty(n, dtype=torch.bool),
            barycentrics=torch.empty(n, 3),
            depth=torch.empty(n),
            attributes=torch.empty(n, k),
            uv_derivatives=torch.empty(n, 4),
        )
        outputs = tuple(
            tensor.numpy()
            for tensor in (
                fragments.pixel, fragments.face, fragments.front_facing, fragments.barycentrics,
                fragments.depth, fragments.attributes, fragments.uv_derivatives,
            )
        )  # fmt: skip
        shared = (faces.numpy(), attributes.contiguous().numpy())
        run_all(
            interpolate,
            [
                (clip_of_view, shared[0], views[view], shared[1], view, offset, *outputs)
                for view, (clip_of_view, offset) in enumerate(
                    zip(clip.contiguous().numpy(), [0, *ends[:-1]], strict=True)
                )
            ],
        )
        return fragments

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        return sample_texture_cpu(maps, uv, uv_derivatives)
