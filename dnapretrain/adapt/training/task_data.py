"""Sequences with what is to be learned of them as batches for a classifier: tokens, and a label per sequence or per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.encoding import Encoded, SequenceEncoder, TokenBatch
from dnapretrain.adapt.sequences.records import LETTERS
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.errors import ConfigError, DataError

IGNORED = -100
"""Label of tokens that no base stands for: transformers' loss leaves them out."""


@dataclass(frozen=True)
class TaskRows:
    """A table, encoded."""

    encoded: list[Encoded]
    truth: list[NDArray[Any]]
    """As `Target.truth`; empty of a table without labels."""
    bases_per_token: list[NDArray[np.int64]]
    """Of tokens tasks: of each row, of each token but specials. Empty of others."""

    def __len__(self) -> int:
        return len(self.encoded)

    def select(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> TaskRows:
        """These rows, in this order."""
        return TaskRows(
            [self.encoded[row] for row in rows],
            [self.truth[row] for row in rows] if self.truth else [],
            [self.bases_per_token[row] for row in rows] if self.bases_per_token else [],
        )


def encode_rows(table: SequenceTable, target: Target, encoder: SequenceEncoder, labelled: bool = True) -> TaskRows:
    """Raises DataError for a sequence longer than the model (unless it is truncated), ConfigError for windows: a label is of a whole."""
    if encoder.on_long == "window":
        raise ConfigError("--on-long window reads a sequence in parts, and its label is of the whole. Use error or truncate.")
    truth = target.truth(table) if labelled else []
    encoded = encoder.encode_all(table.sequences, table.names)
    if target.task != "tokens":
        return TaskRows(encoded, truth, [])
    lengths = [_bases_of_tokens(one, table, encoder) for one in encoded]
    read = [one[: int(of_row.sum())] for one, of_row in zip(truth, lengths, strict=True)] if labelled else []  # truncated rows end early
    return TaskRows(encoded, read, lengths)


def _bases_of_tokens(one: Encoded, table: SequenceTable, encoder: SequenceEncoder) -> NDArray[np.int64]:
    """Bases that each token of a row stands for. Raises DataError where that cannot be told."""
    tokenizer, bases = encoder.tokenizer, table.sequences[one.row]
    found: list[int] = []
    at = 0
    for token in one.ids[one.specials[0] : len(one.ids) - one.specials[1]].tolist():
        text = tokenizer.tokens[token]
        if LETTERS.issuperset(text):
            length = len(text) if bases[at : at + len(text)] == text else 0
        else:  # of no token's letters
            length = 0 if tokenizer.is_variable else tokenizer.k
        if not length:
            raise DataError(
                f"{table.source}: row {one.row + 1} ({table.names[one.row]}): the tokens cannot be placed on the bases from position "
                f"{at + 1} on ('{bases[at : at + 12]}'), so labels of bases cannot be given to them. Remove letters other than A, C, G, T."
            )
        found.append(length)
        at += length
    return np.array(found, np.int64)


def token_labels(of_bases: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each token, the commonest class of its bases; of several, the smallest number."""
    pieces = np.split(of_bases[: int(lengths.sum())], np.cumsum(lengths)[:-1])
    return np.array([np.bincount(piece).argmax() for piece in pieces], np.int64)


def make_batch(rows: TaskRows, picked: Sequence[int], target: Target, encoder: SequenceEncoder) -> tuple[TokenBatch, Tensor]:
    """Tokens and labels of these rows: [B] classes, [B, L] numbers (float), or [B, S] classes of tokens."""
    batch = encoder.collate([rows.encoded[row] for row in picked])
    if target.task != "tokens":
        labels = torch.from_numpy(np.stack([rows.truth[row] for row in picked]))
        return batch, labels.long() if target.task == "classification" else labels.float()
    labels = torch.full(batch.input_ids.shape, IGNORED)
    for at, row in enumerate(picked):
        labels[at, batch.bases_mask[at]] = torch.from_numpy(token_labels(rows.truth[row], rows.bases_per_token[row]))
    return batch, labels


def training_batches(count: int, batch_size: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Numbers of rows, each once, in an order drawn from `random`; the last batch may be smaller."""
    order = random.permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]
