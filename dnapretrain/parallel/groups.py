"""Megatron's process groups for one layout: start them, ask about them, take them down again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from dnapretrain.config import ParallelConfig
from dnapretrain.errors import DnaPretrainError, LostRankError
from dnapretrain.parallel import cpu_engine
from dnapretrain.parallel.platform import Platform

LOST_PEER = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|failed to recv|recvValue failed|NCCL error.*remote process",
    re.IGNORECASE,
)
"""How gloo, NCCL and torch's store say that another rank has gone."""

_control: Any = None
"""All ranks over gloo where the default group is NCCL's: small questions then wait for no GPU. None: the default group."""


def start_groups(platform: Platform, parallel: ParallelConfig, seed: int, store: Any = None, cuda_graphs: bool = False) -> None:
    """Join the other ranks and build the tensor-, pipeline-, context- and data-parallel groups.

    `store` replaces the rendezvous address (MASTER_ADDR, MASTER_PORT) when the caller has one. With `cuda_graphs` random states are
    kept as graphs can use them.
    """
    if platform.world_size == 1 and store is None:
        store = dist.HashStore()
    arguments: dict[str, Any] = {"init_method": "env://"} if store is None else {"store": store}
    if platform.is_cuda:
        arguments["device_id"] = platform.device
    timeout = timedelta(minutes=parallel.distributed_timeout_minutes)
    dist.init_process_group(platform.backend, rank=platform.rank, world_size=platform.world_size, timeout=timeout, **arguments)
    global _control
    _control = dist.new_group(backend="gloo", timeout=timeout) if platform.is_cuda else None
    from megatron.core import tensor_parallel

    _build_groups(parallel)
    tensor_parallel.model_parallel_cuda_manual_seed(
        seed,
        te_rng_tracker=cuda_graphs and tensor_parallel.random.HAVE_TE,  # its attention is captured with no other
        use_cudagraphable_rng=cuda_graphs,
        force_reset_rng=platform.is_cuda,  # an earlier run of this process may have made the tracker of the other kind
    )


@contextmanager
def pretend_rank(rank: int, world_size: int, parallel: ParallelConfig) -> Iterator[None]:
    """Stand as `rank` of `world_size` ranks, alone in this process: its model chunks can be built and counted, nothing is sent.

    No other groups may be up; these are taken down at the end. The CPU engine is active in this process from then on.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    cpu_engine.activate()
    hook = sys.excepthook  # torch puts the rank before each line of a traceback, once more for every group that was up
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        _build_groups(parallel)
        yield
    finally:
        stop_groups()
        sys.excepthook = hook


def _build_groups(parallel: ParallelConfig) -> None:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,
    )


def seed_dropout(seed: int, step: int) -> None:
    """Key the random state of this rank's dropout to (seed, step, place): a resumed run needs no saved state to draw the same.

    Tensor-parallel ranks share one state for what they hold alike and have one each for what they hold in parts.
    """
    from megatron.core import parallel_state, tensor_parallel

    place = (parallel_state.get_data_parallel_rank(with_context_parallel=True), parallel_state.get_pipeline_model_parallel_rank())
    key = xxhash.xxh3_64_intdigest(f"dropout:{seed}:{step}:{place}".encode()) >> 2
    tensor_parallel.model_parallel_cuda_manual_seed(key)


def sum_over_context_parallel(values: torch.Tensor) -> torch.Tensor:
    """`values` summed in place over the ranks that share a sample."""
    from megatron.core import parallel_state

    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(values, group=parallel_state.get_context_parallel_group())
    return values


def stop_groups() -> None:
    """Take the groups down; safe to call when there are none."""
    from megatron.core import parallel_state

    global _control
    _control = None
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    _let_go()


def _let_go() -> None:
    """Forget what still holds groups that are down: over gloo each has three threads, one of which wakes up a hundred times a second."""
    from megatron.core import parallel_state
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

    for name, value in list(vars(parallel_state).items()):
        if isinstance(value, dist.ProcessGroup):  # destroy_model_parallel leaves one
            setattr(parallel_state, name, None)
    for embedding in (RotaryEmbedding, YarnRotaryEmbedding):
        embedding.forward.cache_clear()  # keys are modules with their context-parallel group


def sum_over_data_parallel(values: torch.Tensor) -> torch.Tensor:
    """`values` summed in place over data- and context-parallel ranks, then sent from the last pipeline stage to all."""
    from megatron.core import parallel_state

    dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(
            values, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=parallel_state.get_pipeline_model_parallel_group()
        )
    return values


def sum_of_ranks(value: int) -> int:
    """The sum of `value` over all ranks."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return int(total.item())


def max_of_ranks(value: int) -> int:
    """The largest `value` of all ranks, by their processors: cheap enough to ask after every step."""
    if dist.get_world_size() == 1:
        return value
    largest = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_control)
    return int(largest.item())


def largest_of_ranks(values: list[float]) -> list[float]:
    """The largest of all ranks in each place, by their processors."""
    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_control)
    found: list[float] = largest.tolist()
    return found


def gather_of_ranks(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank; by their processors."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=_control)
    return gathered


def gather_of_replicas(values: torch.Tensor) -> list[torch.Tensor]:
    """`values` of this rank and of those that hold the same weights, in the order of `replica_ranks`."""

    group = replicas()
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, values, group=group)
    return gathered


def replicas() -> dist.ProcessGroup:
    """The group of the ranks that hold the same weights as this one, itself too."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def replica_ranks() -> list[int]:
    """Their numbers."""
    return dist.get_process_group_ranks(replicas())


def rank_numbers(ranks: list[int]) -> str:
    """Ranks in words for a message: the first eight and how many others."""
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def place_in_layout() -> tuple[int, int, int]:
    """Tensor-, pipeline- and data-parallel rank of this rank."""
    from megatron.core import parallel_state

    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )


def place_among_replicas() -> tuple[int, int]:
    """(place of this rank among the ranks that hold the same weights, their number)."""
    from megatron.core import parallel_state

    return (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )


def problems_of_ranks(problem: str) -> list[str]:
    """What went wrong on any rank ('' for nothing), in rank order and the same on every rank, so that all take the same way."""
    if not sum_of_ranks(1 if problem else 0):
        return []
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, problem)
    return [text for text in gathered if text]


def main_rank_does(action: Callable[[], None], error: type[DnaPretrainError], what: str) -> None:
    """Run `action` on rank 0 while the others wait; if it fails, raise `error` on every rank."""
    with on_every_rank(error, what):
        if dist.get_rank() == 0:
            action()


@contextmanager
def on_every_rank(error: type[DnaPretrainError], what: str) -> Iterator[None]:
    """Turn a failure of the body on any rank into `error` on every rank, so that none is left waiting."""
    problem = None
    try:
        yield
    except Exception as failure:
        problem = failure
    reasons = problems_of_ranks("" if problem is None else " ".join(f"{type(problem).__name__}: {problem}".split())[:500])
    if reasons:
        raise error(f"{what}: {reasons[0]}") from problem


@contextmanager
def one_error_for_a_lost_rank() -> Iterator[None]:
    """Turn what gloo or NCCL say when another rank has gone into LostRankError: the reason is that rank's to tell."""
    try:
        yield
    except RuntimeError as error:
        if LOST_PEER.search(str(error)) is None:
            raise
        raise LostRankError(
            "the connection to another rank was lost: it has ended or was killed. The same command goes on from the last checkpoint."
        ) from None
