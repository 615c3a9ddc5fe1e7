"""The plainest fast torch model of a shape: fused projections, SDPA, rotary positions, nothing else. A rival for `gpu_speed.py`.

Shape suffixes: B batch, S sequence, N heads, G key/value heads, D head width, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU of a ModelConfig's shape."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.heads, self.groups, self.width, self.causal = (
            model.num_attention_heads,
            model.query_groups,
            model.head_dim,
            model.kind == "decoder",
        )
        hidden, query, key = model.hidden_size, self.heads * self.width, self.groups * self.width
        self.norm1, self.norm2 = norm(model), norm(model)
        self.qkv = nn.Linear(hidden, query + 2 * key, bias=model.attention_bias)
        self.out = nn.Linear(query, hidden, bias=model.attention_bias)
        self.up = nn.Linear(hidden, 2 * model.ffn_hidden_size, bias=model.ffn_in_bias)
        self.down = nn.Linear(model.ffn_hidden_size, hidden, bias=model.ffn_out_bias)

    def forward(self, hidden_BSH: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        batch, length, _ = hidden_BSH.shape
        qkv = self.qkv(self.norm1(hidden_BSH)).view(batch, length, self.heads + 2 * self.groups, self.width).transpose(1, 2)
        query, key, value = qkv.split([self.heads, self.groups, self.groups], dim=1)
        query, key = rotate(query, cos_SD, sin_SD), rotate(key, cos_SD, sin_SD)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, enable_gqa=self.groups != self.heads)
        hidden_BSH = hidden_BSH + self.out(context.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.up(self.norm2(hidden_BSH)).chunk(2, dim=-1)
        added: Tensor = hidden_BSH + self.down(F.silu(gate) * up)
        return added


class MinimalModel(nn.Module):
    """Tokens [B, S] to logits [B, S, V]."""

    def __init__(self, model: Any, vocab_size: int, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_layers))
        self.norm, self.head = norm(model), nn.Linear(model.hidden_size, vocab_size, bias=False)
        if not model.untie_embeddings_and_output_weights:
            self.head.weight = self.words.weight
        powers = model.rotary_base ** (torch.arange(0, model.head_dim, 2) / model.head_dim)
        angles = torch.outer(torch.arange(length), 1 / powers).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits of every position."""
        hidden = self.words(tokens_BS)
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        cos, sin = (table[: tokens_BS.shape[1]].to(hidden.dtype) for table in (self.cos, self.sin))
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def norm(model: Any) -> nn.Module:
    """RMSNorm or LayerNorm, as the shape has it."""
    kind = nn.RMSNorm if model.normalization == "RMSNorm" else nn.LayerNorm
    return kind(model.hidden_size, eps=model.norm_epsilon)


def rotate(heads_BNSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotary positions, halves turned against each other."""
    first, second = heads_BNSD.chunk(2, dim=-1)
    return heads_BNSD * cos_SD + torch.cat((-second, first), dim=-1) * sin_SD


def fits(model: Any) -> bool:
    """Whether this model can have the shape of `model`: pre-norm, rotary, SwiGLU."""
    return bool(model.norm_position == "pre" and model.position_embedding_type == "rope" and model.activation == "swiglu")
