"""Steps that stand out of a run's log, and the loci that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.errors import DnaPretrainError

BEFORE = 100
"""Steps before a step that it is compared with."""
FEWEST = 20
"""Steps that must lie before it."""
DEVIATIONS = 8.0
"""A spike is so many standard deviations above the mean of those."""
SHARE = {"bits_per_base": 1.01, "grad_norm": 2.0}
"""And above this multiple of that mean: a quiet run has small deviations."""
LOCI = 4
"""Loci shown of a step."""


@dataclass
class Spike:
    """One step."""

    step: int
    what: str
    value: float
    usual: float
    """Mean of the steps before."""
    updated: bool
    loci: Sequence[str] = ()
    num_samples: int = 0


def find_spikes(train: Sequence[dict[str, Any]], most: int = 12) -> tuple[list[Spike], int]:
    """The worst spikes of loss and gradient norm in order of steps, and how many there are in all; a step not updated is one always."""
    found: dict[int, tuple[float, Spike]] = {}
    for key, what in (("grad_norm", "gradient norm"), ("bits_per_base", "loss, bits per base")):
        values = np.array([_number(record.get(key)) for record in train])
        given = np.array([isinstance(record.get(key), (int, float)) for record in train])
        mean, deviation = _before(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            height = (values - mean) / deviation
            places = np.flatnonzero(((height > DEVIATIONS) & (values > SHARE[key] * mean)) | (given & ~np.isfinite(values)))
        for place in places.tolist():
            record = train[place]
            rank = float("inf") if not np.isfinite(height[place]) else float(height[place])
            found[place] = (rank, Spike(record["step"], what, float(values[place]), float(mean[place]), record.get("updated", True)))
    for place, record in enumerate(train):
        if not record.get("updated", True) and place not in found:
            loss = _number(record.get("bits_per_base"))
            found[place] = (float("inf"), Spike(record["step"], "no update", loss, float("nan"), False))
    worst = sorted(found.values(), key=lambda pair: -pair[0])[:most]
    return sorted((spike for _, spike in worst), key=lambda spike: spike.step), len(found)


def add_loci(run_dir: Path, spikes: Sequence[Spike]) -> str:
    """Name the loci that each of these steps read, by the run's own data; why not, where that cannot be."""
    from dnapretrain.data.audit.runs import Steps, open_config, open_train

    try:
        config = open_config(run_dir)
        stream, steps = open_train(config), Steps(config)
        for spike in spikes:
            samples = steps.samples(spike.step)
            loci = [str(locus) for sample in samples[:LOCI] for locus in stream.locate(sample)]
            spike.loci, spike.num_samples = loci[:LOCI], len(samples)
    except (DnaPretrainError, OSError) as error:
        return f"The loci of these steps are not shown: {error}"
    return ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _before(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the finite ones of the BEFORE values before each; not a number where they are fewer than FEWEST."""
    known = np.isfinite(values)
    centre = float(np.median(values[known])) if known.any() else 0.0
    shifted = np.where(known, values - centre, 0.0)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (known.astype(float), shifted, shifted**2)]
    at = np.arange(len(values))
    first = np.maximum(at - BEFORE, 0)
    count, total, squares = (part[at] - part[first] for part in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    enough = count >= FEWEST
    return np.where(enough, mean + centre, np.nan), np.where(enough, deviation, np.nan)
