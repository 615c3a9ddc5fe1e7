"""Count models on exactly the targets of a held-out loss, for every tokenizer: what a model has to beat.

All are fitted to training segments, both strands, with Laplace's rule, and see of a held-out sample what the model sees: its tokens
as bases, and nothing beyond its ends, behind an ambiguous base or across a document. Where that leaves fewer bases of context than a
count model has, it goes by those there are. Bits of a target are those of its bases together (chain rule), so that bits per base
compare with a model's, whatever stands for a token.

  markov    Decoders. Order n: each base from the n before it.
  flanks    Encoders of single bases. f: the base from the f before and the f behind it, by counts of all three together.
  bridge    Encoders of k-mers and byte pairs. Order n: the m bases of the hidden token from the n before and the n behind it, as a
            Markov chain of order n goes from one to the other: p(token | left, right) = p(token right | left) / sum over all 4^m
            words of p(word right | left). The sum is an entry of the (m + n)-th power of the chain's matrix: exact.
  tokens    Where tokens are k-mers or byte pairs: how often each is met.

Count models see the true neighbours of a hidden token, those too that the model cannot see because they are hidden as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain._core import reverse_complement
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.counted import CountedText, token_bases
from dnapretrain.evaluate.flank import count_words, other_strand
from dnapretrain.evaluate.markov import BASE_CODES, PSEUDOCOUNT, SEPARATOR, bits_by_order

ORDERS = range(13)
FLANKS = range(6)
BRIDGES = range(7)
"""The matrix of order 6 has 4^6 x 4^6 entries, 134 MB, and another one is made of it."""
PIECE = 1 << 16
"""Bases of a piece where not all of the training bases are read."""

Segments = Sequence[NDArray[np.uint8]]
Bits = NDArray[np.float64]


def baselines(tokenizer: Tokenizer, text: CountedText, train: Segments, masked: bool) -> dict[str, dict[str, float]]:
    """Bits per base of each count model on the targets of `text`, by name and order. Raises DataError where nothing can be fitted."""
    found: dict[str, dict[str, float]] = {}
    if not masked:
        found["markov"] = markov_bits(text, train, ORDERS)
    elif (text.length == 1).all():
        found["flanks"] = flank_bits(text, train, FLANKS)
    else:
        found["bridge"] = bridge_bits(text, train, BRIDGES)
    if not (text.length == 1).all():
        found["tokens"] = {"all": token_bits(tokenizer, text, train)}
    return found


def fit_segments(segments: Iterable[NDArray[np.uint8]], max_bases: int) -> tuple[Segments, int, int]:
    """Training segments of `max_bases` bases at most, pieces spread evenly where there are more; bases taken, bases there are."""
    if max_bases < 1:
        raise ConfigError(f"fit_bases = {max_bases} is below 1. Give the number of training bases that count models are fitted to.")
    whole = list(segments)
    total = sum(map(len, whole))
    if total <= max_bases:
        return whole, total, total
    size = min(PIECE, max_bases)
    pieces = [segment[start : start + size] for segment in whole for start in range(0, len(segment), size)]
    count = max(1, max_bases // size)
    chosen = [pieces[number * len(pieces) // count] for number in range(min(count, len(pieces)))]
    return chosen, sum(map(len, chosen)), total


def markov_bits(text: CountedText, train: Segments, orders: Sequence[int]) -> dict[str, float]:
    """Bits per base by order."""
    bits_of_base = np.zeros(len(text.bases))
    found = {}
    for order, places, bits in bits_by_order(train, text.bases, max(orders), PSEUDOCOUNT, both_strands=True):
        bits_of_base[places] = bits
        if order in orders:
            sums = np.concatenate([[0.0], np.cumsum(bits_of_base)])
            found[str(order)] = text.mean(sums[text.start + text.length] - sums[text.start])
    return found


def flank_bits(text: CountedText, train: Segments, flanks: Sequence[int]) -> dict[str, float]:
    """Bits per base by number of flanks, of targets that are single bases."""
    codes = BASE_CODES[text.bases].astype(np.int64)
    room = np.minimum(*_unbroken(codes, text))
    bits = np.zeros(len(text.start))
    found = {}
    for flank in flanks:
        counts = count_words(train, flank, flank)
        counts += other_strand(counts)
        table = (counts.reshape(4**flank, 4, 4**flank) + PSEUDOCOUNT).astype(np.float64)
        table /= table.sum(axis=1, keepdims=True)
        here = room >= flank
        at = text.start[here]
        left, right = _word(codes, at - flank, flank), _word(codes, at + 1, flank)
        bits[here] = -np.log2(table[left, codes[at], right])
        found[str(flank)] = text.mean(bits)
    return found


def bridge_bits(text: CountedText, train: Segments, orders: Sequence[int]) -> dict[str, float]:
    """Bits per base by order of the chain."""
    codes = BASE_CODES[text.bases].astype(np.int64)
    room = np.minimum(*_unbroken(codes, text))
    known = np.where(codes < SEPARATOR, codes, 0)
    bits = np.zeros(len(text.start))
    found = {}
    for order in orders:
        chain = _chain(train, order)
        here = np.flatnonzero(room >= order)
        # Bits of every base of the samples after the `order` before it, summed up: those of a stretch are a difference.
        states = _word(known, np.arange(len(known)) - order, order, clip=True)
        sums = np.concatenate([[0.0], np.cumsum(-np.log2(chain[states, known]))])
        start, end = text.start[here], text.start[here] + text.length[here]
        bits[here] = sums[end + order] - sums[start]
        if order:
            left, right = _word(codes, start - order, order), _word(codes, end, order)
            bits[here] += np.log2(_passages(chain, order, text.length[here], left, right))
        found[str(order)] = text.mean(bits)
    return found


def token_bits(tokenizer: Tokenizer, text: CountedText, train: Segments) -> float:
    """Bits per base under the frequencies of tokens."""
    lengths_V = token_bases(tokenizer)
    counts_V = np.zeros(len(lengths_V))
    for segment in train:
        for start in range(0, len(segment), PIECE):
            piece = np.ascontiguousarray(segment[start : start + PIECE])
            for strand in (piece, reverse_complement(piece)):
                counts_V += np.bincount(tokenizer.encode(strand), minlength=len(counts_V))
    is_base_V = lengths_V > 0
    smoothed_V = np.where(is_base_V, counts_V + PSEUDOCOUNT, 0.0)
    ids = {token.encode(): number for number, token in enumerate(tokenizer.tokens) if is_base_V[number]}
    flat = text.bases.tobytes()
    targets = [ids[flat[start : start + length]] for start, length in zip(text.start.tolist(), text.length.tolist(), strict=True)]
    return text.mean(-np.log2(smoothed_V[targets] / smoothed_V.sum()))


def _unbroken(codes: NDArray[np.int64], text: CountedText) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Known bases without a break before each target, and behind it."""
    places = np.arange(len(codes))
    last_break = np.maximum.accumulate(np.where(codes == SEPARATOR, places, -1))
    next_break = np.minimum.accumulate(np.where(codes == SEPARATOR, places, len(codes))[::-1])[::-1]
    end = text.start + text.length
    before = np.where(text.start > 0, text.start - 1 - last_break[text.start - 1], 0)
    return before, next_break[end] - end


def _word(codes: NDArray[np.int64], start: NDArray[np.int64], length: int, clip: bool = False) -> NDArray[np.int64]:
    """The `length` bases from `start` on as base-4 digits, the first one highest. `clip`: places before the first base read as it."""
    words = np.zeros(len(start), np.int64)
    for place in range(length):
        words = words * 4 + codes[np.maximum(start + place, 0) if clip else start + place]
    return words


def _chain(train: Segments, order: int) -> NDArray[np.float64]:
    """p(base | `order` bases before it), [4^order, 4]."""
    counts = np.zeros(4 ** (order + 1), np.int64)
    for segment in train:
        for strand in (segment, reverse_complement(np.ascontiguousarray(segment))):
            codes = BASE_CODES[strand].astype(np.int64)
            if len(codes) <= order:
                continue
            starts = np.arange(len(codes) - order)
            breaks = np.concatenate([[0], np.cumsum(codes == SEPARATOR)])
            whole = starts[breaks[starts + order + 1] == breaks[starts]]
            counts += np.bincount(_word(codes, whole, order + 1), minlength=len(counts))
    if not counts.any():
        raise DataError(f"no training base has {order} unbroken bases before it. Fit the count models to more bases.")
    table = counts.reshape(-1, 4) + PSEUDOCOUNT
    found: NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
    return found


def _passages(chain: NDArray[np.float64], order: int, length: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> Bits:
    """Probability that the chain, at the bases `left`, reads `right` behind any `length` bases, for each triple."""
    states = 4**order
    step = chain.reshape(4, states // 4, 4)
    power = np.eye(states)
    found = np.zeros(len(length))
    for steps in range(1, order + int(length.max()) + 1):
        # From state (a, rest) base b leads to state (rest, b).
        power = np.einsum("Lar,arb->Lrb", power.reshape(states, 4, -1), step).reshape(states, states)
        here = length == steps - order
        found[here] = power[left[here], right[here]]
    return found


def set_baselines(
    stream: SampleStream, text: CountedText, train: Iterable[NDArray[np.uint8]], masked: bool, fit_bases: int
) -> dict[str, Any]:
    """`baselines` of one held-out set, with how many bases they were fitted to and the best of them."""
    segments, used, total = fit_segments(train, fit_bases)
    found = baselines(stream.tokenizer, text, segments, masked)
    best = min(((bits, f"{kind} {order}") for kind, ladder in found.items() for order, bits in ladder.items()), key=lambda pair: pair[0])
    return {"bits_per_base": found, "best": best[1], "best_bits_per_base": best[0], "fitted_bases": used, "training_bases": total}
