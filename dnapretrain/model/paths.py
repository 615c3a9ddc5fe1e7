"""Which implementation each part of a run takes: logged once at start, printed by `doctor`."""

from __future__ import annotations

import megatron.core
import torch
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE

from dnapretrain.config import ModelConfig, RunConfig
from dnapretrain.errors import ConfigError
from dnapretrain.model.attention_kernels import why_not_flex
from dnapretrain.parallel.platform import Platform


def use_transformer_engine(model: ModelConfig, platform: Platform, torch_only: str = "") -> bool:
    """Whether the layers are Transformer Engine's. `torch_only`: see RunConfig. Raises ConfigError when it is asked for and missing."""
    return why_torch(model, platform, torch_only) is None


def why_torch(model: ModelConfig, platform: Platform, torch_only: str = "") -> str | None:
    """Why the layers are not Transformer Engine's; None where they are: the one rule. Raises ConfigError as above."""
    if model.transformer_impl == "torch":
        return "model.transformer_impl=torch"
    if torch_only:  # where Transformer Engine is asked for as well, check_rules has refused
        return torch_only
    missing = [] if platform.is_cuda else ["a CUDA device"]
    if not HAVE_TE:
        missing.append("an installed Transformer Engine that loads")
    if missing and model.transformer_impl == "transformer_engine":
        raise ConfigError(f"model.transformer_impl=transformer_engine needs {' and '.join(missing)}. Set it to auto or torch.")
    return f"Transformer Engine needs {' and '.join(missing)}" if missing else None


def use_flex_attention(config: RunConfig, platform: Platform) -> bool:
    """Whether attention is FlexAttention's, where the layers are not Transformer Engine's."""
    return why_not_flex(config.model, platform.is_cuda, config.data.document_attention, config.parallel.context_parallel_size) is None


def active_paths(
    model: ModelConfig,
    precision: str,
    platform: Platform,
    torch_only: str = "",
    document_attention: bool = False,
    context_parallel_size: int = 1,
    cp_comm_type: str = "p2p",
) -> dict[str, str]:
    """Name of each part -> what it runs on, on this platform, and why. `torch_only`: see RunConfig."""
    reason = why_torch(model, platform, torch_only)
    not_flex = why_not_flex(model, platform.is_cuda, document_attention, context_parallel_size)
    attention = _torch_attention(model, not_flex, document_attention) if reason else _transformer_engine_attention(model, precision)
    if context_parallel_size > 1:
        attention += f"; {_context_parallel(model, reason is None, cp_comm_type)} of {context_parallel_size} context-parallel ranks"
    return {
        "device": platform.name,
        "collectives": platform.backend,
        "layers": f"Megatron-core parallel layers ({reason})" if reason else _fusion(model),
        "attention": attention,
        "norm": f"torch {model.normalization}, {model.norm_position}-norm" if reason else f"Transformer Engine {model.normalization}",
        "precision": precision + (f", fp32 main weights, gradients and moments{platform.bf16_support}" if precision == "bf16" else ""),
        "megatron-core": megatron.core.__version__,
        "torch": torch.__version__,
    }


def _fusion(model: ModelConfig) -> str:
    if model.norm_position == "post":
        return "Transformer Engine (norm and linear apart: post-norm has a residual between them)"
    return "Transformer Engine (fused norm and linear)"


def _context_parallel(model: ModelConfig, is_te: bool, cp_comm_type: str) -> str:
    if not is_te:
        return "keys and values gathered"
    ways = {"p2p": "ring", "all_gather": "gathered keys and values", "a2a": "exchange of heads"}
    return f"Transformer Engine's {ways[cp_comm_type]}" + (
        "" if model.kind == "decoder" else ", where a sample is padded torch with keys and values gathered,"
    )


def _torch_attention(model: ModelConfig, not_flex: str | None, document_attention: bool) -> str:
    if not_flex is None:
        sight = "causal" if model.kind == "decoder" else "both directions"
        alibi = ", ALiBi from slopes" if model.position_embedding_type == "alibi" else ""
        return f"torch FlexAttention, compiled, {sight}{alibi}{', within documents' if document_attention else ''}"
    if model.kind == "decoder":
        sight = "causal, no mask tensor"
    elif model.position_embedding_type == "alibi":
        sight = "both directions, ALiBi as a bias tensor"
    else:
        sight = "both directions, a mask only where a sample is padded"
    if document_attention:
        sight = f"{sight.partition(',')[0]}, within documents by a mask" + (" and ALiBi" if "ALiBi" in sight else "")
    return f"torch scaled_dot_product_attention, {sight} ({not_flex})"


def _transformer_engine_attention(model: ModelConfig, precision: str) -> str:
    # Its rule, as of 2.11: flash-attn and cuDNN take no fp32; flash-attn, where installed, takes slopes, cuDNN a bias made of them.
    kernels = (
        "its unfused kernels, as for all fp32"
        if precision == "fp32"
        else "flash-attn, cuDNN or unfused: NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=1 tells"
    )
    sight = "causal" if model.kind == "decoder" else "both directions, lengths only where a sample is padded"
    alibi = ", ALiBi from slopes" if model.position_embedding_type == "alibi" else ""
    return f"Transformer Engine DotProductAttention, {sight}{alibi} ({kernels})"
