"""The decoder: Megatron-core's GPTModel in Llama style, with the padding of the vocabulary kept out of the softmax."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from dnapretrain.model.attention_kernels import FlexAttention
from dnapretrain.model.cross_entropy import TokenLoss
from dnapretrain.model.fused import swiglu
from dnapretrain.model.layers import RMSNorm, SdpaAttention


class Decoder(GPTModel):
    """GPTModel with a loss of ours: logits beyond the real vocabulary never enter the softmax."""

    def __init__(self, config: TransformerConfig, *, token_loss: TokenLoss, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.token_loss = token_loss

    @property
    def block(self) -> Any:
        """The transformer layers of this chunk."""
        return self.decoder

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What GPTModel returns for labels [B, S] and this rank's logits [S, B, V/TP]: see `TokenLoss`."""
        return self.token_loss(logits, labels, self.tp_group, self.training)


def decoder_spec(config: TransformerConfig, use_te: bool, use_flex: bool, vp_stage: int | None) -> ModuleSpec | TransformerBlockSubmodules:
    """The layer spec: Transformer Engine's fused modules, or Megatron's parallel layers with our norm and attention."""
    if use_te:
        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = FlexAttention if use_flex else SdpaAttention
    layer.submodules.mlp.submodules.activation_func = swiglu
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=RMSNorm)
