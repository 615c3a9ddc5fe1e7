"""Each node's copies of a run's checkpoints: which ranks share one, who makes it, and what a resume reads from where.

A copy is a checkpoint like that in the run folder, byte for byte (`copying` makes it). A node reads its own where the manifest is
the run folder's and every file is as written; else it reads the run folder's. All ranks decide by the same table, so none waits.
"""

from __future__ import annotations

import shutil
import socket
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.convert.native import damaged_file
from dnapretrain.errors import CheckpointError, ConfigError, DamagedCheckpointError
from dnapretrain.parallel.groups import gather_of_ranks, problems_of_ranks
from dnapretrain.parallel.platform import Platform, machine_id
from dnapretrain.train.child_process import Child, start_child
from dnapretrain.train.copying import copies_folder, copy_checkpoint, forget_unfinished, manifest
from dnapretrain.train.metrics import RunLog
from dnapretrain.train.retention import missing_part

LAST_SECONDS = 15.0
"""So long the end of a stopped run waits for a copy that is being made."""


@dataclass(frozen=True)
class View:
    """What one rank sees of a checkpoint before it is loaded."""

    node: str
    copy: str
    """Digest of the manifest of this node's copy; '' where it has none, or none that is whole."""
    copy_problem: str
    """What is wrong with a copy that is there."""
    shared_problem: str
    """What is wrong with the manifest in the run folder."""


def nodes_with_copies(views: list[View]) -> set[str]:
    """Nodes that read their own copy. Raises DamagedCheckpointError where one cannot, and the run folder's manifest is damaged."""
    nodes = {view.node for view in views}
    having = nodes - {view.node for view in views if not view.copy}
    damage = next((view.shared_problem for view in views if view.shared_problem), "")
    if damage and (having != nodes or len({view.copy for view in views}) != 1):
        raise DamagedCheckpointError(damage)
    return having


class NodeCopies:
    """The copies of one run, as one rank sees them. All ranks call the same methods at the same places, `poll` apart."""

    def __init__(self, config: RunConfig, platform: Platform) -> None:
        """Raises ConfigError on every rank where the setting is wrong; a node whose disk cannot be used goes on without copies."""
        assert config.checkpoint.local_dir is not None
        self.config, self.platform, self.folder, problem = config, platform, Path(), ""
        try:
            self.folder = copies_folder(config.checkpoint.local_dir, config.train.run_dir)
        except ConfigError as error:
            problem = str(error)
        if problems := problems_of_ranks(problem):
            raise ConfigError(problems[0])
        self.host, self.token = socket.gethostname(), uuid.uuid4().hex
        self.node = f"{self.host} {machine_id()} {self.folder}"
        ranks = gather_of_ranks((self.node, self.host, self.token))
        self.mates = [rank for rank, (node, *_) in enumerate(ranks) if node == self.node]
        self.makes = self.mates[0] == platform.rank
        """Whether this rank makes its node's copies."""
        self.remarks = self._open({token: host for node, host, token in ranks if node != self.node})
        self.rewrite = False
        """Whether the checkpoint that was loaded is damaged in the run folder, so that it should be saved again."""
        self._child: Child | None = None
        self._making, self._next, self._began = Path(), Path(), 0.0
        self._reports: list[dict[str, Any]] = []
        self._reads: list[dict[str, Any]] = []

    def _open(self, others: dict[str, str]) -> list[str]:
        """Prepare the folder; remarks on nodes that go without, the same on every rank. Raises ConfigError where nodes share a folder."""
        problem, mark = "", self.folder / f".node-{self.token}"
        if self.makes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                forget_unfinished(self.folder)
                mark.touch()
            except OSError as error:
                self.makes, problem = False, f"WARNING: {self.host} goes without copies of checkpoints: {error}"
        problems = problems_of_ranks(problem)
        found = [path.name.removeprefix(".node-") for path in self.folder.glob(".node-*")] if self.makes else []
        shared = next((others[token] for token in found if token in others), "")
        clash = (
            f"checkpoint.local_dir = {self.config.checkpoint.local_dir} is one folder ({self.folder.parent}) for {self.host} and {shared}. "
            "Give a folder on each node's own disk."
        )
        clashes = problems_of_ranks(clash if shared else "")
        if self.makes:
            with suppress(OSError):
                mark.unlink(missing_ok=True)
        if clashes:
            raise ConfigError(clashes[0])
        return problems

    # Reading

    def choose(self, checkpoint: Path) -> Path:
        """The folder that this rank reads `checkpoint` from: found whole, by all ranks together.

        Raises DamagedCheckpointError on every rank where one of them would have to read what is damaged.
        """
        self._started, self.rewrite = time.monotonic(), False
        view, state = self._look(checkpoint)
        views = gather_of_ranks(view)
        seen = {view.node: f"WARNING: {view.copy_problem} It is not used." for view in views if view.copy_problem}
        self.remarks = list(seen.values())
        having = nodes_with_copies(views)
        mine = self.node in having
        readers = [rank for rank, view in enumerate(views) if view.node not in having]
        problem = damage = ""
        if not mine:
            problem = damaged_file(checkpoint, state, readers.index(self.platform.rank), len(readers))
        if problems := problems_of_ranks(problem):
            raise DamagedCheckpointError(f"checkpoint {checkpoint} is damaged: {problems[0]}. Use the one before it, or a copy.")
        if not readers and self.platform.is_main:  # nobody has read the run folder's: a look at its sizes
            damage = views[0].shared_problem or missing_part(checkpoint)
        if damages := problems_of_ranks(damage):
            self.rewrite = True
            self.remarks.append(f"WARNING: {damages[0]} Every node has a copy: {checkpoint.name} is read from these and saved again.")
        return self.folder / checkpoint.name if mine else checkpoint

    def _look(self, checkpoint: Path) -> tuple[View, dict[str, Any]]:
        """(what this rank sees, the state of the run folder's checkpoint where that can be read)."""
        shared = shared_problem = copied = problem = ""
        state: dict[str, Any] = {}
        try:
            shared, state = manifest(checkpoint)
        except DamagedCheckpointError as error:
            shared_problem = str(error)
        copy = self.folder / checkpoint.name
        try:
            if copy.is_dir():
                copied, of_copy = manifest(copy)
                if shared and copied != shared:
                    problem = f"{copy} on {self.host} is a copy of another checkpoint (its state.json differs)."
                elif damage := damaged_file(copy, of_copy, self.mates.index(self.platform.rank), len(self.mates)):
                    problem = f"The copy on {self.host} is damaged: {damage}."
        except (CheckpointError, OSError) as error:
            problem = f"The copy on {self.host} is damaged: {error}"
        return View(self.node, "" if problem else copied, problem, shared_problem), state

    def was_read(self, source: Path) -> None:
        """Note that this rank has loaded from `source`, what `choose` gave."""
        seconds, own = time.monotonic() - self._started, source.parent == self.folder
        slowest: dict[str, dict[str, Any]] = {}
        for node, host, from_copy, taken in gather_of_ranks((self.node, self.host, own, seconds)):
            entry = slowest.setdefault(node, {"node": host, "source": "copy" if from_copy else "run folder", "seconds": taken})
            entry["seconds"] = max(entry["seconds"], taken)
        self._reads = list(slowest.values())

    def log_reads(self, log: RunLog, step: int) -> None:
        """Write the record `checkpoint_read` and its line, once for each load."""
        if not self._reads:
            return
        log.write("checkpoint_read", step=step, nodes=self._reads)
        parts = []
        for source, what in (("copy", "their own copies"), ("run folder", "the run folder")):
            if found := [entry for entry in self._reads if entry["source"] == source]:
                seconds = max(entry["seconds"] for entry in found)
                parts.append(f"{_names([entry['node'] for entry in found])} from {what} in {seconds:.1f} s")
        log.say(f"{'read by':>14}: {'; '.join(parts)}")
        self._reads = []

    # Making

    def begin(self, checkpoint: Path) -> None:
        """Copy a checkpoint of the run folder in the background, once the copy before it is done."""
        if self.makes:
            self._next = checkpoint
            self.poll()

    def poll(self) -> None:
        """Look after the copy that is being made; does not wait, and asks no other rank."""
        if self._child is not None:
            if not self._child.look() and time.monotonic() < self._began + self.config.checkpoint.timeout_seconds:
                return
            kind, result = self._child.answer or (
                "error",
                f"it took longer than checkpoint.timeout_seconds = {self.config.checkpoint.timeout_seconds:g}",
            )
            self._end(kind, result)
        if self._next != Path():
            self._making, self._next, self._began = self._next, Path(), time.monotonic()
            try:
                self._child = start_child(partial(copy_checkpoint, self._making, self.folder, self.config.checkpoint.keep_local))
            except OSError as error:
                self._end("error", str(error))

    def _end(self, kind: str, result: Any) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None
        entry = {"node": self.host, "checkpoint": self._making.name, **(result if kind == "ok" else {"problem": result})}
        self._reports.append(entry)
        if kind == "error":
            forget_unfinished(self.folder)
            sys.stderr.write(f"WARNING: no copy of {self._making.name} on {self.host}: {result}\n")

    def report(self, log: RunLog) -> None:
        """Write a record `copy` for every copy that was made, or failed, on any node since the last time."""
        reports, self._reports = self._reports, []
        made: dict[str, list[dict[str, Any]]] = {}
        for entry in (entry for of_rank in gather_of_ranks(reports) for entry in of_rank):
            log.write("copy", **entry)
            if "problem" not in entry:
                made.setdefault(entry["checkpoint"], []).append(entry)
        for name, entries in made.items():
            seconds = max(entry["seconds"] for entry in entries)
            log.say(
                f"copied {name} on {_names([entry['node'] for entry in entries])} | {entries[0]['bytes'] / 1e6:,.1f} MB in {seconds:.1f} s"
            )

    def finish(self, log: RunLog, completed: bool) -> None:
        """The end of a run: wait a little for a copy that is being made; a run that is `completed` needs none and leaves none."""
        until = time.monotonic() + LAST_SECONDS
        while self._child is not None and not completed and time.monotonic() < until:
            self.poll()
            time.sleep(0.02)
        self.stop()
        if completed and self.makes:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.report(log)

    def stop(self) -> None:
        """Let go of a copy that is being made: what there is of it is never read."""
        self._next = Path()
        if self._child is not None:
            self._child.end()
            self._child = None
            forget_unfinished(self.folder)


def open_copies(config: RunConfig, platform: Platform) -> NodeCopies | None:
    """The copies that checkpoint.local_dir asks for. Raises ConfigError on every rank."""
    return NodeCopies(config, platform) if config.checkpoint.local_dir else None


def _names(hosts: list[str]) -> str:
    """Nodes in words: the first few by name."""
    return ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
