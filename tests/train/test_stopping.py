"""What stops a run, and that all ranks then stop after the same step."""

from __future__ import annotations

import contextlib
import io
import json
import signal

import pytest
import training

from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError


def stopped(env, store, tree, how):
    """(step reached, reason, newest checkpoint's step, records' kinds) of a run that is stopped in one of many ways."""
    import time

    trainer, _, _ = training.begin(env, store, tree)
    stop, last = trainer.stop, env.rank == env.world_size - 1
    train_step = trainer.train_step

    def step_and_ask(batches):
        report = train_step(batches)
        if report.step == 3 and how == "signal" and last:  # one rank hears of it
            stop.signals.received = signal.SIGUSR1
        if report.step == 3 and how == "launcher" and last:
            stop.signals.launcher_gone = True
        if report.step == 3 and how == "duration" and stop.is_main:
            stop.exit_at = time.monotonic()
        if report.step == 3 and how == "slurm" and stop.is_main:
            stop.slurm_at = time.monotonic()
        return report

    trainer.train_step = step_and_ask
    if how == "start":
        stop.signals.received = signal.SIGTERM
    if how == "evaluation":
        evaluate = trainer.evaluate

        def evaluate_and_hear():
            if last and trainer.position.step == 4:
                stop.signals.received = signal.SIGINT
            return evaluate()

        trainer.evaluate = evaluate_and_hear
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer.fit()
        trainer.log.close()
    return trainer.position.step, stop.reason, trainer.saver.saved_step, printed.getvalue()


@pytest.mark.parametrize(
    ("how", "at", "reason"),
    [
        ("signal", 3, "SIGUSR1"),
        ("launcher", 3, "the end of the process that started its ranks"),
        ("duration", 3, "train.exit_duration"),
        ("slurm", 3, "the coming end of its Slurm job (train.slurm_margin)"),
        ("evaluation", 4, "SIGINT"),
        ("start", 0, "SIGTERM"),
        ("", 6, ""),
    ],
)
def test_a_run_stops_on_all_ranks_with_one_checkpoint(ranks, tiny_config, tmp_path, how, at, reason):
    tree = tiny_config("run", **{"train.train_steps": 6, "train.eval_interval": 2, "train.eval_samples": 4, "parallel.tp": 2})
    results = ranks.run(2, stopped, tree=tree, how=how)
    assert [result[:3] for result in results] == [(at, reason, at)] * 2
    assert ("evaluation at step 4 broken off" in results[0][3]) == (how == "evaluation")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["reason"] for record in records if record["kind"] == "stop"] == ([reason] if reason else [])
    assert len([record for record in records if record["kind"] == "checkpoint"]) == (1 if at else 0)
    if not reason:
        return
    if how == "evaluation":  # goes on, and ends with the whole evaluation
        (reached, again, saved, _), _ = ranks.run(2, stopped, tree=tree, how="")
        assert (reached, again, saved) == (6, "", 6)


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [
        ({"keep_every": 10}, "keep_last"),
        ({"keep_last": 2, "keep_every": 15, "save_interval": 10}, "no multiple of checkpoint.save_interval = 10"),
        ({"keep_last": 2, "keep_best": 1, "save_interval": 10}, "no multiple of train.eval_interval = 0"),
    ],
)
def test_settings_that_keep_nothing_are_refused(tiny_config, checkpoint, says):
    tree = tiny_config("run")
    tree["checkpoint"] = checkpoint
    with pytest.raises(ConfigError, match=says):
        config_from_dict(tree)


@pytest.mark.parametrize(("value", "seconds"), [("3h50m", 13800.0), (13800, 13800.0), ("90", 90.0)])
def test_durations_of_the_settings(tiny_config, value, seconds):
    assert config_from_dict(tiny_config("run", **{"train.exit_duration": value})).train.exit_duration == seconds
    with pytest.raises(ConfigError, match="exit_duration"):
        config_from_dict(tiny_config("run", **{"train.exit_duration": "soon"}))
