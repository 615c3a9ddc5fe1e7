"""A GPU that is not there: tensors "on cuda" lie in the machine's memory and remember it, so that the code for CUDA runs on any machine.

What it shows: which tensor is on which device in every operation of a run (an operation over both is the error that CUDA gives), which
collective gets tensors of the wrong kind, what a forked child touches that only its parent may, and how often the host waits for the
GPU. What it cannot show: kernels, streams (all work is in order), speed. Numbers are those of the CPU's kernels.

As a command it runs GPU tests so, those of Transformer Engine too where DNAPRETRAIN_TEST_TE names its wheel (`te_on_cpu`):

    python tests/gpu/pretend_cuda.py tests/gpu/test_cuda.py tests/gpu/test_te_encoders.py::test_nt_v2

A storage's device is kept beside it, by its address: a weak reference keeps the address from being given away. Storages that
compiled code of torch makes for itself (in backward passes, inside composite operations) are of neither kind until they meet others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled kernels are for the real thing

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention.bias import CausalBias
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
NAME, MEMORY = "NVIDIA H200", 141 * 10**9
FACTORIES = ("zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "randperm", "eye", "linspace", "tensor", "as_tensor")
FACTORIES += ("empty_strided", "scalar_tensor", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
CPU_BESIDE = ("aten::index", "aten::_index_put_impl_", "aten::index_put", "aten::_unsafe_index", "aten::_unsafe_index_put")
"""CUDA takes indices that lie on the host, and copies them."""
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")
WAITS += ("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave")
"""The host needs a number from the GPU before it can go on."""

waits: Counter[str] = Counter()
"""How often the host waited for the GPU, by operation and by the line of Python that asked."""
_owner = 0
_places: dict[int, tuple[StorageWeakRef, torch.device]] = {}
_pinned: dict[int, StorageWeakRef] = {}
_nccl: list[Any] = []
_random = torch.get_rng_state()
_plain = SimpleNamespace()
_lock = threading.RLock()


class WrongDeviceError(RuntimeError):
    """What CUDA would have refused."""


def install() -> None:
    """Give this process its GPU. To be called before Megatron-core is imported."""
    global _owner
    _owner = os.getpid()
    _answer_cuda()
    _answer_tensors()
    _answer_collectives()
    _sum_as_cuda()
    Watch().__enter__()
    run = threading.Thread.run

    def run_watched(self: threading.Thread) -> None:
        with Watch():
            run(self)

    threading.Thread.run = run_watched  # type: ignore[method-assign]


def place_of(tensor: torch.Tensor) -> torch.device | None:
    """Where a tensor is; None where nobody has said."""
    kind = _plain.device.__get__(tensor)
    if kind.type != "cpu":
        return kind
    if "place" in getattr(tensor, "__dict__", {}):
        return tensor.place
    try:
        known = _places.get(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return kind
    return None if known is None or known[0].expired() else known[1]


def put(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """Say where a tensor is."""
    if _plain.device.__get__(tensor).type == "cpu":
        storage = tensor.untyped_storage()
        with _lock:
            _places[storage._cdata] = (StorageWeakRef(storage), where)
            if len(_places) > 20_000:
                for key in [key for key, (reference, _) in _places.items() if reference.expired()]:
                    del _places[key]
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether a copy from this tensor to the GPU could run beside other work."""
    known = _pinned.get(tensor.untyped_storage()._cdata)
    return known is not None and not known.expired()


def pin(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    _pinned[storage._cdata] = StorageWeakRef(storage)
    return tensor


def in_owner(what: str) -> None:
    """CUDA does not survive a fork."""
    if os.getpid() != _owner:
        raise WrongDeviceError(f"Cannot re-initialize CUDA in forked subprocess: {what}")


def wait(what: str) -> None:
    """Count one wait of the host, by the innermost lines that are not torch's own."""
    import traceback

    frames = [frame for frame in traceback.extract_stack()[:-2] if "/torch/" not in frame.filename and frame.filename != __file__]
    where = " < ".join(f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}" for frame in frames[-1:-3:-1])
    waits[f"{what} at {where}"] += 1


class Watch(TorchDispatchMode):
    """Sees every operation of its thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            kwargs["device"] = HOST
        if kwargs.pop("pin_memory", None):
            return pin(put(func(*args, **kwargs), HOST))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = [place_of(tensor) for tensor in inputs]
        on_gpu = GPU in places
        if on_gpu:
            in_owner(name)
        if name.startswith("c10d::"):
            self.check_collective(name, args, inputs, places)
            return func(*args, **kwargs)
        if name == "aten::copy_":
            self.see_copy(*places[:2], inputs[1], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
            return func(*args, **kwargs)
        if asked is not None and name == "aten::_to_copy":
            where = GPU if torch.device(asked).type == "cuda" else None
            if where and places[0] != GPU:
                self.see_copy(GPU, places[0], inputs[0], bool(kwargs.get("non_blocking")))
            return put(func(*args, **kwargs), where or places[0] or HOST)
        if on_gpu:
            self.check_places(name, inputs, places)
            if name in WAITS:
                wait(name)
        with _random_of_gpu() if on_gpu and torch.Tag.nondeterministic_seeded in func.tags else contextlib.nullcontext():
            results = func(*args, **kwargs)
        if asked is not None and torch.device(asked).type == "cuda":
            on_gpu = True
        if on_gpu or HOST in places:
            for result in tree_leaves(results):
                if isinstance(result, torch.Tensor) and place_of(result) in (None, HOST if on_gpu else None):
                    put(result, GPU if on_gpu else HOST)
        return results

    def check_places(self, name: str, inputs: list[torch.Tensor], places: list[torch.device | None]) -> None:
        """All on the GPU, but for single numbers; what compiled code made for itself is the GPU's from here on."""
        for tensor, place in zip(inputs, places, strict=True):
            if place is None:
                put(tensor, GPU)
            elif place.type == "cpu" and tensor.dim() and tensor.numel():
                if name in CPU_BESIDE and tensor.dtype in (torch.int64, torch.int32, torch.bool):
                    wait(f"{name}, indices from the host,")
                    continue
                shapes = [(tuple(tensor.shape), str(place)) for tensor, place in zip(inputs, places, strict=True)]
                raise WrongDeviceError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {name} of {shapes}")

    def see_copy(self, to: torch.device | None, of: torch.device | None, source: torch.Tensor, non_blocking: bool) -> None:
        if to == GPU and of == HOST and source.dim() and not is_pinned(source):
            wait("copy to the GPU from memory that is not pinned")
        elif to != GPU and of == GPU and not non_blocking:
            wait("copy from the GPU")

    def check_collective(self, name: str, args: Any, inputs: list[torch.Tensor], places: list[torch.device | None]) -> None:
        group = next(
            (dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type())),
            None,
        )
        if group is None:
            return
        wanted = GPU if is_nccl(group) else HOST
        for tensor, place in zip(inputs, places, strict=True):
            if place is not None and place != wanted:
                raise WrongDeviceError(
                    f"{name} of a group of {'nccl' if wanted == GPU else 'gloo'} got a tensor on {place}, shape {tuple(tensor.shape)}"
                )
            if wanted == GPU and not tensor.is_contiguous():
                raise WrongDeviceError(f"{name}: Tensors must be contiguous, shape {tuple(tensor.shape)}, strides {tensor.stride()}")
            put(tensor, wanted)


def _answer_tensors() -> None:
    tensor: Any = torch.Tensor
    for name in (
        "device",
        "to",
        "cpu",
        "cuda",
        "numpy",
        "pin_memory",
        "is_pinned",
        "type",
        "is_cuda",
        "get_device",
        "tolist",
        "new_tensor",
    ):
        setattr(_plain, name, getattr(tensor, name))
    tensor.device = property(lambda self: place_of(self) or HOST)
    tensor.is_cuda = property(lambda self: place_of(self) == GPU)
    tensor.is_cpu = property(lambda self: (place_of(self) or HOST).type == "cpu")
    tensor.get_device = lambda self: 0 if place_of(self) == GPU else -1
    tensor.pin_memory = lambda self, *_, **__: pin(put(self.clone(), HOST))
    tensor.is_pinned = lambda self, *_, **__: is_pinned(self)

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args_, where = list(args), kwargs.pop("device", None)
        if args_ and isinstance(args_[0], torch.Tensor):
            where, kwargs["dtype"] = args_[0].device, args_.pop(0).dtype
        elif args_ and isinstance(args_[0], (str, int, torch.device)) and not isinstance(args_[0], bool):
            where = args_.pop(0)
        elif args_ and args_[0] is None:
            args_.pop(0)
        given = dict(zip(("dtype", "non_blocking", "copy"), args_, strict=False)) | kwargs
        given = {name: value for name, value in given.items() if value is not None}
        where = None if where is None else torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
        if where is None or where.type == "meta":
            return _plain.to(self, **given, **({"device": where} if where else {}))
        if (place_of(self) or HOST).type == where.type:
            return _plain.to(self, **given)
        if self.requires_grad and torch.is_grad_enabled():
            return _Moved.apply(self, where, given.get("dtype"), bool(given.get("non_blocking")))
        return _move(self, where, given.get("dtype"), bool(given.get("non_blocking")))

    tensor.to = to
    tensor.cuda = lambda self, device=None, non_blocking=False, **_: to(self, GPU, non_blocking=non_blocking)
    tensor.cpu = lambda self, **_: to(self, HOST)

    def numpy(self: torch.Tensor, **kwargs: Any) -> Any:
        if place_of(self) == GPU:
            raise WrongDeviceError("can't convert cuda:0 device type tensor to numpy")
        return _plain.numpy(self, **kwargs)

    tensor.numpy = numpy
    tensor.__array__ = lambda self, dtype=None, **_: numpy(self.detach()) if dtype is None else numpy(self.detach()).astype(dtype)

    def tolist(self: torch.Tensor) -> Any:
        if place_of(self) == GPU:
            wait("tolist")
        return _plain.tolist(self)

    tensor.tolist = tolist

    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = _plain.type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.") if isinstance(answer, str) and place_of(self) == GPU else answer

    tensor.type = tensor_type
    wrapper = tensor._make_wrapper_subclass

    def make_wrapper(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:  # an FP8 tensor: a shell around others
        made = wrapper(*args, device=HOST, **kwargs)
        made.place = HOST if device is None or (not isinstance(device, int) and torch.device(device).type == "cpu") else GPU
        return made

    tensor._make_wrapper_subclass = staticmethod(make_wrapper)
    CausalBias.__new__ = _of_its_own  # type: ignore[method-assign,assignment]
    for name in FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    for name in ("from_numpy", "frombuffer"):
        setattr(torch, name, functools.wraps(getattr(torch, name))(_on_host(getattr(torch, name))))


@contextlib.contextmanager
def _random_of_gpu() -> Iterator[None]:
    """Draw from the GPU's random state."""
    global _random
    host = torch.get_rng_state()
    torch.set_rng_state(_random)
    yield
    _random = torch.get_rng_state()
    torch.set_rng_state(host)


def _set_random(state: torch.Tensor, *_: Any, **__: Any) -> None:
    global _random
    _random = state


def _seed(seed: int) -> None:
    _set_random(torch.Generator().manual_seed(seed).get_state())


def _of_its_own(cls: Any, *_: Any, **__: Any) -> Any:
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.Tensor.__new__(cls)


class _Moved(torch.autograd.Function):
    """A copy to the other device that gradients go back through."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, where: torch.device, dtype: Any, non_blocking: bool) -> torch.Tensor:
        ctx.back = (place_of(source) or HOST, source.dtype)
        return _move(source, where, dtype, non_blocking)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return _move(gradient, *ctx.back, False), None, None, None


def _move(source: torch.Tensor, where: torch.device, dtype: Any, non_blocking: bool) -> torch.Tensor:
    in_owner("a copy")
    if where == GPU and source.dim() and not is_pinned(source):
        wait("copy to the GPU from memory that is not pinned")
    if where != GPU and not non_blocking:
        wait("copy from the GPU")
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        moved = source.detach().clone() if dtype is None else _plain.to(source.detach(), dtype, copy=True)
    return put(moved, GPU if where.type == "cuda" else HOST)


def _on_host(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: put(function(*args, **kwargs), HOST)


def _factory(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        where, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", None)
        like = args[0] if function.__name__.endswith("_like") or function.__name__ == "as_tensor" else None
        if where is None:
            where = like.device if isinstance(like, torch.Tensor) else _device_in_force()
        where = torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
        if where.type == "meta":
            return function(*args, **kwargs, device="meta")
        if function.__name__ == "as_tensor" and isinstance(like, torch.Tensor):
            return like.to(where, kwargs.get("dtype") or like.dtype)
        if function.__name__ == "tensor":
            for number in tree_leaves(args[0]):  # each is asked for
                if isinstance(number, torch.Tensor) and place_of(number) == GPU:
                    wait("torch.tensor of numbers on the GPU")
        if where.type == "cuda":
            in_owner(function.__name__)
            if function.__name__ == "tensor" and not isinstance(args[0], (int, float, bool)):
                wait("copy to the GPU from memory that is not pinned")
        if isinstance(like, torch.Tensor):
            kwargs["device"] = HOST
        with _random_of_gpu() if where.type == "cuda" else contextlib.nullcontext():
            result = function(*args, **kwargs)
        put(result, GPU if where.type == "cuda" else HOST)
        return pin(result) if pinned else result

    return made


def _device_in_force() -> torch.device:
    """Of `with torch.device(...)`, which knows the factories by their own names only."""
    modes = reversed(torch.overrides._get_current_function_mode_stack())
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), HOST)


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
        return sum(_sizes())

    answers = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": lambda: os.getpid() != _owner,
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
        "manual_seed": _seed,
        "manual_seed_all": _seed,
        "get_rng_state": lambda *_, **__: _random.clone(),
        "set_rng_state": _set_random,
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


def _sizes() -> Iterator[int]:
    for reference, place in list(_places.values()):
        if place == GPU and not reference.expired():
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is not None:
                yield storage.nbytes()


def _sum_as_cuda() -> None:
    """CUDA's kernels add up in fp32 what the CPU's add up in bf16; Transformer Engine takes a device by its number."""
    from dnapretrain.model import fused
    from dnapretrain.parallel import cpu_engine

    functional: Any = torch.nn.functional
    norm, embedding = functional.layer_norm, functional.embedding

    def layer_norm(input_: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> torch.Tensor:
        is_narrow = input_.dtype == torch.bfloat16 and weight is not None and bias is not None
        return fused.layer_norm(input_, weight, bias, eps) if is_narrow else norm(input_, shape, weight, bias, eps)

    def embed(ids: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        functional.embedding = embedding
        try:
            is_narrow = weight.dtype == torch.bfloat16 and not args and not kwargs
            return cpu_engine.embedding(ids, weight) if is_narrow else embedding(ids, weight, *args, **kwargs)
        finally:
            functional.embedding = embed

    functional.layer_norm, functional.embedding = layer_norm, embed
    for name, module in list(sys.modules.items()):
        if name.startswith("transformer_engine") and hasattr(module, "canonicalize_device"):
            module.canonicalize_device = lambda device: GPU if device is None or isinstance(device, int) else torch.device(device)


def is_nccl(group: Any) -> bool:
    return any(group is known for known in _nccl)


def _answer_collectives() -> None:
    plain_init, plain_group, plain_backend = dist.init_process_group, dist.new_group, dist.get_backend

    def init(backend: Any = None, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        plain_init("gloo", *args, **kwargs)
        if backend is None or "nccl" in backend:
            _nccl.append(dist.group.WORLD)

    def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, pg_options: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        group = plain_group(ranks, timeout, "gloo", None, *args, **kwargs)
        if (
            group is not None
            and group != dist.GroupMember.NON_GROUP_MEMBER
            and (backend == "nccl" or (backend is None and is_nccl(dist.group.WORLD)))
        ):
            _nccl.append(group)
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
