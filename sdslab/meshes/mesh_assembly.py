"""From what a file holds to a mesh that can be textured: checks, repairs, texture coordinates."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdslab.meshes.mesh import Mesh, Part
from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
)
from sdslab.meshes.mesh_repair import repair_faces, settle_normals
from sdslab.meshes.source_material import kept_materials, opacity_notes, source_material
from sdslab.meshes.surface_frame import vertex_tangents, weld
from sdslab.meshes.uv_layout import Unwrapping, UvLayout, settle_uv

LARGEST_COORDINATE = 1e37


def assemble_mesh(
    name: str,
    file: MeshFile,
    unwrapping: Unwrapping = "auto",
    progress: Callable[[float], None] | None = None,
) -> Mesh:
    """Makes a `Mesh` of a file's triangles.

    Args:
        name: of the mesh.
        file: its triangles.
        unwrapping: whether to make new texture coordinates; "auto" does where the file's cannot
            hold a texture.
        progress: gets a share in [0, 1] while unwrapping, see `unwrap`.

    Raises:
        MeshFileError: nothing can be drawn, or a face uses a position that is no number.
        UserError: texture coordinates are to be kept but cannot, or cannot be made.
    """
    notes = list(file.notes)
    if file.lost:
        notes.append(f"not in the result: {', '.join(dict.fromkeys(file.lost))}")
    positions = _finite_positions(file, notes)
    repaired = repair_faces(positions, np.ascontiguousarray(file.faces, np.int64))
    notes += repaired.notes
    if not len(repaired.faces):
        _normalized(positions, file.faces)  # coordinates out of range leave no area either
        raise MeshFileError("it has no triangle with an area")
    normalized = _normalized(positions, repaired.faces)
    used = np.zeros(len(positions), bool)
    used[file.faces] = True
    if not used.all():
        notes.append(f"{(~used).sum():,} vertices of no face")
    source, faces, normals = settle_normals(file.normals, normalized, repaired, notes)
    if len(source) > len(positions):
        file = file.with_vertices(source)
        positions, normalized = positions[source], normalized[source]
    place = torch.from_numpy(repaired.place[source])
    _note_duplicates(file, place, normals, notes)

    face_part = file.face_part[repaired.kept]
    material_of_face = np.array(file.part_material, np.int64)[face_part]
    layout = settle_uv(file, normalized, faces, face_part, unwrapping, progress)
    if layout.note:
        notes.append(layout.note)
    own_material = source_material(file, faces, material_of_face, layout.tile_of_face, notes)

    parts = _parts(name, file, face_part, kept_materials(file, notes))
    notes += opacity_notes(file, material_of_face)
    corners = torch.from_numpy(layout.faces)
    uv = torch.from_numpy(np.nan_to_num(layout.uv, posinf=0, neginf=0).astype(np.float32))
    directions = torch.from_numpy(normals[layout.source].astype(np.float32))
    points = torch.from_numpy(normalized[layout.source])
    place = place[torch.from_numpy(layout.source)]
    frame = vertex_tangents(points, corners, uv, directions, repaired.frames, place)
    if frame.torn:
        notes.append(f"{frame.torn:,} vertices on the seam of a mirrored texture")
    return Mesh(
        name=name,
        positions=torch.from_numpy(positions[layout.source]),
        faces=corners.int(),
        uv=uv,
        normals=directions,
        tangents=frame.tangents.float(),
        parts=parts,
        source_vertex=torch.from_numpy(file.source_vertex[layout.source]),
        source_material=own_material,
        colors=_rows(file.colors, layout.source),
        extra_uv=_rows(file.extra_uv, layout.source),
        file_uv=_file_uv(file, layout),
        double_sided=not repaired.closed,
        unwrapped=layout.unwrapped,
        notes=tuple(dict.fromkeys(notes)),
    )


def _finite_positions(file: MeshFile, notes: list[str]) -> Floats:
    """The file's positions; what no face uses, or only one without area, is zero if no number."""
    if not len(file.faces):
        raise MeshFileError("it has no faces")
    if len(file.faces) > MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    finite = np.asarray(np.isfinite(file.positions).all(1))
    if finite.all():
        return np.ascontiguousarray(file.positions, np.float64)
    a, b, c = file.faces.T
    used = np.unique(file.faces[(a != b) & (b != c) & (c != a)])
    if not finite[used].all():
        bad = int((~finite[used]).sum())
        raise MeshFileError(f"faces use {bad:,} vertices that are NaN or infinite")
    notes.append(f"{(~finite).sum():,} unused vertices that are NaN or infinite set to zero")
    return np.where(finite[:, None], file.positions, 0.0)


def _normalized(positions: Floats, faces: Indices) -> Floats:
    """Positions in [−1, 1] by the largest extent of what the faces use."""
    used = np.zeros(len(positions), bool)
    used[faces] = True
    corners = positions if used.all() else positions[used]
    low, high = corners.min(0), corners.max(0)
    largest, extent = max(np.abs(low).max(), np.abs(high).max()), (high - low).max()
    # A .glb holds float32: neither the place nor the extent may leave its range.
    if largest > LARGEST_COORDINATE or (extent < 1 / LARGEST_COORDINATE and largest > 0):
        raise MeshFileError(f"its coordinates reach {largest:.3g} over an extent of {extent:.3g}")
    with np.errstate(all="ignore"):
        normalized = (positions - (low + high) / 2) * (2 / max(extent, 1 / LARGEST_COORDINATE))
    # Vertices of no face may lie anywhere: they are moved to the cube's surface.
    return normalized.clip(-1, 1)


def _note_duplicates(file: MeshFile, place: Tensor, normals: Floats, notes: list[str]) -> None:
    if int(place.max()) + 1 == len(place):
        return
    columns = [normals] + ([] if file.uv is None else [file.uv])
    different = weld(place[:, None], *(torch.from_numpy(c) for c in columns))
    duplicates = len(place) - int(different.max()) - 1
    if duplicates:
        notes.append(f"{duplicates:,} duplicate vertices kept")


def _rows(array: Floats | None, source: Indices) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array[source].astype(np.float32))


def _file_uv(file: MeshFile, layout: UvLayout) -> torch.Tensor | None:
    """The file's own coordinates, if others replace them and a picture is to be passed on."""
    passed = any(
        image is not None and place.uv_set == 0
        for material in file.materials
        for image, place in (
            (material.emissive_image, material.emissive_place),
            (material.occlusion_image, material.occlusion_place),
        )
    )
    return _rows(file.uv, layout.source) if passed and layout.uv is not file.uv else None


def _parts(
    name: str, file: MeshFile, face_part: Indices, materials: list[FileMaterial]
) -> tuple[Part, ...]:
    parts: list[Part] = []
    taken: set[str] = set()
    labels, starts, counts = np.unique(face_part, return_index=True, return_counts=True)
    for label, start, count in zip(labels, starts, counts, strict=True):
        stem = file.part_names[label].strip() or name
        unique, number = stem, 2
        while unique in taken:
            unique, number = f"{stem}.{number}", number + 1
        taken.add(unique)
        material, mesh_name = file.part_material[label], ""
        kept = materials[material] if material >= 0 else FileMaterial()
        if file.mesh_names:
            mesh_name = file.mesh_names[label]
        parts.append(Part(unique, range(int(start), int(start + count)), kept, mesh_name))
    return tuple(parts)
