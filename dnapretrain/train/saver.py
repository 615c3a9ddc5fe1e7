"""Saves a run while it trains: one checkpoint at a time, whole or not there, tried again where it failed.

A save begins between two steps (`begin`), is written by processes of its own, and is finished between two later steps
(`advance`), when the writers of all ranks are done. All ranks call the same methods after the same steps.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dnapretrain import __version__
from dnapretrain.config import RunConfig
from dnapretrain.config_file import dump_config
from dnapretrain.convert.native import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    FORMAT_VERSION,
    LATEST_FILE,
    STATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_DIR,
    state_text,
)
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.shards.writer import sync_folder
from dnapretrain.errors import CheckpointError
from dnapretrain.model.build import finish_param_gather
from dnapretrain.parallel.groups import main_rank_does, max_of_ranks, problems_of_ranks
from dnapretrain.parallel.platform import Platform
from dnapretrain.train.checkpoint import SHARDING, RunPosition, sharded_state
from dnapretrain.train.checkpoint_writer import DONE, FAILED, RUNNING, Writing, begin_writing, check_room, finish_writing
from dnapretrain.train.metrics import RunLog
from dnapretrain.train.node_copies import NodeCopies
from dnapretrain.train.retention import delete_old, logged_losses

LAST_ATTEMPTS = 3
"""How often the last save of a run is tried."""


class CheckpointSaver:
    """The checkpoints that one run writes."""

    def __init__(
        self,
        config: RunConfig,
        platform: Platform,
        chunks: list[Any],
        optimizer: Any,
        tokenizer: dict[str, Any],
        data_digest_at: Callable[[int], str],
        log: RunLog,
        best_set: str,
        resumed: RunPosition,
        copies: NodeCopies | None = None,
    ) -> None:
        """`best_set` is the held-out set whose loss checkpoint.keep_best goes by; each finished checkpoint goes to `copies` too."""
        self.config, self.platform, self.chunks, self.optimizer = config, platform, chunks, optimizer
        self.tokenizer, self.data_digest_at, self.log, self.best_set = tokenizer, data_digest_at, log, best_set
        self.losses = logged_losses(log.path, best_set) if platform.is_main else {}
        """Loss on `best_set` by step, on the main rank."""
        self.copies = copies
        self.parent = config.train.run_dir / CHECKPOINTS_DIR
        self.saved_step = resumed.step
        """Step of the newest finished checkpoint."""
        self.failures = 0
        """Saves that failed since one was finished."""
        self._retry_at: int | None = None
        self._writing: Writing | None = None
        self._position = resumed
        self._began = self._waited = 0.0
        self._validate = True
        self._reason = ""

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step."""
        interval = self.config.checkpoint.save_interval
        return bool(interval and step % interval == 0) or (self._retry_at is not None and step >= self._retry_at)

    def begin(self, position: RunPosition) -> None:
        """Start writing the state as it is now; a save that is still being written is waited for."""
        self._finish()
        self._began, self._waited, self._position, self._retry_at = time.perf_counter(), 0.0, position, None
        try:
            with self._counted(), self._ends_in_time():
                self._writing = self._begin_writing()
        except CheckpointError as error:
            self._fail(str(error))
        if not self.config.checkpoint.async_save:
            self._finish()

    def advance(self) -> None:
        """Finish the save in progress when all ranks have written; does not wait for writers."""
        if self.copies:
            self.copies.poll()
        if self._writing is None:
            return
        with self._counted():
            state = max_of_ranks(self._writing.state())
            if state != RUNNING:
                self._conclude(state)

    def save(self, position: RunPosition) -> None:
        """Make sure that this very state is saved, and wait for it; tried LAST_ATTEMPTS times. Raises CheckpointError."""
        self._finish()
        for attempt in range(LAST_ATTEMPTS):
            if self.saved_step == position.step:
                return
            if attempt:
                time.sleep(1)
            self.begin(position)
            self._finish()
        if self.saved_step != position.step:
            raise CheckpointError(
                f"the state of step {position.step} could not be saved in {LAST_ATTEMPTS} attempts: {self._reason}. "
                f"The newest checkpoint is of step {self.saved_step}."
            )

    def newest_step(self) -> int:
        """Step of the newest finished checkpoint, 0 for none; a save that is still being written is waited for."""
        self._finish()
        return self.saved_step

    def note_loss(self, set_name: str, step: int, loss: float) -> None:
        """Remember a held-out loss."""
        if set_name == self.best_set:
            self.losses[step] = loss

    def was_evaluated(self, step: int) -> bool:
        """Whether the loss at this step is known, from this start or an earlier one; the same on every rank."""
        return bool(max_of_ranks(int(step in self.losses)))

    def check_target(self, num_bytes: int) -> None:
        """Before training: raise CheckpointError on every rank where a checkpoint of so many bytes could not be written for want of
        room or rights."""

        def probe() -> None:
            self.parent.mkdir(parents=True, exist_ok=True)
            file = self.parent / ".probe"
            write_whole(file, "can this folder be written?\n")
            file.unlink()
            check_room(self.parent, num_bytes)

        main_rank_does(probe, CheckpointError, f"checkpoints cannot be written to {self.parent}")

    def stop(self) -> None:
        """Let go of a save in progress: what it has written is never read."""
        if self._writing is not None:
            self._writing.end()
            self._writing = None
        if self.copies:
            self.copies.stop()

    def finish(self, completed: bool) -> None:
        """The end of a run, after its last save: `completed` says that it never goes on."""
        if self.copies:
            self.copies.finish(self.log, completed)

    def _begin_writing(self) -> Writing:
        def prepare() -> None:
            shutil.rmtree(self._partial, ignore_errors=True)
            (self._partial / WEIGHTS_DIR).mkdir(parents=True, exist_ok=True)

        main_rank_does(prepare, CheckpointError, f"cannot write below {self.parent}")
        if self.config.parallel.overlap_param_gather:
            finish_param_gather(self.chunks)
        state = sharded_state(self.chunks, self.optimizer, is_loading=False)
        seconds = self.config.checkpoint.timeout_seconds
        writing = begin_writing(state, dict(SHARDING), self._partial / WEIGHTS_DIR, seconds, self._validate)
        self._validate = False  # who holds what does not change within a run
        return writing

    def _finish(self) -> None:
        if self._writing is not None:
            with self._counted():
                self._conclude(max_of_ranks(self._writing.wait()))

    def _conclude(self, state: int) -> None:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        try:
            if state == FAILED:
                raise CheckpointError(problems_of_ranks(writing.problem())[0])
            with self._ends_in_time():
                self._commit(writing)
        except CheckpointError as error:
            writing.end()
            self._fail(str(error))
        else:
            writing.end()
            self._succeed(writing)

    def _commit(self, writing: Writing) -> None:
        """Give what the writers have written its name; nothing can be seen of it before."""
        assert writing.state() == DONE
        main = self.platform.is_main
        gathered: list[Any] | None = [None] * self.platform.world_size if main else None
        torch.distributed.gather_object(writing.results(), gathered)

        def finish() -> None:
            results = [result for result, _ in gathered or []]
            digests = {name: entry for _, found in gathered or [] for name, entry in found.items()}
            files = finish_writing(writing, results, digests)
            write_whole(self._partial / CONFIG_FILE, dump_config(self.config))
            write_whole(self._partial / TOKENIZER_FILE, json.dumps(self.tokenizer, indent=1))
            state = {
                "format": FORMAT_VERSION,
                "dnapretrain": __version__,
                **asdict(self._position),
                "data_digest": self.data_digest_at(self._position.consumed_samples),
                "world_size": self.platform.world_size,
                "files": files,
            }
            write_whole(self._partial / STATE_FILE, state_text(self._partial, state))
            sync_folder(self._partial / WEIGHTS_DIR)
            sync_folder(self._partial)
            if self._final.exists():  # of a run that was set back to before it
                old = self.parent / f".{self._final.name}.deleting"
                shutil.rmtree(old, ignore_errors=True)
                self._final.rename(old)
            self._partial.rename(self._final)
            write_whole(self.parent / LATEST_FILE, self._final.name + "\n")
            sync_folder(self.parent)

        main_rank_does(finish, CheckpointError, f"cannot finish {self._final}")

    def _succeed(self, writing: Writing) -> None:
        self.saved_step, self.failures = self._position.step, 0
        seconds = time.perf_counter() - self._began
        self.log.write(
            "checkpoint", step=self.saved_step, path=str(self._final), bytes=writing.num_bytes, seconds=seconds, stall_seconds=self._waited
        )
        self.log.say(f"saved {self._final} | {writing.num_bytes / 1e6:,.1f} MB in {seconds:.1f} s, training waited {self._waited:.2f} s")
        if self.copies:
            self.copies.report(self.log)
            self.copies.begin(self._final)
        if not self.platform.is_main:
            return
        try:
            for path in delete_old(self.config.train.run_dir, self._final, self.config.checkpoint, self.losses):
                self.log.write("deleted", step=self.saved_step, path=str(path))
        except (OSError, CheckpointError) as error:
            self.log.say(f"old checkpoints could not be deleted: {error}")

    def _fail(self, reason: str) -> None:
        self.failures += 1
        self._reason = reason
        step, interval = self._position.step, self.config.checkpoint.save_interval
        self._retry_at = step + max(1, (interval or 0) // 10)
        self.log.write("checkpoint_failed", step=step, reason=reason)
        self.log.say(f"SAVE FAILED at step {step}: {reason} | training goes on and tries again at step {self._retry_at}")
        if self.platform.is_main:
            shutil.rmtree(self._partial, ignore_errors=True)  # a full disk needs the room

    @property
    def _final(self) -> Path:
        return self.parent / f"step_{self._position.step:08d}"

    @property
    def _partial(self) -> Path:
        return self.parent / f".{self._final.name}.partial"

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the body as time that training stood still for this save."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - started

    def _ends_in_time(self) -> Any:
        return ends_within(self.config.checkpoint.timeout_seconds, f"saving {self._final}")


@contextmanager
def ends_within(seconds: float, what: str) -> Iterator[None]:
    """End the process with an error if the body takes longer: this is for waits that nothing else can end, a rank that
    has gone or a file system that does not answer."""

    def give_up() -> None:
        sys.stderr.write(f"error: {what} took longer than checkpoint.timeout_seconds = {seconds:g}. Is the disk full or hanging?\n")
        sys.stderr.flush()
        os._exit(3)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
