"""Which steps are bad, by rule: pure functions of a step's loss and gradient norm and of the steps before it.

A step is bad where its loss or its gradient norm is not finite, or a spike: far above what the last train.spike_window good steps
of the same stage of the data had. What the rules remember is part of the run's position, so a resumed run decides as one that did
not stop.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from dnapretrain.config import TrainConfig

SIGMAS_PER_MAD = 1.4826
"""Standard deviations in a median absolute deviation of normally distributed values."""
SMALLEST_SIGMA = 1e-3
"""Of the median: where losses hardly differ, their rounding is no spike."""


class Bad(IntEnum):
    """Why a step is bad; the largest of all ranks counts."""

    NO = 0
    GRAD_NORM_SPIKE = 1
    LOSS_SPIKE = 2
    GRAD_NOT_FINITE = 3
    LOSS_NOT_FINITE = 4


@dataclass(frozen=True)
class StepHistory:
    """What the rules remember of a run."""

    stage: int = 0
    """Stage of the data that `losses` and `grad_norms` are of."""
    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    """Of the last good steps, before clipping, oldest first; empty where their rule is off."""
    bad_steps: tuple[int, ...] = ()
    """Numbers of the last bad steps."""
    skipped_samples: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of sample ids whose steps were bad or taken back: the weights have learned nothing from them."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StepHistory:
        """From what `asdict` became in a checkpoint's state.json."""
        ranges = tuple((int(first), int(end)) for first, end in values["skipped_samples"])
        return cls(values["stage"], tuple(values["losses"]), tuple(values["grad_norms"]), tuple(values["bad_steps"]), ranges)


@dataclass(frozen=True)
class SpikeLimits:
    """The largest loss and gradient norm that are no spike; None where the rule is off or the window not yet full."""

    loss: float | None = None
    grad_norm: float | None = None


def spike_limits(train: TrainConfig, history: StepHistory, stage: int) -> SpikeLimits:
    """The limits for a step of `stage`. Loss: median + loss_spike_sigmas x sigma (1.4826 MAD); norm: grad_norm_spike_factor x median."""
    if stage != history.stage:
        return SpikeLimits()
    loss = grad_norm = None
    if train.loss_spike_sigmas and len(history.losses) >= train.spike_window:
        median = statistics.median(history.losses)
        mad = statistics.median(abs(value - median) for value in history.losses)
        loss = median + train.loss_spike_sigmas * max(SIGMAS_PER_MAD * mad, SMALLEST_SIGMA * abs(median))
    if train.grad_norm_spike_factor and len(history.grad_norms) >= train.spike_window:
        grad_norm = train.grad_norm_spike_factor * statistics.median(history.grad_norms)
    return SpikeLimits(loss, grad_norm)


def judge(limits: SpikeLimits, loss: float, grad_norm: float) -> Bad:
    """Whether a step with this loss and gradient norm is bad."""
    if not math.isfinite(loss):
        return Bad.LOSS_NOT_FINITE
    if not math.isfinite(grad_norm):
        return Bad.GRAD_NOT_FINITE
    if limits.loss is not None and loss > limits.loss:
        return Bad.LOSS_SPIKE
    if limits.grad_norm is not None and grad_norm > limits.grad_norm:
        return Bad.GRAD_NORM_SPIKE
    return Bad.NO


def describe(bad: Bad, limits: SpikeLimits, loss: float, grad_norm: float) -> str:
    """Why the step is bad, with the values; '' where it is not."""
    return {
        Bad.NO: "",
        Bad.LOSS_NOT_FINITE: f"loss {loss} is not finite",
        Bad.GRAD_NOT_FINITE: f"gradient norm {grad_norm} is not finite",
        Bad.LOSS_SPIKE: f"loss {loss:.4g} is a spike: above {limits.loss or 0:.4g} (train.loss_spike_sigmas)",
        Bad.GRAD_NORM_SPIKE: f"gradient norm {grad_norm:.4g} is a spike: above {limits.grad_norm or 0:.4g} (train.grad_norm_spike_factor)",
    }[bad]


def after_good_step(train: TrainConfig, history: StepHistory, stage: int, loss: float, grad_norm: float) -> StepHistory:
    """The history with a step that updated the weights. A new stage begins anew: other data have other losses."""
    if stage != history.stage:
        history = replace(history, stage=stage, losses=(), grad_norms=())
    window = train.spike_window
    losses = (*history.losses, loss)[-window:] if train.loss_spike_sigmas else ()
    grad_norms = (*history.grad_norms, grad_norm)[-window:] if train.grad_norm_spike_factor else ()
    return replace(history, losses=losses, grad_norms=grad_norms)


def after_bad_step(history: StepHistory, step: int, samples: tuple[int, int], span: int) -> StepHistory:
    """The history with a bad step that has read `samples`; bad steps more than `span` steps ago are forgotten."""
    recent = tuple(number for number in (*history.bad_steps, step) if number > step - span)
    return replace(history, bad_steps=recent, skipped_samples=joined([*history.skipped_samples, samples]))


def joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Half-open ranges in order, those that touch or overlap as one."""
    result: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((first, end))
    return tuple(result)
