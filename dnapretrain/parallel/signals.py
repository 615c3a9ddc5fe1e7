"""Signals that ask a run to stop: the first asks for one checkpoint and a clean end, a second one means now.

Signals are seen by a thread of their own, so that a second one ends the process even where the main thread
waits in a collective or in a system call that does not return.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop, saved and can go on (EX_TEMPFAIL of sysexits.h: try again)."""
SAME_SECONDS = 1.0
"""Signals this close to the first are the same request: two launchers, one started by the other, each deliver it."""
LAUNCHER_PIPE = "DNAPRETRAIN_LAUNCHER_PIPE"
"""Environment variable: the descriptor from which a rank of `launch_local` reads the signals that were sent to its launcher."""


class StopSignals:
    """Watches STOP_SIGNALS from `with` to its end; `received` is the first one, 0 while there was none.

    Those sent to this process and those that its launcher passes on are counted apart: one Ctrl-C of a terminal comes both ways.
    `launcher_gone`: its launcher has ended without a word, as by SIGKILL.
    """

    def __init__(self) -> None:
        self.received = 0
        self.launcher_gone = False
        self._first_at: dict[bool, float] = {}
        self._launcher: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets only the main thread handle signals: whoever runs us in another one stops us otherwise
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)  # a system call of a library that is interrupted goes on
        if pipe := os.environ.pop(LAUNCHER_PIPE, ""):  # not for processes that this one starts
            self._launcher = int(pipe)
            os.set_inheritable(self._launcher, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the launcher holds them back until here
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._write.close()  # ends the thread
        self._thread.join()
        self._read.close()
        if self._launcher is not None:
            os.close(self._launcher)
            self._launcher = None
        self._previous = {}

    def _watch(self) -> None:
        sources = [self._read.fileno(), *([] if self._launcher is None else [self._launcher])]
        while self._read.fileno() in sources:
            ready = wait(sources)
            for source in [source for source in sources if source in ready]:
                data = os.read(source, 64)
                for number in data:
                    if number in STOP_SIGNALS:
                        self._receive(number, passed_on=source == self._launcher)
                if not data:
                    sources.remove(source)
                    if source == self._launcher:
                        self._lose_launcher()

    def _lose_launcher(self) -> None:
        # Nobody passes our stderr on any more, and writing to that pipe would fail before the run has saved.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        self.launcher_gone = True

    def _receive(self, number: int, passed_on: bool) -> None:
        now = time.monotonic()
        self.received = self.received or number
        if now - self._first_at.setdefault(passed_on, now) > SAME_SECONDS:
            text = (
                f"stopped at once by {signal.Signals(number).name}, the second signal: what was trained since the last checkpoint is lost\n"
            )
            os.write(2, text.encode())
            os._exit(128 + number)
