"""Reading ahead changes nothing: the same batches in the same order, after a jump too, and the same errors."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import training

from dnapretrain.errors import DataError
from dnapretrain.model.prefetch import AHEAD, Prefetch

CPU = torch.device("cpu")


def plan(first):
    """Global batches of 6 samples in 3 micro-batches, to sample 60."""
    return (3 if first < 60 else 0), first + 6


@pytest.fixture
def prefetch():
    made = []

    def make(read):
        made.append(Prefetch(read, CPU, plan))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_micro_batches_come_in_order_from_another_thread_and_each_is_read_once(prefetch):
    asked, threads = [], set()

    def read(first, index):
        asked.append((first, index))
        threads.add(threading.current_thread())
        return first, index

    reader = prefetch(read)
    places = [(first, index) for first in range(0, 60, 6) for index in range(3)]
    assert [reader.take(*place) for place in places] == places
    assert asked == places  # nothing behind the end of the run
    assert threading.current_thread() not in threads


def test_after_a_jump_nothing_of_before_is_given(prefetch):
    asked = []
    reader = prefetch(lambda *place: asked.append(place) or place)
    assert reader.take(0, 0) == (0, 0)
    for place in ((36, 0), (36, 1), (0, 0), (0, 1)):
        assert reader.take(*place) == place
    assert reader.take(600, 2) == (600, 2)  # behind the plan's end


def test_at_rest_nothing_is_read(prefetch):
    asked = []

    def read(*place):
        time.sleep(0.02)
        asked.append(place)
        return place

    reader = prefetch(read)
    reader.take(0, 0)
    reader.rest()
    assert len(asked) == 1 + AHEAD


def test_no_more_is_read_than_a_few_ahead(prefetch):
    asked = []
    reader = prefetch(lambda *place: asked.append(place) or place)
    reader.take(0, 0)
    time.sleep(0.2)
    assert len(asked) == 1 + AHEAD


def test_an_error_is_raised_where_its_batch_is_taken(prefetch):
    def read(first, index):
        if (first, index) == (6, 1):
            raise DataError("shard x: cannot be read. Copy it again")
        return first, index

    reader = prefetch(read)
    for place in ((0, 0), (0, 1), (0, 2), (6, 0)):
        assert reader.take(*place) == place
    with pytest.raises(DataError, match="shard x: cannot be read"):
        reader.take(6, 1)
    assert reader.take(6, 2) == (6, 2)


def test_waiting_is_measured(prefetch):
    def slow(first, index):
        time.sleep(0.05)
        return first, index

    reader = prefetch(slow)
    reader.take(0, 0)
    assert reader.seconds_waited >= 0.04
    time.sleep(0.3)
    reader.seconds_waited = 0.0
    reader.take(0, 1)
    assert reader.seconds_waited < 0.04


def steps_read(env, store, tree):
    """Tokens of all micro-batches of some steps as the trainer is given them, and as read directly; the share of time waited."""
    from dnapretrain.model.batches import direct_readers, step_batches

    trainer, _, _ = training.begin(env, store, tree)
    pairs = []
    for _ in range(3):
        position, count = trainer.position.consumed_samples, 2
        direct = step_batches(direct_readers(trainer.stream, trainer.place), trainer.place, position, count)
        ahead = trainer.next_batches()
        pairs += [torch.equal(one.tokens_BS, other.tokens_BS) for one, other in zip(ahead[0], direct[0], strict=True)]
        report = trainer.train_step(trainer.next_batches())
    share = trainer._rates(report)["data_wait"]
    trainer.close()
    return pairs, share


def test_a_trainer_is_given_what_is_read_directly(ranks, tiny_config):
    tree = tiny_config(**{"train.micro_batch_size": 2, "train.global_batch_size": 4})
    pairs, share = ranks.run(1, steps_read, tree=tree)[0]
    assert pairs == [True] * 6
    assert 0 <= share < 1
