"""A mesh as the renderer and the exporter need it: the file's geometry, never modified."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A run of faces that was an object, a group or a material of its own in the file.

    Attributes:
        name: as in the file; unique within the mesh.
        faces: its range in `Mesh.faces`.
        double_sided: whether the file asks for both sides to be shown.
    """

    name: str
    faces: range
    double_sided: bool = False


@dataclass(frozen=True)
class SourceMaterial:
    """The maps that came with a file, in the file's own texture coordinates.

    Attributes:
        maps: [h, w, 8] as `material.py` describes; those of several materials lie side by side.
        corner_uv: [f, 3, 2] float32, where each face's corners lie in these maps. They differ from
            `Mesh.uv` where the mesh was unwrapped anew, and where either the materials or the
            texture coordinates alone had to be laid side by side.
    """

    maps: Tensor
    corner_uv: Tensor


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
        double_sided: whether back faces can be seen: an open or inconsistent surface.
        unwrapped: whether `uv` was made by us.
        notes: what was found and mended, a phrase each; joined by "; " they are one line.
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
    double_sided: bool = False
    unwrapped: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def normalization(self) -> "Normalization":
        """Brings the mesh into [−1, 1]³ by its largest extent, centred at its bounding box."""
        used = self.positions[self.faces.long().unique()]
        low, high = used.amin(0), used.amax(0)
        extent = (high - low).max().clamp_min(torch.finfo(torch.float64).tiny)
        return Normalization((low + high) / 2, 2 / float(extent))

    @cached_property
    def render_positions(self) -> Tensor:
        """[v, 3] float32 in [−1, 1]: normalised positions, for rendering only."""
        # Vertices of no face may lie anywhere: they are moved to the cube's surface.
        return self.normalization.apply(self.positions).clamp(-1, 1).float()


@dataclass(frozen=True, eq=False)
class Normalization:
    """x ↦ (x − center) · scale; a transform for rendering that export never sees."""

    center: Tensor
    scale: float

    def apply(self, positions: Tensor) -> Tensor:
        """From the file's coordinates to [−1, 1]³."""
        return (positions - self.center) * self.scale
