"""Encoders of Transformer Engine's layers against those of torch on a CUDA device, in the four published shapes, shallow."""

from __future__ import annotations

from typing import Any

import torch
from gpu_support import checkpoint_goes_on, first_batch, need_transformer_engine, relative, report, run_config, workplace

BOUNDS = {"fp32": (1e-3, 1e-2), "bf16": (1e-2, 6e-2)}
"""Largest relative difference of the loss and of all gradients together: those of the decoder's test. Not calibrated: no encoder
has run on a GPU yet. In bf16 ALiBi's bias is rounded on the torch path and for cuDNN; flash-attn computes it in fp32."""

COMMON = {
    "data__sequence_length": 512,
    "data__masking": {"mlm_probability": 0.15},
    "data__min_length": 8,
    "model__kind": "encoder",
    "model__normalization": "LayerNorm",
    "model__norm_epsilon": 1e-12,
    "model__attention_bias": True,
    "model__num_query_groups": None,
    "model__hidden_size": 256,
    "model__ffn_hidden_size": 768,
}
FFN_BIASES = {"model__ffn_in_bias": True, "model__ffn_out_bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "NT v1": {
        "model__position_embedding_type": "learned_absolute",
        "model__activation": "gelu",
        "model__token_dropout": 0.12,
        **FFN_BIASES,
    },
    "NT v2": {},
    "AIDO.DNA": {**FFN_BIASES, "model__norm_epsilon": 1e-5, "model__num_attention_heads": 2, "model__hidden_size": 272},  # heads of 136
    "DNABERT-2": {
        "model__norm_position": "post",
        "model__position_embedding_type": "alibi",
        "model__activation": "geglu",
        "model__ffn_out_bias": True,
        "model__embedding_norm": True,
        "model__type_vocab_size": 2,
        "model__num_attention_heads": 12,
        "model__hidden_size": 768,
        "model__untie_embeddings_and_output_weights": False,
    },
}
TE, TORCH = "transformer_engine", "torch"


def test_nt_v1() -> None:
    both_equal("NT v1")


def test_nt_v2() -> None:
    both_equal("NT v2")


def test_aido_dna() -> None:
    both_equal("AIDO.DNA")


def test_dnabert2() -> None:
    both_equal("DNABERT-2")


def both_equal(shape: str) -> None:
    """Loss and gradients in both precisions, of a batch without padding and of one with."""
    need_transformer_engine()
    problems = []
    for precision, (loss_bound, gradient_bound) in BOUNDS.items():
        for padded in (False, True):
            with workplace() as folder:
                settings = {**COMMON, **SHAPES[shape], "train__precision": precision}
                te = first_batch(run_config(folder, "te", model__transformer_impl=TE, **settings), padded)
                kernels = attention_kernels()
                torch_ = first_batch(run_config(folder, "torch", model__transformer_impl=TORCH, **settings), padded)
            assert te["weights"].keys() == torch_["weights"].keys()
            assert all(torch.equal(te["weights"][name], torch_["weights"][name]) for name in torch_["weights"]), "initial weights differ"
            loss, gradient = abs(te["loss"] / torch_["loss"] - 1), relative(te["gradients"], torch_["gradients"])
            what = (
                f"{shape} encoder, Transformer Engine ({kernels}) against torch, {precision}, {'one sample padded' if padded else 'full'}"
            )
            report(what, f"loss differs by {loss:.1e}, gradients by {gradient:.1e} (relative)")
            # Small beside the matrices: a norm whose gradient is lost would not show in the sum.
            norms = {
                name: relative({name: te["gradients"][name]}, {name: torch_["gradients"][name]})
                for name in torch_["gradients"]
                if "norm" in name
            }
            assert norms
            # Written so that a value that is no number fails.
            if not (loss < loss_bound and gradient < gradient_bound and max(norms.values()) < 4 * gradient_bound):
                problems.append(f"{what}: loss {loss:.1e}, gradients {gradient:.1e}, norms {norms}")
    assert not problems, problems


def attention_kernels() -> str:
    """Which of its kernels Transformer Engine chose last."""
    from dnapretrain.model.transformer_engine import chosen_attention

    return chosen_attention()["kernels"] or "kernels unknown"


def test_torch_checkpoint_goes_on_with_transformer_engine() -> None:
    goes_on(TORCH, TE)


def test_transformer_engine_checkpoint_goes_on_with_torch() -> None:
    goes_on(TE, TORCH)


def goes_on(first: str, second: str) -> None:
    """Of the shape that fuses no norm."""
    need_transformer_engine()
    one, other = ({"model__transformer_impl": impl} for impl in (first, second))
    settings = {**COMMON, **SHAPES["DNABERT-2"]}
    checkpoint_goes_on(one, other, f"a DNABERT-2 of {first} continued by {second}", 2 * BOUNDS["bf16"][0], **settings)
