"""Section model, with model.rope_scaling."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dnapretrain.config.section import Section

ROPE_SCALING: dict[str, dict[str, Any]] = {
    "linear": {},
    "llama3": {"original_max_position_embeddings": None, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"original_max_position_embeddings": None, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "truncate": True},
}
"""What each rope_type has beside its factor, with the defaults of transformers; the original context has none."""


class RopeScalingConfig(Section):
    """Rotary embeddings for contexts longer than the model was trained on, with the names and the formulas of transformers."""

    rope_type: Literal["linear", "llama3", "yarn"]
    """linear: positions / factor (Chen et al. 2023). llama3: slow turns / factor, fast ones as they are, between them a mixture.
    yarn: the same idea with other bounds, and sharper attention (Peng et al. 2023)."""
    factor: float = Field(ge=1)
    """How much longer the context becomes."""
    original_max_position_embeddings: int | None = Field(None, gt=0)
    """llama3, yarn: tokens of the context that the model was trained on."""
    low_freq_factor: float | None = Field(None, gt=0)
    """llama3: frequencies of fewer turns than this in the original context are divided by factor; default 1."""
    high_freq_factor: float | None = Field(None, gt=0)
    """llama3: frequencies of more turns than this stay; default 4."""
    beta_fast: float | None = Field(None, gt=0)
    """yarn: frequencies of more turns than this stay; default 32."""
    beta_slow: float | None = Field(None, gt=0)
    """yarn: frequencies of fewer turns than this are divided by factor; default 1."""
    attention_factor: float | None = Field(None, gt=0)
    """yarn: what rotated queries and keys are multiplied by; default 0.1 ln(factor) + 1."""
    truncate: bool | None = None
    """yarn: bounds at whole pairs of channels; default true."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return {**ROPE_SCALING.get(str(value.get("rope_type")), {}), **_given(value)} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_its_type(self) -> RopeScalingConfig:
        has = {"rope_type", "factor", *ROPE_SCALING[self.rope_type]}
        if extra := [name for name, value in self if value is not None and name not in has]:
            raise ValueError(f"{extra[0]} is not for rope_type={self.rope_type}, which has {', '.join(sorted(has))}: remove it")
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(
                f"rope_type={self.rope_type} needs original_max_position_embeddings, the context that the model was trained on"
            )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, low) is not None and getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} = {getattr(self, low)} is not below {high} = {getattr(self, high)}: change one")
        return self


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class ModelConfig(Section):
    """The network: a Llama-style decoder, or an encoder that can be any of the published ones."""

    kind: Literal["decoder", "encoder"] = "decoder"
    """decoder: causal, next token. encoder: sees both sides, learns by `data.masking`, has a masked-LM head."""
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int | None = Field(None, gt=0)
    """Key/value heads; default: one per attention head."""
    kv_channels: int | None = Field(None, gt=0)
    """Width of one head; default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int = Field(gt=0)
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    norm_epsilon: float = Field(1e-5, gt=0)
    norm_position: Literal["pre", "post"] = "pre"
    """pre: x + f(norm(x)), a final norm after the last layer; post: norm(x + f(x))."""
    activation: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    """Of the feed-forward; the first two multiply two projections. GELU is exact (erf)."""
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    ffn_in_bias: bool = False
    ffn_out_bias: bool = False
    position_embedding_type: Literal["rope", "learned_absolute", "alibi", "none"] = "rope"
    """alibi: symmetric, -slope x distance (Press et al. 2022; slopes in head order, as published for any number of heads)."""
    rotary_base: int = Field(10_000, gt=1)
    """Of the rotary frequencies; a larger one turns slower. May differ from that of the weights in checkpoint.load."""
    rope_scaling: RopeScalingConfig | None = None
    """Stretches the rotary embedding to a longer context (continued pretraining); default: not stretched."""
    max_position_embeddings: int | None = Field(None, gt=0)
    """Longest input in tokens, written into the Hugging Face config; default: data.sequence_length."""
    embedding_norm: bool = False
    """A norm between the embeddings and the first layer."""
    type_vocab_size: int = Field(0, ge=0)
    """Rows of a token-type table, of which row 0 is added to every token (DNABERT-2 has 2)."""
    token_dropout: float = Field(0.0, ge=0, lt=1)
    """ESM's rescaling: <mask> embeds to 0, all words are scaled by (1 - this) / (1 - share of <mask> in the sample); ESM has 0.12."""
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    """After the embeddings, the attention and the feed-forward."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Of the attention probabilities."""
    ffn_dropout: Literal["output", "inner"] = "output"
    """Where hidden_dropout falls in the feed-forward: on what it adds, or on its inner activation (DNABERT-2)."""
    untie_embeddings_and_output_weights: bool = True
    init_method_std: float = Field(0.02, gt=0)
    transformer_impl: Literal["auto", "transformer_engine", "torch"] = "auto"
    """auto: Transformer Engine where it is installed and CUDA is there, else torch. With data.document_attention always torch."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Number of key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def has_dropout(self) -> bool:
        """True where anything is dropped in training."""
        return self.hidden_dropout > 0 or self.attention_dropout > 0

    @property
    def is_gated(self) -> bool:
        """True where the feed-forward multiplies two projections."""
        return self.activation != "gelu"
