"""The encoder as AIDO.DNA is published: model_type rnabert, pre-norm LayerNorm, rotary positions, SwiGLU, a bias on every linear layer.

Stock transformers lacks the class, so the folder holds it (convert/shipped/modeling_rnabert.py).
"""

from __future__ import annotations

from typing import Any

from dnapretrain.config import ModelConfig, padded_vocab_size
from dnapretrain.convert.table import (
    AdapterLayers,
    Entry,
    Family,
    PaddedRows,
    StackedRows,
    check_expressible,
    check_head_widths,
    check_linear_rope,
    check_settings,
    check_whole_numbers,
    interpolation_factor,
    linear_rope,
    separate_qkv,
    weight_and_bias,
)
from dnapretrain.data.tokens.tokenizers import Tokenizer

CLASS = "AIDO.DNA (RNABertForMaskedLM)"
ROTARY_BASE = 10_000
"""The published class knows no other."""
SPECIALS = 2
"""[CLS] and [SEP]: max_position_embeddings of a published config.json counts bases, not tokens."""
ONLY: dict[str, Any] = {
    "norm_position": "pre",
    "normalization": "LayerNorm",
    "activation": "swiglu",
    "attention_bias": True,
    "ffn_in_bias": True,
    "ffn_out_bias": True,
    "position_embedding_type": "rope",
    "rotary_base": ROTARY_BASE,
    "embedding_norm": False,
    "type_vocab_size": 0,
    "token_dropout": 0.0,
    "ffn_dropout": "output",
}
"""Settings of our encoder of which the published class can express one value."""
REQUIRED: dict[str, Any] = {"normalization_type": "LayerNorm", "hidden_act": "swiglu", "add_linear_bias": True}
"""Fields of config.json whose default in the published class is another one than AIDO.DNA's, or not known: they must be given."""
FIXED: dict[str, Any] = {
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
"""Fields of config.json of which our encoder can express one value; absent means this value."""
FILES = ("configuration_rnabert.py", "modeling_rnabert.py")
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER, DECODER_BIAS, BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias"


def _check(model: ModelConfig) -> None:
    check_settings(model, CLASS, {name: (only,) for name, only in ONLY.items()})
    check_linear_rope(model, CLASS)
    check_head_widths(model, CLASS)


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table; raises ConfigError for a setting that the published class cannot express. Nothing depends on `max_positions`."""
    del max_positions
    _check(model)
    hidden, vocab_size = model.hidden_size, tokenizer.vocab_size
    padded = padded_vocab_size(vocab_size)
    vocabulary, matrix = PaddedRows(vocab_size, padded), (vocab_size, hidden)
    untied = [Entry("output_layer.weight", (padded, hidden), ((DECODER, matrix),), vocabulary)]
    return [
        Entry("embedding.word_embeddings.weight", (padded, hidden), ((WORDS, matrix),), vocabulary),
        *(entry for index in range(model.num_layers) for entry in _layer(model, index)),
        *weight_and_bias("encoder.final_layernorm.", "bert.encoder.ln", hidden),
        *weight_and_bias("lm_head.dense.", "cls.predictions.transform.dense", hidden, hidden),
        *weight_and_bias("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm", hidden),
        *(untied if model.untie_embeddings_and_output_weights else []),
        Entry("output_layer.bias", (padded,), ((BIAS, (vocab_size,)),), vocabulary),
    ]


def _layer(model: ModelConfig, index: int) -> list[Entry]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    native, hf = f"encoder.layers.{index}", f"bert.encoder.layer.{index}"
    gate_and_up = [
        Entry(
            f"{native}.mlp.linear_fc1.{kind}",
            (2 * ffn, *columns),
            tuple((f"{hf}.mlp.{part}_proj.{kind}", (ffn, *columns)) for part in ("gate", "up")),
            StackedRows(2),
        )
        for kind, columns in (("weight", (hidden,)), ("bias", ()))
    ]
    return [
        *weight_and_bias(f"{native}.self_attention.linear_qkv.layer_norm_", f"{hf}.attention.ln", hidden),
        *separate_qkv(model, f"{native}.self_attention.linear_qkv.", f"{hf}.attention.self."),
        *weight_and_bias(f"{native}.self_attention.linear_proj.", f"{hf}.attention.output.dense", hidden, hidden),
        *weight_and_bias(f"{native}.mlp.linear_fc1.layer_norm_", f"{hf}.ln", hidden),
        *gate_and_up,
        *weight_and_bias(f"{native}.mlp.linear_fc2.", f"{hf}.mlp.down_proj", hidden, ffn),
    ]


def aliases(model: ModelConfig) -> dict[str, str]:
    """The bias goes by two names, and so does the word table where it is the decoder's weight too."""
    tied = {} if model.untie_embeddings_and_output_weights else {DECODER: WORDS}
    return {**tied, DECODER_BIAS: BIAS}


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json, field for field that of the published one, and auto_map, for the published folder holds no code.

    tie_word_embeddings, true where it is left out, is written only for a model that is not tied.
    """
    _check(model)
    classes = {f"AutoModelFor{task}": f"modeling_rnabert.RNABertFor{task}" for task in TASKS}
    return {
        "add_linear_bias": True,
        "architectures": ["RNABertForMaskedLM"],
        "attention_probs_dropout_prob": model.attention_dropout,
        "auto_map": {"AutoConfig": "configuration_rnabert.RNABertConfig", "AutoModel": "modeling_rnabert.RNABertModel", **classes},
        "hidden_act": "swiglu",
        "hidden_dropout_prob": model.hidden_dropout,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_method_std,
        "intermediate_size": model.ffn_hidden_size,
        "layer_norm_eps": model.norm_epsilon,
        "max_position_embeddings": max_positions - SPECIALS,
        "model_type": "rnabert",
        "normalization_type": "LayerNorm",
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "pad_token_id": tokenizer.pad_id,
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "seq_len_interpolation_factor": interpolation_factor(model),
        **({"tie_word_embeddings": False} if model.untie_embeddings_and_output_weights else {}),
        "tokenizer_type": "BertWordPieceLowerCase",
        "transformers_version": "4.38.0.dev0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": tokenizer.vocab_size,
    }


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """The model section of a published config.json; raises ConfigError naming the field that our encoder cannot express."""
    check_expressible({field: hf.get(field, "left out") for field in REQUIRED}, REQUIRED, "encoder of AIDO.DNA")
    check_expressible(hf, FIXED, "encoder")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
    check_whole_numbers(hf, sizes, "An RNABertConfig")
    return ModelConfig(
        kind="encoder",
        **ONLY,
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        num_attention_heads=hf["num_attention_heads"],
        ffn_hidden_size=hf["intermediate_size"],
        norm_epsilon=hf.get("layer_norm_eps", 1e-5),
        rope_scaling=linear_rope(hf),
        max_position_embeddings=hf["max_position_embeddings"] + SPECIALS,
        hidden_dropout=hf.get("hidden_dropout_prob", 0.0),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.0),
        untie_embeddings_and_output_weights=not hf.get("tie_word_embeddings", True),
        init_method_std=hf.get("initializer_range", 0.02),
    )


AIDO_DNA = Family(
    "AIDO.DNA",
    "fill-mask",
    entries,
    hf_config,
    model_config,
    AdapterLayers(
        lora=("query", "key", "value", "output.dense", "gate_proj", "up_proj", "down_proj"),
        ia3=("key", "value", "down_proj"),
        ia3_feedforward=("down_proj",),
    ),
    token_ids=("pad_token_id",),
    aliases=aliases,
    writes_aliases=True,
    shipped=FILES,
    tokenizers=("aido_dna",),
    unread=r"bert\.pooler\.dense\.(weight|bias)|bert\..*\.inv_freq|bert\.embeddings\.position_ids",
)
