"""Every layout is the model on one rank: loss within 1e-5, gradient norm within 1e-4 relative, at every step."""

from __future__ import annotations

import pytest
import training

STEPS = 5
LONG_STEPS = 10
"""Where a run on one rank is to have learned, or bf16 to have had the time to go astray."""
LAYOUTS = {
    "TP2": (2, {"tp": 2}),
    "TP4": (4, {"tp": 4}),
    "TP2+SP": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2": (2, {"pp": 2}),
    "PP4": (4, {"pp": 4}),
    "PP2 interleaved": (2, {"pp": 2, "vpp": 2}),
    "PP2 uneven": (2, {"pp": 2, "num_layers_in_first_pipeline_stage": 3}),
    "TP2xPP3 uneven": (6, {"tp": 2, "pp": 3, "num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 1}),
    "DP2": (2, {}),
    "DP2+distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "TP2xPP2": (4, {"tp": 2, "pp": 2}),
    "TP2xPP2xDP2+SP+distributed optimizer": (8, {"tp": 2, "pp": 2, "sequence_parallel": True, "use_distributed_optimizer": True}),
    "CP2": (2, {"cp": 2}),
    "CP4": (4, {"cp": 4}),
    "CP2xTP2+SP": (4, {"cp": 2, "tp": 2, "sequence_parallel": True}),
    "CP2xPP2": (4, {"cp": 2, "pp": 2}),
    "CP2xDP2+distributed optimizer": (4, {"cp": 2, "use_distributed_optimizer": True}),
    "CP2xTP2xPP2 interleaved": (8, {"cp": 2, "tp": 2, "pp": 2, "vpp": 2}),
    "CP2, recompute full": (2, {"cp": 2}),
    "CP2, recompute selective": (2, {"cp": 2}),
    "recompute full": (1, {}),
    "recompute selective": (1, {}),
    "TP2xPP2+SP, recompute full": (4, {"tp": 2, "pp": 2, "sequence_parallel": True}),
}
ENCODER = {"model.kind": "encoder", "data.masking": {"mlm_probability": 0.15}, "data.min_length": 8, "model.normalization": "LayerNorm"}
MODELS = {
    "decoder": {"model.num_query_groups": 4},
    # All 93 samples are evaluated, in several passes, the last not full; of the others one pass.
    "decoder, tied": {"model.num_query_groups": 4, "model.untie_embeddings_and_output_weights": False, "train.eval_samples": None},
    # DNABERT-2: post-norm, ALiBi, a norm on the embeddings, token types, GEGLU with a bias on the way out only, tied head.
    "post-norm ALiBi encoder": {
        **ENCODER,
        "model.norm_position": "post",
        "model.position_embedding_type": "alibi",
        "model.activation": "geglu",
        "model.attention_bias": True,
        "model.ffn_out_bias": True,
        "model.embedding_norm": True,
        "model.type_vocab_size": 2,
        "model.num_query_groups": None,
        "model.untie_embeddings_and_output_weights": False,
    },
    # Nucleotide Transformer v2: pre-norm, rotary, biases on attention only, SwiGLU, untied; grouped queries besides.
    "rotary encoder": {**ENCODER, "model.attention_bias": True, "model.num_query_groups": 4},
    # ESM, Nucleotide Transformer v1: learned positions, GELU, all biases, words rescaled by the share of masks.
    "learned-position encoder": {
        **ENCODER,
        "model.position_embedding_type": "learned_absolute",
        "model.activation": "gelu",
        "model.attention_bias": True,
        "model.ffn_in_bias": True,
        "model.ffn_out_bias": True,
        "model.token_dropout": 0.12,
        "model.num_query_groups": None,
    },
}
SOME = ("TP2+SP", "PP2 interleaved", "TP2xPP2xDP2+SP+distributed optimizer")
WHOLE_TABLE = ("decoder", "post-norm ALiBi encoder", "rotary encoder")
FEW = (*SOME, "TP2", "PP2", "CP2xTP2+SP")
DECODER_ONLY = ("CP2xTP2xPP2 interleaved", "CP2, recompute full", "CP2, recompute selective")
TABLE = [
    (model, layout)
    for model in MODELS
    for layout in LAYOUTS
    if (model in WHOLE_TABLE or layout in FEW) and (model == "decoder" or layout not in DECODER_ONLY)
]


@pytest.fixture(scope="module")
def one_rank(ranks, small_shard, tmp_path_factory):
    """The reference, for a tree without its layout: one rank, computed once per model and number of steps."""
    known = {}

    def reference(tree, steps=STEPS):
        key = repr((tree["model"], tree["train"]["precision"], steps))
        if key not in known:
            train = {**tree["train"], "run_dir": str(tmp_path_factory.mktemp("alone")), "recompute": "none"}
            known[key] = ranks.run(1, training.train, tree={**tree, "parallel": {}, "train": train}, until=steps)[0]
        return known[key]

    return reference


def _tree(tiny_config, model, layout, **more):
    recompute = layout.rpartition("recompute ")[2] if "recompute" in layout else "none"
    tree = tiny_config(**{**MODELS[model], "train.recompute": recompute, **more})
    world_size, tree["parallel"] = LAYOUTS[layout]
    return world_size, tree


@pytest.mark.parametrize(("model", "layout"), TABLE)
def test_equals_one_rank(ranks, tiny_config, one_rank, model, layout):
    world_size, tree = _tree(tiny_config, model, layout)
    expected = one_rank(tree)
    for rank, result in enumerate(ranks.run(world_size, training.train, tree=tree, until=STEPS)):
        assert len(result.losses) == STEPS
        for step, (loss, norm) in enumerate(zip(result.losses, result.grad_norms, strict=True)):
            assert abs(loss - expected.losses[step]) <= 1e-5, (rank, step)
            assert abs(norm - expected.grad_norms[step]) <= 1e-4 * expected.grad_norms[step], (rank, step)
        assert result.accuracies == pytest.approx(expected.accuracies, abs=0.02)
        assert abs(result.valid.loss - expected.valid.loss) <= 1e-5
        assert result.valid.accuracy == pytest.approx(expected.valid.accuracy, abs=1e-3)
        assert result.learning_rates == expected.learning_rates


def test_an_uneven_interleaved_pipeline(ranks, tiny_config, one_rank):
    tree = tiny_config(**{**MODELS["decoder"], "model.num_layers": 6})
    expected = one_rank(tree)
    layout = {"pp": 2, "vpp": 2, "num_layers_in_first_pipeline_stage": 4}
    result = ranks.run(2, training.train, tree={**tree, "parallel": layout}, until=STEPS)[0]
    assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5
    assert result.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_the_reference_learns(one_rank, tiny_config, model):
    result = one_rank(tiny_config(**MODELS[model]), LONG_STEPS)
    assert result.losses[-1] < result.losses[0] - 0.3


def test_accumulation_equals_one_large_micro_batch(ranks, tiny_config, one_rank):
    expected = one_rank(tiny_config())
    result = ranks.run(1, training.train, tree=tiny_config(**{"train.micro_batch_size": 8}), until=STEPS)[0]
    assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5


BF16_BOUND = 0.03
"""Nats: bf16 against fp32, and bf16 layouts against bf16 on one rank, in the first 10 steps of these models."""


@pytest.mark.parametrize("layout", ["TP2", "PP2", "TP2xPP2+SP, recompute full"])
@pytest.mark.parametrize("model", WHOLE_TABLE)
def test_bf16_stays_near_fp32_and_near_itself(ranks, tiny_config, one_rank, model, layout):
    full = one_rank(tiny_config(**MODELS[model]), LONG_STEPS)
    world_size, tree = _tree(tiny_config, model, layout, **{"train.precision": "bf16"})
    alone = one_rank(tree, LONG_STEPS)
    split = ranks.run(world_size, training.train, tree=tree, until=LONG_STEPS)[0]
    assert max(abs(a - b) for a, b in zip(alone.losses, full.losses, strict=True)) <= BF16_BOUND
    assert max(abs(a - b) for a, b in zip(split.losses, alone.losses, strict=True)) <= BF16_BOUND
    assert alone.losses != full.losses
