"""Lines, words and numbers of a large text, found by array operations instead of a loop."""

import re
import warnings

import numpy as np
from numpy.typing import NDArray

from sdslab.meshes.mesh_file import Floats, Indices, MeshFileError

LONGEST_LINE = 1_000_000
SPACES = b" \t\n\v\f\r"
IS_SPACE = np.isin(np.arange(256), list(SPACES))
SPACE_TABLE = IS_SPACE.tobytes()  # for `bytes.translate`, which is faster than indexing
NUMBER = re.compile(rb"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)
NEWLINE, SPACE = ord("\n"), ord(" ")


def plain_text(content: bytes) -> bytes:
    """UTF-8 or any other superset of ASCII, without a byte order mark, lines ended by a newline."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", "replace").encode()
    return content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def word_starts(text: bytes) -> Indices:
    """Where the words of a text start."""
    space = np.frombuffer(text.translate(SPACE_TABLE), bool)
    begins = ~space
    begins[1:] &= space[:-1]
    return np.flatnonzero(begins)


def decoded(text: bytes) -> str:
    """UTF-8, or Latin-1 where it is not that."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def without_comments(text: bytes) -> bytes:
    """The same text with ``#`` and what follows on its line overwritten by blanks."""
    return re.sub(rb"#[^\n]*", lambda match: b" " * len(match[0]), text) if b"#" in text else text


def parsed(text: bytes, kind: type[np.generic]) -> NDArray:
    """Numbers between white space; none if a word is no number.

    Words such as ``1-2`` and ``1.2.3`` are an error or several numbers: compare their count.
    """
    if not text.strip():  # which numpy takes for a number
        return np.empty(0, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy before 2.3 only warns of what it cannot read
            return np.fromstring(text, kind, sep=" ")
    except (ValueError, DeprecationWarning):
        return np.empty(0, kind)


class TextLines:
    """Where lines and words start.

    Attributes:
        text: what was given.
        data: [n] its bytes, and a line end; may be overwritten.
        starts: [l] where each line starts.
        lengths: [l] of each line, its end included.
        words: [w] where each word starts.
        first: [l] index of each line's first word.
        counts: [l] words of each line.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.data: NDArray[np.uint8] = np.frombuffer(bytearray(text + b"\n"), np.uint8)
        ends = np.flatnonzero(self.data == NEWLINE)
        self.starts = np.concatenate([[0], ends[:-1] + 1])
        self.lengths = np.diff(self.starts, append=len(self.data))
        if self.lengths.max() > LONGEST_LINE:
            number = int(self.lengths.argmax())
            raise MeshFileError(f"line {number + 1} is {self.lengths[number]:,} characters long")
        self.words = word_starts(text)
        self.first = np.searchsorted(self.words, self.starts)
        self.counts = np.diff(self.first, append=len(self.words))

    def bytes_of(self, lines: NDArray[np.bool_]) -> bytes:
        """The lines that a mask [l] chooses."""
        numbers = np.flatnonzero(lines)
        if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:  # one after the other
            end = self.starts[numbers[-1]] + self.lengths[numbers[-1]]
            return self.data[self.starts[numbers[0]] : end].tobytes()
        return self.data[np.repeat(lines, self.lengths)].tobytes()

    def line(self, number: int) -> bytes:
        """One line, counted from 0."""
        start = self.starts[number]
        return self.data[start : start + self.lengths[number] - 1].tobytes()

    def error(self, number: int, reason: str) -> MeshFileError:
        """What to raise about a line, counted from 0."""
        start = self.starts[number]
        shown = decoded(self.text[start : start + self.lengths[number]]).strip()[:60]
        return MeshFileError(f"line {number + 1} is {shown!r}: {reason}")

    def numbers(self, lines: NDArray[np.bool_], count: int) -> Floats:
        """The ``count`` words of the lines that a mask [l] chooses.

        Raises:
            MeshFileError: a word is no number.
        """
        values = parsed(self.bytes_of(lines), np.float64)
        if len(values) == count:
            return values
        for number in np.flatnonzero(lines).tolist():
            for word in self.line(number).split():
                if not NUMBER.fullmatch(word):
                    hint = "; decimals have a point" if b"," in word else ""
                    raise self.error(number, f"{decoded(word)[:40]!r} is no number{hint}")
        raise MeshFileError("its numbers cannot be read")


def ragged(starts: Indices, sizes: Indices, step: int = 1) -> Indices:
    """``starts[k], starts[k] + step, …``, ``sizes[k]`` of them, for every k in turn."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - step * (ends - sizes), sizes) + step * np.arange(total)


NONE = np.iinfo(np.int64).min  # no index


def corner_indices(text: bytes, count: int) -> Indices | None:
    """[count, 3] numbers of words such as ``1``, ``1/2``, ``1//3`` and ``1/2/3``; else None.

    NONE stands where a word has no number.
    """
    result = np.full((count, 3), NONE)
    if not count:
        return result
    if text.translate(None, SPACES + b"0123456789+-/") or b"///" in text:
        return None
    data = np.frombuffer(b" " + text, np.uint8)
    before = data[np.flatnonzero((data == ord("-")) | (data == ord("+"))) - 1]
    if not (IS_SPACE[before] | (before == ord("/"))).all():
        return None
    plain, words = text.replace(b"/", b" "), word_starts(text)
    slash = np.flatnonzero(data == ord("/")) - 1
    values = parsed(plain, np.int64)
    columns = _same_columns(slash, words)
    if columns is not None and len(values) == count * len(columns):
        result[:, columns] = values.reshape(count, -1)
        return result
    # The slashes of its word before a number tell what it is.
    at = word_starts(plain)
    word = np.searchsorted(words, at, "right") - 1
    column = np.searchsorted(slash, at) - np.searchsorted(slash, words)[word]
    if len(values) != len(at) or column.max(initial=0) > 2:
        return None
    result[word, column] = values
    return None if (result[:, 0] == NONE).any() else result


def _same_columns(slash: Indices, words: Indices) -> list[int] | None:
    """Which of v, vt and vn all words have, where all are written alike; else None."""
    each = len(slash) // max(len(words), 1)
    if each > 2 or each * len(words) != len(slash):
        return None
    slashes = slash.reshape(len(words), each)
    if each and not ((slashes[:, 0] > words).all() and (slashes[:-1, -1] < words[1:]).all()):
        return None
    if each < 2:
        return list(range(each + 1))
    adjacent = slashes[:, 1] == slashes[:, 0] + 1
    return [0, 2] if adjacent.all() else None if adjacent.any() else [0, 1, 2]
