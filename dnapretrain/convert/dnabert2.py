"""The encoder as DNABERT-2 is published: post-norm, ALiBi, gated GELU, one concatenated projection of queries, keys and values.

Stock transformers lacks the class, so the folder holds it (convert/shipped/bert_layers.py). There are two revisions of the published
config.json: the later one names neither model_type nor architectures, and is the one we write.
"""

from __future__ import annotations

from typing import Any

from dnapretrain.config import ModelConfig, padded_vocab_size
from dnapretrain.convert.table import (
    AdapterLayers,
    ConcatenatedQKV,
    Entry,
    Family,
    GroupedQKV,
    PaddedRows,
    Same,
    check_expressible,
    check_head_widths,
    check_settings,
    check_whole_numbers,
    weight_and_bias,
)
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError

CLASS = "DNABERT-2 (BertForMaskedLM of bert_layers.py)"
NORM_EPSILON = 1e-12
"""The published head has no other, whatever config.json says of the layers."""
ONLY: dict[str, Any] = {
    "norm_position": "post",
    "normalization": "LayerNorm",
    "norm_epsilon": NORM_EPSILON,
    "activation": "geglu",
    "attention_bias": True,
    "ffn_in_bias": False,
    "ffn_out_bias": True,
    "position_embedding_type": "alibi",
    "embedding_norm": True,
    "token_dropout": 0.0,
    "untie_embeddings_and_output_weights": False,
}
"""Settings of our encoder of which the published class can express one value."""
FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": NORM_EPSILON,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
"""Fields of config.json of which our encoder can express one value; absent means this value."""
FILES = ("configuration_bert.py", "bert_layers.py")
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")
WORDS = "bert.embeddings.word_embeddings.weight"


def _check(model: ModelConfig) -> None:
    check_settings(model, CLASS, {name: (only,) for name, only in ONLY.items()})
    check_head_widths(model, CLASS)
    if model.type_vocab_size < 1:
        raise ConfigError(f"model.type_vocab_size = {model.type_vocab_size} cannot be expressed by {CLASS}, which has at least 1.")
    if model.hidden_dropout:
        check_settings(model, CLASS, {"ffn_dropout": ("inner",)})


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table; raises ConfigError for a setting that the published class cannot express. Nothing depends on `max_positions`."""
    del max_positions
    _check(model)
    hidden, vocab_size = model.hidden_size, tokenizer.vocab_size
    padded = padded_vocab_size(vocab_size)
    vocabulary, types = PaddedRows(vocab_size, padded), (model.type_vocab_size, hidden)
    return [
        Entry("embedding.word_embeddings.weight", (padded, hidden), ((WORDS, (vocab_size, hidden)),), vocabulary),
        Entry("embedding.token_type_embeddings.weight", types, (("bert.embeddings.token_type_embeddings.weight", types),), Same()),
        *weight_and_bias("embedding.norm.", "bert.embeddings.LayerNorm", hidden),
        *(entry for index in range(model.num_layers) for entry in _layer(model, index)),
        *weight_and_bias("lm_head.dense.", "cls.predictions.transform.dense", hidden, hidden),
        *weight_and_bias("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm", hidden),
        Entry("output_layer.bias", (padded,), (("cls.predictions.decoder.bias", (vocab_size,)),), vocabulary),
    ]


def _layer(model: ModelConfig, index: int) -> list[Entry]:
    hidden, ffn, heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads
    native, hf = f"encoder.layers.{index}", f"bert.encoder.layer.{index}"
    fused = ConcatenatedQKV(GroupedQKV(heads, heads, model.head_dim))
    attention = [
        Entry(f"{native}.self_attention.linear_qkv.{kind}", shape, ((f"{hf}.attention.self.Wqkv.{kind}", shape),), fused)
        for kind, shape in (("weight", (3 * hidden, hidden)), ("bias", (3 * hidden,)))
    ]
    return [
        *attention,
        *weight_and_bias(f"{native}.self_attention.linear_proj.", f"{hf}.attention.output.dense", hidden, hidden),
        *weight_and_bias(f"{native}.post_self_attn_layernorm.", f"{hf}.attention.output.LayerNorm", hidden),
        *weight_and_bias(f"{native}.mlp.linear_fc1.", f"{hf}.mlp.gated_layers", 2 * ffn, hidden, bias=False),
        *weight_and_bias(f"{native}.mlp.linear_fc2.", f"{hf}.mlp.wo", hidden, ffn),
        *weight_and_bias(f"{native}.post_mlp_layernorm.", f"{hf}.mlp.layernorm", hidden),
    ]


def aliases(model: ModelConfig) -> dict[str, str]:
    """The decoder's weight is the word table; published folders hold both."""
    del model
    return {"cls.predictions.decoder.weight": WORDS}


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json, field for field that of the published one, and AutoModelForTokenClassification beside its classes.

    It has no pad_token_id: the network does not use it, and the tokenizer's is not the 0 that BertConfig falls back to.
    """
    _check(model)
    classes = {f"AutoModelFor{task}": f"bert_layers.BertFor{task}" for task in TASKS}
    return {
        "_name_or_path": "zhihan1996/DNABERT-2-117M",
        "alibi_starting_size": max_positions,
        "attention_probs_dropout_prob": model.attention_dropout,
        "auto_map": {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel", **classes},
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.hidden_dropout,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_method_std,
        "intermediate_size": model.ffn_hidden_size,
        "layer_norm_eps": model.norm_epsilon,
        "max_position_embeddings": max_positions,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "position_embedding_type": "absolute",
        "transformers_version": "4.28.0",
        "type_vocab_size": model.type_vocab_size,
        "use_cache": True,
        "vocab_size": tokenizer.vocab_size,
    }


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """The model section of a published config.json, of either revision; raises ConfigError naming the field that our encoder cannot
    express. position_embedding_type is not read: the published class has ALiBi whatever it says."""
    check_expressible(hf, FIXED, "encoder")
    check_whole_numbers(hf, ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"), "A BertConfig")
    dropout = hf.get("hidden_dropout_prob", 0.1)
    return ModelConfig(
        kind="encoder",
        **ONLY,
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        num_attention_heads=hf["num_attention_heads"],
        ffn_hidden_size=hf["intermediate_size"],
        max_position_embeddings=hf.get("max_position_embeddings", 512),
        type_vocab_size=hf.get("type_vocab_size", 2),
        hidden_dropout=dropout,
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        ffn_dropout="inner" if dropout else "output",
        init_method_std=hf.get("initializer_range", 0.02),
    )


DNABERT2 = Family(
    "DNABERT-2",
    "fill-mask",
    entries,
    hf_config,
    model_config,
    AdapterLayers(
        lora=("Wqkv", "output.dense", "gated_layers", "wo"), ia3=("Wqkv", "wo"), ia3_feedforward=("wo",), new_in_classifiers=("pooler",)
    ),
    aliases=aliases,
    writes_aliases=True,
    shipped=FILES,
    unread=r"bert\.pooler\.dense\.(weight|bias)|bert\.embeddings\.position_ids",
)
