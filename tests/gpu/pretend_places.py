"""Where tensors of `pretend_cuda` are, and the watch over every operation.

A storage's device is kept beside it, by its address: a weak reference keeps the address from being given away. Storages that
compiled code of torch makes for itself (in backward passes, inside composite operations) are of neither kind until they meet others.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
CPU_BESIDE = ("aten::index", "aten::_index_put_impl_", "aten::index_put", "aten::_unsafe_index", "aten::_unsafe_index_put")
"""CUDA takes indices that lie on the host, and copies them."""
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")
WAITS += ("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave")
"""The host needs a number from the GPU before it can go on."""

waits: Counter[str] = Counter()
"""How often the host waited for the GPU, by operation and by the lines of Python that asked."""
nccl_groups: list[Any] = []
plain_device: Any = torch.Tensor.device
_owner = os.getpid()
_places: dict[int, tuple[StorageWeakRef, torch.device]] = {}
_pinned: dict[int, StorageWeakRef] = {}
_random = torch.get_rng_state()
_lock = threading.RLock()


class WrongDeviceError(RuntimeError):
    """What CUDA would have refused."""


def place_of(tensor: torch.Tensor) -> torch.device | None:
    """Where a tensor is; None where nobody has said."""
    kind = plain_device.__get__(tensor)
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
    if plain_device.__get__(tensor).type == "cpu":
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
    frames = [frame for frame in traceback.extract_stack()[:-2] if "/torch/" not in frame.filename]
    frames = [frame for frame in frames if not Path(frame.filename).name.startswith("pretend_")]
    where = " < ".join(f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}" for frame in frames[-1:-3:-1])
    waits[f"{what} at {where}"] += 1


def see_copy(to: torch.device | None, of: torch.device | None, source: torch.Tensor, non_blocking: bool) -> None:
    """Count the wait that a copy is, if it is one."""
    if to == GPU and of == HOST and source.dim() and not is_pinned(source):
        wait("copy to the GPU from memory that is not pinned")
    elif to != GPU and of == GPU and not non_blocking:
        wait("copy from the GPU")


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
            see_copy(*places[:2], inputs[1], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
            return func(*args, **kwargs)
        if asked is not None and name == "aten::_to_copy":
            where = GPU if torch.device(asked).type == "cuda" else None
            if where and places[0] != GPU:
                see_copy(GPU, places[0], inputs[0], bool(kwargs.get("non_blocking")))
            return put(func(*args, **kwargs), where or places[0] or HOST)
        if on_gpu:
            self.check_places(name, inputs, places)
            if name in WAITS:
                wait(name)
        with random_of_gpu() if on_gpu and torch.Tag.nondeterministic_seeded in func.tags else contextlib.nullcontext():
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


def take_over() -> None:
    """This process is the one that CUDA runs in."""
    global _owner
    _owner = os.getpid()


def is_owner() -> bool:
    """False in a forked child."""
    return os.getpid() == _owner


def sizes() -> Iterator[int]:
    """Bytes of each storage on the GPU."""
    for reference, place in list(_places.values()):
        if place == GPU and not reference.expired():
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is not None:
                yield storage.nbytes()


def random_state() -> torch.Tensor:
    """A copy of the GPU's."""
    return _random.clone()


@contextlib.contextmanager
def random_of_gpu() -> Iterator[None]:
    """Draw from the GPU's random state."""
    global _random
    host = torch.get_rng_state()
    torch.set_rng_state(_random)
    yield
    _random = torch.get_rng_state()
    torch.set_rng_state(host)


def set_random(state: torch.Tensor, *_: Any, **__: Any) -> None:
    global _random
    _random = state


def seed(seed: int) -> None:
    set_random(torch.Generator().manual_seed(seed).get_state())


def is_nccl(group: Any) -> bool:
    """Whether a group was asked for with this backend; gloo stands for it."""
    return any(group is known for known in nccl_groups)
