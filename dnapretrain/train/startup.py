"""Where the time goes between a rank's launch and the end of its first step."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dnapretrain.parallel.groups import largest_of_ranks
from dnapretrain.train.metrics import RunLog

LAUNCH = "imports"
"""The part before anything is measured: interpreter, imports, settings."""


def seconds_since_launch() -> float:
    """Age of this process; 0 where the system does not say it as Linux does."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22: since the system's start, time asleep counted
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


class StartUp:
    """The parts of a start on this rank, in seconds, in their order. What a rank waits for others counts to its part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {LAUNCH: seconds_since_launch()}
        self._last = time.monotonic()

    def end_of(self, part: str) -> None:
        """All since the last part's end was `part`."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def log(self, log: RunLog, step: int) -> None:
        """Write the record `startup` and its line; every rank must call it, after its first step."""
        largest = largest_of_ranks(list(self.seconds.values()))
        slowest = dict(zip(self.seconds, largest, strict=True))
        total = sum(self.seconds.values())
        log.write("startup", step=step, total=total, seconds=self.seconds, slowest=slowest)
        parts = [
            f"{part} {seconds:.1f}" + (f" (slowest rank {slowest[part]:.1f})" if slowest[part] > seconds + max(0.5, 0.1 * seconds) else "")
            for part, seconds in self.seconds.items()
        ]
        log.say(f"{'start-up':>14}: {total:.1f} s from launch to the end of the first step: {', '.join(parts)}")
