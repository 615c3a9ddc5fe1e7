"""Count models that see both sides of a base: what a masked language model of DNA has to beat.

The model of f flanks predicts a base from the f before it and the f after it with the frequencies of the
training segments, p(b | left, right) = (count(left, b, right) + a) / (count(left, right) + 4a), as markov.py
does from the left alone. Flanks never seen together give 2 bits; f = 0 knows the base frequencies only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.markov import BASE_CODES, PSEUDOCOUNT, SEPARATOR, check_pseudocount

MAX_FLANK = 6
"""A table of all words of 2 x 6 + 1 bases has 67 million counts, 0.5 GB; one more flank would take 16 times that."""
PIECE = 1 << 22
"""Bases counted at a time."""

Codes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


def flank_ladder(
    train: Iterable[npt.NDArray[np.uint8]],
    held_out: Iterable[npt.NDArray[np.uint8]],
    flanks: Iterable[int] = range(1, 6),
    pseudocount: float = PSEUDOCOUNT,
    both_strands: bool = False,
) -> dict[int, float]:
    """Bits per base of the held-out segments under the model of each number of flanks f, fitted to the training segments.

    Segments are ASCII bases, uint8, either case. Ambiguous bases break the context and are not scored. Every f is
    scored on the same bases: those with at least max(flanks) unbroken bases on each side in their segment.
    `both_strands` counts the reverse complement of the training segments too. Memory beside the segments, however
    many bases there are: four tables of 4^(2f+1) counts of 8 bytes (134 MB at f = 5, 2.1 GB at f = 6) and 100 MB.
    Raises ConfigError for bad flanks, DataError when nothing is left to fit or score.
    """
    wanted = sorted(set(flanks))
    if not wanted or wanted[0] < 0 or wanted[-1] > MAX_FLANK:
        raise ConfigError(f"flanks = {wanted}: give at least one, from 0 to {MAX_FLANK}.")
    check_pseudocount(pseudocount)
    train, held_out = list(train), list(held_out)
    widest = wanted[-1]
    ladder = {}
    for flank in wanted:
        tested = count_words(held_out, flank, widest)
        if not tested.any():
            raise DataError(f"no held-out base has {widest} unbroken bases on both sides. Hold out more, or ask for fewer flanks.")
        fitted = count_words(train, flank, flank)
        if not fitted.any():
            raise DataError(f"no training base has {flank} unbroken bases on both sides. Train on more, or ask for fewer flanks.")
        if both_strands:
            fitted += other_strand(fitted)
        ladder[flank] = _bits_per_base(fitted, tested, flank, pseudocount)
    return ladder


def count_words(segments: Sequence[npt.NDArray[np.uint8]], flank: int, needed: int) -> Counts:
    """How often each word of 2 x flank + 1 bases (base-4 digits, first base highest) stands around a base with `needed` on each side."""
    counts = np.zeros(4 ** (2 * flank + 1), dtype=np.int64)
    for codes in _pieces(segments, 2 * needed):
        middles = len(codes) - 2 * needed
        if middles <= 0:
            continue
        breaks = np.concatenate(([0], np.cumsum(codes == SEPARATOR, dtype=np.int32)))
        unbroken = breaks[2 * needed + 1 :] == breaks[:middles]
        words = np.zeros(middles, dtype=np.int32)
        for start in range(needed - flank, needed + flank + 1):
            words <<= 2
            words |= codes[start : start + middles] & 3
        counts += np.bincount(words[unbroken], minlength=len(counts))
    return counts


def _pieces(segments: Sequence[npt.NDArray[np.uint8]], overlap: int) -> Iterator[Codes]:
    """The segments as base codes, each followed by a separator, in pieces of about PIECE; a cut segment repeats `overlap` bases."""
    waiting: list[Codes] = []
    size = 0
    for segment in segments:
        for start in range(0, len(segment), PIECE):
            waiting += [BASE_CODES[segment[max(0, start - overlap) : start + PIECE]], np.array([SEPARATOR], dtype=np.uint8)]
            size += len(waiting[-2]) + 1
            if size >= PIECE:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def other_strand(counts: Counts) -> Counts:
    """The counts of the reverse complements: word by word, the complement is 3 - digit and the digits are read backwards."""
    length = (len(counts).bit_length() - 1) // 2
    return counts[::-1].reshape((4,) * length).transpose().reshape(-1)


def _bits_per_base(fitted: Counts, tested: Counts, flank: int, pseudocount: float) -> float:
    """Mean -log2 p over the words counted in `tested`: the middle base given the others, with the counts in `fitted`."""
    left_base_right = (4**flank, 4, 4**flank)
    context = fitted.reshape(left_base_right).sum(axis=1)
    left, _, right = np.unravel_index(words := np.flatnonzero(tested), left_base_right)
    bits = -np.log2((fitted[words] + pseudocount) / (context[left, right] + 4 * pseudocount))
    return float(bits @ tested[words] / tested.sum())
