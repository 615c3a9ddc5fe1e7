"""The rules for bad steps, on histories made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from dnapretrain.config import TrainConfig
from dnapretrain.train.bad_steps import (
    Bad,
    SpikeLimits,
    StepHistory,
    after_bad_step,
    after_good_step,
    describe,
    joined,
    judge,
    spike_limits,
)


def settings(**values):
    return TrainConfig(run_dir="run", train_steps=1, micro_batch_size=1, global_batch_size=1, **values)


@pytest.mark.parametrize(
    ("loss", "grad_norm", "bad"),
    [
        (1.0, 1.0, Bad.NO),
        (math.nan, 1.0, Bad.LOSS_NOT_FINITE),
        (math.inf, math.nan, Bad.LOSS_NOT_FINITE),
        (1.0, math.inf, Bad.GRAD_NOT_FINITE),
        (2.5, 9.0, Bad.LOSS_SPIKE),
        (2.0, 5.1, Bad.GRAD_NORM_SPIKE),
        (2.0, 5.0, Bad.NO),  # a limit itself is no spike
        (-9.0, 0.0, Bad.NO),  # only what is too high is
    ],
)
def test_judge(loss, grad_norm, bad):
    limits = SpikeLimits(loss=2.0, grad_norm=5.0)
    assert judge(limits, loss, grad_norm) is bad
    assert bool(describe(bad, limits, loss, grad_norm)) == bool(bad)
    assert judge(SpikeLimits(), 1e9, 1e9) is Bad.NO  # rules that are off


def test_limits_by_hand():
    train = settings(loss_spike_sigmas=4, grad_norm_spike_factor=3, spike_window=5)
    history = StepHistory(losses=(1.0, 1.2, 1.1, 9.0, 1.3), grad_norms=(1.0, 2.0, 30.0, 2.0, 1.0))
    # Median 1.2, deviations 0.2 0 0.1 7.8 0.1: their median is 0.1, whatever the outlier.
    limits = spike_limits(train, history, 0)
    assert limits.loss == pytest.approx(1.2 + 4 * 1.4826 * 0.1) and limits.grad_norm == 6.0
    assert spike_limits(train, history, 1) == SpikeLimits()  # another stage has other data
    assert spike_limits(settings(spike_window=5), history, 0) == SpikeLimits()
    assert spike_limits(train, StepHistory(losses=(1.0,) * 4, grad_norms=(1.0,) * 4), 0) == SpikeLimits()  # not yet enough
    assert spike_limits(train, StepHistory(losses=(2.0,) * 5), 0).loss == pytest.approx(2.008)  # equal losses leave room for rounding


def test_history_keeps_the_window_of_its_stage():
    train = settings(loss_spike_sigmas=4, spike_window=3)
    history = StepHistory()
    for number in range(5):
        history = after_good_step(train, history, 0, float(number), 1.0)
    assert history == StepHistory(losses=(2.0, 3.0, 4.0))  # the norms' rule is off
    assert after_good_step(train, history, 1, 7.0, 1.0) == StepHistory(stage=1, losses=(7.0,))


def test_bad_steps_are_counted_within_their_span_and_their_samples_kept():
    history = StepHistory(losses=(1.0,))
    for step in (3, 4, 9):
        history = after_bad_step(history, step, (8 * (step - 1), 8 * step), span=6)
    assert history == StepHistory(losses=(1.0,), bad_steps=(4, 9), skipped_samples=((16, 32), (64, 72)))


def test_ranges_are_joined():
    assert joined([]) == ()
    assert joined([(8, 16), (0, 4), (16, 20), (18, 19), (30, 31)]) == ((0, 4), (8, 20), (30, 31))


def test_history_comes_back_from_json_exactly():
    history = StepHistory(2, (0.1, 1 / 3, 1e-300), (math.pi,), (7,), ((0, 8), (16, 24)))
    assert StepHistory.from_json(json.loads(json.dumps(asdict(history)))) == history
