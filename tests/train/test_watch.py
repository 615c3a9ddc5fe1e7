"""The heartbeat file, and ranks that do not get on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from datetime import timedelta

import pytest
import torch
import training
from ranks import HANG_SECONDS

from dnapretrain.errors import HangError
from dnapretrain.train.watch import HANGS_DIR, HEARTBEAT_FILE, Watch, who_is_behind

NEVER = 1e6
"""Seconds until a rank counts as hanging, while the test does not want it to: a busy machine may stop anywhere for some."""


def wait_for(condition):
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def test_heartbeat_is_whole_and_follows_the_run(tmp_path):
    began = time.time()
    watch = Watch(tmp_path, rank=0, world_size=4, heartbeat_seconds=0.05, hang_seconds=0)
    watch.start()
    file = tmp_path / HEARTBEAT_FILE
    for step in (1, 2):
        watch.enter("update", step)
        wait_for(lambda step=step: file.exists() and json.loads(file.read_text())["step"] == step)
    beat = json.loads(file.read_text())
    assert beat["phase"] == "update" and 0 <= beat["phase_seconds"] <= time.time() - began and began <= beat["time"] <= time.time()
    first = json.loads(file.read_text())["time"]
    wait_for(lambda: json.loads(file.read_text())["time"] > first)  # it goes on though the step does not
    watch.enter("end")
    watch.stop()
    assert json.loads(file.read_text())["phase"] == "end"
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEARTBEAT_FILE]


def test_only_rank_0_has_a_heartbeat(tmp_path):
    watch = Watch(tmp_path, rank=1, world_size=4, heartbeat_seconds=0.02, hang_seconds=0)
    watch.start()
    time.sleep(0.1)
    watch.stop()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_the_watch(tmp_path, capsys):
    watch = Watch(tmp_path / "missing", rank=0, world_size=1, heartbeat_seconds=0.02, hang_seconds=0)
    watch.start()
    time.sleep(0.1)
    assert watch._thread.is_alive()
    watch.stop()
    assert "cannot write" in capsys.readouterr().err


def test_a_hang_is_told_with_its_stack_and_forgotten_when_it_ends(tmp_path, capsys):
    watch = Watch(tmp_path, rank=0, world_size=1, heartbeat_seconds=0.05, hang_seconds=NEVER)
    watch.start()
    watch.enter("saving", 7)

    def does_not_get_on():
        time.sleep(0.2)
        watch.hang_seconds = 0.1
        while not (tmp_path / HANGS_DIR / "rank_00000.txt").exists():
            time.sleep(0.02)

    does_not_get_on()
    text = (tmp_path / HANGS_DIR / "rank_00000.txt").read_text()
    state = json.loads(text.partition("\n")[0])
    assert (state["step"], state["phase"], state["rank"]) == (7, "saving", 0) and state["phase_seconds"] >= 0.1
    assert "does_not_get_on" in text and ("does_not_get_on (test_watch.py:" in state["at"] or "(pathlib.py:" in state["at"])
    watch.hang_seconds = NEVER
    watch.enter("forward-backward", 8)
    wait_for(lambda: not (tmp_path / HANGS_DIR / "rank_00000.txt").exists())
    watch.stop()
    assert "rank 0 on" in (said := capsys.readouterr().err) and "'saving' of step 7" in said


def write_state(folder, rank, step, phase):
    (folder / HANGS_DIR).mkdir(exist_ok=True)
    state = {"rank": rank, "step": step, "phase": phase, "host": "n1", "at": f"f{rank} (a.py:1)"}
    (folder / HANGS_DIR / f"rank_{rank:05d}.txt").write_text(json.dumps(state) + "\nstack\n")


def test_who_is_behind(tmp_path):
    assert who_is_behind(tmp_path, 3) == ""
    for rank in (0, 2):
        write_state(tmp_path, rank, 5, "gradient reduction")
    assert who_is_behind(tmp_path, 3) == "the others wait for: rank 1 has not said where it is (ended or frozen)"
    write_state(tmp_path, 1, 5, "forward-backward")
    assert who_is_behind(tmp_path, 3) == "the others wait for: rank 1 on n1 is in 'forward-backward' of step 5, at f1 (a.py:1)"
    write_state(tmp_path, 1, 4, "evaluation")
    assert "rank 1 on n1 is in 'evaluation' of step 4" in who_is_behind(tmp_path, 3)
    write_state(tmp_path, 1, 5, "gradient reduction")
    assert who_is_behind(tmp_path, 3).startswith("all ranks are in 'gradient reduction' of step 5; ")


class Said(io.StringIO):
    """What a rank writes to stderr; when it says who is waited for, `file` is made."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def write(self, text):
        if "the others wait for: rank 1 on" in text:
            self.file.touch()
        return super().write(text)


def fit_and_hang(env, store, tree, time_out):
    """The error of a run in which rank 1 reads its samples in step 2 until rank 0 has named it, and what this rank wrote to stderr.

    With `time_out` rank 0 gives up waiting. What counts as a hang is set once both ranks are where they hang.
    """
    trainer, _, _ = training.begin(env, store, tree)
    next_batches, watch = trainer.next_batches, trainer.watch
    told_of_1, named = watch.run_dir / HANGS_DIR / "rank_00001.txt", watch.run_dir / "named"

    def read_from_a_dead_disk():
        watch.hang_seconds = 0.5
        while True:
            try:
                return os.stat(named)  # noqa: PTH116  in C: the frame that is seen is ours
            except FileNotFoundError:
                time.sleep(0.02)

    def batches():
        def hang(chunk):
            if trainer.position.step == 1:
                read_from_a_dead_disk()
            yield from chunk

        return [hang(chunk) if env.rank == 1 else chunk for chunk in next_batches()]

    def enter(phase, step=None):
        Watch.enter(watch, phase, step)
        if (env.rank, watch.step, phase) == (0, 2, "gradient reduction"):
            wait_for(told_of_1.exists)
            watch.hang_seconds = 0.5
            if time_out:
                wait_for(watch._stack_file.exists)
                for group in torch.distributed.distributed_c10d._world.pg_map:
                    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5), group)

    trainer.next_batches, watch.enter = batches, enter
    told, sys.stderr, error = sys.stderr, Said(named), ""
    minutes = tree["parallel"]["distributed_timeout_minutes"]
    timeouts = {group._get_backend(torch.device("cpu")).options._timeout for group in torch.distributed.distributed_c10d._world.pg_map}
    watch.start()
    try:
        with contextlib.redirect_stdout(io.StringIO()), watch.names_timeouts(minutes):
            trainer.fit()
    except (HangError, RuntimeError) as failure:
        error = f"{type(failure).__name__}: {failure}"
        named.touch()
    finally:
        watch.stop()
        said, sys.stderr = sys.stderr.getvalue(), told
        trainer.log.close()
    return error, said, timeouts


def hanging_tree(tiny_config):
    tree = {**tiny_config("run", **{"train.train_steps": 3}), "log": {"hang_seconds": NEVER}}
    tree["parallel"]["distributed_timeout_minutes"] = 47
    return tree


def test_a_rank_that_hangs_is_named_and_the_run_goes_on(ranks, tiny_config):
    (error, said, timeouts), (_, other, _) = ranks.run(2, fit_and_hang, tree=hanging_tree(tiny_config), time_out=False)
    assert error == ""
    assert "rank 0 on" in said and "has been in 'gradient reduction' of step 2" in said
    assert "the others wait for: rank 1 on" in said and "in 'forward-backward' of step 2, at read_from_a_dead_disk (test_watch.py:" in said
    assert "rank 1 on" in other and "in 'forward-backward' of step 2" in other
    assert timeouts == {timedelta(minutes=47)}


def test_a_time_out_names_step_place_and_rank(ranks, tiny_config):
    error, _, _ = ranks.run(2, fit_and_hang, tree=hanging_tree(tiny_config), time_out=True)[0]
    assert error.startswith("HangError: rank 0 waited for other ranks in 'gradient reduction' of step 2 for longer than")
    assert "parallel.distributed_timeout_minutes = 47" in error and "read_from_a_dead_disk" in error


@pytest.mark.parametrize("message", ["Connection closed by peer", "size mismatch"])
def test_other_errors_pass(tmp_path, message):
    with pytest.raises(RuntimeError, match=message), Watch(tmp_path, 0, 2, 0, 0).names_timeouts(1):
        raise RuntimeError(message)
