"""Passes over a mesh's faces, edges and vertices, compiled by numba: a million faces in a second.

Positions, texture coordinates and normals are float64, indices int64, all contiguous.
"""

import math

import numpy as np

from sdslab.kernels.compiled import njit

DEGENERATE = 1e-12  # sine of the angle below which a triangle counts as a line
_MIXER = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True)
def number_rows(bits):
    """Numbers the rows of [n, k] int64 so that equal ones share a number, by first occurrence.

    Returns:
        The numbers [n], and how many there are.
    """
    n, columns = bits.shape
    size = 4
    while size < 2 * n:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, np.int32)  # rows, by hash; a taken place moves a row to the next
    numbers = np.empty(n, np.int64)
    count = 0
    for row in range(n):
        mixed = _MIXER
        for column in range(columns):
            mixed = (mixed ^ np.uint64(bits[row, column])) * _MIXER
            mixed ^= mixed >> np.uint64(32)
        place = mixed & mask
        while True:
            other = table[place]
            if other < 0:
                table[place] = row
                numbers[row] = count
                count += 1
                break
            equal = True
            for column in range(columns):
                equal &= bits[row, column] == bits[other, column]
            if equal:
                numbers[row] = numbers[other]
                break
            place = (place + np.uint64(1)) & mask
    return numbers, count


@njit(nogil=True, cache=True)
def _unit(x, y, z):
    """Zero stays zero, at any scale."""
    largest = max(abs(x), abs(y), abs(z))
    if not largest > 0:
        return 0.0, 0.0, 0.0
    x, y, z = x / largest, y / largest, z / largest
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@njit(nogil=True, cache=True)
def _project(x, y, z, i, j, k):
    """Unit part of (x, y, z) orthogonal to a unit normal, or zero where there is next to none."""
    along = x * i + y * j + z * k
    p, q, r = x - along * i, y - along * j, z - along * k
    if p * p + q * q + r * r <= 1e-12 * (x * x + y * y + z * z):
        return 0.0, 0.0, 0.0
    return _unit(p, q, r)


@njit(nogil=True, cache=True)
def _sides(positions, faces, f):
    """A face's first and second side, over the largest number of all three."""
    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
    x, y, z = positions[b, 0], positions[b, 1], positions[b, 2]
    x1, y1, z1 = x - positions[a, 0], y - positions[a, 1], z - positions[a, 2]
    x2, y2, z2 = positions[c, 0] - x, positions[c, 1] - y, positions[c, 2] - z
    largest = max(abs(x1), abs(y1), abs(z1), abs(x2), abs(y2), abs(z2))
    largest = max(largest, abs(x1 + x2), abs(y1 + y2), abs(z1 + z2))
    scale = largest if largest > 0 else 1.0
    return x1 / scale, y1 / scale, z1 / scale, x2 / scale, y2 / scale, z2 / scale


@njit(nogil=True, cache=True)
def _angle(x1, y1, z1, x2, y2, z2):
    """Between two vectors; accurate for flat and for sharp angles alike (Kahan)."""
    length1 = math.sqrt(x1 * x1 + y1 * y1 + z1 * z1)
    length2 = math.sqrt(x2 * x2 + y2 * y2 + z2 * z2)
    if length1 == 0 or length2 == 0:
        return 0.0
    x1, y1, z1 = x1 * length2, y1 * length2, z1 * length2
    x2, y2, z2 = x2 * length1, y2 * length1, z2 * length1
    difference = (x1 - x2) ** 2 + (y1 - y2) ** 2 + (z1 - z2) ** 2
    total = (x1 + x2) ** 2 + (y1 + y2) ** 2 + (z1 + z2) ** 2
    return 2 * math.atan2(math.sqrt(difference), math.sqrt(total))


@njit(nogil=True, cache=True)
def face_frames(positions, faces, normals, angles):
    """Writes unit normals and corner angles; zeros where a face, or a side, is none.

    Args:
        positions: [v, 3].
        faces: [f, 3].
        normals: [f, 3], written; zero where a face is a line or a point, at any scale.
        angles: [f, 3], written; radians.
    """
    for f in range(len(faces)):
        x1, y1, z1, x2, y2, z2 = _sides(positions, faces, f)
        x3, y3, z3 = x1 + x2, y1 + y2, z1 + z2  # from the first corner to the last
        x, y, z = y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2
        area = x * x + y * y + z * z
        square1, square2 = x1 * x1 + y1 * y1 + z1 * z1, x2 * x2 + y2 * y2 + z2 * z2
        square3 = x3 * x3 + y3 * y3 + z3 * z3
        # The sine of the angle between the two longest sides says whether there is an area.
        longest = max(square1 * square2, square2 * square3, square3 * square1)
        scale = 1 / math.sqrt(area) if area > DEGENERATE**2 * longest else 0.0
        normals[f, 0], normals[f, 1], normals[f, 2] = x * scale, y * scale, z * scale
        angles[f, 0] = _angle(x1, y1, z1, x3, y3, z3)
        angles[f, 1] = _angle(x2, y2, z2, -x1, -y1, -z1)
        angles[f, 2] = _angle(x3, y3, z3, x2, y2, z2)


@njit(nogil=True, cache=True)
def add_normals(faces, group, normals, angles, sums):
    """Adds each corner's face normal times its angle to ``sums`` [groups, 3]."""
    for f in range(len(faces)):
        for k in range(3):
            g, angle = group[faces[f, k]], angles[f, k]
            sums[g, 0] += angle * normals[f, 0]
            sums[g, 1] += angle * normals[f, 1]
            sums[g, 2] += angle * normals[f, 2]


@njit(nogil=True, cache=True)
def add_tangents(positions, faces, uv, normals, group, frames, angles, sums, weights):
    """Adds each corner's ∂position/∂u, in the plane of its vertex's normal, times its angle.

    Args:
        positions: [v, 3].
        faces: [f, 3].
        uv: [v, 2].
        normals: [v, 3], of the vertices.
        group: [v], what adds up.
        frames: [f, 3], normals of the faces, zero for those that count for nothing.
        angles: [f, 3].
        sums: [groups, 2, 3], added to: by faces seen from the front in the texture, by mirrored.
        weights: [v, 2], added to: the angles alone, for each vertex by itself.
    """
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        du1, dv1 = uv[b, 0] - uv[a, 0], uv[b, 1] - uv[a, 1]
        du2, dv2 = uv[c, 0] - uv[b, 0], uv[c, 1] - uv[b, 1]
        du3, dv3 = uv[c, 0] - uv[a, 0], uv[c, 1] - uv[a, 1]
        determinant = du1 * dv3 - dv1 * du3
        scale = max(du1 * du1 + dv1 * dv1, du2 * du2 + dv2 * dv2, du3 * du3 + dv3 * dv3)
        if frames[f, 0] == 0 and frames[f, 1] == 0 and frames[f, 2] == 0:
            continue
        if not abs(determinant) > 1e-10 * scale:
            continue
        mirrored = 1 if determinant < 0 else 0
        sign = -1.0 if mirrored else 1.0
        x1, y1, z1, x2, y2, z2 = _sides(positions, faces, f)
        p, q = sign * dv2, -sign * dv1
        x, y, z = _unit(p * x1 + q * x2, p * y1 + q * y2, p * z1 + q * z2)
        for corner in range(3):
            v, angle = faces[f, corner], angles[f, corner]
            i, j, k = _project(x, y, z, normals[v, 0], normals[v, 1], normals[v, 2])
            g = group[v]
            sums[g, mirrored, 0] += angle * i
            sums[g, mirrored, 1] += angle * j
            sums[g, mirrored, 2] += angle * k
            weights[v, mirrored] += angle


@njit(nogil=True, cache=True)
def settle_tangents(group, normals, sums, weights, tangents):
    """Writes tangents [v, 4] from what `add_tangents` added; returns the vertices of both kinds."""
    torn = 0
    for v in range(len(tangents)):
        front, mirrored = weights[v, 0], weights[v, 1]
        torn += front > 1e-9 and mirrored > 1e-9
        side = 1 if mirrored > front else 0
        g, i, j, k = group[v], normals[v, 0], normals[v, 1], normals[v, 2]
        x, y, z = _project(sums[g, side, 0], sums[g, side, 1], sums[g, side, 2], i, j, k)
        tangents[v, 3] = -1.0 if side else 1.0
        if x == 0 and y == 0 and z == 0:
            # any that is orthogonal: the world axis least along the normal
            i_least = abs(i) <= abs(j) and abs(i) <= abs(k)
            j_least = not i_least and abs(j) <= abs(k)
            p, q = (1.0 if i_least else 0.0), (1.0 if j_least else 0.0)
            x, y, z = _project(p, q, 1.0 - p - q, i, j, k)
            tangents[v, 3] = 1.0
        tangents[v, 0], tangents[v, 1], tangents[v, 2] = x, y, z
    return torn


@njit(nogil=True, cache=True)
def join_faces(faces, edges, uses, parent, against, torn):
    """Joins faces along the edges that exactly two of them share.

    Args:
        faces: [f, 3], vertices by place.
        edges: [f, 3], the edge from each corner to the next, by number.
        uses: [e], how many faces each edge has.
        parent: [f], 0 … f − 1; written: each face's piece, which is its lowest face.
        against: [f] bool, False; written: whether it is wound against that one.
        torn: [f] bool, False; written at lowest faces: whether the piece cannot be wound alike.
    """
    first = np.full(len(uses), -1)
    for half in range(edges.size):
        face, corner = half // 3, half % 3
        edge = edges[face, corner]
        if uses[edge] != 2:
            continue
        if first[edge] < 0:
            first[edge] = half
            continue
        other = first[edge] // 3
        disagree = faces[face, corner] == faces[other, first[edge] % 3]
        a, a_against = _root(parent, against, face)
        b, b_against = _root(parent, against, other)
        turned = a_against ^ b_against ^ disagree
        if a == b:
            torn[a] |= turned
        else:
            a, b = min(a, b), max(a, b)
            parent[b], against[b] = a, turned
            torn[a] |= torn[b]
    for face in range(len(parent)):
        parent[face], against[face] = _root(parent, against, face)


@njit(nogil=True, cache=True)
def _root(parent, against, face):
    """A face's root and whether it is wound against it; halves the way for the next time."""
    turned = False
    while parent[face] != face:
        above = parent[face]
        # relative to the grandparent, which is the parent itself at a root
        against[face] ^= against[above]
        parent[face] = parent[above]
        turned ^= against[face]
        face = parent[face]
    return face, turned


@njit(nogil=True, cache=True)
def measure_pieces(positions, faces, piece, inverted, area, wound, centre, volume):
    """Adds up each piece's double area, also signed, and six times its volume about its centre.

    Args:
        positions: [v, 3].
        faces: [f, 3].
        piece: [f].
        inverted: [f] bool, whether the face counts as wound the other way.
        area: [f], at pieces, added to.
        wound: [f], at pieces, added to: less the area of what is inverted.
        centre: [f, 3], at pieces, added to: the area times six times the centre.
        volume: [f], at pieces, added to.
    """
    for step in range(2):
        for f in range(len(faces)):
            a, b, c, p = faces[f, 0], faces[f, 1], faces[f, 2], piece[f]
            x, y, z = positions[a, 0], positions[a, 1], positions[a, 2]
            x1, y1, z1 = positions[b, 0] - x, positions[b, 1] - y, positions[b, 2] - z
            x2, y2, z2 = positions[c, 0] - x, positions[c, 1] - y, positions[c, 2] - z
            i, j, k = y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2
            sign = -1.0 if inverted[f] else 1.0
            if step == 0:
                size = math.sqrt(i * i + j * j + k * k)
                area[p] += size
                wound[p] += sign * size
                centre[p, 0] += size * (x + (x1 + x2) / 3)
                centre[p, 1] += size * (y + (y1 + y2) / 3)
                centre[p, 2] += size * (z + (z1 + z2) / 3)
            else:
                x, y, z = x * area[p], y * area[p], z * area[p]
                i, j, k = i * (x - centre[p, 0]), j * (y - centre[p, 1]), k * (z - centre[p, 2])
                volume[p] += sign * (i + j + k) / max(area[p], 1e-300)


@njit(nogil=True, cache=True)
def measure_uv(positions, faces, uv):
    """Sizes of faces in the texture.

    Returns:
        Largest |u| or |v|; the sums of areas, of extents and of their products; the largest extent;
        the surface's double area, and that of faces without area in the texture.
    """
    farthest = areas = lengths = boxes = widest = surface = flat = 0.0
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        u0, u1, u2 = uv[a, 0], uv[b, 0], uv[c, 0]
        v0, v1, v2 = uv[a, 1], uv[b, 1], uv[c, 1]
        farthest = max(farthest, abs(u0), abs(u1), abs(u2), abs(v0), abs(v1), abs(v2))
        width = max(u0, u1, u2) - min(u0, u1, u2)
        height = max(v0, v1, v2) - min(v0, v1, v2)
        area = abs((u1 - u0) * (v2 - v0) - (v1 - v0) * (u2 - u0)) / 2
        areas += area
        lengths += width + height
        boxes += width * height
        widest = max(widest, width, height)
        x, y, z = positions[a, 0], positions[a, 1], positions[a, 2]
        x1, y1, z1 = positions[b, 0] - x, positions[b, 1] - y, positions[b, 2] - z
        x2, y2, z2 = positions[c, 0] - x, positions[c, 1] - y, positions[c, 2] - z
        x, y, z = y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2
        size = math.sqrt(x * x + y * y + z * z)
        surface += size
        longest = (u2 - u1) ** 2 + (v2 - v1) ** 2
        longest = max(longest, (u1 - u0) ** 2 + (v1 - v0) ** 2, (u2 - u0) ** 2 + (v2 - v0) ** 2)
        if area <= 1e-7 * longest:
            flat += size
    return farthest, areas, lengths, boxes, widest, surface, flat
