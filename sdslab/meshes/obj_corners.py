"""The corners of OBJ faces, such as ``1/2/3``, found by array operations instead of a loop."""

import numpy as np

from sdslab.meshes.mesh_file import Indices
from sdslab.meshes.text_lines import IS_SPACE, SPACES, parsed, word_starts

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
    data = np.frombuffer(b"   " + text, np.uint8)  # so that three bytes stand before each number
    sign = np.flatnonzero((data == ord("-")) | (data == ord("+")))
    if not (IS_SPACE[data[sign - 1]] | (data[sign - 1] == ord("/"))).all():
        return None
    slash = np.flatnonzero(data == ord("/"))
    columns = _same_columns(slash, word_starts(text) + 3)
    if columns is not None:
        numbers = parsed(text.replace(b"/", b" "), np.int64)
        if len(numbers) == count * len(columns):
            result[:, columns] = numbers.reshape(count, -1)
            return result
    digit = (data - ord("0")) < 10
    begins, stops = digit.copy(), digit.copy()
    begins[1:] &= ~digit[:-1]
    stops[:-1] &= ~digit[1:]
    at = np.flatnonzero(begins)
    length = np.flatnonzero(stops) - at + 1
    if not len(at) or length.max() > 18:
        return None
    value = np.zeros(len(at), np.int64)
    for k in range(int(length.max())):
        longer = length > k
        value = np.where(longer, 10 * value + data[np.where(longer, at + k, 0)] - ord("0"), value)
    before = data[at - 1]
    signed = (before == ord("-")) | (before == ord("+"))
    value = np.where(before == ord("-"), -value, value)
    at -= signed
    leads, behind_slash = IS_SPACE[data[at - 1]], data[at - 1] == ord("/")
    if leads.sum() != count or len(sign) != signed.sum() or not (leads | behind_slash).all():
        return None
    # The first number of a word is its vertex; behind two slashes stands a normal.
    first = np.flatnonzero(leads)
    column = np.arange(len(at)) - first.repeat(np.diff(first, append=len(at)))
    column += behind_slash & (data[at - 2] == ord("/"))
    if column.max() > 2:
        return None
    result[np.cumsum(leads) - 1, column] = value
    return result


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
