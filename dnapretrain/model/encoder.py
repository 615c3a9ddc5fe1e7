"""The encoder: one bidirectional model on Megatron-core's parallel layers that can be any of the published ones.

Embeddings (words, perhaps positions and token type, perhaps a norm and dropout), a block of pre- or post-norm
layers, and the masked-LM head: dense, GELU, norm, projection to the vocabulary with a bias.
Shape suffixes: B batch, S sequence, H hidden; SBH is Megatron's order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    get_cuda_rng_tracker,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType, ModelType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from dnapretrain.config import ModelConfig, padded_vocab_size
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.attention_kernels import FlexAlibiAttention, FlexAttention
from dnapretrain.model.cross_entropy import TokenLoss
from dnapretrain.model.fused import geglu, swiglu
from dnapretrain.model.layers import (
    NORM_KEYS,
    AddResidual,
    AlibiAttention,
    AlibiBias,
    LayerModules,
    LayerNorm,
    RMSNorm,
    SdpaAttention,
    mark_sequence_parallel,
    with_bias,
    with_input_dropout,
)
from dnapretrain.parallel.groups import sum_over_context_parallel

NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}

GATED = {"swiglu": swiglu, "geglu": geglu}


class Encoder(LanguageModule):
    """One pipeline chunk of an encoder; the first has the embeddings, the last the head."""

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        max_positions: int,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
        token_loss: TokenLoss,
        use_te: bool,
        use_flex: bool,
    ) -> None:
        super().__init__(config, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
        self.tp_group = self.pg_collection.tp
        self.token_loss = token_loss
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = not model.untie_embeddings_and_output_weights
        self.model_type = ModelType.encoder_or_decoder  # Megatron's schedules ask for it
        if pre_process:
            self.embedding = EncoderEmbedding(config, model, tokenizer, max_positions, self.tp_group)
        if model.position_embedding_type == "rope":
            self.rotary_pos_emb = RotaryEmbedding(
                kv_channels=model.head_dim,
                rotary_percent=1.0,
                rotary_base=model.rotary_base,
                use_cpu_initialization=config.use_cpu_initialization,
            )
        else:
            self.rotary_pos_emb = None
        self.encoder = TransformerBlock(
            config=config,
            spec=encoder_spec(config, model, use_te, use_flex, vp_stage),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if post_process:
            self.lm_head = MaskedLmHead(config, model)
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                padded_vocab_size(tokenizer.vocab_size),
                config=config,
                init_method=config.init_method,
                bias=True,
                gather_output=False,
                skip_weight_param_allocation=pre_process and self.share_embeddings_and_output_weights,
            )
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    @property
    def block(self) -> TransformerBlock:
        """The transformer layers of this chunk."""
        return self.encoder

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take the hidden states of the stage before, [S, B, H]; called by Megatron's schedules."""
        (hidden,) = input_tensor if isinstance(input_tensor, list) else [input_tensor]
        self.encoder.set_input_tensor(hidden)

    def forward(
        self,
        tokens_BS: torch.Tensor,
        positions_BS: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        """Hidden states [S, B, H] of a stage that is not the last; else what `TokenLoss` gives for `labels`
        [B, S], or, without labels, this rank's logits [B, S, V/TP]. `attention_mask`: see `DeviceBatch`."""
        hidden_SBH = self.embedding(tokens_BS, positions_BS) if self.pre_process else None
        rotary = None
        if self.rotary_pos_emb is not None:  # of whole samples: it takes this rank's part of them itself
            rotary = self.rotary_pos_emb(positions_BS.shape[1] * self.config.context_parallel_size)
        hidden_SBH = self.encoder(hidden_SBH, attention_mask, rotary_pos_emb=rotary)
        if not self.post_process:
            return hidden_SBH
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits_SBV, _ = self.output_layer(self.lm_head(hidden_SBH), weight=weight)
        if labels is None:
            return logits_SBV.transpose(0, 1).contiguous()
        return self.token_loss(logits_SBV, labels, self.tp_group, self.training)


class EncoderEmbedding(MegatronModule):
    """Words, positions and token type; then a norm and dropout where the model has them.

    All but the words is the same on every tensor-parallel rank, and works on whole sequences: its gradients are whole too.
    """

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        max_positions: int,
        tp_group: torch.distributed.ProcessGroup,
    ) -> None:
        super().__init__(config)
        self.tp_group = tp_group
        self.pad_id, self.mask_id = tokenizer.pad_id, tokenizer.mask_id
        self.token_dropout = model.token_dropout
        hidden, dtype = config.hidden_size, config.params_dtype
        self.word_embeddings = VocabParallelEmbedding(
            padded_vocab_size(tokenizer.vocab_size), hidden, init_method=config.init_method, config=config, tp_group=tp_group
        )
        self.first_position = tokenizer.pad_id + 1  # ESM's convention: rows up to the padding id are never read
        self.position_embeddings = self.token_type_embeddings = self.norm = None
        if model.position_embedding_type == "learned_absolute":
            self.position_embeddings = torch.nn.Embedding(max_positions + self.first_position, hidden, dtype=dtype)
        if model.type_vocab_size:
            self.token_type_embeddings = torch.nn.Embedding(model.type_vocab_size, hidden, dtype=dtype)
        if model.embedding_norm:
            self.norm = NORMS[model.normalization](config, hidden, config.layernorm_epsilon)
            mark_sequence_parallel(self.norm, False)

    def forward(self, tokens_BS: torch.Tensor, positions_BS: torch.Tensor) -> torch.Tensor:
        """Hidden states [S, B, H]; with sequence parallelism this rank's part of the sequence."""
        hidden_BSH = self.word_embeddings(tokens_BS)
        if self.token_dropout:
            hidden_BSH = self._rescale(hidden_BSH, tokens_BS)
        if self.position_embeddings is not None:
            hidden_BSH = hidden_BSH + self.position_embeddings(positions_BS + self.first_position)
        if self.token_type_embeddings is not None:
            hidden_BSH = hidden_BSH + self.token_type_embeddings.weight[0]
        if self.norm is not None:
            hidden_BSH = self.norm(hidden_BSH)
        hidden_SBH = hidden_BSH.transpose(0, 1).contiguous()
        if not self.config.sequence_parallel:
            return F.dropout(hidden_SBH, self.config.hidden_dropout, self.training)
        hidden_SBH = scatter_to_sequence_parallel_region(hidden_SBH, group=self.tp_group).clone()  # lets the whole tensor go
        with get_cuda_rng_tracker().fork():
            return F.dropout(hidden_SBH, self.config.hidden_dropout, self.training)

    def _rescale(self, words_BSH: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
        """ESM's token dropout: words that are masked read 0, the others make up for them."""
        masked_BS = tokens_BS == self.mask_id
        counts_2B = torch.stack([masked_BS.sum(dim=1), (tokens_BS != self.pad_id).sum(dim=1)])
        num_masked_B, lengths_B = sum_over_context_parallel(counts_2B)  # of whole samples
        share_B = num_masked_B / lengths_B.clamp(min=1)
        scale_B = (1 - self.token_dropout) / (1 - share_B).clamp(min=1e-6)  # all masked: everything is 0 anyway
        words_BSH = words_BSH.masked_fill(masked_BS[..., None], 0.0)
        return words_BSH * scale_B[:, None, None].to(words_BSH.dtype)


class MaskedLmHead(MegatronModule):
    """dense, GELU, norm: the same on every tensor-parallel rank. The projection to the vocabulary follows it."""

    def __init__(self, config: TransformerConfig, model: ModelConfig) -> None:
        super().__init__(config)
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size, dtype=config.params_dtype)
        mark_sequence_parallel(self.dense, config.sequence_parallel)
        self.layer_norm = NORMS[model.normalization](config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, hidden_SBH: torch.Tensor) -> torch.Tensor:
        """[S, B, H] -> [S, B, H]."""
        return self.layer_norm(F.gelu(self.dense(hidden_SBH)))


def encoder_spec(
    config: TransformerConfig, model: ModelConfig, use_te: bool, use_flex: bool, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers: Megatron's, of parallel linear layers, norms and attention by torch or by Transformer Engine, with our residual.

    Embeddings and head are the same modules on both paths, and so are the names that weights are stored under.
    """
    modules = _modules(model, use_te, use_flex)
    is_post, dropout_inside = model.norm_position == "post", model.ffn_dropout == "inner"
    norm_before = IdentityOp if is_post or modules.column_has_norm else modules.norm
    second = with_input_dropout(modules.row) if dropout_inside else modules.row
    residual = {"config": config, "norm": modules.norm if is_post else None}
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.padding},
        submodules=SelfAttentionSubmodules(
            linear_qkv=with_bias(modules.column, model.attention_bias),
            core_attention=modules.attention,
            linear_proj=with_bias(modules.row, model.attention_bias),
        ),
    )
    mlp = MLPSubmodules(
        linear_fc1=with_bias(modules.column, model.ffn_in_bias),
        activation_func=GATED.get(model.activation),  # read only where `to_transformer_config` says that activations are given
        linear_fc2=with_bias(second, model.ffn_out_bias),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm_before,
            self_attention=attention,
            self_attn_bda=ModuleSpec(module=AddResidual, params={**residual, "dropout": model.hidden_dropout}),
            pre_mlp_layernorm=norm_before,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=ModuleSpec(module=AddResidual, params={**residual, "dropout": 0.0 if dropout_inside else model.hidden_dropout}),
            sharded_state_dict_keys_map=NORM_KEYS,
        ),
    )
    layers = [layer] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=None if is_post else modules.norm)


def _modules(model: ModelConfig, use_te: bool, use_flex: bool) -> LayerModules:
    if use_te:
        from dnapretrain.model.transformer_engine import transformer_engine_modules  # needs Transformer Engine

        return transformer_engine_modules(model)
    attention: type[torch.nn.Module] | ModuleSpec
    if model.position_embedding_type == "alibi":
        attention = FlexAlibiAttention if use_flex else ModuleSpec(module=AlibiAttention, params={"bias": AlibiBias()})
    else:
        attention = FlexAttention if use_flex else SdpaAttention
    return LayerModules(
        norm=NORMS[model.normalization],
        column=ColumnParallelLinear,
        row=RowParallelLinear,
        attention=attention,
        column_has_norm=False,
    )
