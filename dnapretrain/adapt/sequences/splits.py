"""The splits that a task is learned and judged on, and what they share: equal sequences on either strand, and overlapping ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.adapt.sequences.folds import deal_folds, same_sequence_groups, shared_rows
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.errors import ConfigError

OVERLAP_BASES = 50
"""Bases in a row that two windows of one genome share, and repeats seldom."""
MULTIPLIER = 0x9E3779B97F4A7C15  # odd


@dataclass(frozen=True)
class Split:
    """One round of learning: numbers of rows of the training table, or whole tables."""

    fold: int | None
    train: NDArray[np.int64]
    valid: NDArray[np.int64] | None
    """None: the table of --valid."""
    test: NDArray[np.int64] | None
    """None: the table of --test, or none."""


def make_splits(
    table: SequenceTable,
    has_valid: bool,
    has_test: bool,
    num_folds: int,
    valid_fraction: float,
    seed: int,
    classes: NDArray[np.int64] | None = None,
) -> list[Split]:
    """One split, or one of each fold.

    Without folds: validation is the table given, or `valid_fraction` of the training rows. With folds: each is the test set once,
    validation is `valid_fraction` of the others; where there is a test table, each fold is the validation set once. Copies of a
    sequence, on either strand, are on one side. Raises ConfigError for both folds and a validation table.
    """
    groups = same_sequence_groups(table.sequences)
    everything = np.arange(len(table))
    if num_folds and has_valid:
        raise ConfigError("--folds makes its own validation rows, and --valid gives some. Leave one out.")
    if not 0 < valid_fraction <= 0.5:
        raise ConfigError(f"valid_fraction = {valid_fraction} must be above 0 and at most 0.5.")
    if not num_folds:
        if has_valid:
            return [Split(None, everything, None, None)]
        return [Split(None, *_carve(everything, groups, valid_fraction, seed, classes), None)]
    folds = deal_folds(groups, num_folds, seed, classes)
    found = []
    for fold in range(num_folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if has_test:
            found.append(Split(fold, outside, inside, None))
        else:
            found.append(Split(fold, *_carve(outside, groups, valid_fraction, seed, classes), inside))
    return found


def _carve(
    rows: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, seed: int, classes: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, and about `fraction` of them to validate on."""
    parts = deal_folds(groups[rows], max(2, round(1 / fraction)), seed, None if classes is None else classes[rows])
    return rows[parts > 0], rows[parts == 0]


def table_digest(table: SequenceTable) -> str:
    """XXH3-128 of sequences and labels, in their order."""
    digest = xxhash.xxh3_128()
    for column, values in table.labels.items():
        digest.update(f"{column}\0".encode() + "\0".join(values).encode())
    for sequence in table.sequences:
        digest.update(sequence.encode() + b"\n")
    return digest.hexdigest()


def leakage(tables: dict[str, SequenceTable]) -> dict[str, dict[str, int]]:
    """`test in train` and so on, of later tables in earlier ones: rows, those that are equal (either strand), and those that share
    OVERLAP_BASES bases in a row with one there."""
    names = list(tables)
    hashes = {name: window_hashes(tables[name].sequences) for name in names[:-1]}
    found = {}
    for at, name in enumerate(names):
        for other in names[:at]:
            equal = len(shared_rows(tables[name].sequences, tables[other].sequences))
            overlap = len(overlapping_rows(tables[name].sequences, hashes[other]))
            found[f"{name} in {other}"] = {"rows": len(tables[name]), "equal": equal, f"share_{OVERLAP_BASES}_bases": overlap}
    return found


def leakage_lines(found: dict[str, dict[str, int]]) -> list[str]:
    """One line for each pair that shares something."""
    lines = []
    for pair, counts in found.items():
        overlap = counts[f"share_{OVERLAP_BASES}_bases"]
        if counts["equal"] or overlap:
            lines.append(
                f"leakage: {pair}: {counts['equal']:,} of {counts['rows']:,} rows are there too, on either strand; {overlap:,} share "
                f"{OVERLAP_BASES} bases in a row with a row there"
            )
    return lines


def window_hashes(sequences: Sequence[str], width: int = OVERLAP_BASES) -> NDArray[np.uint64]:
    """A number of every window of `width` bases, the same on both strands; sorted, each once. Windows with letters but ACGT: none."""
    return np.unique(_windows(sequences, width)[0])


def overlapping_rows(sequences: Sequence[str], hashes: NDArray[np.uint64], width: int = OVERLAP_BASES) -> NDArray[np.int64]:
    """Numbers of the sequences with a window among `hashes`."""
    if not len(hashes):
        return np.empty(0, np.int64)
    windows, rows = _windows(sequences, width)
    places = np.minimum(np.searchsorted(hashes, windows), len(hashes) - 1)
    return np.unique(rows[hashes[places] == windows])


def _windows(sequences: Sequence[str], width: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Of each window its number, the sum of the polynomial hashes of both strands modulo 2^64, and the row that it is in."""
    text = np.frombuffer("N".join([*sequences, ""]).encode(), np.uint8)  # no window reaches over an N
    if len(text) < width:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    random = np.random.default_rng(7).integers(1, 2**63, 4, dtype=np.uint64)
    codes, complements = np.zeros(256, np.uint64), np.zeros(256, np.uint64)
    codes[np.frombuffer(b"ACGT", np.uint8)] = random
    complements[np.frombuffer(b"TGCA", np.uint8)] = random
    numbers = _polynomials(codes[text], width, True) + _polynomials(complements[text], width, False)
    unknown = np.concatenate([[0], np.cumsum(codes[text] == 0)])
    starts = np.flatnonzero(unknown[width:] == unknown[:-width])
    ends = np.cumsum([len(sequence) + 1 for sequence in sequences])
    return numbers[starts], np.searchsorted(ends, starts, side="right")


def _polynomials(values: NDArray[np.uint64], width: int, first_is_highest: bool) -> NDArray[np.uint64]:
    """[N - width + 1] of each window the sum of values times powers of MULTIPLIER, put together from windows of half the width."""

    def power(exponent: int) -> np.uint64:
        return np.uint64(pow(MULTIPLIER, exponent, 1 << 64))

    found, done = np.zeros(len(values) + 1, np.uint64), 0  # of windows of no base
    part, size = values, 1
    while size <= width:
        if width & size:
            count = len(values) - done - size + 1
            left, right = found[:count], part[done : done + count]
            found = left * power(size) + right if first_is_highest else left + right * power(done)
            done += size
        count = len(part) - size
        if count > 0:
            part = part[:count] * power(size) + part[size:] if first_is_highest else part[:count] + part[size:] * power(size)
        size *= 2
    return found
