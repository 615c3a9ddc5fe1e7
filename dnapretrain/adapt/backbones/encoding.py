"""Sequences as a model reads them: tokens with the specials that it was trained with, and batches of like lengths.

Tokens of fixed k-mers (GENERator's, our `kmer`): the 1 to k - 1 bases left over at the end would be one <unk> there, in the place that
decoders are read at; they are cut and counted, as GENERator's own scripts do. Other tokenizers have tokens for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

OnLong = Literal["error", "truncate", "window"]
ON_LONG: tuple[OnLong, ...] = ("error", "truncate", "window")
TOKENS_PER_BATCH = 16_384


@dataclass(frozen=True)
class Encoded:
    """A sequence, or a window of a long one, as tokens."""

    row: int
    """Number of the sequence among those given."""
    ids: NDArray[np.int64]
    """With specials."""
    specials: tuple[int, int]
    """How many of the first and of the last tokens are specials: the others stand for bases."""

    @property
    def num_tokens(self) -> int:
        """Tokens that stand for bases."""
        return len(self.ids) - sum(self.specials)


@dataclass
class Counts:
    """What was not read as it stood, for the report."""

    sequences: int = 0
    truncated: int = 0
    """Sequences that were cut at the model's context."""
    truncated_tokens: int = 0
    windowed: int = 0
    """Sequences that were read in several windows."""
    windows: int = 0
    """Of these, together."""
    remainders: int = 0
    """Sequences with bases left over behind their last whole k-mer."""
    remainder_bases: int = 0
    filled_rows: int = 0
    """Sequences whose last k-mer was filled up (causal.py)."""
    filled: int = 0
    """With so many A's, together."""

    def lines(self) -> list[str]:
        """One line for each thing that happened."""
        said = []
        if self.truncated:
            said.append(
                f"{self.truncated:,} of {self.sequences:,} sequences were truncated: {self.truncated_tokens:,} tokens were not read"
            )
        if self.windowed:
            said.append(f"{self.windowed:,} of {self.sequences:,} sequences were read in {self.windows:,} windows")
        if self.remainders:
            said.append(f"{self.remainders:,} of {self.sequences:,} sequences end in {self.remainder_bases:,} bases of no whole token: cut")
        if self.filled:
            said.append(f"{self.filled_rows:,} of {self.sequences:,} sequences end within a k-mer, which {self.filled:,} A's fill up")
        return said


@dataclass(frozen=True)
class TokenBatch:
    """Sequences side by side, padded on the right."""

    rows: NDArray[np.int64]
    """[B] numbers of the sequences; windows of one have the same."""
    input_ids: Tensor
    """[B, S]."""
    attention_mask: Tensor
    """[B, S] 1 at tokens, specials among them; 0 at padding."""
    bases_mask: Tensor
    """[B, S] True at tokens that stand for bases: neither specials nor padding."""

    def to(self, device: str) -> TokenBatch:
        """The same, there."""
        return TokenBatch(self.rows, self.input_ids.to(device), self.attention_mask.to(device), self.bases_mask.to(device))


@dataclass
class SequenceEncoder:
    """What makes tokens and batches for one model."""

    tokenizer: Tokenizer
    is_encoder: bool
    max_tokens: int
    """Tokens of a sequence, specials included."""
    on_long: OnLong = "error"
    """`truncate`: its first tokens only, counted. `window`: several windows of like lengths, each with specials."""
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        if self.on_long not in ON_LONG:
            raise ConfigError(f"on_long = {self.on_long} is none of {', '.join(ON_LONG)}.")
        if self._room < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens} leaves no room beside {sum(self.specials)} special tokens. Raise it.")

    @property
    def specials(self) -> tuple[int, int]:
        """Special tokens before and behind a sequence, as in training."""
        return int(self.tokenizer.add_bos), int(self.is_encoder and self.tokenizer.add_eos)

    @property
    def _room(self) -> int:
        return self.max_tokens - sum(self.specials)

    def encode(self, sequence: str, row: int = 0, name: str = "") -> list[Encoded]:
        """The tokens of a sequence; several windows where it is longer than the model and `on_long` is `window`.

        Raises DataError for an empty sequence, and for one that is too long where that is an error.
        """
        ids = self._words(sequence)
        where = f"sequence {row + 1}" + (f" ({name})" if name else "")
        if not len(ids):
            raise DataError(f"{where} has no bases. Remove it.")
        self.counts.sequences += 1
        if len(ids) <= self._room:
            return [self._framed(row, ids)]
        if self.on_long == "error":
            raise DataError(
                f"{where} has {len(sequence):,} bases = {len(ids) + sum(self.specials):,} tokens with specials; the model reads "
                f"{self.max_tokens:,}. Cut it, or choose --on-long truncate (its first tokens) or window (all, in parts)."
            )
        if self.on_long == "truncate":
            self.counts.truncated += 1
            self.counts.truncated_tokens += len(ids) - self._room
            return [self._framed(row, ids[: self._room])]
        parts = np.array_split(ids, math.ceil(len(ids) / self._room))
        self.counts.windowed += 1
        self.counts.windows += len(parts)
        return [self._framed(row, part) for part in parts]

    def encode_all(self, sequences: Sequence[str], names: Sequence[str] | None = None, first_row: int = 0) -> list[Encoded]:
        """`encode` of each, rows numbered from `first_row`."""
        names = names or [""] * len(sequences)
        return [
            encoded
            for row, (sequence, name) in enumerate(zip(sequences, names, strict=True), first_row)
            for encoded in self.encode(sequence, row, name)
        ]

    def _words(self, sequence: str) -> NDArray[np.int64]:
        tokenizer = self.tokenizer
        spare = 0 if tokenizer.is_variable else len(sequence) % tokenizer.k
        if spare and len(sequence) > spare:
            self.counts.remainders += 1
            self.counts.remainder_bases += spare
            sequence = sequence[:-spare]
        return tokenizer.encode(sequence)

    def _framed(self, row: int, ids: NDArray[np.int64]) -> Encoded:
        before, behind = self.specials
        first = [self.tokenizer.bos_id] if before else []
        last = [self.tokenizer.eos_id] if behind else []
        return Encoded(row, np.concatenate([np.array(first, np.int64), ids, np.array(last, np.int64)]), (before, behind))

    def collate(self, encoded: Sequence[Encoded]) -> TokenBatch:
        """One batch of these, in this order."""
        width = max(len(one.ids) for one in encoded)
        input_ids = torch.full((len(encoded), width), self.tokenizer.pad_id)
        attention_mask = torch.zeros(len(encoded), width, dtype=torch.long)
        bases_mask = torch.zeros(len(encoded), width, dtype=torch.bool)
        for number, one in enumerate(encoded):
            length = len(one.ids)
            input_ids[number, :length] = torch.from_numpy(one.ids)
            attention_mask[number, :length] = 1
            bases_mask[number, one.specials[0] : length - one.specials[1]] = True
        return TokenBatch(np.array([one.row for one in encoded]), input_ids, attention_mask, bases_mask)

    def batches(self, encoded: Iterable[Encoded], tokens_per_batch: int = TOKENS_PER_BATCH) -> Iterator[TokenBatch]:
        """Batches of like lengths, the longest first, each of at most so many tokens with padding (one sequence at least)."""
        if tokens_per_batch < 1:
            raise ConfigError(f"tokens_per_batch = {tokens_per_batch} is below 1.")
        ordered = sorted(encoded, key=lambda one: -len(one.ids))
        start = 0
        while start < len(ordered):
            count = max(1, tokens_per_batch // len(ordered[start].ids))
            yield self.collate(ordered[start : start + count])
            start += count
