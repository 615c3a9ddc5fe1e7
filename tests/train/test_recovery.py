"""Bad steps in real runs: a poisoned contig is found, named and left out; the rest of the run is as if it had never been there."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import training

from dnapretrain.errors import BadStepError

STEPS, BATCH = 60, 8
SPIKES = {
    "train.train_steps": STEPS,
    "train.loss_spike_sigmas": 6,
    "train.spike_window": 12,
    "data.split": {"by": "none"},
    "data.reverse_complement": 0.0,
    "model.num_layers": 2,
    "optim.lr": 1e-2,
}


@pytest.fixture(scope="module")
def poisoned_shard(tmp_path_factory):
    """Prefix of a shard of one contig that repeats itself and a short one of random letters."""
    from dnapretrain.data.shards.preprocess import preprocess

    folder = tmp_path_factory.mktemp("poisoned")
    rng = np.random.default_rng(3)
    contigs = {"repeats": np.resize(rng.choice(list("ACGT"), 7), 16_000), "poison": rng.choice(list("ACGT"), 155)}
    (folder / "genome.fa").write_text("".join(f">{name}\n{''.join(bases)}\n" for name, bases in contigs.items()))
    preprocess([folder / "genome.fa"], folder / "shard")
    return folder / "shard"


def fit(env, store, tree, jump=(), nan_at=None, break_at=None):
    """(losses by step, bad steps, error, steps that hold a sample of the poison) of a whole run.

    `jump`: steps to leave out unread. `nan_at`: where one rank's loss is not finite. `break_at`: where a weight is destroyed.
    """
    trainer, data, _ = training.begin(env, store, tree)
    losses, bad = {}, {}
    train_step, next_batches = trainer.train_step, trainer.next_batches

    def step_or_jump(batches):
        while trainer.position.step + 1 in jump:
            position = trainer.position
            trainer.position = replace(position, step=position.step + 1, consumed_samples=position.consumed_samples + BATCH)
        if trainer.position.step + 1 == break_at and not bad:
            with torch.no_grad():
                next(trainer.chunks[0].parameters()).fill_(math.nan)
        report = train_step([with_fault(chunk) for chunk in next_batches()])
        losses[report.step] = report.loss
        if report.bad_step:
            bad[report.step] = report.bad_step
        return report

    def with_fault(chunk):
        for batch in chunk:
            if trainer.position.step + 1 == nan_at and env.rank == env.world_size - 1:
                batch.loss_mask_BS[:] = math.nan
            yield batch

    trainer.train_step, error = step_or_jump, None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            trainer.fit()
        except BadStepError as failure:
            error = str(failure)
        trainer.log.close()
    poison_steps = [
        step
        for step in range(1, STEPS + 1)
        if any(locus.contig == "poison" for sample in range((step - 1) * BATCH, step * BATCH) for locus in data.train.locate(sample))
    ]
    return losses, bad, error, poison_steps, printed.getvalue(), trainer.position


def records(tmp_path, name, kind):
    lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_poison_is_named_and_skipped_as_if_it_had_never_been(ranks, tiny_config, poisoned_shard, tmp_path):
    common = {**SPIKES, "data.train": [{"prefix": str(poisoned_shard)}]}
    (losses, bad, error, poison_steps, printed, position), other = ranks.run(2, fit, tree=tiny_config("skip", **common))
    late = [step for step in poison_steps if step > 20]  # it has learned the repeats by then
    assert late and error is None and set(late) <= bad.keys() and bad == other[1]
    assert set(bad) <= set(poison_steps)
    found = records(tmp_path, "skip", "bad_step")
    assert [record["step"] for record in found] == sorted(bad)
    for record in found:
        assert record["action"] == "skip" and "is a spike" in record["reason"]
        assert ":poison:" in record["samples"][0]["loci"][0] and len(record["samples"]) == BATCH
        assert record["samples"][0]["loss"] > 3 * record["samples"][-1]["loss"]
        assert record["loss_again"] == pytest.approx(record["loss"], rel=1e-4)
        assert record["samples"][0]["loci"][0] in printed
    skipped = {sample for first, end in position.history.skipped_samples for sample in range(first, end)}
    assert skipped == {sample for step in bad for sample in range(BATCH * (step - 1), BATCH * step)}

    off = {**common, "train.loss_spike_sigmas": 0}
    without = ranks.run(2, fit, tree=tiny_config("without", **off), jump=tuple(bad))[0][0]
    assert without == {step: loss for step, loss in losses.items() if step not in bad}
    ours, theirs = training.stored_tensors(tmp_path / "skip"), training.stored_tensors(tmp_path / "without")
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    with_it = ranks.run(2, fit, tree=tiny_config("with", **off))[0][0]
    assert with_it[late[0] + 1] != losses[late[0] + 1]  # the update would have changed the run

    parted = {}
    for stop in (late[0] - 1, late[0], late[0] + 2, STEPS):
        parted |= ranks.run(2, fit, tree=tiny_config("parted", **common, **{"train.stop_at_step": stop}))[0][0]
    assert parted == losses  # judged alike after resumes before, at and behind a bad step


@pytest.mark.parametrize(
    "layout",
    [{}, {"parallel.use_distributed_optimizer": True, "parallel.overlap_param_gather": True, "parallel.overlap_grad_reduce": True}],
    ids=["plain", "distributed optimizer"],
)
def test_rewind_goes_on_with_old_weights_behind_the_bad_samples(ranks, tiny_config, poisoned_shard, tmp_path, layout):
    common = {**SPIKES, **layout, "data.train": [{"prefix": str(poisoned_shard)}]}
    saves = {"checkpoint.save_interval": 9, "train.on_bad_step": "rewind"}
    losses, bad, error, _, _, position = ranks.run(2, fit, tree=tiny_config("rewind", **common, **saves))[0]
    found = records(tmp_path, "rewind", "rewind")
    assert error is None and found
    taken_back = [
        range(record["skipped_samples"][-1][0] // BATCH + 1, record["step"] + 1) for record in found
    ]  # steps whose samples are not learned
    assert any(len(steps) > 1 for steps in taken_back)
    assert all(record["checkpoint_step"] % 9 == 0 or record["checkpoint_step"] in bad for record in found)
    lost = {step for steps in taken_back for step in steps} | set(bad)
    off = {**common, "train.loss_spike_sigmas": 0}
    without = ranks.run(2, fit, tree=tiny_config("without", **off), jump=tuple(lost))[0][0]
    assert without == {step: loss for step, loss in losses.items() if step not in lost}
    assert sum(end - first for first, end in position.history.skipped_samples) == BATCH * len(lost)
    ours, theirs = training.stored_tensors(tmp_path / "rewind"), training.stored_tensors(tmp_path / "without")
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_stop_saves_the_run_as_before_the_step(ranks, tiny_config, poisoned_shard, tmp_path):
    common = {**SPIKES, "data.train": [{"prefix": str(poisoned_shard)}]}
    losses, bad, error, *_ = ranks.run(1, fit, tree=tiny_config("run", **common, **{"train.on_bad_step": "stop"}))[0]
    [step] = bad
    assert ":poison:" in error and f"bad step {step}" in error and "saved as before this step" in error
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == f"step_{step - 1:08d}"
    more, again, *_ = ranks.run(1, fit, tree=tiny_config("run", **common))[0]  # now with skip
    assert min(more) == step and more[step] == losses[step] and step in again and max(more) == STEPS


@pytest.mark.parametrize("parallel", [{}, {"parallel.pp": 2}, {"parallel.cp": 2}], ids=["data", "pipeline", "context"])
def test_one_rank_without_a_finite_loss_is_agreed_on_by_all(ranks, tiny_config, tmp_path, parallel):
    tree = tiny_config("run", **parallel, **{"train.train_steps": 4})
    results = ranks.run(2, fit, tree=tree, nan_at=2)
    assert [list(bad) for _, bad, *_ in results] == [[2], [2]]
    [record] = records(tmp_path, "run", "bad_step")
    assert "loss nan" in record["reason"] and record["weights_finite"]
    assert math.isfinite(record["loss_again"]) and all(sample["loss"] for sample in record["samples"])
    assert "memory or a processor may have failed" in results[0][4]  # the samples are innocent
    assert all(math.isfinite(loss) for step, loss in results[0][0].items() if step != 2)


def test_weights_that_are_not_finite_are_never_saved_and_rewound(ranks, tiny_config, tmp_path):
    steps = {"train.train_steps": 6}
    *_, error, _, _, _ = ranks.run(1, fit, tree=tiny_config("skip", **steps), break_at=3)[0]
    assert "the weights themselves are not finite" in error and not (tmp_path / "skip" / "checkpoints" / "latest").exists()
    rewind = {**steps, "train.on_bad_step": "rewind", "checkpoint.save_interval": 2}
    losses, bad, error, *_ = ranks.run(1, fit, tree=tiny_config("rewind", **rewind), break_at=3)[0]
    assert list(bad) == [3] and error is None and math.isfinite(losses[6])
    [record] = records(tmp_path, "rewind", "rewind")
    assert record["checkpoint_step"] == 2 and record["skipped_samples"] == [[16, 24]]


def test_too_many_bad_steps_end_the_run(ranks, tiny_config, tmp_path):
    tree = tiny_config(
        "run", **{"train.train_steps": 9, "train.grad_norm_spike_factor": 1e-3, "train.spike_window": 2, "train.max_bad_steps": 1}
    )
    _, bad, error, *_ = ranks.run(1, fit, tree=tree)[0]
    assert list(bad) == [3, 4] and "more than train.max_bad_steps = 1" in error and "train.grad_norm_spike_factor" in error
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == "step_00000003"
