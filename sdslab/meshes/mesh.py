"""A mesh as the renderer and the exporter need it: the file's geometry, never modified."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sdslab.meshes.mesh_file import FileMaterial

Up = Literal["x", "-x", "y", "-y", "z", "-z"]
_HALF = 0.5**0.5
# The least rotations that bring an axis to +Y, as quaternions (x, y, z, w).
QUATERNIONS: dict[Up, tuple[float, float, float, float]] = {
    "x": (0.0, 0.0, _HALF, _HALF),
    "-x": (0.0, 0.0, -_HALF, _HALF),
    "y": (0.0, 0.0, 0.0, 1.0),
    "-y": (1.0, 0.0, 0.0, 0.0),
    "z": (-_HALF, 0.0, 0.0, _HALF),
    "-z": (_HALF, 0.0, 0.0, _HALF),
}
TOUCHING = 0.005  # of the largest extent: what lies so low touches the ground
LEAST_SUPPORT = 0.1  # of the footprint's box
CLEARLY_LESS = 0.25
FLAT = 0.01  # of the largest extent: a thinner sheet stands on nothing


def turned_up(vectors: Tensor, up: Up) -> Tensor:
    """Vectors [..., 3] from a file's axes to Y-up ones, exactly: components change places."""
    x, y, z = vectors.unbind(-1)
    columns = {
        "x": (-y, x, z), "-x": (y, -x, z), "y": (x, y, z),
        "-y": (x, -y, -z), "z": (x, z, -y), "-z": (x, -z, y),
    }  # fmt: skip
    return torch.stack(columns[up], -1)


def z_up_note(points: Tensor, is_stl: bool) -> str | None:
    """A phrase where a mesh seems to be meant with +Z up, or None.

    A shape that could stand on what is lowest along z, but not on what is lowest along y, probably
    does: a scan with its table's plane, a figure with its base. An STL file says nothing of its up,
    and nearly all are made for printers, whose up is +Z.

    Args:
        points: [v, 3] of vertices that faces use, in the file's axes.
        is_stl: whether they come from an STL file.
    """
    along_y, along_z = _support(points, 1), _support(points, 2)
    what = "if pictures show it lying, give --up z"
    if along_z > LEAST_SUPPORT and along_y < CLEARLY_LESS * along_z:
        return f"its shape stands along z rather than y; {what}"
    if is_stl and not (along_y > LEAST_SUPPORT and along_z < CLEARLY_LESS * along_y):
        return f"STL files mostly have z up, y is taken; {what}"
    return None


def _support(points: Tensor, axis: int) -> float:
    """Area of the convex hull of what touches the ground, as a share of the footprint's box.

    Zero where the middle of the shape does not lie above it: it would fall over.
    """
    from scipy.spatial import ConvexHull, QhullError

    low, high = points.amin(0), points.amax(0)
    extents = high - low
    touching = points[:, axis] <= low[axis] + TOUCHING * extents.max()
    plane = [k for k in range(3) if k != axis]
    if not extents.min() > FLAT * extents.max():
        return 0.0
    footprint = ((points - low) / extents)[:, plane]
    try:
        hull = ConvexHull(footprint[touching].numpy())
    except (QhullError, ValueError):  # a point or a line
        return 0.0
    middle = footprint.mean(0).numpy()
    stands = (hull.equations[:, :2] @ middle + hull.equations[:, 2] <= 0).all()
    return float(hull.volume) if stands else 0.0  # of a plane hull, its area


@dataclass(frozen=True)
class Part:
    """A run of faces that was an object, a group or a material of its own in the file.

    Attributes:
        name: as in the file; unique within the mesh.
        faces: its range in `Mesh.faces`.
        material: what the result keeps of the file's material: its name, alpha mode, sides,
            emission and occlusion. Its other pictures are None; they are in `SourceMaterial`.
        mesh_name: of the part's mesh, where the file names that apart; perhaps empty.
    """

    name: str
    faces: range
    material: FileMaterial = field(default_factory=FileMaterial)
    mesh_name: str = ""


@dataclass(frozen=True)
class SourceMaterial:
    """The maps that came with a file, in the file's own texture coordinates.

    Attributes:
        maps: [h, w, 8] as `material.py` describes; those of several materials lie side by side.
        corner_uv: [f, 3, 2] float32, where each face's corners lie in these maps. They differ from
            `Mesh.uv` where the mesh was unwrapped anew, and where either the materials or the
            texture coordinates alone had to be laid side by side.
        opacity: [h, w] of the same maps, or None where all is opaque.
        corner_colors: [f, 3, 3] linear RGB that multiply the albedo, or None.
    """

    maps: Tensor
    corner_uv: Tensor
    opacity: Tensor | None = None
    corner_colors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with texture coordinates, normals and tangents, in the file's own coordinates.

    Attributes:
        name: for file names and messages.
        positions: [v, 3] float64.
        faces: [f, 3] int32, counter-clockwise seen from outside.
        uv: [v, 2] float32; v points up, values outside [0, 1] wrap.
        normals: [v, 3] float32, unit.
        tangents: [v, 4] float32: unit xyz, orthogonal to the normal, along increasing u; w = ±1 is
            the handedness: bitangent = w · normal × tangent (glTF).
        parts: cover all faces, in order.
        source_vertex: [v] int64, the file's vertex that each comes from, non-decreasing where the
            file's order could be kept; unwrapping splits vertices along its seams.
        source_material: the maps that came with the file, or None.
        opacity: [h, w] in the coordinates `uv`, row 0 at v = 0: the alpha of the exported albedo,
            which nothing optimises; or None where all is opaque.
        colors: [v, 4] the file's vertex colours, linear RGB and alpha, NaN for none; or None.
        extra_uv: [v, 2] the file's second set of texture coordinates, NaN for none; or None.
        file_uv: [v, 2] the file's first set, where `uv` is another one and pictures that are
            passed on are looked up there, NaN for none; or None.
        double_sided: whether back faces can be seen: an open or inconsistent surface.
        unwrapped: whether `uv` was made by us.
        up: which of the file's axes points up. Everything above keeps those axes; what is rendered
            has +Y up.
        notes: what was found and repaired, a phrase each; joined by "; " they are one line.
    """

    name: str
    positions: Tensor
    faces: Tensor
    uv: Tensor
    normals: Tensor
    tangents: Tensor
    parts: tuple[Part, ...]
    source_vertex: Tensor
    source_material: SourceMaterial | None = None
    opacity: Tensor | None = None
    colors: Tensor | None = None
    extra_uv: Tensor | None = None
    file_uv: Tensor | None = None
    double_sided: bool = False
    unwrapped: bool = False
    up: Up = "y"
    notes: tuple[str, ...] = ()

    @cached_property
    def normalization(self) -> "Normalization":
        """Brings the mesh into [−1, 1]³ by its largest extent, centred at its bounding box."""
        low, high = self.used_positions.aminmax(dim=0)
        extent = (high - low).max().clamp_min(torch.finfo(torch.float64).tiny)
        return Normalization((low + high) / 2, 2 / float(extent), self.up)

    @property
    def used_positions(self) -> Tensor:
        """[n, 3] float64: positions of the vertices that faces use."""
        used = torch.zeros(len(self.positions), dtype=torch.bool)
        used[self.faces.flatten().long()] = True
        return self.positions[used]

    @cached_property
    def render_positions(self) -> Tensor:
        """[v, 3] float32 in [−1, 1]: normalised positions, +Y up, for rendering only."""
        # Vertices of no face may lie anywhere: they are moved to the cube's surface.
        return self.normalization.apply(self.positions).clamp(-1, 1).float()

    @property
    def face_vectors(self) -> Tensor:
        """[f, 3] float64: each face's normal times twice its area, of `render_positions`."""
        a, b, c = self.render_positions[self.faces.long()].double().unbind(1)
        return torch.linalg.cross(b - a, c - a)

    @property
    def render_normals(self) -> Tensor:
        """[v, 3] float32: `normals`, +Y up."""
        return turned_up(self.normals, self.up)

    @property
    def render_tangents(self) -> Tensor:
        """[v, 4] float32: `tangents`, +Y up."""
        return torch.cat((turned_up(self.tangents[:, :3], self.up), self.tangents[:, 3:]), 1)


@dataclass(frozen=True, eq=False)
class Normalization:
    """x ↦ (x − center) · scale, turned to +Y up; for rendering, export never sees it."""

    center: Tensor
    scale: float
    up: Up = "y"

    def apply(self, positions: Tensor) -> Tensor:
        """From the file's coordinates to [−1, 1]³."""
        return turned_up((positions - self.center) * self.scale, self.up)
