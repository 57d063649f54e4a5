"""The names and words of a report: its numbers, settings and times."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


Shown = Callable[[Any], str]

PSNR = "Peak signal-to-noise ratio: above 30 dB differences are hard to see, above 40 dB invisible"
SCORES = ("scores.", "view_psnr_db", "white_room_psnr_db", "map_psnr_db.")


class Number(NamedTuple):
    """A measured number; `SCORES` begin the names of those beside a photograph or a target.

    Attributes:
        name: its key in ``metrics``, nested keys joined by dots.
        label: what it is.
        value: as text, with its unit.
        hint: what a good value is; empty where that needs no words.
    """

    name: str
    label: str
    value: str
    hint: str


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value in (0, 1) or value > 1 else f"{100 * value:.3g} %"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _decibels(value: float | str) -> str:
    return "exact" if value == "inf" else f"{value:.2f} dB"


NAMES: dict[str, tuple[str, Shown, str]] = {
    "scores.sliced_wasserstein": (
        "Patch distance",
        _three_digits,
        "Sliced Wasserstein distance between small patches of the texture and of the photograph, "
        "in pixel values from 0 to 1: the smaller, the more alike",
    ),
    "scores.crop": (
        "Patch distance within the photograph",
        _three_digits,
        "The same between the photograph's middle and the whole of it: about the best to hope for",
    ),
    "scores.gabor": (
        "Gabor distance to the photograph",
        _three_digits,
        "Of the strengths of details of each size and direction, and of which ones come together: "
        "0 is alike, noise or blur has .1 and more",
    ),
    "scores.gabor_crop": (
        "Gabor distance within the photograph",
        _three_digits,
        "The same between the photograph's middle and the whole of it",
    ),
    "scores.contrast": (
        "Contrast",
        _percent,
        "Of the photograph's: near 100 % is alike, far below is flat",
    ),
    "scores.gradient_energy": (
        "Sharpness",
        _percent,
        "Gradient energy over the photograph's: near 100 % is alike, far below is blurred",
    ),
    "scores.seam_jump": (
        "Jump at seams",
        lambda value: f"{value:.2f} ×",
        "Difference of colours across the atlas's seams over that across other edges: up to 1.1 "
        "no seam shows",
    ),
    "view_psnr_db": ("New views", _decibels, f"Pictures from views held out. {PSNR}"),
    "white_room_psnr_db": (
        "New views in white light",
        _decibels,
        "The same under a light that the run did not use",
    ),
    "steps": ("Steps", shown, ""),
    "optimization_seconds": ("Optimisation", seconds_text, ""),
    "seen_share": (
        "Texels seen",
        _percent,
        "By a view of the last stage; others take the colours of the nearest that was",
    ),
    "seen_texels": ("Texels seen", shown, "By a view of the run"),
    "covered_texels": ("Texels that faces cover", shown, ""),
    "pictures": ("Pictures of new views", shown, ""),
}
LAST_WORDS: dict[str, tuple[str, Shown]] = {
    "steps": ("Steps", shown),
    "skipped": ("Skipped steps", shown),
    "seconds": ("Optimisation", seconds_text),
}


def key_numbers(record: Mapping[str, Any]) -> list[Number]:
    """The numbers of a record's ``metrics``; what comes first matters most."""
    metrics = flat(record["metrics"])
    known = {name: value for name, value in metrics.items() if _is_number(value)}
    order = {name: place for place, name in enumerate(NAMES)}
    ordered = sorted(known, key=lambda name: order.get(name, len(order)))
    return [_named_number(name, known[name]) for name in ordered]


def origins(record: Mapping[str, Any]) -> dict[str, str]:
    """Where each map of a texture comes from, for people; empty where it is not recorded."""
    material = record["metrics"].get("material")
    if not isinstance(material, Mapping):
        return {}
    words = {"exemplar": "from the photograph"}
    return {
        name: words.get(origin, origin)
        for name, origin in material.items()
        if isinstance(origin, str)
    }


def _named_number(name: str, value: Any) -> Number:
    if name in NAMES:
        label, show, hint = NAMES[name]
        return Number(name, label, _text(show, value), hint)
    first, _, last = name.rpartition(".")
    if first == "map_psnr_db":
        label = "All maps" if last == "all" else f"{last.capitalize()} map"
        return Number(name, label, _text(_decibels, value), "Over the texels seen")
    if first and last in LAST_WORDS:
        label, show = LAST_WORDS[last]
        return Number(name, f"{label}, {stage_label(first)}", _text(show, value), "")
    return Number(name, title_of(name), shown(value), "")


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in (
        "inf",
        "-inf",
    )


def _text(show: Shown, value: Any) -> str:
    """Formats a value by ``show``, or plainly where it takes no such value (JSON's "inf")."""
    try:
        return show(value)
    except (TypeError, ValueError):
        return shown(value)


STAGES = {"stage1": "stage I", "stage2": "stage II"}


def stage_label(name: str) -> str:
    """A stage's or a part's name for people: "stage1-fine" becomes "stage I, fine"."""
    first, _, rest = name.partition("-")
    if first not in STAGES:
        return name
    return f"{STAGES[first]}, {rest}" if rest else STAGES[first]
