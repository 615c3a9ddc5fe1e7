"""Tensors that say they are on the GPU, and the functions that make and move them (`pretend_cuda`)."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from pretend_places import GPU, HOST, WrongDeviceError, in_owner, is_pinned, pin, place_of, put, random_of_gpu, see_copy, wait
from torch.nn.attention.bias import CausalBias
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

FACTORIES = ("zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "randperm", "eye", "linspace", "tensor", "as_tensor")
FACTORIES += ("empty_strided", "scalar_tensor", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
_plain = SimpleNamespace()


def answer_tensors() -> None:
    """Let tensors say where they are, and copies go there."""
    tensor: Any = torch.Tensor
    for name in ("to", "numpy", "type", "tolist"):
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
    where = GPU if where.type == "cuda" else HOST  # "cuda" alone is none other
    see_copy(where, place_of(source) or HOST, source, non_blocking)
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        moved = source.detach().clone() if dtype is None else _plain.to(source.detach(), dtype, copy=True)
    return put(moved, where)


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
        with random_of_gpu() if where.type == "cuda" else contextlib.nullcontext():
            result = function(*args, **kwargs)
        put(result, GPU if where.type == "cuda" else HOST)
        return pin(result) if pinned else result

    return made


def _device_in_force() -> torch.device:
    """Of `with torch.device(...)`, which knows the factories by their own names only."""
    modes = reversed(torch.overrides._get_current_function_mode_stack())
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), HOST)


def sum_as_cuda() -> None:
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
