"""Which implementation each part of a run takes: logged once at start, printed by `doctor`."""

from __future__ import annotations

import megatron.core
import torch
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

from dnapretrain.config import ModelConfig
from dnapretrain.errors import ConfigError
from dnapretrain.parallel.platform import Platform


def use_transformer_engine(model: ModelConfig, platform: Platform, document_attention: bool = False) -> bool:
    """Whether the layers are Transformer Engine's. Raises ConfigError when it is asked for and missing."""
    if model.transformer_impl == "torch" or document_attention:  # where both are asked for, check_rules has refused
        return False
    missing = [] if platform.is_cuda else ["a CUDA device"]
    if not HAVE_TE:
        missing.append("an installed Transformer Engine that loads")
    if model.kind == "encoder":
        missing.append("model.kind=decoder (encoders run on the torch path for now)")
    if missing and model.transformer_impl == "transformer_engine":
        raise ConfigError(f"model.transformer_impl=transformer_engine needs {' and '.join(missing)}. Set it to auto or torch.")
    return not missing


def active_paths(model: ModelConfig, precision: str, platform: Platform, document_attention: bool = False) -> dict[str, str]:
    """Name of each part -> what it runs on, on this platform."""
    te = use_transformer_engine(model, platform, document_attention)
    if model.kind == "decoder":
        sight = "causal, no mask tensor"
    elif model.position_embedding_type == "alibi":
        sight = "both directions, ALiBi as a bias tensor"
    else:
        sight = "both directions, a mask only where a sample is padded"
    if document_attention:
        sight = f"{sight.partition(',')[0]}, within documents by a mask" + (" and ALiBi" if "ALiBi" in sight else "")
    return {
        "device": platform.name,
        "collectives": platform.backend,
        "layers": "Transformer Engine (fused norm and linear)" if te else "Megatron-core parallel layers",
        "attention": "Transformer Engine DotProductAttention" if te else f"torch scaled_dot_product_attention, {sight}",
        "norm": f"Transformer Engine {model.normalization}" if te else f"torch {model.normalization}, {model.norm_position}-norm",
        "precision": precision + (", fp32 main weights, gradients and moments" if precision == "bf16" else ""),
        "megatron-core": megatron.core.__version__,
        "torch": torch.__version__,
    }
