"""The Hugging Face architectures that we convert to and from, which of them a model becomes, and which of them a folder holds."""

from __future__ import annotations

from typing import Any

from dnapretrain.config import ModelConfig
from dnapretrain.convert.aido_dna import AIDO_DNA
from dnapretrain.convert.dnabert2 import DNABERT2
from dnapretrain.convert.esm import ESM
from dnapretrain.convert.llama import LLAMA
from dnapretrain.convert.nt_v2 import NT_V2
from dnapretrain.convert.table import Family
from dnapretrain.errors import ConfigError

KNOWN = "llama (GENERator), esm (Nucleotide Transformer v1 and v2), DNABERT-2's bert, rnabert (AIDO.DNA)"


def family_of(model: ModelConfig) -> Family:
    """The one family that `model` can be written as; its table raises ConfigError for settings that it cannot express.

    What tells them apart: only DNABERT-2 has post-norm, ALiBi or GEGLU; of the two with SwiGLU, NT-v2 has no bias there.
    """
    if model.kind == "decoder":
        return LLAMA
    if model.norm_position == "post" or model.position_embedding_type == "alibi" or model.activation == "geglu":
        return DNABERT2
    if model.activation == "swiglu":
        return AIDO_DNA if model.ffn_in_bias or model.ffn_out_bias else NT_V2
    return ESM


def family_of_folder(hf_config: dict[str, Any]) -> Family:
    """The family of a folder with this config.json; raises ConfigError for others.

    Two share the model_type of a class of transformers: NT-v2 is the ESM that says whether its feed-forward has biases
    (add_bias_fnn), DNABERT-2 the BERT with ALiBi, which in its later revision names no model_type at all.
    """
    model_type = hf_config.get("model_type")
    if model_type == "llama":
        return LLAMA
    if model_type == "esm":
        return NT_V2 if "add_bias_fnn" in hf_config else ESM
    if model_type == "rnabert":
        return AIDO_DNA
    if model_type in (None, "bert") and "alibi_starting_size" in hf_config:
        return DNABERT2
    raise ConfigError(f"config.json: model_type = {model_type!r} is none that is converted: {KNOWN}.")
