"""Stage II as the posterior's mode: a surface takes the photographs' own pixels, at full size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.exemplar_texturing.coherent_mode import (
    NEXT,
    Photographs,
    Sources,
    nearest_patches,
    rotated,
    settle,
    window,
)
from sdslab.exemplar_texturing.guide import TangentField
from sdslab.exemplar_texturing.pyramid import ExemplarPyramid
from sdslab.exemplar_texturing.surface_points import (
    Neighbours,
    SurfacePoints,
    neighbours,
    tangent,
)
from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
from sdslab.meshes.material import NORMAL, encode_normals
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.texels import rasterize_texels, texels_per_unit, uv_per_unit

Array = np.ndarray[Any, Any]

COARSE, FINE = 4, 2  # times fewer pixels per unit than the finest pictures have
MOST_POINTS = 150_000  # of the fine level; a texture with more texels looks them up all the same
LEAST_HEIGHT = 8  # pixels of a photograph
PASSES = (10, 4)  # of the coarse and of the fine level
BLEND = 0.35  # pixels, of the Gaussian that points that disagree on a texel are blended by
SHARPENING = 0.8  # of photographs shown at the texels' own density
LEAST_WEIGHT = 0.02  # of a point that is heard


@dataclass(frozen=True, eq=False)
class _Laid:
    """Photographs laid on a surface.

    Attributes:
        points: of the surface.
        near: those around each of them, at ``window()``'s offsets.
        photographs: at the size that they lie there, a pixel a point.
        sources: where in them each point's colour comes from.
        per_unit: pixels along a unit of the surface.
    """

    points: SurfacePoints
    near: Neighbours
    photographs: Photographs
    sources: Sources
    per_unit: float


def mode_texture(
    pyramid: ExemplarPyramid, maps: Tensor, follow: Callable[[int], None] = lambda _: None
) -> Tensor:
    """The photographs' own pixels, laid out as the texture of stage I has them.

    Args:
        pyramid: of the mesh and its photographs.
        maps: [h, w, 8] on the CPU, what stage I has made, dilated.
        follow: is told after each pass how many of the ``sum(PASSES)`` are done.

    Returns:
        A new [h, w, 8]; what photographs do not show is as it was.

    Raises:
        UserError: masks leave nothing to copy.
    """
    mesh, exemplars = pyramid.renderer.mesh, pyramid.exemplars
    area = float(mesh.face_vectors.norm(dim=1).sum()) / 2
    fine = min(pyramid.pixels_per_unit / FINE, math.sqrt(MOST_POINTS / max(area, 1e-9)))
    field = pyramid.field or TangentField.of(mesh, "up", CpuBackend())  # any will do
    turned, laid, done = pyramid.field is None, None, 0
    for per_unit, passes in zip((fine * FINE / COARSE, fine), PASSES, strict=True):
        points = SurfacePoints.spread(mesh, field.vertices, per_unit)
        near = neighbours(points, points, window(), per_unit)
        photographs = _photographs(pyramid, pyramid.config.scale * per_unit)
        if laid is None:
            colours = _colours(mesh, maps[..., list(exemplars.guided)], points, per_unit)
            colours = photographs.matched(colours)
            sources = nearest_patches(colours, near, photographs, turned=turned)
        else:
            sources = _inherited(laid, points, photographs, turned=turned)
            colours = sources.colours(photographs)
        sources = settle(
            sources, colours, near, photographs, passes, turned=turned, seed=pyramid.config.seed,
            follow=lambda count, before=done: follow(before + count),
        )  # fmt: skip
        laid, done = _Laid(points, near, photographs, sources, per_unit), done + passes
    assert laid is not None
    return _shown(pyramid, maps, field, laid)


def _photographs(pyramid: ExemplarPyramid, height: float) -> Photographs:
    exemplars = pyramid.exemplars.exemplars
    tag = pyramid.config.tag
    if tag is not None:
        exemplars = exemplars[tag : tag + 1]
    rows = max(LEAST_HEIGHT, round(height))
    photographs = Photographs.of([exemplar.at_height(rows, 1) for exemplar in exemplars])
    if not photographs.usable.any():
        raise UserError(
            f"--exemplar-mask must leave a pixel of a photo that is {rows} pixels high on the "
            f"object, got none; enlarge it, or give a larger --exemplar-scale"
        )
    return photographs


def _colours(mesh: Mesh, maps: Tensor, points: SurfacePoints, per_unit: float) -> Array:
    """[n, c] of a texture at points, in [−1, 1], blended over a pixel."""
    pitch = (uv_per_unit(mesh) / per_unit)[torch.from_numpy(points.face)].float()
    zero = torch.zeros_like(pitch)
    derivatives = torch.stack((pitch, zero, zero, pitch), 1)
    uv = torch.from_numpy(points.uv).contiguous()
    return (2 * CpuBackend().sample_texture(maps.contiguous(), uv, derivatives) - 1).numpy()


def _inherited(
    laid: _Laid, points: SurfacePoints, photographs: Photographs, *, turned: bool
) -> Sources:
    """Sources of finer points, each from the coarser point that is nearest."""
    close = _nearest(points, laid)
    index, step = close.index[:, 0], close.displacement[:, 0]
    angle = laid.sources.angle[index]
    if turned:
        angle = angle - close.turn[:, 0]
    moved = rotated(step, angle)
    photo = laid.sources.photo[index]
    place = _rescaled(laid.sources.place[index] - moved, photo, laid.photographs, photographs)
    return Sources(place, angle.astype(np.float32), photo)


def _nearest(places: SurfacePoints, laid: _Laid) -> Neighbours:
    """The one point nearest to each place, however far it is."""
    from scipy.spatial import KDTree

    here = np.zeros((1, 2), dtype=np.float32)
    close = neighbours(places, laid.points, here, laid.per_unit)
    lost = close.index[:, 0] < 0
    if lost.any():
        close.index[lost, 0] = KDTree(laid.points.position).query(places.position[lost])[1]
    return close


def _rescaled(place: Array, photo: Array, before: Photographs, after: Photographs) -> Array:
    """Places [n, 2] of photographs in the same photographs at another size."""
    factor = np.stack(
        (
            (after.widths / before.widths)[photo],
            np.full(len(photo), after.pixels.shape[1] / before.pixels.shape[1]),
        ),
        1,
    )
    return ((place + 0.5) * factor - 0.5).astype(np.float32)


def _shown(pyramid: ExemplarPyramid, maps: Tensor, field: TangentField, laid: _Laid) -> Tensor:
    """[h, w, 8], each texel from where the points around it come from."""
    mesh, exemplars = pyramid.renderer.mesh, pyramid.exemplars
    size = (maps.shape[0], maps.shape[1])
    parts = (
        mesh.uv, mesh.render_positions, mesh.render_normals, field.vertices, mesh.render_tangents
    )  # fmt: skip
    attributes = torch.cat([part[mesh.faces.long()].float() for part in parts], -1)
    texels = rasterize_texels(mesh, size, CpuBackend(), attributes)
    uv, position, normal, up, along = texels.attributes.split((2, 3, 3, 3, 4), 1)
    normal = F.normalize(normal, dim=1)
    vectors = (position.contiguous(), normal, tangent(up, normal), uv.contiguous(), texels.face)
    places = SurfacePoints(*(vector.numpy() for vector in vectors))
    close, near = _nearest(places, laid), laid.near
    covered = torch.zeros(size, dtype=torch.bool)
    covered.view(-1)[texels.pixel] = True
    height, sources = pyramid.config.scale * texels_per_unit(mesh, covered), laid.sources
    if height < exemplars.height:  # whoever looks texels up blends them
        sharp = _photographs(pyramid, height).sharpened(SHARPENING)
    else:
        sharp = _photographs(pyramid, exemplars.height)
    place = _rescaled(sources.place, sources.photo, laid.photographs, sharp)
    factor = sharp.pixels.shape[1] / laid.photographs.pixels.shape[1]
    bumpy = NORMAL.start in exemplars.guided
    first = exemplars.guided.index(NORMAL.start) if bumpy else -1
    values = np.zeros((len(places.position), sharp.pixels.shape[3]), dtype=np.float32)
    calls = [
        (
            *(close.index[:, 0], close.displacement[:, 0], close.turn[:, 0]),
            *(near.index[:, :NEXT], near.displacement[:, :NEXT], near.turn[:, :NEXT]),
            *(place, sources.angle, sources.photo, sharp.pixels, sharp.widths, factor),
            *(pyramid.field is None, first, values, part.start, part.stop),
        )
        for part in split(len(values), 4 * worker_count())
    ]
    run_all(_blend, calls)
    shown = (torch.from_numpy(values).clamp(-1, 1) + 1) / 2
    if bumpy:
        frame = torch.from_numpy(np.stack((places.right, places.up, places.normal), 1))
        world = ((2 * shown[:, None, first : first + 3] - 1) @ frame)[:, 0]
        across = tangent(along[:, :3], normal)
        beside = torch.linalg.cross(normal, across) * along[:, 3:].sign()
        basis = torch.stack((across, beside, normal), 2)
        shown[:, first : first + 3] = encode_normals((world[:, None] @ basis)[:, 0])
    result = maps.clone()
    flat = result.view(-1, maps.shape[2])
    for number, channel in enumerate(exemplars.guided):
        flat[texels.pixel, channel] = shown[:, number]
    return result


@njit(nogil=True, cache=True)
def _cubic(t, weights):
    """Catmull-Rom's weights of four values, of which the middle two lie around ``t``."""
    weights[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    weights[1] = (1.5 * t - 2.5) * t * t + 1.0
    weights[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    weights[3] = (0.5 * t - 0.5) * t * t


@njit(nogil=True, cache=True)
def _blend(
    nearest, step, turn, near, near_step, near_turn, place, angle, photo, pixels, widths, factor,
    turned, normals, values, first, last,
):  # fmt: skip
    channels, height = pixels.shape[3], pixels.shape[1]
    across, down, colour = np.empty(4), np.empty(4), np.empty(channels)
    for n in range(first, last):
        total = 0.0
        own_x, own_y, own_photo = 0.0, 0.0, -1
        aside, ahead = np.cos(turn[n]), np.sin(turn[n])
        for k in range(-1, near.shape[1]):
            q, phi, a, b = nearest[n], turn[n], step[n, 0], step[n, 1]
            if k >= 0:
                m = near[q, k]
                if m < 0:
                    continue
                phi += near_turn[q, k]
                a += aside * near_step[q, k, 0] - ahead * near_step[q, k, 1]
                b += ahead * near_step[q, k, 0] + aside * near_step[q, k, 1]
                q = m
            weight = np.exp(-(a * a + b * b) / (2 * BLEND * BLEND))
            if k < 0:
                weight += 1e-9
            elif weight < LEAST_WEIGHT:
                continue
            tilt = angle[q] - phi if turned else angle[q]
            cosine, sine = np.cos(tilt), np.sin(tilt)
            p = photo[q]
            x = place[q, 0] - (cosine * a - sine * b) * factor
            y = place[q, 1] - (sine * a + cosine * b) * factor
            if k < 0:
                own_x, own_y, own_photo = x, y, p
            elif p == own_photo and abs(x - own_x) + abs(y - own_y) < factor / 2:
                continue  # it says the same
            x = min(max(x, 0.0), widths[p] - 1.0)
            y = min(max(y, 0.0), height - 1.0)
            x0, y0 = int(x), int(y)
            _cubic(x - x0, across)
            _cubic(y - y0, down)
            colour[:] = 0
            for i in range(4):
                row = min(max(y0 - 1 + i, 0), height - 1)
                for j in range(4):
                    column = min(max(x0 - 1 + j, 0), widths[p] - 1)
                    share = down[i] * across[j]
                    for c in range(channels):
                        colour[c] += share * pixels[p, row, column, c]
            if normals >= 0:
                # From the photograph's (right, up) to those of the texel's frame.
                right, up = colour[normals], colour[normals + 1]
                colour[normals] = cosine * right - sine * up
                colour[normals + 1] = sine * right + cosine * up
            for c in range(channels):
                values[n, c] += weight * colour[c]
            total += weight
        for c in range(channels):
            values[n, c] /= total
