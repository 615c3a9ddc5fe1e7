"""Do data-parallel ranks still hold the same weights? Compared by digests, weight by weight.

They make the same updates from the same reduced gradients, so every bit must agree. Where it does not, memory or a processor has
failed on one of them, and nothing else would show it: the losses stay plausible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xxhash

from dnapretrain.errors import DivergedReplicasError
from dnapretrain.model.build import finish_param_gather
from dnapretrain.parallel.groups import gather_of_replicas, problems_of_ranks, rank_numbers, replica_ranks


def check_replicas(chunks: list[Any], step: int, overlap_param_gather: bool) -> None:
    """Raise DivergedReplicasError, on every rank, where a weight differs between data-parallel ranks."""
    if overlap_param_gather:
        finish_param_gather(chunks)
    weights = [(f"chunk {index} {name}", weight) for index, chunk in enumerate(chunks) for name, weight in chunk.named_parameters()]
    digests = weight_digests(weight for _, weight in weights).to(weights[0][1].device if weights else "cpu")
    gathered = torch.stack(gather_of_replicas(digests)).cpu()
    problem = first_difference([name for name, _ in weights], replica_ranks(), gathered)
    if problems := problems_of_ranks(problem):
        raise DivergedReplicasError(
            f"step {step}: {problems[0]}. They must be equal bit for bit: memory or a processor has failed on one of them. "
            "Check its node (GPU: nvidia-smi -q -d ECC), and start again without it, from a checkpoint before this step."
        )


def weight_digests(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """XXH3-64 of each tensor's bytes, int64 [number of weights], on the CPU."""
    values = [xxhash.xxh3_64_intdigest(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data) for weight in weights]
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64))


def first_difference(names: list[str], ranks: list[int], digests: torch.Tensor) -> str:
    """Which of `ranks` differ from most others, and in which weight first; '' for none. `digests` int64 [ranks, weights]."""
    differs = (digests != digests[0]).any(dim=0)
    if not bool(differs.any()):
        return ""
    first = int(differs.int().argmax())
    column = digests[:, first].tolist()
    (usual, count), *_ = Counter(column).most_common()
    number = int(differs.sum())
    weight = f"{names[first]} and {number - 1} more" if number > 1 else names[first]
    if 2 * count <= len(ranks):
        return f"ranks {rank_numbers(ranks)} disagree in weight {weight}"
    odd = [rank for rank, value in zip(ranks, column, strict=True) if value != usual]
    others = [rank for rank in ranks if rank not in odd]
    return f"rank {rank_numbers(odd)} holds another value of weight {weight} than ranks {rank_numbers(others)}"
