"""A study's ``NAME.md`` as HTML: headings, pipe tables and paragraphs, all else as it stands."""

import re

from markupsafe import Markup, escape

_RULE = re.compile(r"\|(\s*:?-{3,}:?\s*\|)+")


def html_of(markdown: str) -> Markup:
    """Converts what studies write; markup in the text is shown, not obeyed."""
    blocks, lines = [], markdown.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        if at + 1 < len(lines) and line.startswith("|") and _RULE.fullmatch(lines[at + 1].strip()):
            end = at + 2
            while end < len(lines) and lines[end].lstrip().startswith("|"):
                end += 1
            blocks.append(_table(_cells(line), [_cells(row) for row in lines[at + 2 : end]]))
            at = end
            continue
        if line.startswith("#"):
            # The page has a heading of its own above.
            if line.startswith("##"):
                blocks.append(Markup("<h3>{}</h3>").format(_plain(line.lstrip("# "))))
        elif line:
            blocks.append(Markup('<p class="note">{}</p>').format(_plain(line)))
        at += 1
    return Markup("\n").join(blocks)


def _table(head: list[str], rows: list[list[str]]) -> Markup:
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


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", inner)]


def _plain(text: str) -> str:
    """Without Markdown's escapes."""
    return re.sub(r"\\([\\*_|`#])", r"\1", text)


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789-+−≤<" or cell in ("inf", "nan")
