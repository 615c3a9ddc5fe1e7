"""Runs whose samples are spread over context-parallel ranks: what looks at whole samples is that of one rank."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import training
from train.test_layouts import MODELS

from dnapretrain.errors import DivergedReplicasError

STEPS = 3
KMERS = {"tokenizer.kind": "kmer", "tokenizer.k": 3, "train.loss": "nucleotide", "data.random_phase": True}
REGIONS = {"data.regions": {"soft_mask": True, "gc_edges": [0.45, 0.55]}}
VARIANTS = {
    "decoder of 3-mers by their bases": {**KMERS, **REGIONS},
    "rotary encoder": {**MODELS["rotary encoder"], **REGIONS},
    "words rescaled by the share of masks": {**MODELS["learned-position encoder"], "data.masking": {"mlm_probability": 0.3}},
}


def look(env, store, tree):
    """A few steps; then each sample's loss of one more batch, the evaluation, and the log's start."""
    trainer, _, log = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()):
        reports = [trainer.train_step(trainer.next_batches()) for _ in range(STEPS)]
        before = trainer.position
        report = trainer.train_step(trainer.next_batches())
        samples, again = trainer.recovery._look_again(report, before)
        valid = trainer.evaluate()["valid"]
        rates = trainer._rates(report)
    trainer.log.close()
    counts = [(report.num_targets, report.num_tokens) for report in reports]
    return [report.loss for report in reports], counts, samples, again, valid, rates["tflops"] * report.seconds, log


@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_over_samples_are_those_of_one_rank(ranks, tiny_config, variant):
    alone = ranks.run(1, look, tree=tiny_config("alone", **VARIANTS[variant]))[0]
    of_ranks = ranks.run(4, look, tree=tiny_config("spread", **VARIANTS[variant], **{"parallel.cp": 2}))
    for losses, counts, samples, again, valid, work, _ in of_ranks:
        assert losses == pytest.approx(alone[0], abs=1e-5)
        assert counts == alone[1]
        assert samples == pytest.approx(alone[2], abs=1e-4, nan_ok=True) and again == pytest.approx(alone[3], abs=1e-4)
        expected = alone[4]
        assert (valid.num_targets, valid.num_bases, valid.num_samples) == (expected.num_targets, expected.num_bases, expected.num_samples)
        assert valid.bits_per_base == pytest.approx(expected.bits_per_base, abs=1e-4)
        assert valid.marginal_bits_per_base == pytest.approx(expected.marginal_bits_per_base, abs=1e-4)
        assert (valid.regions is None) == (expected.regions is None)
        for grouping, classes in (expected.regions or {}).items():
            assert {name: pytest.approx(values, abs=1e-4) for name, values in classes.items()} == valid.regions[grouping]
        assert work == pytest.approx(alone[5] / 4)
    log = of_ranks[0][-1]
    assert "4 rank(s) = tensor 1 x pipeline 1 x context 2 x data 2" in log and "gathered of 2 context-parallel ranks" in log


def damaged(env, store, tree):
    """What the check of replicas says when a context-parallel rank's weight has changed."""
    from dnapretrain.train.replicas import check_replicas

    trainer, *_ = training.begin(env, store, tree)
    trainer.train_step(trainer.next_batches())
    check_replicas(trainer.chunks, 1, False)
    if env.rank == 1:
        with torch.no_grad():
            next(trainer.chunks[0].parameters()).view(-1)[0] += 1e-3
    with pytest.raises(DivergedReplicasError) as caught:
        check_replicas(trainer.chunks, 1, False)
    trainer.log.close()
    return str(caught.value)


def test_context_parallel_ranks_are_replicas(ranks, tiny_config):
    assert "ranks 0, 1 disagree" in ranks.run(2, damaged, tree=tiny_config(**{"parallel.cp": 2}))[0]


def test_bf16_stays_near_one_rank(ranks, tiny_config):
    alone, spread = (
        ranks.run(size, training.train, tree=tiny_config(f"of {size}", **{"train.precision": "bf16", "parallel.cp": size}), until=STEPS)[0]
        for size in (1, 2)
    )
    assert alone.losses == pytest.approx(spread.losses, abs=0.03)
