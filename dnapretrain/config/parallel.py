"""Section parallel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dnapretrain.config.section import Section


class ParallelConfig(Section):
    """How the model and the batch are spread over ranks. Aliases: tp, pp, vpp, cp."""

    tensor_model_parallel_size: int = Field(1, gt=0)
    pipeline_model_parallel_size: int = Field(1, gt=0)
    virtual_pipeline_model_parallel_size: int | None = Field(None, gt=1)
    """Model chunks per pipeline rank (interleaved schedule)."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, gt=0)
    num_layers_in_last_pipeline_stage: int | None = Field(None, gt=0)
    """Layers of the first and of the last pipeline rank, where num_layers does not divide evenly, or to make up for embeddings and head;
    the ranks between share the rest evenly. Default: as many as the others."""
    context_parallel_size: int = Field(1, gt=0)
    """Ranks that share each sample, a part of its sequence each; they hold the same weights."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a"] = "p2p"
    """How Transformer Engine's attention sees the others' parts. p2p: keys and values pass round a ring while it works. all_gather: they
    are gathered first, as the torch layers always do. a2a: a rank gets all of the sequence for some heads (as many on each)."""
    sequence_parallel: bool = False
    """Shard activations between tensor-parallel regions along the sequence."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs (CUDA)."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass runs (CUDA, distributed optimizer)."""
    tp_comm_overlap: bool = False
    """Overlap tensor-parallel communication with matrix products, through user buffers (Transformer Engine, sequence_parallel)."""
    batch_p2p_comm: bool | None = None
    """Send and receive between pipeline stages in one batch. Default: yes without virtual stages; with them never, for the messages of
    the interleaved schedule are overlapped with its computation instead."""
    overlap_p2p_comm_warmup_flush: bool = False
    """Overlap them in the warm-up and the flush of the interleaved schedule too."""
    distributed_timeout_minutes: float = Field(40.0, gt=0)
    """A rank that waits longer for others ends the run with an error; longer than checkpoint.timeout_seconds."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that work on a sample together: all but data parallelism."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def layers_on_ranks(self, num_layers: int) -> list[int] | None:
        """Layers on each pipeline rank, virtual stages together; None where they cannot be spread so."""
        pp, ends = self.pipeline_model_parallel_size, (self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage)
        if pp == 1:
            return [num_layers] if ends == (None, None) else None
        rest, others = num_layers - sum(end or 0 for end in ends), pp - sum(end is not None for end in ends)
        if rest < others or (rest % others if others else rest):
            return None
        each = rest // others if others else 0
        layers = [ends[0] or each, *[each] * (pp - 2), ends[1] or each]
        return None if any(count % (self.virtual_pipeline_model_parallel_size or 1) for count in layers) else layers
