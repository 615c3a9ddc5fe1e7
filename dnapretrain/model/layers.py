"""Layers of the torch path: a norm that knows sequence parallelism, and attention by `scaled_dot_product_attention`.

Shape suffixes: S sequence, B batch, N heads on this rank, G key/value heads on this rank, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), as Megatron-core's specs build it.

    Under sequence parallelism each rank sees a part of the sequence, so the gain's gradient must be summed
    over the tensor-parallel group: Megatron does that for weights marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class SdpaAttention(torch.nn.Module):
    """Softmax attention of one layer by torch's fused kernel; no mask tensor is ever made.

    Stands where Megatron-core's `DotProductAttention` stands in the layer spec and takes its arguments.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any) -> None:
        del layer_number, attention_type
        super().__init__()
        self.config = config
        self.is_causal = attn_mask_type is AttnMaskType.causal

    def forward(
        self, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, attention_mask: None = None, **_: Any
    ) -> torch.Tensor:
        """Context of shape [S, B, N*D]."""
        if attention_mask is not None:
            raise ValueError("this attention is causal or full; it takes no mask tensor")
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        grouped = key.shape[1] != query.shape[1]
        context_BNSD = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal, enable_gqa=grouped)
        sequence, batch = query_SBND.shape[:2]
        return context_BNSD.permute(2, 0, 1, 3).reshape(sequence, batch, -1)
