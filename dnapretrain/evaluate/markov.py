"""Count models of order 0 to n: what a language model of DNA has to beat.

An order-n model predicts a base from the n before it with the frequencies of the training segments,
p(b | context) = (count(context, b) + a) / (count(context) + 4a), with the same pseudocount a for every
order. A context never seen gives 2 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnapretrain.errors import ConfigError, DataError

PSEUDOCOUNT = 1.0
"""Laplace's rule: fixed in advance, not fitted to the held-out bases."""
MAX_ORDER = 30
"""A base and its context must fit 64 bits, two bits per base."""

SEPARATOR = 4
BASE_CODES = np.full(256, SEPARATOR, dtype=np.uint8)
"""ASCII -> 0 to 3 for A, C, G, T (U) in either case, so that 3 - code is the complement; SEPARATOR for all else."""
for _code, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"TtUu")):
    BASE_CODES[list(_letters)] = _code

Words = npt.NDArray[np.unsignedinteger]


@dataclass
class _Text:
    """Segments joined by separators, and at each position the word of bases that ends there."""

    bases: npt.NDArray[np.uint8]
    """0-3; separators and ambiguous bases read 0 here and end a run in `run`."""
    run: npt.NDArray[np.uint8]
    """Unbroken bases that end here, this one included, at most the longest word asked for."""
    words: Words
    """The last `length` bases as base-4 digits, the newest lowest; meaningful where run >= length."""
    length: int = 1

    def grow(self) -> None:
        """Make each word one base longer."""
        self.words[self.length :] += self.bases[: -self.length].astype(self.words.dtype) << self.words.dtype.type(2 * self.length)
        self.length += 1


def markov_ladder(
    train: Iterable[npt.NDArray[np.uint8]],
    held_out: Iterable[npt.NDArray[np.uint8]],
    orders: Iterable[int] = range(13),
    pseudocount: float = PSEUDOCOUNT,
    both_strands: bool = False,
) -> dict[int, float]:
    """Bits per base of the held-out segments under the count model of each order, fitted to the training segments.

    Segments are ASCII bases, uint8, either case. Ambiguous bases break the context and are not scored.
    Every order is scored on the same bases: those with at least max(orders) unbroken bases before them in
    their segment. `both_strands` counts the reverse complement of the training segments too. Memory is
    about 30 bytes per training base. Raises ConfigError for bad orders, DataError when nothing is left to fit or score.
    """
    wanted = sorted(set(orders))
    if not wanted or wanted[0] < 0 or wanted[-1] > MAX_ORDER:
        raise ConfigError(f"orders = {wanted}: give at least one, from 0 to {MAX_ORDER}.")
    check_pseudocount(pseudocount)
    longest = wanted[-1] + 1
    fitted = _text(train, longest, both_strands)
    tested = _text(held_out, longest, both_strands=False)
    scored = tested.run == longest
    if not scored.any():
        raise DataError(f"no held-out base has {longest - 1} unbroken bases before it. Hold out more, or ask for lower orders.")
    ladder = {}
    while True:
        order = fitted.length - 1
        if order in wanted:
            ladder[order] = _bits_per_base(fitted.words[fitted.run >= fitted.length], tested.words[scored], pseudocount)
        if order == wanted[-1]:
            return ladder
        fitted.grow()
        tested.grow()


def bits_by_order(
    train: Iterable[npt.NDArray[np.uint8]],
    held_out: npt.NDArray[np.uint8],
    last_order: int,
    pseudocount: float = PSEUDOCOUNT,
    both_strands: bool = False,
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """(order, places, bits) for the orders 0 to `last_order`: bits of each base of `held_out` with so many unbroken bases before it.

    Fitted as in `markov_ladder`, and as much memory.
    """
    fitted = _text(train, last_order + 1, both_strands)
    tested = _text([held_out], last_order + 1, both_strands=False)
    for order in range(last_order + 1):
        if order:
            fitted.grow()
            tested.grow()
        places = np.flatnonzero(tested.run > order)
        words, which = np.unique(tested.words[places], return_inverse=True)
        yield order, places, _bits(fitted.words[fitted.run > order], words, pseudocount)[which]


def check_pseudocount(pseudocount: float) -> None:
    """Raise ConfigError unless every base keeps a probability above 0."""
    if not pseudocount > 0:
        raise ConfigError(f"pseudocount = {pseudocount} is not positive: unseen bases would cost infinitely many bits.")


def _text(segments: Iterable[npt.NDArray[np.uint8]], longest: int, both_strands: bool) -> _Text:
    strands = [BASE_CODES[segment] for segment in segments]
    if both_strands:
        strands += [np.where(codes < SEPARATOR, 3 - codes, SEPARATOR).astype(np.uint8)[::-1] for codes in strands]
    bases = np.zeros(sum(len(codes) + 1 for codes in strands), dtype=np.uint8)
    run = np.zeros(len(bases), dtype=np.uint8)
    start = 0
    for codes in strands:
        end = start + len(codes)
        known = codes < SEPARATOR
        bases[start:end] = np.where(known, codes, 0)
        positions = np.arange(len(codes))
        last_break = np.maximum.accumulate(np.where(known, -1, positions))
        run[start:end] = np.minimum(positions - last_break, longest)
        start = end + 1
    if not run.any():
        raise DataError("no A, C, G or T in the segments of the count model. Check what was preprocessed and held out.")
    return _Text(bases, run, bases.astype(np.uint32 if longest <= 16 else np.uint64))


def _bits_per_base(fitted: Words, tested: Words, pseudocount: float) -> float:
    """Mean -log2 p of the words in `tested`, with counts of the words in `fitted`: last base given the ones before."""
    words, times = np.unique(tested, return_counts=True)
    return float(_bits(fitted, words, pseudocount) @ times / times.sum())


def _bits(fitted: Words, words: Words, pseudocount: float) -> npt.NDArray[np.float64]:
    """-log2 p of each of the distinct `words`. Counts by binary search; word + 1 may leave the type, hence side="right" there."""
    fitted = np.sort(fitted)
    first_of_context = words & ~words.dtype.type(3)
    seen = _count(fitted, words, words)
    context_seen = _count(fitted, first_of_context, first_of_context | words.dtype.type(3))
    bits: npt.NDArray[np.float64] = -np.log2((seen + pseudocount) / (context_seen + 4 * pseudocount))
    return bits


def _count(ordered: Words, first: Words, last: Words) -> npt.NDArray[np.int64]:
    """How many elements of `ordered` lie in [first, last], for each pair."""
    return np.searchsorted(ordered, last, side="right") - np.searchsorted(ordered, first, side="left")
