"""The pipeline schedule of a rank as Megatron-core's own schedule function makes it, recorded instead of run.

Its forward and backward steps and torch's sends and receives are replaced by ones that only take notes, on tensors without memory;
which of them are called, in which order and with which tensors, is the schedule's. `parallel.pipeline_trace` checks the notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
from megatron.core.transformer.transformer_config import TransformerConfig

from dnapretrain.config import RunConfig
from dnapretrain.model.build import to_transformer_config
from dnapretrain.model.rank_player import rank_at
from dnapretrain.parallel.groups import pretend_rank
from dnapretrain.parallel.pipeline_trace import Event, Pass, Run, Start, Transfer, Wait
from dnapretrain.parallel.platform import Platform

_META = torch.device("meta")


def pipeline_traces(config: RunConfig, num_microbatches: int, seq_length: int) -> list[list[Event]]:
    """The trace of every rank of a pipeline, for one step of samples of `seq_length` tokens.

    All pipelines of a job do the same, so a job of one model copy is played: it has fewer groups to build.
    """
    parallel, world_size = config.parallel, config.parallel.model_parallel_size
    traces = []
    for pp_rank in range(parallel.pipeline_model_parallel_size):
        rank = rank_at(parallel, world_size, pp_rank)
        with pretend_rank(rank, world_size, parallel):
            traces.append(rank_trace(config, Platform(_META, "fake", rank, world_size), num_microbatches, seq_length))
    return traces


def rank_trace(config: RunConfig, platform: Platform, num_microbatches: int, seq_length: int) -> list[Event]:
    """The trace of the rank that this process stands as (`pretend_rank`)."""
    parallel, train = config.parallel, config.train
    settings = to_transformer_config(config.model, parallel, train, platform)
    notes = _Notes()
    chunks = [_StandIn(settings, number) for number in range(parallel.virtual_pipeline_model_parallel_size or 1)]
    batches: list[Iterator[None]] = [iter(()) for _ in chunks]
    with notes.taken():
        get_forward_backward_func()(
            forward_step_func=None,
            data_iterator=batches,
            model=chunks,
            num_microbatches=num_microbatches,
            seq_length=seq_length,
            micro_batch_size=train.micro_batch_size,
            forward_only=False,
        )
    return notes.events


class _StandIn(torch.nn.Module):
    """What the schedule asks of a model chunk."""

    def __init__(self, config: TransformerConfig, number: int) -> None:
        super().__init__()
        self.config, self.number = config, number
        self.model_type = ModelType.encoder_or_decoder


class _Handle:
    """What a send or receive gives back."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait


class _Notes:
    """The events of one rank, noted in the place of what they would do."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._made: dict[int, Pass] = {}
        """By id of a tensor, the pass that made it."""
        self._came: dict[int, int] = {}
        """By id of a tensor, the transfer that brings it."""
        self._kept: list[torch.Tensor] = []
        """All of those, so that no id is given twice."""
        self._pipeline = dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())
        self._here = dist.get_rank()
        self._transfers = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within the body, the schedule's steps and messages are noted and nothing is done."""
        replaced: list[tuple[Any, str, Any]] = [
            (schedules, "forward_step", self._forward),
            (schedules, "backward_step", self._backward),
            (dist, "isend", self._isend),
            (dist, "irecv", self._irecv),
            (dist, "P2POp", lambda operation, tensor, peer, group: (operation == self._isend, tensor, peer, group)),
            (dist, "batch_isend_irecv", self._begin),
            (torch.cuda, "current_device", lambda: _META),
            (torch.cuda, "synchronize", lambda: None),
        ]
        originals = [(place, name, getattr(place, name)) for place, name, _ in replaced]
        for place, name, value in replaced:
            setattr(place, name, value)
        try:
            yield
        finally:
            for place, name, value in originals:
                setattr(place, name, value)

    def _forward(
        self, _: Any, batches: Any, chunk: _StandIn, count: int, given: Any, *rest: Any, current_microbatch: int, **more: Any
    ) -> Any:
        del batches, count, rest, more
        (tensor,) = given if isinstance(given, list) else [given]
        result = self._run(Pass("forward", chunk.number, current_microbatch), tensor)
        return ([result] if isinstance(given, list) else result), torch.zeros([], dtype=torch.int)

    def _backward(self, given: Any, made: Any, gradient: Any, *_: Any) -> Any:
        (output,) = made if isinstance(made, list) else [made]
        (tensor,) = gradient if isinstance(gradient, list) else [gradient]
        forward = self._made[id(output)]
        result = self._run(Pass("backward", forward.chunk, forward.micro_batch), tensor)
        return [result] if isinstance(given, list) else result

    def _run(self, what: Pass, given: torch.Tensor | None) -> torch.Tensor:
        self.events.append(Run(what, None if given is None else self._came[id(given)]))
        result = torch.empty(0, device=_META)
        self._made[id(result)] = what
        self._kept.append(result)
        return result

    def _isend(self, tensor: torch.Tensor, dst: int, group: Any) -> _Handle:
        return self._begin([(True, tensor, dst, group)], single=True)[0]

    def _irecv(self, tensor: torch.Tensor, src: int, group: Any) -> _Handle:
        return self._begin([(False, tensor, src, group)], single=True)[0]

    def _begin(self, operations: Sequence[tuple[bool, torch.Tensor, int, Any]], single: bool = False) -> list[_Handle]:
        """Note transfers begun together. NCCL has a channel per pair of ranks for single ones, and one per group for batches."""
        transfers = []
        for is_send, tensor, peer, group in operations:
            which = "all ranks" if group == dist.group.WORLD else min(dist.get_process_group_ranks(group))
            pair = tuple(sorted((self._here, peer))) if single else ()
            if not is_send:
                self._came[id(tensor)] = self._transfers
                self._kept.append(tensor)
            payload = self._made.get(id(tensor)) if is_send else None
            transfers.append(Transfer(self._transfers, is_send, self._pipeline.index(peer), (which, *pair), payload))
            self._transfers += 1
        self.events.append(Start(tuple(transfers)))
        return [_Handle(partial(self._wait, transfer.number)) for transfer in transfers]

    def _wait(self, number: int) -> None:
        self.events.append(Wait(number))
