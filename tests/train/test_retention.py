"""Which checkpoints stay, by plain examples and against a slow rule; the run lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from dnapretrain.config import CheckpointConfig
from dnapretrain.convert.native import find_checkpoint
from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.train.retention import delete_old, finished_checkpoints, latest_problem, logged_losses, resumable, to_delete
from dnapretrain.train.run_lock import RunLock


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"step_0000", b"../step_00000020\n", "step_0000002²".encode()])
def test_a_damaged_latest_is_told_and_the_newest_finished_one_tried(tmp_path, content):
    old, new = make(tmp_path, 10), make(tmp_path, 20)
    latest = tmp_path / "checkpoints" / "latest"
    assert resumable(tmp_path) == [new, old] and latest_problem(tmp_path) == ""  # a run that was killed before it
    latest.write_bytes(b"step_00000010\n")
    assert resumable(tmp_path) == [old] and latest_problem(tmp_path) == ""
    assert find_checkpoint(tmp_path) == old
    latest.write_bytes(content)
    assert resumable(tmp_path) == [new, old]
    assert f"WARNING: {latest} is damaged" in latest_problem(tmp_path)
    with pytest.raises(CheckpointError, match="latest is damaged: it names no checkpoint"):
        find_checkpoint(tmp_path)


def make(run, step, files=("a",), finished=True):
    weights = run / "checkpoints" / f"step_{step:08d}" / "weights"
    weights.mkdir(parents=True)
    for name in files:
        (weights / name).write_text("content")
    if finished:
        state = {"format": 1, "step": step, "consumed_samples": 8, "files": {name: {"bytes": 7, "xxh3_128": "0"} for name in files}}
        (weights.parent / "state.json").write_text(json.dumps(state))
    return weights.parent


@pytest.mark.parametrize(
    ("keep", "losses", "goes"),
    [
        ({}, {}, []),
        ({"keep_last": 2}, {}, [10, 20, 30]),
        ({"keep_last": 9}, {}, []),
        ({"keep_last": 1, "keep_every": 20}, {}, [10, 30]),
        ({"keep_last": 1, "keep_best": 1}, {10: 1.0, 20: 0.5, 30: 0.7, 40: 0.9}, [10, 30, 40]),
        ({"keep_last": 1, "keep_best": 2}, {10: 0.5, 20: 0.5, 30: 0.5}, [10, 40]),  # of equals the newer ones
        ({"keep_last": 1, "keep_best": 1}, {}, [10, 20, 30, 40]),
    ],
)
def test_what_goes(keep, losses, goes):
    assert to_delete([50, 10, 30, 20, 40], 50, CheckpointConfig(**keep), losses) == goes


def test_rules_hold_for_any_history():
    rng = random.Random(5)
    for _ in range(300):
        keep = CheckpointConfig(keep_last=rng.choice([1, 2, 3]), keep_every=rng.choice([None, 20]), keep_best=rng.choice([None, 1, 2]))
        steps = rng.sample(range(5, 100, 5), rng.randint(1, 12))
        newest, losses = rng.choice(steps), {step: rng.random() for step in steps if rng.random() < 0.7}
        gone = set(to_delete(steps, newest, keep, losses))
        assert newest not in gone and not [step for step in gone if step > newest]
        before = sorted(step for step in steps if step <= newest)
        assert not gone & set(before[-keep.keep_last :])
        assert not [step for step in gone if keep.keep_every and step % keep.keep_every == 0]
        best = min((step for step in before if step in losses), key=losses.__getitem__, default=None)
        assert not keep.keep_best or best not in gone


def test_only_finished_checkpoints_count_and_nothing_goes_while_the_newest_is_not_whole(tmp_path):
    old, newest = make(tmp_path, 10), make(tmp_path, 20)
    make(tmp_path, 30, finished=False)
    assert finished_checkpoints(tmp_path) == [old, newest]
    (newest / "weights" / "a").write_text("cut")
    with pytest.raises(CheckpointError, match="older checkpoints are kept"):
        delete_old(tmp_path, newest, CheckpointConfig(keep_last=1), {})
    assert old.exists()
    (newest / "weights" / "a").write_text("content")
    (tmp_path / "checkpoints" / ".step_00000005.deleting").mkdir()
    assert delete_old(tmp_path, newest, CheckpointConfig(keep_last=1), {}) == [old]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000020", "step_00000030"]


def test_the_order_in_which_a_start_tries(tmp_path):
    assert resumable(tmp_path) == []
    first, second, third = (make(tmp_path, step) for step in (10, 20, 30))
    assert resumable(tmp_path) == [third, second, first]  # no `latest`: the newest
    latest = tmp_path / "checkpoints" / "latest"
    latest.write_text("step_00000020\n")  # set back by hand
    assert resumable(tmp_path) == [second, first]
    latest.write_text("\x00\x00")  # torn by a crash of the machine
    assert resumable(tmp_path) == [third, second, first]


def test_losses_are_read_from_the_log(tmp_path):
    records = [
        {"kind": "train", "step": 2, "loss": 9.0},
        *(
            {"kind": "eval", "set": name, "step": step, "loss": loss}
            for name, step, loss in (("valid", 2, 1.5), ("other", 2, 3.0), ("valid", 2, 1.25))
        ),
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "eval", "st')
    assert logged_losses(tmp_path / "log.jsonl", "valid") == {2: 1.25}
    assert logged_losses(tmp_path / "none", "valid") == {}


def hold(run, pipe):
    pipe.send(RunLock(run).take())
    time.sleep(3600)


def test_one_run_at_a_time_and_a_dead_process_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
    other.start()
    assert ours.recv() == ""
    with pytest.raises(ConfigError, match=f"in use by process {other.pid} on .* Wait for its end"):
        RunLock(tmp_path / "run").take()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    lock = RunLock(tmp_path / "run")
    remark = lock.take()
    assert f"process {other.pid} on" in remark and "stale" in remark
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []
    assert RunLock(tmp_path / "run").take() == ""
