"""Starts the ranks of a run on this machine, so that one command trains on a laptop.

On a cluster torchrun or srun start the ranks; then this file has nothing to do.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import IO

GRACE_SECONDS = 10.0
"""Time that the other ranks get to end by themselves after one failed."""


def is_launched() -> bool:
    """True when a launcher has already started this process as one of several ranks."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def default_ranks(device: str, model_parallel_size: int) -> int:
    """One rank per visible GPU, or on CPU as many as hold one copy of the model."""
    if device != "cpu" and Path("/proc/driver/nvidia/version").exists():
        import torch

        if count := torch.cuda.device_count():
            return count
    return model_parallel_size


def launch_local(arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m dnapretrain ARGUMENTS` as `ranks` local ranks; return the first failing exit code, else 0.

    Signals sent to this process are passed on. When a rank fails the others get GRACE_SECONDS to end.
    """
    base = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dnapretrain", *arguments], env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]
    seen: set[bytes] = set()
    relays = [Thread(target=_relay, args=(process.stderr, seen), daemon=True) for process in processes]
    for relay in relays:
        relay.start()

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        code = _wait(processes)
        for relay in relays:
            relay.join(timeout=GRACE_SECONDS)
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _relay(stream: IO[bytes] | None, seen: set[bytes]) -> None:
    """Pass a rank's stderr on; the same error of several ranks is shown once."""
    for line in stream or ():
        if line.startswith(b"error: "):
            if line in seen:
                continue
            seen.add(line)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    failed_at, failure = None, 0
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if failed_at is None and any(codes):
            failed_at, failure = time.monotonic(), next(code for code in codes if code)
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    return failure or next((process.returncode for process in processes if process.returncode), 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
