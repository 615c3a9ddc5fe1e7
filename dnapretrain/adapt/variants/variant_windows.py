"""The two windows of a site, with its reference and its alternative allele, and the tokens that lie over it.

Both windows begin at the same base. Words of a fixed number of bases (k-mers): both have as many bases, whole words, so a deletion
reads on to the right; their words stand in the same places. Other tokens: both end at the same base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.variants.variant_sites import Site
from dnapretrain.data.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class Window:
    """Bases that a model reads in one go, and the allele in them."""

    text: str
    start: int
    end: int
    """Of the allele, in `text`; equal where it is empty."""


@dataclass(frozen=True)
class Windows:
    """The pair."""

    ref: Window
    alt: Window


def word_bases(tokenizer: Tokenizer) -> int:
    """Bases of a word of fixed length; 1 of single bases and of byte pairs."""
    return 1 if tokenizer.bpe else tokenizer.k


def windows(site: Site, size: int, word: int = 1, phases: Sequence[int] = (0,)) -> Windows | None:
    """Windows of at most `size` bases with the variant in the middle, or nearer to an end where the contig ends.

    word: bases of a word. phases: how many bases of its word may stand before the variant, the best first; the first that the ends of
    the contig leave room for is taken. None where neither window has room.
    """
    longest = max(len(site.ref), len(site.alt))
    for phase in phases:
        before = min(len(site.left), max((size - longest) // 2, size - longest - len(site.right)))
        before -= (before - phase) % word
        if before < 0:
            continue
        left = site.left[len(site.left) - before :]
        if word > 1:
            total = min(size, before + len(site.right) + min(len(site.ref), len(site.alt)))
            total -= total % word
        else:
            total = min(size, before + longest + len(site.right))
        if total < before + longest:
            continue
        after = total - before - longest
        pair = []
        for allele in (site.ref, site.alt):
            text = (left + allele + site.right)[:total] if word > 1 else left + allele + site.right[:after]
            pair.append(Window(text, before, before + len(allele)))
        return Windows(*pair)
    return None


def all_phases(word: int, first: int) -> list[int]:
    """Every phase, `first` first."""
    return [first, *(phase for phase in range(word) if phase != first)]


def token_starts(tokenizer: Tokenizer, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T + 1] where each of T tokens (no specials) of a sequence of A, C, G, T and N begins; last, where the last one ends."""
    if not tokenizer.is_variable:
        return np.arange(len(ids) + 1) * tokenizer.k
    unknown = tokenizer.unk_id
    texts = tokenizer.tokens
    lengths = [1 if value == unknown else len(texts[value]) for value in ids.tolist()]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def tokens_over(starts: NDArray[np.int64], start: int, end: int) -> range:
    """Numbers of the tokens that share a base with [start, end); of an empty stretch, with the base on either side of it."""
    if end <= start:
        start, end = max(0, start - 1), start + 1
    end = min(end, int(starts[-1]))
    first = int(np.searchsorted(starts, start, side="right")) - 1
    return range(first, max(int(np.searchsorted(starts, end, side="left")), first))
