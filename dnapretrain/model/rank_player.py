"""Any rank of a job of any size, played by this process alone: its groups and its model chunks, without memory for weights.

The groups are Megatron-core's over torch's fake backend, which sends nothing; the chunks are the real ones, on torch's meta device.
Always the torch layers, whichever the run would take: both have the same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dnapretrain.config import ParallelConfig, RunConfig
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.build import Chunk, build_chunks
from dnapretrain.parallel.groups import pretend_rank
from dnapretrain.parallel.platform import Platform


def rank_at(parallel: ParallelConfig, world_size: int, pp_rank: int, tp_rank: int = 0) -> int:
    """The first of the ranks at one place of the model: data-parallel rank 0 there."""
    return pp_rank * (world_size // parallel.pipeline_model_parallel_size) + tp_rank


def built_chunks(config: RunConfig, tokenizer: Tokenizer, rank: int, world_size: int) -> list[Chunk]:
    """The model chunks of the rank that this process plays, within `pretend_rank`; weights without memory."""
    config = config.model_copy(update={"model": config.model.model_copy(update={"transformer_impl": "torch"})})
    with torch.device("meta"):
        return build_chunks(config, tokenizer, Platform(torch.device("meta"), "fake", rank, world_size), initialize_weights=False)


@contextmanager
def played_chunks(config: RunConfig, tokenizer: Tokenizer, rank: int, world_size: int) -> Iterator[list[Chunk]]:
    """The model chunks of `rank` of `world_size` ranks, while this process stands as that rank."""
    with pretend_rank(rank, world_size, config.parallel):
        yield built_chunks(config, tokenizer, rank, world_size)


def count_parameters(chunks: list[Chunk]) -> int:
    """Weights of a rank's chunks."""
    return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
