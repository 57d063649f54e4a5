"""Templates to self-contained pages: what comes from files is escaped, and nothing is loaded."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
