"""Pictures of embeddings and probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.extras import need
from dnapretrain.errors import ConfigError
from dnapretrain.report.charts import COLORS

PROJECTIONS = ("pca", "umap")
OTHER, INK, GRID = "#c3ccd5", "#1f2933", "#e4e8ec"
MAX_CLASSES = len(COLORS)
MARK_COLORS = (*COLORS, "#1f2933", "#7b3294", "#b2182b", "#4d9221")
"""Of marks, which have shapes too, where those of lines are too few."""


def check_picture(path: Path, projection: str = "pca") -> None:
    """Raise ConfigError for a picture that cannot be drawn, before anything is computed."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--picture {path} does not end in .png. Rename it.")
    if projection not in PROJECTIONS:
        raise ConfigError(f"projection = {projection} is none of {', '.join(PROJECTIONS)}.")
    if projection == "umap":
        need_umap()


def need_umap() -> Any:
    """The package umap-learn. Raises ConfigError where it is not here."""
    try:
        return need("umap", "UMAP")
    except ConfigError:
        raise ConfigError("UMAP needs umap-learn, which is not here. pip install 'dnapretrain[umap]', or draw PCA.") from None


def principal_components(vectors_NH: NDArray[np.floating[Any]], count: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on the first components [N, count] and their shares of the variance [count]; zeros beyond the rank.

    The sign of a component is that its largest loading is positive, so a picture does not turn over from run to run.
    """
    centred = np.asarray(vectors_NH, np.float64) - np.mean(vectors_NH, axis=0, dtype=np.float64)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(values)), np.abs(right).argmax(axis=1)])
    places = np.zeros((len(centred), count))
    shares = np.zeros(count)
    kept = min(count, len(values))
    places[:, :kept] = (left * values * signs)[:, :kept]
    total = float((values**2).sum())
    shares[:kept] = values[:kept] ** 2 / total if total else 0
    return places, shares


def draw_scatter(path: Path, vectors_NH: NDArray[np.float32], labels: Sequence[str] | None, title: str, projection: str = "pca") -> None:
    """A dot per row, coloured by label: by class where there are few or they are no numbers, else by value."""
    check_picture(path, projection)
    if len(vectors_NH) < 2:
        raise ConfigError(f"--picture: {len(vectors_NH)} row is no picture. Give two rows at least.")
    if projection == "pca":
        places, shares = principal_components(vectors_NH)
        axes_names = [f"component {number} ({share:.1%} of the variance)" for number, share in enumerate(shares, 1)]
    else:
        places = need_umap().UMAP(random_state=0, n_jobs=1).fit_transform(vectors_NH)
        axes_names = ["UMAP 1", "UMAP 2"]
    plt, style = pyplot()
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 5.6), dpi=150, layout="constrained")
        _dots(figure, axes, places, labels)
        axes.set(xlabel=axes_names[0], ylabel=axes_names[1], title=title)
        figure.savefig(path)
        plt.close(figure)


def _dots(figure: Any, axes: Any, places: NDArray[np.float64], labels: Sequence[str] | None) -> None:
    size = float(np.clip(2000 / len(places), 3, 30))
    counts = Counter(labels or ())
    numbers = _numbers(labels) if len(counts) > MAX_CLASSES else None
    if labels is None:
        axes.scatter(*places.T, s=size, color=COLORS[0], alpha=0.6, linewidths=0)
    elif numbers is not None:
        drawn = axes.scatter(*places.T, s=size, c=numbers, cmap="viridis", alpha=0.8, linewidths=0)
        figure.colorbar(drawn, ax=axes, label="label")
    else:
        shown = [label for label, _ in counts.most_common(MAX_CLASSES)]
        rest = np.array([label not in shown for label in labels])
        if rest.any():
            axes.scatter(*places[rest].T, s=size, color=OTHER, linewidths=0, label=f"{len(counts) - len(shown)} others ({rest.sum():,})")
        for number, label in enumerate(sorted(shown)):
            own = np.array([one == label for one in labels])
            axes.scatter(
                *places[own].T, s=size, color=COLORS[number], alpha=0.6, linewidths=0, label=f"{label or '(none)'} ({own.sum():,})"
            )
        axes.legend(frameon=False, markerscale=2)


def _numbers(labels: Sequence[str] | None) -> NDArray[np.float64] | None:
    try:
        return np.array(labels, np.float64)
    except ValueError:
        return None


def draw_layers(path: Path, curves: Mapping[str, Sequence[tuple[int, float, float]]], metric: str, title: str) -> None:
    """A line per probe over layers: (layer, mean, standard deviation) of the metric over the folds."""
    plt, style = pyplot()
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        for number, (name, points) in enumerate(curves.items()):
            layers, means, deviations = (np.array(values) for values in zip(*sorted(points), strict=True))
            color = COLORS[number % len(COLORS)]
            axes.fill_between(layers, means - deviations, means + deviations, color=color, alpha=0.15, linewidth=0)
            axes.plot(layers, means, color=color, marker="o", markersize=4, label=name)
        axes.set(xlabel="layer (0: embeddings)", ylabel=f"{metric}: mean and standard deviation over the folds", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        figure.savefig(path)
        plt.close(figure)


def pyplot() -> tuple[Any, dict[str, Any]]:
    """matplotlib.pyplot without a screen, and the style of the pictures, for `rc_context`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 10.5}
    return pyplot, {**style, "axes.spines.top": False, "axes.spines.right": False}
