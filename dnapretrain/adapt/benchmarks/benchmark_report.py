"""The results of a suite as one table for the terminal, and as one picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dnapretrain.adapt.benchmarks.benchmark_curve import format_series
from dnapretrain.adapt.benchmarks.benchmark_marks import RANDOM, error_bars, styles
from dnapretrain.adapt.pictures import GRID, pyplot
from dnapretrain.adapt.training.finetune import mean_interval

PUBLISHED_MARKERS = "*Pdhp"


def contestants(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of those that ran, and of those that are published, in order of appearance."""
    own = list(dict.fromkeys(name for task in result["tasks"] for name in task["contestants"]))
    published = list(dict.fromkeys(name for task in result["tasks"] for name in task["published"]))
    return own, published


def format_benchmark(result: dict[str, Any]) -> str:
    """A row per contestant and task: the metric with its interval; published numbers below, marked where they do not compare."""
    own, published = contestants(result)
    width = max(len(name) for name in (*own, *published)) + 2
    lines = []
    for task in result["tasks"]:
        rows = task["rows"]
        lines.append(f"{task['name']}: {task['metric']}, {rows['train']:,} rows to learn from, {rows['test']:,} to be judged on")
        for name in own:
            if name in task["contestants"]:
                lines.append(f"  {name:<{width}}{shown(task['contestants'][name])}")
        for name, value in task["published"].items():
            lines.append(f"  {name:<{width}}{value:.3f}  published" + (", of other rows" if task["notes"] else ""))
        lines += [f"  note: {note}" for note in task["notes"]]
        lines += [f"  leakage: {line}" for line in _shared(task["leakage"])]
    if len(result["tasks"]) > 1:
        lines.append(f"mean of {len(result['tasks'])} tasks")
        for name in own:
            values = [task["contestants"][name]["value"] for task in result["tasks"] if name in task["contestants"]]
            lines.append(f"  {name:<{width}}{sum(values) / len(values):.3f}")
    lines += _differences(result, width)
    for pair in result["leakage_between_tasks"]:
        share = f"{pair['overlapping']:,} of {pair['rows']:,} test rows share 50 bases in a row with training rows of {pair['train']}"
        lines.append(f"leakage between tasks: {pair['test']}: {share}")
    if result["series"]:
        lines.append(format_series(result))
    if result["missing"]:
        lines.append(f"not on disk: {', '.join(result['missing'])}")
    return "\n".join(lines)


def shown(cell: dict[str, Any]) -> str:
    """`0.512 [0.480, 0.544]  3 runs`; the interval is over test rows where there is one run."""
    interval = "" if math.isnan(cell["low"]) else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    count = len(cell["values"])
    return f"{cell['value']:.3f}{interval}  {'1 run, 95 % over test rows' if count == 1 else f'{count} runs, 95 % of their mean'}"


def _differences(result: dict[str, Any], width: int) -> list[str]:
    """Of each model with random weights beside it, the mean over the tasks of what it has more, with its interval over the tasks."""
    lines = []
    runs = {one["name"]: one["run"] for one in result["series"]}
    for name in contestants(result)[0]:
        random = runs.get(name, name) + RANDOM
        pairs = [(task["contestants"].get(name), task["contestants"].get(random)) for task in result["tasks"]]
        differences = [own["value"] - other["value"] for own, other in pairs if own and other]
        if name != random and len(differences) > 1:
            mean = mean_interval(differences)
            interval = f"{mean['mean']:+.3f} [{mean['low']:+.3f}, {mean['high']:+.3f}]"
            above = sum(one > 0 for one in differences)
            lines.append(f"  {name:<{width}}{interval}, above on {above}")
    head = f"less random weights, mean of {len(result['tasks'])} tasks with its 95 % interval over them"
    return [head, *lines] if lines else []


def _shared(leakage: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{pair}: {counts['equal']:,} of {counts['rows']:,} rows equal, {counts['share_50_bases']:,} share 50 bases in a row"
        for pair, counts in leakage.items()
        if counts["equal"] or counts["share_50_bases"]
    ]


def draw_benchmark(path: Path, result: dict[str, Any]) -> None:
    """A band per task: a mark with its interval of each contestant, hollow of random weights; grey ones of published numbers."""
    plt, style = pyplot()
    own, published = contestants(result)
    tasks = result["tasks"]
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8.4, 1.4 + 0.17 * (len(own) + 1.5) * len(tasks)), dpi=150, layout="constrained")
        handles = []
        for number, (name, (color, mark, is_hollow)) in enumerate(styles(own).items()):
            cells = [(row, task["contestants"][name]) for row, task in enumerate(tasks) if name in task["contestants"]]
            places = [row + 0.8 * ((number + 0.5) / len(own) - 0.5) for row, _ in cells]
            bars = error_bars([cell for _, cell in cells])
            look = {"color": color, "markersize": 4.5, "linewidth": 1, "markerfacecolor": "white" if is_hollow else color}
            drawn = axes.errorbar([cell["value"] for _, cell in cells], places, xerr=bars, fmt=mark, label=name, **look)
            if is_hollow:
                drawn[2][0].set_linestyle((0, (3, 2)))
            handles.append(drawn)
        for number, name in enumerate(published):
            points = [(task["published"][name], row) for row, task in enumerate(tasks) if name in task["published"]]
            look = {"marker": PUBLISHED_MARKERS[number % len(PUBLISHED_MARKERS)], "s": 34, "facecolors": "none", "edgecolors": "#5b5b5b"}
            handles.append(axes.scatter(*zip(*points, strict=True), label=f"{name}, published", **look))
        for row in range(1, len(tasks), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=GRID, alpha=0.45, linewidth=0, zorder=0)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_yticks(range(len(tasks)), [task["name"] + (" *" if task["notes"] else "") for task in tasks])
        metrics = ", ".join(dict.fromkeys(task["metric"] for task in tasks))
        axes.set(xlabel=f"{metrics} with 95 % interval" + ("   (* not the suite's rows)" if any(t["notes"] for t in tasks) else ""))
        axes.set_title(result["suite"])
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, -1.02), min(right, 1.02))  # no metric goes beyond, the intervals of few seeds do
        axes.legend(handles=handles, frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
        plt.close(figure)
