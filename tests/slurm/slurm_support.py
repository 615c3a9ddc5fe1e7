"""Jobs of tiny models on a Slurm of this machine, and what became of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
NODES = 3
ENVIRONMENT = """\
export PATH={bin}:{python}:$PATH PYTHONPATH={root} GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
"""
COMMAND = """\
#!{python}
# `dnapretrain`, whose steps take as long as the file `pause` says, and whose doctor finds the nodes ill that the file `ill` names.
import os, sys, time
from pathlib import Path
if __name__ == "__main__":
    if sys.argv[1] == "doctor":
        ill = Path("ill").read_text().split() if Path("ill").exists() else []
        sys.exit(os.environ["SLURMD_NODENAME"] in ill)
    from dnapretrain.cli import main
    from dnapretrain.parallel.signals import StopSignals
    enter = StopSignals.__enter__
    def slow_down(signals):
        from dnapretrain.train.trainer import Trainer
        step = Trainer.train_step
        def slow(self, batches):
            time.sleep(float(Path("pause").read_text()))
            return step(self, batches)
        Trainer.train_step = slow
        return enter(signals)
    StopSignals.__enter__ = slow_down
    sys.exit(main())
"""


class Cluster:
    """The cluster, and a folder that jobs are submitted in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, *arguments: str, **settings: str) -> str:
        """`sbatch ARGUMENTS`; the job's number."""
        command = ["sbatch", "--parsable", *arguments]
        run = subprocess.run(command, cwd=self.folder, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", "-o", number)))

    def call(self, *command: str) -> str:
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True, timeout=600).stdout

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = 1200) -> Any:
        """The first true value of `condition`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.3)
        logs = "\n".join(
            f"== {path.relative_to(self.folder)}\n{path.read_text()[-1500:]}"
            for pattern in ("*.out", "logs/*/*")
            for path in self.folder.glob(pattern)
        )
        pytest.fail(f"{what}: not within {seconds:.0f} s\n{self.call('squeue')}\n{logs}")

    def wait_for_state(self, number: str, *states: str) -> dict[str, str]:
        def reached() -> dict[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in states else None

        return self.wait_for(f"job {number} is one of {states}", reached)  # type: ignore[no-any-return]

    def start_again_now(self, number: str, restarts: int) -> None:
        """A requeued job waits two minutes: wait until it does, and end that."""
        self.wait_for(
            f"job {number} is requeued for start {restarts}",
            lambda: (job := self.job(number))["JobState"] == "PENDING" and job["Restarts"] == str(restarts),
        )
        time.sleep(2)  # a start in the second of the requeue is refused: that revokes what was granted until then
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now")

    def pause(self, seconds: float) -> None:
        """How long each step of the jobs takes at least, from now on."""
        (self.folder / "pause.new").write_text(str(seconds))
        (self.folder / "pause.new").replace(self.folder / "pause")

    def events(self, run: str, kind: str) -> list[dict[str, Any]]:
        log = self.folder / run / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def losses(self, run: str) -> dict[int, set[float]]:
        """Every loss that was logged for each step: one, unless a step was done twice and came out differently."""
        losses: dict[int, set[float]] = {}
        for event in self.events(run, "train"):
            losses.setdefault(event["step"], set()).add(event["loss"])
        return losses

    def kill_rank(self, number: str, rank: int) -> None:
        """kill -9 of the Python process of a rank."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            wanted = {f"SLURM_JOB_ID={number}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURM_STEP_ID=0"}
            if wanted <= set(variables) and command[0] == sys.executable.encode() and b"pretrain" in command:
                os.kill(int(process.name), signal.SIGKILL)
                return
        raise LookupError(f"no process of rank {rank} in job {number}")


def write_script(folder: Path, name: str, *options: str) -> None:
    """NAME.sbatch of tiny.yaml on 2 nodes of 2 pretended GPUs."""
    size = ("--nodes", "2", "--gpus-per-node", "2", "--cpus-per-task", "1", "--time", "10", "--margin", "60")
    command = [sys.executable, "-m", "dnapretrain", "slurm", "tiny.yaml", "parallel.tp=2", *size, *options, "--output", f"{name}.sbatch"]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL)


def settings_of(shard: Path) -> dict[str, Any]:
    return {
        "data": {"train": str(shard), "sequence_length": 32, "split": {"by": "contig", "valid_contigs": ["chr3"]}},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64, "transformer_impl": "torch"},
        "optim": {"lr": 1e-3},
        "train": {
            **{"run_dir": "run", "train_steps": STEPS, "micro_batch_size": 2, "global_batch_size": 8},
            **{"precision": "fp32", "device": "cpu", "slurm_margin": 5},
        },
        "checkpoint": {"save_interval": 10, "keep_last": 3},
        "log": {"log_interval": 1},
    }
