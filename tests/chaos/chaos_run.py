"""A run that is started again and again as a user does, and what must hold of it whatever befalls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_support import ROOT, losses_of, patience, same_end, torn_files

from dnapretrain.convert.native import file_digest
from dnapretrain.report.history import read_log
from dnapretrain.train.retention import step_of

DNAPRETRAIN = [sys.executable, "-W", "ignore", "-m", "dnapretrain"]


class Log:
    """log.jsonl of a run as it grows; lines are handed out once they are whole."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset, self._rest = path, 0, b""

    def new_records(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [record for line in lines if (record := parsed(line))]


def parsed(line: bytes) -> dict[str, Any] | None:
    """None for half a line, as a process leaves it that ends while the disk is full."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record


@dataclass
class DisturbedRun:
    """The run in `folder`/disk/run, what it has shown so far, and what was wrong."""

    folder: Path
    config: Path
    ranks: int
    steps: int
    problems: list[str] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    """By step, of the run that is never disturbed."""
    start_seconds: float = 0.0
    """How long that run took to its first record."""
    whole_seconds: float = 0.0
    """How long it took."""
    damaged: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Checkpoints damaged on purpose, with the digests of their files since: one that is written anew has others."""
    starts: int = 0
    """Start records of the run so far."""
    reached: int = 0
    """The last step of this start; 0 before its first record."""
    last_kind: str = ""
    expected: Path | None = None
    """The checkpoint that this start has to resume from."""
    launcher: subprocess.Popen[bytes] | None = None
    restarts_listed: int = 0
    starts_in_all: int = 0
    half_lines: int = 0
    """Of the log: nothing but what is trained again may be on them, which the losses show."""
    runs_finished: int = 0
    checkpoints_checked: int = 0

    def __post_init__(self) -> None:
        self.disk = self.folder / "disk"
        self.path, self.whole = self.disk / "run", self.folder / "whole"
        self.log = Log(self.path / "log.jsonl")

    def launch(self, *overrides: str) -> subprocess.Popen[bytes]:
        """Start or resume the run as a user does."""
        self.expected, self.reached, self.last_kind = self.newest_whole(), 0, ""
        command = [*DNAPRETRAIN, "pretrain", str(self.config), "--ranks", str(self.ranks), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.folder / "output.txt").open("wb") as output:
            self.launcher = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        return self.launcher

    def wait_for_end(self, launcher: subprocess.Popen[bytes], ranks: list[psutil.Process], what: str) -> int:
        """The launcher's exit code, when no rank is left; what does not end is a problem, and killed."""
        seconds = patience(self.whole_seconds)
        until = time.monotonic() + seconds
        while launcher.poll() is None or any(is_alive(rank) for rank in ranks):
            self.look()
            if time.monotonic() > until:
                self.problem(f"{what}: processes did not end within {seconds:.0f} s")
                kill_all(launcher)
                until = time.monotonic() + seconds
            time.sleep(0.02)
        self.look()
        return launcher.returncode

    def problem(self, text: str) -> None:
        output = self.folder / "output.txt"
        self.problems.append(f"{text}\n{output.read_text(errors='replace')[-1500:]}")

    def look(self) -> None:
        """Read what the log has got, and check it."""
        for record in self.log.new_records():
            self.last_kind = record["kind"]
            if record["kind"] == "start":
                self.starts, self.reached = self.starts + 1, record["step"]
                found = record["resumed_from"] and Path(record["resumed_from"])
                if found != self.expected:
                    self.problem(f"resumed from {found}; the newest whole checkpoint was {self.expected}")
            elif record["kind"] == "train":
                self.reached = record["step"]
                if record["loss"] != self.losses[self.reached]:
                    self.problem(f"loss {record['loss']} at step {self.reached}, undisturbed {self.losses[self.reached]}")

    def checkpoints(self) -> list[Path]:
        """Those that a start may resume from, newest first: what `latest` names and what is older."""
        latest = self.path / "checkpoints" / "latest"
        newest = step_of(Path(latest.read_text().strip())) if latest.exists() else sys.maxsize
        return sorted((path for path in self.path.glob("checkpoints/step_*") if step_of(path) <= newest), key=step_of, reverse=True)

    def is_damaged(self, checkpoint: Path) -> bool:
        return self.damaged.get(checkpoint) == fingerprint(checkpoint)

    def newest_whole(self) -> Path | None:
        return next((path for path in self.checkpoints() if not self.is_damaged(path)), None)

    def newest_whole_step(self) -> int:
        newest = self.newest_whole()
        return step_of(newest) if newest else 0

    def check_checkpoints(self, what: str) -> None:
        for checkpoint in self.path.glob("checkpoints/step_*"):
            if not self.is_damaged(checkpoint):
                self.checkpoints_checked += 1
                for path in torn_files(checkpoint):
                    self.problem(f"{what}: {path} is torn")

    def run_undisturbed(self) -> None:
        """The run that all others are compared with."""
        began, path = time.monotonic(), self.whole
        launcher = self.launch(f"train.run_dir={path}")
        while launcher.poll() is None:
            if not self.start_seconds and (path / "log.jsonl").exists():
                self.start_seconds = time.monotonic() - began
            time.sleep(0.02)
        if launcher.returncode:
            self.problem(f"the undisturbed run: exit code {launcher.returncode}")
        self.whole_seconds, self.losses = time.monotonic() - began, losses_of(path)

    def is_finished(self) -> bool:
        return self.newest_whole_step() == self.steps

    def finish(self) -> None:
        """Run to the end undisturbed, compare, and clear the folder for the next run."""
        code = self.wait_for_end(self.launch(), [], "the last start")
        if code:
            self.problem(f"the last start: exit code {code}")
            return
        problems = len(self.problems)
        history = read_log(self.path)
        if {record["step"]: record["loss"] for record in history.train} != self.losses:
            self.problem("the losses in the end are not those of the undisturbed run, step by step")
        self.half_lines += history.damaged_lines
        if not same_end(self.path, self.whole):
            self.problem("weights or moments in the end are not those of the undisturbed run")
        command = [*DNAPRETRAIN, "report", str(self.path), "--output", str(self.folder / "report.html")]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        listed = (self.folder / "report.html").read_text().count(">restart<")
        if listed != self.starts - 1:
            self.problem(f"the report lists {listed} restarts of {self.starts - 1}")
        self.runs_finished += len(self.problems) == problems
        self.restarts_listed += listed
        self.starts_in_all += self.starts
        shutil.rmtree(self.path)
        self.starts, self.log, self.damaged = 0, Log(self.path / "log.jsonl"), {}


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [process for process in psutil.Process(launcher.pid).children() if "pretrain" in process.cmdline()]
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """The launcher, its ranks and their writers: they are one session."""
    try:
        os.killpg(launcher.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def fingerprint(checkpoint: Path) -> dict[str, Any]:
    return {str(path): file_digest(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()}
