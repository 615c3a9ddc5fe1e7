"""Writes a rank's part of a checkpoint in processes of its own, from the state at one step, while training goes on.

Two files per rank, one process each. A fork holds memory as it was at that moment, so what it writes is the state between two
steps; tensors on a GPU are copied to the host before. Megatron-core plans who writes what and formats it. Its own way of running
the writers waits for ever for one that died: here a writer that dies, hangs or fails ends the save with an error, and
no file is written by a rank's main process before all writers are done.
"""

from __future__ import annotations

import os
import queue
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import is_main_replica
from megatron.core.dist_checkpointing.serialization import _CONTENT_METADATA_KEY
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import validate_sharding_integrity

from dnapretrain.convert.native import file_digest
from dnapretrain.errors import CheckpointError
from dnapretrain.parallel.groups import on_every_rank, place_among_replicas, sum_of_ranks
from dnapretrain.train.child_process import Child, start_child
from dnapretrain.train.save_shares import share_out

FILES_PER_RANK = 2
"""That a rank writes at most, each in a process of its own."""
DONE, RUNNING, FAILED = range(3)
"""States of a save, so that the largest of all ranks' states is that of the whole."""


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron's save up to the point where files would be written."""

    writer: FileSystemWriterAsync
    metadata: Any

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, save_state_dict_ret: Any) -> AsyncRequest:
        self.writer, self.metadata = writer, save_state_dict_ret[1]
        return AsyncRequest(None, (), [])


@dataclass
class Writing:
    """A checkpoint on its way to the disk, as one rank sees it."""

    folder: Path
    """The weights folder."""
    plan: _Plan
    staged: list[Any]
    """What the writers read; pinned host memory is shared with them and must not be used again meanwhile."""
    deadline: float
    num_bytes: int
    """Of all ranks together."""
    children: list[Child] = field(default_factory=list)

    def state(self) -> int:
        """DONE, RUNNING or FAILED, of this rank's writers; does not wait."""
        for child in self.children:
            child.look()
        if self.problem():
            return FAILED
        return RUNNING if any(child.answer is None for child in self.children) else DONE

    def wait(self) -> int:
        """`state` at the end: waits for this rank's writers, no longer than to the deadline."""
        while (state := self.state()) == RUNNING:
            wait([child.pipe for child in self.children if child.answer is None], timeout=max(0.0, self.deadline - time.monotonic()))
        return state

    def problem(self) -> str:
        """What went wrong on this rank; '' for nothing."""
        for child in self.children:
            if child.answer is not None and child.answer[0] == "error":
                return str(child.answer[1])
        if time.monotonic() > self.deadline and any(child.answer is None for child in self.children):
            return "a writer did not end within checkpoint.timeout_seconds. Is the disk full or hanging?"
        return ""

    def results(self) -> tuple[list[Any], dict[str, dict[str, Any]]]:
        """(what was written where, digests by file name) of this rank, once DONE."""
        answers = [child.answer[1] for child in self.children if child.answer is not None]
        return [result for results, _ in answers for result in results], {
            name: entry for _, found in answers for name, entry in found.items()
        }

    def end(self) -> None:
        """Kill what still runs and let go of the memory."""
        for child in self.children:
            child.end()
        self.children, self.staged = [], []


def begin_writing(state: dict[str, Any], content: dict[str, Any], folder: Path, seconds: float, validate: bool) -> Writing:
    """Plan with all ranks, stage this rank's tensors and start its writers; `folder` exists.

    `content` is stored as the state's content metadata. Raises CheckpointError on every rank when it fails on any.
    """
    with on_every_rank(CheckpointError, "cannot prepare the save"):
        state[_CONTENT_METADATA_KEY] = content
        sharded, common = save_preprocess(state, False)
        share_out(sharded, *place_among_replicas())
        if validate:
            _check_covered(sharded, common)
    with on_every_rank(CheckpointError, "cannot prepare the save"):  # again: only rank 0 knows of a fault in who writes what
        # Filled by the writers' answers at the end: Megatron would start a process to hold it.
        filesystem_async._results_queue = queue.Queue()
        plan = _Plan("torch_dist", 1, thread_count=FILES_PER_RANK)
        plan.async_save(sharded, folder)
        buckets = plan.writer.write_buckets or []
        plan.writer.write_buckets = None
        sizes = [tensor.numel() * tensor.element_size() for _, _, (_, tensors) in buckets for _, tensor in tensors]
        staged = FileSystemWriterAsync.preload_tensors(buckets, non_blocking=torch.cuda.is_available())
    writing = Writing(folder, plan, staged, time.monotonic() + seconds, sum_of_ranks(sum(sizes)))
    with on_every_rank(CheckpointError, f"no room for a checkpoint below {folder.parent.parent}"):
        check_room(folder, writing.num_bytes)
    transforms = [plan.writer.transforms] if hasattr(plan.writer, "transforms") else []
    parts: list[tuple[Any, Any]] = [(bucket, None) for bucket in staged]
    if torch.distributed.get_rank() == 0:
        parts.append((None, common))
    try:
        with on_every_rank(CheckpointError, "cannot start the writers"):
            for bucket, rest in parts:
                writing.children.append(start_child(partial(_write, transforms, folder, bucket, rest)))
    except CheckpointError:
        writing.end()
        raise
    return writing


def _check_covered(sharded: Any, common: dict[str, Any]) -> None:
    """Raise Megatron's error unless the ranks write every tensor once, whole.

    Only rank 0, which looks, is sent anything, and by each rank only what it writes: no more of a thousand ranks than of one.
    """
    written = [item.without_data() for item in nested_values(sharded) if is_main_replica(item.replica_id)]
    gathered: list[Any] | None = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(written, gathered)
    validate_sharding_integrity(gathered or [], common_state_dict=common)


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise OSError where the disk of `folder` has less than `num_bytes` free."""
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise OSError(f"it takes {num_bytes / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are free")


def finish_writing(writing: Writing, results: list[Any], digests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """On rank 0: write the index and the backend's file from all ranks' `results`; return the digests of all files, by name."""
    folder = writing.folder
    writing.plan.writer.finish(writing.plan.metadata, results)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    for name in (".metadata", "metadata.json"):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        digests[name] = file_digest(folder / name)
    return dict(sorted(digests.items()))


def _write(transforms: list[Any], folder: Path, bucket: Any, common: Any) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Write one bucket of tensors, or the state that all ranks have in common, durably; runs in a writer process."""
    if bucket is None:
        path = folder / COMMON_STATE_FNAME
        torch.save(common, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return [], {path.name: file_digest(path)}
    path, _, _ = bucket
    answers: Any = queue.Queue()
    count: Any = queue.Queue()
    count.put(0)
    FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, answers, count, use_fsync=True)
    _, results = answers.get_nowait()
    if isinstance(results, Exception):
        raise results
    return results, {Path(path).name: file_digest(Path(path))}
