"""The JSON of a glTF file behind getters that say what is missing, and its binary data."""

import base64
import json
import re
from functools import cached_property
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from sdslab.errors import one_line
from sdslab.meshes.mesh_file import MOST_FACES, Floats, Indices, MeshFileError
from sdslab.meshes.mesh_folder import MeshFolder

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
MOST_VERTICES = 3 * MOST_FACES


class JsonObject:
    """An object of the file's JSON; a key that is null counts as absent.

    Every getter raises a `MeshFileError` that says which key of which object is missing or of the
    wrong kind, and nothing else.
    """

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise MeshFileError(f"{path or 'its JSON'} must be an object, it is {_shown(values)}")
        self.values: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
        self.path = path

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def at(self, key: str) -> str:
        """The path of a key, as messages name it."""
        return f"{self.path}.{key}" if self.path else key

    def object(self, key: str) -> "JsonObject":
        """A nested object, empty if absent."""
        return JsonObject(self.values.get(key, {}), self.at(key))

    def extension(self, name: str) -> "JsonObject":
        """An object's extension of that name, empty if absent."""
        return self.object("extensions").object(name)

    def array(self, key: str) -> list[Any]:
        """A list, empty if absent."""
        values = self.values.get(key, [])
        if not isinstance(values, list):
            raise MeshFileError(f"{self.at(key)} must be a list, it is {_shown(values)}")
        return values

    def objects(self, key: str) -> "list[JsonObject]":
        """A list of objects, empty if absent."""
        return [JsonObject(v, f"{self.at(key)}[{k}]") for k, v in enumerate(self.array(key))]

    def text(self, key: str, default: str = "") -> str:
        """A string, made fit for one line of a message; other values as JSON."""
        value = self.values.get(key, default)
        return one_line(value) if isinstance(value, str) else _shown(value)

    def texts(self, key: str) -> set[str]:
        """A list of strings, each fit for a message; empty if absent."""
        return {one_line(str(value))[:80] for value in self.array(key)}

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        return _number(self.values.get(key, default), self.at(key))

    def unit(self, key: str, default: float) -> float:
        """A number, brought into [0, 1]."""
        return min(max(self.number(key, default), 0.0), 1.0)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Reads as many finite numbers as the default has."""
        values = self.array(key) if key in self else default
        if len(values) != len(default):
            raise MeshFileError(f"{self.at(key)} must hold {len(default)} numbers")
        return tuple(_number(value, self.at(key)) for value in values)

    def whole(self, key: str, default: int | None = None) -> int:
        """A number of things or an index: never negative."""
        if key not in self:
            if default is None:
                raise MeshFileError(f"{self.path or 'the file'} lacks {key}")
            return default
        return _whole(self.values[key], self.at(key))

    def wholes(self, key: str) -> list[int]:
        """A list of indices, empty if absent."""
        return [_whole(value, self.at(key)) for value in self.array(key)]


class GltfDocument:
    """A .gltf or .glb file's JSON with its buffers.

    Attributes:
        root: the whole JSON.
        notes: what was odd.
    """

    def __init__(self, content: bytes, folder: MeshFolder) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.binary: bytes | None = None
        text = content
        if content.startswith(b"glTF"):
            text, self.binary = _chunks(content, self.notes)
        try:
            self.root = JsonObject(json.loads(text.decode("utf-8-sig", "replace").rstrip("\0")), "")
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise MeshFileError(f"its JSON is damaged at {place}") from error
        except RecursionError as error:
            raise MeshFileError("its JSON is nested too deeply") from error
        except ValueError as error:
            if isinstance(error, MeshFileError):
                raise
            raise MeshFileError("its JSON holds a number of too many digits") from error
        asset = self.root.object("asset").values.get("version", "missing")
        if not str(asset).startswith("2"):
            raise MeshFileError(f"it is glTF {one_line(str(asset))[:20]}, not 2.0")
        self.buffers: dict[int, bytes] = {}

    @cached_property
    def lists(self) -> dict[str, list[JsonObject]]:
        """The file's top-level lists of objects."""
        names = (
            "scenes", "nodes", "meshes", "materials", "textures", "images", "samplers", "accessors",
            "bufferViews", "buffers", "animations", "skins", "cameras",
        )  # fmt: skip
        return {name: self.root.objects(name) for name in names}

    def entry(self, kind: str, index: int, user: str) -> JsonObject:
        """One of `lists`; ``user`` is who names it."""
        entries = self.lists[kind]
        if index >= len(entries):
            raise MeshFileError(f"{user} names {kind}[{index}], of which there are {len(entries)}")
        return entries[index]

    def named(self, user: JsonObject, key: str, kind: str) -> JsonObject:
        """The entry of one of `lists` that an object's key names."""
        return self.entry(kind, user.whole(key), user.at(key))

    def floats(self, user: JsonObject, key: str, *widths: int) -> Floats:
        """[n, w] float64 of the accessor that a key names; normalised integers become [−1, 1]."""
        values, normalized = self._accessor(user, key, widths)
        kind = values.dtype
        result = values.astype(np.float64)
        if normalized and kind.kind in "iu":
            result = np.maximum(result / np.iinfo(kind).max, -1)
        return result

    def indices(self, user: JsonObject, key: str) -> Indices:
        """[n] int64 of the accessor that a key names."""
        values, _ = self._accessor(user, key, (1,))
        if values.dtype.kind != "u":
            raise MeshFileError(f"{user.at(key)} must name unsigned whole numbers")
        return values.astype(np.int64).reshape(-1)

    def count(self, user: JsonObject, key: str) -> int:
        """Number of elements that an accessor promises."""
        return self.named(user, key, "accessors").whole("count")

    def _accessor(
        self, user: JsonObject, key: str, widths: tuple[int, ...]
    ) -> tuple[np.ndarray, bool]:
        accessor = self.named(user, key, "accessors")
        count = accessor.whole("count")
        width = WIDTHS.get(accessor.text("type"), 0)
        if width not in widths:
            wanted = " or ".join(str(w) for w in widths)
            raise MeshFileError(f"{accessor.path} must hold {wanted} numbers each")
        if count > MOST_VERTICES:
            raise MeshFileError(f"{accessor.path} promises {count:,} elements")
        dtype = _component(accessor)
        if "bufferView" in accessor:
            values = self._elements(accessor, count, width, dtype)
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor.object("sparse")
            number = sparse.whole("count")
            where, what = sparse.object("indices"), sparse.object("values")
            kind = _component(where)
            at = self._elements(where, number, 1, kind).reshape(-1)
            if kind.kind != "u" or (number and int(at.max()) >= count):
                raise MeshFileError(f"{where.path} must name elements 0 … {count - 1}")
            values = values.copy()
            values[at] = self._elements(what, number, width, dtype)
        return values, bool(accessor.values.get("normalized"))

    def _elements(
        self, user: JsonObject, count: int, width: int, dtype: np.dtype[Any]
    ) -> np.ndarray:
        """[count, width] of the buffer view that ``user`` names, not copied."""
        view = self.named(user, "bufferView", "bufferViews")
        offset, data = user.whole("byteOffset", 0), self.view(user)
        size = width * dtype.itemsize
        stride = view.whole("byteStride", 0) or size
        if count == 0:
            return np.empty((0, width), dtype)
        if (count - 1) * stride + size > len(data) - offset:
            raise MeshFileError(
                f"{user.path} needs {offset + (count - 1) * stride + size:,} bytes of "
                f"{view.path}, which has {len(data):,}"
            )
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def view(self, user: JsonObject) -> memoryview:
        """The bytes of the buffer view that ``user`` names."""
        view = self.named(user, "bufferView", "bufferViews")
        start, length = view.whole("byteOffset", 0), view.whole("byteLength")
        data = self._buffer(view.whole("buffer"), view.at("buffer"))
        if start + length > len(data):
            raise MeshFileError(
                f"{view.path} ends at byte {start + length:,} of a buffer of {len(data):,}"
            )
        return memoryview(data)[start : start + length]

    def _buffer(self, index: int, user: str) -> bytes:
        if index not in self.buffers:
            buffer = self.entry("buffers", index, user)
            if "uri" in buffer:
                self.buffers[index] = self.resource(buffer)
            elif index == 0 and self.binary is not None:
                self.buffers[index] = self.binary
            else:
                by = "".join(f" ({name[:40]})" for name in buffer.object("extensions").values)
                raise MeshFileError(f"{buffer.path} has neither a uri nor a binary chunk{by}")
        return self.buffers[index]

    def resource(self, user: JsonObject) -> bytes:
        """What the uri of a buffer or an image stands for."""
        uri = user.values.get("uri")
        if not isinstance(uri, str):
            raise MeshFileError(f"{user.at('uri')} must be text, it is {_shown(uri)}")
        if not uri.lstrip().startswith("data:"):
            return self.folder.read(uri)
        head, _, body = uri.partition(",")
        if not head.rstrip().endswith(";base64"):
            return unquote_to_bytes(body)
        # Line breaks, escapes, the other alphabet and missing padding occur in real files.
        body = re.sub(r"\s+", "", unquote(body) if "%" in body else body).rstrip("=")
        body = body.translate({ord("-"): "+", ord("_"): "/"}) + "=" * (-len(body) % 4)
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as error:
            raise MeshFileError(f"{user.at('uri')} is not base64 ({error})") from error


def _chunks(content: bytes, notes: list[str]) -> tuple[bytes, bytes | None]:
    """A .glb file's JSON and its binary chunk, whatever length its header states."""
    if int.from_bytes(content[4:8], "little") == 1:
        raise MeshFileError("it is glTF 1.0, not 2.0")
    stated, offset = int.from_bytes(content[8:12], "little"), 12
    chunks: dict[bytes, bytes] = {}
    while offset + 8 <= len(content) and b"BIN\0" not in chunks:
        size = int.from_bytes(content[offset : offset + 4], "little")
        kind = content[offset + 4 : offset + 8]
        if kind not in (b"JSON", b"BIN\0") and chunks and offset >= stated:
            break  # bytes behind the end
        if offset + 8 + size > len(content) + 3:  # a last chunk may lack its padding
            raise MeshFileError(
                f"it is cut off: {len(content):,} of {max(stated, offset + 8 + size):,} bytes"
            )
        chunks.setdefault(kind, content[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in chunks:
        if stated > len(content):
            raise MeshFileError(f"it is cut off: {len(content):,} of {stated:,} bytes")
        raise MeshFileError("it lacks its JSON chunk")
    if stated != len(content):
        notes.append(f"its header states {stated:,} bytes, the file has {len(content):,}")
    return chunks[b"JSON"], chunks.get(b"BIN\0")


def _component(user: JsonObject) -> np.dtype[Any]:
    kind = user.whole("componentType")
    if kind not in COMPONENTS:
        raise MeshFileError(f"{user.at('componentType')} must be one of glTF's, it is {kind}")
    return np.dtype(COMPONENTS[kind])


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "missing"}
    return kinds.get(type(value)) or one_line(json.dumps(value))[:40]


def _number(value: Any, path: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else np.nan
    except OverflowError:
        number = np.inf
    if isinstance(value, bool) or not np.isfinite(number):
        raise MeshFileError(f"{path} must be a number, it is {_shown(value)}")
    return number


def _whole(value: Any, path: str) -> int:
    number = _number(value, path)
    if number < 0 or number != int(number):
        raise MeshFileError(f"{path} must be a whole number from 0, it is {_shown(value)}")
    return int(value)
