"""From what a file holds to a mesh that can be textured: checks, repairs, texture coordinates."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdslab.meshes.atlas_tiles import AtlasTile, atlas_tiles
from sdslab.meshes.file_normals import settle_normals
from sdslab.meshes.mesh import Mesh, Part, SourceMaterial
from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
)
from sdslab.meshes.mesh_repair import repair_faces
from sdslab.meshes.source_maps import material_maps, merge_maps
from sdslab.meshes.surface_frame import vertex_tangents, weld
from sdslab.meshes.uv_layout import MOST_TILES, Unwrapping, UvLayout, settle_uv

LARGEST_COORDINATE = 1e37
MOST_REPEATS = 2.0  # of a texture within one tile of a joint one


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
    settled = settle_normals(file.normals, normalized, repaired)
    notes += settled.notes
    if len(settled.source) > len(positions):
        file = file.with_vertices(settled.source)
        positions, normalized = positions[settled.source], normalized[settled.source]
    place = torch.from_numpy(repaired.place[settled.source])
    _note_duplicates(file, place, settled.normals, notes)

    faces, face_part = settled.faces, file.face_part[repaired.kept]
    material_of_face = np.array(file.part_material, np.int64)[face_part]
    layout = settle_uv(file, normalized, faces, face_part, unwrapping, progress)
    if layout.note:
        notes.append(layout.note)
    source_material = _source_material(file, faces, material_of_face, layout, notes)

    corners = torch.from_numpy(layout.faces)
    uv = torch.from_numpy(np.nan_to_num(layout.uv, posinf=0, neginf=0).astype(np.float32))
    normals = torch.from_numpy(settled.normals[layout.source].astype(np.float32))
    points = torch.from_numpy(normalized[layout.source])
    place = place[torch.from_numpy(layout.source)]
    frame = vertex_tangents(points, corners, uv, normals, repaired.frames, place)
    if frame.torn:
        notes.append(f"{frame.torn:,} vertices on the seam of a mirrored texture")
    return Mesh(
        name=name,
        positions=torch.from_numpy(positions[layout.source]),
        faces=corners.int(),
        uv=uv,
        normals=normals,
        tangents=frame.tangents.float(),
        parts=_parts(name, file, face_part),
        source_vertex=torch.from_numpy(file.source_vertex[layout.source]),
        source_material=source_material,
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


def _source_material(
    file: MeshFile,
    faces: Indices,
    material_of_face: Indices,
    layout: UvLayout,
    notes: list[str],
) -> SourceMaterial | None:
    if not (material_of_face >= 0).any():
        return None
    looks = [m.look() for m in file.materials] + [FileMaterial()]
    distinct = list(dict.fromkeys(looks))
    look_of_face = np.array([distinct.index(m) for m in looks])[material_of_face]  # −1: the last
    own_uv = file.uv if file.texture_uv is None else file.texture_uv
    uv = np.zeros((len(faces), 3, 2)) if own_uv is None else own_uv[faces]
    uv = np.where(np.isfinite(uv) & (np.abs(uv) < 1e6), uv, 0.5)
    used = np.unique(look_of_face)
    if len(used) == 1:
        maps = material_maps(distinct[used[0]], notes)
        return SourceMaterial(maps, torch.from_numpy(uv.astype(np.float32)))
    groups = look_of_face if layout.tile_of_face is None else layout.tile_of_face
    labels = np.unique(groups)
    members = [groups == label for label in labels]
    tiles: list[AtlasTile] = atlas_tiles([uv[m] for m in members])
    own = [distinct[look_of_face[m][0]] for m in members]
    repeats = [max(t.size) for t, m in zip(tiles, own, strict=True) if any(m.images)]
    if len(labels) > MOST_TILES**2 or max(repeats, default=0) > MOST_REPEATS:
        notes.append(f"the file's {len(used)} materials could not be joined")
        return None
    for tile, member in zip(tiles, members, strict=True):
        uv[member] = tile.place(uv[member])
    grid = round(1 / tiles[0].side)
    decoded = {look: material_maps(look, notes, grid) for look in dict.fromkeys(own)}
    maps = merge_maps([decoded[look] for look in own], tiles)
    notes.append(f"the file's {len(used)} materials joined")
    return SourceMaterial(maps, torch.from_numpy(uv.astype(np.float32)))


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


def _parts(name: str, file: MeshFile, face_part: Indices) -> tuple[Part, ...]:
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
        kept = file.materials[material].without_maps() if material >= 0 else FileMaterial()
        if file.mesh_names:
            mesh_name = file.mesh_names[label]
        parts.append(Part(unique, range(int(start), int(start + count)), kept, mesh_name))
    return tuple(parts)
