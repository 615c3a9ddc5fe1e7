"""Configuration of DNABERT-2. Written by dnapretrain; Apache-2.0."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class BertConfig(PretrainedConfig):
    """Sizes and settings of bert_layers.py. `position_embedding_type` and the two maximal lengths have no effect: positions are ALiBi's,
    of any length. There is no `pad_token_id` unless one is given: padding is what the attention mask says."""

    model_type = "bert"
    _auto_class = "AutoConfig"  # save_pretrained takes the code along: transformers before 5 does not by itself

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout: float | None = None,
        max_position_embeddings: int = 512,
        alibi_starting_size: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        position_embedding_type: str = "absolute",
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        if hidden_act != "gelu":
            raise ValueError(f"hidden_act = {hidden_act!r}: this class has 'gelu' only")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size = {hidden_size} is not divisible by num_attention_heads = {num_attention_heads}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.alibi_starting_size = alibi_starting_size
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.tie_word_embeddings = True  # transformers 5 has no default of its own
