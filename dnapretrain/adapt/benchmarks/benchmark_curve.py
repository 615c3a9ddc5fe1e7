"""A suite over the checkpoints of a run: the metric against what was consumed, as text and as a picture (the curves of Nucleotide
Transformer and DNABERT-2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dnapretrain.adapt.pictures import GRID, INK, pyplot
from dnapretrain.report.charts import COLORS, DASHES
from dnapretrain.report.tables import short_count

COLUMNS = 2


def series_of(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Run -> its checkpoints by step: `name`, `step`, `consumed_tokens`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in result["series"]:
        found.setdefault(one["run"], []).append(one)
    return {run: sorted(points, key=lambda one: int(one["step"])) for run, points in found.items()}


def format_series(result: dict[str, Any]) -> str:
    """A row per checkpoint, a column per task."""
    tasks = result["tasks"]
    lines = []
    for run, points in series_of(result).items():
        lines.append(f"{run} over consumed tokens: " + ", ".join(f"{task['name']} ({task['metric']})" for task in tasks))
        for one in points:
            values = "".join(f"{task['contestants'][one['name']]['value']:>9.3f}" for task in tasks)
            lines.append(f"  step {one['step']:>9,} {one['consumed_tokens']:>18,} tokens{values}")
    return "\n".join(lines)


def draw_series(path: Path, result: dict[str, Any]) -> None:
    """A panel per task: a line per run over consumed tokens with intervals, a level line of each other contestant."""
    plt, style = pyplot()
    series, tasks = series_of(result), result["tasks"]
    rows = math.ceil(len(tasks) / COLUMNS)
    columns = min(COLUMNS, len(tasks))
    with plt.rc_context(style):
        figure, grid = plt.subplots(rows, columns, figsize=(4.3 * columns, 2.9 * rows + 0.5), dpi=150, layout="constrained", squeeze=False)
        for axes, task in zip(grid.flat, tasks, strict=False):
            _panel(axes, task, series)
        for axes in list(grid.flat)[len(tasks) :]:
            axes.set_axis_off()
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
        figure.suptitle(f"{result['suite']}: checkpoints over consumed tokens, 95 % intervals", fontsize=10.5)
        figure.savefig(path)
        plt.close(figure)


def _panel(axes: Any, task: dict[str, Any], series: dict[str, list[dict[str, Any]]]) -> None:
    cells = task["contestants"]
    for number, (run, points) in enumerate(series.items()):
        own = [(one["consumed_tokens"], cells[one["name"]]) for one in points]
        values = [cell["value"] for _, cell in own]
        below = [0 if math.isnan(cell["low"]) else max(0.0, cell["value"] - cell["low"]) for _, cell in own]
        above = [0 if math.isnan(cell["high"]) else max(0.0, cell["high"] - cell["value"]) for _, cell in own]
        color = COLORS[number % len(COLORS)]
        axes.errorbar([x for x, _ in own], values, yerr=[below, above], color=color, marker="o", markersize=4, capsize=2, label=run)
    in_series = {one["name"] for points in series.values() for one in points}
    for number, name in enumerate(name for name in cells if name not in in_series):
        color = COLORS[(len(series) + number) % len(COLORS)]
        axes.axhline(cells[name]["value"], color=color, linestyle=(0, _dashes(number)), linewidth=1.2, label=name)
    axes.set_title(task["name"] + (" *" if task["notes"] else ""), color=INK)
    axes.set(xlabel="consumed tokens", ylabel=task["metric"])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(int(value)))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)


def _dashes(number: int) -> tuple[float, ...]:
    """Of matplotlib, from that of an SVG."""
    text = DASHES[1 + number % (len(DASHES) - 1)]
    return tuple(float(part) / 1.2 for part in text.split())
