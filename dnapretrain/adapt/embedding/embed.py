"""Embeddings of sequences: hidden states of chosen layers, pooled over the tokens that stand for bases.

Rows are read in chunks, each batched by length and put back into order, so memory does not grow with the file. (Vectors of other
batch sizes differ in their last bits.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.backbones.encoding import TOKENS_PER_BATCH, Encoded, TokenBatch
from dnapretrain.adapt.embedding.embedding_files import EmbeddedChunk, open_writer
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.tables import Row, TableOptions, read_rows
from dnapretrain.errors import ConfigError

POOLINGS = ("mean", "cls", "last", "max", "none")
CHUNK_ROWS, CHUNK_BASES = 1024, 4_000_000
"""A chunk ends at whichever comes first."""


@dataclass(frozen=True)
class EmbedSettings:
    """Which vectors."""

    layers: tuple[int, ...] = (-1,)
    """0: embeddings, i: what block i gives, -1: the last, behind the final norm."""
    pooling: str = "mean"
    """mean or max over the tokens that stand for bases (no specials, no padding); cls: the first special; last: the last token of
    bases; none: every token of bases."""
    both_strands: bool = False
    """The mean of the vectors of a sequence and of its reverse complement."""
    tokens_per_batch: int = TOKENS_PER_BATCH

    def check(self, backbone: Backbone) -> None:
        """Raise ConfigError where they do not fit together or the model."""
        backbone.layer_numbers(self.layers)
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling = {self.pooling} is none of {', '.join(POOLINGS)}.")
        if self.pooling == "cls" and not (backbone.is_encoder and backbone.encoder.specials[0]):
            why = "sees itself alone" if not backbone.is_encoder else "is not there: its samples begin with bases"
            raise ConfigError(f"pooling = cls: the first token of this model {why}. Use mean{'' if backbone.is_encoder else ' or last'}.")
        if self.pooling == "none" and self.both_strands:
            raise ConfigError("pooling = none gives tokens, and those of the two strands are not the same. Leave --both-strands out.")


def pool(states_BSH: Tensor, batch: TokenBatch, pooling: str) -> Tensor:
    """[B, H] in fp32 of hidden states [B, S, H]; for a pooling other than none. Padding takes no part, whatever it holds."""
    states_BSH = states_BSH.float()
    mask_BS = batch.bases_mask.to(states_BSH.device)
    if pooling == "cls":
        return states_BSH[:, 0]
    if pooling == "last":
        places = torch.arange(mask_BS.shape[1], device=mask_BS.device)
        last_B = torch.where(mask_BS, places, -1).amax(dim=1)
        return states_BSH[torch.arange(len(last_B), device=last_B.device), last_B]
    if pooling == "max":
        return states_BSH.masked_fill(~mask_BS[..., None], -torch.inf).amax(dim=1)
    total = states_BSH.masked_fill(~mask_BS[..., None], 0).sum(dim=1)
    return total / mask_BS.sum(dim=1, keepdim=True)


def embed_sequences(
    backbone: Backbone, sequences: Sequence[str], settings: EmbedSettings, names: Sequence[str] | None = None, first_row: int = 0
) -> NDArray[np.float32]:
    """[N, L, H]: one vector per sequence and layer, in order; for a pooling other than none.

    Of a sequence in several windows, the mean of theirs, for pooling mean by their tokens, so that each token weighs the same; for
    max their maximum. Raises ConfigError for settings that do not fit, DataError for a sequence that is too long.
    """
    settings.check(backbone)
    forward = _pooled(backbone, backbone.encoder.encode_all(sequences, names, first_row), settings, first_row, len(sequences))
    if not settings.both_strands:
        return forward
    counts = replace(backbone.encoder.counts)  # a sequence counts once
    other = [reverse_complement_text(sequence) for sequence in sequences]
    backward = _pooled(backbone, backbone.encoder.encode_all(other, names, first_row), settings, first_row, len(sequences))
    backbone.encoder.counts = counts
    return np.asarray((forward + backward) / 2, np.float32)


def _pooled(backbone: Backbone, encoded: list[Encoded], settings: EmbedSettings, first_row: int, count: int) -> NDArray[np.float32]:
    shape = (count, len(settings.layers), backbone.hidden_size)
    is_max = settings.pooling == "max"
    found = np.full(shape, -np.inf if is_max else 0.0, np.float32)
    weights = np.zeros(count)
    for batch in backbone.encoder.batches(encoded, settings.tokens_per_batch):
        states = backbone.hidden_states(batch, settings.layers)
        vectors_BLH = torch.stack([pool(layer, batch, settings.pooling) for layer in states], dim=1).cpu().numpy()
        tokens_B = batch.bases_mask.sum(dim=1).numpy() if settings.pooling == "mean" else np.ones(len(batch.rows))
        for row, tokens, vectors_LH in zip((batch.rows - first_row).tolist(), tokens_B.tolist(), vectors_BLH, strict=True):
            found[row] = np.maximum(found[row], vectors_LH) if is_max else found[row] + tokens * vectors_LH
            weights[row] += tokens
    return found if is_max else np.asarray(found / weights[:, None, None], np.float32)


def embed_tokens(
    backbone: Backbone, sequences: Sequence[str], settings: EmbedSettings, names: Sequence[str] | None = None, first_row: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Of each sequence, the ids of its tokens that stand for bases [T] and their vectors [T, L, H]; windows one after the other."""
    settings.check(backbone)
    parts: list[list[tuple[int, NDArray[np.int64], NDArray[np.float32]]]] = [[] for _ in sequences]
    encoded = backbone.encoder.encode_all(sequences, names, first_row)
    ordered = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].ids))  # as `batches` does
    numbers = iter(ordered)
    for batch in backbone.encoder.batches(encoded, settings.tokens_per_batch):
        states_BSLH = torch.stack(backbone.hidden_states(batch, settings.layers), dim=2).float().cpu()
        for at, number in enumerate(islice(numbers, len(batch.rows))):
            mask_S = batch.bases_mask[at]
            parts[encoded[number].row - first_row].append((number, batch.input_ids[at][mask_S].numpy(), states_BSLH[at][mask_S].numpy()))
    return [
        (np.concatenate([ids for _, ids, _ in windows]), np.concatenate([vectors for _, _, vectors in windows]))
        for windows in (sorted(row, key=lambda part: part[0]) for row in parts)
    ]


@dataclass(frozen=True)
class Embedded:
    """What `embed_file` did."""

    num_rows: int
    num_tokens: int
    """Vectors per layer: rows, or tokens where pooling is none."""
    notes: list[str]
    """What was cut, one line each."""
    sample: EmbeddedChunk | None
    """Rows for a picture, at most as many as were asked for, drawn evenly."""


def embed_file(
    backbone: Backbone,
    source: str | Path,
    output: Path,
    settings: EmbedSettings | None = None,
    options: TableOptions | None = None,
    description: dict[str, Any] | None = None,
    sample_rows: int = 0,
) -> Embedded:
    """Embed each row of a table into `output` (.parquet, .npz, .h5), which is there whole or not at all.

    description: what is written beside the vectors (model, settings). Raises ConfigError and DataError.
    """
    settings = settings or EmbedSettings()
    settings.check(backbone)
    layers = backbone.layer_numbers(settings.layers)
    about = {"pooling": settings.pooling, "layers": layers, "both_strands": settings.both_strands, **(description or {})}
    sampler = _Reservoir(sample_rows)
    num_rows = num_vectors = 0
    with open_writer(output, layers, backbone.hidden_size, settings.pooling == "none", about) as writer:
        for rows in _chunks(read_rows(source, options)):
            chunk = _embed_chunk(backbone, rows, settings, num_rows)
            writer.write(chunk)
            sampler.add(chunk)
            num_rows += len(rows)
            num_vectors += len(chunk.vectors)
    return Embedded(num_rows, num_vectors, backbone.encoder.counts.lines(), sampler.chunk())


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    bases = 0
    for row in rows:
        chunk.append(row)
        bases += len(row.sequence)
        if len(chunk) >= CHUNK_ROWS or bases >= CHUNK_BASES:
            yield chunk
            chunk, bases = [], 0
    if chunk:
        yield chunk


def _embed_chunk(backbone: Backbone, rows: list[Row], settings: EmbedSettings, first_row: int) -> EmbeddedChunk:
    names, sequences = [row.name for row in rows], [row.sequence for row in rows]
    labels = {column: [row.labels[column] for row in rows] for column in rows[0].labels}
    if settings.pooling != "none":
        return EmbeddedChunk(names, labels, embed_sequences(backbone, sequences, settings, names, first_row))
    found = embed_tokens(backbone, sequences, settings, names, first_row)
    texts = backbone.encoder.tokenizer.tokens
    tokens = [[texts[value] for value in ids] for ids, _ in found]
    return EmbeddedChunk(names, labels, np.concatenate([vectors for _, vectors in found]), tokens)


class _Reservoir:
    """An even sample of rows of unknown number, the same each time (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self._size, self._seen = size, 0
        self._kept: list[tuple[int, str, dict[str, str], NDArray[np.float32]]] = []
        self._random = np.random.default_rng(0)

    def add(self, chunk: EmbeddedChunk) -> None:
        if not self._size or chunk.tokens is not None:
            return
        for at, name in enumerate(chunk.names):
            place = self._seen if self._seen < self._size else int(self._random.integers(self._seen + 1))
            if place < self._size:
                one = (self._seen, name, {column: values[at] for column, values in chunk.labels.items()}, chunk.vectors[at].copy())
                self._kept[place : place + 1] = [one]
            self._seen += 1

    def chunk(self) -> EmbeddedChunk | None:
        kept = sorted(self._kept, key=lambda one: one[0])
        if not kept:
            return None
        labels = {column: [one[2][column] for one in kept] for column in kept[0][2]}
        return EmbeddedChunk([one[1] for one in kept], labels, np.stack([one[3] for one in kept]))
