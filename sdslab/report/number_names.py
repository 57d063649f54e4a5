"""What a run measured, with names, units and the meaning of its numbers for people."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sdslab.report import settings_rows

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
    "steps": ("Steps", settings_rows.shown, ""),
    "optimization_seconds": ("Optimisation", settings_rows.seconds_text, ""),
    "seen_share": (
        "Texels seen",
        _percent,
        "By a view of the last stage; others take the colours of the nearest that was",
    ),
    "seen_texels": ("Texels seen", settings_rows.shown, "By a view of the run"),
    "covered_texels": ("Texels that faces cover", settings_rows.shown, ""),
    "pictures": ("Pictures of new views", settings_rows.shown, ""),
}
LAST_WORDS: dict[str, tuple[str, Shown]] = {
    "steps": ("Steps", settings_rows.shown),
    "skipped": ("Skipped steps", settings_rows.shown),
    "seconds": ("Optimisation", settings_rows.seconds_text),
}


def key_numbers(record: Mapping[str, Any]) -> list[Number]:
    """The numbers of a record's ``metrics``; what comes first matters most."""
    flat = settings_rows.flat(record["metrics"])
    known = {name: value for name, value in flat.items() if _is_number(value)}
    order = {name: place for place, name in enumerate(NAMES)}
    ordered = sorted(known, key=lambda name: order.get(name, len(order)))
    return [_number(name, known[name]) for name in ordered]


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


def _number(name: str, value: Any) -> Number:
    if name in NAMES:
        label, shown, hint = NAMES[name]
        return Number(name, label, _text(shown, value), hint)
    first, _, last = name.rpartition(".")
    if first == "map_psnr_db":
        label = "All maps" if last == "all" else f"{last.capitalize()} map"
        return Number(name, label, _text(_decibels, value), "Over the texels seen")
    if first and last in LAST_WORDS:
        label, shown = LAST_WORDS[last]
        return Number(name, f"{label}, {stage_label(first)}", _text(shown, value), "")
    return Number(name, settings_rows.title_of(name), settings_rows.shown(value), "")


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in (
        "inf",
        "-inf",
    )


def _text(shown: Shown, value: Any) -> str:
    """Formats a value by ``shown``, or plainly where it takes no such value (JSON's "inf")."""
    try:
        return shown(value)
    except (TypeError, ValueError):
        return settings_rows.shown(value)


STAGES = {"stage1": "stage I", "stage2": "stage II"}


def stage_label(name: str) -> str:
    """A stage's or a part's name for people: "stage1-fine" becomes "stage I, fine"."""
    first, _, rest = name.partition("-")
    if first not in STAGES:
        return name
    return f"{STAGES[first]}, {rest}" if rest else STAGES[first]
