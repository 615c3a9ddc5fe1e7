"""How sources are blended: weights and sizes -> samples of each source per block of samples, in stages.

The share of a source goes with weight x bases^alpha, where bases are those of its training side (the exponential smoothing
of multilingual models, p ~ n^alpha: Devlin et al. 2018; XLM-R, arXiv:1911.02116; a temperature T is alpha = 1/T). alpha = 0
leaves the weights alone, 1 draws every base of the corpus equally often at equal weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dnapretrain._core import BLEND_BLOCK, MAX_BLEND_BLOCK
from dnapretrain.config import DataConfig, StageConfig
from dnapretrain.errors import ConfigError

FAIR_SHARE = 8
"""Samples of the rarest source in a block that had to grow for it: rounding then changes no share by more than 1 in 16."""
RAREST = 32 * MAX_BLEND_BLOCK
"""A source that is due less than one sample in the largest block, but at least one in so many, is given one."""


@dataclass(frozen=True)
class Stage:
    """From sample id `start` on, every block of samples holds `shares[i]` of source i; the shares add up to the block."""

    start: int
    shares: list[int]

    @property
    def block(self) -> int:
        """Samples of one block."""
        return sum(self.shares)


def blend_shares(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a block: largest remainders, exactly adding up. A weight of 0 is a share of 0.

    The block has BLEND_BLOCK samples; where that leaves a source without any, it doubles until the rarest has FAIR_SHARE,
    up to MAX_BLEND_BLOCK. What is due less than one sample there is given one, which the largest shares pay for. Raises
    ConfigError for a source that is due less than one in RAREST.
    """
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    unit = max(below for _, below in ratios)  # powers of two, as those of all floats
    exact = [above * (unit // below) for above, below in ratios]
    total = sum(exact)
    shares = _rounded(exact, total, BLEND_BLOCK)
    if _without(shares, exact):
        block = 2 * BLEND_BLOCK
        rarest = min(weight for weight in exact if weight)
        while block < MAX_BLEND_BLOCK and rarest * block < FAIR_SHARE * total:
            block *= 2
        if rarest * RAREST < total:
            number = exact.index(rarest)
            raise ConfigError(
                f"a source of data.train (number {number + 1}) has weight {weights[number]} of {total / unit}: less than one sample in "
                f"{RAREST:,}. Raise it, lower data.blend_alpha, or preprocess small genomes into one shard"
            )
        shares = _at_least_one(_rounded(exact, total, block), exact)
    return shares


def _rounded(weights: list[int], total: int, block: int) -> list[int]:
    shares = [weight * block // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda number: -(weights[number] * block % total))
    for number in by_remainder[: block - sum(shares)]:
        shares[number] += 1
    return shares


def _without(shares: list[int], weights: list[int]) -> list[int]:
    return [number for number, share in enumerate(shares) if weights[number] and not share]


def _at_least_one(shares: list[int], weights: list[int]) -> list[int]:
    largest = sorted((number for number, share in enumerate(shares) if share > FAIR_SHARE), key=lambda number: -shares[number])
    for number, payer in zip(_without(shares, weights), itertools.cycle(largest), strict=False):
        shares[number] += 1
        shares[payer] -= 1
    return shares


def blend_stages(data: DataConfig, weights: Sequence[float], bases: Sequence[int]) -> list[Stage]:
    """The stages of `data` over sources of these weights and training bases; one stage where data.stages is empty.

    Raises ConfigError for stages that are given in steps (RunConfig.data_by_samples turns them into samples) or do not fit.
    """
    stages, start = [], 0
    for config in data.stages or (StageConfig(),):
        alpha = data.blend_alpha if config.blend_alpha is None else config.blend_alpha
        given = weights if config.weights is None else config.weights
        if len(given) != len(bases):
            raise ConfigError(f"a stage of data.stages has {len(given)} weights for {len(bases)} sources of data.train. Give one for each")
        stages.append(Stage(start, blend_shares([weight * float(count) ** alpha for weight, count in zip(given, bases, strict=True)])))
        if config.sequence_length not in (None, data.sequence_length):
            raise ConfigError(
                f"a stage of data.stages has sequence_length = {config.sequence_length} in a stream of {data.sequence_length} tokens. "
                "Open it with train_stream, which has a stream for each length"
            )
        if config.until_step is not None:
            raise ConfigError("data.stages has until_step, which needs train.* to be counted in samples. Use until_samples")
        start = config.until_samples or 0
    return stages


def one_epoch(stages: Sequence[Stage], num_samples: Sequence[int]) -> int:
    """The fewest samples whose shares read every source at least once; sources that the last stage leaves out do not count."""
    longest = 0
    for source, needed in enumerate(num_samples):
        for number, stage in enumerate(stages):
            share, block = stage.shares[source], stage.block
            end = stages[number + 1].start if number + 1 < len(stages) else None
            room = None if end is None else (end - stage.start) * share // block
            if room is not None and room < needed:
                needed -= room
            elif share:
                longest = max(longest, stage.start + -(-needed * block // share))
                break
            else:
                break
    return longest
