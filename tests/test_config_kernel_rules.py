"""Rules between the settings of kernels: what cannot work, or nothing would read, is refused with the key to change."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError

TREE: dict[str, dict[str, Any]] = {
    "data": {"train": "a", "sequence_length": 64},
    "tokenizer": {"kind": "nucleotide"},
    "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128},
    "parallel": {},
    "optim": {"lr": 1e-3},
    "train": {"run_dir": "r", "train_steps": 100, "micro_batch_size": 2, "global_batch_size": 4},
}
ENCODER = {"model.kind": "encoder", "data.masking": {"mlm_probability": 0.15}, "model.num_query_groups": None}
FP8 = {"train.fp8": "hybrid"}
DELAYED = {**FP8, "train.fp8_recipe": "delayed"}
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
SP = {"parallel.tp": 2, "parallel.sequence_parallel": True}
A2A = {"parallel.cp": 2, "parallel.cp_comm_type": "a2a"}
GRAPHS = {"train.cuda_graph_impl": "local"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train.fp8_amax_history_len": 16}, "is for delayed scaling"),
    ({**FP8, "train.fp8_amax_compute_algo": "max"}, "is for delayed scaling"),
    ({"train.fp8_recipe": "delayed"}, "train.fp8=none"),
    ({"train.first_last_layers_bf16": True}, "train.fp8=hybrid or e4m3"),
    ({**FP8, "train.num_layers_at_end_in_bf16": 2}, "are for first_last_layers_bf16"),
    ({**FP8, "train.precision": "fp32"}, "needs train.precision=bf16"),
    ({**FP8, "model.transformer_impl": "torch"}, "model.transformer_impl=torch"),
    ({**FP8, "data.document_attention": True, "data.sampling": "packed"}, "document_attention"),
    ({**DELAYED, "train.first_last_layers_bf16": True}, "keeps no layers in bf16"),
    ({**FP8, "train.first_last_layers_bf16": True, "train.num_layers_at_start_in_bf16": 3}, "leave no layer"),
    ({**FP8, "train.first_last_layers_bf16": True, "train.num_layers_at_start_in_bf16": 2, "parallel.pp": 4}, "leave no layer"),
    ({**FP8, "model.ffn_hidden_size": 120}, "model.ffn_hidden_size on a rank = 120 is not a multiple of 16"),
    ({**FP8, "model.ffn_hidden_size": 144, "parallel.tp": 2}, "on a rank = 72"),
    ({**FP8, "data.sequence_length": 36}, "tokens of a micro-batch on a rank (train.micro_batch_size x 36) = 72"),
    ({**FP8, **SP, "data.sequence_length": 24}, "= 24 is not a multiple of 16"),
    ({**FP8, "train.fp8_recipe": "mxfp8", "model.ffn_hidden_size": 144}, "is not a multiple of 32"),
    ({**FP8, **SP, "train.fp8_recipe": "blockwise"}, "is not a multiple of 128"),
    ({"train.attention_backend": "flash", "model.transformer_impl": "torch"}, "Set it to auto"),
    ({"train.apply_rope_fusion": True, **ENCODER, "model.position_embedding_type": "alibi"}, "not alibi"),
    ({"train.apply_rope_fusion": True, "model.rope_scaling": YARN}, "attention factor, 1.139"),
    ({"train.bias_activation_fusion": True, **ENCODER, "model.activation": "geglu"}, "tanh"),
    ({"train.cross_entropy_fusion_impl": "te"}, "cross_entropy_loss_fusion=true"),
    ({"train.cross_entropy_loss_fusion": True, "train.precision": "fp32"}, "rounds its gradient to bf16"),
    ({"train.cross_entropy_loss_fusion": True, "train.loss": "nucleotide", "tokenizer.kind": "kmer"}, "train.loss=token"),
    ({"train.cuda_graph_warmup_steps": 5}, "is for CUDA graphs"),
    ({**GRAPHS, **ENCODER}, "model.kind=encoder"),
    ({**GRAPHS, "data.stages": [{"until_step": 2, "sequence_length": 32}, {}]}, "several lengths"),
    ({**GRAPHS, "parallel.pp": 2}, "pipeline_model_parallel_size above 1"),
    ({**GRAPHS, "train.recompute": "full"}, "train.recompute=full"),
    ({**GRAPHS, "train.recompute": "selective"}, "train.recompute=selective"),
    ({"train.cuda_graph_impl": "transformer_engine", "train.precision": "fp32"}, "captures layers of bf16"),
    ({**GRAPHS, "data.document_attention": True, "data.sampling": "packed"}, "document_attention"),
    ({"train.cuda_graph_impl": "transformer_engine", "model.transformer_impl": "torch"}, "local or none"),
    ({"parallel.tp_comm_overlap": True}, "needs parallel.sequence_parallel=true"),
    ({"parallel.tp_comm_overlap": True, **SP, "train.precision": "fp32"}, "buffers of bf16"),
    ({"parallel.tp_comm_overlap": True, **SP, "model.transformer_impl": "torch"}, "Transformer Engine"),
    ({"parallel.tp_comm_overlap": True, **SP, "data.stages": [{"until_step": 2, "sequence_length": 32}, {}]}, "[32, 64]"),
    ({"parallel.batch_p2p_comm": True}, "of at least 2"),
    ({"parallel.batch_p2p_comm": True, "parallel.pp": 2, "parallel.vpp": 2}, "wrong in silence"),
    ({"parallel.overlap_p2p_comm_warmup_flush": True, "parallel.pp": 2}, "interleaved schedule"),
    ({"parallel.cp_comm_type": "a2a"}, "is for parallel.context_parallel_size of at least 2"),
    ({**A2A, "model.transformer_impl": "torch"}, "Remove it: torch's gather keys and values"),
    ({**A2A, "data.document_attention": True, "data.sampling": "packed"}, "document_attention"),
    ({**A2A, "train.precision": "fp32"}, "no fp32 kernels with context parallelism"),
    ({**A2A, **ENCODER, "model.position_embedding_type": "alibi"}, "no ALiBi with context parallelism"),
    ({**A2A, "parallel.tp": 4}, "model.num_attention_heads = 4 is not a multiple of tensor_model_parallel_size x"),
    ({**A2A, "model.num_query_groups": 1}, "model.num_query_groups = 1 is not a multiple of"),
    ({**A2A, "parallel.cp_comm_type": "all_gather", "model.kv_channels": 12}, "here it is 12"),
    ({**A2A, "parallel.cp_comm_type": "a2a+p2p"}, "parallel.cp_comm_type"),
]
ACCEPTED: list[dict[str, Any]] = [
    FP8,
    {**DELAYED, "train.fp8_amax_history_len": 16, "train.fp8_amax_compute_algo": "most_recent"},
    {**FP8, "train.fp8_recipe": "blockwise", "train.first_last_layers_bf16": True},
    {**FP8, "train.fp8": "e4m3", "train.fp8_recipe": "mxfp8"},
    {**FP8, **ENCODER},
    {"train.apply_rope_fusion": True, "model.rope_scaling": {**YARN, "attention_factor": 1.0}},
    {"train.apply_rope_fusion": True, "model.rope_scaling": {"rope_type": "linear", "factor": 2}},
    {"train.cross_entropy_loss_fusion": True, "train.cross_entropy_fusion_impl": "te", "train.precision": "fp32"},
    {**GRAPHS, "train.cuda_graph_warmup_steps": 2},
    {"parallel.tp_comm_overlap": True, **SP},
    {"parallel.batch_p2p_comm": False, "parallel.pp": 2},
    {"parallel.overlap_p2p_comm_warmup_flush": True, "parallel.pp": 2, "parallel.vpp": 2},
    A2A,
    {**A2A, "parallel.tp": 2},
    {**A2A, "parallel.cp_comm_type": "all_gather", "model.num_query_groups": 1},
    {"parallel.cp_comm_type": "p2p", "model.transformer_impl": "torch"},
]


def build(settings: dict[str, Any]) -> Any:
    tree = {section: dict(values) for section, values in TREE.items()}
    for key, value in settings.items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    return config_from_dict(tree)


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        build(settings)


@pytest.mark.parametrize("settings", ACCEPTED)
def test_what_can_work_is_accepted(settings: dict[str, Any]) -> None:
    build(settings)
