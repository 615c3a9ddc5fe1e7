"""Layers of the torch path: norms that know sequence parallelism, attention by `scaled_dot_product_attention`,
and what encoders need beyond Megatron-core's layers: post-norm, ALiBi, biases one by one, dropout within the feed-forward.

Shape suffixes: S sequence, B batch, N heads on this rank, G key/value heads on this rank, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right

from dnapretrain.model.context_parallel import attend_over_ranks, own_part
from dnapretrain.model.fused import layer_norm, rms_norm

NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    "self_attn_bda.norm.": "post_self_attn_layernorm.",
    "mlp_bda.norm.": "post_mlp_layernorm.",
}
"""Names of norms in the torch spec and the names they are stored under: Transformer Engine's, where it fuses the norm."""


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), as Megatron-core's specs build it.

    Under sequence parallelism each rank sees a part of the sequence, so the gain's gradient must be summed
    over the tensor-parallel group: Megatron does that for weights marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        mark_sequence_parallel(self, config.sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of [..., hidden]: on CUDA by torch's kernel, elsewhere, where torch has none, by `fused.rms_norm`."""
        return super().forward(x) if x.is_cuda else rms_norm(x, self.weight, self.eps or 0.0)


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm with gain and bias over the last axis, marked as RMSNorm is."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        mark_sequence_parallel(self, config.sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of [..., hidden]; in bf16 on the CPU by `fused.layer_norm`, which loses no gradients of gain and bias."""
        is_exact = x.is_cuda or x.dtype == torch.float32
        return super().forward(x) if is_exact else layer_norm(x, self.weight, self.bias, self.eps)


def mark_sequence_parallel(module: torch.nn.Module, value: bool) -> None:
    """Say whether the weights of `module` see only a part of the sequence on each tensor-parallel rank."""
    for weight in module.parameters():
        weight.sequence_parallel = value  # type: ignore[attr-defined]


class SdpaAttention(torch.nn.Module):
    """Softmax attention of one layer by torch's fused kernel; masked only for keys that are padding, or of another document.

    Stands where Megatron-core's `DotProductAttention` stands in the layer spec and takes its arguments.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any) -> None:
        del layer_number, attention_type
        super().__init__()
        self.config = config
        self.is_causal = attn_mask_type is AttnMaskType.causal

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Context of shape [S, B, N*D]; `attention_mask` is None, bool [B, 1, 1, S], True where a key is padding, or what is
        added to the scores, [B, 1, S, S], causality included. With context parallelism S is this rank's part of the sequence, but for
        keys in `attention_mask`: there it is the whole."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        mask = self.mask(query, attention_mask)
        # What is added to the scores goes to CUDA's memory-efficient kernel, which has no grouped queries.
        repeats = query.shape[1] // key.shape[1] if mask is attention_mask is not None else 1
        if self.config.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            context_BNSD = attend_over_ranks(self.attend, query, key, value, mask, self.is_causal, group, repeats)
        else:
            if repeats > 1:
                key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
            context_BNSD = self.attend(query, key, value, mask)
        sequence, batch = query_SBND.shape[:2]
        return context_BNSD.permute(2, 0, 1, 3).reshape(sequence, batch, -1)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, N, queries, D] of queries [B, N, queries, D] over keys and values [B, N or G, keys, D]. Causal attention without a mask
        takes the last query for that of the last key."""
        queries, keys = query.shape[2], key.shape[2]
        is_causal = self.is_causal and mask is None
        if is_causal and queries != keys:
            mask, is_causal = causal_lower_right(queries, keys), False
        dropout = self.config.attention_dropout if self.training else 0.0
        # Heads differ from rank to rank, so their dropout must too.
        with get_cuda_rng_tracker().fork() if dropout else nullcontext():
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=key.shape[1] != query.shape[1]
            )

    def mask(self, query_BNSD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """What the kernel is given: True where a query may see a key, or what is added to the scores."""
        del query_BNSD
        if attention_mask is None or attention_mask.is_floating_point():
            return attention_mask
        if self.is_causal:
            raise ValueError("causal attention takes no mask of padding: it comes after what it could disturb")
        return ~attention_mask


class AlibiAttention(SdpaAttention):
    """Attention with the symmetric linear bias -slope x |i - j| (Press et al. 2022, for both directions)."""

    def __init__(self, config: TransformerConfig, *, bias: AlibiBias, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.bias = bias

    def mask(self, query_BNSD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The bias in the query's type, [1, N, S, S], or [B, N, S, S] with what is not to be seen at minus infinity: rows of this rank's
        queries, columns of the whole sequence."""
        return self.bias(self.config, query_BNSD, attention_mask)


class AlibiBias:
    """ALiBi's bias as a tensor, one for all layers of a model chunk; also with the mask of the micro-batch that it was last asked for."""

    def __init__(self) -> None:
        self._plain: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._masked: torch.Tensor | None = None

    def __call__(self, config: TransformerConfig, query_BNSD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What `AlibiAttention.mask` gives."""
        size = config.context_parallel_size
        sequence, known = query_BNSD.shape[2] * size, self._plain
        if known is None or known.shape[-1] != sequence or known.dtype != query_BNSD.dtype or known.device != query_BNSD.device:
            positions = torch.arange(sequence, device=query_BNSD.device)
            own_positions = own_part(positions, parallel_state.get_context_parallel_rank(), size, dim=0)
            distances_SS = (own_positions[:, None] - positions).abs()
            slopes_N = tensor_parallel_slice(alibi_slopes(config.num_attention_heads)).to(query_BNSD.device)
            self._plain = known = (-slopes_N[:, None, None] * distances_SS)[None].to(query_BNSD.dtype)
            self._mask = self._masked = None
        if attention_mask is None:
            self._mask = self._masked = None
            return known
        # The mask is held, so its memory is not given to another; recomputed layers are given another tensor over it.
        same = self._mask is not None and self._mask.data_ptr() == attention_mask.data_ptr() and self._mask.shape == attention_mask.shape
        if self._masked is None or not same:
            self._mask = attention_mask
            added = attention_mask.is_floating_point()
            self._masked = known + attention_mask if added else known.masked_fill(attention_mask, -math.inf)
        return self._masked


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slopes in head order, float32 [num_heads].

    A power of two n has 2^(-8/n), 2^(-16/n), ...; any other number takes those of the power below it and then
    every other one of the power above: for 12 heads 2^-1 ... 2^-8, 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5.
    """
    below = 1 << (num_heads.bit_length() - 1)
    exponents = [8 * (i + 1) / below for i in range(below)]
    exponents += [8 * (2 * i + 1) / (2 * below) for i in range(num_heads - below)]
    return torch.tensor([2.0**-exponent for exponent in exponents])


def tensor_parallel_slice(of_all_heads: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor [all heads]: as many in a row on each tensor-parallel rank."""
    ranks, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    return of_all_heads.chunk(ranks)[rank]


class AddResidual(torch.nn.Module):
    """residual + dropout(x + bias), then the norm of a post-norm layer if there is one.

    Stands where Megatron-core's `get_bias_dropout_add` stands: called with the mode, it returns what adds.
    """

    def __init__(self, config: TransformerConfig, dropout: float, norm: Callable[..., torch.nn.Module] | None) -> None:
        super().__init__()
        self.dropout = dropout
        if norm is not None:
            self.norm = norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        """The function (output and its bias, residual, Megatron's one dropout) -> [S, B, H]."""
        add = get_bias_dropout_add(training, fused)

        def add_and_norm(output_with_bias: Any, residual: torch.Tensor, _: float) -> torch.Tensor:
            added: torch.Tensor = add(output_with_bias, residual, self.dropout)
            return self.norm(added) if hasattr(self, "norm") else added

        return add_and_norm


def with_input_dropout(linear: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The row-parallel `linear` with dropout on its input, whose columns differ from rank to rank."""

    class Linear(linear):  # type: ignore[misc,valid-type]
        def forward(self, input_: torch.Tensor) -> Any:
            if self.training and self.config.hidden_dropout:
                with get_cuda_rng_tracker().fork():
                    input_ = F.dropout(input_, self.config.hidden_dropout)
            return super().forward(input_)

    Linear.__name__ = linear.__name__
    return Linear


def with_bias(linear: type[torch.nn.Module], bias: bool) -> type[torch.nn.Module]:
    """`linear` that has a bias or none, whatever Megatron's one flag for all linear layers says."""

    class Linear(linear):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "bias": bias})

    Linear.__name__ = linear.__name__
    return Linear


@dataclass(frozen=True)
class LayerModules:
    """What an encoder's layers are built from: Megatron-core's modules with ours, or Transformer Engine's."""

    norm: Callable[..., torch.nn.Module]
    """A norm that stands alone: called with (config, hidden size, epsilon)."""
    column: type[torch.nn.Module]
    """Linear layer split by outputs over tensor-parallel ranks: queries, keys and values; the feed-forward's first."""
    row: type[torch.nn.Module]
    """Linear layer split by inputs: attention's projection; the feed-forward's second."""
    attention: type[torch.nn.Module] | ModuleSpec
    column_has_norm: bool
    """Whether `column` normalises its input itself."""
