"""Configuration of Nucleotide Transformer v2: ESM's fields, `add_bias_fnn`, and `seq_len_interpolation_factor`, by which positions are
divided in models whose context was stretched. Written by dnapretrain; Apache-2.0."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class EsmConfig(PretrainedConfig):
    """Sizes and settings of modeling_esm.py; fields have the names and defaults of transformers.EsmConfig."""

    model_type = "esm"
    _auto_class = "AutoConfig"  # save_pretrained takes the code along: transformers before 5 does not by itself

    def __init__(
        self,
        vocab_size: int = 4107,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 1026,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        position_embedding_type: str = "rotary",
        emb_layer_norm_before: bool | None = None,
        token_dropout: bool = False,
        add_bias_fnn: bool = True,
        tie_word_embeddings: bool = True,
        is_folding_model: bool = False,
        seq_len_interpolation_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, mask_token_id=mask_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        if position_embedding_type != "rotary":
            raise ValueError(f"position_embedding_type = {position_embedding_type!r}: this class has 'rotary' only")
        if is_folding_model:
            raise ValueError("is_folding_model = True: this class does not fold proteins")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size = {hidden_size} is not divisible by num_attention_heads = {num_attention_heads}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.emb_layer_norm_before = emb_layer_norm_before
        self.token_dropout = token_dropout
        self.add_bias_fnn = add_bias_fnn
        self.mask_token_id = mask_token_id
        self.is_folding_model = is_folding_model
        self.seq_len_interpolation_factor = seq_len_interpolation_factor
