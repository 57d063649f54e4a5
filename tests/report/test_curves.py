import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdslab.report.curves import MOST_POINTS, Series, line_chart, read_metrics, share_bar

FINITE = st.floats(-1e300, 1e300, allow_nan=False)


def points_of(chart: str) -> list[list[tuple[float, float]]]:
    """Each line's points, in the chart's coordinates."""
    lines = re.findall(r'class="line s\d" d="M([^"]*)"', chart)
    return [
        [
            (float(x), float(y))
            for x, y in (point.split() for point in re.split("L|h2", line) if point)
        ]
        for line in lines
    ]


def test_a_line_goes_where_its_numbers_go():
    chart = line_chart("loss", [Series("stage1", [1, 2, 3], [0.0, 2.0, 1.0])])
    ((left, bottom), (middle, top), (right, between)) = points_of(chart)[0]
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert between == pytest.approx((bottom + top) / 2, abs=0.1)
    assert top < bottom  # rows run down


def test_values_of_several_decades_are_logarithmic():
    chart = line_chart("loss", [Series("s", [1, 2, 3], [1.0, 100.0, 10_000.0])])
    heights = [y for _, y in points_of(chart)[0]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert ">10,000<" in chart


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=50), st.lists(FINITE, max_size=3))
@example([5e-324], [])
@example([0.0, 5e-324], [])
@example([5e-324, 5.0], [])
def test_any_numbers_make_a_valid_chart(first: list[float], second: list[float]):
    series = [Series("one", [float(i + 1) for i in range(len(first))], first)]
    if second:
        series.append(
            Series("two", [float(len(first) + i + 1) for i in range(len(second))], second)
        )
    chart = line_chart("x < y & z", series)
    ElementTree.fromstring(chart)
    assert "nan" not in chart.split("aria-label")[0]
    for line in points_of(chart):
        assert all(math.isfinite(x) and 0 <= x <= 560 and 0 <= y <= 250 for x, y in line)


def test_a_long_run_is_averaged():
    count = 12_345
    chart = line_chart(
        "loss", [Series("s", [float(i) for i in range(count)], [1.0, 3.0] * 6172 + [1.0])]
    )
    (line,) = points_of(chart)
    assert len(line) <= MOST_POINTS
    heights = [y for _, y in line[:-1]]
    assert max(heights) - min(heights) < 10  # the mean of 1 and 3, nearly


def test_stages_follow_each_other_and_bad_lines_are_left_out(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text(
        "stage,step,loss\none,0,4\none,1,nan\none,2,x\ntwo,0,1\ntwo,1,inf\ntorn"
    )
    one, two = read_metrics(tmp_path / "metrics.csv", "loss")
    assert (one.name, one.steps, one.values) == ("one", [1], [4.0])
    assert (two.name, two.steps, two.values) == ("two", [4], [1.0])
    assert read_metrics(tmp_path / "nothing.csv", "loss") == []


def test_names_of_stages_are_escaped():
    chart = line_chart("loss", [Series('"><script>', [1], [1.0])])
    assert "<script" not in chart
    ElementTree.fromstring(chart)


@pytest.mark.parametrize(("share", "width"), [(0.25, "25.00%"), (2.0, "100.00%"), (-1.0, "0.00%")])
def test_a_bar_is_as_wide_as_its_share(share: float, width: str):
    (bar,) = ElementTree.fromstring(share_bar(share, "s1"))
    assert (bar.get("class"), bar.get("width")) == ("s1", width)


def test_a_stage_has_one_colour_where_another_has_no_numbers(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("stage,step,loss,gradient_norm\none,0,nan,1\ntwo,0,3,2\n")
    losses, norms = (
        read_metrics(tmp_path / "metrics.csv", column) for column in ("loss", "gradient_norm")
    )
    assert [each.colour for each in losses] == ["s1"]
    assert [each.colour for each in norms] == ["s0", "s1"]
    assert 'class="line s1"' in line_chart("Loss", losses)
