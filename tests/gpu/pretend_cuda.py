"""A GPU that is not there: tensors "on cuda" lie in the machine's memory and remember it, so that the code for CUDA runs on any machine.

What it shows: which tensor is on which device in every operation of a run (an operation over both is the error that CUDA gives), which
collective gets tensors of the wrong kind, what a forked child touches that only its parent may, and how often the host waits for the
GPU. What it cannot show: kernels, streams (all work is in order), speed. Numbers are those of the CPU's kernels.

As a command it runs GPU tests so, those of Transformer Engine too where DNAPRETRAIN_TEST_TE names its wheel (`te_on_cpu`):

    python tests/gpu/pretend_cuda.py tests/gpu/test_cuda.py tests/gpu/test_te_encoders.py::test_nt_v2
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from pretend_places import GPU, Watch, in_owner, is_nccl, is_owner, nccl_groups, random_state, seed, set_random, sizes, take_over, wait
from pretend_tensors import answer_tensors, sum_as_cuda

NAME, MEMORY = "NVIDIA H200", 141 * 10**9


def install() -> None:
    """Give this process its GPU. To be called before Megatron-core is imported."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled kernels are for the real thing
    import torch._dynamo as dynamo

    dynamo.config.disable = True
    take_over()
    _answer_cuda()
    answer_tensors()
    _answer_collectives()
    sum_as_cuda()
    Watch().__enter__()
    run = threading.Thread.run

    def run_watched(self: threading.Thread) -> None:
        with Watch():
            run(self)

    threading.Thread.run = run_watched  # type: ignore[method-assign]


class Stream:
    """A stream or an event: all work is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        in_owner("a stream or event")
        self.device, self.cuda_stream, self.priority, self.seconds = GPU, 0, 0, time.perf_counter()

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, other: Stream) -> float:
        return (other.seconds - self.seconds) * 1e3

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("synchronize of a stream or event")

    def done(self, *args: Any, **kwargs: Any) -> None:
        pass

    wait_stream = wait_event = record_event = wait = done

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event(Stream):
    pass


def _answer_cuda() -> None:
    cuda: Any = torch.cuda

    def device_call(answer: Any, what: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            in_owner(what)
            return answer(*args, **kwargs) if callable(answer) else answer

        return called

    def synchronize(*_: Any) -> None:
        wait("torch.cuda.synchronize")

    @contextlib.contextmanager
    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        in_owner("a context of CUDA")
        yield

    def used(*_: Any, **__: Any) -> int:
        return sum(sizes())

    answers = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": lambda: not is_owner(),
        "_lazy_init": lambda: None,
        "_lazy_call": lambda call, **_: call(),
        "init": lambda: None,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": False,
        "device_count": 1,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer if callable(answer) else functools.partial(lambda value, *_: value, answer))
    properties = SimpleNamespace(name=NAME, major=9, minor=0, total_memory=MEMORY, multi_processor_count=132, warp_size=32)
    properties.L2_cache_size = 60 * 2**20
    for name, answer in {
        "current_device": 0,
        "set_device": lambda *_, **__: None,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "current_stream": lambda *_, **__: Stream(),
        "default_stream": lambda *_, **__: Stream(),
        "set_stream": lambda *_, **__: None,
        "memory_allocated": used,
        "max_memory_allocated": used,
        "memory_reserved": used,
        "max_memory_reserved": used,
        "mem_get_info": lambda *_, **__: (MEMORY - used(), MEMORY),
        "memory_stats": lambda *_: {"num_alloc_retries": 0, "num_ooms": 0},
        "reset_peak_memory_stats": lambda *_, **__: None,
        "manual_seed": seed,
        "manual_seed_all": seed,
        "get_rng_state": lambda *_, **__: random_state(),
        "set_rng_state": set_random,
        "initial_seed": torch.initial_seed,
    }.items():
        call = device_call(answer, f"torch.cuda.{name}")
        for module in (cuda, cuda.random, cuda.memory, cuda.streams):
            if module is cuda or hasattr(module, name):
                setattr(module, name, call)
    cuda.stream = cuda.device = nothing
    cuda.Stream, cuda.Event = Stream, Event
    cuda.default_generators = (torch.default_generator,)
    torch.version.cuda = "13.0"
    cuda.nccl.version = lambda: (2, 27, 5)
    for autocast in (torch.autocast, torch.amp.autocast_mode.autocast):
        autocast.__init__ = _autocast_of_host(autocast.__init__)  # type: ignore[method-assign]
    cuda.nvtx = SimpleNamespace(range_push=lambda *_, **__: None, range_pop=lambda: None)


def _autocast_of_host(plain: Callable[..., None]) -> Callable[..., None]:
    """The kernels are the CPU's, and so is what they cast by."""
    if getattr(plain, "of_host", False):
        return plain

    def made(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        plain(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    made.of_host = True  # type: ignore[attr-defined]
    return made


def _answer_collectives() -> None:
    plain_init, plain_group, plain_backend = dist.init_process_group, dist.new_group, dist.get_backend

    def init(backend: Any = None, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        plain_init("gloo", *args, **kwargs)
        if backend is None or "nccl" in backend:
            nccl_groups.append(dist.group.WORLD)

    def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, pg_options: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        group = plain_group(ranks, timeout, "gloo", None, *args, **kwargs)
        if (
            group is not None
            and group != dist.GroupMember.NON_GROUP_MEMBER
            and (backend == "nccl" or (backend is None and is_nccl(dist.group.WORLD)))
        ):
            nccl_groups.append(group)
        return group

    dist.init_process_group = dist.distributed_c10d.init_process_group = init
    dist.new_group = dist.distributed_c10d.new_group = new_group
    dist.get_backend = dist.distributed_c10d.get_backend = lambda group=None: (
        "nccl" if is_nccl(group or dist.group.WORLD) else plain_backend(group)
    )
    for name in ("_get_object_coll_device", "_get_pg_default_device"):
        plain = getattr(dist.distributed_c10d, name)
        answer = functools.partial(lambda plain, group=None: _device_of(group, plain), plain)
        setattr(dist.distributed_c10d, name, answer)


def _device_of(group: Any, plain: Callable[[Any], Any]) -> Any:
    return GPU if is_nccl(group or dist.group.WORLD) else plain(group)


def main(arguments: list[str]) -> int:
    """Run GPU tests, or after `cli` a command of dnapretrain, which is how those tests start it."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "benchmarks"), str(root / "tests" / "gpu"), str(root / "tests" / "model")]
    if "DNAPRETRAIN_TEST_TE" in os.environ:
        import te_on_cpu

        te_on_cpu.install()
    install()
    if arguments[:1] == ["cli"]:
        from dnapretrain.cli import main as command

        return command(arguments[1:])
    import gpu_support
    from gpu_check import run_plainly

    plain = gpu_support.command_line

    def command_line(*given: object) -> str:
        text = " ".join(Path(str(one)).read_text() if str(one).endswith(".yaml") else str(one) for one in given)
        if "device: cpu" in text or "device=cpu" in text:
            return plain(*given)
        done = subprocess.run([sys.executable, __file__, "cli", *map(str, given)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(done.stderr[-4000:])
        return done.stdout

    gpu_support.command_line = command_line
    return run_plainly(arguments)


if __name__ == "__main__":
    sys.modules["pretend_cuda"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
