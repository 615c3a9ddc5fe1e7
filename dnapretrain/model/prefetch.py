"""Reads this rank's next micro-batches in a thread while the device works on those before.

Samples are a function of their ids, so what is read ahead changes nothing: a batch is taken by its place in the run, and where a run
goes on elsewhere (after a rewind), what was read ahead is dropped. A run's position counts what was taken, not what was read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from dnapretrain.model.batches import HostBatch, Reader

AHEAD = 4
"""Micro-batches that are read before they are asked for."""

StepPlan = Callable[[int], tuple[int, int]]
"""First sample of a global batch -> (its micro-batches per rank, first sample of the next one); 0 micro-batches after the last."""


class Prefetch:
    """The micro-batches of one model chunk, in the order of the run. An error of the reading thread is raised to who takes its batch."""

    def __init__(self, read: Reader, device: torch.device, plan: StepPlan) -> None:
        self.read, self.plan = read, plan
        self.seconds_waited = 0.0
        """For batches that were not there yet, since the caller last set this to 0."""
        set_device = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())  # else it would pin for the first GPU
        self._thread = ThreadPoolExecutor(1, "prefetch", *set_device)
        self._ahead: deque[tuple[tuple[int, int], Future[HostBatch]]] = deque()
        self._next: Iterator[tuple[int, int]] = iter(())

    def take(self, first_sample: int, index: int) -> HostBatch:
        """This rank's micro-batch `index` of the global batch that starts at `first_sample`."""
        started = time.perf_counter()
        if not self._ahead or self._ahead[0][0] != (first_sample, index):
            self.drop()
            self._next = self._from(first_sample, index)
            self._read_ahead()
        batch = self._ahead.popleft()[1] if self._ahead else self._thread.submit(self.read, first_sample, index)
        self._read_ahead()
        try:
            return batch.result()
        finally:
            self.seconds_waited += time.perf_counter() - started

    def rest(self) -> None:
        """Wait until nothing is being read, and nothing will be before the next `take`: while a CUDA graph is captured no thread may pin
        memory."""
        wait([batch for _, batch in self._ahead])

    def drop(self) -> None:
        """Forget what was read ahead."""
        for _, batch in self._ahead:
            batch.cancel()
        self._ahead.clear()

    def stop(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read_ahead(self) -> None:
        while len(self._ahead) < AHEAD and (place := next(self._next, None)):
            self._ahead.append((place, self._thread.submit(self.read, *place)))

    def _from(self, first_sample: int, index: int) -> Iterator[tuple[int, int]]:
        """Places of micro-batches from here to the end of the run."""
        count, following = self.plan(first_sample)
        while count:
            yield from ((first_sample, number) for number in range(index, count))
            first_sample, index = following, 0
            count, following = self.plan(first_sample)
