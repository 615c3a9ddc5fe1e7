"""Traces of a pipeline made by hand: what is right passes, each fault is named."""

from __future__ import annotations

import pytest

from dnapretrain.parallel.pipeline_trace import Pass, Phases, Run, Start, Transfer, Wait, check_pipeline, phases

FORWARD, BACKWARD = Pass("forward", 0, 0), Pass("backward", 0, 0)


def send(number, peer, payload, channel=("p",)):
    return Start((Transfer(number, True, peer, channel, payload),))


def receive(number, peer, channel=("p",)):
    return Start((Transfer(number, False, peer, channel),))


def two_ranks():
    """One micro-batch through two ranks and back."""
    first = [Run(FORWARD, None), send(0, 1, FORWARD), Wait(0), receive(1, 1), Wait(1), Run(BACKWARD, 1)]
    last = [receive(0, 0), Wait(0), Run(FORWARD, 0), Run(BACKWARD, None), send(1, 0, BACKWARD), Wait(1)]
    return [first, last]


def test_a_right_pipeline_passes():
    assert check_pipeline(two_ranks(), 1, 1) == []


def test_one_rank_alone():
    assert check_pipeline([[Run(FORWARD, None), Run(BACKWARD, None)]], 1, 1) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda first, last: last.pop(), ""),  # a send that nobody waits for is no fault: its receive is
        (lambda first, last: last.__delitem__(slice(4, 6)), "deadlock: pipeline rank 0 waits for its receive from 1"),
        (lambda first, last: first.insert(0, Wait(1)), "deadlock: pipeline rank 0"),
        (lambda first, last: first.append(Run(FORWARD, None)), "the forward pass of micro-batch 0 through chunk 0 is run 2 times"),
        (lambda first, last: first.pop(), "the backward pass of micro-batch 0 through chunk 0 is run 0 times"),
        (lambda first, last: last.insert(2, last.pop(3)), "comes before its forward pass"),
        (lambda first, last: last.insert(1, last.pop(2)), "is run before its input has come"),
        (lambda first, last: first.__setitem__(1, send(0, 1, BACKWARD)), "is run on what the backward pass"),
        (lambda first, last: last.__setitem__(2, Run(FORWARD, None)), "is run on nothing received"),
        (lambda first, last: first.append(send(2, 1, FORWARD)), "which never ends"),
        (lambda first, last: last.__setitem__(0, receive(0, 0, ("other",))), "deadlock"),
        (lambda first, last: first.append(Run(Pass("forward", 1, 0), None)), "through chunk 1 is run 1 times"),
    ],
)
def test_each_fault_is_named(change, said):
    first, last = two_ranks()
    change(first, last)
    problems = check_pipeline([first, last], 1, 1)
    assert any(said in problem for problem in problems) if said else problems == []


def test_two_sends_that_wait_for_each_other():
    """Both ranks send first on one channel and wait: NCCL moves neither."""
    first = [Run(FORWARD, None), send(0, 1, FORWARD), Wait(0), receive(1, 1), Wait(1), Run(BACKWARD, 1)]
    last = [send(0, 0, BACKWARD), Wait(0), receive(1, 0), Wait(1), Run(FORWARD, 1), Run(BACKWARD, None)]
    problems = check_pipeline([first, last], 1, 1)
    assert [problem.partition(" waits")[0] for problem in problems] == ["deadlock: pipeline rank 0", "deadlock: pipeline rank 1"]


def test_begun_together_they_pass():
    """The same four messages in one batch on each side move side by side."""
    first = [Run(FORWARD, None), Start((Transfer(0, True, 1, ("p",), FORWARD), Transfer(1, False, 1, ("p",)))), Wait(0), Wait(1)]
    last = [Start((Transfer(0, True, 0, ("p",), BACKWARD), Transfer(1, False, 0, ("p",)))), Wait(0), Wait(1)]
    problems = check_pipeline([first, last], 0, 0)
    assert not any("deadlock" in problem or "never ends" in problem for problem in problems)


def test_phases():
    kinds = "FFFFBFBFBBBB"
    runs, seen = [], {"F": 0, "B": 0}
    for kind in kinds:
        runs.append(Run(Pass("forward" if kind == "F" else "backward", 0, seen[kind]), None))
        seen[kind] += 1
    assert phases(runs) == Phases(warm_up=3, steady=3, cool_down=3, in_flight=4, sends=0)
