"""What the zero-shot probes found over a run: a section of its page, and the same as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.report.charts import COLORS, Chart, Level, Line, color_of, draw, legend
from dnapretrain.report.curve import GRID, INK, MUTED
from dnapretrain.report.history import RunHistory
from dnapretrain.report.sections import column, missing, restarts, table, text
from dnapretrain.report.tables import short_count

CHANCE = 0.5
"""Share of pairs that a model without knowledge gets right."""
CONTROL_DASH = "2 4"
SHARE, CORRELATION = "share of pairs whose true window is likelier", "correlation of the strands"


def probes(history: RunHistory) -> str:
    """Shares over the steps with a table of the last ones, and how well the two strands agree."""
    if not history.probes:
        return missing("No probes: set <code>data.probes.genome</code> and <code>data.probes.annotation</code>.")
    last = history.probes[-1]
    names = [name for name, figures in last["results"].items() if "share" in figures]
    parts = []
    if names:
        lines = []
        for number, name in enumerate(names):
            lines.append(_line(history, name, "share", name.replace("_", " "), number))
            if last["results"][name]["num_controls"]:
                lines.append(_line(history, name, "control_share", f"{name.replace('_', ' ')}, controls", number, CONTROL_DASH))
        shown = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        low, high = min(CHANCE, float(shown.min())) - 0.04, max(CHANCE, float(shown.max())) + 0.04
        chart = Chart(SHARE, lines, "steps", levels=[Level("chance", CHANCE)], marks=restarts(history), y_range=(low, min(high, 1.01)))
        parts.append(f"<h3>{SHARE[0].upper()}{SHARE[1:]}</h3>{legend(lines)}{draw(chart)}")
        head = ["probe", "true one likelier", "by bits", "controls", "by bits", "pairs", "controls"]
        parts.append(table(head, [_row(name, last["results"][name]) for name in names], range(1, 7)))
    if strands := last["results"].get("reverse_complement"):
        line = _line(history, "reverse_complement", "correlation", CORRELATION, 0)
        parts.append(
            f"<h3>Reverse complement</h3><p>Bits per base of {strands['num_pairs']:,} windows and of their reverse complements: "
            f"correlation {_number(strands['correlation'], '.4f')}, on average "
            f"{_number(strands['mean_abs_difference'], '.4f')} bits per base apart.</p>"
            + (draw(Chart(CORRELATION, [line], "steps", height=230, marks=restarts(history))) if np.isfinite(line.y).any() else "")
        )
    seconds = column(history.probes, "seconds")
    note = (
        f"At step {last['step']:,}, in {last['num_windows']:,} windows; {np.nansum(seconds):,.0f} s for {len(seconds):,} evaluations. "
        "A control is the same change of the same letters where nothing is annotated: knowledge is what lies above it."
    )
    return f'<p class="note">{note}</p>{"".join(parts)}'


def probes_png(history: RunHistory, output_png: Path) -> None:
    """Draw the shares of all probes over the steps, controls dashed. For runs that have probes with shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name, figures in history.probes[-1]["results"].items() if "share" in figures]
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}):
        figure, axes = plt.subplots(figsize=(9.0, 4.6), dpi=160, layout="constrained")
        for number, name in enumerate(names):
            color = COLORS[number % len(COLORS)]
            for key, style, label in (("share", "-", name.replace("_", " ")), ("control_share", ":", None)):
                line = _line(history, name, key, name, number)
                axes.plot(
                    line.x, line.y, style, color=color, linewidth=1.8 if style == "-" else 1.3, marker="o", markersize=2.5, label=label
                )
        axes.axhline(CHANCE, color=INK, linewidth=1.1, linestyle="--", zorder=2.5)
        axes.plot([], [], ":", color=MUTED, label="its controls")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes.set_title("Probes: " + SHARE, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(colors=MUTED, labelcolor=INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(MUTED)
        output_png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output_png)
        plt.close(figure)


def has_shares(history: RunHistory) -> bool:
    """Whether there is anything for `probes_png`."""
    return bool(history.probes) and any("share" in figures for figures in history.probes[-1]["results"].values())


def _line(history: RunHistory, name: str, key: str, label: str, number: int, dash: str = "") -> Line:
    having = [record for record in history.probes if name in record["results"]]
    y = column([record["results"][name] for record in having], key)
    return Line(label, column(having, "step"), y, color_of(number), dash, 2.0 if not dash else 1.4, marks=True)


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    cells = [(key, form) for prefix in ("", "control_") for key, form in ((f"{prefix}share", ".1%"), (f"{prefix}mean_bits", "+.3f"))]
    counts = [f"{figures[key]:,}" for key in ("num_pairs", "num_controls")]
    return [text(name.replace("_", " ")), *(_number(figures[key], form) for key, form in cells), *counts]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
