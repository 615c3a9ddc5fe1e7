"""Disturbs a run at random, again and again, and checks that in the end nothing of it is to be seen.

Each round draws one disturbance: SIGKILL of one rank or of all and their launcher, SIGTERM or SIGUSR2 (stop), a full disk, or, between
two starts, damage to the newest checkpoint (a file cut short, one bit of it flipped, a file removed); those that need a running run
strike at a random moment of its start, its steps, a save or an evaluation. Then the same command starts it again, until it is finished.

Asked after every round: does each logged loss equal, bit for bit, that of a run that was never disturbed? Is every checkpoint
whole that was not damaged on purpose? Did the start resume from the newest whole one? How many steps must be done again? Asked at
the end: is every step there, are weights and moments the same, does the report list every restart?

The seed fixes what is drawn, not the timing of processes. A full disk needs root: the run folder is a small tmpfs then.

    python tests/chaos/chaos.py --rounds 50 --ranks 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_support import EVAL_INTERVAL, ROOT, SAVE_INTERVAL, losses_of, make_config, same_end, torn_files

from dnapretrain.convert.native import file_digest
from dnapretrain.parallel.signals import EXIT_STOPPED
from dnapretrain.report.history import read_log
from dnapretrain.train.retention import step_of

WAIT_SECONDS = 120
DISK_BYTES = 64 << 20
KILL_ONE, KILL_ALL, STOP, FULL_DISK = "SIGKILL of one rank", "SIGKILL of all", "stop (SIGTERM, SIGUSR2)", "full disk"
CUT, FLIP, REMOVE = "checkpoint cut short", "checkpoint, one bit flipped", "checkpoint, file removed"
MOMENTS = ("start", "steps", "save", "evaluation")


@dataclass
class Strike:
    """One disturbance and what it came to."""

    kind: str
    moment: str
    steps_lost: int
    seconds: float
    """From the disturbance to the end of all processes."""
    code: int | None = None
    file: str = ""
    """What was damaged."""


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
        return [json.loads(line) for line in lines]


@dataclass
class Chaos:
    """A run under disturbance: what it has shown so far, and what was wrong."""

    folder: Path
    config: Path
    ranks: int
    steps: int
    rng: random.Random
    has_small_disk: bool
    losses: dict[int, float] = field(default_factory=dict)
    start_seconds: float = 0.0
    """How long the undisturbed run took to its first step."""
    strikes: list[Strike] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    damaged: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Checkpoints damaged here, with the digests of their files since: one that is written anew has others."""
    starts: int = 0
    """Start records of the run so far."""
    reached: int = 0
    """The last step of this start; 0 before its first record."""
    last_kind: str = ""
    expected: Path | None = None
    """The checkpoint that this start has to resume from."""
    restarts_listed: int = 0
    runs_finished: int = 0
    checkpoints_checked: int = 0
    starts_in_all: int = 0

    def __post_init__(self) -> None:
        self.run = self.folder / "disk" / "run"
        self.log = Log(self.run / "log.jsonl")

    # The run and its processes

    def launch(self, *overrides: str) -> subprocess.Popen[bytes]:
        """Start or resume the run as a user does."""
        self.expected, self.reached, self.last_kind = self.newest_whole(), 0, ""
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "dnapretrain",
            "pretrain",
            str(self.config),
            "--ranks",
            str(self.ranks),
            *overrides,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.folder / "output.txt").open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)

    def wait_for_end(self, launcher: subprocess.Popen[bytes], ranks: list[psutil.Process], what: str) -> int:
        """The launcher's exit code, when no rank is left; what does not end is a problem, and killed."""
        until = time.monotonic() + WAIT_SECONDS
        while launcher.poll() is None or any(is_alive(rank) for rank in ranks):
            self.look()
            if time.monotonic() > until:
                self.problem(f"{what}: processes did not end within {WAIT_SECONDS} s")
                kill_all(launcher)
                until = time.monotonic() + WAIT_SECONDS
            time.sleep(0.02)
        self.look()
        return launcher.returncode

    def problem(self, text: str) -> None:
        output = self.folder / "output.txt"
        self.problems.append(f"{text}\n{output.read_text(errors='replace')[-1500:]}")

    # What must hold at any time

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
        latest = self.run / "checkpoints" / "latest"
        newest = step_of(Path(latest.read_text().strip())) if latest.exists() else sys.maxsize
        return sorted((path for path in self.run.glob("checkpoints/step_*") if step_of(path) <= newest), key=step_of, reverse=True)

    def is_damaged(self, checkpoint: Path) -> bool:
        return self.damaged.get(checkpoint) == fingerprint(checkpoint)

    def newest_whole(self) -> Path | None:
        return next((path for path in self.checkpoints() if not self.is_damaged(path)), None)

    def newest_whole_step(self) -> int:
        newest = self.newest_whole()
        return step_of(newest) if newest else 0

    def check_checkpoints(self, what: str) -> None:
        for checkpoint in self.run.glob("checkpoints/step_*"):
            if not self.is_damaged(checkpoint):
                self.checkpoints_checked += 1
                for path in torn_files(checkpoint):
                    self.problem(f"{what}: {path} is torn")

    # Disturbances

    def strike(self, kind: str) -> bool:
        """One round; False if there was nothing to strike: the run had ended, or has too few checkpoints to damage one."""
        if kind in (CUT, FLIP, REMOVE):
            return self.damage(kind)
        moment = self.rng.choice(MOMENTS)
        launcher = self.launch()
        has_come = self.moment(moment)
        while not has_come() and launcher.poll() is None:
            time.sleep(0.002)
        ranks = ranks_of(launcher)
        if launcher.poll() is not None:
            code = self.wait_for_end(launcher, ranks, f"before {kind}")
            if code:
                self.problem(f"before {kind}: exit code {code}")
            return False
        struck = time.monotonic()
        what = f"{kind} during {moment} after step {self.reached}"
        if kind == KILL_ONE:
            kill((self.rng.choice(ranks) if ranks else launcher).pid)
        elif kind == KILL_ALL:
            kill_all(launcher)
        elif kind == STOP:
            launcher.send_signal(self.rng.choice((signal.SIGTERM, signal.SIGUSR2)))
        else:
            self.fill_disk(launcher)
        code = self.wait_for_end(launcher, ranks, what)
        (self.folder / "disk" / "filler").unlink(missing_ok=True)
        self.check_code(kind, code, had_ranks=bool(ranks), what=what)
        self.check_checkpoints(what)
        lost = max(0, self.reached - self.newest_whole_step())
        if lost > {STOP: 0, FULL_DISK: sys.maxsize}.get(kind, 2 * SAVE_INTERVAL):
            self.problem(f"{what}, exit code {code}: {lost} steps lost")
        self.strikes.append(Strike(kind, moment, lost, time.monotonic() - struck, code))
        return True

    def moment(self, name: str) -> Callable[[], bool]:
        """A function that says whether the moment has come; it is one of a random number of such moments, and a little after it."""
        if name == "start":
            begin = time.monotonic() + self.rng.uniform(0, 1.1 * self.start_seconds)
            return lambda: time.monotonic() > begin
        steps, delay = self.rng.randint(1, 2 * SAVE_INTERVAL), self.rng.uniform(0, {"steps": 0.1, "save": 0.8, "evaluation": 0.05}[name])
        first = step_of(self.expected) if self.expected else 0
        due: list[float] = []

        def has_come() -> bool:
            self.look()
            is_there = self.reached >= first + steps
            if name == "save":
                is_there = is_there and any(self.run.glob("checkpoints/.step_*.partial"))
            elif name == "evaluation":
                is_there = is_there and self.last_kind == "train" and self.reached % EVAL_INTERVAL == 0
            if is_there and not due:
                due.append(time.monotonic() + delay)
            return bool(due) and time.monotonic() > due[0]

        return has_come

    def fill_disk(self, launcher: subprocess.Popen[bytes]) -> None:
        """Leave no byte free for a while, then give the room back, or not; in the end stop the run."""
        filler = self.folder / "disk" / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                for size in itertools.chain([1 << 20] * 2 * (DISK_BYTES >> 20), itertools.repeat(512)):
                    while file.write(bytes(size)):
                        pass
            except OSError:
                pass
        is_freed, until = self.rng.random() < 0.7, time.monotonic() + self.rng.uniform(0.3, 3)
        while time.monotonic() < until and launcher.poll() is None:
            self.look()
            time.sleep(0.02)
        if is_freed:
            filler.unlink()
            until = time.monotonic() + self.rng.uniform(0.3, 2)
            while time.monotonic() < until and launcher.poll() is None:
                self.look()
                time.sleep(0.02)
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)

    def damage(self, kind: str) -> bool:
        """Damage one file of the newest whole checkpoint, where another whole one is left."""
        whole = [path for path in self.checkpoints() if not self.is_damaged(path)]
        if len(whole) < 2:
            return False
        files = sorted(path for path in whole[0].rglob("*") if path.is_file() and path.stat().st_size)
        path = self.rng.choice(files)
        if kind == CUT:
            os.truncate(path, self.rng.randrange(path.stat().st_size))
        elif kind == REMOVE:
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(content)
        self.damaged[whole[0]] = fingerprint(whole[0])
        name = str(path.relative_to(whole[0]))
        self.strikes.append(Strike(kind, "between starts", step_of(whole[0]) - step_of(whole[1]), 0.0, file=name))
        return True

    def check_code(self, kind: str, code: int, had_ranks: bool, what: str) -> None:
        """An end is one that is meant, or one line that says what is wrong; never a traceback."""
        allowed = {KILL_ONE: {0, 2, 3, 137, -9}, KILL_ALL: {-9}, STOP: {0, EXIT_STOPPED}, FULL_DISK: {0, EXIT_STOPPED, 2, 3}}[kind]
        if kind in (STOP, FULL_DISK) and not had_ranks:  # a launcher that has started nothing has nothing to save
            allowed = allowed | {-signal.SIGTERM, -signal.SIGUSR2}
        if code not in allowed or b"Traceback" in (self.folder / "output.txt").read_bytes():
            self.problem(f"{what}: exit code {code}")

    # The end

    def is_finished(self) -> bool:
        return self.newest_whole_step() == self.steps

    def finish(self, whole: Path) -> None:
        """Run to the end undisturbed, compare, and clear the folder for the next run."""
        code = self.wait_for_end(self.launch(), [], "the last start")
        if code:
            self.problem(f"the last start: exit code {code}")
            return
        self.runs_finished += 1
        history = read_log(self.run)
        if {record["step"]: record["loss"] for record in history.train} != self.losses:
            self.problem("the losses in the end are not those of the undisturbed run, step by step")
        if history.damaged_lines:
            self.problem(f"{history.damaged_lines} lines of the log are damaged")
        if not same_end(self.run, whole):
            self.problem("weights or moments in the end are not those of the undisturbed run")
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "dnapretrain",
            "report",
            str(self.run),
            "--output",
            str(self.folder / "report.html"),
        ]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        listed = (self.folder / "report.html").read_text().count(">restart<")
        if listed != self.starts - 1:
            self.problem(f"the report lists {listed} restarts of {self.starts - 1}")
        self.restarts_listed += listed
        self.starts_in_all += self.starts
        shutil.rmtree(self.run)
        self.starts, self.log, self.damaged = 0, Log(self.run / "log.jsonl"), {}


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


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at `folder` while this lasts; False where the system does not allow one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def print_table(strikes: list[Strike]) -> None:
    print(f"{'disturbance':<28}{'count':>6}{'steps lost: median':>20}{'most':>6}{'seconds to end: median':>24}{'longest':>9}  exit codes")
    for kind in (KILL_ONE, KILL_ALL, STOP, FULL_DISK, CUT, FLIP, REMOVE):
        of_kind = [strike for strike in strikes if strike.kind == kind]
        if not of_kind:
            continue
        lost, seconds = [strike.steps_lost for strike in of_kind], [strike.seconds for strike in of_kind]
        codes = Counter(strike.code for strike in of_kind if strike.code is not None)
        times = f"{statistics.median(seconds):>24.1f}{max(seconds):>9.1f}" if codes else f"{'-':>24}{'-':>9}"
        said = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        print(f"{kind:<28}{len(of_kind):>6}{statistics.median(lost):>20g}{max(lost):>6}{times}  {said}")
    moments = Counter(strike.moment for strike in strikes)
    print(f"moments: {', '.join(f'{moment} {count}' for moment, count in sorted(moments.items()))}")


def disturb(chaos: Chaos, rounds: int, until: float) -> None:
    """Undisturbed run, rounds, and the run's end."""
    began, whole = time.monotonic(), chaos.folder / "whole"
    launcher = chaos.launch(f"train.run_dir={whole}")
    while launcher.poll() is None:
        if not chaos.start_seconds and (whole / "log.jsonl").exists():
            chaos.start_seconds = time.monotonic() - began
        time.sleep(0.02)
    if launcher.returncode:
        chaos.problem(f"the undisturbed run: exit code {launcher.returncode}")
        return
    chaos.losses = losses_of(whole)
    print(f"undisturbed: {chaos.steps} steps in {time.monotonic() - began:.0f} s, {chaos.start_seconds:.1f} s of them to start", flush=True)
    kinds = [KILL_ONE, KILL_ALL, STOP, CUT, FLIP, REMOVE] + [FULL_DISK] * chaos.has_small_disk
    if not chaos.has_small_disk:
        print(f"LEFT OUT: {FULL_DISK}: this needs root and the right to mount a tmpfs")
    bag: list[str] = []
    while len(chaos.strikes) < rounds and time.monotonic() < until and not chaos.problems:
        if chaos.is_finished():
            chaos.finish(whole)
            continue
        if not bag:
            bag = chaos.rng.sample(kinds, len(kinds))
        kind = bag.pop()
        if chaos.strike(kind):
            strike = chaos.strikes[-1]
            where = f"{strike.moment} {strike.file}, at step {chaos.reached}, {strike.steps_lost} lost, exit code {strike.code}"
            print(f"{len(chaos.strikes):>3} {strike.kind}: {where}, {time.monotonic() - began:.0f} s", flush=True)
    if not chaos.problems:
        chaos.finish(whole)


def main() -> int:
    """Run the rounds and print what they came to; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=4, help="2 or 4: tensor-parallel pairs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so long")
    arguments = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was begun is ended and unmounted
    steps = 24 + 2 * arguments.rounds
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as has_small_disk:
        folder = Path(name)
        config = make_config(folder, folder / "disk" / "run", steps, keep_last=3, tensor_ranks=2)
        chaos = Chaos(folder, config, arguments.ranks, steps, random.Random(arguments.seed), has_small_disk)
        disturb(chaos, arguments.rounds, began + arguments.seconds)
    count = len(chaos.strikes)
    print(f"{count} rounds of {arguments.rounds} on {arguments.ranks} ranks, seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    print_table(chaos.strikes)
    print(f"runs that reached their end, identical to the undisturbed one: {chaos.runs_finished - bool(chaos.problems)}")
    print(f"starts: {chaos.starts_in_all}, restarts listed by the report: {chaos.restarts_listed}")
    for problem in chaos.problems:
        print(f"PROBLEM: {problem}")
    return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
