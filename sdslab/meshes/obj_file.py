"""Wavefront OBJ: polygons, groups and vertex colours; `mtl_file.py` reads its materials."""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sdslab.meshes.mesh_file import (
    MOST_FACES,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    counted,
    linear_colors,
    split_corners,
    triangulate,
)
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.mtl_file import SAME, read_materials
from sdslab.meshes.text_lines import (
    IS_SPACE,
    NEWLINE,
    NONE,
    SPACE,
    TextLines,
    corner_indices,
    decoded,
    plain_text,
    without_comments,
)

WIDTHS = {"v": (3, 3), "vt": (1, 2), "vn": (3, 3)}  # numbers that a line needs, and that are used
NAMES = {"v": "vertices", "vt": "texture coordinates", "vn": "normals"}
MOST_ROWS = 3 * MOST_FACES  # of each kind; corners, too
CORNER = re.compile(rb"[+-]?\d{1,18}(/([+-]?\d{1,18})?){0,2}")
# What no reader shows: names of other files, hints for other programs, smoothing without normals.
PASSED_OVER = {"s", "vp", "usemap", "maplib", "shadow_obj", "trace_obj", "mg", "bevel", "c_interp",
               "d_interp", "lod", "ctech", "stech", "call", "csh"}  # fmt: skip
FREE_FORM = {"cstype", "deg", "bmat", "step", "curv", "curv2", "surf", "parm", "trim", "hole",
             "scrv", "sp", "end", "con", "bzp", "bsp", "cdc", "cdp", "res"}  # fmt: skip


@dataclass
class _Names:
    """What the lines without numbers state."""

    changes: list[tuple[int, tuple[str, str, str]]] = field(
        default_factory=lambda: [(-1, ("", "", ""))]
    )
    """The line from which on an object, a group and a material count."""
    libraries: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    """Lines by keyword."""


def read_obj(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads polygons, groups and materials; vertices stay in the order of the `v` lines.

    A vertex used with several texture coordinates or normals is split on the spot.
    """
    notes: list[str] = []
    text, numeric = _texts(content, notes)
    lines = TextLines(numeric)
    kinds = _kinds(lines)
    names = _names(text, lines, ~np.any(list(kinds.values()), axis=0))
    vertices, uv, normals = (_rows(lines, kinds[kind], kind) for kind in WIDTHS)
    corners, sizes = _corners(lines, kinds, notes)
    lost = _unread(names.unread, text, notes)
    triangles, polygon = triangulate(sizes, vertices[corners[:, 0], :3], notes)
    keys, part = _parts(names, np.flatnonzero(kinds["f"])[polygon])
    order = np.argsort(part, kind="stable")
    corners, part = corners[triangles[order].reshape(-1)], part[order]
    found = read_materials(names.libraries, [key[2] for key in keys], folder)
    part_material = [found.index.get(key[2], -1) for key in keys]
    places = _places(uv, found.transforms)
    if places is not None:
        # Every transform has its own copy of the coordinates, so that corners split by it.
        own = np.array([*range(len(found.transforms)), 0])[part_material][part].repeat(3)
        corners[:, 1] = np.where(corners[:, 1] < 0, -1, corners[:, 1] + own * len(uv))
        uv = np.tile(uv, (len(found.transforms), 1))
    vertex, source, source_uv, source_normal = split_corners(
        corners[:, 0], corners[:, 1], corners[:, 2], len(vertices)
    )
    return MeshFile(
        positions=vertices[source, :3],
        faces=vertex.reshape(-1, 3),
        face_part=part,
        part_names=_part_names(keys),
        part_material=part_material,
        uv=_pick(uv, source_uv),
        normals=_pick(normals, source_normal),
        colors=_colors(vertices[source, 3:], notes),
        texture_uv=None if places is None else _pick(places, source_uv),
        source_vertex=source,
        materials=found.materials,
        notes=notes + found.notes,
        lost=lost + found.lost,
    )


def _texts(content: bytes, notes: list[str]) -> tuple[bytes, bytes]:
    """The text for names, and one of the same length for numbers, without what is no number."""
    text = plain_text(content)
    if b"1.#" in text:  # not a number, as Microsoft's compilers write it
        text = re.sub(rb"1\.#(QNAN|IND|INF)\d*", lambda match: b"nan".ljust(len(match[0])), text)
    numeric = without_comments(text)
    if b"\\\n" in numeric:  # a line that goes on
        both = [np.frombuffer(bytearray(old), np.uint8) for old in (text, numeric)]
        going_on = (both[1][:-1] == ord("\\")) & (both[1][1:] == NEWLINE)
        at = np.flatnonzero(going_on).astype(np.int32)
        for data in both:
            data[at] = data[at + 1] = SPACE
        text, numeric = (data.tobytes() for data in both)
    if b"," in numeric:
        numeric, commas = re.subn(rb",(?=\s|\Z)", b" ", numeric)
        if commas:
            notes.append(f"{counted(commas, 'comma')} between values passed over")
    return text, numeric


def _kinds(lines: TextLines) -> dict[str, NDArray[np.bool_]]:
    """Which lines hold what; their keywords, in either case, are overwritten by blanks."""
    stated = np.flatnonzero(lines.counts)
    at = lines.words[lines.first[stated]]
    last = len(lines.data) - 1  # a line end
    one, two, three = (lines.data[np.minimum(at + k, last)] for k in range(3))
    kinds = {}
    for keyword in ("v", "vt", "vn", "f", "fo"):
        same = (one | 0x20) == ord(keyword[0])
        same &= IS_SPACE[two] if len(keyword) == 1 else (two | 0x20) == ord(keyword[1])
        same &= IS_SPACE[three] | (len(keyword) == 1)
        for k in range(len(keyword)):
            lines.data[at[same] + k] = SPACE
        kinds[keyword] = np.zeros(len(lines.counts), bool)
        kinds[keyword][stated[same]] = True
    kinds["f"] |= kinds.pop("fo")
    return kinds


def _names(text: bytes, lines: TextLines, others: NDArray[np.bool_]) -> _Names:
    result = _Names()
    names = {"o": "", "g": "", "usemtl": ""}
    for number in np.flatnonzero(others & (lines.counts > 0)).tolist():
        start = lines.starts[number]
        keyword, *rest = text[start : start + lines.lengths[number]].split(None, 1)
        keyword = decoded(keyword[:80]).lower()
        name = decoded(rest[0]).strip() if rest else ""
        if keyword in names:
            names[keyword] = name
            result.changes.append((number, (names["o"], names["g"], names["usemtl"])))
        elif keyword == "mtllib":
            result.libraries.append(name)
        else:
            result.unread[keyword] += 1
    return result


def _rows(lines: TextLines, mask: NDArray[np.bool_], kind: str) -> Floats:
    """[n, k] numbers of a kind's lines, NaN where there is none; of `v` lines all, k ≥ 3."""
    least, used = WIDTHS[kind]
    end = None if kind == "v" else used  # the third coordinate of a texture is left out
    if mask.sum() > MOST_ROWS:
        raise MeshFileError(f"it has more than {MOST_ROWS:,} lines of {kind}")
    widths = lines.counts[mask] - 1
    if len(widths) and widths.min() < least:
        number = int(np.flatnonzero(mask)[widths.argmin()])
        raise lines.error(number, f"it needs {least} number{'s'[: least > 1]}")
    flat = lines.numbers(mask, int(widths.sum()))
    most = int(widths.max(initial=used))
    if len(flat) == most * len(widths):
        return flat.reshape(-1, most)[:, :end]
    columns = np.arange(min(most, 7))
    there = columns < widths[:, None]
    table = flat[np.where(there, (np.cumsum(widths) - widths)[:, None] + columns, 0)]
    # A texture's second coordinate may be left out.
    return np.where(there, table, 0.0 if kind == "vt" else np.nan)[:, :end]


def _corners(
    lines: TextLines, kinds: dict[str, NDArray[np.bool_]], notes: list[str]
) -> tuple[Indices, Indices]:
    """Indices [c, 3] of v, vt and vn, −1 for none, and the corners of each polygon."""
    mask = kinds["f"]
    number, sizes = np.flatnonzero(mask), lines.counts[mask] - 1
    if len(sizes) > MOST_FACES or sizes.sum() > MOST_ROWS:
        raise MeshFileError(f"it has more than {MOST_FACES:,} faces")
    corners = corner_indices(lines.bytes_of(mask), int(sizes.sum()))
    if corners is None:
        raise _bad_face(lines, number)
    for k, kind in enumerate(("v", "vt", "vn")):
        column, rows = corners[:, k], int(kinds[kind].sum())
        stands = column != NONE
        column = np.where(stands, column, 0)
        if (column < 0).any():  # counted back from where the face stands
            before = np.cumsum(kinds[kind])[number].repeat(sizes)
            column = np.where(column < 0, np.maximum(before + column + 1, 0), column)
        column -= 1
        missing = (column < 0) | (column >= rows)
        if k == 0 and missing.any():
            corner = int(missing.argmax())
            raise _bad_face(lines, number, int(np.repeat(number, sizes)[corner]), rows)
        stated = np.count_nonzero(missing & stands)
        if stated:
            named = f"name {NAMES[kind]} ({kind}) that the file lacks"
            notes.append(f"{counted(int(stated), 'corner')} {named}: it has {rows:,}")
        corners[:, k] = np.where(missing, -1, column)
    return corners, sizes


def _bad_face(
    lines: TextLines, numbers: Indices, number: int | None = None, vertices: int = 0
) -> MeshFileError:
    """What is wrong with a face: its words, or the vertices of line `number`."""
    if number is None:
        for at in numbers.tolist():
            for word in lines.line(at).split():
                if not CORNER.fullmatch(word):
                    reason = f"{decoded(word)[:40]!r} is not of the form v, v/vt, v//vn, v/vt/vn"
                    return lines.error(at, reason)
        return MeshFileError("its faces cannot be read")
    indices = [int(word.split(b"/")[0]) for word in lines.line(number).split()]
    if max(indices) > vertices:
        return lines.error(number, f"it names v {max(indices)} of {vertices}")
    wrong = 0 if 0 in indices else min(indices)
    return lines.error(number, f"there is no index {wrong}")


def _parts(names: _Names, lines: Indices) -> tuple[list[tuple[str, str, str]], Indices]:
    """Object, group and material of each part, in the order of use, and the part of each line."""
    change = np.searchsorted([number for number, _ in names.changes], lines) - 1
    keys: dict[tuple[str, str, str], int] = {}
    stated = np.unique(change)
    part = [keys.setdefault(names.changes[k][1], len(keys)) for k in stated]
    table = np.zeros(len(names.changes), np.int64)
    table[stated] = part
    return list(keys), table[change]


def _part_names(keys: list[tuple[str, str, str]]) -> list[str]:
    """Object and group, and the material where that alone tells parts apart."""
    stems = [" ".join(dict.fromkeys(filter(None, key[:2]))) for key in keys]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    return [
        " ".join(filter(None, (stem, key[2]))) if stem in twice or not stem else stem
        for stem, key in zip(stems, keys, strict=True)
    ]


def _places(uv: Floats, transforms: list[tuple[float, float, float, float]]) -> Floats | None:
    """Copies of the texture coordinates, scaled and moved by each transform, if there are any."""
    if all(transform == SAME for transform in transforms):
        return None
    return np.concatenate([uv * transform[:2] + transform[2:] for transform in transforms])


def _pick(values: Floats, index: Indices) -> Floats | None:
    if not (index >= 0).any():
        return None
    return np.where(index[:, None] >= 0, values[index], np.nan)


def _colors(columns: Floats, notes: list[str]) -> Floats | None:
    """What stands behind x, y and z on the `v` lines: a weight, or a colour."""
    if columns.shape[1] < 3:
        if columns.shape[1] and (np.nan_to_num(columns[:, 0], nan=1.0) != 1).any():
            notes.append("weights of vertices passed over")
        return None
    colors = columns[:, : 4 if columns.shape[1] > 3 else 3]
    if not np.isfinite(colors[:, 2]).any():
        return None
    if np.nanmax(colors) > 1:  # some programs write bytes
        colors = colors / 255
    return linear_colors(colors)


def _unread(unread: Counter[str], text: bytes, notes: list[str]) -> list[str]:
    """Phrases for what is lost; statements that no one knows become a note."""
    lost = []
    for keyword, what in (("l", "line element"), ("p", "point element")):
        if unread[keyword]:
            lost.append(counted(unread[keyword], what))
    if any(unread[keyword] for keyword in FREE_FORM):
        lost.append("free-form curves or surfaces")
    if b"\n#MRGB" in text:
        lost.append("vertex colours in #MRGB comments")
    known = PASSED_OVER | FREE_FORM | {"l", "p"}
    strange = [keyword for keyword in unread if keyword not in known]
    if strange:
        count = sum(unread[keyword] for keyword in strange)
        shown = ", ".join(repr(keyword[:20]) for keyword in strange[:3])
        more = ", …" if strange[3:] else ""
        notes.append(f"{counted(count, 'line')} not understood, starting with {shown}{more}")
    return lost
