"""Stage II as the posterior's mode: a surface takes the photographs' own pixels, at full size."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.exemplar_texturing.coherent_mode import (
    NEXT,
    Photographs,
    Sources,
    nearest_patches,
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
PASSES = (6, 3)  # of the coarse and of the fine level
BLEND = 0.35  # pixels, of the Gaussian that points that disagree on a texel are blended by
LEAST_WEIGHT = 0.02  # of a point that is heard


def mode_texture(
    pyramid: ExemplarPyramid,
    maps: Tensor,
    follow: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The photographs' own pixels, laid out as the texture of stage I has them.

    Args:
        pyramid: of the mesh and its photographs.
        maps: [h, w, 8] on the CPU, what stage I has made, dilated.
        follow: is told how many passes are done, and of how many.

    Returns:
        A new [h, w, 8]; what photographs do not show is as it was.
    """
    mesh, exemplars, config = pyramid.renderer.mesh, pyramid.exemplars, pyramid.config
    area = float(mesh.face_vectors.norm(dim=1).sum()) / 2
    fine = min(pyramid.pixels_per_unit / FINE, math.sqrt(MOST_POINTS / max(area, 1e-9)))
    field = pyramid.field or TangentField.of(mesh, "flow", CpuBackend())
    turned = pyramid.field is None
    total = sum(PASSES)
    points = near = sources = photographs = None
    done = 0
    for per_unit, passes in zip((fine * FINE / COARSE, fine), PASSES, strict=True):
        coarser, before, smaller = points, sources, photographs
        points = SurfacePoints.spread(mesh, field.vertices, per_unit)
        near = neighbours(points, points, window(), per_unit)
        photographs = _photographs(pyramid, config.scale * per_unit)
        if coarser is None or before is None or smaller is None:
            colours = _colours(mesh, maps[..., list(exemplars.guided)], points, per_unit)
            colours = photographs.matched(colours)
            sources = nearest_patches(colours, near, photographs, turned=turned)
        else:
            close = neighbours(points, coarser, np.zeros((1, 2), np.float32), per_unit * FINE / COARSE)
            sources = _inherited(before, close, points, coarser, smaller, photographs, turned)
            colours = sources.colours(photographs)
        start = done
        sources = settle(
            sources, colours, near, photographs, passes, turned=turned, seed=config.seed,
            follow=lambda count, start=start: follow(start + count, total),
        )  # fmt: skip
        done += passes
        import os
        if os.environ.get("DBG"):
            from sdslab.exemplar_texturing.coherent_mode import agreement
            used=np.zeros(photographs.usable.shape,bool); pl=np.rint(sources.place).astype(int)
            used[sources.photo,pl[:,1].clip(0,used.shape[1]-1),pl[:,0].clip(0,used.shape[2]-1)]=True
            cc=sources.colours(photographs)
            print("   n",len(points.position),"agree",agreement(sources,near),"used",used.mean(),"contrast",cc.std(0).mean()/photographs.pixels.std((0,1,2)).mean(), 'photo',photographs.pixels.shape)
    assert points is not None and sources is not None and photographs is not None
    assert near is not None
    return _shown(pyramid, maps, field, points, near, sources, photographs, fine)


def _photographs(pyramid: ExemplarPyramid, height: float) -> Photographs:
    exemplars = pyramid.exemplars.exemplars
    tag = pyramid.config.tag
    if tag is not None:
        exemplars = exemplars[tag : tag + 1]
    return Photographs.of([exemplar.at_height(max(8, round(height)), 1) for exemplar in exemplars])


def _colours(mesh: Mesh, maps: Tensor, points: SurfacePoints, per_unit: float) -> Array:
    """[n, c] of a texture at points, in [−1, 1], blended over a pixel."""
    pitch = (uv_per_unit(mesh) / per_unit)[torch.from_numpy(points.face)].float()
    zero = torch.zeros_like(pitch)
    derivatives = torch.stack((pitch, zero, zero, pitch), 1)
    uv = torch.from_numpy(points.uv).contiguous()
    return (2 * CpuBackend().sample_texture(maps.contiguous(), uv, derivatives) - 1).numpy()


def _inherited(
    sources: Sources,
    close: Neighbours,
    points: SurfacePoints,
    coarser: SurfacePoints,
    smaller: Photographs,
    photographs: Photographs,
    turned: bool,
) -> Sources:
    """Sources of finer points, from the coarser point that is nearest to each."""
    from scipy.spatial import KDTree

    index = close.index[:, 0].copy()
    step = close.displacement[:, 0].copy()
    lost = index < 0
    if lost.any():
        index[lost] = KDTree(coarser.position).query(points.position[lost])[1]
    angle = sources.angle[index] - (close.turn[:, 0] if turned else 0)
    cosine, sine = np.cos(angle), np.sin(angle)
    moved = np.stack(
        (cosine * step[:, 0] - sine * step[:, 1], sine * step[:, 0] + cosine * step[:, 1]), 1
    )
    photo = sources.photo[index]
    place = _rescaled(sources.place[index] - moved, photo, smaller, photographs)
    return Sources(place, angle.astype(np.float32), photo)


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


def _shown(
    pyramid: ExemplarPyramid,
    maps: Tensor,
    field: TangentField,
    points: SurfacePoints,
    near: Neighbours,
    sources: Sources,
    photographs: Photographs,
    per_unit: float,
) -> Tensor:
    """[h, w, 8], each texel from where the points around it come from."""
    mesh, exemplars = pyramid.renderer.mesh, pyramid.exemplars
    size = (maps.shape[0], maps.shape[1])
    corners = mesh.faces.long()
    parts = (
        mesh.uv, mesh.render_positions, mesh.render_normals, field.vertices, mesh.render_tangents
    )  # fmt: skip
    attributes = torch.cat([part[corners].float() for part in parts], -1)
    texels = rasterize_texels(mesh, size, CpuBackend(), attributes)
    _, position, normal, up, along = texels.attributes.split((2, 3, 3, 3, 4), 1)
    normal = F.normalize(normal, dim=1)
    places = SurfacePoints(
        position.contiguous().numpy(),
        normal.numpy(),
        tangent(up, normal).numpy(),
        np.zeros((0, 2), np.float32),
        texels.face.numpy(),
    )
    close = neighbours(places, points, np.zeros((1, 2), np.float32), per_unit)
    lost = close.index[:, 0] < 0
    if lost.any():
        from scipy.spatial import KDTree

        close.index[lost, 0] = KDTree(points.position).query(places.position[lost])[1]
    density = texels_per_unit(mesh, _covered(size, texels.pixel))
    lowest = min(exemplar.channels.shape[1] for exemplar in exemplars.exemplars)
    height = min(lowest, pyramid.config.scale * density)
    sharp = _photographs(pyramid, height)
    scaled = Sources(
        _rescaled(sources.place, sources.photo, photographs, sharp), sources.angle, sources.photo
    )
    factor = sharp.pixels.shape[1] / photographs.pixels.shape[1]
    values = np.zeros((len(places.position), sharp.pixels.shape[3]), dtype=np.float32)
    calls = [
        (close.index[:, 0], close.displacement[:, 0], close.turn[:, 0],
         near.index[:, :NEXT], near.displacement[:, :NEXT], near.turn[:, :NEXT], scaled.place, scaled.angle, scaled.photo,
         sharp.pixels, sharp.widths, factor, pyramid.field is None,
         exemplars.guided.index(NORMAL.start) if NORMAL.start in exemplars.guided else -1,
         values, part.start, part.stop)
        for part in split(len(values), 4 * worker_count())
    ]  # fmt: skip
    run_all(_blend, calls)
    shown = (torch.from_numpy(values).clamp(-1, 1) + 1) / 2
    if NORMAL.start in exemplars.guided:
        first = exemplars.guided.index(NORMAL.start)
        frame = torch.from_numpy(np.stack((places.right, places.up, places.normal), 1))
        world = ((2 * shown[:, first : first + 3] - 1)[:, None] @ frame)[:, 0]
        tangents = tangent(along[:, :3], normal)
        bitangents = torch.linalg.cross(normal, tangents) * along[:, 3:].sign()
        basis = torch.stack((tangents, bitangents, normal), 2)
        shown[:, first : first + 3] = encode_normals((world[:, None] @ basis)[:, 0])
    result = maps.clone()
    flat = result.view(-1, maps.shape[2])
    for number, channel in enumerate(exemplars.guided):
        flat[texels.pixel, channel] = shown[:, number]
    return result


def _covered(size: tuple[int, int], pixel: Tensor) -> Tensor:
    covered = torch.zeros(size, dtype=torch.bool)
    covered.view(-1)[pixel] = True
    return covered


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
