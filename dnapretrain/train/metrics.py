"""What one step reports, the peak that MFU is measured against, and the run's log."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnapretrain.config import LogConfig, RunConfig
from dnapretrain.evaluate.probes import Results, result_lines
from dnapretrain.evaluate.regions import region_lines
from dnapretrain.parallel.gpus import gpu_by_device_name, mfu_peak
from dnapretrain.report.tables import short_duration
from dnapretrain.train.trackers import Trackers

TIMED_STEPS = 200
"""Steps that the time left is reckoned from."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, the same on every rank."""

    step: int
    loss: float
    """Nats per target token, weighted by the loss mask; with train.loss=nucleotide per base."""
    bits_per_base: float
    accuracy: float
    """Share of targets whose likeliest token is the right one, weighted as the loss."""
    grad_norm: float
    lr: float
    num_targets: int
    """Tokens of the global batch that were predicted: those with a loss weight above 0."""
    num_tokens: int
    """Tokens of the global batch without its padding."""
    batch_size: int
    """Samples in the global batch."""
    sequence_length: int
    """Tokens of each, padding too."""
    updated: bool
    """False when the update was left out: a bad step, or no base of the batch had a weight."""
    bad_step: str
    """Why the step is bad (`bad_steps`); '' where it is not."""
    seconds: float


def bits_per_base(loss: float, bases_per_loss: int) -> float:
    """`loss` in nats per so many bases as bits per base: log2(e) x loss / bases; uniform over bases reads 2."""
    return loss * math.log2(math.e) / bases_per_loss


def peak_of_rank(config: RunConfig, device_name: str) -> tuple[float | None, str]:
    """(TFLOP/s that MFU is measured against, where the number comes from): of FP8 with train.fp8; None where it is not known."""
    if peak := config.log.peak_tflops:
        return peak, f"{peak:g} TFLOP/s (log.peak_tflops)"
    if gpu := gpu_by_device_name(device_name):
        peak, of_what = mfu_peak(gpu, config.train.fp8 != "none")
        return peak, f"{peak:g} TFLOP/s, {of_what}, data sheet of {gpu.kind}"
    return None, f"not known for {device_name}: no MFU (set log.peak_tflops)"


def _ends_within_a_line(path: Path) -> bool:
    """Whether a process ended, or the disk was full, before the last line of a log was whole."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class RunLog:
    """Console lines and `log.jsonl`, one JSON object per line; silent on ranks that do not write."""

    def __init__(self, run_dir: Path, is_main: bool, is_masked: bool, log: LogConfig | None = None) -> None:
        log = log or LogConfig()
        self.is_main = is_main
        self.console = log.console
        self.trackers = Trackers(log, run_dir) if is_main else None
        self._times: deque[tuple[float, int]] = deque(maxlen=TIMED_STEPS)
        self.unit = "bits/masked base" if is_masked else "bits/base"
        self.path = run_dir / "log.jsonl"
        self._pending = b"\n" if is_main and _ends_within_a_line(self.path) else b""  # or the next record would be lost with that line
        self._failing = False
        if is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record; it is in the file when this returns, or, while the disk is full, after a later record."""
        if not self.is_main:
            return
        self._pending += (json.dumps({"kind": kind, **fields}) + "\n").encode()
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                self.say(f"WARNING: {self.path} cannot be written: {error.strerror}. Its records wait in memory.")
            self._failing = True

        self._pass_on(kind, fields)

    def _pass_on(self, kind: str, fields: dict[str, Any]) -> None:
        """Send a record to the console, where it shows records, and to the trackers."""
        if self.is_main and self.console == "json":
            print(json.dumps({"kind": kind, **fields}), flush=True)
        if self.trackers and (problem := self.trackers.record(kind, fields)):
            self.say(problem)

    def say(self, text: str) -> None:
        """Print one line for people; where the console shows none, warnings alone, as errors go."""
        if self.is_main and self.console == "lines":
            print(text, flush=True)
        elif self.is_main and text.startswith("WARNING"):
            print(text, file=sys.stderr, flush=True)

    def step(self, report: StepReport, consumed_samples: int, totals: dict[str, Any], show: bool, total_steps: int, remark: str) -> None:
        """Record a step; print it, and `remark` with it, when `show`."""
        self.write("train", **asdict(report), consumed_samples=consumed_samples, **totals)
        left = self._time_left(report.step, total_steps)
        if show:
            mfu = "" if totals["mfu"] is None else f" | MFU {totals['mfu']:.1%}"
            skipped = "" if report.updated else f" | NO UPDATE: {report.bad_step or 'no base with a weight'}"
            self.say(
                f"step {report.step:>6}/{total_steps} | samples {consumed_samples:>9,} | loss {report.loss:.4f} | "
                f"{self.unit} {report.bits_per_base:.4f} | accuracy {report.accuracy:.3f} | "
                f"lr {report.lr:.2e} | grad norm {report.grad_norm:.3f} | "
                f"{report.seconds * 1e3:,.0f} ms | {totals['tokens_per_second']:,.0f} tokens/s | "
                f"{totals['tflops']:.3f} TFLOP/s per rank{mfu}{left}{skipped}{remark}"
            )

    def _time_left(self, step: int, total_steps: int) -> str:
        """Time to the last step, by the wall clock over the last steps: evaluations and saves are in it."""
        self._times.append((time.monotonic(), step))
        (first_time, first_step), (last_time, _) = self._times[0], self._times[-1]
        if step <= first_step or step >= total_steps:
            return ""
        return f" | {short_duration((last_time - first_time) / (step - first_step) * (total_steps - step))} left"

    def evaluation(self, name: str, step: int, consumed_tokens: int, result: dict[str, Any], seconds: float) -> None:
        """Record and print the loss on one held-out set."""
        self.write("eval", set=name, step=step, consumed_tokens=consumed_tokens, **result, seconds=seconds)
        marginal = result["marginal_bits_per_base"]
        by_marginals = "" if marginal is None else f" ({marginal:.4f} by base marginals)"
        self.say(
            f"eval {name} at step {step} | loss {result['loss']:.4f} | {self.unit} {result['bits_per_base']:.4f}{by_marginals} | "
            f"accuracy {result['accuracy']:.3f} | "
            f"{result['num_targets']:,} tokens predicted in {result['num_samples']:,} samples | {seconds:.1f} s"
        )
        for line in region_lines(result["regions"]):
            self.say(line)

    def probes(self, step: int, consumed_tokens: int, results: Results, num_windows: int, num_tokens: int, seconds: float) -> None:
        """Record and print what the probes found, and what they cost."""
        counts = {"num_windows": num_windows, "num_tokens": num_tokens, "seconds": seconds}
        self.write("probes", step=step, consumed_tokens=consumed_tokens, results=results, **counts)
        self.say(f"probes at step {step} | {num_windows:,} windows, {num_tokens:,} tokens | {seconds:.1f} s")
        for line in result_lines(results):
            self.say(line)

    def close(self) -> None:
        """Flush to disk and close. Raises OSError where records could not be written to the end."""
        if self.is_main:
            if self._pending:
                self._file.write(self._pending)
            os.fsync(self._file.fileno())
            self._file.close()
        if self.trackers and (problem := self.trackers.close()):
            self.say(problem)
