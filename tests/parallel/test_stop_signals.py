"""The first signal is noted, a second one ends the process, even one that waits outside of Python; time left on Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from ranks import HANG_SECONDS

from dnapretrain.config import parse_seconds
from dnapretrain.parallel import signals, slurm
from dnapretrain.parallel.signals import STOP_SIGNALS, StopSignals

STUCK = """
import ctypes, sys
from dnapretrain.parallel import signals
from dnapretrain.parallel.signals import StopSignals
signals.SAME_SECONDS = 0.1
with StopSignals() as stop:
    print("up", flush=True)
    for _ in range(2):
        ctypes.PyDLL(None).usleep(0)
        ctypes.CDLL(None).sem_wait(ctypes.create_string_buffer(64))  # a library that goes on waiting, whatever signal comes
"""


def wait_for(condition):
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_repeats_within_a_second_are_the_same(number, monkeypatch):
    monkeypatch.setattr(signals, "SAME_SECONDS", HANG_SECONDS)  # a busy machine may take a second between two
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with StopSignals() as stop:
        assert stop.received == 0
        for _ in range(3):  # from the terminal, the launcher and its launcher
            os.kill(os.getpid(), number)
        wait_for(lambda: stop.received)
        assert stop.received == number
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_signal_that_came_before_is_not_lost():
    """As in a rank that the launcher has started with signals held back; a process of its own has no other thread that takes it."""
    program = (
        "import os, signal, time\nfrom dnapretrain.parallel.signals import STOP_SIGNALS, StopSignals\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)\nos.kill(os.getpid(), signal.SIGTERM)\n"
        "with StopSignals() as stop:\n    while not stop.received: time.sleep(0.01)\nprint(stop.received)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (result.returncode, result.stdout) == (0, f"{int(signal.SIGTERM)}\n")


def test_a_rank_hears_that_its_launcher_is_gone_and_may_still_write_to_stderr():
    """As after kill -9 of the launcher, which also read this process's stderr."""
    program = (
        "import sys, time\nfrom dnapretrain.parallel.signals import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    print('up', flush=True)\n"
        "    while not stop.launcher_gone: time.sleep(0.01)\n"
        "    print('a warning', file=sys.stderr, flush=True)\n"
        "    print('saved', stop.received)\n"
    )
    read, write = os.pipe()
    environment = {**os.environ, signals.LAUNCHER_PIPE: str(read)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, pass_fds=[read]) as process:
        os.close(read)
        assert process.stdout.readline() == "up\n"
        process.stderr.close()
        os.close(write)
        assert process.stdout.read() == "saved 0\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_means_now(number):
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        time.sleep(0.4)
        assert process.poll() is None
        while process.poll() is None:  # on a busy machine the first may be heard late, and then the next is the same
            process.send_signal(number)
            time.sleep(0.4)
        _, says = process.communicate()
    assert process.returncode == 128 + number
    assert says.startswith(f"stopped at once by {number.name}, the second signal")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1:02", 62), ("59:59", 3599), ("2:00:01", 7201), ("1-00:00:00", 86400), ("UNLIMITED", None), ("NOT_SET", None), ("", None)],
)
def test_what_squeue_says(text, seconds):
    assert slurm.parse_time_left(f"{text}\n") == seconds


def test_time_left_from_the_environment_else_from_squeue(monkeypatch, tmp_path):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.seconds_left() is None  # no squeue
    (tmp_path / "squeue").write_text('#!/bin/sh\n[ "$3" = 77 ] && echo 10:30\n')
    (tmp_path / "squeue").chmod(0o755)
    assert slurm.seconds_left() == 630
    monkeypatch.setattr(slurm.time, "time", lambda: 1000.25)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1500")
    assert slurm.seconds_left() == 499.75


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13800), ("90s", 90), ("1.5s", 1.5), ("1d2h", 93600), ("03:50:00", 13800), ("2-00:00:00", 172800), ("120", "120"), ("", "")],
)
def test_durations(text, seconds):
    assert parse_seconds(text) == seconds
