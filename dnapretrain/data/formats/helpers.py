"""Threads that do the next step of a pipeline ahead of time: reading, inflating, writing. They run with the GIL released.

No more than `workers` threads work at the same time, those that read files included: each of these holds one of the
`slots`. What no helper has begun when its result is asked for is done by the thread that asks, so that nobody waits for
a queue, one worker needs no thread at all, and the order of results, errors too, is that of the one-worker run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
QUEUED_PER_WORKER = 4


class Task(Generic[T]):
    """A call that is made once: by a helper, or by the thread that asks for the result."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._claimed = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, unless that was begun already."""
        if not self.withdraw():
            return
        call, self._call = self._call, None
        try:
            if call is not None:
                self._result = call()
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    def result(self) -> T:
        """What the call returned, or raises what it raised. To be asked once."""
        self.run()
        with self._done:
            pass
        if self._error is not None:
            raise self._error
        result, self._result = self._result, None
        return result

    def withdraw(self) -> bool:
        """The call is not made any more; False where it was begun."""
        return self._claimed.acquire(blocking=False)

    def abandon(self) -> None:
        """The call is not made any more, or it has ended."""
        if not self.withdraw():
            with self._done:
                pass
        self._call = self._result = self._error = None


class Helpers:
    """`workers` - 1 threads; none for one worker, whose tasks are all done when they are asked for."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.slots = threading.Semaphore(workers)
        self._queue: SimpleQueue[Task[Any] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers - 1)]

    def __enter__(self) -> Helpers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def start(self, call: Callable[[], T]) -> Task[T]:
        """Begin `call` as soon as a thread is free; it is made at the latest when the result is asked for."""
        task = Task(call)
        self.take(task)
        return task

    def take(self, task: Task[Any]) -> None:
        """Begin `task` as soon as a thread is free, unless too many are waiting."""
        if self._queue.qsize() < QUEUED_PER_WORKER * (self.workers - 1):  # bounded: it holds tasks that were done elsewhere, too
            self._queue.put(task)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            with self.slots:
                task.run()
            del task
