"""Every layout is the model on one rank: loss within 1e-5, gradient norm within 1e-4 relative, at every step."""

from __future__ import annotations

import pytest
import training

STEPS = 10
LAYOUTS = {
    "TP2": (2, {"tp": 2}),
    "TP2+SP": (2, {"tp": 2, "sequence_parallel": True}),
    "TP4 needs 4 groups": (4, {"tp": 4}),
    "PP2": (2, {"pp": 2}),
    "PP2 interleaved": (2, {"pp": 2, "vpp": 2}),
    "DP2": (2, {}),
    "DP2+distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "TP2xPP2": (4, {"tp": 2, "pp": 2}),
    "TP2xPP2xDP2+SP+distributed optimizer": (8, {"tp": 2, "pp": 2, "sequence_parallel": True, "use_distributed_optimizer": True}),
}


@pytest.fixture(scope="module")
def one_rank(ranks, small_shard, tmp_path_factory):
    """The reference, for a tree without its layout: one rank, computed once per model."""
    known = {}

    def reference(tree):
        key = repr((tree["model"], tree["train"]["precision"]))
        if key not in known:
            alone = {**tree, "parallel": {}, "train": {**tree["train"], "run_dir": str(tmp_path_factory.mktemp("alone"))}}
            known[key] = ranks.run(1, training.train, tree=alone, until=STEPS)[0]
        return known[key]

    return reference


TIED = ("TP2", "PP2", "PP2 interleaved")  # where the two ends of a tied embedding meet, on one rank or on two


@pytest.mark.parametrize(("layout", "tied"), [(layout, False) for layout in LAYOUTS] + [(layout, True) for layout in TIED])
def test_equals_one_rank(ranks, tiny_config, one_rank, layout, tied):
    world_size, parallel = LAYOUTS[layout]
    tree = tiny_config(**{"model.untie_embeddings_and_output_weights": not tied})
    if layout.startswith("TP4"):
        tree["model"]["num_query_groups"] = 4
    tree["parallel"] = parallel
    expected = one_rank(tree)
    for rank, result in enumerate(ranks.run(world_size, training.train, tree=tree, until=STEPS)):
        assert len(result.losses) == STEPS
        for step, (loss, norm) in enumerate(zip(result.losses, result.grad_norms, strict=True)):
            assert abs(loss - expected.losses[step]) <= 1e-5, (layout, rank, step)
            assert abs(norm - expected.grad_norms[step]) <= 1e-4 * expected.grad_norms[step], (layout, rank, step)
        assert abs(result.valid_loss - expected.valid_loss) <= 1e-5
        assert result.learning_rates == expected.learning_rates


def test_the_reference_learns(one_rank, tiny_config):
    result = one_rank(tiny_config())
    assert result.losses[-1] < result.losses[0] - 0.3


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(ranks, tiny_config, one_rank, recompute):
    tree = tiny_config(**{"train.recompute": recompute, "parallel.tp": 2, "parallel.sequence_parallel": True})
    expected = one_rank(tiny_config())
    result = ranks.run(2, training.train, tree=tree, until=STEPS)[0]
    assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5
    assert max(abs(a - b) / b for a, b in zip(result.grad_norms, expected.grad_norms, strict=True)) <= 1e-4


def test_accumulation_equals_one_large_micro_batch(ranks, tiny_config, one_rank):
    expected = one_rank(tiny_config())
    result = ranks.run(1, training.train, tree=tiny_config(**{"train.micro_batch_size": 8}), until=STEPS)[0]
    assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5


def test_bf16_stays_near_fp32_and_near_itself_under_tp(ranks, tiny_config, one_rank):
    full = one_rank(tiny_config())
    alone = ranks.run(1, training.train, tree=tiny_config("alone", **{"train.precision": "bf16"}), until=STEPS)[0]
    split = ranks.run(2, training.train, tree=tiny_config("split", **{"train.precision": "bf16", "parallel.tp": 2}), until=STEPS)[0]
    assert max(abs(a - b) for a, b in zip(alone.losses, full.losses, strict=True)) <= 0.03
    assert max(abs(a - b) for a, b in zip(split.losses, alone.losses, strict=True)) <= 0.03
    assert alone.losses != full.losses
