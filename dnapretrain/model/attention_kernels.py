"""FlexAttention: masks and biases computed within the kernel, block by block, where `scaled_dot_product_attention` must be given
them as tensors of sequence x sequence. On CUDA alone: elsewhere it has no backward pass, and keeps all scores.

Shape suffixes: S sequence, B batch, N heads on this rank, G key/value heads on this rank, D head width.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dnapretrain.config import ModelConfig
from dnapretrain.model.layers import alibi_slopes, tensor_parallel_slice

SMALLEST_HEAD = 16
"""Head width that its kernels need."""
KEPT_MASKS = 16
"""Block masks that are kept for further layers: those of the micro-batches in flight."""


def why_not_flex(model: ModelConfig, is_cuda: bool, document_attention: bool, context_parallel_size: int) -> str | None:
    """Why attention of the torch path is `scaled_dot_product_attention`; None where it is FlexAttention: the one rule."""
    if not document_attention and model.position_embedding_type != "alibi":
        return "no bias, no documents"
    if not is_cuda:
        return "FlexAttention needs CUDA"
    if context_parallel_size > 1:
        return "FlexAttention does not gather keys of context-parallel ranks"
    if model.attention_dropout:
        return "FlexAttention has no dropout: model.attention_dropout"
    if model.head_dim < SMALLEST_HEAD:
        return f"FlexAttention needs heads of {SMALLEST_HEAD}"
    return None if importlib.util.find_spec("triton") else "FlexAttention needs Triton"


class FlexAttention(torch.nn.Module):
    """Softmax attention of one layer by FlexAttention; causal or not, within documents, without keys that are padding.

    Stands where `layers.SdpaAttention` stands and takes its arguments, but documents as numbers.
    """

    has_alibi = False

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any) -> None:
        del layer_number, attention_type
        super().__init__()
        self.is_causal = attn_mask_type is AttnMaskType.causal
        self.num_heads = config.num_attention_heads
        self._score: Callable[..., torch.Tensor] | None = None

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Context of shape [S, B, N*D]; `attention_mask` is None, bool [B, 1, 1, S], True where a key is padding, or int64
        [B, 1, 1, S], numbers of documents: a token sees those of its own."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        if self.has_alibi and self._score is None:
            self._score = _alibi(tensor_parallel_slice(alibi_slopes(self.num_heads)).to(query.device))
        sequence, batch = query_SBND.shape[:2]
        block_mask = _block_mask(attention_mask, self.is_causal, batch, sequence, query.device)
        attend = _compiled() if query.is_cuda else flex_attention
        context_BNSD = attend(query, key, value, self._score, block_mask, enable_gqa=key.shape[1] != query.shape[1])
        return context_BNSD.permute(2, 0, 1, 3).reshape(sequence, batch, -1)


class FlexAlibiAttention(FlexAttention):
    """Attention with the symmetric linear bias -slope x |i - j|."""

    has_alibi = True


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _alibi(slopes_N: torch.Tensor) -> Callable[..., torch.Tensor]:
    def score(score: torch.Tensor, _batch: Any, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return score - slopes_N[head] * (query - key).abs()

    return score


_masks: OrderedDict[Any, tuple[torch.Tensor | None, BlockMask | None]] = OrderedDict()
"""By the memory of what they are made of, which is held as long as they are: recomputed layers are given other tensors over it."""


def _block_mask(mask: torch.Tensor | None, is_causal: bool, batch: int, sequence: int, device: torch.device) -> BlockMask | None:
    """What FlexAttention is given for `mask`, made once for all layers; None where every token sees all."""
    key = (mask if mask is None else (mask.data_ptr(), mask._version, mask.dtype), is_causal, batch, sequence, device)
    if key not in _masks:
        _masks[key] = mask, _new_block_mask(mask, is_causal, batch, sequence, device)
        if len(_masks) > KEPT_MASKS:
            _masks.popitem(last=False)
    return _masks[key][1]


def _new_block_mask(mask: torch.Tensor | None, is_causal: bool, batch: int, sequence: int, device: torch.device) -> BlockMask | None:
    if mask is None and not is_causal:
        return None
    of_keys_BS = None if mask is None else mask[:, 0, 0]

    def sees(row: torch.Tensor, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = query >= key if is_causal else query >= 0
        if of_keys_BS is None:
            return seen
        if of_keys_BS.dtype == torch.bool:
            return seen & ~of_keys_BS[row, key]
        return seen & (of_keys_BS[row, query] == of_keys_BS[row, key])

    rows = None if mask is None else batch
    return create_block_mask(sees, rows, None, sequence, sequence, device=str(device))
