"""Units of a benchmark one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from dnapretrain.adapt.benchmarks.benchmark_runs import BenchmarkSettings, Say, Unit, run_unit
from dnapretrain.errors import ConfigError


def run_units(units: Sequence[Unit], output: Path, settings: BenchmarkSettings, jobs: int, say: Say) -> list[dict[str, Any]]:
    """What `run_unit` gives of each, in their order; what is there already is not computed again.

    jobs: processes; each has its share of torch's threads, and computes what one process with so many threads would. Raises the first
    error, when the units in progress have ended; ConfigError where a process was killed.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs} is below 1.")
    found: dict[int, dict[str, Any]] = {}
    for number, unit in enumerate(units):
        if (kept := unit.kept(output, settings)) is not None:
            found[number] = kept
    rest = [number for number in range(len(units)) if number not in found]
    if min(jobs, len(rest)) <= 1:
        found |= {number: run_unit(units[number], output, settings, say) for number in rest}
    else:
        found |= _in_processes(units, rest, output, settings, min(jobs, len(rest)), say)
    return [found[number] for number in range(len(units))]


def _in_processes(
    units: Sequence[Unit], rest: Sequence[int], output: Path, settings: BenchmarkSettings, jobs: int, say: Say
) -> dict[int, dict[str, Any]]:
    threads = max(1, torch.get_num_threads() // jobs)
    found = {}
    # spawned, not forked: the threads of torch and of a GPU do not live on in a fork
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        waiting: dict[Future[tuple[dict[str, Any], list[str]]], int] = {
            pool.submit(_one, units[number], output, settings): number for number in rest
        }
        try:
            for done in as_completed(waiting):
                found[waiting[done]], lines = done.result()
                for line in lines:
                    say(line)
        except BrokenProcessPool:
            raise ConfigError(
                f"one of {jobs} jobs was killed (is memory short?). What is finished is kept: give the same command again, or fewer --jobs."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _one(unit: Unit, output: Path, settings: BenchmarkSettings) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    return run_unit(unit, output, settings, lines.append), lines
