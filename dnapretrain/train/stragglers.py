"""Which rank is slow: the time each rank works by itself, compared between ranks.

A step takes equally long on all ranks, as they wait for each other. What is measured is the time from the beginning of a step until
a rank is ready to add its gradients to those of the other data-parallel ranks: reading samples, forward and backward. Ranks that
share a copy of the model (tensor, pipeline) wait for each other before that too, so there the slow copy is found.
"""

from __future__ import annotations

import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from dnapretrain.parallel.groups import gather_of_ranks


@dataclass(frozen=True)
class Straggler:
    """The slowest rank, the same on every rank."""

    rank: int
    host: str
    seconds: float
    """Its own work per step."""
    median_seconds: float
    """Of all ranks."""


class StepTimer:
    """Measures this rank's own work; on CUDA by the device's clock, as the host runs ahead of it."""

    def __init__(self, is_cuda: bool) -> None:
        self.is_cuda = is_cuda
        self._seconds: list[float] = []
        self._marks: list[Any] = []
        self._warm = False
        """The first step, in which kernels are chosen and files opened, is not counted."""

    def begin_step(self) -> None:
        """A step begins."""
        self._marks = [self._mark()]

    def ready_to_reduce(self) -> None:
        """This rank's gradients are complete."""
        self._marks.append(self._mark())

    def end_step(self) -> None:
        """The step has ended, and the device has done its work."""
        if self._warm and len(self._marks) == 2:
            first, last = self._marks
            self._seconds.append(first.elapsed_time(last) / 1e3 if self.is_cuda else last - first)
        self._marks, self._warm = [], True

    def slowest(self, factor: float) -> Straggler | None:
        """The slowest rank over the steps since the last call, where it takes more than `factor` x the median. Asks all ranks."""
        own = statistics.fmean(self._seconds) if self._seconds else 0.0
        self._seconds = []
        return find_straggler(gather_of_ranks((own, socket.gethostname())), factor)

    def _mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def find_straggler(of_ranks: list[tuple[float, str]], factor: float) -> Straggler | None:
    """The slowest of (seconds, host) in rank order, if it takes more than `factor` x the median."""
    seconds = [value for value, _ in of_ranks]
    median = statistics.median(seconds)
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    if len(seconds) < 2 or seconds[slowest] <= factor * median:
        return None
    return Straggler(slowest, of_ranks[slowest][1], seconds[slowest], median)
