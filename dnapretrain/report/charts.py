"""Charts as inline SVG: a few hundred points each, whatever the length of the run, with the numbers under the pointer.

Colours are those of Okabe and Ito, which colour-blind people tell apart; lines differ in dashes too where they are many.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dnapretrain.report.tables import short_count

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3d8fc0", "#5b5b5b")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
POINTS = 600
"""Points of a line; longer ones are means of equal parts, with a band from their lowest to their highest value."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 36
"""Margins in pixels."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: Values
    y: Values
    color: str
    dash: str = ""
    width: float = 2.0
    """0: the band alone, without the line."""
    note: str = ""
    """Stands behind the name in the legend."""
    marks: bool = False
    """A dot at each point, and no thinning."""
    band: bool = False
    """A band behind the line from lowest to highest value of each part."""


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name at the right."""

    name: str
    y: float
    dash: str = "5 4"
    color: str = "#3a4551"


@dataclass(frozen=True)
class Chart:
    """What one picture shows."""

    title: str
    lines: Sequence[Line]
    x_label: str
    width: int = 960
    height: int = 380
    levels: Sequence[Level] = ()
    marks: Sequence[tuple[float, str]] = ()
    """Vertical lines: place and what happened there."""
    log_scale: bool = False
    y_range: tuple[float, float] | None = None
    digits: int = 4
    """Significant digits under the pointer."""
    ticks: Sequence[float] = field(default=())


def color_of(number: int) -> str:
    """Of the n-th line."""
    return COLORS[number % len(COLORS)]


def dash_of(number: int) -> str:
    """Of the n-th line: solid until the colours are used up."""
    return DASHES[number // len(COLORS) % len(DASHES)]


def thinned(x: Values, y: Values, points: int = POINTS) -> tuple[Values, Values, Values, Values]:
    """x, mean, lowest and highest finite y of about `points` equal parts; parts without a finite value are left out."""
    size = max(1, -(-len(x) // points))
    starts = np.arange(0, len(x), size)
    known = np.isfinite(y)
    counts = np.add.reduceat(known.astype(np.int64), starts) if len(x) else np.zeros(0, np.int64)
    sums = np.add.reduceat(np.where(known, y, 0.0), starts) if len(x) else np.zeros(0)
    low = np.minimum.reduceat(np.where(known, y, np.inf), starts) if len(x) else np.zeros(0)
    high = np.maximum.reduceat(np.where(known, y, -np.inf), starts) if len(x) else np.zeros(0)
    kept = counts > 0
    middle = x[np.minimum(starts + size // 2, len(x) - 1)] if len(x) else x
    return middle[kept], sums[kept] / counts[kept], low[kept], high[kept]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * size for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(chart: Chart) -> str:
    """The chart as `<figure>` with an SVG."""
    scale = _Scale.of(chart)
    parts = [_axes(chart, scale)]
    shown = []
    for line in chart.lines:
        x, y, low, high = (line.x, line.y, line.y, line.y) if line.marks else thinned(line.x, line.y)
        if not len(x):
            continue
        if line.band and len(line.x) > 1:
            edge = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
            parts.append(f'<polygon class="band" fill="{line.color}" points="{scale.points(edge)}"/>')
        if not line.width:
            if np.array_equal(low, high):  # nothing to be thinned: a band has no height
                pairs = list(zip(x, y, strict=True))
                parts.append(f'<polyline class="line raw" stroke="{line.color}" points="{scale.points(pairs)}"/>')
            continue
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        style = f'stroke="{line.color}" stroke-width="{line.width}"{dash}'
        parts.append(f'<polyline class="line" {style} points="{scale.points(list(zip(x, y, strict=True)))}"/>')
        if line.marks:
            parts += [
                f'<circle cx="{scale.x(a):.1f}" cy="{scale.y(b):.1f}" r="3.2" fill="{line.color}"/>'
                for a, b in zip(x, y, strict=True)
                if scale.shows(b)
            ]
        shown.append({"n": line.name, "c": line.color, "x": _short(x), "y": _short(y, chart.digits)})
    parts.append(_levels(chart, scale))
    data = {"l": LEFT, "w": chart.width - LEFT - RIGHT, "a": scale.low_x, "b": scale.high_x, "s": shown, "x": chart.x_label}
    label = html.escape(f"{chart.title}: {', '.join(line.name for line in chart.lines)}", quote=True)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{label}">'
        f'<clipPath id="{scale.clip}"><rect x="{LEFT}" y="{TOP - 4}" width="{chart.width - LEFT - RIGHT + 5}" '
        f'height="{chart.height - TOP - BOTTOM + 4}"/></clipPath>{parts[0]}'
        f'<g clip-path="url(#{scale.clip})">{"".join(parts[1:-1])}</g>{parts[-1]}'
        f'<line class="pointer" y1="{TOP}" y2="{chart.height - BOTTOM}"/></svg>'
        f'<script type="application/json">{json.dumps(data).replace("<", chr(92) + "u003c")}</script></figure>'
    )


def legend(lines: Sequence[Line]) -> str:
    """Names beside what their lines look like."""
    keys = []
    for line in lines:
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        dot = f'<circle cx="13" cy="6" r="3.2" fill="{line.color}"/>' if line.marks else ""
        swatch = f'<line x1="1" x2="25" y1="6" y2="6" stroke="{line.color}" stroke-width="2.4"{dash}/>{dot}'
        keys.append(
            f'<span class="key"><svg width="26" height="12" aria-hidden="true">{swatch}</svg>{html.escape(line.name + line.note)}</span>'
        )
    return f'<div class="legend">{"".join(keys)}</div>'


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    chart: Chart

    @classmethod
    def of(cls, chart: Chart) -> _Scale:
        x = np.concatenate([np.zeros(1), *(line.x for line in chart.lines)])
        high_x = float(x.max()) or 1.0
        if chart.y_range is not None:
            return cls(0.0, high_x, *chart.y_range, chart)
        y = np.concatenate([*(line.y for line in chart.lines), np.array([level.y for level in chart.levels], float)])
        y = y[np.isfinite(y) & (y > 0 if chart.log_scale else True)]
        if not len(y):
            return cls(0.0, high_x, 0.1 if chart.log_scale else 0.0, 1.0, chart)
        low, high = float(y.min()), float(y.max())
        if chart.log_scale:
            return cls(0.0, high_x, low / 1.15, high * 1.15, chart)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(0.0, high_x, 0.0 if 0 <= low < 0.4 * high else low - margin, high + margin, chart)

    @property
    def clip(self) -> str:
        return f"clip{abs(hash((self.chart.title, self.low_y, self.high_y, self.high_x))) % 10**9}"

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (self.chart.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.low_y, self.high_y
        if self.chart.log_scale:
            value, low, high = math.log(max(value, low / 100)), math.log(low), math.log(high)
        return self.chart.height - BOTTOM - (value - low) / (high - low) * (self.chart.height - TOP - BOTTOM)

    def shows(self, value: float) -> bool:
        return self.low_y <= value <= self.high_y

    def points(self, pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(a):.1f},{min(max(self.y(b), -2000), 4000):.1f}" for a, b in pairs)


def _axes(chart: Chart, scale: _Scale) -> str:
    parts = []
    bottom = chart.height - BOTTOM
    ticks = _y_ticks(chart, scale)
    for value, name in zip(ticks, _tick_names(ticks, chart.log_scale), strict=True):
        at = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{chart.width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{name}</text>')
    for value in nice_ticks(scale.low_x, scale.high_x, 6 if chart.width > 600 else 4):
        anchor = "end" if scale.x(value) > chart.width - RIGHT - 14 else "middle"
        parts.append(f'<text class="tick" x="{scale.x(value):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{short_count(value)}</text>')
    for at, what in chart.marks:
        parts.append(
            f'<line class="mark" x1="{scale.x(at):.1f}" x2="{scale.x(at):.1f}" y1="{TOP}" y2="{bottom}">'
            f"<title>{html.escape(what)}</title></line>"
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{chart.width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = LEFT + (chart.width - LEFT - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{chart.height - 3}" text-anchor="middle">{html.escape(chart.x_label)}</text>')
    return "".join(parts)


def _y_ticks(chart: Chart, scale: _Scale) -> list[float]:
    if not chart.log_scale:
        return nice_ticks(scale.low_y, scale.high_y)
    powers = range(math.floor(math.log10(scale.low_y)), math.ceil(math.log10(scale.high_y)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5)
    return [value for power in powers for factor in factors if scale.shows(value := factor * 10.0**power)]


def _tick_names(ticks: Sequence[float], log_scale: bool) -> list[str]:
    """All in one manner: short counts, powers of ten, or so many decimals as the step between them needs."""
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 10_000:
        return [short_count(value) for value in ticks]
    if log_scale or len(ticks) < 2:
        return [f"{value:g}" for value in ticks]
    step = ticks[1] - ticks[0]
    if largest < 0.001:
        return [f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value else "0" for value in ticks]
    decimals = next((digits for digits in range(7) if abs(round(step, digits) - step) < step * 1e-6), 6)
    return [f"{value:,.{decimals}f}" for value in ticks]


def _levels(chart: Chart, scale: _Scale) -> str:
    """Names of close lines are pushed apart, from the top downwards."""
    parts, taken = [], -math.inf
    for level in sorted(chart.levels, key=lambda level: -level.y):
        if not scale.shows(level.y):
            continue
        at = scale.y(level.y)
        place = max(at - 5, taken + 14)
        taken = place
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{chart.width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{level.color}" '
            f'stroke-dasharray="{level.dash}"/><text class="level-name" x="{chart.width - RIGHT - 4}" y="{place:.1f}" '
            f'text-anchor="end" fill="{level.color}">{html.escape(level.name)}</text>'
        )
    return "".join(parts)


def _short(values: Values, digits: int = 7) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]
