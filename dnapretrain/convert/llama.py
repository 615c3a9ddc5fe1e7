"""The GPT decoder as `transformers.LlamaForCausalLM`.

Both rotate the two halves of a head, so queries and keys need no permutation.
"""

from __future__ import annotations

import math
from typing import Any

from dnapretrain.config import ROPE_SCALING, ModelConfig, RopeScalingConfig, padded_vocab_size
from dnapretrain.convert.table import (
    AdapterLayers,
    Entry,
    Family,
    GroupedQKV,
    PaddedRows,
    Same,
    StackedRows,
    check_expressible,
    check_whole_numbers,
)
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError

FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
"""Fields of LlamaConfig that our decoder expresses with one value only; absent means this value."""


def entries(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> list[Entry]:
    """The table of a decoder; no tensor of it depends on `max_positions`."""
    hidden, vocab_size = model.hidden_size, tokenizer.vocab_size
    padded = padded_vocab_size(vocab_size)
    vocabulary = PaddedRows(vocab_size, padded)
    table = [
        Entry("embedding.word_embeddings.weight", (padded, hidden), (("model.embed_tokens.weight", (vocab_size, hidden)),), vocabulary)
    ]
    for index in range(model.num_layers):
        table += _layer(model, index)
    table.append(Entry("decoder.final_layernorm.weight", (hidden,), (("model.norm.weight", (hidden,)),), Same()))
    if model.untie_embeddings_and_output_weights:
        table.append(Entry("output_layer.weight", (padded, hidden), (("lm_head.weight", (vocab_size, hidden)),), vocabulary))
    return table


def _layer(model: ModelConfig, index: int) -> list[Entry]:
    hidden, ffn, head_dim = model.hidden_size, model.ffn_hidden_size, model.head_dim
    heads, groups = model.num_attention_heads, model.query_groups
    native, hf = f"decoder.layers.{index}", f"model.layers.{index}"
    query, key_value = (heads * head_dim, hidden), (groups * head_dim, hidden)
    return [
        Entry(f"{native}.self_attention.linear_qkv.layer_norm_weight", (hidden,), ((f"{hf}.input_layernorm.weight", (hidden,)),), Same()),
        Entry(
            f"{native}.self_attention.linear_qkv.weight",
            ((heads + 2 * groups) * head_dim, hidden),
            (
                (f"{hf}.self_attn.q_proj.weight", query),
                (f"{hf}.self_attn.k_proj.weight", key_value),
                (f"{hf}.self_attn.v_proj.weight", key_value),
            ),
            GroupedQKV(heads, groups, head_dim),
        ),
        Entry(
            f"{native}.self_attention.linear_proj.weight",
            (hidden, heads * head_dim),
            ((f"{hf}.self_attn.o_proj.weight", (hidden, heads * head_dim)),),
            Same(),
        ),
        Entry(f"{native}.mlp.linear_fc1.layer_norm_weight", (hidden,), ((f"{hf}.post_attention_layernorm.weight", (hidden,)),), Same()),
        Entry(
            f"{native}.mlp.linear_fc1.weight",
            (2 * ffn, hidden),
            ((f"{hf}.mlp.gate_proj.weight", (ffn, hidden)), (f"{hf}.mlp.up_proj.weight", (ffn, hidden))),
            StackedRows(2),
        ),
        Entry(f"{native}.mlp.linear_fc2.weight", (hidden, ffn), ((f"{hf}.mlp.down_proj.weight", (hidden, ffn)),), Same()),
    ]


def aliases(model: ModelConfig) -> dict[str, str]:
    """pytorch_model.bin files hold the head of a tied model apart."""
    return {} if model.untie_embeddings_and_output_weights else {"lm_head.weight": "model.embed_tokens.weight"}


def hf_config(model: ModelConfig, max_positions: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json (without the dtype of the weights), readable by transformers 4.x and 5.x."""
    theta = float(model.rotary_base)
    scaling = hf_rope_scaling(model)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "max_position_embeddings": max_positions,
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
        **({"rope_scaling": scaling} if scaling else {}),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "use_cache": True,
    }


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """The model section of a LlamaConfig; raises ConfigError naming the field that our decoder cannot express."""
    check_expressible(hf, FIXED, "decoder")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    check_whole_numbers(hf, sizes, "A LlamaConfig")
    head_dim, groups = hf.get("head_dim"), hf.get("num_key_value_heads")
    heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
    return ModelConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=None if groups == heads else groups,
        kv_channels=None if head_dim is None or head_dim * heads == hidden else head_dim,
        ffn_hidden_size=hf["intermediate_size"],
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        **_rotary(hf),
        max_position_embeddings=hf.get("max_position_embeddings", 2048),
        untie_embeddings_and_output_weights=not hf.get("tie_word_embeddings", False),
        init_method_std=hf.get("initializer_range", 0.02),
    )


def hf_rope_scaling(model: ModelConfig) -> dict[str, Any] | None:
    """`rope_scaling` of transformers 4.x, all but the base of `rope_parameters` of 5.x; None where nothing is stretched."""
    return None if model.rope_scaling is None else model.rope_scaling.model_dump(exclude_none=True)


def _rotary(hf: dict[str, Any]) -> dict[str, Any]:
    """rotary_base and rope_scaling of the model section: from `rope_parameters` (transformers 5.x), or from `rope_theta` and
    `rope_scaling` (4.x), which may stand beside it and must agree."""
    given = {name: hf[name] for name in ("rope_parameters", "rope_scaling") if hf.get(name)}
    for name, found in given.items():
        if not isinstance(found, dict):
            raise ConfigError(f"config.json: {name} = {found!r} holds no settings.")
    newer, older = given.get("rope_parameters", {}), given.get("rope_scaling", {})
    theta = newer.get("rope_theta", older.get("rope_theta", hf.get("rope_theta", 10_000.0)))
    if "rope_theta" in hf and hf["rope_theta"] != theta:
        raise ConfigError(f"config.json: rope_theta = {hf['rope_theta']!r} and rope_parameters.rope_theta = {theta!r} differ. Keep one.")
    if not isinstance(theta, (int, float)) or theta != int(theta):
        raise ConfigError(f"config.json: rope_theta = {theta!r} is not a whole number, which model.rotary_base needs.")
    scalings = [_rope_scaling(name, found, hf) for name, found in given.items()]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise ConfigError(f"config.json: rope_scaling = {older} and rope_parameters = {newer} differ. Keep one.")
    return {"rotary_base": int(theta), "rope_scaling": scalings[0] if scalings else None}


def _rope_scaling(name: str, found: dict[str, Any], hf: dict[str, Any]) -> dict[str, Any] | None:
    """The section model.rope_scaling that the field `name` of config.json asks for; raises ConfigError for what it cannot say."""
    values = {field: value for field, value in found.items() if field not in ("rope_theta", "type") and value is not None}
    kind = values.setdefault("rope_type", found.get("type", "default"))
    if values.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"config.json: {name}.partial_rotary_factor = {found['partial_rotary_factor']!r}: our models turn whole heads.")
    if kind == "default":
        values.pop("rope_type")
        if values:
            raise ConfigError(f"config.json: {name} has {', '.join(sorted(values))}, which its rope_type = 'default' does not read.")
        return None
    if kind not in ROPE_SCALING:
        raise ConfigError(
            f"config.json: {name}.rope_type = {kind!r} cannot be expressed by our decoder, which has {', '.join(ROPE_SCALING)}."
        )
    if kind != "linear":  # transformers takes the longest input where the original one is not given
        values.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings", 2048))
    mscale, mscale_all_dim = values.pop("mscale", None), values.pop("mscale_all_dim", None)
    if kind == "yarn" and mscale and mscale_all_dim and "attention_factor" not in values:
        log = math.log(values.get("factor", 1.0))
        values["attention_factor"] = (0.1 * mscale * log + 1.0) / (0.1 * mscale_all_dim * log + 1.0)
    if unknown := sorted(values.keys() - RopeScalingConfig.model_fields.keys()):
        raise ConfigError(f"config.json: {name}.{unknown[0]} = {values[unknown[0]]!r} cannot be expressed by our decoder.")
    return values


LLAMA = Family(
    "Llama",
    "text-generation",
    entries,
    hf_config,
    model_config,
    AdapterLayers(
        lora=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ia3=("k_proj", "v_proj", "down_proj"),
        ia3_feedforward=("down_proj",),
    ),
    aliases=aliases,
    tokenizers=("generator",),
)
