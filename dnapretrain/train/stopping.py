"""When a run should stop before its end: a signal, the end of its launcher, the stop file, a time limit, the end of the Slurm job.

Each rank looks for itself, and `agreed` makes it one answer: all ranks stop after the same step.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from dnapretrain.config import TrainConfig
from dnapretrain.parallel import slurm
from dnapretrain.parallel.groups import max_of_ranks
from dnapretrain.parallel.signals import STOP_SIGNALS, StopSignals

STOP_FILE = "stop"
"""`touch RUN/stop` stops a run after its step; the run removes the file."""
LOOK_SECONDS = 1.0
"""Time between two looks at the stop file: on a shared disk each costs a message."""
REASONS = (
    "",
    *(signal.Signals(number).name for number in STOP_SIGNALS),
    "the end of the process that started its ranks",
    f"the file {STOP_FILE} in its folder",
    "train.exit_duration",
    "the coming end of its Slurm job (train.slurm_margin)",
)


class StopRequest:
    """Asks the questions on this rank; those of file and clock on the main rank only."""

    def __init__(self, train: TrainConfig, is_main: bool, signals: StopSignals, started: float) -> None:
        """`started` is when the run did, on time.monotonic's clock."""
        self.reason = ""
        """Why the run stops, once `agreed` has said so."""
        self.signals, self.is_main = signals, is_main
        self.file: Path = train.run_dir / STOP_FILE
        self.exit_at = started + train.exit_duration if train.exit_duration else None
        left = slurm.seconds_left() if is_main else None
        self.slurm_at = None if left is None else time.monotonic() + left - train.slurm_margin
        self._looked = 0.0

    def agreed(self) -> str:
        """Why the run should stop, the same on every rank; '' to go on. Every rank asks at the same place."""
        if not self.reason:
            self.reason = REASONS[max_of_ranks(self._code())]
            if self.reason and self.is_main:
                self.file.unlink(missing_ok=True)
        return self.reason

    def forget_old_file(self) -> bool:
        """Remove a stop file that is there before the start, on the main rank; whether there was one."""
        if not self.is_main or not self.file.exists():
            return False
        self.file.unlink()
        return True

    def limits(self) -> str:
        """The time limits in words; '' where there are none."""
        now, parts = time.monotonic(), []
        if self.exit_at is not None:
            parts.append(f"stops in {self.exit_at - now:,.0f} s (train.exit_duration)")
        if self.slurm_at is not None:
            parts.append(f"stops in {self.slurm_at - now:,.0f} s, before the end of the Slurm job (train.slurm_margin)")
        return ", ".join(parts)

    def _code(self) -> int:
        now = time.monotonic()
        if self.signals.received:
            return 1 + [int(number) for number in STOP_SIGNALS].index(self.signals.received)
        if self.signals.launcher_gone:
            return 1 + len(STOP_SIGNALS)
        if not self.is_main:
            return 0
        if self.exit_at is not None and now >= self.exit_at:
            return len(REASONS) - 2
        if self.slurm_at is not None and now >= self.slurm_at:
            return len(REASONS) - 1
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            return len(REASONS) - 3 if self.file.exists() else 0
        return 0
