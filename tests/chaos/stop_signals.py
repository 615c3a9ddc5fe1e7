"""Stops a run by signals at random moments, again and again, and checks that nothing is lost or torn.

Each round starts (or resumes) a run through the command line, sends one of SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 at a random
moment of its start, its training, its evaluations, its saves or its end, and then asks: did it end with 75 (stopped) or 0
(finished), is every checkpoint whole, how many logged steps are beyond the newest one, and is each logged loss, bit for bit,
that of a run that was never stopped? Rounds with a second signal (it ends the ranks at once) and with SIGKILL of one rank
follow: there the checkpoint before must be whole.

Ranks are forked from one process that has imported torch and Megatron, so that a round takes a second or two.

    python tests/chaos/stop_signals.py --rounds 100 --ranks 2
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos_support import SAVE_INTERVAL, log_records, losses_of, make_config, patience, same_end, torn_files

from dnapretrain.parallel.signals import EXIT_STOPPED, SAME_SECONDS, STOP_SIGNALS

STEPS = 40
FIRST_SECONDS = 1800
"""For the run without stops: what it takes is the measure for the others."""


@dataclass
class Tally:
    """What the rounds came to."""

    codes: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    most_steps_lost: int = 0
    most_steps_lost_by_kill: int = 0
    seconds_to_end: list[float] = field(default_factory=list)
    checkpoints_checked: int = 0
    runs_finished: int = 0
    problems: list[str] = field(default_factory=list)


def start(config: Path, ranks: int, output: Path, *overrides: str) -> list[int]:
    """Fork the ranks of one start; their process ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pids = []
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # as the launcher does
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
                if ranks > 1:
                    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                from dnapretrain.cli import main

                code = main(["pretrain", str(config), *overrides])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return pids


def ended(pids: list[int], codes: dict[int, int], seconds: float) -> bool:
    """Wait so long for the ranks; whether all have ended."""
    until = time.monotonic() + seconds
    while True:
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(pids) or time.monotonic() > until:
            return len(codes) == len(pids)
        time.sleep(0.01)


def send(pids: list[int], codes: dict[int, int], number: int) -> None:
    for pid in pids:
        if pid not in codes:
            os.kill(pid, number)


def check(run: Path, losses: dict[int, float], tally: Tally, what: str) -> int:
    """Note what is torn or different; return how many logged steps are beyond the newest checkpoint."""
    latest, newest = run / "checkpoints" / "latest", 0
    if latest.exists():
        newest = int(latest.read_text().strip().removeprefix("step_"))
    for checkpoint in run.glob("checkpoints/step_*"):
        tally.checkpoints_checked += 1
        tally.problems += [f"{what}: {path} is torn" for path in torn_files(checkpoint)]
    reached = 0
    for record in log_records(run):
        if record["kind"] == "start":
            reached = record["step"]
        if record["kind"] == "train":
            reached = record["step"]
            if record["loss"] != losses[reached]:
                tally.problems.append(f"{what}: loss {record['loss']} at step {reached}, without a stop {losses[reached]}")
    return reached - newest


def one_round(config: Path, ranks: int, rng: random.Random, mode: str, losses: dict[int, float], tally: Tally, longest: float) -> None:
    """One start that is stopped (`mode` first), stopped twice (second) or loses a rank to SIGKILL (kill)."""
    folder = config.parent
    run, output = folder / "run", folder / "output.txt"
    output.write_text("")
    if rng.random() < 0.05:
        shutil.rmtree(run, ignore_errors=True)
    pids, codes = start(config, ranks, output), {}
    name = signal.SIGKILL.name
    delay = rng.uniform(0, longest)
    if not ended(pids, codes, delay):
        records = log_records(run)
        tally.moments[records[-1]["kind"] if records else "before the first record"] += 1
        sent = time.monotonic()
        if mode == "kill":
            os.kill(rng.choice([pid for pid in pids if pid not in codes]), signal.SIGKILL)
        else:
            number = rng.choice(STOP_SIGNALS)
            name = number.name
            send(pids, codes, number)
            if mode == "second" and not ended(pids, codes, SAME_SECONDS + 0.05 + rng.uniform(0, 0.3)):
                send(pids, codes, number)
        wait = patience(longest)
        if not ended(pids, codes, 30 if mode == "kill" else wait):
            if mode != "kill":
                tally.problems.append(f"{name} after {delay:.2f} s: ranks did not end within {wait:.0f} s")
            send(pids, codes, signal.SIGKILL)
            ended(pids, codes, wait)
        tally.seconds_to_end.append(time.monotonic() - sent)
    what = f"{mode}, {name} after {delay:.2f} s, exit codes {sorted(set(codes.values()))}"
    tally.codes[f"{mode}: {' '.join(str(code) for code in sorted(set(codes.values())))}"] += 1
    if mode == "first" and set(codes.values()) not in ({0}, {EXIT_STOPPED}):
        tally.problems.append(f"{what}: {output.read_text()[-2000:]}")
    if 1 in codes.values():  # a fault that nobody thought of: errors we know are one line and 2
        tally.problems.append(f"{what}: {output.read_text()[-3000:]}")
    lost = check(run, losses, tally, what)
    if mode == "first":
        tally.most_steps_lost = max(tally.most_steps_lost, lost)
        if lost > 1:
            tally.problems.append(f"{what}: {lost} steps lost")
    else:
        tally.most_steps_lost_by_kill = max(tally.most_steps_lost_by_kill, lost)
        if lost > 2 * SAVE_INTERVAL:
            tally.problems.append(f"{what}: {lost} steps lost")
    if set(codes.values()) == {0}:
        tally.runs_finished += 1
        if not same_end(run, folder / "whole"):
            tally.problems.append(f"{what}: the end differs from that of the run without stops")
        shutil.rmtree(run)


def main() -> int:
    """Run the rounds and print what they came to; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds with one signal")
    parser.add_argument("--kills", type=int, default=10, help="further rounds with SIGKILL of a rank")
    parser.add_argument("--seconds", type=int, default=10, help="further rounds with a second signal")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import warnings

    warnings.simplefilter("ignore")
    import torch

    import dnapretrain.train.run  # noqa: F401  every start below has it imported

    torch.set_num_threads(1)
    tally, rng, began = Tally(), random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(folder, folder / "run", STEPS)
        started, codes = time.monotonic(), {}
        pids = start(config, arguments.ranks, folder / "whole.txt", f"train.run_dir={folder / 'whole'}")
        if not ended(pids, codes, FIRST_SECONDS) or set(codes.values()) != {0}:
            print((folder / "whole.txt").read_text())
            return 1
        longest = 1.05 * (time.monotonic() - started)
        losses = losses_of(folder / "whole")
        modes = ["first"] * arguments.rounds + ["second"] * arguments.seconds + ["kill"] * arguments.kills
        rng.shuffle(modes)
        for number, mode in enumerate(modes, 1):
            one_round(config, arguments.ranks, rng, mode, losses, tally, longest)
            if number % 20 == 0:
                print(f"{number} of {len(modes)} rounds, {len(tally.problems)} problems", flush=True)
    times = sorted(tally.seconds_to_end)
    print(f"{len(modes)} rounds on {arguments.ranks} rank(s) in {time.monotonic() - began:.0f} s, seed {arguments.seed}")
    print(f"exit codes: {dict(tally.codes)}")
    print(f"last log record when the signal came: {dict(tally.moments)}")
    print(f"runs that reached their end, identical to the run without stops: {tally.runs_finished}")
    print(f"checkpoints checked: {tally.checkpoints_checked}")
    if times:
        print(f"from signal to end: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")
    print(f"most steps lost: {tally.most_steps_lost} by a signal, {tally.most_steps_lost_by_kill} by a second signal or SIGKILL")
    for problem in tally.problems:
        print(f"PROBLEM: {problem}")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
