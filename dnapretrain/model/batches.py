"""Micro-batches on the device, by arithmetic on sample ids: the same global batch for any number of ranks.

Step input: samples `consumed_samples ...`; micro-batch m of data-parallel rank r holds the samples
`consumed + (m * ranks + r) * micro_batch_size ...`. Every rank of one model copy reads them from the
shards itself (a pure function of the ids), so nothing is broadcast. Context-parallel ranks read whole samples too, and then
take their parts (`own_part`): what looks at a whole sample is done before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.sampling.samples import Batch
from dnapretrain.model.context_parallel import own_part


@dataclass(frozen=True)
class DeviceBatch:
    """One micro-batch on the device: tokens, labels and positions int64 [B, S], loss mask float32 [B, S].

    S is this rank's part of the sequence under context parallelism, but for keys (K), which are those of whole samples."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    positions_BS: torch.Tensor
    attention_mask: torch.Tensor | None
    """bool [B, 1, 1, K], True at padding; None where no token is padding, or attention is causal. With data.document_attention
    what attention adds to its scores, [B, 1, S, K] (`document_mask`), or numbers of documents, int64 [B, 1, 1, K]; None where no
    sample has tokens of two documents."""
    num_tokens: int
    """Labels that are not padding."""
    whole: WholeSamples | None = None
    """Of held-out batches only."""


@dataclass(frozen=True)
class WholeSamples:
    """What a batch was made of, before context-parallel ranks took their parts; on the CPU."""

    sample_ids: np.ndarray
    """int64 [B]."""
    first_tokens_B: torch.Tensor | None
    """Of the causal objective, the token that is read before the labels; None: masked objective."""
    labels_BK: torch.Tensor
    places_S: np.ndarray
    """int64: which of the labels are this rank's."""


@dataclass(frozen=True)
class HostBatch:
    """A micro-batch as it was read, in memory that a GPU can copy from while it works (pinned), where there is one."""

    tokens_BP: torch.Tensor
    labels_BP: torch.Tensor
    loss_mask_BP: torch.Tensor
    padding: torch.Tensor | None
    """bool [B, 1, 1, S], where attention must know of it and there is any; of whole samples, as the documents are."""
    documents_BS: torch.Tensor | None
    has_several_documents: bool
    """Whether any sample has tokens of two."""
    num_tokens: int


@dataclass(frozen=True)
class BatchPlace:
    """Which part of each global batch this rank reads, and whether its model chunk reads any."""

    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    device: torch.device
    chunk_reads: tuple[bool, ...]
    """Per model chunk: True for the first and last pipeline stage, and for every stage where padding or documents must be known."""
    pad_id: int
    bidirectional: bool
    """Whether attention must be told what is padding: causal attention meets none before what it predicts."""
    dtype: torch.dtype = torch.float32
    """What attention computes in, which its mask of documents must have."""
    documents_by_number: bool = False
    """Whether attention is told the documents of tokens rather than such a mask (FlexAttention)."""
    context_parallel_rank: int = 0
    context_parallel_size: int = 1

    def micro_batch_ids(self, first_sample: int, index: int) -> np.ndarray:
        """Sample ids, int64 [B], of this rank's micro-batch `index` of the global batch that starts at `first_sample`."""
        start = first_sample + (index * self.data_parallel_size + self.data_parallel_rank) * self.micro_batch_size
        return np.arange(start, start + self.micro_batch_size, dtype=np.int64)

    def own_part(self, of_samples: torch.Tensor) -> torch.Tensor:
        """What this rank holds of values [B, S] of whole samples."""
        return own_part(of_samples, self.context_parallel_rank, self.context_parallel_size)

    def take(self, batch: Batch) -> DeviceBatch:
        """This rank's part of a micro-batch, on its device."""
        return to_device(to_host(batch, self), self)

    def whole(self, sample_ids: np.ndarray, batch: Batch) -> WholeSamples:
        """What `take` takes a part of."""
        first_tokens_B = None if self.bidirectional else torch.from_numpy(batch.tokens[:, 0])
        labels_BK = torch.from_numpy(batch.labels)
        places_S = self.own_part(torch.arange(labels_BK.shape[1])[None])[0].numpy()
        return WholeSamples(sample_ids, first_tokens_B, labels_BK, places_S)


def all_of(of_samples: torch.Tensor) -> torch.Tensor:
    """`own_part` without context parallelism."""
    return of_samples


class HeldOutSamples(Protocol):
    """What `held_out_batches` reads: a held-out set, or the windows of probes."""

    @property
    def num_samples(self) -> int:
        """Samples that there are."""

    def batch(self, sample_ids: np.ndarray) -> Batch:
        """The samples of these ids, int64 [B], in this order."""


Reader = Callable[[int, int], HostBatch]
"""(first sample of a global batch, index) -> this rank's micro-batch `index` of it."""


def step_batches(readers: Sequence[Reader | None], place: BatchPlace, first_sample: int, count: int) -> list[Iterator[DeviceBatch | None]]:
    """One iterator per model chunk over this rank's `count` micro-batches of one global batch; None where the chunk reads no batch."""

    def chunk_batches(read: Reader | None) -> Iterator[DeviceBatch | None]:
        for index in range(count):
            yield to_device(read(first_sample, index), place) if read else None

    return [chunk_batches(read) for read in readers]


def direct_readers(stream: TrainStream, place: BatchPlace) -> list[Reader | None]:
    """What reads each model chunk's micro-batches when they are asked for."""

    def read(first_sample: int, index: int) -> HostBatch:
        return to_host(stream.batch(place.micro_batch_ids(first_sample, index)), place)

    return [read if reads else None for reads in place.chunk_reads]


def held_out_batches(
    stream: HeldOutSamples, place: BatchPlace, first_sample: int, num_microbatches: int, num_samples: int
) -> list[Iterator[DeviceBatch | None]]:
    """The same over `num_samples` samples spread evenly over a held-out set, each of them once.

    Places beyond `num_samples` are filled with sample 0 at loss weight 0, so that every rank runs micro-batches of
    one shape: held-out sets seldom divide evenly.
    """

    def chunk_batches(reads: bool) -> Iterator[DeviceBatch | None]:
        for index in range(num_microbatches):
            if reads:
                places = place.micro_batch_ids(first_sample, index)
                beyond = places >= num_samples
                ids = np.where(beyond, 0, places * stream.num_samples // num_samples)
                batch = stream.batch(ids)
                batch.loss_mask[beyond] = 0.0
                yield replace(place.take(batch), whole=place.whole(ids, batch))
            else:
                yield None

    return [chunk_batches(reads) for reads in place.chunk_reads]


def to_host(batch: Batch, place: BatchPlace) -> HostBatch:
    """This rank's part of `batch` as tensors, ready to be copied to the device; what needs a look at its numbers is settled here."""

    def ready(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if place.device.type == "cuda" else tensor

    tokens, labels, loss_mask = (place.own_part(torch.from_numpy(array)) for array in (batch.tokens, batch.labels, batch.loss_mask))
    documents = batch.documents
    padding = padding_mask(batch.tokens, place.pad_id, torch.device("cpu")) if place.bidirectional and documents is None else None
    return HostBatch(
        tokens_BP=ready(tokens),
        labels_BP=ready(labels),
        loss_mask_BP=ready(loss_mask),
        padding=None if padding is None else ready(padding),
        documents_BS=None if documents is None else ready(torch.from_numpy(documents)),
        has_several_documents=documents is not None and bool((documents != documents[:, :1]).any()),
        num_tokens=int((labels != place.pad_id).sum()),
    )


def to_device(batch: HostBatch, place: BatchPlace) -> DeviceBatch:
    """`batch` on the device, with the positions of its tokens and what attention must not see: one mask for all layers."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(place.device, non_blocking=True)

    rows, own_length = batch.tokens_BP.shape
    positions = torch.arange(own_length * place.context_parallel_size, device=place.device).expand(rows, -1)
    mask = None if batch.padding is None else copy(batch.padding)
    if batch.documents_BS is not None:
        documents = copy(batch.documents_BS)
        positions = document_positions(documents)
        if batch.has_several_documents and place.documents_by_number:
            mask = documents[:, None, None, :]
        elif batch.has_several_documents:
            mask = document_mask(documents, not place.bidirectional, place.dtype, place.own_part)
    tokens, labels, loss_mask = (copy(tensor) for tensor in (batch.tokens_BP, batch.labels_BP, batch.loss_mask_BP))
    return DeviceBatch(tokens, labels, loss_mask, place.own_part(positions), mask, batch.num_tokens)


def document_positions(documents_BS: torch.Tensor) -> torch.Tensor:
    """int64 [B, S]: places of tokens counted anew from the first token of each document."""
    places_S = torch.arange(documents_BS.shape[1], device=documents_BS.device)
    begins_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    return places_S - (places_S * begins_BS).cummax(dim=1).values


def document_mask(
    documents_BK: torch.Tensor,
    is_causal: bool,
    dtype: torch.dtype,
    own_part: Callable[[torch.Tensor], torch.Tensor] = all_of,
) -> torch.Tensor:
    """[B, 1, S, K] to be added to attention's scores: 0 where a query may see a key, else minus infinity; S rows of `own_part`.

    Added rather than boolean: kernels would make such a tensor of a boolean mask in every layer, and keep each of them.
    Padding is a document of its own, so that every query sees a key, itself.
    """
    seen_BSK = own_part(documents_BK)[:, :, None] == documents_BK[:, None, :]
    if is_causal:
        places_1K = torch.arange(documents_BK.shape[1], device=documents_BK.device)[None]
        seen_BSK &= own_part(places_1K)[:, :, None] >= places_1K[:, None, :]
    mask_BSK = torch.zeros(seen_BSK.shape, dtype=dtype, device=seen_BSK.device).masked_fill_(seen_BSK.logical_not_(), -math.inf)
    return mask_BSK[:, None]


def padding_mask(tokens: np.ndarray, pad_id: int, device: torch.device) -> torch.Tensor | None:
    """bool [B, 1, 1, S], True where a token of [B, S] is padding; None where none is, so that attention needs no mask."""
    is_padding = tokens == pad_id
    return torch.from_numpy(is_padding[:, None, None, :]).to(device) if is_padding.any() else None
