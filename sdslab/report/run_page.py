"""``report.html`` of a run folder: what came out, how it went, and how to make it again."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from sdslab.atomic_write import atomic_write
from sdslab.errors import UserError, one_line
from sdslab.report import curves, settings_rows
from sdslab.report.embedded_pictures import data_uri, read_picture
from sdslab.report.html_page import render_page, viewer_script
from sdslab.report.markdown_tables import html_of
from sdslab.report.view_data import view_of
from sdslab.run_schema import read_run

PAGE_NAME = "report.html"
LARGEST_TABLE = 2**20  # bytes of a study's Markdown

MAPS = ("albedo", "roughness", "metallic", "normal")
KINDS = {
    "exemplar": "like a photograph",
    "deepfloyd": "from a prompt, DeepFloyd IF",
    "stable-diffusion": "from a prompt, Stable Diffusion",
    "degenerate": "recovery of a known material",
}


def write_report(folder: Path) -> Path:
    """Makes the page of a texture run or of a study.

    Args:
        folder: with the ``run.json``. Of a study NAME it is ``OUT/NAME``, and the pictures and
            tables are ``OUT/NAME.*``.

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
    with atomic_write(path) as temporary:
        temporary.write_text(of_program(folder, record), encoding="utf-8", newline="\n")
    return path


def texture_page(folder: Path, record: dict[str, Any]) -> str:
    """The page of a texture run, as HTML."""
    view = view_of(folder, record)
    data = None if isinstance(view, str) else view.data
    pictures = {name: read_picture(folder / "maps" / f"{name}.png") for name in MAPS}
    front, sheet = read_picture(folder / "front.png"), read_picture(folder / "contact_sheet.png")
    logs = {
        title: curves.read_metrics(folder / "metrics.csv", column)
        for title, column in (("loss", "loss"), ("gradient norm", "gradient_norm"))
    }
    return render_page(
        "texture.html",
        script=viewer_script() if data else "",
        title=title_of(record),
        kind=KINDS.get(record["kind"], record["kind"]),
        view=None if isinstance(view, str) else view,
        view_note=view if isinstance(view, str) else view.note,
        front=front and data_uri(front, 768, 90),
        maps=[(name, data_uri(p, 512, 88), p.size) for name, p in pictures.items() if p],
        contact_sheet=sheet and data_uri(sheet, 1400, 88),
        charts=[curves.line_chart(title, series) for title, series in logs.items() if series],
        stages=[series.name for series in logs["loss"]],
        **_shared(record),
    )


def study_page(folder: Path, record: dict[str, Any]) -> str:
    """The page of a study, as HTML."""
    markdown = folder.parent / f"{folder.name}.md"
    table = Markup("")
    if markdown.is_file() and markdown.stat().st_size <= LARGEST_TABLE:
        table = html_of(markdown.read_text(encoding="utf-8", errors="replace"))
    return render_page(
        "study.html",
        title=title_of(record),
        kind=f"{record['kind']} study",
        figures=[
            (caption, data_uri(figure, 2400, 90), figure.size)
            for caption, figure in study_figures(folder)
        ],
        table=table,
        **_shared(record),
    )


def study_figures(folder: Path) -> list[tuple[str, Image.Image]]:
    """(caption, picture) of ``NAME.png`` and then of each ``NAME.WHAT.png``."""
    found = [("", read_picture(folder.parent / f"{folder.name}.png"))]
    for path in sorted(folder.parent.glob("*.png")):
        what = path.name.removesuffix(".png").removeprefix(f"{folder.name}.")
        if path.name == f"{folder.name}.{what}.png":
            found.append((what, read_picture(path)))
    return [(caption, picture) for caption, picture in found if picture is not None]


def title_of(record: Mapping[str, Any]) -> str:
    """What a run was about, in a few words."""
    config = record["config"]
    subject = config.get("subject")
    if not isinstance(subject, dict):
        return str(config.get("title") or config.get("name") or "Study")
    mesh = Path(str(subject.get("mesh", "mesh"))).stem
    if subject.get("prompt"):
        return f"{mesh}: “{subject['prompt']}”"
    if subject.get("target"):
        return f"{mesh}, {Path(str(subject['target'])).stem} recovered"
    exemplars = subject.get("exemplar")
    if not isinstance(exemplars, list) or not exemplars:
        exemplars = ["gravel"]
    return f"{mesh} like {', '.join(Path(str(name)).stem for name in exemplars)}"


def key_numbers(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The metrics, flat and named for people."""
    return [
        (settings_rows.title_of(name), settings_rows.shown(value))
        for name, value in settings_rows.flat(record["metrics"]).items()
        if isinstance(value, int | float | str)
    ]


def _shared(record: dict[str, Any]) -> dict[str, Any]:
    """What the pages of textures and studies both show."""
    times = _split(record["seconds"])
    return {
        "record": record,
        "started": _date(record["started"]),
        "numbers": key_numbers(record) if record["program"] == "texture" else [],
        "times": [(name, settings_rows.seconds_text(value)) for name, value in times.items()],
        "total": settings_rows.seconds_text(_seconds(record["seconds"].get("total")) or 0.0),
        "time_bar": curves.stacked_bar(times) if times else "",
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
    parts = {name: value for name, value in known.items() if value is not None}
    inside = sum(value for name, value in parts.items() if name != "loading")  # it comes before
    if total is not None and total - inside > 0.05:
        parts["other"] = total - inside
    return parts


def _seconds(value: Any) -> float | None:
    """A duration of less than an age; None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None


def _sections(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration, a section for each of its tables."""
    details = {name: value for name, value in record["details"].items() if name != "materials"}
    sections: dict[str, dict[str, str]] = {}
    for path, value in settings_rows.flat({**record["config"], **details}).items():
        section, _, name = path.partition(".")
        if not name:
            section, name = "general", section
        rows = sections.setdefault(section.replace("_", " "), {})
        rows[name.replace("_", " ")] = settings_rows.shown(value)
    return [(section, list(rows.items())) for section, rows in sections.items()]


def _software(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    commit = (record["commit"] or "not a checkout")[:16]
    if record["dirty"]:
        commit += " with changes"
    return [
        ("sdslab", record["sdslab"]),
        ("commit", commit),
        ("python", record["python"]),
        *((name, settings_rows.shown(version)) for name, version in record["packages"].items()),
        ("device", record["device"]),
        ("threads", str(record["threads"])),
        ("system", record["system"]),
    ]


def _date(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return text
