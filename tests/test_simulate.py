"""`dnapretrain simulate`: ranks of jobs that this machine cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dnapretrain import simulate as simulation
from dnapretrain.cli import main
from dnapretrain.config_file import config_from_dict, load_config
from dnapretrain.data.audit.runs import Steps
from dnapretrain.data.tokens.tokenizers import build_tokenizer, countable_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.batches import BatchPlace
from dnapretrain.model.counts import stored_parameters
from dnapretrain.simulate import format_simulation, sample_of_ranks, simulate


@pytest.fixture
def small_job(tiny_config):
    """The settings of a job of 4 stages x 8 data-parallel ranks."""
    return tiny_config("run", **{"parallel.pp": 4, "train.global_batch_size": 64, "parallel.use_distributed_optimizer": True})


def test_a_job_of_32_ranks(small_job):
    config = config_from_dict(small_job)
    found = simulate(config, 32, sample_of_ranks(config, 32), 1, 3)
    assert found["problems"] == []
    assert [row["rank"] for row in found["ranks"]] == [0, 7, 8, 15, 16, 23, 24, 31]
    assert [(row["pp_rank"], row["dp_rank"]) for row in found["ranks"]] == [(stage, rank) for stage in range(4) for rank in (0, 7)]
    groups = {group["name"]: group["ranks"] for group in found["ranks"][3]["groups"]}
    assert groups["PIPELINE_MODEL_PARALLEL_GROUP"] == [7, 15, 23, 31] and groups["DATA_PARALLEL_GROUP"] == list(range(8, 16))
    assert [phase["warm_up"] for phase in found["pipeline"]["phases"]] == [3, 2, 1, 0]
    assert found["checkpoint"]["bytes"] == found["checkpoint"]["formula"] == sum(found["checkpoint"][name] for name in ("bytes",))
    assert found["checkpoint"]["writers"] == 32
    assert [row["dp_rank"] for row in found["samples"]["read"]] == [0, 7]
    page = format_simulation(found)
    assert "each sample of each global batch on one of them" in page and "PROBLEM" not in page


def test_parts_of_data_parallel_ranks_are_the_global_batch(small_job):
    """The tokens too: rows of a rank's micro-batches are rows of the whole batch, read from the shard."""
    config = config_from_dict(small_job)
    stream, _ = simulation._opened(config)
    batch = Steps(config).samples(5)
    whole = stream.batch(np.arange(batch.start, batch.stop)).tokens
    rows = {}
    for rank in range(8):
        place = simulation._place(config, rank, 8)
        for index in range(config.num_microbatches(8, len(batch))):
            ids = place.micro_batch_ids(batch.start, index)
            rows.update(zip(ids.tolist(), stream.batch(ids).tokens, strict=True))
    assert sorted(rows) == list(batch)
    np.testing.assert_array_equal(np.stack([rows[sample] for sample in batch]), whole)


def test_ranks_that_read_alike_are_seen(small_job, monkeypatch):
    monkeypatch.setattr(BatchPlace, "micro_batch_ids", lambda self, first, index: np.arange(first, first + self.micro_batch_size))
    config = config_from_dict(small_job)
    found = simulation._samples(config, 32, 1, 2, None, [0])
    assert [problem.partition(":")[0] for problem in found["problems"]] == ["step 1", "step 2"]


@pytest.mark.parametrize(
    ("recipe", "world_size", "overrides"),
    [
        ("aido-dna-7b", 1024, ["parallel.tp=8", "parallel.pp=4", "parallel.sequence_parallel=false", "train.global_batch_size=1024"]),
        ("generator-3b", 256, ["parallel.tp=4", "parallel.pp=3", "train.global_batch_size=255"]),
        ("nt-v2-500m", 256, ["parallel.tp=2", "train.global_batch_size=1024"]),
    ],
)
def test_ranks_of_recipes_have_the_parameters_of_the_formula(recipe, world_size, overrides):
    config = load_config(Path(recipe), [*overrides, "train.micro_batch_size=1"])
    tokenizer = countable_tokenizer(config.tokenizer)
    world_size -= world_size % config.parallel.model_parallel_size
    rows = [simulation._play(config, tokenizer, rank, world_size, {}) for rank in (0, world_size - 1)]
    assert all(row["parameters"] == row["formula"] and row["problems"] == [] for row in rows)
    assert rows[0]["calls"] == rows[1]["calls"] and rows[0]["num_groups"] > world_size
    if config.parallel.pipeline_model_parallel_size == 1 and config.parallel.tensor_model_parallel_size == 1:
        assert rows[0]["parameters"] == stored_parameters(config, tokenizer.vocab_size, tokenizer.pad_id)


def test_a_wrong_formula_is_a_problem(small_job, monkeypatch):
    monkeypatch.setattr(simulation, "rank_parameters", lambda *arguments: 1)
    config = config_from_dict(small_job)
    assert "by the formula 1" in simulation._play(config, build_tokenizer(config.tokenizer), 3, 32, {})["problems"][0]


def test_the_command_line(small_job, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(small_job))
    assert main(["simulate", str(path), "--gpus", "32", "--rank", "9", "--steps", "2:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in found["ranks"]] == [9] and found["samples"]["first_step"] == 2
    assert main(["simulate", str(path), "--gpus", "32", "data.train=/nowhere", "--rank", "0"]) == 0  # data may be yet to come
    assert "not read: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ranks", "steps", "world_size", "said"),
    [
        ([32], (1, 1), 32, "rank 32 is none of --gpus 32"),
        ([0], (0, 1), 32, "steps 0:1 is not within"),
        ([0], (3, 2), 32, "steps 3:2 is not within"),
        ([0], (1, 41), 32, "steps 1:41 is not within"),
        ([0], (1, 1), 30, "30 rank"),
    ],
)
def test_what_is_none_is_refused(small_job, ranks, steps, world_size, said):
    with pytest.raises(ConfigError, match=said):
        simulate(config_from_dict(small_job), world_size, ranks, *steps)
