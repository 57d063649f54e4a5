"""``metrics.csv`` as line charts and shares of the time as bars, both in plain SVG.

They have classes and no colours of their own, so that a page's style suits them to light and dark.
A stage has the same class in all of them.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 28, 42
MOST_POINTS = 400  # of a line; longer ones are averaged
LEAST_DECADE = -300  # below it a tenth may be 0
SMALLEST_RANGE = 1e-300  # of values; a fraction of it may round to 0
COLOURS = 6  # series classes that the style knows


@dataclass(frozen=True)
class Series:
    """One stage's numbers.

    Attributes:
        name: of the stage.
        steps: counted through all stages.
        values: of each step, finite.
        number: of the stage in its file.
    """

    name: str
    steps: list[float]
    values: list[float]
    number: int = 0

    @property
    def colour(self) -> str:
        """The class that the style knows."""
        return f"s{self.number % COLOURS}"


def read_metrics(path: Path, column: str) -> list[Series]:
    """A column of ``metrics.csv``, stage by stage; what is no finite number is left out."""
    if not path.is_file():
        return []
    stages: dict[str, Series] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for count, line in enumerate(csv.DictReader(file), start=1):
            try:
                value = float(line[column])
            except (KeyError, TypeError, ValueError):
                continue
            name = line.get("stage") or ""
            series = stages.setdefault(name, Series(name, [], [], len(stages)))
            if math.isfinite(value):
                series.steps.append(count)
                series.values.append(value)
    return [series for series in stages.values() if series.values]


def line_chart(title: str, series: Sequence[Series]) -> Markup:
    """Lines over the steps, the stages apart by a rule; logarithmic where values span a decade."""
    values = [value for each in series for value in each.values]
    first, last = 1.0, max(max(each.steps) for each in series)
    low, high = min(values), max(values)
    if high - low < SMALLEST_RANGE:
        around = abs(high) if abs(high) > SMALLEST_RANGE else 1.0
        low, high = low - around, high + around
    logarithmic = low > 0 and high / low > 10
    ticks = _decades(low, high) if logarithmic else _round_numbers(low, high)
    bottom, top = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    margin = 0.04 * (top - bottom) or 0.5

    def x(step: float) -> str:
        share = (step - first) / max(1.0, last - first)
        return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        value = math.log10(value) if logarithmic else value
        share = (value - bottom + margin) / (top - bottom + 2 * margin)
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_described(title, series))}">',
        f'<text class="title" x="8" y="14">{escape(title)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 8}" y="{y(tick)}">{_short(tick)}</text>')
    for tick in _round_numbers(first, last):
        if first <= tick <= last and tick == int(tick):
            parts.append(f'<text class="x" x="{x(tick)}" y="{HEIGHT - 24}">{tick:,.0f}</text>')
    parts.append(f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">step</text>')
    for each in series:
        if each is not series[0]:
            parts.append(f'<path class="rule" d="M{x(each.steps[0])} {TOP}V{HEIGHT - BOTTOM}"/>')
        points = list(_averaged(each))
        path = "L".join(f"{x(step)} {y(value)}" for step, value in points)
        shape = f"M{path}" if len(points) > 1 else f"M{path}h2"
        parts.append(f'<path class="line {each.colour}" d="{shape}"/>')
    return Markup("".join([*parts, "</svg>"]))


def share_bar(share: float, colour: str) -> Markup:
    """A share of the time, in [0, 1], as a bar."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<svg class="bar" aria-hidden="true"><rect class="{}" width="{:.2f}%" height="100%"/></svg>'
    ).format(colour, width)


def _averaged(series: Series) -> Iterator[tuple[float, float]]:
    """Thins out to at most `MOST_POINTS` points, each the mean of as many steps."""
    block = math.ceil(len(series.values) / MOST_POINTS)
    for start in range(0, len(series.values), block):
        steps, values = (
            numbers[start : start + block] for numbers in (series.steps, series.values)
        )
        yield sum(steps) / len(steps), sum(values) / len(values)


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    every = max(1, math.ceil((last - first + 1) / 6))
    ticks = [10.0**k for k in range(first, last + 1, every)]
    if len(ticks) > 2 or first < LEAST_DECADE:
        return ticks
    between = (m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5))
    return [tick for tick in between if low <= tick <= high]


def _round_numbers(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2 or 5 × 10^k within a range."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    return [
        k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")


def _described(title: str, series: Sequence[Series]) -> str:
    ranges = (
        f"{each.name} from {each.values[0]:.3g} to {each.values[-1]:.3g} in "
        f"{len(each.values)} steps"
        for each in series
    )
    return f"{title}: {'; '.join(ranges)}"
