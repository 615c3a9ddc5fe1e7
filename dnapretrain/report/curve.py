"""The loss curve of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnapretrain.errors import ConfigError
from dnapretrain.report.history import RunHistory, is_masked, read_log
from dnapretrain.report.tables import UNIFORM_BITS, short_count

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
TRAIN, TRAIN_RAW = "#1f5fa8", "#a9c6e6"
HELD_OUT = ("#d1495b", "#8f5fbf", "#2f9e77", "#c98a1b")
"""Colours of the held-out sets, in the order they first appear in the log."""
NAME_HEIGHT = 13.0
"""Points that the name of a line takes, with some air."""


def loss_curve(run_dir: Path, output_png: Path, levels: Mapping[str, float] | None = None, until_step: int | None = None) -> None:
    """Draw bits per base over training steps and tokens: training, held-out sets, the uniform model, and what to compare with.

    `levels` are bits per base on the held-out bases by name, e.g. of the best count model: dashed lines. What lies behind `until_step` is
    left out. A masked run, by its start record, is named so. Raises DataError if the run has no log.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if output_png.suffix.lower() != ".png":
        raise ConfigError(f"the picture is a PNG; {output_png} does not end in .png. Rename it.")
    history = read_log(run_dir, until_step)
    steps = np.array([record["step"] for record in history.train], dtype=np.int64)
    tokens = np.array([record["consumed_tokens"] for record in history.train], dtype=np.int64)
    bits = np.array([record["bits_per_base"] for record in history.train], dtype=float)
    lines = [_Level(UNIFORM_BITS, "uniform: 2 bits", MUTED, ":")]
    lines += [_Level(value, f"{name}: {value:.3f}", INK, "--") for name, value in (levels or {}).items()]
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10.5, "text.color": INK, "axes.labelcolor": INK}):
        figure, axes = plt.subplots(figsize=(9.0, 5.0), dpi=160, layout="constrained")
        axes.plot(steps, bits, color=TRAIN_RAW, linewidth=0.9, zorder=2)
        label = f"training (mean of {window_of(len(bits))} steps)" if window_of(len(bits)) > 1 else "training"
        axes.plot(steps, smoothed(bits), color=TRAIN, linewidth=2.0, zorder=3, label=label)
        _held_out(axes, history)
        _limits(axes, steps, bits, history, [line.bits for line in lines])
        _dress(figure, axes, history, steps, tokens)
        figure.draw_without_rendering()  # fixes the height of the axes, which the places of the names need
        _draw_levels(axes, lines)
        output_png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output_png)
        plt.close(figure)


def _held_out(axes: Any, history: RunHistory) -> None:
    for (name, records), color in zip(history.held_out.items(), _colors(len(history.held_out)), strict=True):
        at, value = [record["step"] for record in records], [record["bits_per_base"] for record in records]
        style = {"linewidth": 1.4, "marker": "o", "markersize": 5, "markeredgecolor": "white"}
        axes.plot(at, value, color=color, clip_on=False, zorder=4, label=f"held out: {name}, last {value[-1]:.3f}", **style)


def window_of(count: int) -> int:
    """Steps in the moving mean: odd, about a fortieth of the run."""
    return count // 40 | 1


def smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centred moving mean; at the ends over the steps there are."""
    half = window_of(len(values)) // 2
    sums = np.concatenate(([0.0], np.cumsum(values)))
    positions = np.arange(len(values))
    first, last = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _colors(count: int) -> list[str]:
    return [HELD_OUT[index % len(HELD_OUT)] for index in range(count)]


@dataclass(frozen=True)
class _Level:
    """A horizontal line with a name."""

    bits: float
    text: str
    color: str
    style: str


def _draw_levels(axes: Any, levels: Sequence[_Level]) -> None:
    """Horizontal lines with their names at the right end, side by side with their lines, never over each other."""
    levels = sorted(levels, key=lambda level: level.bits)
    height = axes.bbox.height * 72 / axes.figure.dpi
    low, high = axes.get_ylim()
    lines = [(level.bits - low) / (high - low) * height for level in levels]
    for level, line, middle in zip(levels, lines, name_places(lines, height), strict=True):
        axes.axhline(level.bits, color=level.color, linewidth=1.2, linestyle=level.style, zorder=1.5)
        axes.annotate(
            level.text,
            (0.995, level.bits),
            xycoords=("axes fraction", "data"),
            xytext=(0, middle - line),
            textcoords="offset points",
            ha="right",
            va="center",
            color=level.color,
            fontsize=9,
            zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )


def name_places(lines: Sequence[float], height: float) -> list[float]:
    """Middles of the names of lines at ascending heights in axes of `height`, all in points: at least NAME_HEIGHT apart.

    A name stands above its line, the lower one of two close lines below its own; those that still meet move upwards,
    and from the top downwards.
    """
    half = NAME_HEIGHT / 2
    places: list[float] = []
    for number, line in enumerate(lines):
        above = lines[number + 1] if number + 1 < len(lines) else math.inf
        place = line + half if above - line >= NAME_HEIGHT else line - half
        lowest = places[-1] + NAME_HEIGHT if places else half
        places.append(max(place if place >= lowest else line + half, lowest))
    ceiling = height - half
    for number in reversed(range(len(places))):
        places[number] = min(places[number], ceiling)
        ceiling = places[number] - NAME_HEIGHT
    return places


def _limits(axes: Any, steps: npt.NDArray[np.int64], bits: npt.NDArray[np.float64], history: RunHistory, levels: Sequence[float]) -> None:
    """Show where the run spends its time: the first twentieth of the steps may leave the picture at the top."""
    late = smoothed(bits)[len(bits) // 20 :]
    evaluations = [record["bits_per_base"] for records in history.held_out.values() for record in records]
    shown = [float(late.min()), float(late.max()), float(np.quantile(bits, 0.01)), *evaluations, *levels]
    low, high = min(shown), max(shown)
    margin = max(0.01, 0.07 * (high - low))
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(int(steps[-1]), 1))


def _dress(figure: Any, axes: Any, history: RunHistory, steps: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
    unit = "bits per masked base" if is_masked(history) else "bits per base"
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(unit)
    axes.grid(axis="y", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    for side in ("left", "bottom", "top"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9.5)  # a falling curve leaves this corner free
    per_step = float(tokens[-1]) / float(steps[-1])
    top = axes.secondary_xaxis("top", functions=(lambda step: step * per_step, lambda token: token / per_step))
    top.xaxis.set_major_formatter(lambda value, _: short_count(value))
    top.set_xlabel(f"training tokens ({short_count(history.train[-1].get('consumed_bases', tokens[-1]))} bases in all)", color=INK)
    top.tick_params(colors=MUTED, labelcolor=INK)
    axes.set_title(f"{unit.capitalize()} while training", loc="left", fontsize=13, fontweight="bold", pad=10)
    if history.damaged_lines:
        figure.text(0.005, 0.005, f"{history.damaged_lines} damaged log line(s) left out", color=MUTED, fontsize=8)
