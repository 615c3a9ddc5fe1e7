"""Saves under fault: the files of a save are those of its moment, and whatever happens to a writer, the run goes on."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import training

from dnapretrain.errors import CheckpointError

TWO_RANKS = {"parallel.tp": 2, "train.precision": "bf16"}


def step(trainer, count=1):
    for _ in range(count):
        trainer.train_step(trainer.next_batches())


def until_saved(trainer):
    """Train on until the save in progress has ended; how many steps that took."""
    before = trainer.position.step
    while trainer.saver._writing is not None:
        step(trainer)
        trainer.saver.advance()
    return trainer.position.step - before


def under_fault(env, store, tree):
    """What became of saves whose writers are slow, fail, die and hang on the last rank."""
    from dnapretrain.train import checkpoint_writer

    trainer, _, _ = training.begin(env, store, tree)
    saver, run = trainer.saver, Path(tree["train"]["run_dir"])
    write = checkpoint_writer._write
    report = {}

    def slow(*arguments):
        time.sleep(1)
        return write(*arguments)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def dies(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(*arguments):
        (run / f"hangs{env.rank}").touch()
        time.sleep(3600)

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        step(trainer)
        saver.save(trainer.position)
        if env.rank == 0:
            shutil.copytree(run / "checkpoints", run.parent / "waited_for" / "checkpoints")
        checkpoint_writer._write = slow
        saver.begin(trainer.position)
        report["steps while writing"] = until_saved(trainer)
        for name, fault in (("full", full), ("dies", dies), ("hangs", hangs)):
            checkpoint_writer._write = fault if env.rank == env.world_size - 1 else write
            began = time.monotonic()
            saver.begin(trainer.position)
            if fault is hangs:  # the deadline comes once the writer is seen to hang, not after seconds that a busy machine needs itself
                report["seconds to the deadline"] = saver._writing.deadline - began
                while not (run / f"hangs{env.world_size - 1}").exists():
                    time.sleep(0.02)
                step(trainer, 2)
                saver.advance()
                report["waits for its writer"] = saver._writing is not None
                if env.rank == env.world_size - 1:
                    saver._writing.deadline = time.monotonic()
            until_saved(trainer)
            report[name] = (saver.saved_step, saver.failures, saver._reason, saver.due(trainer.position.step))
        checkpoint_writer._write = write
        saver.begin(trainer.position)
        step(trainer, 2)
        saver.save(trainer.position)  # waits for the one begun, then saves this one
        report["at last"] = (saver.saved_step, saver.failures, trainer.position.step)
    report["printed"] = printed.getvalue()
    return report


@pytest.mark.parametrize(("world_size", "overrides"), [(1, {}), (2, TWO_RANKS)], ids=["one rank", "two ranks"])
def test_saves_under_fault(ranks, tiny_config, tmp_path, world_size, overrides):
    report = ranks.run(world_size, under_fault, tree=tiny_config("run", **overrides))[0]
    assert report["steps while writing"] >= 1 and report["waits for its writer"]
    assert report["seconds to the deadline"] >= 1800  # checkpoint.timeout_seconds, from the moment it begins to write
    whole, parted = training.stored_tensors(tmp_path / "waited_for"), training.stored_tensors_of(tmp_path / "run/checkpoints/step_00000001")
    assert whole.keys() == parted.keys() and any("exp_avg_sq" in name for name in whole)
    assert not [name for name in whole if not torch.equal(whole[name], parted[name])]
    for number, (fault, says) in enumerate((("full", "No space left on device"), ("dies", "died"), ("hangs", "timeout_seconds")), 1):
        saved_step, failures, reason, due = report[fault]
        assert (saved_step, failures, due) == (1, number, True)
        assert says in reason
    saved_step, failures, last_step = report["at last"]
    assert saved_step == last_step and failures == 0
    assert report["printed"].count("SAVE FAILED") == 3
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not list(checkpoints.glob(".*"))
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert kinds.count("checkpoint_failed") == 3 and kinds.count("checkpoint") == 4


def keep_and_stop(env, store, tree, stop_file):
    """A run that keeps few checkpoints and is stopped by its file."""
    trainer, _, _ = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if stop_file:
            train_step = trainer.train_step

            def touch_at_nine(batches):
                if trainer.position.step == 8:
                    trainer.stop.file.touch()
                    trainer.stop._looked = 0.0
                return train_step(batches)

            trainer.train_step = touch_at_nine
        trainer.fit()
        trainer.log.close()
    return trainer.position.step, trainer.stop.reason, printed.getvalue()


def test_a_run_keeps_what_it_should_and_goes_back_to_the_checkpoint_before_a_damaged_one(ranks, tiny_config, tmp_path):
    tree = tiny_config("run", **{"train.train_steps": 12, "train.eval_interval": 2, "train.eval_samples": 4})
    tree["checkpoint"] = {"save_interval": 2, "keep_last": 2, "keep_every": 4, "keep_best": 1}
    reached, reason, printed = ranks.run(1, keep_and_stop, tree=tree, stop_file=True)[0]
    assert reached == 9 and "stop" in reason and "stopped after step 9 by the file stop" in printed
    checkpoints = tmp_path / "run" / "checkpoints"
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if record["kind"] == "eval"}
    best = min((step for step in losses), key=losses.__getitem__)
    assert {int(path.name[5:]) for path in checkpoints.glob("step_*")} == {4, 8, 9, best}
    assert not (tmp_path / "run" / "stop").exists()

    (victim, *_) = (checkpoints / "step_00000009" / "weights").glob("__0_0.distcp")
    victim.write_bytes(victim.read_bytes()[:-1])
    reached, reason, printed = ranks.run(1, keep_and_stop, tree=tree, stop_file=False)[0]
    assert (reached, reason) == (12, "")
    start = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if '"kind": "start"' in line][-1]
    assert start["step"] == 8 and "step_00000009 is damaged" in start["remarks"][0] and victim.name in start["remarks"][0]
    assert (checkpoints / "latest").read_text() == "step_00000012\n"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k,mode=755", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def save_anyway(env, store, tree):
    """A save that finds the disk full while it writes; then the same with room."""
    from dnapretrain.train import checkpoint_writer, saver

    for module in (checkpoint_writer, saver):
        module.check_room = lambda *_: None
    trainer, _, _ = training.begin(env, store, tree)
    with contextlib.redirect_stdout(io.StringIO()):
        step(trainer)
        try:
            trainer.saver.save(trainer.position)
        except CheckpointError as error:
            failed = str(error)
    left = sorted(path.name for path in Path(tree["train"]["run_dir"]).rglob("*") if path.is_file())
    subprocess.run(["mount", "-o", "remount,size=30m", Path(tree["train"]["run_dir"]).parent], check=True)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.saver.save(trainer.position)
    trainer.log.close()
    return failed, left


def test_a_full_disk(ranks, tiny_config, small_disk):
    tree = tiny_config("run")
    tree["train"]["run_dir"] = str(small_disk / "run")
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written to .*it takes 0\.\d+ GB, 0\.000 GB are free"):
        ranks.run(1, training.train, tree=tree, until=1)
    ((failed, left),) = ranks.run(1, save_anyway, tree=tree)
    assert "No space left on device" in failed and "3 attempts" in failed
    assert not [name for name in left if name not in ("run.yaml", "log.jsonl")]  # nothing torn stays, and the room is free again
    assert len(training.stored_tensors(small_disk / "run")) > 50


def test_a_read_only_disk_is_found_before_training(ranks, tiny_config, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    tree = tiny_config("run")
    tree["train"]["run_dir"] = str(small_disk / "run")
    with pytest.raises(Exception, match=r"run_dir = .*Read-only file system"):
        ranks.run(1, training.train, tree=tree, until=1)


def without_rights(env, store, tree):
    """What a start as another user says to a folder of root's."""
    trainer, _, _ = training.begin(env, store, tree)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        trainer.saver.check_target(1)
    except CheckpointError as error:
        return str(error)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    return "no error"


def test_a_folder_without_rights_is_found_before_training(ranks, tiny_config, tmp_path):
    tree = tiny_config("run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").chmod(0o555)
    try:
        try:
            text = ranks.run(1, without_rights, tree=tree)[0]
        except CheckpointError as error:  # not root: the start itself says so
            text = str(error)
    finally:
        (tmp_path / "run" / "checkpoints").chmod(0o755)
    assert "checkpoints cannot be written to" in text and "Permission denied" in text
