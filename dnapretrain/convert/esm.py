"""The encoder as `transformers.EsmForMaskedLM`, the class that the first Nucleotide Transformers use too.

Both rotate the two halves of a head; ESM scales queries before that, which changes nothing. Positions count from
pad_token_id + 1, so config.json's max_position_embeddings is that much larger than the longest input.
"""

from __future__ import annotations

from typing import Any

import torch

from dnapretrain.config import ModelConfig, padded_vocab_size
from dnapretrain.convert.table import Entry, Family, GroupedQKV, NamedTensor, PaddedRows, Same, check_expressible, check_whole_numbers
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError

ROTARY_BASE = 10_000
"""Of the rotary embedding: transformers before 5 knows no other."""
TOKEN_DROPOUT = 0.15 * 0.8
"""What `token_dropout: true` means in every version of transformers."""
ONLY: dict[str, Any] = {
    "norm_position": "pre",
    "normalization": "LayerNorm",
    "activation": "gelu",
    "attention_bias": True,
    "ffn_in_bias": True,
    "ffn_out_bias": True,
    "type_vocab_size": 0,
    "ffn_dropout": "output",
}
"""Settings of our encoder of which EsmForMaskedLM can express one value."""
POSITIONS = {"rope": "rotary", "learned_absolute": "absolute"}
FIXED: dict[str, Any] = {
    "rope_theta": float(ROTARY_BASE),
    "is_folding_model": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "auto_map": None,
    "quantization_config": None,
}
"""Fields of config.json of which our encoder can express one value; absent means this value."""


def check_settings(model: ModelConfig) -> None:
    """Raise ConfigError naming the first setting that EsmForMaskedLM cannot express."""
    for name, only in ONLY.items():
        _check(name, getattr(model, name), (only,))
    _check("position_embedding_type", model.position_embedding_type, tuple(POSITIONS))
    if model.position_embedding_type == "rope":
        _check("rotary_base", model.rotary_base, (ROTARY_BASE,))
    _check("token_dropout", model.token_dropout, (0.0, TOKEN_DROPOUT))
    _check("num_query_groups", model.query_groups, (model.num_attention_heads,))
    _check("num_attention_heads x kv_channels", model.num_attention_heads * model.head_dim, (model.hidden_size,))


def _check(name: str, value: Any, can: tuple[Any, ...]) -> None:
    if value not in can:
        raise ConfigError(
            f"model.{name} = {value} cannot be expressed by EsmForMaskedLM, which has {' or '.join(map(str, can))}. "
            "Such a model trains and evaluates, but has no Hugging Face folder."
        )


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table of an encoder; raises ConfigError for a setting that EsmForMaskedLM cannot express."""
    check_settings(model)
    hidden, vocab_size = model.hidden_size, tokenizer.vocab_size
    padded = padded_vocab_size(vocab_size)
    vocabulary = PaddedRows(vocab_size, padded)
    words = ("esm.embeddings.word_embeddings.weight", (vocab_size, hidden))
    table = [Entry("embedding.word_embeddings.weight", (padded, hidden), (words,), vocabulary)]
    if model.position_embedding_type == "learned_absolute":
        positions = ("esm.embeddings.position_embeddings.weight", (_num_rows(max_positions, tokenizer.pad_id), hidden))
        table.append(Entry("embedding.position_embeddings.weight", positions[1], (positions,), Same()))
    if model.embedding_norm:
        table += _weight_and_bias("embedding.norm.", "esm.embeddings.layer_norm", hidden)
    for index in range(model.num_layers):
        table += _layer(model, index)
    table += _weight_and_bias("encoder.final_layernorm.", "esm.encoder.emb_layer_norm_after", hidden)
    table += _weight_and_bias("lm_head.dense.", "lm_head.dense", hidden, hidden)
    table += _weight_and_bias("lm_head.layer_norm.", "lm_head.layer_norm", hidden)
    if model.untie_embeddings_and_output_weights:
        table.append(Entry("output_layer.weight", (padded, hidden), (("lm_head.decoder.weight", (vocab_size, hidden)),), vocabulary))
    table.append(Entry("output_layer.bias", (padded,), (("lm_head.bias", (vocab_size,)),), vocabulary))
    return table


def _layer(model: ModelConfig, index: int) -> list[Entry]:
    hidden, ffn, heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads
    native, hf = f"encoder.layers.{index}", f"esm.encoder.layer.{index}"
    qkv = GroupedQKV(heads, heads, model.head_dim)
    attention = [
        Entry(
            f"{native}.self_attention.linear_qkv.{kind}",
            (3 * hidden, *columns),
            tuple((f"{hf}.attention.self.{part}.{kind}", (hidden, *columns)) for part in ("query", "key", "value")),
            qkv,
        )
        for kind, columns in (("weight", (hidden,)), ("bias", ()))
    ]
    return [
        *_weight_and_bias(f"{native}.self_attention.linear_qkv.layer_norm_", f"{hf}.attention.LayerNorm", hidden),
        *attention,
        *_weight_and_bias(f"{native}.self_attention.linear_proj.", f"{hf}.attention.output.dense", hidden, hidden),
        *_weight_and_bias(f"{native}.mlp.linear_fc1.layer_norm_", f"{hf}.LayerNorm", hidden),
        *_weight_and_bias(f"{native}.mlp.linear_fc1.", f"{hf}.intermediate.dense", ffn, hidden),
        *_weight_and_bias(f"{native}.mlp.linear_fc2.", f"{hf}.output.dense", hidden, ffn),
    ]


def _weight_and_bias(native: str, hf: str, *shape: int) -> list[Entry]:
    """A norm's or linear layer's two tensors; `shape` is that of the weight, and the bias is as long as its first axis."""
    return [
        Entry(f"{native}weight", shape, ((f"{hf}.weight", shape),), Same()),
        Entry(f"{native}bias", shape[:1], ((f"{hf}.bias", shape[:1]),), Same()),
    ]


def _num_rows(max_positions: int, pad_id: int) -> int:
    """Rows of the position table, those up to the padding id included, which no token reads."""
    return max_positions + pad_id + 1


def extra(model: ModelConfig, dtype: torch.dtype) -> list[NamedTensor]:
    """ESM's contact head, zero, for no masked-LM training touches it; the rotary frequencies in fp32, which transformers reads back.

    The frequencies go by the per-layer names that every version of transformers knows.
    """
    tensors = [
        ("esm.contact_head.regression.weight", torch.zeros(1, model.num_layers * model.num_attention_heads, dtype=dtype)),
        ("esm.contact_head.regression.bias", torch.zeros(1, dtype=dtype)),
    ]
    if model.position_embedding_type == "rope":
        frequencies = 1.0 / (ROTARY_BASE ** (torch.arange(0, model.head_dim, 2).float() / model.head_dim))
        names = (f"esm.encoder.layer.{index}.attention.self.rotary_embeddings.inv_freq" for index in range(model.num_layers))
        tensors += [(name, frequencies) for name in names]
    return tensors


UNREAD = r"esm\.contact_head\.regression\.(weight|bias)|esm\..*rotary_embeddings\.inv_freq|esm\.embeddings\.position_embeddings\.weight"
"""Contact head, rotary frequencies, and the position table that some rotary models carry unused."""
SPELLINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""What transformers 5 calls the norms of the layers when it saves an ESM model."""


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json (without the dtype of the weights), readable by transformers 4.x and 5.x.

    Every field that has a default of its own in EsmConfig is given: tie_word_embeddings, left out, would tie.
    """
    check_settings(model)
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": _num_rows(max_positions, tokenizer.pad_id),
        "position_embedding_type": POSITIONS[model.position_embedding_type],
        "rope_theta": float(ROTARY_BASE),
        "emb_layer_norm_before": model.embedding_norm,
        "token_dropout": model.token_dropout > 0,
        "is_folding_model": False,
        "esmfold_config": None,
        "vocab_list": None,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "mask_token_id": tokenizer.mask_id,
        "use_cache": False,
    }


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """The model section of an EsmConfig; raises ConfigError naming the field that our encoder cannot express."""
    check_expressible(hf, FIXED, "encoder")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "pad_token_id")
    check_whole_numbers(hf, sizes, "An EsmConfig")
    positions = hf.get("position_embedding_type", "absolute")
    ours = {theirs: ours for ours, theirs in POSITIONS.items()}
    if positions not in ours:
        raise ConfigError(
            f"config.json: position_embedding_type = {positions!r} cannot be expressed by our encoder, which has {', '.join(ours)}."
        )
    # What a folder leaves out has the default of EsmConfig, the same in transformers 4.x and 5.x.
    return ModelConfig(
        kind="encoder",
        **ONLY,
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        num_attention_heads=hf["num_attention_heads"],
        ffn_hidden_size=hf["intermediate_size"],
        norm_epsilon=hf.get("layer_norm_eps", 1e-12),
        position_embedding_type=ours[positions],
        max_position_embeddings=hf.get("max_position_embeddings", 1026) - _num_rows(0, hf["pad_token_id"]),
        embedding_norm=bool(hf.get("emb_layer_norm_before")),
        token_dropout=TOKEN_DROPOUT if hf.get("token_dropout") else 0.0,
        hidden_dropout=hf.get("hidden_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        untie_embeddings_and_output_weights=not hf.get("tie_word_embeddings", True),
        init_method_std=hf.get("initializer_range", 0.02),
    )


ESM = Family(
    "esm",
    "fill-mask",
    entries,
    hf_config,
    model_config,
    token_ids=("pad_token_id", "mask_token_id"),
    extra=extra,
    spellings=SPELLINGS,
    unread=UNREAD,
)
