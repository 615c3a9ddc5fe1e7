"""The heat map of saturation mutagenesis: a column for each base, a row for each letter that stands in its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnapretrain.adapt.pictures import check_picture, pyplot
from dnapretrain.adapt.variants.variant_sites import Region
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    from dnapretrain.adapt.variants.score_files import Scored

STRIP_BASES, MAX_STRIPS = 100, 20
LETTERS = "ACGT"


def check_heat_map(path: Path, region: str | None) -> None:
    """Raise ConfigError for a picture that cannot be drawn, before anything is computed."""
    check_picture(path)
    if region is None:
        raise ConfigError("--picture is the heat map of --saturate; a VCF has none. Leave it out.")
    parsed = Region.parse(region)
    length = parsed.end - parsed.start
    if length > STRIP_BASES * MAX_STRIPS:
        raise ConfigError(f"--picture: {length:,} bases are more than {STRIP_BASES * MAX_STRIPS:,}. Draw parts, or leave it out.")


def draw_heat_map(path: Path, region: Region, done: Scored, title: str) -> None:
    """The first score of `done.rows`; the reference is a dot, white; what has no score is grey."""
    column = done.columns[0]
    values_4N = np.full((len(LETTERS), region.end - region.start), np.nan)
    reference: dict[int, str] = {}
    for variant, scores in done.rows:
        at = variant.start - region.start
        values_4N[LETTERS.index(variant.alt), at] = scores.values.get(column, np.nan)
        reference[at] = variant.ref
    for at, letter in reference.items():
        values_4N[LETTERS.index(letter), at] = 0 if column in ("llr", "likelihood") else np.nan
    known = values_4N[np.isfinite(values_4N)]
    largest = float(np.quantile(np.abs(known), 0.99)) if len(known) else 1.0
    is_signed = bool((known < 0).any())
    limits = {"vmin": -largest if is_signed else 0, "vmax": largest or 1.0}
    num_strips = -(-values_4N.shape[1] // STRIP_BASES)
    plt, style = pyplot()
    with plt.rc_context(style):
        figure, strips = plt.subplots(num_strips, 1, figsize=(12, 0.7 + 1.05 * num_strips), dpi=120, layout="constrained", squeeze=False)
        for number, axes in enumerate(strips[:, 0]):
            first = number * STRIP_BASES
            part_4N = np.full((len(LETTERS), STRIP_BASES if num_strips > 1 else values_4N.shape[1]), np.nan)
            there = values_4N[:, first : first + STRIP_BASES]
            part_4N[:, : there.shape[1]] = there
            axes.set_facecolor("#e4e8ec" if there.shape[1] == part_4N.shape[1] else "white")
            drawn = axes.imshow(part_4N, cmap="RdBu" if is_signed else "viridis", aspect="auto", interpolation="nearest", **limits)
            dots = [(at, LETTERS.index(reference[first + at])) for at in range(there.shape[1]) if first + at in reference]
            axes.scatter(*zip(*dots, strict=True) if dots else ((), ()), s=5, color="#1f2933", linewidths=0)
            ticks = np.arange(0, there.shape[1], 10)
            axes.set_xticks(ticks, [f"{region.start + 1 + first + tick:,}" if tick % 20 == 0 else "" for tick in ticks.tolist()])
            axes.set_yticks(range(len(LETTERS)), LETTERS)
        figure.colorbar(drawn, ax=strips[:, 0].tolist(), label=column + (" (nats)" if column in ("llr", "likelihood") else ""), pad=0.01)
        figure.suptitle(f"{title}: {region.contig}:{region.start + 1:,}-{region.end:,}, dots are the reference", fontsize=10.5)
        figure.savefig(path)
        plt.close(figure)
