"""What training's kernels need while a run goes on: user buffers, the capture of CUDA graphs, and the name of what attention took."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist

from dnapretrain.config import RunConfig
from dnapretrain.model.attention_kernels import FlexAttention
from dnapretrain.model.kernels import attention_taken
from dnapretrain.model.layers import SdpaAttention


class StepKernels:
    """Of one run on this rank. Graphs of Megatron-core (local) are captured by its schedule after the first step; those of Transformer
    Engine here, before the step that follows train.cuda_graph_warmup_steps of this start."""

    def __init__(
        self, config: RunConfig, chunks: list[Any], optimizer: Any, data_parallel_size: int, rest: Callable[[], None] = lambda: None
    ) -> None:
        """`rest` keeps this rank's other threads off the device: called before a capture, which fails where one of them pins memory."""
        self.config, self.chunks, self.optimizer, self.rest = config, chunks, optimizer, rest
        self.data_parallel_size = data_parallel_size
        self.steps_begun = 0
        self._helper: Any = None
        self._attention_told = False
        if config.parallel.tp_comm_overlap:
            from dnapretrain.model.transformer_engine import start_tp_overlap  # needs Transformer Engine

            start_tp_overlap(config)
        if config.train.cuda_graph_impl == "local":
            _keep_graph_inputs()

    def begin_step(self) -> None:
        """Capture Transformer Engine's graphs when their time has come: before gradients are zeroed, which the capture disturbs."""
        train = self.config.train
        if train.cuda_graph_impl == "transformer_engine" and self.steps_begun == train.cuda_graph_warmup_steps:
            self.rest()
            self._capture()
        self.steps_begun += 1

    def passes_done(self) -> None:
        """All passes of a step are: where its graphs are Megatron-core's, its schedule captures them next, after the first step."""
        if self.config.train.cuda_graph_impl == "local" and self.steps_begun == 1:
            self.rest()

    def attention(self) -> str | None:
        """Once, after a pass: the kernels that attention took, as a line for people; None before, after, and where there is no choice."""
        if self._attention_told:
            return None
        self._attention_told = True
        modules = [module for chunk in self.chunks for module in chunk.modules()]
        if any(isinstance(module, FlexAttention) for module in modules):
            return None  # it has one kernel, which the lines at the start name
        uses_torch = any(isinstance(module, SdpaAttention) for module in modules)
        return attention_taken(self.config, uses_torch, next(self.chunks[0].parameters()))

    def end(self) -> None:
        """Give buffers and graphs back: another run of this process begins without them."""
        if self.config.parallel.tp_comm_overlap:
            from dnapretrain.model.transformer_engine import stop_tp_overlap

            stop_tp_overlap()
        if self.config.train.cuda_graph_impl == "local":
            from megatron.core.transformer.cuda_graphs import delete_cuda_graphs

            delete_cuda_graphs()
            torch.cuda.set_stream(torch.cuda.default_stream())  # the capture has left the run on a stream of its own
        if self._helper is not None:
            from megatron.core import num_microbatches_calculator

            if self._helper.graphs_created():  # else the capture has failed, and its error is on its way
                self._helper.delete_cuda_graphs()
            num_microbatches_calculator.unset_num_microbatches_calculator()

    def _capture(self) -> None:
        from megatron.core import num_microbatches_calculator
        from megatron.core.transformer.cuda_graphs import TECudaGraphHelper
        from megatron.core.transformer.module import GraphableMegatronModule

        train, data, gathers = self.config.train, self.config.data, self.config.parallel.overlap_param_gather
        # The helper asks Megatron's global for the number of micro-batches, which nothing else here needs.
        num_microbatches_calculator.init_num_microbatches_calculator(
            dist.get_rank(), None, train.global_batch_size, train.micro_batch_size, self.data_parallel_size
        )
        self._helper = TECudaGraphHelper(self.chunks, self.chunks[0].config, data.sequence_length, train.micro_batch_size, [self.optimizer])
        for layer in self._helper.flattened_callables:
            # Megatron would give each layer a mask of sequence^2 as well, made anew for each pass, which causal attention does not read.
            for name in ("get_layer_static_inputs", "_get_te_cuda_graph_replay_args"):
                setattr(layer, name, MethodType(getattr(GraphableMegatronModule, name), layer))
        # Hooks that gather parameters must not be captured: they run by hand before each replay.
        for chunk in self.chunks if gathers else ():
            chunk.disable_forward_pre_hook(param_sync=False)
        self._helper.create_cudagraphs()
        for chunk in self.chunks if gathers else ():
            chunk.enable_forward_pre_hook()
        if gathers:
            self._helper.cuda_graph_set_manual_hooks()


def _keep_graph_inputs() -> None:
    """Keep Megatron-core 0.16.1 from giving memory away that graphs still read.

    Once a forward graph is captured it returns the buffer of its input to a pool, and gives it to gradients: those of the first layer's
    norm and of the embeddings, computed from that input in the backward graph, would be wrong in silence (mended in Megatron-LM by its
    pull request 4433).
    """
    from megatron.core.transformer.cuda_graphs import _CudagraphGlobalRecord

    _CudagraphGlobalRecord.tensor_reuse_pool.insert = lambda _: None
