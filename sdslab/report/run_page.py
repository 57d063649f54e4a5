"""``report.html`` of a run folder: what came out, how it went, and how to make it again."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import write_text
from sdslab.report import curves, wording
from sdslab.report.html_page import html_of, render_page, viewer_script
from sdslab.report.result_files import (
    data_uri,
    downloads_of_study,
    downloads_of_texture,
    link_of,
    read_picture,
)
from sdslab.report.view_data import view_of
from sdslab.runs.schema import read_run
from sdslab.shell.named_inputs import stem_of

PAGE_NAME = "report.html"
LARGEST_TABLE = 2**24  # bytes of a study's JSON
MOST_PHOTOGRAPHS = 8  # of a page
DEFAULT_EXEMPLAR = "gravel"  # of a run that names none
LEAST_OTHER = 0.02  # of the time; less is rounding

MAPS = ("albedo", "roughness", "metallic", "normal")
# Parts of the time that are no stage: the first comes before the stages, the others after them.
TIMES = {
    "loading": "loading",
    "previews": "previews",
    "measuring": "measuring",
    "writing": "writing the results",
    "other": "preparing stages, checkpoints and the rest",
}
KINDS = {
    "exemplar": "like a photograph",
    "deepfloyd": "from a prompt, DeepFloyd IF",
    "stable-diffusion": "from a prompt, Stable Diffusion",
    "degenerate": "recovery of a known material",
    "none": "kept as it starts",
}


def write_report(folder: Path, index: Path | None = None) -> Path:
    """Makes the page of a texture run or of a study.

    Args:
        folder: with the ``run.json``. Of a study NAME it is ``OUT/NAME``, and the pictures and
            tables are ``OUT/NAME.*``.
        index: a page that compares the run with others, to be linked to.

    Returns:
        The page's path.

    Raises:
        UserError: ``run.json`` or another file cannot be read, or the page cannot be written.
    """
    record = read_run(folder / "run.json")
    of_program = {"texture": texture_page, "study": study_page}.get(record["program"])
    if of_program is None:
        raise UserError(
            f"{one_line(str(folder / 'run.json'))!r}: 'program' must be texture or study, got "
            f"{one_line(record['program'])[:60]!r}; read it with the version that wrote it"
        )
    path = folder / PAGE_NAME
    text = of_program(folder, record, None if index is None else relative_link(index, folder))
    write_text(path, text)
    return path


def texture_page(folder: Path, record: dict[str, Any], index: str | None = None) -> str:
    """The page of a texture run, as HTML."""
    view = view_of(folder, record)
    data = None if isinstance(view, str) else view.data
    pictures = {name: read_picture(folder / "maps" / f"{name}.png") for name in MAPS}
    sheet = read_picture(folder / "contact_sheet.png")
    still, still_words = still_of(folder)
    logs = {
        title: curves.read_metrics(folder / "metrics.csv", column)
        for title, column in (("Loss", "loss"), ("Gradient norm", "gradient_norm"))
    }
    numbers = wording.key_numbers(record)
    return render_page(
        "texture.html",
        script=viewer_script() if data else "",
        title=title_of(record),
        kind=KINDS.get(record["kind"], record["kind"]),
        view=None if isinstance(view, str) else view,
        view_note=view if isinstance(view, str) else view.note,
        still=still and data_uri(still, 768, 90),
        still_words=still_words,
        inputs=input_pictures(folder, record),
        scores=[number for number in numbers if number.name.startswith(wording.SCORES)],
        numbers=[number for number in numbers if not number.name.startswith(wording.SCORES)],
        maps=[
            (name, data_uri(picture, 512, 88), picture.size)
            for name, picture in pictures.items()
            if picture
        ],
        origins=wording.origins(record),
        contact_sheet=sheet and data_uri(sheet, 1400, 88),
        charts=[curves.line_chart(title, series) for title, series in logs.items() if series],
        stages=[(wording.stage_label(each.name), each.colour) for each in logs["Loss"]],
        downloads=downloads_of_texture(folder),
        **_shared(record, {each.name: each.colour for each in logs["Loss"]}, index),
    )


def study_page(folder: Path, record: dict[str, Any], index: str | None = None) -> str:
    """The page of a study, as HTML."""
    table = html_of(_study_tables(folder.parent / f"{folder.name}.json"))
    return render_page(
        "study.html",
        title=title_of(record),
        kind=f"{record['kind'].replace('_', ' ')} study",
        figures=[
            (caption, data_uri(figure, 2400, 90), figure.size, link_of(path, folder))
            for caption, figure, path in study_figures(folder)
        ],
        table=table,
        downloads=downloads_of_study(folder),
        **_shared(record, {}, index),
    )


def _study_tables(path: Path) -> list[Any]:
    """The page of a study's JSON; empty where there is none that can be read."""
    try:
        if path.stat().st_size > LARGEST_TABLE:
            return []
        page = json.loads(path.read_bytes())["page"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return page if isinstance(page, list) else []


def study_figures(folder: Path) -> list[tuple[str, Image.Image, Path]]:
    """(caption, picture, file) of ``NAME.png`` and then of each ``NAME.WHAT.png``."""
    first = folder.parent / f"{folder.name}.png"
    found = [("", read_picture(first), first)]
    for path in sorted(folder.parent.glob("*.png")):
        what = path.name.removesuffix(".png").removeprefix(f"{folder.name}.")
        if path.name == f"{folder.name}.{what}.png":
            found.append((what.replace("_", " "), read_picture(path), path))
    return [(caption, picture, path) for caption, picture, path in found if picture is not None]


def still_of(folder: Path) -> tuple[Image.Image | None, str]:
    """A picture of a texture run, and what it shows; of one that was cut off, what there is."""
    front = read_picture(folder / "front.png")
    if front is not None:
        return front, "The result from the front"
    previews = sorted(folder.glob("previews/*.png"), key=lambda path: (path.stat().st_mtime, path))
    if previews:
        return read_picture(previews[-1]), f"The last preview, {previews[-1].stem}"
    for path in sorted(folder.glob("inputs/*.png")):
        return read_picture(path), "The input"
    return None, ""


def input_pictures(folder: Path, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(caption, data URI) of the photographs, or of the target."""
    subject = record["config"].get("subject")
    named = subject.get("exemplar") if isinstance(subject, dict) else None
    names = [stem_of(str(name)) for name in named] if isinstance(named, list) else []
    found = []
    for number in range(MOST_PHOTOGRAPHS):
        picture = read_picture(folder / "inputs" / f"photograph-{number + 1}.png")
        if picture is None:
            break
        name = names[number] if number < len(names) else DEFAULT_EXEMPLAR
        found.append((f"The photograph: {name}", data_uri(picture, 320, 85)))
    target = read_picture(folder / "inputs" / "target.png")
    if target is not None:
        found.append(("The target from the front", data_uri(target, 320, 85)))
    return found


def relative_link(path: Path, beside: Path) -> str:
    """The address of a file for a page in the folder ``beside``."""
    link = os.path.relpath(path.resolve(), beside.resolve()).replace(os.sep, "/")
    return quote(os.fsencode(link if link.startswith("..") else f"./{link}"))


def title_of(record: Mapping[str, Any]) -> str:
    """What a run was about, in a few words."""
    config = record["config"]
    subject = config.get("subject")
    if not isinstance(subject, dict):
        return str(config.get("title") or config.get("name") or "Study")
    mesh = stem_of(str(subject.get("mesh", "mesh")))
    if subject.get("prompt"):
        return f"{mesh}: “{subject['prompt']}”"
    if subject.get("target"):
        return f"{mesh}, {stem_of(str(subject['target']))} recovered"
    exemplars = subject.get("exemplar")
    if not isinstance(exemplars, list) or not exemplars:
        exemplars = [DEFAULT_EXEMPLAR]
    return f"{mesh} like {', '.join(stem_of(str(name)) for name in exemplars)}"


def _shared(
    record: dict[str, Any], colours: Mapping[str, str], index: str | None
) -> dict[str, Any]:
    """What the pages of textures and studies both show."""
    parts = _split(record["seconds"])
    longest = max(parts.values(), default=0.0) or 1.0
    total, last = (_seconds(record["seconds"].get(key)) for key in ("total", "last_process"))
    return {
        "record": record,
        "index": index,
        "started": _date(record["started"]),
        "times": [
            (
                TIMES.get(name, wording.stage_label(name)),
                wording.seconds_text(value),
                curves.share_bar(value / longest, colours.get(name, "rest")),
            )
            for name, value in parts.items()
        ],
        "total": wording.seconds_text(total or 0.0),
        "last_process": "" if last is None else wording.seconds_text(last),
        "settings": _sections(record),
        "software": _software(record),
        "peak": ", ".join(
            f"{value:,.0f} MB" + (" of the GPU" if name == "gpu" else "")
            for name, value in record["peak_memory_mb"].items()
            if isinstance(value, float)
        ),
    }


def _split(seconds: Mapping[str, Any]) -> dict[str, float]:
    """The parts of the time, and as "other" what they leave of the total."""
    known = {name: _seconds(value) for name, value in seconds.items()}
    total = known.pop("total", None)
    last = known.pop("last_process", None)
    parts = {name: value for name, value in known.items() if value is not None}
    inside = sum(value for name, value in parts.items() if name != "loading")  # it comes before
    if total is not None and last is None and total - inside > LEAST_OTHER * total:
        parts["other"] = total - inside
    # In the order in which they happen.
    places = {name: place or -1 for place, name in enumerate(TIMES)}
    return dict(sorted(parts.items(), key=lambda part: places.get(part[0], 0)))


def _seconds(value: Any) -> float | None:
    """A duration of less than an age; None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None


def _sections(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration, a section for each of its tables."""
    details = {name: value for name, value in record["details"].items() if name != "materials"}
    sections: dict[str, dict[str, str]] = {}
    for path, value in wording.flat({**record["config"], **details}).items():
        section, _, name = path.partition(".")
        if not name:
            section, name = "general", section
        rows = sections.setdefault(section.replace("_", " "), {})
        rows[name.replace("_", " ")] = wording.shown(value)
    return [(section, list(rows.items())) for section, rows in sections.items()]


def _software(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    commit = (record["commit"] or "not a checkout")[: wording.SHORT_HASH]
    if record["dirty"]:
        commit += " with changes"
    return [
        ("sdslab", record["sdslab"]),
        ("commit", commit),
        ("python", record["python"]),
        *((name, wording.shown(version)) for name, version in record["packages"].items()),
        ("device", record["device"]),
        ("threads", str(record["threads"])),
        ("system", record["system"]),
    ]


def _date(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return text
