"""The rows of PLY elements: lines of text, or bytes whose lists say how long they are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdslab.meshes.mesh_file import Floats, Indices, MeshFileError
from sdslab.meshes.text_lines import TextLines, ragged


@dataclass
class Element:
    """Rows of one kind; a list property has the type of its length too."""

    name: str
    count: int
    properties: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: dict[str, Indices] = field(default_factory=dict)


class _Words:
    """Values of a text body, whose lines do not tell rows apart."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.size = len(values)

    def width(self, kind: str) -> int:
        del kind
        return 1

    def take(self, offsets: Indices, kind: str) -> np.ndarray:
        del kind
        return self.values[offsets]

    def one(self, offset: int, kind: str) -> float:
        del kind
        return float(self.values[offset])


class Binary:
    """Values as bytes."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body = body
        self.order = order
        self.size = len(body)

    def width(self, kind: str) -> int:
        return int(kind[1])

    def take(self, offsets: Indices, kind: str) -> np.ndarray:
        # A view of the value that starts at each byte: rows are aligned to nothing.
        starts = max(self.size - self.width(kind) + 1, 0)
        values = np.ndarray((starts,), self.order + kind, self.body, strides=(1,))
        return values[offsets].astype(kind, copy=False)

    def one(self, offset: int, kind: str) -> float:
        return np.frombuffer(self.body, self.order + kind, 1, offset)[0].item()


def read_text(elements: dict[str, Element], body: bytes, notes: list[str]) -> None:
    """Fills the elements; each row is a line, unless there are more or fewer lines than rows."""
    lines = TextLines(body)
    values = lines.numbers(np.ones(len(lines.counts), bool), len(lines.words))
    rows = np.flatnonzero(lines.counts)
    if len(rows) != sum(element.count for element in elements.values()):
        read_stream(elements, _Words(values))
        return
    done = 0
    for element in elements.values():
        own = rows[done : done + element.count]
        done += element.count
        starts, ends = lines.first[own], lines.first[own] + lines.counts[own]
        surplus = ends - _read_rows(element, starts, _Words(values), ends)
        if (surplus > 0).any():
            # As assimp 5 wrote them: which of the values are undeclared, nobody knows.
            number = int(surplus.argmax())
            notes.append(
                f"rows of {element.name[:40]!r} hold up to {surplus[number]} values more than its "
                "header declares: only x, y and z are used"
                if element.name == "vertex"
                else f"rows of {element.name[:40]!r} hold more than its header declares"
            )
            if element.name == "vertex":
                element.columns = {k: v for k, v in element.columns.items() if k in "xyz"}


def read_stream(elements: dict[str, Element], data: Any) -> None:
    """Fills the elements, whose rows follow each other."""
    offset = 0
    for element in elements.values():
        starts, offset = _row_starts(element, offset, data)
        _read_rows(element, starts, data, np.full(len(starts), data.size))
    rest = data.size - offset
    if rest and (isinstance(data, _Words) or data.body[offset:].strip(b"\n\r \t\0")):
        unit = "values" if isinstance(data, _Words) else "bytes"
        raise MeshFileError(f"its body holds {rest:,} {unit} more than its header declares")


def _row_starts(element: Element, offset: int, data: Any) -> tuple[Indices, int]:
    """Where each row starts, and where the last one ends."""
    fixed, lists = 0, []  # bytes before each list, and the types of its length and values
    for length, kind in element.properties.values():
        if length is None:
            fixed += data.width(kind)
        else:
            lists.append((fixed, length, data.width(length), data.width(kind)))
            fixed = 0
    if not lists:
        stride = fixed
        if stride * element.count > data.size - offset:
            raise _too_short(element)
        return offset + stride * np.arange(element.count), offset + stride * element.count
    starts, end = _equal_rows(element, offset, data, lists, fixed), -1
    if starts is not None:
        return starts
    found, at = [], offset
    try:
        for _ in range(element.count):
            found.append(at)
            for before, length, length_width, width in lists:
                size = int(data.one(at + before, length))
                if size < 0:
                    raise MeshFileError(f"a list of {element.name[:40]!r} has {size} values")
                at += before + length_width + size * width
            at += fixed
            end = at
            if end > data.size:
                raise _too_short(element)
    except (IndexError, ValueError, OverflowError) as error:
        if isinstance(error, MeshFileError):
            raise
        raise _too_short(element) from error
    return np.array(found, np.int64), max(end, offset)


def _equal_rows(
    element: Element, offset: int, data: Any, lists: list[tuple[int, str, int, int]], fixed: int
) -> tuple[Indices, int] | None:
    """The same where the lists of all rows are as long as those of the first row, else None."""
    at, places = offset, []
    for before, length, length_width, width in lists:
        if at + before + length_width > data.size:
            return None
        size = data.one(at + before, length)
        if not 0 <= size < data.size:
            return None
        places.append((at + before, length, size))
        at += before + length_width + int(size) * width
    stride = at + fixed - offset
    if stride * element.count > data.size - offset:
        return None
    rows = stride * np.arange(element.count)
    if any((data.take(place + rows, length) != size).any() for place, length, size in places):
        return None
    return offset + rows, offset + stride * element.count


def _too_short(element: Element) -> MeshFileError:
    return MeshFileError(
        f"it ends before its {element.count:,} rows of {element.name[:40]!r} do, or its rows are "
        "not as its header declares them"
    )


def _read_rows(element: Element, starts: Indices, data: Any, ends: Indices) -> Indices:
    """Fills an element's columns; returns where each row ends."""
    at = starts
    for name, (length, kind) in element.properties.items():
        if length is None:
            width = data.width(kind)
            if (at + width > ends).any():
                raise _short_row(element, at + width > ends)
            element.columns[name] = data.take(at, kind)
            at = at + width
            continue
        width = data.width(length)
        if (at + width > ends).any():
            raise _short_row(element, at + width > ends)
        sizes = data.take(at, length)
        if not np.isfinite(sizes).all() or (sizes < 0).any() or (sizes > data.size).any():
            raise MeshFileError(f"a list of {element.name[:40]!r} has {sizes.min()} values")
        sizes = sizes.astype(np.int64)
        at, width = at + width, data.width(kind)
        if (at + width * sizes > ends).any():
            raise _short_row(element, at + width * sizes > ends)
        item = ragged(np.zeros(len(at), np.int64), sizes)
        element.columns[name] = data.take(np.repeat(at, sizes) + width * item, kind)
        element.lengths[name] = sizes
        at = at + width * sizes
    return at


def _short_row(element: Element, short: np.ndarray) -> MeshFileError:
    number = int(short.argmax()) + 1
    return MeshFileError(f"row {number:,} of {element.name[:40]!r} is too short")
