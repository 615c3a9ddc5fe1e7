"""Starts the ranks of a run on this machine, so that one command trains on a laptop.

On a cluster torchrun or srun start the ranks; then this file has nothing to do.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from dnapretrain.errors import ConfigError
from dnapretrain.parallel.signals import LAUNCHER_PIPE, STOP_SIGNALS

GRACE_SECONDS = 10.0
"""Time that the other ranks get to end by themselves after one failed."""
PORTS = 20_000, 32_768
"""Where the ranks meet, below those that Linux gives to connections."""
LOST_RANK = b"error: the connection to another rank was lost"
"""How LostRankError begins on stderr."""


def is_launched() -> bool:
    """True when a launcher has already started this process as one of several ranks."""
    # SLURM_NTASKS alone is not enough: a shell inside an allocation has it too.
    return "RANK" in os.environ or ("SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1)


def default_ranks(device: str, model_parallel_size: int) -> int:
    """One rank per visible GPU, or on CPU as many as hold one copy of the model."""
    if device != "cpu" and Path("/proc/driver/nvidia/version").exists():
        import torch

        if count := torch.cuda.device_count():
            return count
    return model_parallel_size


def launch_local(arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m dnapretrain ARGUMENTS` as `ranks` local ranks; return the first failing exit code (128 + signal if killed), else 0.

    Signals sent to this process are passed on; once one was, later ones mean the same, and no longer end this process by themselves.
    When a rank fails the others get GRACE_SECONDS to end. Raises ConfigError, and leaves no rank running, where one cannot be started.
    """
    watching = arguments[:1] == ["pretrain"]  # its ranks watch for signals; others end by them
    started = _Ranks(watching)
    previous = {number: signal.signal(number, started.pass_on) for number in STOP_SIGNALS}
    try:
        command = [sys.executable, "-m", "dnapretrain", *arguments]
        # A rank that will watch for signals takes those that come while it starts when it does.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if watching else ())
        try:
            for environment in _environments(ranks):
                started.start(command, environment)
        except OSError as error:
            raise ConfigError(
                f"rank {len(started.processes)} of {ranks} could not be started: {error}. Those before it were ended. "
                "Start fewer ranks, or raise the limit of processes, open files or memory (ulimit -a)."
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        told: set[bytes] = set()
        held: list[bytes] = []
        relays = [Thread(target=_relay, args=(process.stderr, told, held), daemon=True) for process in started.processes]
        for relay in relays:
            relay.start()
        rank, code = _wait(started.processes)
        for relay in relays:
            relay.join(timeout=GRACE_SECONDS)
    except BaseException:
        started.kill()
        raise
    finally:
        started.close()
        if not started.signals:  # else a repeat, from a launcher's launcher, would take this process's exit code from it
            for number, handler in previous.items():
                signal.signal(number, handler)
    if code >= 0 and not told:
        sys.stderr.buffer.writelines(held[:1])
    if code < 0 and -code not in started.signals:
        name = signal.Signals(-code).name
        sys.stderr.write(
            f"error: rank {rank} was killed by {name}. If memory ran out, lower train.micro_batch_size or the number of ranks.\n"
        )
    return 128 - code if code < 0 else code


class _Ranks:
    """The processes of the ranks, and what is passed on to them.

    Ranks that watch for signals are told through a pipe each: a terminal sends its Ctrl-C to them too, and only so can they tell
    the same one, heard twice, from a second one, however long the launcher takes to pass it on.
    """

    def __init__(self, watching: bool) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.signals: list[int] = []
        """What was passed on so far."""
        self._watching = watching
        self._pipes: list[int] = []

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the next rank. Raises OSError."""
        if self._watching:
            read, write = os.pipe()
            self._pipes.append(write)
            os.set_blocking(write, False)
            try:
                environment = {**environment, LAUNCHER_PIPE: str(read)}
                self.processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, pass_fds=[read]))
            finally:
                os.close(read)  # the rank's alone: when it no longer listens, writing says so
        else:
            self.processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
        for number in self.signals:  # came between two starts
            self._tell(len(self.processes) - 1, number)

    def pass_on(self, number: int, _: object) -> None:
        """Tell every rank; a handler of signals."""
        self.signals.append(number)
        for rank in range(len(self.processes)):
            self._tell(rank, number)

    def _tell(self, rank: int, number: int) -> None:
        if self.processes[rank].poll() is not None:
            return
        try:
            os.write(self._pipes[rank], bytes([number]))
        except (IndexError, OSError):  # no pipe, or nobody listens any more
            self.processes[rank].send_signal(number)

    def kill(self) -> None:
        """End every rank at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def close(self) -> None:
        """Let go of the pipes."""
        pipes, self._pipes = self._pipes, []
        for write in pipes:
            os.close(write)


def _environments(ranks: int) -> list[dict[str, str]]:
    common = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _relay(stream: IO[bytes] | None, told: set[bytes], held: list[bytes]) -> None:
    """Pass a rank's stderr on; how a run ended is said once, not by each rank. A lost peer is held back: that one knows more."""
    for line in stream or ():
        if line.startswith(LOST_RANK):
            held.append(line)
            continue
        if line.startswith((b"error: ", b"stopped ")):
            if line in told:
                continue
            told.add(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def _wait(processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait for all; (rank, exit code) of the first that failed, or (0, 0)."""
    failed_at, first = None, (0, 0)
    while True:
        codes = [process.poll() for process in processes]
        if failed_at is None and (failures := [(rank, code) for rank, code in enumerate(codes) if code]):
            failed_at = time.monotonic()
            first = min(failures, key=lambda failure: failure[1])  # a killed rank (negative) takes others with it
        if None not in codes:
            return first
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)


def _free_port() -> int:
    """A port that nobody has. Not one that the system gives to connections: seconds pass until rank 0 listens, and by then it could be
    somebody's."""
    ports = random.SystemRandom().sample(range(*PORTS), 100)
    for port in [*ports, 0]:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
