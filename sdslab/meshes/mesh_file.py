"""What every mesh file boils down to.

The readers are hand-written, over array operations. `tinyobjloader` 2.0.0rc13 was tried for OBJ. It
is about three times as fast, but ``v abc 0 0`` and ``v 1e400 0 0`` become zeros, ``f 1.5 2 3`` and
``f 99999999999 1 2`` other faces, ``F 1 2 3`` and ``f,1,2,3`` none, without a word; a byte order
mark costs a vertex, a continued line is refused, and its decimals are not correctly rounded.

glTF is read here and not by trimesh, which drops texture coordinates where there is no material,
ignores sparse accessors and skips fans; pygltflib leaves accessors, nodes and checks to its caller.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sdslab.meshes import mesh_kernels
from sdslab.pictures.color import srgb_to_linear

MOST_FACES = 5_000_000

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class MeshFileError(ValueError):
    """What is wrong with a mesh file, or with one that it names, as half a sentence."""


@dataclass(frozen=True)
class TexturePlace:
    """Where a picture is looked up: glTF's texCoord, KHR_texture_transform and wrap modes.

    Attributes:
        uv_set: which of the file's sets of texture coordinates.
        offset: added last, in repeats of the texture, v down.
        rotation: radians, as KHR_texture_transform turns.
        scale: applied first.
        wrap: OpenGL's constants for u and v; 10497 repeats.
    """

    uv_set: int = 0
    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    wrap: tuple[int, int] = (10497, 10497)

    @property
    def transforms(self) -> bool:
        """Whether coordinates are changed before the look-up."""
        return (self.offset, self.rotation, self.scale) != ((0.0, 0.0), 0.0, (1.0, 1.0))

    def apply(self, uv: Floats) -> Floats:
        """[n, 2] from the file's coordinates to those of the look-up, v up in both."""
        if not self.transforms:
            return uv
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        down = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1) * self.scale
        turned = down @ np.array([[cos, -sin], [sin, cos]]) + self.offset
        return np.stack([turned[:, 0], 1 - turned[:, 1]], axis=1)


@dataclass(frozen=True)
class FileMaterial:
    """One material as a file states it; pictures are still encoded.

    Attributes:
        name: as in the file.
        color: base colour factor, linear.
        roughness: factor in [0, 1].
        metallic: factor in [0, 1].
        normal_scale: multiplies x and y of the normal map.
        color_image: sRGB.
        roughness_image: its green channel counts.
        metallic_image: its blue channel counts.
        normal_image: tangent space, +Y up.
        double_sided: whether both sides are to be shown.
        alpha: opacity factor; the colour image's alpha channel multiplies it.
        alpha_mode: glTF's OPAQUE, MASK or BLEND.
        alpha_cutoff: of MASK.
        emissive: linear factor, the strength included.
        emissive_image: sRGB.
        occlusion_strength: of the occlusion image.
        emissive_place: where the emissive image is looked up.
        occlusion_image: its red channel counts.
        occlusion_place: where the occlusion image is looked up.
    """

    name: str = ""
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    roughness: float = 0.5
    metallic: float = 0.0
    normal_scale: float = 1.0
    color_image: bytes | None = None
    roughness_image: bytes | None = None
    metallic_image: bytes | None = None
    normal_image: bytes | None = None
    double_sided: bool = False
    alpha: float = 1.0
    alpha_mode: Literal["OPAQUE", "MASK", "BLEND"] = "OPAQUE"
    alpha_cutoff: float = 0.5
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emissive_image: bytes | None = None
    emissive_place: TexturePlace = TexturePlace()
    occlusion_strength: float = 1.0
    occlusion_image: bytes | None = None
    occlusion_place: TexturePlace = TexturePlace()

    @property
    def images(self) -> tuple[bytes | None, ...]:
        """Base colour, roughness, metallic, normal."""
        return (
            self.color_image, self.roughness_image, self.metallic_image, self.normal_image,
        )  # fmt: skip

    def without_maps(self) -> "FileMaterial":
        """What a result keeps: name, alpha mode, sides, emission and occlusion."""
        return self._only(
            "name", "double_sided", "alpha_mode", "alpha_cutoff", "emissive", "emissive_image",
            "emissive_place", "occlusion_strength", "occlusion_image", "occlusion_place",
        )  # fmt: skip

    def look(self) -> "FileMaterial":
        """What the maps are made of, and nothing else: equal looks have equal maps."""
        look = self._only(
            "color", "roughness", "metallic", "normal_scale", "color_image", "roughness_image",
            "metallic_image", "normal_image",
        )  # fmt: skip
        opaque = self.alpha_mode == "OPAQUE"
        return look if opaque else replace(look, alpha=self.alpha, alpha_mode="BLEND")

    def _only(self, *names: str) -> "FileMaterial":
        return FileMaterial(**{name: getattr(self, name) for name in names})


@dataclass
class MeshFile:
    """A file's triangles, before anything is checked or repaired.

    Attributes:
        positions: [v, 3].
        faces: [f, 3].
        face_part: [f], non-decreasing index into `part_names`.
        part_names: as in the file, perhaps empty or repeated.
        mesh_names: of every part's mesh, where the file names those apart from its parts.
        part_material: index into `materials` of every part, −1 for none.
        uv: [v, 2] with v up, NaN where the file has none; or None.
        normals: [v, 3], NaN where the file has none; or None.
        colors: [v, 4] vertex colours, linear RGB and alpha in [0, 1]; or None.
        extra_uv: [v, 2] a second set of texture coordinates, v up; or None.
        texture_uv: [v, 2] where the materials' pictures are looked up, v up, where that is not
            `uv` itself: a texture transform, or pictures that lie on the second set; or None.
        lost: what the file has and a result will not have, a phrase each ("2 animations").
        source_vertex: [v], the file's vertex that each comes from, non-decreasing.
        materials: those of the file.
        notes: phrases for `Mesh.notes`.
    """

    positions: Floats
    faces: Indices
    face_part: Indices
    part_names: list[str]
    part_material: list[int]
    uv: Floats | None = None
    normals: Floats | None = None
    colors: Floats | None = None
    extra_uv: Floats | None = None
    texture_uv: Floats | None = None
    mesh_names: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    source_vertex: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    materials: list[FileMaterial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.source_vertex):
            self.source_vertex = np.arange(len(self.positions))

    def with_vertices(self, source: Indices) -> "MeshFile":
        """The same with a vertex for each of ``source`` [n]; faces are left as they are."""
        names = ("positions", "uv", "normals", "colors", "extra_uv", "texture_uv", "source_vertex")
        values = {name: getattr(self, name) for name in names}
        return replace(self, **{n: v[source] for n, v in values.items() if v is not None})


def linear_colors(encoded: Floats) -> Floats:
    """Linear colours of sRGB ones [v, 3], perhaps with alpha [v, 4]; NaN becomes 1."""
    rgba = np.ones((len(encoded), 4))
    rgba[:, : encoded.shape[1]] = np.nan_to_num(encoded, nan=1.0).clip(0, 1)
    rgba[:, :3] = srgb_to_linear(torch.from_numpy(rgba[:, :3])).numpy()
    return rgba


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Words such as "1 corner" and "2,000 corners"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def split_corners(
    vertex: Indices, uv: Indices, normal: Indices, vertex_count: int
) -> tuple[Indices, Indices, Indices, Indices]:
    """One vertex for every combination of position, texture coordinate and normal.

    Args:
        vertex: [c] index of each corner's position.
        uv: [c] index of its texture coordinate, −1 for none.
        normal: [c] index of its normal, −1 for none.
        vertex_count: positions in the file; those that no corner uses are kept.

    Returns:
        The corners' new vertices [c], and for each new vertex its position's index (non-decreasing;
        equal ones in order of first use), its texture coordinate's and its normal's.
    """
    only_uv, only_normal = np.full(vertex_count, -1), np.full(vertex_count, -1)
    only_uv[vertex], only_normal[vertex] = uv, normal
    other = (only_uv[vertex] != uv) | (only_normal[vertex] != normal)
    source = np.arange(vertex_count)
    if not other.any():
        return vertex, source, only_uv, only_normal
    torn = np.zeros(vertex_count, bool)
    torn[vertex[other]] = True
    corner = np.flatnonzero(torn[vertex])  # only corners of vertices that differ are compared
    rows = np.stack([vertex[corner], uv[corner], normal[corner]], axis=1)
    number, count = mesh_kernels.number_rows(rows)
    first = np.empty(count, np.int64)
    first[number[::-1]] = corner[::-1]
    # Vertices that stay whole, and the pieces of the others, in the order of the file.
    whole = np.flatnonzero(~torn)
    source = np.concatenate([whole, vertex[first]])
    place = np.argsort(source, kind="stable")
    moved = np.empty(len(place), np.int64)
    moved[place] = np.arange(len(place))
    new = np.empty(vertex_count, np.int64)
    new[whole] = moved[: len(whole)]
    result = new[vertex]
    result[corner] = moved[len(whole) + number]
    return (
        result,
        source[place],
        np.concatenate([only_uv[whole], uv[first]])[place],
        np.concatenate([only_normal[whole], normal[first]])[place],
    )


MOST_CORNERS = 2000  # of a polygon that is not convex: clipping ears takes n² steps


def strips(corner: Indices, sizes: Indices) -> tuple[Indices, Indices]:
    """Corners of triangles that face one way, and how many each has, of strips of triangles.

    Args:
        corner: [c] vertices of all strips; −1 ends a strip, too.
        sizes: of each list of strips.
    """
    if len(corner) > 3 * MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    starts = np.union1d(np.cumsum(sizes) - sizes, np.flatnonzero(corner == -1) + 1)
    strip = np.searchsorted(starts, np.arange(len(corner)), "right") - 1
    first = np.flatnonzero((strip[2:] == strip[:-2]) & (corner[2:] != -1))
    odd = (first - starts[strip[first]]) % 2
    turned = np.stack([first + odd, first + 1 - odd, first + 2], axis=1)
    return corner[turned].reshape(-1), np.full(len(first), 3)


def triangulate(sizes: Indices, points: Floats, notes: list[str]) -> tuple[Indices, Indices]:
    """Cuts polygons into triangles: fans where they are convex, by ears where not.

    Args:
        sizes: [p] corners of each polygon; those with fewer than three are left out.
        points: [c, 3] positions of all corners, polygon after polygon.
        notes: gets a phrase on what is left out.

    Returns:
        Triangles [t, 3] as indices of corners, in the order of the polygons, and the polygon [t]
        that each comes from.
    """
    small = int((sizes < 3).sum())
    if small:
        notes.append(f"{counted(small, 'face')} of fewer than three corners left out")
    if int(np.maximum(sizes - 2, 0).sum()) > MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    starts = np.cumsum(sizes) - sizes
    triangles, polygons = [np.empty((0, 3), np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        polygon = np.flatnonzero(sizes == size)
        local = _triangles(points[starts[polygon, None] + np.arange(size)])
        triangles.append((starts[polygon, None, None] + local).reshape(-1, 3))
        polygons.append(np.repeat(polygon, size - 2))
    polygon = np.concatenate(polygons)
    order = np.argsort(polygon, kind="stable")
    return np.concatenate(triangles)[order], polygon[order]


def _triangles(points: Floats) -> Indices:
    """[p, n, 3] to the corners [p, n − 2, 3] of every polygon's triangles."""
    count, size, _ = points.shape
    first = np.zeros(count, np.int64)
    fan = np.arange(1, size - 1)
    if size == 3:
        return np.broadcast_to(np.arange(3), (count, 1, 3))
    with np.errstate(all="ignore"):  # huge coordinates: such polygons become fans
        centred = points - points[:, :1]
        centred = centred / np.abs(centred).max(axis=(1, 2), keepdims=True)
        following = np.roll(centred, -1, axis=1)
        normal = np.cross(centred, following).sum(1)
        edge = following - centred
        turn = (np.cross(np.roll(edge, 1, axis=1), edge) * normal[:, None]).sum(-1)
        concave = (turn < -1e-12 * (normal**2).sum(-1, keepdims=True)).any(1)
    if size == 4:
        # a quadrilateral has at most one reflex corner, and the fan around it is right
        first = np.where(concave, turn.argmin(1), 0)
    fans = (first[:, None, None] + np.stack([np.zeros_like(fan), fan, fan + 1], -1)) % size
    if size > 4:
        for polygon in np.flatnonzero(concave):
            fans[polygon] = _ears(centred[polygon], normal[polygon])
    return fans


def _ears(points: Floats, normal: Floats) -> Indices:
    """[n, 3] to [n − 2, 3]; a polygon that crosses itself ends as a fan of what is left."""
    if len(points) > MOST_CORNERS:
        raise MeshFileError(f"it has a polygon of {len(points):,} corners that is not convex")
    axis = int(np.abs(normal).argmax())
    plane = points[:, [(axis + 1) % 3, (axis + 2) % 3]] * [np.sign(normal[axis]), 1]
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        for k in range(len(left)):
            ear = (left[k - 1], left[k], left[(k + 1) % len(left)])
            if _is_ear(plane[list(ear)], plane[[i for i in left if i not in ear]]):
                break
        else:
            k = 1
            ear = (left[0], left[1], left[2])
        triangles.append(ear)
        del left[k]
    return np.array([*triangles, left])


def _is_ear(corners: Floats, others: Floats) -> bool:
    edges = np.roll(corners, -1, axis=0) - corners
    if edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0] <= 0:
        return False
    # Where a bridge leads to a hole, another corner of the polygon lies at the same place.
    apart = (others[:, None] != corners).any(-1).all(1)
    offsets = others[apart, None] - corners
    sides = edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0]
    return not (sides >= 0).all(1).any()
