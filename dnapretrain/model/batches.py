"""Micro-batches on the device, by arithmetic on sample ids: the same global batch for any number of ranks.

Step input: samples `consumed_samples ...`; micro-batch m of data-parallel rank r holds the samples
`consumed + (m * ranks + r) * micro_batch_size ...`. Every rank of one model copy reads them from the
shards itself (a pure function of the ids), so nothing is broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dnapretrain.data.samples import SampleStream


@dataclass(frozen=True)
class DeviceBatch:
    """One micro-batch on the device: tokens, labels and positions int64 [B, S], loss mask float32 [B, S]."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    positions_BS: torch.Tensor


@dataclass(frozen=True)
class BatchPlace:
    """Which part of each global batch this rank reads, and whether its model chunk reads any."""

    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    device: torch.device
    chunk_reads: tuple[bool, ...]
    """Per model chunk: True for the first and last pipeline stage."""

    def micro_batch_ids(self, first_sample: int, index: int) -> np.ndarray:
        """Sample ids, int64 [B], of this rank's micro-batch `index` of the global batch that starts at `first_sample`."""
        start = first_sample + (index * self.data_parallel_size + self.data_parallel_rank) * self.micro_batch_size
        return np.arange(start, start + self.micro_batch_size, dtype=np.int64)


def step_batches(
    stream: SampleStream, place: BatchPlace, first_sample: int, num_microbatches: int, end: int | None = None
) -> list[Iterator[DeviceBatch | None]]:
    """One iterator per model chunk over this rank's micro-batches of one global batch.

    Samples from `end` on do not exist: their places are filled with sample 0 at loss weight 0, so that
    every rank runs micro-batches of one shape (held-out sets seldom divide evenly).
    """

    def chunk_batches(reads: bool) -> Iterator[DeviceBatch | None]:
        for index in range(num_microbatches):
            yield read_batch(stream, place.micro_batch_ids(first_sample, index), place.device, end) if reads else None

    return [chunk_batches(reads) for reads in place.chunk_reads]


def read_batch(stream: SampleStream, ids: np.ndarray, device: torch.device, end: int | None = None) -> DeviceBatch:
    """The samples `ids` on `device`."""
    beyond = ids >= end if end is not None else np.zeros(len(ids), dtype=bool)
    batch = stream.batch(np.where(beyond, 0, ids))
    batch.loss_mask[beyond] = 0.0
    tokens, labels, loss_mask = (torch.from_numpy(array).to(device) for array in (batch.tokens, batch.labels, batch.loss_mask))
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    return DeviceBatch(tokens, labels, loss_mask, positions)
