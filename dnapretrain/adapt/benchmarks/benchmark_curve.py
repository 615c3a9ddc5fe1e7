"""A suite over the checkpoints of a run: the metric against what was consumed, as text and as a picture (the curves of Nucleotide
Transformer and DNABERT-2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dnapretrain.adapt.benchmarks.benchmark_marks import error_bars, styles
from dnapretrain.adapt.pictures import GRID, INK, pyplot
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
    """A panel per task: a line per run over consumed tokens with intervals, a level of each other contestant, a band of random weights."""
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
        named = dict(zip(*reversed(grid.flat[0].get_legend_handles_labels()), strict=True))
        labels = sorted(named, key=lambda label: label not in series)  # the runs first
        figure.legend([named[label] for label in labels], labels, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
        figure.suptitle(f"{result['suite']}: checkpoints over consumed tokens, 95 % intervals", fontsize=10.5)
        figure.savefig(path)
        plt.close(figure)


def _panel(axes: Any, task: dict[str, Any], series: dict[str, list[dict[str, Any]]]) -> None:
    cells = task["contestants"]
    in_series = {one["name"] for points in series.values() for one in points}
    levels = [name for name in cells if name not in in_series]
    looks = styles([*series, *levels])
    for run, points in series.items():
        own = [cells[one["name"]] for one in points]
        color, mark, _ = looks[run]
        tokens, values = [one["consumed_tokens"] for one in points], [cell["value"] for cell in own]
        axes.errorbar(tokens, values, yerr=error_bars(own), color=color, marker=mark, markersize=4, capsize=2, label=run)
    for name in levels:
        color, mark, is_hollow = looks[name]
        dashes = (4, 2) if is_hollow else (1, 1.5) if mark == "x" else (6, 2, 1, 2)
        axes.axhline(cells[name]["value"], color=color, linestyle=(0, dashes), linewidth=1.2, label=name)
        if is_hollow and not math.isnan(cells[name]["low"]):
            axes.axhspan(cells[name]["low"], cells[name]["high"], color=color, alpha=0.12, linewidth=0)
    axes.set_title(task["name"] + (" *" if task["notes"] else ""), color=INK)
    axes.set(xlabel="consumed tokens", ylabel=task["metric"])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(int(value)))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
