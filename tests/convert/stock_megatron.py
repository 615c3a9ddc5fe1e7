"""Checkpoints as stock Megatron-LM writes them, from its own models on CPU ranks. Imported by name in each rank."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SIZES = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
VOCAB, LENGTH = 256, 64


def gpt(first: bool, last: bool, tp: int, pp: int, bf16: bool = False) -> Any:
    """Megatron's GPTModel in Llama's style, local spec."""
    import torch
    import torch.nn.functional as F
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = torch.bfloat16 if bf16 else torch.float32
    config = TransformerConfig(
        **SIZES,
        num_query_groups=2,
        normalization="RMSNorm",
        layernorm_epsilon=1e-5,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        use_cpu_initialization=True,
        init_method_std=0.3,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=VOCAB,
        max_sequence_length=LENGTH,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=500,
    )


def bert(first: bool, last: bool, tp: int, pp: int) -> Any:
    """Megatron's BertModel, rotary and gated with all biases as AIDO.DNA, without a next-sentence head."""
    import torch
    import torch.nn.functional as F
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        **SIZES,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        init_method_std=0.3,
        bias_dropout_fusion=False,
    )
    return BertModel(
        config,
        num_tokentypes=0,
        transformer_layer_spec=bert_layer_local_spec,
        vocab_size=VOCAB,
        max_sequence_length=LENGTH,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=True,
        parallel_output=False,
        position_embedding_type="rope",
        add_binary_head=False,
    )


MODELS = {"gpt": gpt, "bert": bert}
ARGS = {
    "gpt": {
        **SIZES,
        "group_query_attention": True,
        "num_query_groups": 2,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-5,
        "swiglu": True,
        "attention_dropout": 0.1,
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "rotary_base": 500,
        "rotary_percent": 1.0,
        "max_position_embeddings": LENGTH,
        "untie_embeddings_and_output_weights": True,
    },
    "bert": {
        **SIZES,
        "normalization": "LayerNorm",
        "norm_epsilon": 1e-5,
        "swiglu": True,
        "add_bias_linear": True,
        "position_embedding_type": "rope",
        "rotary_base": 10_000,
        "max_position_embeddings": LENGTH,
        "untie_embeddings_and_output_weights": False,
    },
}


def _model(env: Any, store: Any, kind: str, tp: int, pp: int) -> Any:
    import torch
    from megatron.core import parallel_state

    from dnapretrain.config import ParallelConfig
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    platform = platforms.start("cpu", env)
    start_groups(platform, ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp), 1, store)
    torch.manual_seed(100 + env.rank)
    model = MODELS[kind](parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage(), tp, pp)
    return model


def save(env: Any, store: Any, kind: str, path: str, tp: int, pp: int, args: dict[str, Any] | None) -> None:
    """A checkpoint of a model drawn at random, norms and biases too."""
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    model = _model(env, store, kind, tp, pp)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # split or whole, the same on every tensor-parallel rank that has the same part
                seed = torch.Generator().manual_seed(len(name) + parallel_state.get_pipeline_model_parallel_rank())
                weight.add_(0.3 * torch.randn(weight.shape, generator=seed))
            elif not getattr(weight, "tensor_model_parallel", False):  # whole on every rank
                seed = torch.Generator().manual_seed(len(name))
                weight.copy_(0.3 * torch.randn(weight.shape, generator=seed))
    state: dict[str, Any] = {"checkpoint_version": 3.0, "iteration": 7, "model": model.sharded_state_dict()}
    if args is not None:
        state["args"] = argparse.Namespace(**args, dtype=torch.bfloat16)
    Path(path).mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(state, path)


def logits(env: Any, store: Any, kind: str, path: str, tokens: Any) -> Any:
    """Logits [B, S, V] of the stock model on one rank, loaded by stock code."""
    import torch
    from megatron.core import dist_checkpointing

    model = _model(env, store, kind, 1, 1)
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, path)
    model.load_state_dict(loaded["model"])
    tokens_BS = torch.from_numpy(tokens)
    positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    with torch.no_grad():
        if kind == "bert":
            out = model.eval()(tokens_BS, torch.ones_like(tokens_BS))
            out = out[0] if isinstance(out, tuple) else out
        else:
            causal = torch.ones(tokens_BS.shape[1], tokens_BS.shape[1]).triu(1).bool()[None, None]
            out = model.eval()(tokens_BS, positions_BS, causal)
    return out.numpy()


def native_logits(env: Any, store: Any, path: str, tokens: Any) -> Any:
    """Logits of a checkpoint of ours, in a rank that the CPU engine is active in."""
    from dnapretrain.train import run

    return run.native_logits(Path(path), tokens)
