"""Two sets of sequences compared by what they are made of: k-mers, codons, lengths."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.metrics import pearson
from dnapretrain.errors import DataError

Floats = NDArray[np.float64]
MAX_K = 8


def kmer_counts(sequences: Sequence[str], k: int) -> Floats:
    """[4^k] overlapping k-mers of A, C, G, T, on the strand given, in alphabetical order; those with other letters do not count."""
    codes = np.full(256, -1, np.int64)
    codes[np.frombuffer(b"ACGT", np.uint8)] = range(4)
    found = np.zeros(4**k)
    for sequence in sequences:
        digits = codes[np.frombuffer(sequence.encode("ascii"), np.uint8)]
        if len(digits) < k:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(digits, k)
        known = windows[(windows >= 0).all(axis=1)]
        found += np.bincount(known @ 4 ** np.arange(k - 1, -1, -1), minlength=4**k)
    return found


def counts_of(counter: Mapping[str, int], names: Sequence[str]) -> Floats:
    """[names]."""
    return np.array([counter.get(name, 0) for name in names], np.float64)


def js_divergence(one: Floats, other: Floats) -> float:
    """Jensen-Shannon divergence of two counts in bits: 0 of equal distributions, 1 of those that share nothing (Lin 1991).

    Raises DataError where one is empty.
    """
    if not one.sum() or not other.sum():
        raise DataError("a set of sequences has nothing to count: they are too short, or hold other letters than A, C, G, T.")
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    return float((_bits(p, middle) + _bits(q, middle)) / 2)


def _bits(p: Floats, q: Floats) -> float:
    there = p > 0
    return float(p[there] @ np.log2(p[there] / q[there]))


def compare_counts(one: Floats, other: Floats) -> dict[str, float]:
    """`js_divergence` in bits and `pearson`, the correlation of the frequencies."""
    return {"js_divergence": js_divergence(one, other), "pearson": pearson(one / one.sum(), other / other.sum())}


def ks_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference between the two cumulative distributions (Kolmogorov and Smirnov), 0 to 1."""
    first, second = np.sort(np.asarray(one, np.float64)), np.sort(np.asarray(other, np.float64))
    places = np.concatenate([first, second])
    shares = (np.searchsorted(values, places, side="right") / len(values) for values in (first, second))
    return float(np.abs(np.subtract(*shares)).max())


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """`count`, `mean`, `sd`, and the quantiles `least`, `q25`, `median`, `q75`, `most`."""
    found = np.quantile(np.asarray(values, np.float64), [0, 0.25, 0.5, 0.75, 1]).tolist()
    names = ("least", "q25", "median", "q75", "most")
    return {"count": len(values), "mean": float(np.mean(values)), "sd": float(np.std(values)), **dict(zip(names, found, strict=True))}


def gc_share(sequence: str) -> float:
    """G and C among A, C, G, T; NaN without any."""
    counts = Counter(sequence)
    known = sum(counts[base] for base in "ACGT")
    return (counts["G"] + counts["C"]) / known if known else float("nan")


def wilson(count: int, total: int, z: float = 1.959964) -> dict[str, float]:
    """A share with Wilson's 95 % interval. Raises DataError for none of none."""
    if not total:
        raise DataError("a share of no sequences has no interval.")
    share = count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return {"count": count, "value": share, "low": float(max(0.0, middle - half)), "high": float(min(1.0, middle + half))}


CODONS = tuple(map("".join, itertools.product("ACGT", repeat=3)))
