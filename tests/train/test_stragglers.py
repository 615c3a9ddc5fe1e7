"""The rank that takes longest by itself is named, although all ranks take equally long for a step."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import time

import pytest
import training

from dnapretrain.train.stragglers import Straggler, find_straggler


@pytest.mark.parametrize(
    ("seconds", "factor", "slow"),
    [
        ([1.0, 1.1, 0.9, 1.0], 1.5, None),
        ([1.0, 1.1, 1.7, 1.0], 1.5, 2),
        ([1.0, 1.1, 1.7, 1.0], 2.0, None),
        ([1.0, 3.1], 1.5, 1),  # the median of two is their mean
        ([5.0], 1.5, None),
    ],
)
def test_find_straggler(seconds, factor, slow):
    found = find_straggler([(value, f"node{rank}") for rank, value in enumerate(seconds)], factor)
    assert (found and found.rank) == slow
    if slow is not None:
        assert found == Straggler(slow, f"node{slow}", seconds[slow], statistics.median(seconds))


def fit_slowly(env, store, tree, slow_rank):
    trainer, _, _ = training.begin(env, store, tree)
    next_batches, clock = trainer.next_batches, [0.0]

    def mark():
        clock[0] += 0.01
        return clock[0]

    trainer.timer._mark = mark  # a clock of its own: on a busy machine any rank may be the slow one

    def slow_batches():
        def slow(chunk):
            time.sleep(0.4)
            clock[0] += 0.4
            yield from chunk

        return [slow(chunk) if env.rank == slow_rank else chunk for chunk in next_batches()]

    trainer.next_batches = slow_batches
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer.fit()
        trainer.log.close()
    return printed.getvalue()


def test_the_slow_rank_is_in_the_line_and_in_the_log(ranks, tiny_config, tmp_path):
    tree = {**tiny_config("run", **{"train.train_steps": 5, "train.global_batch_size": 6}), "log": {"log_interval": 2}}
    printed = ranks.run(3, fit_slowly, tree=tree, slow_rank=1)[0]
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = [record for record in records if record["kind"] == "straggler"]
    assert [(record["step"], record["rank"]) for record in found] == [(2, 1), (4, 1)]
    assert all(record["seconds"] == pytest.approx(0.41) and record["median_seconds"] == pytest.approx(0.01) for record in found)
    assert printed.count("| SLOW: rank 1 on ") == 2
    steps = [record["seconds"] for record in records if record["kind"] == "train"]
    assert min(steps) > 0.4  # rank 0 waited for it: its own step time would not tell
