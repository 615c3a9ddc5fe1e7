"""Where this rank is in its step: told to a heartbeat file, and, when a rank does not get on, to a file with its stack.

Every rank has a thread that looks at what the training loop has last said (`enter`). When that is older than log.hang_seconds the
rank writes `hangs/rank_RRRRR.txt`; the main rank then reads these files and names the ranks that are behind the others.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dnapretrain.data.formats.whole_file import whole_file, write_whole
from dnapretrain.errors import HangError
from dnapretrain.parallel.groups import rank_numbers

PHASES = ("start", "forward-backward", "gradient reduction", "update", "after the step", "saving", "evaluation", "end")
"""In the order of a step."""
TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)
"""How gloo and NCCL say that a rank did not come."""
HEARTBEAT_FILE = "heartbeat.json"
HANGS_DIR = "hangs"


class Watch:
    """Watches one rank; `start` and `stop` bracket the run."""

    def __init__(self, run_dir: Path, rank: int, world_size: int, heartbeat_seconds: float, hang_seconds: float) -> None:
        self.run_dir, self.rank, self.world_size = run_dir, rank, world_size
        self.heartbeat_seconds = heartbeat_seconds if rank == 0 else 0.0
        self.hang_seconds = hang_seconds
        self.step, self.phase, self.since = 0, PHASES[0], time.time()
        self._main_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, phase: str, step: int | None = None) -> None:
        """The rank begins one of PHASES, of `step` (default: as before)."""
        self.step = self.step if step is None else step
        self.phase, self.since = phase, time.time()

    def start(self) -> None:
        """Begin to watch."""
        self._main_thread = threading.get_ident()
        if self.hang_seconds:
            _quietly(lambda: self._stack_file.unlink(missing_ok=True))  # of an earlier start
        if self.heartbeat_seconds or self.hang_seconds:
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch; the heartbeat file says where the run was."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._beat()

    @contextmanager
    def names_timeouts(self, minutes: float) -> Iterator[None]:
        """Turn the time-out of a collective, after so many minutes, into a HangError that says where this rank waited, and for whom."""
        try:
            yield
        except RuntimeError as error:
            if TIMED_OUT.search(str(error)) is None:
                raise
            waited = f"rank {self.rank} waited for other ranks in '{self.phase}' of step {self.step} for longer than"
            behind = who_is_behind(self.run_dir, self.world_size) if self.hang_seconds else ""
            raise HangError(
                f"{waited} parallel.distributed_timeout_minutes = {minutes:g}. {behind or 'Who did not come is not known'}."
                " The same command goes on from the last checkpoint."
            ) from error

    def _look(self) -> None:
        beat_at, told_since, summary_at = 0.0, 0.0, 0.0
        periods = [seconds for seconds in (self.heartbeat_seconds, self.hang_seconds / 4) if seconds]
        while not self._stopped.wait(min(*periods, 1.0)):
            now = time.time()
            if self.heartbeat_seconds and now >= beat_at:
                beat_at = now + self.heartbeat_seconds
                self._beat()
            if told_since and told_since != self.since:
                told_since = 0.0
                _quietly(lambda: self._stack_file.unlink(missing_ok=True))
            if self.hang_seconds and now - self.since >= self.hang_seconds and not told_since:
                told_since, summary_at = self.since, now + min(self.hang_seconds / 2, 30.0)
                _quietly(self._tell)
            if self.rank == 0 and summary_at and now >= summary_at:
                summary_at = 0.0
                if behind := who_is_behind(self.run_dir, self.world_size):
                    _say(f"WARNING: {behind}")

    def _beat(self) -> None:
        if self.heartbeat_seconds:
            _quietly(lambda: write_whole(self.run_dir / HEARTBEAT_FILE, json.dumps(self._state()) + "\n", durable=False))

    def _state(self) -> dict[str, Any]:
        return {
            "time": time.time(),
            "step": self.step,
            "phase": self.phase,
            "phase_seconds": time.time() - self.since,
            "rank": self.rank,
            "world_size": self.world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    @property
    def _stack_file(self) -> Path:
        return self.run_dir / HANGS_DIR / f"rank_{self.rank:05d}.txt"

    def _tell(self) -> None:
        path = self._stack_file
        path.parent.mkdir(exist_ok=True)
        frame = sys._current_frames().get(self._main_thread)
        last = traceback.extract_stack(frame)[-1] if frame else None
        at = f"{last.name} ({Path(last.filename).name}:{last.lineno})" if last else "?"
        with whole_file(path, durable=False) as file:
            file.write(json.dumps({**self._state(), "at": at}) + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _say(
            f"WARNING: rank {self.rank} on {socket.gethostname()} has been in '{self.phase}' of step {self.step} for "
            f"{time.time() - self.since:.0f} s, at {at}; its stack is in {path}"
        )


def who_is_behind(run_dir: Path, world_size: int) -> str:
    """Which ranks the others wait for, by the files of a hang that goes on (they go when it ends); '' where no rank has written one."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((run_dir / HANGS_DIR).glob("rank_*.txt")):
        with suppress(OSError, ValueError, KeyError):
            state = json.loads(path.read_text().partition("\n")[0])
            found[int(state["rank"])] = state
    if not found:
        return ""
    silent = [rank for rank in range(world_size) if rank not in found]
    places = {rank: (state["step"], PHASES.index(state["phase"])) for rank, state in found.items()}
    behind = [rank for rank, place in places.items() if place == min(places.values())]
    parts = [f"rank {rank_numbers(silent)} has not said where it is (ended or frozen)"] if silent else []
    if len(behind) < len(found):
        parts += [f"rank {rank} on {found[rank]['host']} is in {_place(found[rank])}, at {found[rank]['at']}" for rank in behind[:4]]
    if not parts:
        return f"all ranks are in {_place(found[behind[0]])}; their stacks are in {run_dir / HANGS_DIR}"
    return f"the others wait for: {'; '.join(parts)}"


def _place(state: dict[str, Any]) -> str:
    return f"'{state['phase']}' of step {state['step']}"


def _quietly(action: Callable[[], None]) -> None:
    """A disk that is full or does not answer must not end the watch."""
    try:
        action()
    except OSError as error:
        _say(f"WARNING: the watch cannot write: {error}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
