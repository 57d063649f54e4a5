"""From what a file holds to a mesh that can be textured: checks, repairs, texture coordinates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from sdslab.errors import UserError
from sdslab.meshes.atlas_tiles import AtlasTile, atlas_tiles
from sdslab.meshes.mesh import Mesh, Part, SourceMaterial
from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    split_corners,
)
from sdslab.meshes.mesh_repair import repair_faces
from sdslab.meshes.source_maps import material_maps, merge_maps
from sdslab.meshes.surface_frame import face_normals, vertex_normals, vertex_tangents, weld
from sdslab.meshes.unwrap import inspect_uv, unwrap

Unwrapping = Literal["always", "auto", "never"]
LARGEST_COORDINATE = 1e37
MOST_TILES = 16
MOST_REPEATS = 2.0  # of a texture within one tile of a joint one
LEAST_AGREEMENT = 0.99  # of corners whose normal in the file points to the face's front


@dataclass(frozen=True, eq=False)
class _Layout:
    """Vertices after texture coordinates were settled; `tile_of_face` only where packed."""

    source: Indices
    faces: Indices
    uv: Floats
    note: str | None = None
    tile_of_face: Indices | None = None
    unwrapped: bool = False


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
    positions, normalized = _checked_positions(file, notes)
    repaired = repair_faces(normalized, file.faces)
    notes += repaired.notes
    faces, face_part = repaired.faces, file.face_part[repaired.kept]
    if not len(faces):
        raise MeshFileError("it has no triangle with an area")
    unused = len(positions) - len(np.unique(file.faces))
    if unused:
        notes.append(f"{unused:,} vertices of no face")
    normals = _normals(file, normalized, faces, notes)
    _note_duplicates(file, normals, notes)

    material_of_face = np.array(file.part_material, np.int64)[face_part]
    layout = _layout(file, normalized, faces, face_part, material_of_face, unwrapping, progress)
    if layout.note:
        notes.append(layout.note)
    source_material = _source_material(file, faces, material_of_face, layout, notes)

    positions, normalized, normals = (a[layout.source] for a in (positions, normalized, normals))
    corners = torch.from_numpy(layout.faces)
    uv = torch.from_numpy(np.nan_to_num(layout.uv, posinf=0, neginf=0).astype(np.float32))
    unit_normals = torch.from_numpy(normals.astype(np.float32))
    frame = vertex_tangents(
        torch.from_numpy(normalized), corners, uv.double(), unit_normals.double()
    )
    if frame.torn:
        notes.append(f"{frame.torn:,} vertices on the seam of a mirrored texture")
    return Mesh(
        name=name,
        positions=torch.from_numpy(np.ascontiguousarray(positions)),
        faces=corners.int(),
        uv=uv,
        normals=unit_normals,
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


def _checked_positions(file: MeshFile, notes: list[str]) -> tuple[Floats, Floats]:
    """The file's positions and those in [−1, 1]; what no face uses is at most replaced by zeros."""
    if not len(file.faces):
        raise MeshFileError("it has no faces")
    if len(file.faces) > MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    finite = np.asarray(np.isfinite(file.positions).all(1))
    used = np.unique(file.faces)
    if not finite[used].all():
        bad = int((~finite[used]).sum())
        raise MeshFileError(f"faces use {bad:,} vertices that are NaN or infinite")
    if not finite.all():
        notes.append(f"{(~finite).sum():,} unused vertices that are NaN or infinite set to zero")
    positions = np.where(finite[:, None], file.positions, 0.0)
    low, high = positions[used].min(0), positions[used].max(0)
    largest, extent = max(np.abs(low).max(), np.abs(high).max()), (high - low).max()
    # A .glb holds float32: neither the place nor the extent may leave its range.
    if largest > LARGEST_COORDINATE or (extent < 1 / LARGEST_COORDINATE and largest > 0):
        raise MeshFileError(f"its coordinates reach {largest:.3g} over an extent of {extent:.3g}")
    with np.errstate(all="ignore"):
        normalized = (positions - (low + high) / 2) * (2 / max(extent, 1 / LARGEST_COORDINATE))
    # Vertices of no face may lie anywhere: they are moved to the cube's surface.
    return positions, normalized.clip(-1, 1)


def _normals(file: MeshFile, normalized: Floats, faces: Indices, notes: list[str]) -> Floats:
    """The file's normals at unit length, or computed ones where those do not fit the faces."""
    vertices, corners = torch.from_numpy(normalized), torch.from_numpy(faces)
    if file.normals is None:
        return vertex_normals(vertices, corners).numpy()
    with np.errstate(all="ignore"):
        scaled = file.normals / np.abs(file.normals).max(1, keepdims=True)
        unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    sane = np.isfinite(unit).all(1)
    front = face_normals(vertices, corners).numpy()
    agreeing = sane[faces] & ((np.nan_to_num(unit)[faces] * front[:, None]).sum(-1) > 0)
    if agreeing.mean() < LEAST_AGREEMENT:
        notes.append(f"normals computed: {1 - agreeing.mean():.0%} of the file's do not fit")
        return vertex_normals(vertices, corners).numpy()
    if (np.nan_to_num(unit)[faces] * front[:, None]).sum(-1).min() > 0.9999:
        notes.append("flat-shaded: the file's normals are those of its faces")
    if sane.all():
        return unit
    return np.where(sane[:, None], unit, vertex_normals(vertices, corners).numpy())


def _note_duplicates(file: MeshFile, normals: Floats, notes: list[str]) -> None:
    columns = [file.positions, normals] + ([] if file.uv is None else [file.uv])
    different = int(weld(*(torch.from_numpy(c) for c in columns)).max()) + 1
    if different < len(file.positions):
        notes.append(f"{len(file.positions) - different:,} duplicate vertices kept")


def _layout(
    file: MeshFile,
    normalized: Floats,
    faces: Indices,
    face_part: Indices,
    material_of_face: Indices,
    unwrapping: Unwrapping,
    progress: Callable[[float], None] | None,
) -> _Layout:
    same = np.arange(len(normalized))
    reason = "as asked"
    if unwrapping != "always":
        own_uv = file.uv
        report = inspect_uv(normalized, faces, own_uv)
        if report.problem is not None and file.texture_uv is not None:
            placed = inspect_uv(normalized, faces, file.texture_uv)
            if own_uv is None or placed.problem is None:
                own_uv, report = file.texture_uv, placed
        if report.problem is None and own_uv is not None:
            note = f"faces overlap on {report.overlap:.1%} of the texture used"
            return _Layout(same, faces, own_uv, note if report.overlap > 0.001 else None)
        if report.overlap and own_uv is not None:
            for groups, what in ((material_of_face, "material"), (face_part, "part")):
                packed = _packed(own_uv, normalized, faces, groups, what)
                if packed is not None:
                    return packed
        reason = str(report.problem)
    if unwrapping == "never":
        raise UserError(
            f"mesh must have usable texture coordinates to keep, got {reason}; let them be made "
            f"by --unwrap auto"
        )
    fresh = unwrap(normalized, faces, progress)
    return _Layout(
        fresh.source_vertex,
        fresh.faces,
        fresh.uv,
        f"unwrapped: {reason} ({fresh.charts:,} charts, {fresh.fill:.0%} of the texture used)",
        unwrapped=True,
    )


def _packed(
    uv: Floats, normalized: Floats, faces: Indices, groups: Indices, what: str
) -> _Layout | None:
    """Gives each group of faces a tile of its own, if each is sound by itself."""
    labels, tile_of_face = np.unique(groups, return_inverse=True)
    members = [faces[tile_of_face == k] for k in range(len(labels))]
    if not 2 <= len(labels) <= MOST_TILES:
        return None
    if any(inspect_uv(normalized, m, uv).problem for m in members):
        return None
    tiles = atlas_tiles([uv[m] for m in members])
    corners = faces.reshape(-1)
    vertex, source, tile, _ = split_corners(
        corners, np.repeat(tile_of_face, 3), np.full(len(corners), -1), len(uv)
    )
    placed = uv[source]
    for k, own in enumerate(tiles):
        placed[tile == k] = own.place(placed[tile == k])
    note = f"texture coordinates of {len(labels)} {what}s laid side by side"
    return _Layout(source, vertex.reshape(-1, 3), placed, note, tile_of_face)


def _source_material(
    file: MeshFile,
    faces: Indices,
    material_of_face: Indices,
    layout: _Layout,
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


def _file_uv(file: MeshFile, layout: _Layout) -> torch.Tensor | None:
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
