"""One pool of CPU ranks for all distributed tests.

Importing torch and Megatron costs seconds, joining a new process group costs milliseconds: so the ranks are started
once per test session, forked from one process that has imported both and has no threads, and each call re-initialises
their groups under the layout it wants.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG_SECONDS = 900
"""For waits that only end a hang. Far longer than anything takes here, on a machine that others keep busy too. A rank says before where
it stands."""
ERROR_SECONDS = 60
"""So long the other ranks may go on after one has failed: they may wait for it, and its error is what the test needs."""


ENGINE = "engine_imports"
"""What a rank imports if nothing else is asked for."""


def _serve(rank: int, pipe: Any, imports: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    importlib.import_module(imports)  # in a rank that was forked all of this is there

    gc.collect()
    gc.freeze()  # half a million objects that stay need not be looked at after each call
    while True:
        task = pipe.recv()
        if task is None:
            return
        function, arguments, world_size, store = task
        try:
            pipe.send(("ok", _call(function, arguments, rank, world_size, store)))
        except BaseException as error:
            pipe.send(("error", f"rank {rank}: {traceback.format_exc()}", error if isinstance(error, Exception) else None))


def _call(function: Callable[..., Any], arguments: dict[str, Any], rank: int, world_size: int, store: str) -> Any:
    import torch.distributed as dist

    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import stop_groups

    env = platforms.LaunchEnvironment(rank, world_size, rank, world_size)  # of no launcher: OMP_NUM_THREADS=1 holds for one rank too
    faulthandler.dump_traceback_later(HANG_SECONDS - 60)
    try:
        return function(env, dist.FileStore(store, world_size), **arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()
        stop_groups()
        _free_models()


def _free_models() -> None:
    """Models are in cycles, and hold on to their groups, each with three threads that wake up all the time.

    The distributed optimizer's parts of fp32 weights are views of them: their graph hides the hooks on the weights, and so the
    cycle, from the collector.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    gc.collect()
    left = [kept for kept in gc.get_objects() if type(kept) is DistributedOptimizer]
    for optimizer in left:
        vars(optimizer).clear()
    del left
    if "optimizer" in locals():
        del optimizer
        gc.collect()


def gloo_threads() -> int:
    """Threads of gloo in this process."""
    names = (task.read_text() for task in Path("/proc/self/task").glob("*/comm"))
    return sum("gloo" in name for name in names)


def count_threads(env: Any, store: Any) -> int:
    """For the pool: threads that earlier calls have left."""
    del env, store
    return gloo_threads()


class RankPool:
    """Runs `function(env, store, **arguments)` on the first `world_size` ranks at once; results in rank order."""

    def __init__(self, imports: str = ENGINE) -> None:
        """Each rank imports the module `imports` first; one that is not ENGINE in a process that has imported nothing before."""
        self._imports = imports
        multiprocessing.set_forkserver_preload([ENGINE])
        self._context = multiprocessing.get_context("forkserver" if imports == ENGINE else "spawn")
        self._ranks: list[tuple[Any, Any]] = []
        atexit.register(self.close)  # not daemons: checkpoint writers are children of theirs

    def run(self, world_size: int, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        while len(self._ranks) < world_size:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(len(self._ranks), theirs, self._imports), daemon=False)
            process.start()
            self._ranks.append((process, ours))
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            for _, pipe in self._ranks[:world_size]:
                pipe.send((function, arguments, world_size, store))
            answers = self._answers(world_size)
        errors = [answers[rank] for rank in sorted(answers) if answers[rank][0] == "error"]
        if errors:
            error = errors[0][2] or RuntimeError("a rank failed")
            error.add_note("\n".join(answer[1] for answer in errors))
            raise error
        return [answers[rank][1] for rank in range(world_size)]

    def _answers(self, world_size: int) -> dict[int, Any]:
        """What the ranks answer, by rank; those of all ranks, unless one has failed and others do not end. Raises TimeoutError."""
        answers: dict[int, Any] = {}
        end = time.monotonic() + HANG_SECONDS
        while len(answers) < world_size:
            pipes = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks[:world_size]) if rank not in answers}
            for pipe in multiprocessing.connection.wait(list(pipes), timeout=0.5):
                rank = pipes[pipe]
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    self.close()
                    raise TimeoutError(f"rank {rank} has died") from None
                if answers[rank][0] == "error":
                    end = min(end, time.monotonic() + ERROR_SECONDS)
            dead = [rank for rank in pipes.values() if rank not in answers and not self._ranks[rank][0].is_alive()]
            if dead or (time.monotonic() > end and len(answers) < world_size):
                self.close()
                if any(answer[0] == "error" for answer in answers.values()):
                    break
                raise TimeoutError(f"ranks {dead} have died" if dead else f"a rank did not answer within {HANG_SECONDS} s")
        return answers

    def close(self) -> None:
        for process, pipe in self._ranks:
            if process.is_alive():
                try:
                    pipe.send(None)
                except OSError:
                    pass
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
        self._ranks = []
