"""A forked process that does one piece of work in the background and answers once; it never outlives the rank."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch

from dnapretrain.parallel.signals import STOP_SIGNALS

HELLO_SECONDS = 20.0
"""So long a forked process may take to come up; milliseconds are usual."""
ATTEMPTS = 5


@dataclass
class Child:
    """One such process, as its rank sees it."""

    pid: int
    pipe: Connection
    answer: tuple[str, Any] | None = None
    """("ok", what the work returned) or ("error", what went wrong), once it came."""

    def look(self) -> bool:
        """Whether the answer has come; does not wait."""
        if self.answer is None and self.pipe.poll():
            try:
                self.answer = self.pipe.recv()
            except (EOFError, OSError):
                self.answer = "error", f"process {self.pid} died without a word. Did memory run out?"
        return self.answer is not None

    def end(self) -> None:
        """Kill it if it still runs, and let go of it."""
        if self.answer is None:
            os.kill(self.pid, signal.SIGKILL)
        self.pipe.close()
        _reap(self.pid)


def start_child(work: Callable[[], Any]) -> Child:
    """Fork a process that does `work` and sends what it returns. Raises OSError.

    Before Python 3.12 a process forked while another thread takes up the interpreter for the first time (gloo's do, to drop a tensor
    after a collective) waits for ever for a lock that only that thread could release, before it runs a line of Python. So each says
    that it has come up, and one that does not is replaced, by a fork of the same moment: meanwhile this process waits.
    """
    for _ in range(ATTEMPTS):
        child = _fork(work)
        if child.pipe.poll(HELLO_SECONDS):
            with contextlib.suppress(EOFError, OSError):  # it has died already: `look` will say so
                child.pipe.recv()
            return child
        child.end()
    raise OSError(f"{ATTEMPTS} processes were started, one after the other, and none came up within {HELLO_SECONDS:g} s")


def _fork(work: Callable[[], Any]) -> Child:
    ours, theirs = Pipe(duplex=False)
    parent = os.getpid()
    with warnings.catch_warnings():
        # Other threads of ours (gloo's, autograd's) are not there in the child, which only serializes and writes.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _live(work, theirs, parent)
    theirs.close()
    return Child(pid, ours)


def _live(work: Callable[[], Any], pipe: Connection, parent: int) -> None:
    """The whole life of the process."""
    code = 1
    try:
        gc.freeze()  # collecting what the rank has let go of here would wait for threads of gloo that were not forked
        pipe.send(None)  # it has come up
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:  # they are for the rank, and Slurm sends them to its children too: the last save must go on
            signal.signal(number, signal.SIG_IGN)
        _die_with(parent)
        torch.set_num_threads(1)  # the thread pool was not forked
        pipe.send(("ok", work()))
        code = 0
    except BaseException as error:
        reason = _reason(error)
        pipe.send(("error", " ".join(f"{type(reason).__name__}: {reason}".split())[:500]))
    finally:
        os._exit(code)


def _reason(error: BaseException) -> BaseException:
    """The failure of the system behind `error`, where there is one: torch's archive writer covers a full disk with words of its own."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


def _die_with(parent: int) -> None:
    """A rank that is killed takes these along: none holds its connections open or writes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _reap(pid: int) -> None:
    """Take the exit status of an ended process; one that is stuck in the kernel is waited for no longer than a second."""
    give_up = time.monotonic() + 1
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < give_up:
            time.sleep(0.005)
