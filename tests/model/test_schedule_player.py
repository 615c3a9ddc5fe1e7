"""Megatron-core's own schedules, played for every rank of a pipeline: each micro-batch once, no deadlock, the planner's micro-batches."""

from __future__ import annotations

import random

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.model import schedule_player
from dnapretrain.model.memory import chunks_in_flight
from dnapretrain.model.schedule_player import pipeline_traces
from dnapretrain.parallel.pipeline_trace import check_pipeline, phases

RANDOM = random.Random(20)
SIZES = [(1, None, 3), (2, None, 1), (2, 2, 2), (4, 3, 4)] + [
    (pp, vpp, RANDOM.randint(1, 4) * pp if vpp else RANDOM.randint(1, 14))
    for pp, vpp in ((RANDOM.choice((2, 3, 4, 6, 8)), RANDOM.choice((None, 2, 3))) for _ in range(8))
]


def config_of(pp, vpp, count, tp=1):
    return config_from_dict(
        {
            "data": {"train": "nowhere", "sequence_length": 32},
            "tokenizer": {"kind": "nucleotide"},
            "model": {"num_layers": pp * (vpp or 1), "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 16},
            "parallel": {"pp": pp, "tp": tp, **({"vpp": vpp} if vpp else {}), **({"sequence_parallel": True} if tp > 1 else {})},
            "optim": {"lr": 1e-3},
            "train": {"run_dir": "nowhere", "train_steps": 4, "micro_batch_size": 1, "global_batch_size": count},
        }
    )


@pytest.mark.parametrize(("pp", "vpp", "count"), SIZES)
def test_every_schedule_ends_and_keeps_as_many_micro_batches_as_planned(pp, vpp, count):
    traces = pipeline_traces(config_of(pp, vpp, count), count, 32)
    assert check_pipeline(traces, count, vpp or 1) == []
    assert [phases(trace).in_flight for trace in traces] == [chunks_in_flight(pp, vpp, rank, count) for rank in range(pp)]


def test_tensor_parallel_ranks_change_nothing():
    of_one, of_two = (pipeline_traces(config_of(2, None, 3, tp), 3, 32) for tp in (1, 2))
    assert [[type(event) for event in trace] for trace in of_one] == [[type(event) for event in trace] for trace in of_two]
    assert check_pipeline(of_two, 3, 1) == []


def test_messages_that_are_paired_wrongly_are_seen(monkeypatch):
    """Batched messages between two interleaved ranks: the loss is right and the gradient wrong, on real ranks too."""
    to_settings = schedule_player.to_transformer_config

    def batched(*arguments):
        settings = to_settings(*arguments)
        settings.overlap_p2p_comm, settings.batch_p2p_comm = False, True
        return settings

    monkeypatch.setattr(schedule_player, "to_transformer_config", batched)
    problems = check_pipeline(pipeline_traces(config_of(2, 2, 4), 4, 32), 4, 2)
    assert any("is run on what" in problem for problem in problems), problems


def test_a_schedule_that_loses_a_receive_is_seen(monkeypatch):
    lost = []
    begin = schedule_player._Notes._begin

    def forgetful(self, operations, single=False):
        if not lost and not operations[0][0]:  # the first receive gets a channel of its own, which nobody sends on
            lost.append(1)
            handles = begin(self, operations, single)
            start = self.events[-1]
            moved = schedule_player.Transfer(start.transfers[0].number, False, start.transfers[0].peer, ("nowhere",))
            self.events[-1] = schedule_player.Start((moved, *start.transfers[1:]))
            return handles
        return begin(self, operations, single)

    monkeypatch.setattr(schedule_player._Notes, "_begin", forgetful)
    problems = check_pipeline(pipeline_traces(config_of(2, None, 2), 2, 32), 2, 1)
    assert any(problem.startswith("deadlock") for problem in problems)
