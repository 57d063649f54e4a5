from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.report.html_page import html_of


def test_headings_tables_and_notes():
    table = {"columns": ["a", "b"], "rows": [["x | y", "1.5"], ["z", ""]]}
    html = html_of(["About **this** | that.\n", table, "## Part\n\nNear x*.\n"])
    assert "<h3>Part</h3>" in html
    assert "<tr><td>x | y</td><td class=number>1.5</td></tr>" in html
    assert "<tr><td>z</td><td class=number></td></tr>" in html
    assert '<p class="note">About **this** | that.</p>' in html
    assert '<p class="note">Near x*.</p>' in html


def test_a_row_may_have_more_or_fewer_cells_than_the_head():
    html = html_of([{"columns": ["a", "b"], "rows": [["1"], ["1", "2", "3"]]}])
    assert html.count("<td") == 4


@pytest.mark.parametrize(
    "part", [None, 1, ["a"], {}, {"columns": "ab", "rows": []}, {"columns": [], "rows": 3}]
)
def test_what_is_neither_text_nor_a_table_is_left_out(part: Any):
    assert html_of([part, "after"]) == '<p class="note">after</p>'


@settings(deadline=None)
@given(st.text(st.sampled_from("|-\\\n #<>&\"'a1:"), max_size=200))
def test_no_text_becomes_markup(text: str):
    html = html_of([text, {"columns": [text], "rows": [[text, text], [text]]}])
    tags = ("p", "h3", "div", "table", "thead", "tbody", "tr", "th", "td")
    for tag in tags:
        html = html.replace(f"</{tag}>", "").replace(f"<{tag}>", "")
    for opening in ('<p class="note">', "<td class=number>", "<th class=number>"):
        html = html.replace(opening, "")
    html = html.replace('<div class="scroll" tabindex="0" role="region" aria-label="table">', "")
    assert "<" not in html
