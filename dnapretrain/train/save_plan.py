"""What a checkpoint of a job of any size consists of, before it is run: which rank writes which tensors into which file.

The tensors are those of the real model chunks (`model.rank_player`), the shares those of `save_shares`, as a running job takes them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, apply_factories

from dnapretrain.config import RunConfig
from dnapretrain.config_rules import check_world
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.build import wrap_for_precision
from dnapretrain.model.rank_player import played_chunks, rank_at
from dnapretrain.train.checkpoint import sharded_model
from dnapretrain.train.checkpoint_writer import FILES_PER_RANK
from dnapretrain.train.save_shares import assigned, replicated_here, tensor_bytes


@dataclass(frozen=True)
class PlannedFile:
    """One file of `weights/`."""

    name: str
    rank: int
    tensors: tuple[str, ...]
    """Names of the stored tensors of which it has a part, each as often as it has parts."""
    bytes: int
    """Of the tensors; the file's own frame is some hundred bytes for each."""


@dataclass(frozen=True)
class SavePlan:
    """The files that hold tensors, in the order of their ranks."""

    files: tuple[PlannedFile, ...]
    world_size: int
    gathered_bytes: int
    """What the busiest rank holds in host memory while a save is prepared: with the distributed optimizer main weights and
    moments of its whole model part, gathered from the data-parallel ranks."""
    share_seconds: float
    """That a rank takes here to reckon the shares, the longest."""

    @property
    def total_bytes(self) -> int:
        """Tensors of the whole checkpoint."""
        return sum(file.bytes for file in self.files)

    def bytes_of_ranks(self) -> dict[int, int]:
        """What each rank that writes anything writes."""
        ranks: dict[int, int] = defaultdict(int)
        for file in self.files:
            ranks[file.rank] += file.bytes
        return dict(ranks)


def save_plan(config: RunConfig, tokenizer: Tokenizer, world_size: int) -> SavePlan:
    """The plan of every checkpoint of a run on `world_size` ranks. Raises ConfigError when the layout does not fit them."""
    check_world(config, world_size)
    parallel = config.parallel
    replicas = world_size // (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)
    files: list[PlannedFile] = []
    gathered, seconds = 0, 0.0
    for pp_rank in range(parallel.pipeline_model_parallel_size):
        for tp_rank in range(parallel.tensor_model_parallel_size):
            # A job of one model copy holds the same tensors, and has fewer groups to build.
            copy_rank = rank_at(parallel, parallel.model_parallel_size, pp_rank, tp_rank)
            with played_chunks(config, tokenizer, copy_rank, parallel.model_parallel_size) as chunks:
                wrap_for_precision(chunks, config.train.precision)
                model = sharded_model(chunks)
                moments = [_states_of(item, config) for item in nested_values(model)]
                state = {"model": model, "moments": moments}
                apply_factories(state)
                started = time.perf_counter()
                tensors = list(replicated_here(state))
                shares = _shares(tensors, replicas)
                seconds = max(seconds, time.perf_counter() - started)
                parts = [item for item in nested_values({"moments": state["moments"]}) if isinstance(item, ShardedTensor)]
                if parallel.use_distributed_optimizer:
                    gathered = max(gathered, sum(tensor_bytes(part) for part in parts))
            first = rank_at(parallel, world_size, pp_rank, tp_rank)
            for rank, share in shares.items():
                files += _files(first + rank * parallel.tensor_model_parallel_size, share)
    return SavePlan(tuple(sorted(files, key=lambda file: (file.rank, file.name))), world_size, gathered, seconds)


def _states_of(item: ShardedTensor | ShardedTensorFactory, config: RunConfig) -> dict[str, Any]:
    """What the optimizer stores of a weight, all in fp32, under the names that it gives."""
    main = "param" if config.parallel.use_distributed_optimizer else "fp32_param" if config.train.precision == "bf16" else None
    states = {}
    for name in (main, "exp_avg", "exp_avg_sq"):
        if name is not None:
            dtype = {} if isinstance(item, ShardedTensorFactory) else {"dtype": torch.float32}
            data = torch.empty(item.data.shape, dtype=torch.float32, device="meta")
            states[name] = replace(item, key=f"optimizer.state.{name}.{item.key}", data=data, **dtype)
    return states


def _shares(tensors: list[ShardedTensor], replicas: int) -> dict[int, list[ShardedTensor]]:
    shares: dict[int, list[ShardedTensor]] = defaultdict(list)
    for tensor, rank in zip(tensors, assigned([tensor_bytes(tensor) for tensor in tensors], replicas), strict=True):
        shares[rank].append(tensor)
    return shares


def _files(rank: int, share: list[ShardedTensor]) -> list[PlannedFile]:
    """A rank's tensors in its files: the largest first, each into the smaller file, as Megatron-core does it."""
    places = assigned([tensor_bytes(tensor) for tensor in share], FILES_PER_RANK)
    files: list[PlannedFile] = []
    for number in range(FILES_PER_RANK):
        tensors = [tensor for tensor, place in zip(share, places, strict=True) if place == number]
        if tensors:
            names = tuple(sorted(tensor.key for tensor in tensors))
            files.append(PlannedFile(f"__{rank}_{len(files)}.distcp", rank, names, sum(map(tensor_bytes, tensors))))
    return files
