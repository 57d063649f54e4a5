"""Which texture coordinates a mesh is textured in: its file's, those side by side, or new ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from sdslab.errors import UserError
from sdslab.meshes.mesh_file import Floats, Indices, MeshFile, split_corners
from sdslab.meshes.unwrap import UvReport, inspect_uv, texel_counts, unwrap

Unwrapping = Literal["always", "auto", "never"]
MOST_TILES = 16
MOST_UDIM_TILES = 100
MOST_NAMED = 16  # parts, between which shared texels are looked for
LEAST_SHARED = 0.001  # of the texture used


@dataclass(frozen=True, eq=False)
class UvLayout:
    """Vertices after texture coordinates were settled.

    Attributes:
        source: [n], non-decreasing: the file's vertex that each comes from.
        faces: [f, 3].
        uv: [n, 2].
        note: a phrase on what was done, or None.
        tile_of_face: [f], where groups of faces were laid side by side, or None.
        unwrapped: whether `uv` is new.
    """

    source: Indices
    faces: Indices
    uv: Floats
    note: str | None = None
    tile_of_face: Indices | None = None
    unwrapped: bool = False


def settle_uv(
    file: MeshFile,
    normalized: Floats,
    faces: Indices,
    face_part: Indices,
    unwrapping: Unwrapping,
    progress: Callable[[float], None] | None = None,
) -> UvLayout:
    """Keeps the file's texture coordinates where they can hold a texture, or makes new ones.

    Args:
        file: what the mesh is made of.
        normalized: [v, 3], its positions in [−1, 1].
        faces: [f, 3], those of its faces that are used.
        face_part: [f], their parts.
        unwrapping: "never" keeps coordinates that faces share, too: these are textured together.
        progress: see `unwrap`.

    Raises:
        UserError: coordinates are to be kept but cannot, or cannot be made.
    """
    reason = "as asked"
    if unwrapping != "always":
        uv, report = _better_uv(file, normalized, faces)
        same = np.arange(len(normalized))
        if uv is not None and report.problem is None:
            note = None
            if report.overlap > LEAST_SHARED:
                note = f"faces overlap on {report.overlap:.1%} of the texture used"
            return UvLayout(same, faces, uv, note)
        if uv is not None and report.overlap:
            sound = _is_keepable if unwrapping == "never" else _is_sound
            for groups, what in _groupings(file, uv, faces, face_part, unwrapping):
                packed = _packed(uv, normalized, faces, groups, what, sound)
                if packed is not None:
                    return packed
        reason = str(report.problem)
        if uv is not None and report.keepable:
            if unwrapping == "never":
                told = [] if reason.startswith("faces overlap") else [reason]
                told += _shared(uv[faces], face_part, file.part_names)
                note = f"texture coordinates kept: {'; '.join(told)}"
                return UvLayout(same, faces, uv, note)
            if report.overlap:
                reason += ", which --unwrap never would keep"
    if unwrapping == "never":
        raise UserError(
            f"mesh must have usable texture coordinates to keep, got {reason}; let them be made "
            f"by --unwrap auto"
        )
    fresh = unwrap(normalized, faces, progress)
    return UvLayout(
        fresh.source_vertex,
        fresh.faces,
        fresh.uv,
        f"unwrapped: {reason} ({fresh.charts:,} charts, {fresh.fill:.0%} of the texture used)",
        unwrapped=True,
    )


def _better_uv(
    file: MeshFile, normalized: Floats, faces: Indices
) -> tuple[Floats | None, UvReport]:
    """The file's coordinates, or those of its pictures where these alone will do."""
    report = inspect_uv(normalized, faces, file.uv)
    if report.problem is not None and file.texture_uv is not None:
        placed = inspect_uv(normalized, faces, file.texture_uv)
        if file.uv is None or placed.problem is None:
            return file.texture_uv, placed
    return file.uv, report


def _is_sound(report: UvReport) -> bool:
    return report.problem is None


def _is_keepable(report: UvReport) -> bool:
    return report.keepable


def _groupings(
    file: MeshFile, uv: Floats, faces: Indices, face_part: Indices, unwrapping: Unwrapping
) -> Iterator[tuple[Indices, str]]:
    """Groups of faces [f] that may each have a texture of its own, and what they are."""
    yield np.array(file.part_material, np.int64)[face_part], "materials"
    tiles = _udim_tiles(uv, faces, split_mirrored=unwrapping == "auto")
    if tiles is not None:
        numbers = ", ".join(str(n) for n in np.unique(tiles)[:4])
        yield tiles, f"UDIM tiles ({numbers}{', …' if len(np.unique(tiles)) > 4 else ''})"
    if unwrapping == "auto":
        yield face_part, "parts"


def _udim_tiles(uv: Floats, faces: Indices, split_mirrored: bool) -> Indices | None:
    """The UDIM number of each face [f], or None where not every face lies within one tile.

    Args:
        uv: [v, 2].
        faces: [f, 3].
        split_mirrored: whether a tile of mirrored faces alone is one, too. Such a half is often
            moved aside by a whole texture for baking, and shares its texels all the same.
    """
    corners = uv[faces]
    low = np.floor(corners.mean(1))
    inside = (corners >= low[:, None] - 1e-4) & (corners <= low[:, None] + 1 + 1e-4)
    if not inside.all() or low.min() < 0 or low[:, 0].max() > 9:
        return None
    tiles = (1001 + low[:, 0] + 10 * low[:, 1]).astype(np.int64)
    if split_mirrored:
        return tiles
    mirrored = _uv_areas(corners) < 0
    alone = [mirrored[tiles == number].all() for number in np.unique(tiles)]
    return None if any(alone) else tiles


def _packed(
    uv: Floats,
    normalized: Floats,
    faces: Indices,
    groups: Indices,
    what: str,
    sound: Callable[[UvReport], bool],
) -> UvLayout | None:
    """Gives each group of faces a tile of its own, if each is sound by itself."""
    labels, tile_of_face = np.unique(groups, return_inverse=True)
    udim = what.startswith("UDIM")
    if not 2 <= len(labels) <= (MOST_UDIM_TILES if udim else MOST_TILES):
        return None
    members = [faces[tile_of_face == k] for k in range(len(labels))]
    if not all(sound(inspect_uv(normalized, m, uv)) for m in members):
        return None
    corners = faces.reshape(-1)
    vertex, source, tile, _ = split_corners(
        corners, np.repeat(tile_of_face, 3), np.full(len(corners), -1), len(uv)
    )
    placed = uv[source]
    # a UDIM tile keeps its square, wherever it lies
    moved = np.floor([uv[m].mean((0, 1)) if udim else (0, 0) for m in members])
    tiles = atlas_tiles([uv[m] - low for m, low in zip(members, moved, strict=True)])
    for k, own in enumerate(tiles):
        placed[tile == k] = own.place(placed[tile == k] - moved[k])
    note = f"texture coordinates of {len(labels)} {what} laid side by side"
    return UvLayout(source, vertex.reshape(-1, 3), placed, note, tile_of_face)


def _shared(corners: Floats, face_part: Indices, part_names: list[str]) -> list[str]:
    """A phrase on which faces share texels, if any do; ``corners`` [f, 3, 2] in the texture."""
    times = texel_counts(corners)
    used = max(int((times > 0).sum()), 1)
    if not (times > 1).any():
        return []

    def covered(members: np.ndarray) -> np.ndarray:
        return texel_counts(corners[members], len(times)) > 0

    mirrored = _uv_areas(corners) < 0
    shares = {"mirrored faces": (covered(mirrored) & covered(~mirrored)).sum() / used}
    labels = np.unique(face_part)
    if len(labels) <= MOST_NAMED:
        covers = {k: covered(face_part == k) for k in labels}
        for j, k in combinations(labels, 2):
            names = f"{part_names[j][:40]!r} and {part_names[k][:40]!r}"
            shares[names] = (covers[j] & covers[k]).sum() / used
    told = sorted(((s, n) for n, s in shares.items() if s > LEAST_SHARED), reverse=True)[:3]
    which = ", ".join(f"{name} {share:.0%}" for share, name in told)
    shared = f"faces share {(times > 1).sum() / used:.0%} of the texture used"
    return [f"{shared}{f' ({which})' if which else ''} and are textured together"]


def _uv_areas(corners: Floats) -> Floats:
    (a, b), (c, d) = ((corners[:, k] - corners[:, 0]).T for k in (1, 2))
    return (a * d - b * c) / 2


MARGIN = 4 / 1024  # around every tile, so that mip levels do not mix neighbours


@dataclass(frozen=True)
class AtlasTile:
    """Where a rectangle of one texture lies in the joint one.

    Attributes:
        low: (u, v) of its lower corner in its own texture.
        size: its extent there.
        origin: (u, v) of the tile, margin included.
        side: of the tile, margin included.
    """

    low: tuple[float, float]
    size: tuple[float, float]
    origin: tuple[float, float]
    side: float

    @property
    def _scale(self) -> Floats:
        return (self.side - 2 * MARGIN) / np.array(self.size)

    def place(self, uv: Floats) -> Floats:
        """[..., 2] from its own texture to the joint one."""
        return (uv - self.low) * self._scale + self.origin + MARGIN

    def origin_of(self, uv: Floats) -> Floats:
        """[..., 2] from the joint texture back; the margin continues the rectangle."""
        return (uv - self.origin - MARGIN) / self._scale + self.low


def atlas_tiles(corner_uvs: list[Floats]) -> list[AtlasTile]:
    """One tile for each set of texture coordinates [..., 2], none empty.

    What lies within [0, 1]² keeps that square; else the bounding box is fitted in.
    """
    grid = int(np.ceil(np.sqrt(len(corner_uvs))))
    tiles = []
    for k, uv in enumerate(corner_uvs):
        low, high = uv.reshape(-1, 2).min(0), uv.reshape(-1, 2).max(0)
        if (low >= -1e-6).all() and (high <= 1 + 1e-6).all():
            low, high = np.zeros(2), np.ones(2)
        size = np.maximum(high - low, 1e-9)
        tiles.append(
            AtlasTile(
                (float(low[0]), float(low[1])),
                (float(size[0]), float(size[1])),
                (k % grid / grid, k // grid / grid),
                1 / grid,
            )
        )
    return tiles
