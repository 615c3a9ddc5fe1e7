"""The encoder as `transformers.EsmForMaskedLM`, the class that the first Nucleotide Transformers use too.

Both rotate the two halves of a head; ESM scales queries before that, which changes nothing. Positions count from
pad_token_id + 1, so config.json's max_position_embeddings is that much larger than the longest input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dnapretrain.config import ModelConfig, padded_vocab_size
from dnapretrain.convert.table import (
    AdapterLayers,
    Entry,
    Family,
    NamedTensor,
    PaddedRows,
    Same,
    check_expressible,
    check_head_widths,
    check_settings,
    check_whole_numbers,
    separate_qkv,
    weight_and_bias,
)
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.rotary import inverse_frequencies

ROTARY_BASE = 10_000
"""Of the rotary embedding: transformers before 5 knows no other."""
TOKEN_DROPOUT = 0.15 * 0.8
"""What `token_dropout: true` means in every version of transformers."""
POSITION_TABLE = "esm.embeddings.position_embeddings.weight"
CLASS = "EsmForMaskedLM"
POSITIONS = {"rope": "rotary", "learned_absolute": "absolute"}
ALWAYS: dict[str, tuple[Any, ...]] = {
    "norm_position": ("pre",),
    "normalization": ("LayerNorm",),
    "attention_bias": (True,),
    "type_vocab_size": (0,),
    "ffn_dropout": ("output",),
    "token_dropout": (0.0, TOKEN_DROPOUT),
}
"""Settings of our encoder and the values of them that ESM's classes express, the published gated one of NT-v2 too."""
ONLY: dict[str, Any] = {"activation": "gelu", "ffn_in_bias": True, "ffn_out_bias": True}
"""Those of which the class of transformers can express one value."""
FIXED: dict[str, Any] = {
    "rope_theta": float(ROTARY_BASE),
    "is_folding_model": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "auto_map": None,
    "quantization_config": None,
}
"""Fields of config.json of which our encoder can express one value; absent means this value."""


def _check(model: ModelConfig) -> None:
    """Raise ConfigError naming the first setting that EsmForMaskedLM cannot express."""
    only = {name: (value,) for name, value in ONLY.items()}
    check_settings(model, CLASS, {**ALWAYS, **only, "position_embedding_type": tuple(POSITIONS), "rope_scaling": (None,)})
    if model.position_embedding_type == "rope":
        check_settings(model, CLASS, {"rotary_base": (ROTARY_BASE,)})
    check_head_widths(model, CLASS)


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table of an encoder; raises ConfigError for a setting that EsmForMaskedLM cannot express."""
    _check(model)
    return esm_entries(model, max_positions, tokenizer)


def esm_entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table of an encoder under ESM's names, gated or not: a gated feed-forward has one matrix, activated rows first, as ours."""
    hidden, vocab_size = model.hidden_size, tokenizer.vocab_size
    padded = padded_vocab_size(vocab_size)
    vocabulary = PaddedRows(vocab_size, padded)
    words = ("esm.embeddings.word_embeddings.weight", (vocab_size, hidden))
    table = [Entry("embedding.word_embeddings.weight", (padded, hidden), (words,), vocabulary)]
    if model.position_embedding_type == "learned_absolute":
        positions = (POSITION_TABLE, (num_position_rows(max_positions, tokenizer.pad_id), hidden))
        table.append(Entry("embedding.position_embeddings.weight", positions[1], (positions,), Same()))
    if model.embedding_norm:
        table += weight_and_bias("embedding.norm.", "esm.embeddings.layer_norm", hidden)
    for index in range(model.num_layers):
        table += _layer(model, index)
    table += weight_and_bias("encoder.final_layernorm.", "esm.encoder.emb_layer_norm_after", hidden)
    table += weight_and_bias("lm_head.dense.", "lm_head.dense", hidden, hidden)
    table += weight_and_bias("lm_head.layer_norm.", "lm_head.layer_norm", hidden)
    if model.untie_embeddings_and_output_weights:
        table.append(Entry("output_layer.weight", (padded, hidden), (("lm_head.decoder.weight", (vocab_size, hidden)),), vocabulary))
    table.append(Entry("output_layer.bias", (padded,), (("lm_head.bias", (vocab_size,)),), vocabulary))
    return table


def _layer(model: ModelConfig, index: int) -> list[Entry]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    native, hf = f"encoder.layers.{index}", f"esm.encoder.layer.{index}"
    inner = (2 if model.is_gated else 1) * ffn
    return [
        *weight_and_bias(f"{native}.self_attention.linear_qkv.layer_norm_", f"{hf}.attention.LayerNorm", hidden),
        *separate_qkv(model, f"{native}.self_attention.linear_qkv.", f"{hf}.attention.self."),
        *weight_and_bias(f"{native}.self_attention.linear_proj.", f"{hf}.attention.output.dense", hidden, hidden),
        *weight_and_bias(f"{native}.mlp.linear_fc1.layer_norm_", f"{hf}.LayerNorm", hidden),
        *weight_and_bias(f"{native}.mlp.linear_fc1.", f"{hf}.intermediate.dense", inner, hidden, bias=model.ffn_in_bias),
        *weight_and_bias(f"{native}.mlp.linear_fc2.", f"{hf}.output.dense", hidden, ffn, bias=model.ffn_out_bias),
    ]


def num_position_rows(max_positions: int, pad_id: int) -> int:
    """Rows of the position table, those up to the padding id included, which no token reads."""
    return max_positions + pad_id + 1


def extra(model: ModelConfig, max_positions: int, tokenizer: Tokenizer, dtype: torch.dtype) -> list[NamedTensor]:
    """ESM's contact head, zero, for no masked-LM training touches it; the rotary frequencies in fp32, which transformers reads back.

    The frequencies go by the per-layer names that every version of transformers knows.
    """
    del max_positions, tokenizer
    tensors = [
        ("esm.contact_head.regression.weight", torch.zeros(1, model.num_layers * model.num_attention_heads, dtype=dtype)),
        ("esm.contact_head.regression.bias", torch.zeros(1, dtype=dtype)),
    ]
    if model.position_embedding_type == "rope":
        frequencies = inverse_frequencies(model)
        names = (f"esm.encoder.layer.{index}.attention.self.rotary_embeddings.inv_freq" for index in range(model.num_layers))
        tensors += [(name, frequencies) for name in names]
    return tensors


UNREAD = (
    r"esm\.contact_head\.regression\.(weight|bias)|esm\..*rotary_embeddings\.inv_freq|esm\.embeddings\.position_(embeddings\.weight|ids)"
)
"""Contact head, rotary frequencies, numbers of positions, and the position table that some rotary models carry unused."""
SPELLINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""What transformers 5 calls the norms of the layers when it saves an ESM model."""


def aliases(model: ModelConfig) -> dict[str, str]:
    """pytorch_model.bin files hold the decoder of a tied model apart."""
    return {} if model.untie_embeddings_and_output_weights else {"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight"}


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json (without the dtype of the weights), readable by transformers 4.x and 5.x."""
    _check(model)
    return {"architectures": ["EsmForMaskedLM"], **esm_config(model, max_positions, tokenizer), "rope_theta": float(ROTARY_BASE)}


def esm_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of any encoder under ESM's names.

    Every field that has a default of its own in EsmConfig is given: tie_word_embeddings, left out, would tie.
    """
    return {
        "model_type": "esm",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": num_position_rows(max_positions, tokenizer.pad_id),
        "position_embedding_type": POSITIONS[model.position_embedding_type],
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
    return esm_model_config(hf, ONLY)


def esm_model_config(hf: dict[str, Any], feed_forward: Mapping[str, Any]) -> ModelConfig:
    """The model section, activation and biases of the feed-forward given. What a folder leaves out has the default of EsmConfig, the
    same in transformers 4.x and 5.x."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "pad_token_id")
    check_whole_numbers(hf, sizes, "An EsmConfig")
    positions = hf.get("position_embedding_type", "absolute")
    ours = {theirs: ours for ours, theirs in POSITIONS.items()}
    if positions not in ours:
        raise ConfigError(
            f"config.json: position_embedding_type = {positions!r} cannot be expressed by our encoder, which has {', '.join(ours)}."
        )
    return ModelConfig(
        kind="encoder",
        norm_position="pre",
        normalization="LayerNorm",
        attention_bias=True,
        **feed_forward,
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        num_attention_heads=hf["num_attention_heads"],
        ffn_hidden_size=hf["intermediate_size"],
        norm_epsilon=hf.get("layer_norm_eps", 1e-12),
        position_embedding_type=ours[positions],
        max_position_embeddings=hf.get("max_position_embeddings", 1026) - num_position_rows(0, hf["pad_token_id"]),
        embedding_norm=bool(hf.get("emb_layer_norm_before")),
        token_dropout=TOKEN_DROPOUT if hf.get("token_dropout") else 0.0,
        hidden_dropout=hf.get("hidden_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        untie_embeddings_and_output_weights=not hf.get("tie_word_embeddings", True),
        init_method_std=hf.get("initializer_range", 0.02),
    )


ADAPTER_LAYERS = AdapterLayers(
    lora=("query", "key", "value", "intermediate.dense", "output.dense"),
    ia3=("key", "value", "output.dense"),
    ia3_feedforward=("output.dense",),
)

ESM = Family(
    "ESM",
    "fill-mask",
    entries,
    hf_config,
    model_config,
    ADAPTER_LAYERS,
    token_ids=("pad_token_id", "mask_token_id"),
    extra=extra,
    aliases=aliases,
    tokenizers=("nt_v1",),
    spellings=SPELLINGS,
    unread=UNREAD,
)
