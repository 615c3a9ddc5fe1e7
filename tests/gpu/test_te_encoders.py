"""Encoders of Transformer Engine's layers against those of torch on a CUDA device, in the four published shapes, shallow."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpu_support import first_batch, losses, need_transformer_engine, relative, report, run_config, train, workplace

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
    import importlib

    # The module, which its package hides behind the class of a like name; it keeps its choice in a variable.
    module = importlib.import_module("transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention")
    chosen = getattr(module, "_attention_backends", {})
    names = {"use_flash_attention": "flash-attn", "use_fused_attention": "cuDNN", "use_unfused_attention": "unfused"}
    return next((name for key, name in names.items() if chosen.get(key)), "kernels unknown")


def test_torch_checkpoint_goes_on_with_transformer_engine() -> None:
    checkpoint_goes_on(TORCH, TE)


def test_transformer_engine_checkpoint_goes_on_with_torch() -> None:
    checkpoint_goes_on(TE, TORCH)


def checkpoint_goes_on(first: str, second: str) -> None:
    """3 steps with one spec, 3 with the other, of the shape that fuses no norm: the losses of 6 steps without a change."""
    need_transformer_engine()
    with workplace() as folder:
        settings = {**COMMON, **SHAPES["DNABERT-2"], "train__precision": "bf16"}
        whole = run_config(folder, "whole", model__transformer_impl=first, **settings)
        train(whole)
        train(run_config(folder, "parted", model__transformer_impl=first, train__stop_at_step=3, **settings))
        parted = run_config(folder, "parted", model__transformer_impl=second, **settings)
        train(parted)
        differences = [abs(a / b - 1) for a, b in zip(losses(parted), losses(whole), strict=True)]
    assert all(map(math.isfinite, differences))
    report(
        f"bf16 checkpoint of a DNABERT-2 of {first} continued by {second}", f"losses differ by {max(differences):.1e} (relative, largest)"
    )
    assert max(differences) < 2 * BOUNDS["bf16"][0]
