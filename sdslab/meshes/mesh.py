"""A mesh as the renderer and the exporter need it: the file's geometry, never modified."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sdslab.meshes.mesh_file import FileMaterial
from sdslab.meshes.upright import Up, turned_up


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
