"""Wavefront OBJ and its material libraries."""

from array import array

import numpy as np

from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    MeshFile,
    MeshFileError,
    MeshFolder,
    split_corners,
)
from sdslab.meshes.polygons import triangulate

LONGEST_LINE = 1_000_000
WIDTHS = {"v": 3, "vt": 2, "vn": 3}
MOST_ROWS = 3 * MOST_FACES  # of each kind; corners, too


class _Lines:
    """The statements of an OBJ file, as flat arrays of numbers."""

    def __init__(self, text: str) -> None:
        self.values = {keyword: array("d") for keyword in WIDTHS}
        self.corners = array("q")  # v, vt and vn of each
        self.sizes: list[int] = []
        self.parts: dict[tuple[str, str, str], int] = {}
        self.polygon_part: list[int] = []
        self.libraries: list[str] = []
        names = {"o": "", "g": "", "usemtl": ""}
        for number, line in enumerate(text.replace("\\\n", " ").split("\n"), 1):
            if len(line) > LONGEST_LINE:
                raise MeshFileError(f"line {number} is {len(line):,} characters long")
            keyword, _, rest = line.strip().partition(" ")
            try:
                if keyword in self.values:
                    width = WIDTHS[keyword]
                    row = [float(word) for word in rest.split("#")[0].split()[:width]]
                    row += [0.0] * (width - len(row) if keyword == "vt" and row else 0)
                    if len(row) != width:
                        raise ValueError(f"it needs {width} numbers")
                    self.values[keyword].extend(row)
                    if len(self.values[keyword]) > width * MOST_ROWS:
                        raise MeshFileError(f"it has more than {MOST_ROWS:,} lines of {keyword}")
                elif keyword in ("f", "fo"):
                    self._polygon(rest.split("#")[0].split(), tuple(names.values()))
                elif keyword in names:
                    names[keyword] = rest.strip()
                elif keyword == "mtllib":
                    self.libraries.append(rest.strip())
            except MeshFileError:
                raise
            except ValueError as error:
                raise MeshFileError(f"line {number} is {line.strip()[:60]!r}: {error}") from error

    def _polygon(self, words: list[str], key: tuple[str, ...]) -> None:
        counts = [len(self.values[keyword]) // width for keyword, width in WIDTHS.items()]
        for word in words:
            fields = word.split("/")
            corner = [-1, -1, -1]
            for k, text in enumerate(fields[:3]):
                if text:
                    index = int(text)
                    corner[k] = index - 1 if index > 0 else counts[k] + index
                    if index == 0 or corner[k] < 0:
                        raise ValueError(f"there is no index {index}")
            if corner[0] < 0:
                raise ValueError("a corner needs a vertex")
            self.corners.extend(corner)
        self.sizes.append(len(words))
        if len(self.sizes) > MOST_FACES or len(self.corners) > 3 * MOST_ROWS:
            raise MeshFileError(f"it has more than {MOST_FACES:,} faces")
        name, group, material = key
        self.polygon_part.append(self.parts.setdefault((name, group, material), len(self.parts)))


def read_obj(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads polygons, groups and materials; vertices stay in the order of the `v` lines.

    A vertex used with several texture coordinates or normals is split on the spot.
    """
    lines = _Lines(content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"))
    positions, uv, normals = (
        np.array(lines.values[keyword], np.float64).reshape(-1, width)
        for keyword, width in WIDTHS.items()
    )
    corners = np.array(lines.corners, np.int64).reshape(-1, 3)
    for k, (rows, what) in enumerate(((positions, "v"), (uv, "vt"), (normals, "vn"))):
        if (corners[:, k] >= len(rows)).any():
            raise MeshFileError(f"a face names {what} {corners[:, k].max() + 1} of {len(rows)}")
    triangles, polygon = triangulate(np.array(lines.sizes, np.int64), positions[corners[:, 0]])
    part = np.array(lines.polygon_part, np.int64)[polygon]
    order = np.argsort(part, kind="stable")
    used = corners[triangles[order].reshape(-1)]
    vertex, source, source_uv, source_normal = split_corners(
        used[:, 0], used[:, 1], used[:, 2], len(positions)
    )
    materials, notes = _materials(lines, folder)
    names = [material.name for material in materials]
    return MeshFile(
        positions=positions[source],
        faces=vertex.reshape(-1, 3),
        face_part=part[order],
        part_names=_part_names(list(lines.parts)),
        part_material=[names.index(m) if m in names else -1 for _, _, m in lines.parts],
        uv=_pick(uv, source_uv),
        normals=_pick(normals, source_normal),
        source_vertex=source,
        materials=materials,
        notes=notes,
    )


def _pick(values: np.ndarray, index: np.ndarray) -> np.ndarray | None:
    if not (index >= 0).any():
        return None
    return np.where(index[:, None] >= 0, values[index], np.nan)


def _part_names(keys: list[tuple[str, str, str]]) -> list[str]:
    """Object and group, and the material where that alone tells parts apart."""
    stems = [" ".join(dict.fromkeys(filter(None, key[:2]))) for key in keys]
    return [
        " ".join(filter(None, (stem, key[2]))) if stems.count(stem) > 1 or not stem else stem
        for stem, key in zip(stems, keys, strict=True)
    ]


def _materials(lines: _Lines, folder: MeshFolder) -> tuple[list[FileMaterial], list[str]]:
    materials: dict[str, FileMaterial] = {}
    notes: list[str] = []
    for library in lines.libraries:
        try:
            text = folder.read(library).decode("utf-8", "replace")
        except MeshFileError as error:
            notes.append(f"material file {error}")
            continue
        for material in _read_mtl(text, folder, notes):
            materials.setdefault(material.name, material)
    used = [name for _, _, name in lines.parts]
    return [materials[name] for name in dict.fromkeys(used) if name in materials], notes


def _read_mtl(text: str, folder: MeshFolder, notes: list[str]) -> list[FileMaterial]:
    statements: list[dict[str, str]] = []
    for line in text.splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "newmtl":
            statements.append({"newmtl": rest.strip()})
        elif statements and rest.strip():
            statements[-1][keyword.lower()] = rest.strip()

    def image(words: dict[str, str], *keywords: str) -> bytes | None:
        for keyword in keywords:
            if keyword in words:
                name = words[keyword]
                try:
                    # options such as "-s 1 1 1" come first
                    return folder.read(name.split()[-1] if name.startswith("-") else name)
                except MeshFileError as error:
                    notes.append(f"texture {error}")
        return None

    def number(words: dict[str, str], keyword: str, default: float) -> float:
        try:
            value = float(words[keyword].split()[0])
        except (KeyError, ValueError):
            return default
        return min(max(value, 0.0), 1.0) if np.isfinite(value) else default

    materials = []
    for words in statements:
        color_image = image(words, "map_kd")
        roughness_image, metallic_image = image(words, "map_pr"), image(words, "map_pm")
        materials.append(
            FileMaterial(
                name=words["newmtl"],
                color=(1.0, 1.0, 1.0) if color_image else _diffuse(words.get("kd", "")),
                roughness=number(words, "pr", 1.0 if roughness_image else 0.5),
                metallic=number(words, "pm", 1.0 if metallic_image else 0.0),
                color_image=color_image,
                roughness_image=roughness_image,
                metallic_image=metallic_image,
                normal_image=image(words, "norm", "map_kn"),
            )
        )
    return materials


def _diffuse(text: str) -> tuple[float, float, float]:
    """Kd, which Blender and others write in linear light."""
    try:
        red, green, blue = (min(max(float(word), 0.0), 1.0) for word in text.split()[:3])
    except ValueError:
        return (1.0, 1.0, 1.0)
    return (red, green, blue)
