"""Megatron-core's self-attention with the way from the projection's result to queries, keys and values that the torch path takes."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import _yarn_get_concentration_factor_from_config
from megatron.core.transformer.attention import SelfAttention

from dnapretrain.model.fused import cos_sin, split_and_rotate


class RotatingSelfAttention(SelfAttention):
    """Splits the projection's result and rotates queries and keys at once (`fused.split_and_rotate`); the numbers are Megatron's."""

    _angles: torch.Tensor | None = None

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, *, rotary_pos_emb: Any = None, **options: Any
    ) -> Any:
        """Megatron's (output [S, B, H], bias); `rotary_pos_emb`: angles [S, 1, 1, D], or None."""
        self._angles = rotary_pos_emb  # read within Megatron's forward, which need not know of them
        return super().forward(hidden_states, attention_mask, **options)

    def get_query_key_value_tensors(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        """(queries [S, B, N, D], keys, values [S, B, G, D]), rotated."""
        mixed_SBH, _bias = self.linear_qkv(hidden_states)
        groups, width = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        mixed_SBGXD = mixed_SBH.view(*mixed_SBH.shape[:2], groups, -1, width)
        if self._angles is None:
            return split_and_rotate(mixed_SBGXD, None, None)
        return split_and_rotate(
            mixed_SBGXD, *cos_sin(self._angles, _yarn_get_concentration_factor_from_config(self.config), mixed_SBH.dtype)
        )
