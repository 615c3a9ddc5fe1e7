"""Encoder layers from Transformer Engine's modules, and what it is asked: imported only where it is installed and chosen
(`use_transformer_engine`).

What Megatron-core's wrappers leave open for encoders is settled here: padding where a sample is padded and no mask
elsewhere, and ALiBi with the slopes of this rank's heads. Shape suffixes as in `layers`.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import torch
import transformer_engine.pytorch as te
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from transformer_engine.pytorch import DotProductAttention

from dnapretrain.config import ModelConfig, RunConfig
from dnapretrain.errors import ConfigError
from dnapretrain.model.layers import LayerModules, SdpaAttention, alibi_slopes, tensor_parallel_slice


class EncoderAttention(TEDotProductAttention):
    """Attention in both directions; Transformer Engine chooses flash-attn, cuDNN or its unfused kernels for each shape.

    Padding must lie at the end of a sample, where batches have it: cuDNN is told lengths, not places. With context parallelism
    its ring takes no padding at all: such batches go to our own attention, which gathers keys and values.
    """

    def __init__(self, config: TransformerConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        # With sequence parallelism Transformer Engine draws dropout from the random state that all ranks share; heads differ.
        self.forks_random_state = config.sequence_parallel and config.attention_dropout > 0
        self.over_ranks = SdpaAttention(config, **arguments) if config.context_parallel_size > 1 else None

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Context of shape [S, B, N*D]; `attention_mask` is None or bool [B, 1, 1, S], True where a key is padding: one of the whole
        sample, where context parallelism leaves a part of it here."""
        if self.over_ranks is not None and attention_mask is not None:
            over_ranks: torch.Tensor = self.over_ranks(query_SBND, key_SBGD, value_SBGD, attention_mask)
            return over_ranks
        # Asked for `padding` without a mask it refuses; told `no_mask` with one it would ignore it.
        mask_type = AttnMaskType.no_mask if attention_mask is None else AttnMaskType.padding
        with get_cuda_rng_tracker().fork() if self.forks_random_state and self.training else nullcontext():
            return self.attend(query_SBND, key_SBGD, value_SBGD, attention_mask, mask_type)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, mask_type: AttnMaskType) -> torch.Tensor:
        """Softmax attention with this mask."""
        context: torch.Tensor = super().forward(query, key, value, mask, mask_type)
        return context


class EncoderAlibiAttention(EncoderAttention):
    """Attention with the symmetric bias -slope x |i - j|, made by the kernels from slopes [N].

    flash-attn computes it within the kernel; for cuDNN and the unfused kernels Transformer Engine makes the same
    numbers a bias [1, N, S, S] of its own. Without slopes it would derive them from the heads of this rank: wrong under
    tensor parallelism. Megatron-core's wrapper has no way to hand them over, so it is passed by.
    """

    def __init__(self, config: TransformerConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self._slopes: torch.Tensor | None = None

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, mask_type: AttnMaskType) -> torch.Tensor:
        """Softmax attention with this mask and the bias."""
        if self._slopes is None or self._slopes.device != query.device:
            self._slopes = tensor_parallel_slice(alibi_slopes(self.config.num_attention_heads)).to(query.device)
        context: torch.Tensor = DotProductAttention.forward(
            self,
            query,
            key,
            value,
            mask,
            attn_mask_type=mask_type.name,
            core_attention_bias_type="alibi",
            alibi_slopes=self._slopes,
        )
        return context


def transformer_engine_modules(model: ModelConfig) -> LayerModules:
    """Pre-norm layers fuse each norm with the linear layer that follows it; in post-norm layers a residual lies between them."""
    is_post = model.norm_position == "post"
    return LayerModules(
        norm=TENorm,
        column=TEColumnParallelLinear if is_post else TELayerNormColumnParallelLinear,
        row=TERowParallelLinear,
        attention=EncoderAlibiAttention if model.position_embedding_type == "alibi" else EncoderAttention,
        column_has_norm=not is_post,
    )


def why_no_fp8(recipe: str) -> str | None:
    """Why Transformer Engine cannot scale by `recipe` (train.fp8_recipe) on this GPU; None where it can."""
    supported = {"blockwise": te.is_fp8_block_scaling_available, "mxfp8": te.is_mxfp8_available}.get(recipe, te.is_fp8_available)
    can, reason = supported(return_reason=True)
    return None if can else str(reason)


def chosen_attention() -> dict[str, str | None]:
    """Which kernels Transformer Engine's attention took last: `kernels` (flash-attn, cuDNN, unfused; None before its first pass), and
    their version or number in `backend`."""
    # The module, which its package hides behind the class of a like name, keeps its choice in a variable; it has no other way to ask.
    module = importlib.import_module("transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention")
    chosen = getattr(module, "_attention_backends", {})
    names = {
        "use_flash_attention": ("flash-attn", "flash_attention_backend"),
        "use_fused_attention": ("cuDNN", "fused_attention_backend"),
        "use_unfused_attention": ("unfused", ""),
    }
    for key, (kernels, backend) in names.items():
        if chosen.get(key):
            version = chosen.get(backend)
            return {"kernels": kernels, "backend": None if version is None else str(version)}
    return {"kernels": None, "backend": None}


def start_tp_overlap(config: RunConfig) -> None:
    """Make the user buffers of parallel.tp_comm_overlap: a micro-batch's tokens on this rank, [tokens, hidden]. Process groups must be up.

    Raises ConfigError where this machine has no such buffers.
    """
    train, tokens = config.train, config.train.micro_batch_size * config.data.sequence_length // config.parallel.context_parallel_size
    modes = [te.UserBufferQuantizationMode.NONE]
    if train.fp8 != "none":
        modes = [te.UserBufferQuantizationMode.FP8, *(modes if train.first_last_layers_bf16 else [])]
    try:
        te.initialize_ub(
            [tokens, config.model.hidden_size],
            config.parallel.tensor_model_parallel_size,
            quantization_modes=modes,
            dtype=torch.bfloat16,
            bootstrap_backend="nccl",
        )
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"parallel.tp_comm_overlap: Transformer Engine has no user buffers here: {error} Set it to false.") from error


def stop_tp_overlap() -> None:
    """Give the buffers back."""
    te.destroy_ub()
