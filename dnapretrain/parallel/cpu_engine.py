"""Lets Megatron-core run on CPU ranks: answers its CUDA calls with CPU equivalents.

Nothing of Megatron is replaced: forward, backward, pipeline schedules, collectives, optimizers and
checkpoints are its own. Only calls that name CUDA are answered: a device called "cuda" becomes the
CPU, streams and events become no-ops (CPU work is already in order), the CUDA random state becomes
the CPU's. Active only in processes that call `activate`, and only for the Megatron-core version it
was measured with.

The factory functions are wrapped one by one: a global TorchFunctionMode breaks activation recompute.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from dnapretrain.errors import ConfigError
from dnapretrain.parallel import foreach_kernels

SUPPORTED_MEGATRON = "0.16.1"
_CPU = torch.device("cpu")
_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
_active = False


class _NoStream:
    """Stands for a CUDA stream or event: CPU work is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def _done(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    wait_stream = wait_event = record_event = record = wait = synchronize = _done


def activate() -> None:
    """Answer Megatron-core's CUDA calls in this process. Raises ConfigError for another Megatron-core version."""
    global _active
    if _active:
        return
    import megatron.core

    if megatron.core.__version__ != SUPPORTED_MEGATRON:
        raise ConfigError(
            f"CPU ranks need megatron-core {SUPPORTED_MEGATRON}, found {megatron.core.__version__}. "
            f"Run: pip install megatron-core=={SUPPORTED_MEGATRON}"
        )
    _answer_device_calls()
    _answer_stream_calls()
    _answer_random_calls()
    _use_torch_kernels()
    _active = True


def _answer_device_calls() -> None:
    for name in ("tensor", "zeros", "empty", "ones", "full", "arange", "zeros_like", "empty_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment,return-value]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    plain_type = torch.Tensor.type

    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = plain_type(self, *args, **kwargs)
        return _CUDA_TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    torch.Tensor.type = tensor_type  # type: ignore[method-assign,assignment]


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)  # asks for a CUDA driver
        return factory(*args, **kwargs)

    wrapped.__name__ = factory.__name__
    return wrapped


def _answer_stream_calls() -> None:
    @contextlib.contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    cuda: Any = torch.cuda
    cuda.stream = stream
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = cuda.default_stream = _NoStream
    cuda.synchronize = cuda.empty_cache = lambda *args, **kwargs: None


def _answer_random_calls() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    cuda: Any = torch.cuda
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # Dropout here draws from the CPU's state, which is meant: Megatron would warn of it in each layer of each step.
    logging.getLogger(megatron_random.__name__).addFilter(lambda record: not record.getMessage().startswith("CPU RNG state changed"))


def _use_torch_kernels() -> None:
    """Take torch's Adam and norms where Megatron-core found Transformer Engine or Apex: their kernels run on CUDA only."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.tensor_parallel import layers

    chosen: Any = optimizer
    chosen.Adam, chosen.SGD, chosen.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, torch.optim.SGD, True
    sharded: Any = distrib_optimizer
    sharded.HAVE_APEX_OR_TE = sharded.USING_TE_OPTIMIZER = sharded.USING_APEX_OPTIMIZER = False
    foreach_kernels.use()
    linear: Any = layers
    linear.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=add_weight_gradient)
    linear.F = SimpleNamespace(embedding=embedding)  # it uses no other function of torch's there


def embedding(ids: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """Rows of `weight_VH`, whose gradients are added up in fp32. torch's CPU kernel adds those of all tokens of a row in the
    weight's type: in bf16 most digits of the sum are lost, of a vocabulary of four letters the more."""
    rows = torch.nn.functional.embedding(ids, weight_VH.float())
    return rows.to(weight_VH.dtype)


def add_weight_gradient(inputs_TI: torch.Tensor, gradients_TO: torch.Tensor, sum_OI: torch.Tensor) -> None:
    """Add a linear layer's weight gradient, gradients^T x inputs, to its fp32 sum: Apex's kernel of the name that Megatron calls."""
    if inputs_TI.dtype == sum_OI.dtype:
        sum_OI.addmm_(gradients_TO.t(), inputs_TI)
    else:
        sum_OI.add_(gradients_TO.t() @ inputs_TI)
