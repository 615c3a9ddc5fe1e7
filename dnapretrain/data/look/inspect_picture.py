"""A picture of a shard: lengths of documents, contigs, GC along the shard, and how GC is spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.shards.shard import Shard, open_shard
from dnapretrain.errors import ConfigError

WINDOW = 10_000
"""Bases of a window at most; documents are cut into equal parts."""
MAX_WINDOWS = 20_000
"""More windows than this are not all read: evenly many of them are."""
MAX_BARS = 12
MAX_BORDERS = 40
INK, MUTED, GRID, FILL, DARK, OTHER = "#1f2933", "#6b7785", "#e4e8ec", "#7fb0dd", "#1f5fa8", "#c3ccd5"


def draw_shard(prefix: str | Path, output_png: Path) -> None:
    """Write the picture. Raises ConfigError where `output_png` is no .png, DataError for shards that cannot be used."""
    if output_png.suffix.lower() != ".png":
        raise ConfigError(f"--picture {output_png} does not end in .png. Rename it")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shard = open_shard(prefix)
    style = {"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 10.5}
    with plt.rc_context(style):
        figure = plt.figure(figsize=(12.0, 7.6), dpi=150, layout="constrained")
        # Rows of their own: long names of contigs narrow the panels beside them only.
        rows = [part.subplots(1, 2, width_ratios=(1.25, 1)) for part in figure.subfigures(2, 1)]
        axes = np.array(rows)
        title = f"{Path(prefix).name}: {len(shard.bases):,} bases in {len(shard.lengths):,} document{'s' * (len(shard.lengths) > 1)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        windows, gc, where = _gc(shard)
        _along(axes[0, 0], shard, windows, gc, where)
        _spread(axes[0, 1], windows, gc)
        _lengths(axes[1, 0], shard)
        _contigs(axes[1, 1], shard)
        for each in axes.ravel():
            each.spines[["top", "right"]].set_visible(False)
            each.spines[["left", "bottom"]].set_color(OTHER)
            each.tick_params(which="both", colors=MUTED, length=3)
            each.set_axisbelow(True)
        output_png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output_png)
        plt.close(figure)


def _gc(shard: Shard) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Of evenly many windows that have a base: how many bases they have, their GC in percent, and where they begin in the shard."""
    parts = -(-shard.lengths // WINDOW)
    total = int(parts.sum())
    chosen = np.unique(np.linspace(0, total - 1, min(total, MAX_WINDOWS)).astype(np.int64))
    reach = np.cumsum(parts)
    document = np.searchsorted(reach, chosen, "right")
    number = chosen - (reach[document] - parts[document])
    length, count = shard.lengths[document], parts[document]
    starts = shard.offsets[document] + number * length // count
    ends = shard.offsets[document] + (number + 1) * length // count
    letters = np.array([_core.count_bytes(np.asarray(shard.bases[a:b])) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
    strong, weak = (letters[:, list(codes)].sum(axis=1) for codes in (b"GCgc", b"ATat"))
    known = strong + weak > 0
    return (ends - starts)[known], 100.0 * strong[known] / (strong + weak)[known], starts[known]


def _along(axes: Any, shard: Shard, windows: NDArray[np.int64], gc: NDArray[np.float64], where: NDArray[np.int64]) -> None:
    from matplotlib.ticker import FuncFormatter

    alpha = float(np.clip(1200 / max(1, len(gc)), 0.15, 0.8))
    axes.plot(where + windows / 2, gc, ".", color=FILL, markersize=4, alpha=alpha, markeredgewidth=0, zorder=2, rasterized=True)
    if len(gc) >= 20:
        middle = where + windows / 2
        bins = np.minimum(middle / len(shard.bases) * min(200, len(gc) // 5), min(200, len(gc) // 5) - 1).astype(np.int64)
        groups = [bins == number for number in np.unique(bins)]
        axes.plot([middle[rows].mean() for rows in groups], [np.median(gc[rows]) for rows in groups], color=DARK, linewidth=1.3, zorder=3)
    coordinates = shard.coordinates
    names = list(zip(coordinates.assembly, coordinates.contig, strict=True))
    borders = [int(shard.offsets[i]) for i in range(1, len(names)) if names[i] != names[i - 1]]
    if len(borders) <= MAX_BORDERS:
        for border in borders:
            axes.axvline(border, color=GRID, linewidth=1, zorder=1)
    note = "; grey: next contig" if 0 < len(borders) <= MAX_BORDERS else ""
    axes.set_title(f"GC along the shard (line: median of neighbours{note})", loc="left")
    axes.set_xlim(0, len(shard.bases))
    axes.xaxis.set_major_formatter(FuncFormatter(_bases))
    axes.set_xlabel("place in the shard, bases")
    axes.set_ylabel("GC, %")
    if len(gc):
        low, high = np.quantile(gc, [0.002, 0.998])
        axes.set_ylim(max(0.0, low - 4), min(100.0, high + 4))
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def _spread(axes: Any, windows: NDArray[np.int64], gc: NDArray[np.float64]) -> None:
    edges = np.arange(0, 101)
    if len(gc):
        axes.hist(np.minimum(gc, 99.999), edges, weights=100 * windows / windows.sum(), color=FILL, edgecolor="white", linewidth=0.5)
        mean = float((gc * windows).sum() / windows.sum())
        axes.axvline(mean, color=DARK, linewidth=1.3)
        axes.annotate(
            f"mean {mean:.1f} %", (mean, 0.97), xycoords=("data", "axes fraction"), xytext=(5, -4), textcoords="offset points", color=DARK
        )
        low, high = np.quantile(gc, [0.001, 0.999])
        axes.set_xlim(max(0.0, low - 6), min(100.0, high + 6))
    axes.set_title(f"GC of windows of up to {WINDOW:,} bases", loc="left")
    axes.set_xlabel("GC, %")
    axes.set_ylabel("share of bases, %")
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def _lengths(axes: Any, shard: Shard) -> None:
    from matplotlib.ticker import FuncFormatter

    lengths = shard.lengths
    low, high = np.log10(lengths.min()), np.log10(lengths.max())
    first, last = np.floor(low * 5) / 5, np.floor(high * 5) / 5 + 0.2
    if last - first < 1:  # a single class would fill the panel
        first, last = first - 0.4, last + 0.4
    edges = 10 ** np.linspace(first, last, max(1, round((last - first) * 10)) + 1)
    weights = 100 * lengths / lengths.sum()
    axes.hist(lengths, edges, weights=weights, color=FILL, edgecolor="white", linewidth=0.5, label="bases")
    axes.hist(
        lengths, edges, weights=np.full(len(lengths), 100 / len(lengths)), histtype="step", color=DARK, linewidth=1.3, label="documents"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_bases))
    axes.xaxis.set_minor_formatter(FuncFormatter(_bases if last - first < 1.3 else lambda value, _: ""))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title("Lengths of documents", loc="left")
    axes.set_xlabel("bases of a document")
    axes.set_ylabel("share, %")
    axes.legend(frameon=False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def _contigs(axes: Any, shard: Shard) -> None:
    bases: dict[tuple[str, str], int] = {}
    where = shard.coordinates
    for assembly, contig, length in zip(where.assembly, where.contig, shard.lengths.tolist(), strict=True):
        bases[assembly, contig] = bases.get((assembly, contig), 0) + length
    ordered = sorted(bases.items(), key=lambda item: -item[1])
    shown, rest = ordered[:MAX_BARS], ordered[MAX_BARS:]
    one_assembly = len({assembly for assembly, _ in bases}) == 1
    names = [contig if one_assembly else f"{assembly}:{contig}" for (assembly, contig), _ in shown]
    values = [count for _, count in shown]
    if rest:
        names.append(f"{len(rest):,} more")
        values.append(sum(count for _, count in rest))
    places = np.arange(len(names))
    shares = 100 * np.array(values) / len(shard.bases)
    axes.barh(places, shares, height=0.72, color=[FILL] * len(shown) + [OTHER] * bool(rest))
    for place, share, value in zip(places.tolist(), shares.tolist(), values, strict=True):
        axes.annotate(
            f"{share:.1f} %  {_bases(value)}",
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=8.5,
        )
    axes.set_yticks(places, [name if len(name) <= 30 else f"{name[:17]}…{name[-12:]}" for name in names])
    axes.set_ylim(max(len(names), 4) - 0.4, -0.6)
    limit = float(shares.max()) * 1.28
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(limit, 100)])
    axes.set_xlim(0, limit)
    axes.set_title(f"Contigs by bases ({len(bases):,})", loc="left")
    axes.set_xlabel("share of bases, %")


def _bases(value: float, _: object = None) -> str:
    """1.2 k, 3 M, 4.5 G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"
