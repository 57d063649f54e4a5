"""Material libraries of OBJ files (.mtl), with the extensions for roughness and metalness."""

import io
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sdslab.meshes.mesh_file import FileMaterial, MeshFileError, counted
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.text_lines import decoded, plain_text

# Words that an option of a map takes; the first three take up to that many numbers.
ARITY = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2, "-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1,
         "-cc": 1, "-clamp": 1, "-colorspace": 1, "-imfchan": 1, "-texres": 1,
         "-type": 1}  # fmt: skip
UNAPPLIED = {"-t": ("0", "0 0", "0 0 0"), "-mm": ("0 1",), "-cc": ("off",), "-clamp": ("off",),
             "-imfchan": ("rgb", "r", "g", "b", "l", "m")}  # fmt: skip
"""Options that would change the picture, unless they have one of these values."""
OPTION = re.compile(r"\s+(-[a-z]+)\s", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LIBRARY = re.compile(r'"[^"]+"|\S.*?\.mtl(?=\s|$)|\S+', re.IGNORECASE)
UDIM = re.compile(r"<(udim|uvtile)>|%\(udim\)d", re.IGNORECASE)
NORMAL_MAPS = ("norm", "map_kn", "map_bump", "bump")
UNREAD_MAPS = ("map_ka", "map_ks", "map_ns", "map_d", "map_tr", "disp", "map_disp", "decal", "refl",
               "map_refl", "map_ps", "map_ao", "map_rma", "map_orm", "map_opacity")  # fmt: skip
LARGEST_BUMP = 8192**2
SAME = (1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class _Map:
    """A picture as a statement names it."""

    name: str
    options: dict[str, list[str]]

    @property
    def transform(self) -> tuple[float, float, float, float]:
        """Scale and offset of texture coordinates: u, v, u, v."""
        scale, offset = (
            [float(word) for word in self.options.get(key, [])] for key in ("-s", "-o")
        )
        return (*[*scale, 1.0, 1.0][:2], *[*offset, 0.0, 0.0][:2])  # type: ignore[return-value]


@dataclass
class Materials:
    """The materials of an OBJ file that its faces use.

    Attributes:
        materials: in the order of their first use.
        transforms: scale and offset (u, v, u, v) of each one's texture coordinates.
        index: where each name that faces use is in `materials`.
        notes: phrases for `MeshFile.notes`.
        lost: phrases for `MeshFile.lost`.
    """

    materials: list[FileMaterial] = field(default_factory=list)
    transforms: list[tuple[float, float, float, float]] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def read_materials(libraries: list[str], used: list[str], folder: MeshFolder) -> Materials:
    """Reads what `mtllib` lines name; the first material of a name counts.

    Args:
        libraries: the lines, each with one name or several.
        used: names that `usemtl` gave to faces.
        folder: of the mesh.
    """
    result = Materials()
    defined: dict[str, tuple[dict[str, str], str]] = {}
    for line in libraries:
        for content, near in _libraries(line, folder, result.notes):
            for words in _statements(decoded(plain_text(content))):
                defined.setdefault(words["newmtl"], (words, near))
    any_case = {name.casefold(): name for name in reversed(defined)}
    unknown = []
    for name in filter(None, dict.fromkeys(used)):
        found = name if name in defined else any_case.get(name.casefold())
        if found is None:
            unknown.append(name)
            continue
        words, near = defined[found]
        material, transform = _Reader(words, near, folder, result).material()
        result.index[name] = len(result.materials)
        result.materials.append(material)
        result.transforms.append(transform)
    if unknown:
        shown = ", ".join(name[:40] for name in unknown[:3]) + (", …" if unknown[3:] else "")
        result.notes.append(f"{counted(len(unknown), 'material')} defined nowhere: {shown}")
    elif defined and not result.index:
        result.notes.append("no face uses a material of its material files")
    return result


def _libraries(line: str, folder: MeshFolder, notes: list[str]) -> list[tuple[bytes, str]]:
    """Contents and folders; a line is one name with blanks, or several names."""
    try:
        return [folder.find(line.strip('"'))]
    except MeshFileError as error:
        names = [name.strip('"') for name in LIBRARY.findall(line)]
        if len(names) < 2:
            notes.append(f"material file {error}")
            return []
    found = []
    for name in names:
        try:
            found.append(folder.find(name))
        except MeshFileError as error:
            notes.append(f"material file {error}")
    return found


def _statements(text: str) -> list[dict[str, str]]:
    """What each material states, by keyword in lower case."""
    statements: list[dict[str, str]] = []
    for line in re.sub(r"\\\n", " ", text).split("\n"):
        keyword, *rest = line.strip().split(None, 1)[:2] or [""]
        keyword = keyword.lower()
        if keyword.startswith("#"):
            continue
        if keyword == "newmtl":
            statements.append({"newmtl": "".join(rest).strip()})
        elif statements and rest:
            statements[-1][keyword] = rest[0].strip()
    return statements


def _map(text: str) -> list[_Map]:
    """The readings of a map's statement: options stand before the name, rarely behind it."""
    options: dict[str, list[str]] = {}
    rest = text.strip()
    while (option := rest.split(None, 1)[0].lower() if rest else "") in ARITY:
        words = rest.split()
        count = ARITY[option]
        if option in ("-s", "-o", "-t"):
            numbers = [NUMBER.fullmatch(word) is not None for word in words[1 : 1 + count]]
            count = [*numbers, False].index(False)
        options[option] = words[1 : 1 + count]
        rest = rest.split(None, 1 + count)[1 + count] if len(words) > 1 + count else ""
    readings = [_Map(rest.strip().strip('"'), options)]
    for match in OPTION.finditer(rest):
        if match[1].lower() in ARITY:
            behind = _map(f"{rest[match.start(1) :]} .")[0].options
            readings.append(_Map(rest[: match.start()].strip().strip('"'), options | behind))
            break
    if "#" in rest:
        readings.append(_Map(rest.partition("#")[0].strip().strip('"'), options))
    return readings


class _Reader:
    """One material's statements as a `FileMaterial`."""

    def __init__(
        self, words: dict[str, str], near: str, folder: MeshFolder, result: Materials
    ) -> None:
        self.words = words
        self.near = near
        self.folder = folder
        self.result = result
        self.transforms: dict[str, tuple[float, float, float, float]] = {}

    def material(self) -> tuple[FileMaterial, tuple[float, float, float, float]]:
        """The material, and the scale and offset of its texture coordinates."""
        color_image, cutout = self._image("map_kd"), self._cutout()
        roughness_image, metallic_image = self._image("map_pr"), self._image("map_pm")
        normal_image, normal_scale = self._normal_map()
        emissive_image = self._image("map_ke")
        self._note_unread()
        alpha = self._number("d", 1.0 - self._number("tr", 0.0))
        emissive = self._color("ke", (0.0, 0.0, 0.0))
        if emissive_image and emissive == (0.0, 0.0, 0.0):
            emissive = (1.0, 1.0, 1.0)
        transform = next(iter(self.transforms.values()), SAME)
        if any(other != transform for other in self.transforms.values()):
            self.result.notes.append(
                f"material {self.words['newmtl'][:40]!r}: all maps placed as its first one"
            )
        return FileMaterial(
            name=self.words["newmtl"],
            color=(1.0, 1.0, 1.0) if color_image else self._color("kd", (1.0, 1.0, 1.0)),
            roughness=self._number("pr", 1.0 if roughness_image else 0.5),
            metallic=self._number("pm", 1.0 if metallic_image else 0.0),
            normal_scale=normal_scale,
            color_image=color_image,
            roughness_image=roughness_image,
            metallic_image=metallic_image,
            normal_image=normal_image,
            alpha=alpha,
            alpha_mode="BLEND" if alpha < 1 or cutout else "OPAQUE",
            emissive=emissive,
            emissive_image=emissive_image,
        ), transform

    def _image(self, keyword: str) -> bytes | None:
        readings = _map(self.words.get(keyword, ""))
        if not readings[0].name:
            return None
        if UDIM.search(readings[0].name):
            self.result.notes.append(
                f"texture {readings[0].name[:80]!r} is a set of UDIM tiles, which are not read; "
                "bake them into one picture"
            )
            return None
        reasons = []
        for reading in readings:
            try:
                content = self.folder.picture(reading.name, self.near)
            except MeshFileError as error:
                reasons.append(error)
                continue
            self.transforms[keyword] = reading.transform
            self._note_options(keyword, reading)
            return content
        self.result.notes.append(f"texture {reasons[-1]}")
        return None

    def _note_options(self, keyword: str, reading: _Map) -> None:
        for option, values in reading.options.items():
            value = " ".join(values).lower()
            if option in UNAPPLIED and value not in UNAPPLIED[option]:
                self.result.notes.append(f"{keyword}: option {option} {value[:20]} not applied")

    def _normal_map(self) -> tuple[bytes | None, float]:
        """A normal map and its strength; heights under the same keyword are told apart."""
        for keyword in NORMAL_MAPS:
            content = self._image(keyword)
            if content is None:
                continue
            reading = _map(self.words[keyword])[-1]
            if keyword in ("map_bump", "bump") and not _holds_normals(content):
                self.transforms.pop(keyword, None)
                self.result.lost.append(f"the bump map {reading.name[:80]!r}")
                continue
            try:
                return content, float((reading.options.get("-bm") or ["1"])[0])
            except ValueError:
                return content, 1.0
        return None, 1.0

    def _cutout(self) -> bool:
        """Whether the colours' own alpha is the opacity map."""
        names = [_map(self.words.get(key, ""))[-1].name for key in ("map_d", "map_kd")]
        return bool(names[0]) and names[0] == names[1]

    def _note_unread(self) -> None:
        color = _map(self.words.get("map_kd", ""))[-1].name
        for keyword in UNREAD_MAPS:
            name = _map(self.words.get(keyword, ""))[-1].name
            if name and name != color:
                self.result.lost.append(f"the {keyword} texture {name[:80]!r}")

    def _number(self, keyword: str, default: float) -> float:
        try:
            value = float(self.words[keyword].removeprefix("-halo").split()[0])
        except (KeyError, ValueError, IndexError):
            return default
        return min(max(value, 0.0), 1.0) if np.isfinite(value) else default

    def _color(
        self, keyword: str, default: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """Three numbers, or one for all three, which Blender and others write in linear light."""
        if keyword not in self.words:
            return default
        words = self.words[keyword].split("#")[0].replace(",", " ").split()
        try:
            values = [min(max(float(word), 0.0), 1.0) for word in words[:3]]
            red, green, blue = values if len(values) > 1 else values * 3
        except ValueError:
            shown = f"{keyword} {self.words[keyword][:40]}"
            self.result.notes.append(f"{shown!r} is not a colour of three numbers")
            return default
        return (red, green, blue)


def _holds_normals(content: bytes) -> bool:
    """Whether a picture looks like a normal map: its mean is bluish. Broken ones are told later."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > LARGEST_BUMP:
                return True
            if picture.mode in ("1", "L", "LA", "I", "I;16", "F"):
                return False
            red, green, blue = np.asarray(picture.convert("RGB").resize((8, 8))).mean((0, 1))[:3]
    except Exception:  # decoders raise whatever they like
        return True
    return bool(blue > max(red, green) + 16)
