"""The Hugging Face architectures that we convert to and from, and which of them a model becomes."""

from __future__ import annotations

from dnapretrain.config import ModelConfig
from dnapretrain.convert.esm import ESM
from dnapretrain.convert.llama import LLAMA
from dnapretrain.convert.table import Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, ESM)}
"""By `model_type` of config.json."""


def family_of(model: ModelConfig) -> Family:
    """The family that `model` is written as; its table raises ConfigError for settings that it cannot express."""
    return ESM if model.kind == "encoder" else LLAMA
