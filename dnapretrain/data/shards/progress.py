"""Progress of a preprocessing run: summed over threads, drawn on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """How far a run is: stored bytes of the inputs, and bases written; an earlier run's share of both included."""

    bytes_read: int
    bytes_total: int
    bases: int
    kept_bytes: int = 0
    """Of the inputs that an earlier run had finished."""
    kept_bases: int = 0


OnProgress = Callable[[Progress], None]


class Meter:
    """Sums progress over threads; `stop` makes the next `add` of every thread raise."""

    def __init__(self, bytes_total: int, report: OnProgress | None) -> None:
        self._lock = threading.Lock()
        self._report = report
        self._state = Progress(0, bytes_total, 0)
        self._stopped = False

    def add(self, bytes_read: int, bases: int) -> None:
        """Count stored bytes read and bases written. Raises InterruptedError after `stop`."""
        with self._lock:
            if self._stopped:
                raise InterruptedError("stopped: another input failed")
            state = self._state
            self._state = replace(state, bytes_read=state.bytes_read + bytes_read, bases=state.bases + bases)
            if self._report:
                self._report(self._state)

    def keep(self, bytes_read: int, bases: int) -> None:
        """Count what an earlier run has done: it says nothing about the speed of this one."""
        with self._lock:
            state = self._state
            self._state = replace(
                state, bytes_read=state.bytes_read + bytes_read, bases=state.bases + bases, kept_bytes=bytes_read, kept_bases=bases
            )
            if self._report:
                self._report(self._state)

    def stop(self) -> None:
        """End the other threads at their next block."""
        with self._lock:
            self._stopped = True


class TerminalProgress:
    """One line on stderr, redrawn at most five times a second."""

    def __init__(self) -> None:
        self._start = self._drawn = time.monotonic()
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Draw the line where the last drawing is old enough."""
        now = time.monotonic()
        if now - self._drawn >= 0.2:
            self._drawn = now
            line = progress_line(progress, now - self._start)
            self._width = max(self._width, len(line))
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def progress_line(progress: Progress, seconds: float) -> str:
    """Share, bases, speed and time left, the last two from what this run did in its `seconds`."""
    percent = 100 * progress.bytes_read / max(1, progress.bytes_total)
    speed = (progress.bases - progress.kept_bases) / seconds / 1e6
    line = f"{percent:5.1f} % of {progress.bytes_total:,} bytes, {progress.bases:,} bases, {speed:,.0f} Mbases/s"
    read, left = progress.bytes_read - progress.kept_bytes, progress.bytes_total - progress.bytes_read
    if read > 0 and left >= 0:
        minutes, rest = divmod(round(seconds * left / read), 60)
        line += f", {minutes // 60}:{minutes % 60:02d}:{rest:02d} left"
    return line
