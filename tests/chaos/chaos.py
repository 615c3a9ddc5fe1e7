"""Disturbs a run at random, again and again, and checks that in the end nothing of it is to be seen.

Each round draws one disturbance: SIGKILL of one rank or of all and their launcher, SIGTERM or SIGUSR2 (stop), a full disk, or, between
two starts, damage to the newest checkpoint (a file cut short, one bit of it flipped, a file removed); those that need a running run
strike at a random moment of its start, its steps, a save or an evaluation. Then the same command starts it again, until it is finished.

Asked after every round: does each logged loss equal, bit for bit, that of a run that was never disturbed? Is every checkpoint
whole that was not damaged on purpose? Did the start resume from the newest whole one? How many steps must be done again? Asked at
the end: is every step there, are weights and moments the same, does the report list every restart?

The seed fixes what is drawn, not the timing of processes. A full disk needs root: the run folder is a small tmpfs then.

With --folder the rounds can be done in parts: each call begins no round after --seconds, finishes its run, prints the table of all
rounds so far and keeps them there; the same command goes on. One that is killed loses the rounds since the last run that was finished.

    python tests/chaos/chaos.py --rounds 50 --ranks 4
    python tests/chaos/chaos.py --rounds 50 --ranks 4 --folder chaos --seconds 200
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_run import DisturbedRun, fingerprint, kill, kill_all, ranks_of
from chaos_support import EVAL_INTERVAL, SAVE_INTERVAL, losses_of, make_config

from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.parallel.signals import EXIT_STOPPED
from dnapretrain.train.retention import step_of

DISK_BYTES = 64 << 20
CLONE_NEWNS = 0x00020000
KILL_ONE, KILL_ALL, STOP, FULL_DISK = "SIGKILL of one rank", "SIGKILL of all", "stop (SIGTERM, SIGUSR2)", "full disk"
CUT, FLIP, REMOVE = "checkpoint cut short", "checkpoint, one bit flipped", "checkpoint, file removed"
MOMENTS = ("start", "steps", "save", "evaluation")
KEPT = (
    *("problems", "start_seconds", "whole_seconds", "restarts_listed", "starts_in_all", "half_lines", "runs_finished"),
    "checkpoints_checked",
)
"""What of a DisturbedRun goes on from call to call: all that is not of the run in progress."""


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


@dataclass
class Chaos:
    """Disturbances of a run, drawn at random."""

    run: DisturbedRun
    rng: random.Random
    strikes: list[Strike] = field(default_factory=list)
    bag: list[str] = field(default_factory=list)
    """Kinds that are still to be drawn before all are drawn anew."""
    seconds: float = 0.0
    """Of earlier calls."""

    def keep(self, path: Path, arguments: dict[str, Any], seconds: float) -> None:
        """Write down what the rounds came to, for a later call with the same arguments."""
        kept = {name: getattr(self.run, name) for name in KEPT}
        strikes = [asdict(strike) for strike in self.strikes]
        state = {"arguments": arguments, "run": kept, "rng": self.rng.getstate(), "bag": self.bag, "strikes": strikes, "seconds": seconds}
        write_whole(path, json.dumps(state))

    def go_on(self, path: Path, arguments: dict[str, Any]) -> None:
        """Take over what `keep` wrote down."""
        state = json.loads(path.read_text())
        if state["arguments"] != arguments:
            sys.exit(f"error: {path.parent} holds rounds with {state['arguments']}, not {arguments}. Give another --folder.")
        for name, value in state["run"].items():
            setattr(self.run, name, value)
        self.run.losses = losses_of(self.run.whole)
        version, words, rest = state["rng"]
        self.rng.setstate((version, tuple(words), rest))
        self.strikes = [Strike(**strike) for strike in state["strikes"]]
        self.bag, self.seconds = state["bag"], state["seconds"]

    def strike(self, kind: str) -> bool:
        """One round; False if there was nothing to strike: the run had ended, or has too few checkpoints to damage one."""
        if kind in (CUT, FLIP, REMOVE):
            return self.damage(kind)
        moment = self.rng.choice(MOMENTS)
        launcher = self.run.launch()
        has_come = self.moment(moment)
        while not has_come() and launcher.poll() is None:
            time.sleep(0.002)
        ranks = ranks_of(launcher)
        if launcher.poll() is not None:
            code = self.run.wait_for_end(launcher, ranks, f"before {kind}")
            if code:
                self.run.problem(f"before {kind}: exit code {code}")
            return False
        struck = time.monotonic()
        what = f"{kind} during {moment} after step {self.run.reached}"
        if kind == KILL_ONE:
            kill((self.rng.choice(ranks) if ranks else launcher).pid)
        elif kind == KILL_ALL:
            kill_all(launcher)
        elif kind == STOP:
            launcher.send_signal(self.rng.choice((signal.SIGTERM, signal.SIGUSR2)))
        else:
            self.fill_disk(launcher)
        code = self.run.wait_for_end(launcher, ranks, what)
        (self.run.disk / "filler").unlink(missing_ok=True)
        self.check_code(kind, code, had_ranks=bool(ranks), what=what)
        self.run.check_checkpoints(what)
        lost = max(0, self.run.reached - self.run.newest_whole_step())
        if lost > {STOP: 0, FULL_DISK: sys.maxsize}.get(kind, 2 * SAVE_INTERVAL):
            self.run.problem(f"{what}, exit code {code}: {lost} steps lost")
        self.strikes.append(Strike(kind, moment, lost, time.monotonic() - struck, code))
        return True

    def moment(self, name: str) -> Callable[[], bool]:
        """A function that says whether the moment has come; it is one of a random number of such moments, and a little after it."""
        if name == "start":
            begin = time.monotonic() + self.rng.uniform(0, 1.1 * self.run.start_seconds)
            return lambda: time.monotonic() > begin
        steps, delay = self.rng.randint(1, 2 * SAVE_INTERVAL), self.rng.uniform(0, {"steps": 0.1, "save": 0.8, "evaluation": 0.05}[name])
        first = step_of(self.run.expected) if self.run.expected else 0
        due: list[float] = []

        def has_come() -> bool:
            self.run.look()
            is_there = self.run.reached >= first + steps
            if name == "save":
                is_there = is_there and any(self.run.path.glob("checkpoints/.step_*.partial"))
            elif name == "evaluation":
                is_there = is_there and self.run.last_kind == "train" and self.run.reached % EVAL_INTERVAL == 0
            if is_there and not due:
                due.append(time.monotonic() + delay)
            return bool(due) and time.monotonic() > due[0]

        return has_come

    def fill_disk(self, launcher: subprocess.Popen[bytes]) -> None:
        """Leave no byte free for a while, then give the room back, or not; in the end stop the run."""
        filler = self.run.disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):  # the last write is cut short, the one after it an error
                pass
        is_freed, until = self.rng.random() < 0.7, time.monotonic() + self.rng.uniform(0.3, 3)
        self.let_run(launcher, until)
        if is_freed:
            filler.unlink()
            self.let_run(launcher, time.monotonic() + self.rng.uniform(0.3, 2))
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)

    def let_run(self, launcher: subprocess.Popen[bytes], until: float) -> None:
        while time.monotonic() < until and launcher.poll() is None:
            self.run.look()
            time.sleep(0.02)

    def damage(self, kind: str) -> bool:
        """Damage one file of the newest whole checkpoint, where another whole one is left."""
        whole = [path for path in self.run.checkpoints() if not self.run.is_damaged(path)]
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
        self.run.damaged[whole[0]] = fingerprint(whole[0])
        name = str(path.relative_to(whole[0]))
        self.strikes.append(Strike(kind, "between starts", step_of(whole[0]) - step_of(whole[1]), 0.0, file=name))
        return True

    def check_code(self, kind: str, code: int, had_ranks: bool, what: str) -> None:
        """An end is one that is meant, or one line that says what is wrong; never a traceback."""
        allowed = {KILL_ONE: {0, 2, 3, 137, -9}, KILL_ALL: {-9}, STOP: {0, EXIT_STOPPED}, FULL_DISK: {0, EXIT_STOPPED, 2, 3}}[kind]
        if kind in (STOP, FULL_DISK) and not had_ranks:  # a launcher that has started nothing has nothing to save
            allowed = allowed | {-signal.SIGTERM, -signal.SIGUSR2}
        if code not in allowed or b"Traceback" in (self.run.folder / "output.txt").read_bytes():
            self.run.problem(f"{what}: exit code {code}")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at `folder` while this lasts; False where the system does not allow one. No other process sees it, and it ends with us."""
    folder.mkdir(exist_ok=True)
    commands = [["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]]
    may_mount = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
    is_alone = may_mount and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0  # a mount namespace of our own
    is_mounted = is_alone and all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def given_or_temporary(folder: Path | None) -> Iterator[Path]:
    """`folder`, made if need be, or one for as long as this lasts."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()


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


def disturb(chaos: Chaos, kinds: list[str], rounds: int, until: float, keep: Callable[[], None]) -> None:
    """The rounds, and the run's end; ends early where something is wrong. `keep` is called after each run that was finished."""
    run, began, before = chaos.run, time.monotonic(), len(chaos.strikes)
    while len(chaos.strikes) < rounds and time.monotonic() < until and not run.problems:
        if run.is_finished():
            run.finish()
            keep()
            continue
        chaos.bag = chaos.bag or chaos.rng.sample(kinds, len(kinds))
        if chaos.strike(chaos.bag.pop()):
            strike = chaos.strikes[-1]
            where = f"{strike.moment} {strike.file}".rstrip()
            came_to = f"{strike.steps_lost} steps lost" + ("" if strike.code is None else f", exit code {strike.code}")
            print(f"{len(chaos.strikes):>3}  {time.monotonic() - began:>4.0f} s  {strike.kind}: {where}, {came_to}", flush=True)
    if not run.problems and len(chaos.strikes) > before and (run.path.exists() or not run.runs_finished):
        run.finish()
    keep()


def main() -> int:
    """Run the rounds and print what they came to; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, choices=(2, 4), default=4, help="in pairs of tensor-parallel ranks")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so long")
    parser.add_argument("--folder", type=Path, help="keep the rounds there: the same command goes on with them")
    arguments = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was begun is ended and unmounted
    steps = 24 + 2 * arguments.rounds
    with given_or_temporary(arguments.folder) as folder, small_disk(folder / "disk") as has_small_disk:
        shutil.rmtree(folder / "disk" / "run", ignore_errors=True)  # of a call that was killed
        same = {name: getattr(arguments, name) for name in ("rounds", "seed", "ranks")}
        state = folder / "state.json"
        config = make_config(folder, folder / "disk" / "run", steps, keep_last=3, tensor_ranks=2)
        run = DisturbedRun(folder, config, arguments.ranks, steps)
        chaos = Chaos(run, random.Random(arguments.seed))
        try:
            if state.exists():
                chaos.go_on(state, same)
            else:
                shutil.rmtree(run.whole, ignore_errors=True)
                run.run_undisturbed()
            print(f"undisturbed: {steps} steps, {run.start_seconds:.1f} s to start, {run.whole_seconds:.1f} s in all", flush=True)
            if not has_small_disk:
                print(f"LEFT OUT: {FULL_DISK}: it needs root and the right to mount a tmpfs")
            kinds = [KILL_ONE, KILL_ALL, STOP, CUT, FLIP, REMOVE] + [FULL_DISK] * has_small_disk
            until = began + arguments.seconds
            disturb(chaos, kinds, arguments.rounds, until, lambda: chaos.keep(state, same, chaos.seconds + time.monotonic() - began))
        finally:
            if run.launcher:
                kill_all(run.launcher)
    count, seconds = len(chaos.strikes), chaos.seconds + time.monotonic() - began
    print(f"{count} rounds of {arguments.rounds} on {arguments.ranks} ranks, seed {arguments.seed}, {seconds:.0f} s")
    print_table(chaos.strikes)
    print(f"runs that reached their end, identical to the undisturbed one: {run.runs_finished}")
    print(
        f"starts: {run.starts_in_all}, restarts listed by the report: {run.restarts_listed}; checkpoints checked: {run.checkpoints_checked}"
    )
    for problem in run.problems:
        print(f"PROBLEM: {problem}")
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())
