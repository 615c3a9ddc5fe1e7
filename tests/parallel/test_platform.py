"""The launch environment, the local launcher, and the CPU engine's guard."""

from __future__ import annotations

import pytest

from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.parallel import cpu_engine, launch, platform


@pytest.fixture
def clean(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_LOCALID",
        "SLURM_NTASKS_PER_NODE",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone(clean):
    assert platform.launch_environment() == platform.LaunchEnvironment(0, 1, 0, 1, "none")
    assert not launch.is_launched()


def test_torchrun(clean):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        clean.setenv(name, value)
    assert platform.launch_environment() == platform.LaunchEnvironment(5, 8, 1, 4, "torchrun")
    assert launch.is_launched()


def test_srun(clean):
    for name, value in (("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "1"), ("SLURM_NTASKS_PER_NODE", "2")):
        clean.setenv(name, value)
    assert platform.launch_environment() == platform.LaunchEnvironment(3, 4, 1, 2, "srun")
    assert launch.is_launched()


def test_a_job_of_one_task_is_not_a_launch(clean):
    clean.setenv("SLURM_PROCID", "0")
    clean.setenv("SLURM_NTASKS", "1")
    assert platform.launch_environment().launcher == "none"


def test_half_an_environment_is_an_error(clean):
    clean.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        platform.launch_environment()


def test_cuda_without_a_gpu_is_an_error():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"train\.device=cuda"):
        platform.choose_device("cuda")
    assert platform.choose_device("auto") == "cpu"


def test_the_cpu_engine_refuses_another_megatron(monkeypatch):
    import megatron.core

    monkeypatch.setattr(cpu_engine, "_active", False)
    monkeypatch.setattr(megatron.core, "__version__", "0.17.0")
    with pytest.raises(ConfigError, match=r"0\.16\.1"):
        cpu_engine.activate()


def threads_set(env, store, launcher, local_ranks, given):
    """What a rank is told about threads: its share of eight cores, or None for nothing."""
    import os
    from unittest.mock import patch

    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
    told = []
    with (
        patch.dict(os.environ, environment, clear=True),
        patch.object(platform, "available_cores", lambda: 8),
        patch("torch.set_num_threads", told.append),
    ):
        platform.start("cpu", platform.LaunchEnvironment(0, local_ranks, 0, local_ranks, launcher))
    return told[0] if told else None


@pytest.mark.parametrize(
    ("launcher", "local_ranks", "given", "threads"),
    [
        ("none", 1, {}, 8),
        ("torchrun", 2, {}, 4),
        ("torchrun", 2, {"OMP_NUM_THREADS": "1"}, 4),  # torchrun's own, where it starts several ranks
        ("torchrun", 1, {"OMP_NUM_THREADS": "1"}, None),
        ("none", 1, {"OMP_NUM_THREADS": "3"}, None),
    ],
)
def test_ranks_share_the_cores_unless_one_was_told_its_threads(ranks, launcher, local_ranks, given, threads):
    assert ranks.run(1, threads_set, launcher=launcher, local_ranks=local_ranks, given=given) == [threads]


def failing_on_one(env, store):
    from dnapretrain.config import ParallelConfig
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import on_every_rank, start_groups, sum_of_ranks

    start_groups(platforms.start("cpu", env), ParallelConfig(), 1, store)
    assert sum_of_ranks(env.rank) == 1
    try:
        with on_every_rank(CheckpointError, "cannot do it"):
            if env.rank == 1:
                raise OSError("disk full")
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_a_failure_on_one_rank_is_an_error_on_all(ranks):
    assert ranks.run(2, failing_on_one) == ["cannot do it: OSError: disk full"] * 2
