"""FP8, fused kernels and CUDA graphs on a CUDA device, each against the same model without it; evaluation with none of them.

Bounds are not calibrated: none of this has run on a GPU yet. Runs with CUDA graphs, delayed scaling or chosen attention kernels have a
process each, as for users: those keep state that outlives a run.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gpu_support import command_line, losses, need_transformer_engine, report, run_config, steps, train, workplace

from dnapretrain.config_file import dump_config

TE = {"model__transformer_impl": "transformer_engine", "train__precision": "bf16"}
SHAPE = {"model__num_layers": 4, "model__hidden_size": 256, "model__ffn_hidden_size": 768, "data__sequence_length": 512}
ENCODER = {
    "model__kind": "encoder",
    "model__normalization": "LayerNorm",
    "data__masking": {"mlm_probability": 0.15},
    "data__min_length": 8,
    "train__eval_samples": 8,
}
FUSED_BOUND = 1e-2
"""Largest relative difference of a loss in 6 steps: bf16 rounded in another order."""
FP8_BOUND = 5e-2
"""The same for FP8: 3 (E4M3) and 2 (E5M2) bits of mantissa against 7."""
FP8 = {"train__fp8": "hybrid"}
DELAYED = {**FP8, "train__fp8_recipe": "delayed"}
DELAYED_BOUND = 2e-1
"""Its scales begin at 1, where small gradients of the first step are lost, and the second step is too long: 0.11 on emulated kernels."""
ENDS = {"train__first_last_layers_bf16": True}


def test_fp8_by_tensors() -> None:
    close_to_plain("FP8, tensorwise", FP8, FP8_BOUND)


def test_fp8_delayed() -> None:
    close_to_plain("FP8, delayed", DELAYED, DELAYED_BOUND, apart=True)


def test_fp8_by_blocks() -> None:
    close_to_plain("FP8, blockwise", {**FP8, "train__fp8_recipe": "blockwise"}, FP8_BOUND)


def test_fp8_with_ends_in_bf16() -> None:
    close_to_plain("FP8, first and last layer in bf16", {**FP8, **ENDS}, FP8_BOUND)


def test_fp8_encoder() -> None:
    close_to_plain("FP8, encoder", FP8, FP8_BOUND, **ENCODER)


def test_fused_rope() -> None:
    close_to_plain("fused rotation", {"train__apply_rope_fusion": True}, FUSED_BOUND)


def test_fused_swiglu() -> None:
    close_to_plain("fused SwiGLU", {"train__bias_activation_fusion": True}, FUSED_BOUND)


def test_fused_cross_entropy_of_megatron() -> None:
    close_to_plain("fused cross-entropy, native", {"train__cross_entropy_loss_fusion": True}, FUSED_BOUND)


def test_fused_cross_entropy_of_transformer_engine() -> None:
    fusion = {"train__cross_entropy_loss_fusion": True, "train__cross_entropy_fusion_impl": "te"}
    close_to_plain("fused cross-entropy, te", fusion, FUSED_BOUND)


def test_fused_weight_gradients() -> None:
    close_to_plain("fused weight gradients", {"train__gradient_accumulation_fusion": True}, FUSED_BOUND)


def test_cuda_graphs_of_megatron() -> None:
    close_to_plain("CUDA graphs, local", {"train__cuda_graph_impl": "local"}, FUSED_BOUND, apart=True)


def test_cuda_graphs_of_transformer_engine() -> None:
    settings = {"train__cuda_graph_impl": "transformer_engine", "train__cuda_graph_warmup_steps": 2}
    close_to_plain("CUDA graphs, transformer_engine", settings, FUSED_BOUND, apart=True)


def test_cuda_graphs_with_fp8() -> None:
    close_to_plain("CUDA graphs, local, FP8", {**FP8, "train__cuda_graph_impl": "local"}, FP8_BOUND, apart=True)


def test_attention_of_each_kind() -> None:
    for kind in ("fused", "unfused"):  # flash where flash-attn is installed, which it need not be
        close_to_plain(f"attention {kind}", {"train__attention_backend": kind}, FUSED_BOUND, apart=True)


def test_fp8_resumes_bit_for_bit() -> None:
    """Scales of the tensor itself need no memory of earlier steps."""
    need_transformer_engine()
    settings = {**TE, **SHAPE, **FP8, "train__deterministic": True}
    with workplace() as folder:
        whole, parted = run(folder, "whole", **settings), run(folder, "parted", **settings, train__stop_at_step=3)
        run(folder, "parted", **settings)
        assert losses(parted) == losses(whole)
        assert [record["grad_norm"] for record in steps(parted)] == [record["grad_norm"] for record in steps(whole)]


def test_a_checkpoint_of_fp8_is_evaluated_without_it() -> None:
    need_transformer_engine()
    with workplace() as folder:
        config = run(folder, "run", **TE, **SHAPE, **FP8)
        records = [json.loads(line) for line in (config.train.run_dir / "log.jsonl").read_text().splitlines()]
        here = [record for record in records if record["kind"] == "eval"][-1]
        there = json.loads(command_line("evaluate", config.train.run_dir, "--json"))["valid"]
        chosen = [record for record in records if record["kind"] == "attention"]
    assert len(chosen) == 1 and "Transformer Engine chose" in chosen[0]["kernels"]
    assert math.isclose(there["loss"], here["loss"], rel_tol=FP8_BOUND)


def close_to_plain(what: str, kernels: dict[str, Any], bound: float, apart: bool = False, **settings: Any) -> None:
    """6 steps with `kernels` (`apart`: in a process of its own) and 6 without: losses are close, gradient norms too, and all are finite."""
    need_transformer_engine()
    with workplace() as folder:
        plain, other = (
            run_config(folder, name, **{**TE, **SHAPE, **settings, **more}) for name, more in (("plain", {}), ("other", kernels))
        )
        train(plain)
        if apart:
            run(folder, "other", **{**TE, **SHAPE, **settings, **kernels})
        else:
            train(other)
        differences = [abs(a / b - 1) for a, b in zip(losses(other), losses(plain), strict=True)]
        norms = [abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(steps(other), steps(plain), strict=True)]
    report(
        f"{what}, against bf16 without, 6 steps", f"losses differ by {max(differences):.1e}, gradient norms by {max(norms):.1e} (largest)"
    )
    # Written so that a value that is no number fails.
    assert max(differences) < bound and all(map(math.isfinite, differences))
    assert max(norms) < 10 * bound and all(map(math.isfinite, norms))


def run(folder: Path, name: str, **settings: Any) -> Any:
    """Train in a process of its own; the config."""
    config = run_config(folder, name, **settings)
    file = folder / f"{name}.yaml"
    file.write_text(dump_config(config))
    for variable in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        os.environ.pop(variable, None)  # Megatron-core sets them in a process that has built a model
    command_line("pretrain", file)
    return config
