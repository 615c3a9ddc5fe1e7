"""The encoder as the second Nucleotide Transformers are published: ESM's names with a gated feed-forward, which stock transformers
lacks, so that the folder holds the class too (convert/shipped/modeling_esm.py).

Its folders hold tensors that the network never reads, a position table among them: a reader that adds it changes every logit.
"""

from __future__ import annotations

from typing import Any

import torch

from dnapretrain.config import ModelConfig
from dnapretrain.convert import esm
from dnapretrain.convert.table import (
    Entry,
    Family,
    NamedTensor,
    check_expressible,
    check_head_widths,
    check_linear_rope,
    check_settings,
    interpolation_factor,
    linear_rope,
)
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError

CLASS = "Nucleotide Transformer v2 (EsmForMaskedLM with a gated feed-forward)"
CAN: dict[str, tuple[Any, ...]] = {
    **esm.ALWAYS,
    "activation": ("swiglu",),
    "position_embedding_type": ("rope",),
    "rotary_base": (esm.ROTARY_BASE,),
}
FIXED = {name: value for name, value in esm.FIXED.items() if name != "auto_map"} | {"position_embedding_type": "rotary"}
FILES = ("esm_config.py", "modeling_esm.py")
TASKS = ("MaskedLM", "TokenClassification", "SequenceClassification")


def _check(model: ModelConfig) -> None:
    check_settings(model, CLASS, CAN)
    check_linear_rope(model, CLASS)
    check_head_widths(model, CLASS)
    if model.ffn_in_bias != model.ffn_out_bias:
        raise ConfigError(
            f"model.ffn_in_bias = {model.ffn_in_bias} and ffn_out_bias = {model.ffn_out_bias} cannot be expressed by {CLASS}, "
            "which has one setting for both. Such a model trains and evaluates, but has no Hugging Face folder."
        )


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table; raises ConfigError for a setting that the published class cannot express."""
    _check(model)
    return esm.esm_entries(model, max_positions, tokenizer)


def extra(model: ModelConfig, max_positions: int, tokenizer: Tokenizer, dtype: torch.dtype) -> list[NamedTensor]:
    """ESM's, and the position table that published folders hold unused, zero."""
    rows = esm.num_position_rows(max_positions, tokenizer.pad_id)
    table = (esm.POSITION_TABLE, torch.zeros(rows, model.hidden_size, dtype=dtype))
    return [table, *esm.extra(model, max_positions, tokenizer, dtype)]


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json, with the fields and the names of files and classes of the published one."""
    _check(model)
    classes = {f"AutoModelFor{task}": f"modeling_esm.EsmFor{task}" for task in TASKS}
    return {
        "architectures": [f"EsmFor{task}" for task in TASKS],
        "auto_map": {"AutoConfig": "esm_config.EsmConfig", "AutoModel": "modeling_esm.EsmModel", **classes},
        **esm.esm_config(model, max_positions, tokenizer),
        "add_bias_fnn": model.ffn_in_bias,
        **({"seq_len_interpolation_factor": interpolation_factor(model)} if model.rope_scaling else {}),
    }


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """The model section of a published config.json; raises ConfigError naming the field that our encoder cannot express."""
    check_expressible(hf, FIXED, "encoder")
    bias = bool(hf.get("add_bias_fnn", True))
    return esm.esm_model_config(hf, {"activation": "swiglu", "ffn_in_bias": bias, "ffn_out_bias": bias, "rope_scaling": linear_rope(hf)})


NT_V2 = Family(
    "NT-v2",
    "fill-mask",
    entries,
    hf_config,
    model_config,
    esm.ADAPTER_LAYERS,
    token_ids=("pad_token_id", "mask_token_id"),
    extra=extra,
    aliases=esm.aliases,
    shipped=FILES,
    tokenizers=("nt_v2",),
    spellings=esm.SPELLINGS,
    unread=esm.UNREAD,
)
