"""Training that begins with short samples and ends with long ones: under every layout, and stopped near the boundary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from train.test_layouts import MODELS

from dnapretrain.config_file import config_from_dict
from dnapretrain.data.sampling.run_data import open_data
from dnapretrain.errors import CheckpointError
from dnapretrain.model.counts import flops_per_token

SHORT, LONG, BOUNDARY, END = 64, 128, 3, 6
STAGES = [{"until_step": BOUNDARY, "sequence_length": SHORT, "weights": [1, 3]}, {"weights": [3, 1]}]


@pytest.fixture
def staged_config(tiny_config, small_shard, tmp_path_factory):
    """A tree with two sources; the blend and the length of samples change with step 4."""
    from dnapretrain.data.shards.preprocess import preprocess

    folder = tmp_path_factory.mktemp("other")
    rng = np.random.default_rng(9)
    (folder / "other.fa").write_text(f">chr9\n{''.join(rng.choice(list('ACGT'), 9000, p=[0.4, 0.1, 0.1, 0.4]))}\n")
    preprocess([folder / "other.fa"], folder / "other")
    train = [{"prefix": str(small_shard)}, {"prefix": str(folder / "other")}]

    def build(name: str = "run", **overrides: Any) -> dict[str, Any]:
        return tiny_config(name, **{"data.train": train, "data.sequence_length": LONG, "data.stages": STAGES, **overrides})

    return build


LAYOUTS = {
    "PP2": {"parallel.pp": 2},
    "PP2 interleaved": {"parallel.pp": 2, "parallel.vpp": 2},
    "TP2+SP": {"parallel.tp": 2, "parallel.sequence_parallel": True},
    "CP2": {"parallel.cp": 2},
    "DP2": {"parallel.use_distributed_optimizer": True},
}


@pytest.mark.parametrize(
    ("model", "layouts"),
    [
        ("decoder", list(LAYOUTS)),
        ("learned-position encoder", ["TP2+SP", "PP2", "CP2"]),
        ("post-norm ALiBi encoder", ["PP2 interleaved", "CP2"]),
    ],
)
def test_every_layout_equals_one_rank(ranks, staged_config, model, layouts):
    expected = ranks.run(1, training.train, tree=staged_config("alone", **MODELS[model]), until=END)[0]
    for layout in layouts:
        for result in ranks.run(2, training.train, tree=staged_config(layout, **MODELS[model], **LAYOUTS[layout]), until=END):
            assert len(result.losses) == END
            assert max(abs(a - b) for a, b in zip(result.losses, expected.losses, strict=True)) <= 1e-5, layout
            assert max(abs(a - b) / b for a, b in zip(result.grad_norms, expected.grad_norms, strict=True)) <= 1e-4, layout
            assert abs(result.valid.loss - expected.valid.loss) <= 1e-5, layout
            assert result.consumed_samples == expected.consumed_samples == END * 8


@pytest.fixture(scope="module")
def without_a_stop(ranks, tmp_path_factory):
    """(what a run to the end reports, its tensors) of a tree; once per layout."""
    known = {}

    def run(tree):
        key = repr(tree["parallel"])
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            tree = {**tree, "train": {**tree["train"], "run_dir": str(folder)}}
            known[key] = ranks.run(2, training.train, tree=tree, until=END, save=True)[0], training.stored_tensors(folder)
        return known[key]

    return run


@pytest.mark.parametrize("stop", [BOUNDARY - 1, BOUNDARY, BOUNDARY + 1], ids=["before", "at the boundary", "behind"])
@pytest.mark.parametrize("layout", ["PP2", "DP2"])
def test_a_stop_near_the_boundary_changes_nothing(ranks, staged_config, without_a_stop, tmp_path, layout, stop):
    whole, ours = without_a_stop(staged_config(**LAYOUTS[layout]))
    ranks.run(2, training.train, tree=staged_config("parted", **LAYOUTS[layout]), until=stop, save=True)
    resumed = ranks.run(2, training.train, tree=staged_config("parted", **LAYOUTS[layout]), until=END, save=True)[0]
    assert "resumed from" in resumed.log and "64 tokens per sample from sample 0 (step 1) on" in resumed.log
    assert "128 tokens per sample from sample 24 (step 4) on" in resumed.log
    assert resumed.losses == whole.losses[stop:] and resumed.grad_norms == whole.grad_norms[stop:]
    theirs = training.stored_tensors(tmp_path / "parted")
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_stages_to_come_may_change_and_others_may_not(ranks, staged_config):
    ranks.run(1, training.train, tree=staged_config("parted"), until=2, save=True)
    later = [{**STAGES[0], "until_step": 4}, *STAGES[1:]]
    begun = [{**STAGES[0], "sequence_length": 32}, *STAGES[1:]]
    assert len(ranks.run(1, training.train, tree=staged_config("parted", **{"data.stages": later}), until=5)[0].losses) == 3
    with pytest.raises(CheckpointError, match="other data or in other order"):
        ranks.run(1, training.train, tree=staged_config("parted", **{"data.stages": begun}), until=5)


def fit(env: Any, store: Any, tree: dict[str, Any]) -> None:
    """A whole run with its log, on one rank of the pool."""
    trainer, _, _ = training.begin(env, store, tree)
    trainer.fit()
    trainer.log.close()


def test_the_log_counts_tokens_of_each_length(ranks, staged_config):
    tree = staged_config(**{"train.train_steps": END})
    ranks.run(2, fit, tree={**tree, "log": {"peak_tflops": 0.5}})
    config = config_from_dict(tree)
    data = open_data(config)
    records = [json.loads(line) for line in (Path(tree["train"]["run_dir"]) / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["sequence_length"] for record in steps] == [SHORT] * BOUNDARY + [LONG] * (END - BOUNDARY)
    consumed = 0
    for step, record in enumerate(steps):
        batch = data.train.batch(np.arange(8 * step, 8 * step + 8))
        consumed += int((batch.labels != data.tokenizer.pad_id).sum())
        length = batch.tokens.shape[1]
        assert record["num_targets"] == (batch.loss_mask > 0).sum()
        assert record["consumed_tokens"] == consumed
        assert record["tokens_per_second"] * record["seconds"] == pytest.approx(8 * length)
        flops = 8 * length * flops_per_token(config.model, length, data.tokenizer.vocab_size)
        assert record["tflops"] * record["seconds"] == pytest.approx(flops / 2 / 1e12)
        assert record["mfu"] == pytest.approx(record["tflops"] / 0.5)
    [start] = [record for record in records if record["kind"] == "start"]
    assert [report["sequence_length"] for report in start["data"]["lengths"]] == [SHORT, LONG]
    [evaluation] = [record for record in records if record["kind"] == "eval"]
    assert evaluation["num_samples"] == data.held_out["valid"].num_samples and data.held_out["valid"].sequence_length == LONG
