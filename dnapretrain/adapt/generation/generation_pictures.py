"""Pictures of recovery, of generated coding sequences, and of conditional designs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.adapt.pictures import GRID, INK, OTHER, pyplot
from dnapretrain.report.charts import COLORS

HALVES = "#9aa5b1"


def draw_recovery(path: Path, found: dict[str, Any]) -> None:
    """Left a point with its interval for each taxon and their mean; right the share recovered at each place, a line per taxon."""
    plt, style = pyplot()
    taxa = found["taxa"]
    rows = {**taxa, "mean of taxa": found["mean"]}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9.6, max(3.0, 1.6 + 0.34 * len(rows))), dpi=150, layout="constrained", width_ratios=(1, 1.2)
        )
        for at, (name, row) in enumerate(rows.items()):
            color = COLORS[at % len(COLORS)] if name in taxa else INK
            one = row["base_accuracy"]
            spread = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            left.errorbar([one["value"]], [at], xerr=spread, fmt="o" if name in taxa else "D", color=color, markersize=5, capsize=3)
            if name in taxa:
                left.plot([row["commonest_base"]] * 2, [at - 0.3, at + 0.3], color=OTHER, linewidth=2, zorder=0)
                places = np.arange(1, len(row["by_position"]) + 1)
                right.plot(places, row["by_position"], color=color, linewidth=1.3, label=f"{name} ({row['num_prompts']:,})")
        left.set_yticks(range(len(rows)), list(rows))
        left.invert_yaxis()
        left.set(xlabel=f"share of the next {found['settings']['num_bases']} bases, 95 % interval\n(grey: the commonest base always)")
        right.set(xlabel="place behind the prompt (bases)", ylabel="share recovered", ylim=(0, 1))
        right.axhline(0.25, color=OTHER, linewidth=1)
        right.legend(frameon=False, fontsize=8, title="taxon (prompts)", title_fontsize=8)
        for axes in (left, right):
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
        figure.suptitle(f"{found['model']}: sequence recovery", fontsize=10.5)
        figure.savefig(path)
        plt.close(figure)


def draw_check_cds(path: Path, found: dict[str, Any]) -> None:
    """The checks as bars with intervals, lengths as steps, and with natural sequences codon usage and the distances to them."""
    plt, style = pyplot()
    natural = "natural" in found
    with plt.rc_context(style):
        figure, panels = plt.subplots(2 if natural else 1, 2, figsize=(9.2, 7.2 if natural else 3.8), dpi=150, layout="constrained")
        flat = panels.ravel()
        _checks(flat[0], found)
        _lengths(flat[1], found)
        if natural:
            _codons(flat[2], found)
            _distances(flat[3], found)
        for axes in flat:
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
        title = f"{found['generated']['sequences']:,} generated sequences, genetic code {found['settings']['code']}"
        figure.suptitle(title + (f", beside {found['natural']['sequences']:,} natural ones" if natural else ""), fontsize=10.5)
        figure.savefig(path)
        plt.close(figure)


def _sides(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(side, color) for side, color in zip(("generated", "natural"), COLORS, strict=False) if side in found]


def _checks(axes: Any, found: dict[str, Any]) -> None:
    names = {"whole": "whole codons", "start": "start codon", "stop": "stop codon", "no_inner_stop": "no inner stop", "valid": "valid: all"}
    for number, (side, color) in enumerate(_sides(found)):
        rows = [found[side][name] for name in names]
        values = np.array([row["value"] for row in rows])
        spread = [values - [row["low"] for row in rows], [row["high"] for row in rows] - values]
        places = np.arange(len(names)) + 0.38 * (number - 0.5 * (len(_sides(found)) - 1))
        axes.barh(places, values, 0.36, xerr=np.clip(spread, 0, None), color=color, alpha=0.8, label=side, error_kw={"linewidth": 1})
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.invert_yaxis()
    axes.set(xlabel="share of sequences, 95 % interval", xlim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8)


def _lengths(axes: Any, found: dict[str, Any]) -> None:
    every = np.concatenate([found[side]["lengths"] for side, _ in _sides(found)])
    bins = np.linspace(every.min(), every.max() + 1, 31)
    for side, color in _sides(found):
        lengths = np.array(found[side]["lengths"])
        axes.hist(
            lengths, bins=bins, weights=np.full(len(lengths), 1 / len(lengths)), histtype="step", color=color, linewidth=1.6, label=side
        )
    axes.set(xlabel="length (bases)", ylabel="share of sequences")


def _codons(axes: Any, found: dict[str, Any]) -> None:
    usage = found["codon_usage"]
    values = [np.array([usage[side][codon] for codon in usage["natural"]]) for side in ("natural", "generated")]
    most = float(max(map(np.max, values))) * 1.08
    axes.plot([0, most], [0, most], color=OTHER, linewidth=1, zorder=0)
    axes.scatter(*values, s=12, color=COLORS[0], linewidths=0)
    for at in np.argsort(-np.abs(values[0] - values[1]))[:6]:
        axes.annotate(list(usage["natural"])[at], (values[0][at], values[1][at]), fontsize=7, xytext=(3, 2), textcoords="offset points")
    compared = found["compared"].get("codons")
    said = f", r = {compared['pearson']:.3f}" if compared else ""
    axes.set(xlabel="share of the codon, natural", ylabel=f"generated{said}", xlim=(0, most), ylim=(0, most))


def _distances(axes: Any, found: dict[str, Any]) -> None:
    names = [name for name, values in found["compared"].items() if isinstance(values, dict)]
    for number, (kind, color, label) in enumerate(
        (("compared", COLORS[0], "generated against natural"), ("natural_halves", HALVES, "natural halves: chance alone"))
    ):
        if found[kind]:
            values = [found[kind].get(name, {}).get("js_divergence", 0.0) for name in names]
            axes.barh(np.arange(len(names)) + 0.38 * (number - 0.5), values, 0.36, color=color, alpha=0.8, label=label)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="Jensen-Shannon divergence (bits)")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8)


def draw_design(path: Path, found: dict[str, Any], groups: Sequence[str], columns: Mapping[str, Sequence[float]]) -> None:
    """A panel per column of numbers: a dot for each sequence by condition, a line at the mean; natural means with intervals beside."""
    plt, style = pyplot()
    names = list(found["conditions"])
    random = np.random.default_rng(0)
    with plt.rc_context(style):
        width = min(14.0, 1.5 + (1.6 + 0.5 * len(names)) * len(columns))
        figure, panels = plt.subplots(1, len(columns), figsize=(max(4.2, width), 3.8), dpi=150, layout="constrained", squeeze=False)
        for axes, (column, values) in zip(panels[0], columns.items(), strict=True):
            for at, name in enumerate(names):
                own = np.array([value for value, group in zip(values, groups, strict=True) if group == name])
                color = COLORS[at % len(COLORS)]
                axes.scatter(at + random.uniform(-0.16, 0.16, len(own)), own, s=7, color=color, alpha=0.45, linewidths=0)
                axes.plot([at - 0.26, at + 0.26], [np.nanmean(own)] * 2, color=INK, linewidth=2)
                real = found.get("natural", {}).get(name, {}).get(column)
                if real:
                    spread = [[real["mean"] - real["low"]], [real["high"] - real["mean"]]]
                    axes.errorbar([at + 0.36], [real["mean"]], yerr=spread, fmt="D", color=INK, markersize=4, markerfacecolor="white")
            axes.set_xticks(range(len(names)), [f"{name}" for name in names], rotation=30 if max(map(len, names)) > 8 else 0)
            axes.set(ylabel="GC" if column == "gc" else column, xlim=(-0.5, len(names) - 0.4))
            axes.grid(axis="y", color=GRID)
            axes.set_axisbelow(True)
        beside = ", diamonds: natural ones" if "natural" in found else ""
        figure.suptitle(f"{found['model']}: by condition\n(lines: means{beside})", fontsize=9.5)
        figure.savefig(path)
        plt.close(figure)
