"""CUDA graphs on CPU ranks: operations are written down while a graph is captured, and done again on the same memory at each replay.

What graphs are given, share and leave over can be seen without a GPU, by Megatron-core's own code and by Transformer Engine's. What a GPU
refuses to capture, the pools of memory that graphs share, and streams cannot. Needs `te_on_cpu`, whose rank this becomes.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Writes down each operation with the tensors it was given and those it made."""

    def __init__(self, operations: list[Any]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for a value while a CUDA graph is captured")
        # Other tensors over the same memory: Transformer Engine empties some, whose memory a graph goes on using.
        self.operations.append((function, *alias((args, kwargs or {}, result))))
        return result


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.operations: list[Any] = []

    def register_generator_state(self, _: Any) -> None:
        """Nothing is drawn in what is captured here."""

    def reset(self) -> None:
        """Forget what was captured."""
        self.operations = []

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again: results go where they went."""
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    """Stands for torch.cuda.graph."""
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        with Recorder(graph.operations):
            yield
    finally:
        torch.cuda.is_current_stream_capturing = lambda: False


class Generator:
    """Stands for a CUDA generator, whose state graphs can use."""

    def _self(self, *_: Any) -> Generator:
        return self

    graphsafe_get_state = clone_state = get_state = manual_seed = graphsafe_set_state = set_state = _self


class Generators:
    """Stands for torch.cuda.default_generators: one, by whatever name."""

    def __getitem__(self, _: Any) -> Generator:
        return Generator()


def install() -> None:
    """Answer what Megatron-core and Transformer Engine ask of CUDA to capture graphs. The CPU engine must be active."""
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer import cuda_graphs
    from transformer_engine.pytorch import distributed as te_distributed
    from transformer_engine.pytorch import graph as te_graph

    cuda: Any = torch.cuda
    cuda.CUDAGraph, cuda.graph = Graph, capture
    cuda.default_generators = Generators()
    cuda.memory_stats = lambda *_: defaultdict(int)
    cuda.device_count = lambda: 1
    cuda.set_stream = lambda _: None
    cuda.graph_pool_handle = te_graph.graph_pool_handle = te_graph._graph_pool_handle = lambda: (0, 0)
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda_graphs.make_weak_ref = te_graph.make_weak_ref = alias
    megatron_random._get_cuda_rng_state = lambda *_, graph_safe=False, **__: Generator() if graph_safe else torch.get_rng_state()
    megatron_random._set_cuda_rng_state = te_distributed._set_cuda_rng_state = lambda *_, **__: None
    te_distributed._get_cuda_rng_state = lambda *_, **__: Generator()


def alias(tensors: Any) -> Any:
    """Another tensor over the same memory."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, tensors)


def train(env: Any, store: Any, tree: dict[str, Any], impl: str, until: int) -> Any:
    """`training.train` with graphs, on layers of `impl`, "te" or "torch"."""
    import training
    from megatron.core import num_microbatches_calculator
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer import cuda_graphs
    from transformer_engine.pytorch import quantization

    from dnapretrain.model import build
    from dnapretrain.parallel import cpu_engine, groups

    cpu_engine.activate()
    install()
    quantization.FP8GlobalStateManager.reset()  # a process has one run
    quantization.get_device_compute_capability = lambda: (9, 0)
    plain = build.use_transformer_engine, build.check_kernels, groups.start_groups
    build.use_transformer_engine, build.check_kernels = (lambda *_: impl == "te"), (lambda *_: None)
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    graphs = tree["train"].get("cuda_graph_impl", "none") != "none"
    groups.start_groups = lambda *given: plain[2](*given, cuda_graphs=graphs)
    try:
        return training.train(env, store, tree, until)
    finally:
        num_microbatches_calculator.unset_num_microbatches_calculator()
        cuda_graphs.delete_cuda_graphs()
        build.use_transformer_engine, build.check_kernels, groups.start_groups = plain
        megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
