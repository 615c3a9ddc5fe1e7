"""A stopped run goes on as if it had not stopped: bit for bit at the same layout, within tolerance at another."""

from __future__ import annotations

import shutil

import pytest
import torch
import training
from train.test_layouts import MODELS

from dnapretrain.errors import CheckpointError

STOP, SOON, END = 4, 12, 24
"""Bit for bit a few steps show what is not restored; within tolerance it may have to grow first (test_at_other_layouts)."""
DROPOUT = {**MODELS["post-norm ALiBi encoder"], "model.hidden_dropout": 0.1, "model.attention_dropout": 0.1, "model.ffn_dropout": "inner"}


def _train_halves(ranks, tiny_config, world_size, end, **overrides):
    whole = ranks.run(world_size, training.train, tree=tiny_config("whole", **overrides), until=end, save=True)[0]
    ranks.run(world_size, training.train, tree=tiny_config("parted", **overrides), until=STOP, save=True)
    return whole


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, {}),
        (2, {"parallel.tp": 2, "parallel.sequence_parallel": True}),
        (2, {"parallel.pp": 2, "parallel.vpp": 2}),
        (2, {"parallel.use_distributed_optimizer": True}),
        (2, {"parallel.use_distributed_optimizer": True, "train.precision": "bf16"}),
        (2, {"parallel.use_distributed_optimizer": True, "parallel.overlap_param_gather": True, "parallel.overlap_grad_reduce": True}),
        (2, {"parallel.tp": 2, "train.precision": "bf16"}),
        (2, {"parallel.tp": 2, "parallel.sequence_parallel": True, **DROPOUT}),
        (2, {"parallel.pp": 2, "parallel.vpp": 2, "train.recompute": "full", **DROPOUT}),
        (2, {"parallel.use_distributed_optimizer": True, **DROPOUT}),
        (2, {"parallel.cp": 2, "parallel.use_distributed_optimizer": True, "train.precision": "bf16"}),
        (2, {"parallel.cp": 2, "train.recompute": "selective", **DROPOUT}),
        (2, {"train.rampup_batch_size": [4, 4, 40], "train.global_batch_size": 12, "optim.lr_warmup_steps": 6}),
    ],
    ids=lambda value: ", ".join(f"{key}={setting}" for key, setting in value.items()) if isinstance(value, dict) else str(value),
)
def test_bitwise_at_the_same_layout(ranks, tiny_config, tmp_path, world_size, overrides):
    whole = _train_halves(ranks, tiny_config, world_size, SOON, **overrides)
    resumed = ranks.run(world_size, training.train, tree=tiny_config("parted", **overrides), until=SOON, save=True)[0]
    assert "resumed from" in resumed.log
    assert resumed.losses == whole.losses[STOP:]
    assert resumed.grad_norms == whole.grad_norms[STOP:]
    assert resumed.learning_rates == whole.learning_rates[STOP:]
    assert resumed.consumed_samples == whole.consumed_samples
    ours, theirs = training.stored_tensors(tmp_path / "whole"), training.stored_tensors(tmp_path / "parted")
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq" in name for name in ours)
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_context_parallelism_may_change(ranks, tiny_config, tmp_path):
    """The distributed optimizer's state is spread over context-parallel ranks as over data-parallel ones."""
    common = {"parallel.use_distributed_optimizer": True}
    whole = _train_halves(ranks, tiny_config, 4, SOON, **{"parallel.cp": 2}, **common)
    for name, world_size, layout in (
        ("one rank", 1, {}),
        ("CP4", 4, {"parallel.cp": 4}),
        ("TP2xCP2", 4, {"parallel.tp": 2, "parallel.cp": 2}),
    ):
        shutil.copytree(tmp_path / "parted", tmp_path / name)
        resumed = ranks.run(world_size, training.train, tree=tiny_config(name, **layout, **common), until=SOON)[0]
        assert len(resumed.losses) == SOON - STOP
        assert max(abs(a - b) for a, b in zip(resumed.losses, whole.losses[STOP:], strict=True)) <= 1e-5, name
        assert max(abs(a - b) / b for a, b in zip(resumed.grad_norms, whole.grad_norms[STOP:], strict=True)) <= 1e-4, name


@pytest.mark.parametrize("distributed", [False, True], ids=["plain optimizer", "distributed optimizer"])
def test_at_other_layouts(ranks, tiny_config, tmp_path, distributed):
    common = {"parallel.use_distributed_optimizer": distributed}
    whole = _train_halves(ranks, tiny_config, 4, END, **{"parallel.tp": 2, "parallel.pp": 2}, **common)
    for name, world_size, layout in (
        ("one rank", 1, {}),
        ("TP2", 2, {"parallel.tp": 2}),
        ("PP4", 4, {"parallel.pp": 4}),
        ("TP2xDP2", 4, {"parallel.tp": 2}),
    ):
        shutil.copytree(tmp_path / "parted", tmp_path / name)
        resumed = ranks.run(world_size, training.train, tree=tiny_config(name, **layout, **common), until=END)[0]
        assert len(resumed.losses) == END - STOP >= 20
        assert max(abs(a - b) for a, b in zip(resumed.losses, whole.losses[STOP:], strict=True)) <= 1e-5, name
        assert max(abs(a - b) / b for a, b in zip(resumed.grad_norms, whole.grad_norms[STOP:], strict=True)) <= 1e-4, name


def test_three_stops_in_a_row(ranks, tiny_config):
    whole = ranks.run(2, training.train, tree=tiny_config("whole", **{"parallel.tp": 2}), until=12)[0]
    losses = []
    for until in (3, 5, 9, 12):
        losses += ranks.run(2, training.train, tree=tiny_config("parted", **{"parallel.tp": 2}), until=until, save=True)[0].losses
    assert losses == whole.losses


@pytest.mark.parametrize("distributed", [False, True], ids=["plain optimizer", "distributed optimizer"])
def test_new_optimizer_settings_hold_after_a_resume(ranks, tiny_config, distributed):
    common = {"parallel.use_distributed_optimizer": distributed}
    ranks.run(2, training.train, tree=tiny_config("parted", **common), until=STOP, save=True)
    new = {"optim.lr": 6e-3, "optim.min_lr": 5e-3, "optim.adam_beta2": 0.5}
    old = ranks.run(2, training.train, tree=tiny_config("parted", **common), until=STOP + 2)[0]
    changed = ranks.run(2, training.train, tree=tiny_config("parted", **common, **new), until=STOP + 2)[0]
    assert min(changed.learning_rates) >= 5e-3 > max(old.learning_rates)
    assert changed.losses[0] == old.losses[0] and changed.losses[1] != old.losses[1]


def test_a_batch_size_ramp_cannot_change_on_the_way(ranks, tiny_config):
    ramp = {"train.rampup_batch_size": [4, 4, 40], "train.global_batch_size": 12}
    ranks.run(1, training.train, tree=tiny_config("parted", **ramp), until=STOP, save=True)
    with pytest.raises(CheckpointError, match=r"train\.rampup_batch_size"):
        ranks.run(1, training.train, tree=tiny_config("parted", **{**ramp, "train.rampup_batch_size": [4, 4, 80]}), until=END)
