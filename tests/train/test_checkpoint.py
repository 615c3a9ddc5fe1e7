"""Checkpoints: whole or not at all, checked when read, refused when they do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import training

from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.native import read_state
from dnapretrain.errors import CheckpointError, DamagedCheckpointError
from dnapretrain.train.checkpoint import changed_settings


@pytest.fixture
def saved(ranks, tiny_config, tmp_path):
    """A run stopped after two steps; returns its folder."""
    ranks.run(1, training.train, tree=tiny_config("run"), until=2, save=True)
    return tmp_path / "run"


def _resume(ranks, tree, until=3):
    return ranks.run(1, training.train, tree=tree, until=until)[0]


def test_layout_on_disk(saved):
    assert (saved / "checkpoints" / "latest").read_text().strip() == "step_00000002"
    checkpoint = saved / "checkpoints" / "step_00000002"
    assert {path.name for path in checkpoint.iterdir()} == {"weights", "run.yaml", "tokenizer.json", "state.json"}
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["step"] == 2 and state["consumed_samples"] == 16 and state["schedule_samples"] == 16
    assert set(state["files"]) == {path.name for path in (checkpoint / "weights").iterdir()}
    names = training.stored_tensors(saved)
    assert "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight" in names  # one set of names for both specs
    assert "optimizer.state.exp_avg.decoder.layers.3.mlp.linear_fc1.weight" in names
    assert names["embedding.word_embeddings.weight"].shape == (128, 64)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_named(ranks, tiny_config, saved, damage):
    victim = max((saved / "checkpoints" / "step_00000002" / "weights").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[:-10])
    else:
        victim.unlink()
    with pytest.raises(CheckpointError, match=victim.name):
        _resume(ranks, tiny_config("run"))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("state.json", '"consumed_samples": ', '"consumed_samples": 1'),
        ("state.json", '"state_digest"', '"state_difest"'),
        ("state.json", '"small_files"', '"small_filds"'),
        ("run.yaml", "lr:", "lR:"),
        ("tokenizer.json", "kind", "kinf"),
    ],
)
def test_damage_beside_the_weights_is_found_and_passed_over(ranks, tiny_config, saved, name, old, new):
    """One wrong character of the position, the settings or the vocabulary: the run goes on from the checkpoint before."""
    path = saved / "checkpoints" / "step_00000002" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DamagedCheckpointError, match=f"{name}.* not as it was written"):
        read_state(path.parent)
    with pytest.raises(CheckpointError, match=name):
        _resume(ranks, tiny_config("run"))


def test_missing_state_is_found(ranks, tiny_config, saved):
    (saved / "checkpoints" / "step_00000002" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        _resume(ranks, tiny_config("run"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model.ffn_hidden_size": 128}, "model.ffn_hidden_size=96"),
        ({"model.rotary_base": 500}, "model.rotary_base"),
        ({"tokenizer.add_bos": False}, "tokenizer.add_bos"),
        ({"train.precision": "bf16"}, "train.precision"),
        ({"parallel.use_distributed_optimizer": True}, "use_distributed_optimizer"),
        ({"train.global_batch_size": 16}, "global_batch_size"),
        ({"data.seed": 99}, "other data"),
        ({"data.reverse_complement": 0.0}, "other data"),
    ],
    ids=str,
)
def test_a_run_that_does_not_fit_is_refused(ranks, tiny_config, saved, overrides, named):
    with pytest.raises(CheckpointError, match=named):
        _resume(ranks, tiny_config("run", **overrides))


def test_a_default_spelled_out_is_no_difference(ranks, tiny_config, saved):
    resumed = _resume(ranks, tiny_config("run", **{"model.kv_channels": 16, "model.max_position_embeddings": 64, "optim.lr": 1e-4}))
    assert len(resumed.losses) == 1


def test_what_a_resumed_run_does_otherwise_is_said(tiny_config):
    before = config_from_dict(tiny_config("parted"))
    same = {"train.stop_at_step": 3, "checkpoint.save_interval": 7, "log.console": "quiet"}
    assert changed_settings(before, config_from_dict(tiny_config("parted", **same))) == []
    after = config_from_dict(tiny_config("parted", **{"optim.lr": 5e-4, "parallel.tensor_model_parallel_size": 2}))
    assert changed_settings(before, after) == [
        "parallel.tensor_model_parallel_size 1 -> 2",
        f"optim.lr {before.optim.lr} -> 0.0005",
    ]
    renamed = config_from_dict(tiny_config("parted", **{"data.train": ["long/" * 30]}))
    assert changed_settings(before, renamed) == ["data.train"]


def test_a_save_that_was_cut_off_leaves_the_last_good_one(ranks, tiny_config, saved):
    parent = saved / "checkpoints"
    shutil.copytree(parent / "step_00000002", parent / ".step_00000004.partial")
    (parent / ".step_00000004.partial" / "state.json").unlink()
    assert len(_resume(ranks, tiny_config("run")).losses) == 1
    ranks.run(1, training.train, tree=tiny_config("run"), until=4, save=True)
    assert (parent / "latest").read_text().strip() == "step_00000004"
    assert not list(parent.glob(".*.partial"))


def test_resume_false_protects_what_is_there(ranks, tiny_config, saved):
    tree = tiny_config("run")
    tree["checkpoint"] = {"resume": False}
    with pytest.raises(CheckpointError, match=r"checkpoint\.resume=false"):
        _resume(ranks, tree)


def test_new_run_from_old_weights(ranks, tiny_config, saved):
    tree = tiny_config("continued", **{"data.seed": 5, "optim.lr": 1e-9, "optim.lr_warmup_steps": 0})
    tree["checkpoint"] = {"load": str(saved)}
    begun = ranks.run(2, training.train, tree={**tree, "parallel": {"tp": 2}}, until=1)[0]
    old = ranks.run(1, training.train, tree=tiny_config("run"), until=2)[0]
    fresh = ranks.run(1, training.train, tree=tiny_config("fresh", **{"optim.lr": 1e-9}), until=1)[0]
    assert begun.valid.loss == pytest.approx(old.valid.loss, abs=1e-5)
    assert abs(begun.valid.loss - fresh.valid.loss) > 1e-3
    assert begun.consumed_samples == 8


def test_a_target_that_cannot_be_written_is_an_error(ranks, tiny_config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exception, match="run_dir"):
        ranks.run(1, training.train, tree=tiny_config("file"), until=1)


def slow_save(env, store, tree):
    """Exit code of a process whose save takes longer than its limit."""
    import os
    import time

    from dnapretrain.train import saver

    pid = os.fork()
    if pid == 0:
        with saver.ends_within(0.2, "saving x"):
            time.sleep(3600)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    del env, store, tree
    return os.waitstatus_to_exitcode(status)


def test_a_save_that_hangs_ends_the_process(ranks, tiny_config):
    assert ranks.run(1, slow_save, tree=tiny_config())[0] == 3


def children_after_a_save(env, store, tree):
    """Command lines of the processes a rank has left running after a save."""
    import psutil

    trainer, _, _ = training.begin(env, store, tree)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    trainer.save(trainer.position)
    return [child.cmdline() for child in psutil.Process().children(recursive=True) if child.pid not in before]


def test_a_save_leaves_no_process_behind(ranks, tiny_config):
    assert ranks.run(1, children_after_a_save, tree=tiny_config()) == [[]]
