"""Work in a forked process: its answer, its failures, and a fork that never comes up."""

from __future__ import annotations

import errno
import gc
import os
import signal
import time

import pytest
from ranks import HANG_SECONDS

from dnapretrain.train import child_process
from dnapretrain.train.child_process import start_child


def answer_of(child):
    until = time.monotonic() + HANG_SECONDS
    while not child.look():
        assert time.monotonic() < until
        time.sleep(0.01)
    child.end()
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)  # nothing is left of it
    return child.answer


def test_what_the_work_returns_and_raises():
    assert answer_of(start_child(lambda: [1, "a"])) == ("ok", [1, "a"])

    def full():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected pos") from error

    kind, text = answer_of(start_child(full))
    assert kind == "error" and text.startswith("OSError: [Errno 28] No space")
    kind, text = answer_of(start_child(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert kind == "error" and "died without a word" in text


class GroupOfARank:
    """As a process group of gloo: taking it down waits for threads, which a fork has not. Here it says where it was taken down."""

    def __init__(self, path):
        self.path = path
        self.itself = self

    def __del__(self):
        self.path.write_text(str(os.getpid()))


def test_it_takes_down_nothing_that_the_rank_has_let_go_of(tmp_path):
    def work():
        made_here = GroupOfARank(tmp_path / "of the child")
        del made_here
        gc.collect()
        return os.getpid()

    gc.collect()
    gc.disable()
    try:
        GroupOfARank(tmp_path / "of the rank")
        kind, pid = answer_of(start_child(work))
    finally:
        gc.enable()
    assert kind == "ok"
    assert (tmp_path / "of the child").read_text() == str(pid), "it collects its own"
    assert not (tmp_path / "of the rank").exists()
    gc.collect()
    assert (tmp_path / "of the rank").read_text() == str(os.getpid())


def test_one_that_hangs_in_its_fork_is_replaced(monkeypatch):
    """As Python before 3.12 does where another thread of the parent was just entering the interpreter."""
    fork, pids = os.fork, []

    def hangs_once():
        pid = fork()
        if pid == 0 and not pids:
            time.sleep(3600)
        pids.append(pid)
        return pid

    monkeypatch.setattr(child_process.os, "fork", hangs_once)
    monkeypatch.setattr(child_process, "HELLO_SECONDS", 1.0)
    assert answer_of(start_child(lambda: "done")) == ("ok", "done")
    assert len(pids) >= 2
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], 0)


def test_where_none_comes_up_it_is_an_error(monkeypatch):
    fork = os.fork

    def hangs():
        pid = fork()
        if pid == 0:
            time.sleep(3600)
        return pid

    monkeypatch.setattr(child_process.os, "fork", hangs)
    monkeypatch.setattr(child_process, "HELLO_SECONDS", 0.05)
    with pytest.raises(OSError, match="5 processes were started"):
        start_child(lambda: None)
