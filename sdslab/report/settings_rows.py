"""Nested tables of a record as rows, and numbers as people read them."""

import math
import re
from collections.abc import Mapping
from typing import Any

SHORT_HASH = 12  # hexadecimal digits
_HASH = re.compile(r"[0-9a-f]{32,}")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested tables under dotted names; lists of plain values are leaves."""
    leaves: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            for number, item in enumerate(value):
                label = item.get("name", number) if isinstance(item, dict) else number
                leaves |= flat({str(label): item}, f"{path}.")
        else:
            leaves[path] = value
    return leaves


def shown(value: Any) -> str:
    """A value as text: four digits of a fraction, lists with commas, a dash for nothing.

    Of hashes the beginning is shown, which tells them apart.
    """
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    text = str(value)
    return f"{text[:SHORT_HASH]}…" if _HASH.fullmatch(text) else text


def title_of(name: str) -> str:
    """A key's name for people: "map_psnr_db.albedo" becomes "map PSNR, albedo (dB)"."""
    words = name.replace("_", " ").replace(".", ", ")
    unit = ""
    for suffix, symbol in ((" db", "dB"), (" mb", "MB"), (" ms", "ms")):
        if f"{suffix}," in f"{words},":
            words = f"{words},".replace(f"{suffix},", ",", 1).removesuffix(",")
            unit = f" ({symbol})"
    return words.replace("psnr", "PSNR").replace("mse", "MSE") + unit


def seconds_text(seconds: float) -> str:
    """A duration: "4.2 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    size = abs(value)
    return f"{value:.4g}" if 1e-3 <= size < 1e6 else f"{value:.3e}"
