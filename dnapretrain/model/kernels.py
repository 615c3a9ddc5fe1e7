"""Which kernels a training step takes beside the layers' own: FP8, fused kernels, CUDA graphs, overlapped communication.

One place checks what the machine can do, one says it in the log, one hands it to Megatron-core. Outside of training (`evaluate`,
exports, counts) a model computes without any of them: `without_kernels`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.transformer.enums import AttnBackend

from dnapretrain.config import ParallelConfig, RunConfig, TrainConfig
from dnapretrain.errors import ConfigError
from dnapretrain.model.paths import why_torch
from dnapretrain.parallel.platform import Platform

ATTENTION_VARIABLES = {"flash": "NVTE_FLASH_ATTN", "fused": "NVTE_FUSED_ATTN", "unfused": "NVTE_UNFUSED_ATTN"}
"""Environment variables by which Transformer Engine leaves out one kind of attention kernel (0)."""
DELAYED = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
"""Transformer Engine's own defaults of delayed scaling; Megatron-core's are 1 and most_recent."""


TRAIN_KEYS = (
    "fp8",
    "fp8_recipe",
    "fp8_amax_history_len",
    "fp8_amax_compute_algo",
    "first_last_layers_bf16",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
    "attention_backend",
    "apply_rope_fusion",
    "bias_activation_fusion",
    "cross_entropy_loss_fusion",
    "cross_entropy_fusion_impl",
    "gradient_accumulation_fusion",
    "cuda_graph_impl",
    "cuda_graph_warmup_steps",
)
"""Settings of section `train` that say which kernels a step takes."""
PARALLEL_KEYS = ("cp_comm_type", "tp_comm_overlap", "overlap_p2p_comm_warmup_flush")


def without_kernels(config: RunConfig) -> RunConfig:
    """`config` for what is no training: the same model, each setting of kernels at its default, so that any machine can run it."""
    train = {name: TrainConfig.model_fields[name].default for name in TRAIN_KEYS}
    parallel = {name: ParallelConfig.model_fields[name].default for name in PARALLEL_KEYS}
    return config.model_copy(
        update={"train": config.train.model_copy(update=train), "parallel": config.parallel.model_copy(update=parallel)}
    )


def transformer_fields(train: TrainConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """Fields of Megatron-core's TransformerConfig that say which kernels are taken."""
    fields: dict[str, Any] = {
        "attention_backend": AttnBackend[train.attention_backend],
        "apply_rope_fusion": train.apply_rope_fusion,
        "bias_activation_fusion": train.bias_activation_fusion,
        "cross_entropy_loss_fusion": train.cross_entropy_loss_fusion,
        "cross_entropy_fusion_impl": train.cross_entropy_fusion_impl,
        # Without Apex's extension its own linear layers refuse this: `fuse_weight_gradients` then turns it on where it can be.
        "gradient_accumulation_fusion": train.gradient_accumulation_fusion and _has_apex_extension(),
        "cuda_graph_impl": train.cuda_graph_impl,
        "cuda_graph_warmup_steps": train.cuda_graph_warmup_steps,
        "tp_comm_overlap": parallel.tp_comm_overlap,
        "cp_comm_type": parallel.cp_comm_type,  # of Transformer Engine alone
    }
    if train.fp8 != "none":
        fields.update(
            fp8=train.fp8,
            fp8_recipe=train.fp8_recipe,
            first_last_layers_bf16=train.first_last_layers_bf16,
            num_layers_at_start_in_bf16=train.num_layers_at_start_in_bf16,
            num_layers_at_end_in_bf16=train.num_layers_at_end_in_bf16,
            **{name: getattr(train, name) or default for name, default in DELAYED.items()},
        )
    return fields


def check_kernels(config: RunConfig, platform: Platform) -> None:
    """Raise ConfigError where this machine lacks what the settings of kernels ask for: nothing falls back in silence."""
    train = config.train
    why = why_torch(config.model, platform, config.torch_only)
    lacks = [] if platform.is_cuda else ["a CUDA device"]
    lacks_te = lacks + ([] if HAVE_TE else ["an installed Transformer Engine that loads"])
    of_te_layers = {
        f"train.fp8={train.fp8}": train.fp8 != "none",
        f"train.attention_backend={train.attention_backend}": train.attention_backend != "auto",
        "train.cuda_graph_impl=transformer_engine": train.cuda_graph_impl == "transformer_engine",
        "parallel.tp_comm_overlap": config.parallel.tp_comm_overlap,
        f"parallel.cp_comm_type={config.parallel.cp_comm_type}": config.parallel.cp_comm_type != "p2p",
    }
    for what, is_set in of_te_layers.items():
        if is_set and why:
            raise ConfigError(f"{what} needs the layers of Transformer Engine, but here they are torch's: {why}. Remove it.")
    of_te = {
        "train.apply_rope_fusion": train.apply_rope_fusion,
        "train.cross_entropy_fusion_impl=te": train.cross_entropy_fusion_impl == "te",
    }
    for what, is_set in of_te.items():
        if is_set and lacks_te:
            raise ConfigError(f"{what} needs {' and '.join(lacks_te)}. Remove it.")
    if train.cuda_graph_impl != "none" and lacks:
        raise ConfigError(f"train.cuda_graph_impl={train.cuda_graph_impl} needs a CUDA device. Set it to none.")
    if train.gradient_accumulation_fusion and why and not _has_apex_extension():
        raise ConfigError(
            "train.gradient_accumulation_fusion needs the layers of Transformer Engine, or NVIDIA Apex with its extension "
            f"fused_weight_gradient_mlp_cuda; here are neither ({why}). Set it to false."
        )
    if train.fp8 != "none":
        from dnapretrain.model.transformer_engine import why_no_fp8  # needs Transformer Engine

        if reason := why_no_fp8(train.fp8_recipe):
            raise ConfigError(
                f"train.fp8={train.fp8} with fp8_recipe={train.fp8_recipe} cannot run here: {reason}. Change the recipe, or set it to none."
            )
    if why is None:
        _check_attention_environment(train)


def _check_attention_environment(train: TrainConfig) -> None:
    for kind, variable in ATTENTION_VARIABLES.items():
        expected = "1" if train.attention_backend in ("auto", kind) else "0"
        if os.environ.get(variable, expected) != expected:
            raise ConfigError(
                f"train.attention_backend={train.attention_backend} sets {variable}={expected}, but the environment has "
                f"{os.environ[variable]}. Unset it, and choose by train.attention_backend."
            )


def forgotten_scales(train: TrainConfig, were_read: bool) -> list[str]:
    """A warning for people who resume a run with delayed scaling from a checkpoint of which no scales `were_read`; none for others."""
    if train.fp8 == "none" or train.fp8_recipe != "delayed" or were_read:
        return []
    return [
        "WARNING: this checkpoint holds no FP8 scales of train.fp8_recipe=delayed (it is of an older version, or of a run without): they "
        "begin at 1 and are measured anew from the first micro-batch on, whose smallest gradients may vanish. The run goes on close to, "
        "not bit for bit like, one without a stop."
    ]


def fuse_weight_gradients(chunk: Any) -> None:
    """Let Transformer Engine's layers of `chunk` add weight gradients to the fp32 sums; Megatron's own linear layers, the output layer
    among them, do so where Apex's extension is installed."""
    chunk.config.gradient_accumulation_fusion = True  # CUDA graphs read it there
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def attention_taken(config: RunConfig, uses_torch: bool, weight: torch.Tensor) -> str | None:
    """The attention kernels of the last pass on the GPU of `weight`, a line for people; None on CPU, where there is one way.

    Transformer Engine is asked what it chose; torch what it chooses for tensors of this model's kind.
    """
    if not weight.is_cuda:
        return None
    if uses_torch:
        return f"attention: torch chose {_sdpa_choice(config, weight)}"
    from dnapretrain.model.transformer_engine import chosen_attention  # needs Transformer Engine

    chosen = chosen_attention()
    backend = f" ({chosen['backend']})" if chosen["backend"] else ""
    line = f"attention: Transformer Engine chose {chosen['kernels'] or 'kernels that it does not tell'}{backend}"
    slow = chosen["kernels"] == "unfused" and config.train.precision == "bf16" and config.train.attention_backend == "auto"
    return f"WARNING: {line}, which keep heads x sequence^2 values; NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 tells why" if slow else line


def _sdpa_choice(config: RunConfig, weight: torch.Tensor) -> str:
    """Name of the kernel that scaled_dot_product_attention takes for tensors of this model's kind, as torch's own rule says."""
    model, length = config.model, 256
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    heads = model.num_attention_heads // config.parallel.tensor_model_parallel_size
    groups = model.query_groups // config.parallel.tensor_model_parallel_size
    has_mask = model.position_embedding_type == "alibi" or config.data.document_attention
    shapes = ((1, number, length, model.head_dim) for number in (heads, *([heads] * 2 if has_mask else [groups] * 2)))
    query, key, value = (torch.zeros(shape, dtype=dtype, device=weight.device, requires_grad=True) for shape in shapes)
    mask = torch.zeros(1, 1, length, length, dtype=dtype, device=weight.device) if has_mask else None
    causal = model.kind == "decoder" and not has_mask
    number = torch._fused_sdp_choice(query, key, value, mask, model.attention_dropout, causal, enable_gqa=key.shape[1] != heads)
    backends: dict[str, Any] = dict(torch.nn.attention.SDPBackend.__members__)
    names = {int(backend): name for name, backend in backends.items()}
    return names.get(int(number), f"kernel {number}").lower().replace("_", " ")


def kernel_paths(config: RunConfig, platform: Platform) -> dict[str, str]:
    """Name of each part -> which kernels it takes, for the lines at the start of a run."""
    train, parallel = config.train, config.parallel
    uses_te = why_torch(config.model, platform, config.torch_only) is None
    fused = {
        "rotation of queries and keys (Transformer Engine)": train.apply_rope_fusion,
        "SwiGLU with its bias (compiled)": train.bias_activation_fusion,
        f"cross-entropy ({train.cross_entropy_fusion_impl})": train.cross_entropy_loss_fusion,
        f"weight gradients added within the product ({_wgrad_layers(uses_te)})": train.gradient_accumulation_fusion,
    }
    graphs = (
        "none"
        if train.cuda_graph_impl == "none"
        else f"each layer, by {train.cuda_graph_impl}, after {train.cuda_graph_warmup_steps} passes"
    )
    overlaps = {
        "reduction of gradients with the backward pass": parallel.overlap_grad_reduce,
        "gathering of parameters with the forward pass": parallel.overlap_param_gather,
        "tensor-parallel messages with matrix products": parallel.tp_comm_overlap,
        "pipeline messages with computation": parallel.virtual_pipeline_model_parallel_size is not None,
        "those of warm-up and flush too": parallel.overlap_p2p_comm_warmup_flush,
    }
    return {
        "FP8": _fp8_path(config),
        "fused kernels": _listed(fused, "none beyond those of the layers"),
        "CUDA graphs": graphs,
        "overlapped": _listed(overlaps, "no communication"),
    }


def _fp8_path(config: RunConfig) -> str:
    train, layers = config.train, config.model.num_layers
    if train.fp8 == "none":
        return "none (train.fp8)"
    formats = "E4M3 forward, E5M2 gradients" if train.fp8 == "hybrid" else "E4M3"
    ends = train.num_layers_at_start_in_bf16 + train.num_layers_at_end_in_bf16 if train.first_last_layers_bf16 else 0
    history = ""
    if train.fp8_recipe == "delayed":
        length = train.fp8_amax_history_len or DELAYED["fp8_amax_history_len"]
        history = f" by the {train.fp8_amax_compute_algo or 'max'} of {length} steps, which checkpoints hold"
    return (
        f"{formats}, {train.fp8_recipe} scaling{history}: matrix products of {layers - ends} of {layers} layers; attention, norms, "
        "embeddings and head in bf16"
    )


def _wgrad_layers(uses_te: bool) -> str:
    names = (["Transformer Engine's layers"] if uses_te else []) + (["Megatron-core's by Apex"] if _has_apex_extension() else [])
    return " and ".join(names)


def _listed(parts: dict[str, bool], none: str) -> str:
    return "; ".join(name for name, is_on in parts.items() if is_on) or none


def _has_apex_extension() -> bool:
    return bool(megatron_layers._grad_accum_fusion_available)
