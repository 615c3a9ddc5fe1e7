"""Which bases a held-out loss counts: those of its targets, token by token, whatever the tokenizer.

A target counts the bases it stands for: k of a k-mer, 1 of a single letter, 1 to 32 of a byte pair. Tokens that hold an ambiguous
base (N, a k-mer with N in it, the unknown token) are no targets: neither their loss nor their bases count, and nor do bases that are
left over behind the last whole token, or that no token of their sample reached. So bits per base is the information of the targets
over the bases of the same targets, and comparable between tokenizers. (The loss of byte pairs is that of the one way to cut them
that the tokenizer has: an upper bound for the sequence itself, which could be cut in others.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import DataError

BASES = frozenset("ACGTU")
BATCH = 64
"""Samples read at a time."""


def token_bases(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bases that each token id stands for; 0 of specials, N and the unknown token."""
    return np.array([len(text) if set(text) <= BASES else 0 for text in tokenizer.tokens], np.int64)


def spread(num_samples: int, max_samples: int | None) -> NDArray[np.int64]:
    """Ids of `max_samples` samples spread evenly over `num_samples` (None: all), as held-out losses choose them."""
    count = min(num_samples, max_samples or num_samples)
    return np.arange(count, dtype=np.int64) * num_samples // count


@dataclass(frozen=True)
class CountedText:
    """Samples as the model reads them, one after the other, each followed by a separator, and the targets in them."""

    bases: NDArray[np.uint8]
    """ASCII; N for every token that stands for no known bases."""
    start: NDArray[np.int64]
    """First base of each target."""
    length: NDArray[np.int64]
    """Its bases."""
    weight: NDArray[np.float64]
    """Its loss weight, above 0."""

    def mean(self, bits: NDArray[np.float64]) -> float:
        """Bits per base, given the bits of each target."""
        return float(bits @ self.weight / (self.length @ self.weight))


def counted_text(stream: SampleStream, masked: bool, max_samples: int | None = None) -> CountedText:
    """The samples that `held_out_loss` scores, with the same targets and weights; raises DataError where there is no target."""
    tokenizer = stream.tokenizer
    lengths_V = token_bases(tokenizer)
    texts_V = [text.encode() if count else b"N" for text, count in zip(tokenizer.tokens, lengths_V, strict=True)]
    pieces, starts, lengths, weights, at = [], [], [], [], 0
    for tokens_S, weights_S in _samples(stream, masked, max_samples):
        widths_S = np.maximum(lengths_V[tokens_S], 1)
        pieces += [*(texts_V[token] for token in tokens_S), b"N"]
        is_target_S = (weights_S > 0) & (lengths_V[tokens_S] > 0)
        starts.append(at + (np.cumsum(widths_S) - widths_S)[is_target_S])
        lengths.append(widths_S[is_target_S])
        weights.append(weights_S[is_target_S].astype(np.float64))
        at += int(widths_S.sum()) + 1
    text = CountedText(np.frombuffer(b"".join(pieces), np.uint8), *(np.concatenate(parts) for parts in (starts, lengths, weights)))
    if not len(text.start):
        raise DataError(f"held-out set '{stream.name}' has no target. Hold out others, or more samples.")
    return text


def _samples(stream: SampleStream, masked: bool, max_samples: int | None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Tokens and weights of each sample; of the causal objective with the first token, which is only read."""
    ids = spread(stream.num_samples, max_samples)
    for first in range(0, len(ids), BATCH):
        batch = stream.batch(ids[first : first + BATCH])
        for tokens_S, labels_S, weights_S in zip(batch.tokens, batch.labels, batch.loss_mask, strict=True):
            yield (labels_S, weights_S) if masked else (np.append(tokens_S[:1], labels_S), np.append(np.float32(0), weights_S))
