"""Which of the ranks that hold the same tensor writes it: each its share of a checkpoint, agreed on without a word.

Megatron-core gives every replica to data-parallel rank 0, which then writes all while the others wait. Its own way to spread them
has all ranks exchange what they hold and takes time with the square of their number; here every data-parallel rank holds the same
tensors, so each reckons the shares of all by itself. The plan of a simulated job reckons them with the same function.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values


def assigned(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """The rank that takes each of these sizes: the largest first, each to the rank with least so far, the lowest of equals."""
    load = [(0, rank) for rank in range(num_ranks)]
    ranks = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        taken, rank = heapq.heappop(load)
        ranks[place] = rank
        heapq.heappush(load, (taken + sizes[place], rank))
    return ranks


def tensor_bytes(tensor: ShardedTensor) -> int:
    """Bytes of the part of a stored tensor that a rank holds."""
    count = 1
    for length in tensor.local_shape:
        count *= length
    return count * int(tensor.dtype.itemsize)


def replicated_here(sharded: Any) -> Iterator[ShardedTensor]:
    """Tensors that this rank's data-parallel ranks are to write, in an order that all of them have; others are written elsewhere."""
    tensors = [item for item in nested_values(sharded) if isinstance(item, ShardedTensor)]
    for tensor in sorted(tensors, key=lambda tensor: (tensor.key, tensor.global_offset)):
        # Megatron's replica: (pipeline copy of a tied weight, tensor-parallel copy, data-parallel rank).
        if not any(tensor.replica_id[:-1]):
            yield tensor


def share_out(sharded: Any, rank: int, num_ranks: int) -> None:
    """Mark in `sharded` what data-parallel rank `rank` of `num_ranks` writes: replica 0 is written, any other is not."""
    tensors = list(replicated_here(sharded))
    for tensor, writer in zip(tensors, assigned([tensor_bytes(tensor) for tensor in tensors], num_ranks), strict=True):
        tensor.replica_id = (0, 0, 0 if writer == rank else 1)
