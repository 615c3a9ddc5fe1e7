"""Configuration of AIDO.DNA (model_type rnabert). Written by dnapretrain; Apache-2.0."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

HAS = {
    "hidden_act": "swiglu",
    "normalization_type": "LayerNorm",
    "add_linear_bias": True,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
}
"""What modeling_rnabert.py has; other members of the family differ here."""


class RNABertConfig(PretrainedConfig):
    """Sizes and settings of modeling_rnabert.py."""

    model_type = "rnabert"
    _auto_class = "AutoConfig"  # save_pretrained takes the code along: transformers before 5 does not by itself

    def __init__(
        self,
        vocab_size: int = 16,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        intermediate_size: int = 2688,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        max_position_embeddings: int = 4000,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        hidden_act: str = "swiglu",
        normalization_type: str = "LayerNorm",
        add_linear_bias: bool = True,
        position_embedding_type: str = "rope",
        rotary_percent: float = 1.0,
        seq_len_interpolation_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        given = {
            "hidden_act": hidden_act,
            "normalization_type": normalization_type,
            "add_linear_bias": add_linear_bias,
            "position_embedding_type": position_embedding_type,
            "rotary_percent": rotary_percent,
        }
        for name, value in given.items():
            if value != HAS[name]:
                raise ValueError(f"{name} = {value!r}: this class has {HAS[name]!r} only")
            setattr(self, name, value)
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size = {hidden_size} is not divisible by num_attention_heads = {num_attention_heads}")
        self.seq_len_interpolation_factor = seq_len_interpolation_factor
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
