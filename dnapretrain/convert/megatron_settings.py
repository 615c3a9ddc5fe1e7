"""What a checkpoint of Megatron-LM or Megatron-Bridge says of its model, in our settings.

Megatron-LM keeps its command line (`args`, an argparse.Namespace) in common.pt, Megatron-Bridge its config in run_config.yaml.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import yaml

from dnapretrain.convert.safe_pickle import load_torch
from dnapretrain.errors import CheckpointError, ConfigError

COMMON_FILE, BRIDGE_FILE = "common.pt", "run_config.yaml"
SAME = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "kv_channels": "kv_channels",
    "normalization": "normalization",
    "norm_epsilon": "norm_epsilon",
    "layernorm_epsilon": "norm_epsilon",
    "rotary_base": "rotary_base",
    "init_method_std": "init_method_std",
    "position_embedding_type": "position_embedding_type",
    "untie_embeddings_and_output_weights": "untie_embeddings_and_output_weights",
}
"""Their name -> ours, of settings with the same values. The second epsilon is that of a TransformerConfig."""
ONLY: dict[str, tuple[Any, ...]] = {
    "rotary_percent": (None, 1.0),
    "rotary_interleaved": (None, False),
    "qk_layernorm": (None, False),
    "multi_latent_attention": (None, False),
    "num_experts": (None, 0),
    "num_moe_experts": (None, 0),
    "mtp_num_layers": (None, 0),
    "apply_layernorm_1p": (None, False),
    "layernorm_zero_centered_gamma": (None, False),
    "apply_residual_connection_post_layernorm": (None, False),
    "add_qkv_bias": (None, False),
    "quick_geglu": (None, False),
    "squared_relu": (None, False),
    "openai_gelu": (None, False),
    "window_size": (None,),
    "softmax_type": (None, "vanilla"),
}
"""Settings of which our models have one value; None where they are not said."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Their settings by their names; empty where the folder says nothing. Nothing of theirs is run. Raises CheckpointError."""
    try:
        if (folder / BRIDGE_FILE).is_file():
            content = yaml.safe_load((folder / BRIDGE_FILE).read_text())
            settings = content.get("model") if isinstance(content, dict) else None
            return {name: value for name, value in (settings or {}).items() if not isinstance(value, (dict, list))}
        if (folder / COMMON_FILE).is_file():
            content = load_torch(folder / COMMON_FILE)
            args = content.get("args") if isinstance(content, dict) else None
            return dict(vars(args)) if isinstance(args, Namespace) else {}
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
        yaml.YAMLError,
    ) as error:
        raise CheckpointError(f"the settings in {folder} cannot be read: {' '.join(str(error).split())[:300]}.") from None
    return {}


def model_settings(theirs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Keys of our section `model` that `theirs` decide, for a decoder or an encoder; raises ConfigError for what our models have not."""
    for name, values in ONLY.items():
        if theirs.get(name) not in values:
            raise ConfigError(f"the checkpoint has {name} = {theirs[name]!r}, which our models have not. It cannot be imported.")
    found: dict[str, Any] = {"kind": kind}
    found |= {ours: theirs[name] for name, ours in SAME.items() if theirs.get(name) is not None}
    if "share_embeddings_and_output_weights" in theirs:  # Megatron-Bridge
        found["untie_embeddings_and_output_weights"] = not theirs["share_embeddings_and_output_weights"]
    if theirs.get("group_query_attention", True) and theirs.get("num_query_groups"):
        found["num_query_groups"] = theirs["num_query_groups"]
    if positions := theirs.get("max_position_embeddings") or theirs.get("seq_length"):
        found["max_position_embeddings"] = positions
    is_gated = theirs.get("swiglu", theirs.get("gated_linear_unit"))
    if is_gated is not None:
        found["activation"] = "swiglu" if is_gated else "gelu"
    if (biased := theirs.get("add_bias_linear")) is not None:
        found |= {"attention_bias": biased, "ffn_in_bias": biased, "ffn_out_bias": biased}
    if scaling := _rope_scaling(theirs):
        found["rope_scaling"] = scaling
    if kind == "encoder":
        found |= {name: theirs[name] for name in ("hidden_dropout", "attention_dropout") if theirs.get(name) is not None}
    return found


def _rope_scaling(theirs: dict[str, Any]) -> dict[str, Any] | None:
    factor = theirs.get("rotary_seq_len_interpolation_factor") or theirs.get("seq_len_interpolation_factor")
    if factor and factor != 1:
        return {"rope_type": "linear", "factor": float(factor)}
    if theirs.get("use_rope_scaling") or theirs.get("rope_scaling"):  # Megatron-core has one set of bounds, those of Llama 3.1
        return {"rope_type": "llama3", "factor": float(theirs.get("rope_scaling_factor") or 8.0), "original_max_position_embeddings": 8192}
    return None


def merged(recipe: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Section `model` of a recipe and what the checkpoint says of it; raises ConfigError naming a key in which they differ."""
    for name, value in found.items():
        if recipe.get(name) is not None and recipe[name] != value:
            raise ConfigError(
                f"the checkpoint has {name} = {value!r}, the recipe model.{name} = {recipe[name]!r}. Use the recipe of its model."
            )
    return {**recipe, **found}
