"""Rules between the settings of the network and its objective."""

from __future__ import annotations

from dnapretrain.config import RunConfig
from dnapretrain.config_rules.shared import sample_lengths
from dnapretrain.errors import ConfigError

DECODER_HAS = {
    "normalization": "RMSNorm",
    "norm_position": "pre",
    "activation": "swiglu",
    "attention_bias": False,
    "ffn_in_bias": False,
    "ffn_out_bias": False,
    "position_embedding_type": "rope",
    "embedding_norm": False,
    "type_vocab_size": 0,
    "token_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "ffn_dropout": "output",
}
"""Settings that only encoders can choose, and what a decoder has."""


def check_network(config: RunConfig) -> None:
    """Raise ConfigError for a network that cannot be built, or not learn by the objective."""
    _check_rope_scaling(config)
    _check_objective(config)


def _check_rope_scaling(config: RunConfig) -> None:
    model = config.model
    if model.rope_scaling and model.position_embedding_type != "rope":
        raise ConfigError(
            f"model.rope_scaling is for position_embedding_type=rope, not {model.position_embedding_type}. Remove it; learned positions "
            "cannot be stretched, and ALiBi needs nothing."
        )


def _check_objective(config: RunConfig) -> None:
    model, masking, tokenizer = config.model, config.data.masking, config.tokenizer
    if config.train.loss == "nucleotide" and (tokenizer.is_variable or tokenizer.bases_per_token == 1):
        has = "one base per token" if tokenizer.bases_per_token == 1 else "tokens of different lengths"
        raise ConfigError(
            f"train.loss=nucleotide counts the bases of k-mers; tokenizer.kind={tokenizer.kind} has {has}. "
            "Set train.loss=token, or tokenizer.kind=kmer (k of at least 2) or generator."
        )
    if model.kind == "decoder":
        for name, only in DECODER_HAS.items():
            if getattr(model, name) != only:
                raise ConfigError(f"model.{name} = {getattr(model, name)} is for model.kind=encoder; a decoder has {only}. Remove it.")
        if masking.mlm_probability:
            raise ConfigError(
                f"data.masking.mlm_probability = {masking.mlm_probability} is for model.kind=encoder; a decoder predicts the next token. "
                "Set it to 0, or change model.kind."
            )
        if masking.span_length > 1:
            raise ConfigError(f"data.masking.span_length = {masking.span_length} is for model.kind=encoder. Remove it.")
        return
    if not masking.mlm_probability:
        raise ConfigError("model.kind=encoder learns by masking. Set data.masking.mlm_probability, usually 0.15.")
    if masking.mask_replace_prob + masking.random_replace_prob > 1:
        raise ConfigError(
            f"data.masking.mask_replace_prob = {masking.mask_replace_prob} and random_replace_prob = {masking.random_replace_prob} are "
            "shares of the chosen tokens and exceed 1 together. Lower one."
        )
    for name, length in sample_lengths(config):
        if masking.span_length > length:
            raise ConfigError(f"data.masking.span_length = {masking.span_length} exceeds {name} = {length}. Lower it.")
    if model.ffn_dropout == "inner" and not model.hidden_dropout:
        raise ConfigError("model.ffn_dropout=inner says where model.hidden_dropout falls, which is 0. Set one of the two.")
