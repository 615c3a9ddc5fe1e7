"""Weights that differ between data-parallel ranks are found, and the rank and the weight are named."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
import training

from dnapretrain.errors import DivergedReplicasError
from dnapretrain.train.replicas import first_difference, weight_digests

WEIGHT = "module.decoder.layers.1.mlp.linear_fc1.weight"
NAMES = ["embedding", "norm", "output"]
EVERY_STEP = {"train.train_steps": 3, "train.check_weight_hash_across_dp_replicas_interval": 1}


def flip_and_fit(env, store, tree, flip_rank):
    """The error of a run in which one bit of one weight of one rank flips in step 2, as text; '' for none."""
    trainer, _, _ = training.begin(env, store, tree)
    train_step = trainer.train_step

    def step_and_flip(batches):
        report = train_step(batches)
        if report.step == 2 and env.rank == flip_rank:
            weight = dict(trainer.chunks[-1].named_parameters())[WEIGHT]
            weight.data.view(torch.int32)[3, 5] ^= 1
        return report

    trainer.train_step = step_and_flip
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            trainer.fit()
        except DivergedReplicasError as error:
            return str(error)
        finally:
            trainer.log.close()
    return ""


@pytest.mark.parametrize(
    ("world_size", "flip_rank", "layout", "says"),
    [
        (2, 1, {}, f"ranks 0, 1 disagree in weight chunk 0 {WEIGHT}"),
        (3, 2, {"train.global_batch_size": 6}, f"rank 2 holds another value of weight chunk 0 {WEIGHT} than ranks 0, 1"),
        (4, 1, {"parallel.tp": 2}, f"ranks 1, 3 disagree in weight chunk 0 {WEIGHT}"),
    ],
    ids=["DP2", "DP3", "TP2xDP2"],
)
def test_one_flipped_bit_ends_the_run(ranks, tiny_config, world_size, flip_rank, layout, says):
    errors = ranks.run(world_size, flip_and_fit, tree=tiny_config("run", **EVERY_STEP, **layout), flip_rank=flip_rank)
    assert errors[0].startswith(f"step 2: {says}. ") and set(errors) == {errors[0]}


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"parallel.use_distributed_optimizer": True, "parallel.overlap_param_gather": True, "parallel.overlap_grad_reduce": True},
        {"parallel.use_distributed_optimizer": True, "train.precision": "bf16"},
        {"parallel.tp": 2},
    ],
)
def test_a_sound_run_passes_and_is_not_changed(ranks, tiny_config, tmp_path, layout):
    assert ranks.run(2, flip_and_fit, tree=tiny_config("run", **EVERY_STEP, **layout), flip_rank=None) == ["", ""]
    plain = ranks.run(2, training.train, tree=tiny_config("plain", **layout), until=3)[0]
    records = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert [record["loss"] for record in records if record["kind"] == "train"] == plain.losses


def test_digests_follow_every_bit():
    weights = [torch.randn(7, 3), torch.randn(5).to(torch.bfloat16), torch.randn(4, 6).t()]
    digests = weight_digests(weights)
    assert digests.dtype == torch.int64 and torch.equal(digests, weight_digests([weight.clone() for weight in weights]))
    weights[1].view(torch.int16)[4] ^= 1
    assert (weight_digests(weights) != digests).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[1, 2, 3], [1, 2, 3]], ""),
        ([[1, 2, 3], [1, 2, 3], [1, 5, 6]], "rank 6 holds another value of weight norm and 1 more than ranks 0, 3"),
        ([[1, 2, 3], [1, 2, 4]], "ranks 0, 3 disagree in weight output"),
    ],
)
def test_the_odd_rank_is_named(rows, says):
    assert first_difference(NAMES, [0, 3, 6][: len(rows)], torch.tensor(rows)) == says
