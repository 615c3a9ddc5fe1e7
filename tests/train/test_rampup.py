"""The batch-size ramp: Megatron's arithmetic, the samples it reads, and the schedule that runs in samples."""

from __future__ import annotations

import math

import pytest
import training

from dnapretrain.config import RunConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.config_rules import check_world
from dnapretrain.errors import ConfigError

RAMP = {"train.rampup_batch_size": [4, 4, 40], "train.global_batch_size": 12, "train.train_steps": 10}


def _slow_sizes(config: RunConfig, steps: int) -> list[int]:
    start, increment, samples = config.train.rampup_batch_size
    full, consumed, sizes = config.train.global_batch_size, 0, []
    jumps = (full - start) // increment
    for _ in range(steps):
        done = sum(consumed >= samples * jump / jumps for jump in range(1, jumps + 1))
        sizes.append(start + done * increment)
        consumed += sizes[-1]
    return sizes


@pytest.mark.parametrize(("ramp", "full"), [([4, 4, 40], 12), ([2, 2, 1000], 64), ([1, 3, 7], 100), ([8, 8, 1], 16)])
def test_sizes_and_samples(tiny_config, ramp, full):
    config = config_from_dict(
        tiny_config(**{"train.rampup_batch_size": ramp, "train.global_batch_size": full, "train.micro_batch_size": 1})
    )
    sizes = _slow_sizes(config, 300)
    assert sizes[0] == ramp[0] and sizes[-1] == full
    consumed = 0
    for step, size in enumerate(sizes):
        assert config.samples_after(step) == consumed
        assert config.global_batch_size(consumed) == size
        consumed += size


def test_a_run_reads_each_sample_once_and_its_schedule_ends_with_it(ranks, tiny_config):
    settings = {**RAMP, "optim.lr_warmup_steps": 2, "optim.min_lr": 1e-4}
    tree = tiny_config(**settings, **{"parallel.tp": 2})
    result = ranks.run(4, training.train, tree=tree, until=10)[0]
    sizes = _slow_sizes(config_from_dict(tree), 10)
    assert sizes == [4, 4, 4, 4, 4, 8, 8, 8, 12, 12]
    assert result.batch_sizes == sizes and result.consumed_samples == sum(sizes)
    alone = ranks.run(1, training.train, tree=tiny_config("alone", **settings), until=10)[0]
    assert result.losses == pytest.approx(alone.losses, abs=1e-5)
    lr, low, warm, total = 3e-3, 1e-4, 8, sum(sizes)
    assert result.learning_rates[:3] == pytest.approx([0, lr / 2, lr])
    consumed = sum(sizes[:9])  # the last step is taken at the rate that the samples before it have reached
    expected = low + (lr - low) * 0.5 * (1 + math.cos(math.pi * (consumed - warm) / (total - warm)))
    assert result.learning_rates[9] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.rampup_batch_size": [12, 4, 40]}, "start below train.global_batch_size = 12"),
        ({"train.rampup_batch_size": [4, 0, 40]}, "must be positive"),
        ({"train.rampup_batch_size": [4, 3, 40]}, "not divisible by increment = 3"),
        ({"train.rampup_batch_size": [3, 3, 40]}, "not divisible by train.micro_batch_size = 2"),
    ],
)
def test_a_ramp_that_does_not_fit(tiny_config, change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(tiny_config(**{**RAMP, **change}))


def test_every_size_must_divide_over_the_ranks(tiny_config):
    config = config_from_dict(tiny_config(**RAMP))
    assert check_world(config, 2) == 2
    with pytest.raises(ConfigError, match="rampup_batch_size start = 4 is not divisible"):
        check_world(config_from_dict(tiny_config(**{**RAMP, "train.global_batch_size": 12})), 3)
