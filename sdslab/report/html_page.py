"""Templates and a study's tables to self-contained pages: what comes from files is escaped."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

HERE = Path(__file__).parent


def render_page(template: str, *, script: str = "", **values: Any) -> str:
    """Fills a template with values, each of which is escaped unless it is `Markup`.

    A policy in the page lets it run no script but ``script`` and ask no network for anything.

    Args:
        template: a file of ``templates/``.
        script: JavaScript that stands inline, for the template's ``script``.
        values: for the template.
    """
    style = (HERE / "templates" / "page.css").read_text(encoding="utf-8")
    allowed = f"script-src {_digest(script)}; " if script else ""
    policy = (
        f"default-src 'none'; {allowed}style-src {_digest(style)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(policy=policy, style=Markup(style), script=Markup(script), **values)
    )


@cache
def viewer_script() -> str:
    """The 3D viewer with three.js, as ``viewer/build.mjs`` bundles it."""
    return (HERE / "viewer.js").read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def html_of(parts: list[Any]) -> Markup:
    """A study's texts and tables; markup in them is shown, not obeyed.

    Args:
        parts: `sdslab.runs.table.Page.content` as JSON gives it back; what is neither is left out.
    """
    blocks = []
    for part in parts:
        match part:
            case {"columns": list(columns), "rows": list(rows)}:
                blocks.append(_table(columns, [row for row in rows if isinstance(row, list)]))
            case str():
                blocks += [_line(line.strip()) for line in part.splitlines() if line.strip()]
    return Markup("\n").join(blocks)


def _line(line: str) -> Markup:
    if line.startswith("#"):
        return Markup("<h3>{}</h3>").format(line.lstrip("# "))
    return Markup('<p class="note">{}</p>').format(line)


def _table(head: list[Any], rows: list[list[Any]]) -> Markup:
    head, *rows = ([str(cell) for cell in row] for row in (head, *rows))
    numeric = [
        all(_is_number(row[column]) for row in rows if column < len(row)) and bool(rows)
        for column in range(len(head))
    ]

    def line(tag: str, cells: list[str]) -> str:
        return "<tr>{}</tr>".format(
            "".join(
                f"<{tag}{' class=number' if column < len(numeric) and numeric[column] else ''}>"
                f"{escape(cell)}</{tag}>"
                for column, cell in enumerate(cells)
            )
        )

    body = "".join(line("td", row) for row in rows)
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table></div>"
    )


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789-+−≤<" or cell in ("inf", "nan")
