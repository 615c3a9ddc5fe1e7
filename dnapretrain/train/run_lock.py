"""One run at a time in a run folder: a lock that the system takes away from a dead process."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import socket
from pathlib import Path

from dnapretrain.errors import ConfigError

LOCK_FILE = ".lock"


class RunLock:
    """The lock of a run folder, held from `take` to `release` or to the end of the process, however it ends."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK_FILE
        self._descriptor: int | None = None

    def take(self) -> str:
        """Take the lock; return a remark for the user or ''. Raises ConfigError when a live process holds it, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        remark = f"the last start here ({holder}) did not end by itself: its lock is stale and is taken over" if holder else ""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise ConfigError(
                    f"train.run_dir = {self.path.parent} is in use by {holder or 'another process'}. "
                    "Wait for its end, stop it, or give another train.run_dir."
                ) from None
            remark = f"{self.path.parent} has no locks ({error.strerror}): see to it that no other run is started here"
        if not self.path.exists() or os.fstat(descriptor).st_ino != self.path.stat().st_ino:
            os.close(descriptor)  # the holder ended, and removed the file, between our opening it and our lock
            return self.take()
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
        return remark

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
