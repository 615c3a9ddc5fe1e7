"""Learning rate, gradient norm, throughput and accuracy of a run as one PNG, for slides and papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dnapretrain.report.charts import COLORS, thinned
from dnapretrain.report.curve import GRID, INK, MUTED
from dnapretrain.report.history import RunHistory
from dnapretrain.report.sections import PANELS, column
from dnapretrain.report.tables import short_count


def panels_png(history: RunHistory, output_png: Path) -> None:
    """Draw the first four panels of the page; those that the log lacks say so."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = column(history.train, "step")
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}):
        figure, grid = plt.subplots(2, 2, figsize=(9.0, 5.4), dpi=160, layout="constrained")
        for number, (axes, (key, title, log_scale)) in enumerate(zip(grid.flat, PANELS, strict=False)):
            values = column(history.train, key)
            axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
            axes.grid(axis="y", color=GRID, linewidth=0.8)
            axes.tick_params(colors=MUTED, labelcolor=INK)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            for side in ("left", "bottom"):
                axes.spines[side].set_color(MUTED)
            if not np.isfinite(values).any():
                axes.text(0.5, 0.5, "not in the log", transform=axes.transAxes, ha="center", color=MUTED)
                continue
            x, mean, low, high = thinned(steps, values)
            axes.fill_between(x, low, high, color=COLORS[number % 3], alpha=0.18, linewidth=0)
            axes.plot(x, mean, color=COLORS[number % 3], linewidth=1.4)
            if log_scale and np.nanmin(values) > 0:
                axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
            axes.set_xlim(0, max(float(steps[-1]), 1.0))
        output_png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output_png)
        plt.close(figure)
