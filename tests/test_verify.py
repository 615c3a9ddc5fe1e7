"""`verify resume` passes on the real thing and fails when a run is not what it would have been."""

from __future__ import annotations

import json

import pytest

from dnapretrain import cli, verify, verify_layouts
from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError


@pytest.fixture(scope="module")
def proven(small_shard, tmp_path_factory):
    """A proof on one rank, its folder, and its config."""
    folder = tmp_path_factory.mktemp("proof")
    config = config_from_dict(
        {
            "data": {"train": str(small_shard), "sequence_length": 16},
            "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 32},
            "optim": {"lr": 1e-3, "lr_warmup_steps": 500, "lr_decay_steps": 1000},
            "train": {
                "run_dir": str(folder / "unused"),
                "train_steps": 1000,
                "micro_batch_size": 2,
                "global_batch_size": 4,
                "precision": "fp32",
                "device": "cpu",
            },
        }
    )
    return verify.verify_resume(config, ranks=1, steps=8, stops=[2, 3, 6], output=folder), folder, config


def test_a_sound_run_passes_bit_for_bit(proven):
    proof, folder, _ = proven
    assert proof["passed"] and proof["losses_identical"] and proof["grad_norms_identical"]
    assert proof["tensors_compared"] == 3 * (3 + 6) and proof["tensors_different"] == []
    assert json.loads((folder / "proof.json").read_text()) == proof
    assert "PASSED" in verify.format_proof(proof)
    assert "8 steps on 1 rank(s) against 2 + stop + 1 + stop + 3 + stop + 2 on 1 rank(s)" in verify.format_proof(proof)
    starts = [json.loads(line)["step"] for line in (folder / "parted" / "log.jsonl").read_text().splitlines() if '"kind": "start"' in line]
    assert starts == [0, 2, 3, 6]
    assert not (folder / "unused").exists()


def test_a_difference_is_seen(proven):
    proof, folder, _ = proven
    log = folder / "parted" / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    kept = log.read_text()
    for record in records:
        if record["kind"] == "train" and record["step"] == 5:
            record["loss"] += 1e-9
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        compared = verify.compare_steps(folder / "whole", folder / "parted", 8)
    finally:
        log.write_text(kept)
    assert not compared["losses_identical"] and compared["grad_norms_identical"]
    assert "FAILED" in verify.format_proof({**proof, **compared, "passed": False})


def test_a_missing_step_is_seen(proven):
    _, folder, _ = proven
    with pytest.raises(Exception, match="missing"):
        verify.compare_steps(folder / "whole", folder / "parted", 9)


@pytest.mark.slow
def test_other_layouts_are_compared_within_tolerance(proven, tmp_path):
    _, _, config = proven
    proof = verify.verify_resume(config, ranks=1, steps=4, stops=[2], output=tmp_path, resume_overrides=["parallel.tp=2"], resume_ranks=2)
    assert proof["passed"] and not proof["same_layout"]
    assert proof["max_loss_difference"] <= 1e-5


def test_the_stopped_run_is_resumed_under_other_layouts(proven, monkeypatch):
    proof, folder, config = proven
    monkeypatch.setattr(verify_layouts, "verify_resume", lambda *_: dict(proof))
    said = []
    under = verify_layouts.verify_resume_under(config, 1, 8, [2, 3, 6], folder, ["TP2", "DP2+distopt", "PP2"], said.append)
    assert [(result["layout"], result["status"]) for result in under["layouts"]] == [
        ("TP2", "passed"),
        ("DP2+distopt", "refused"),  # the checkpoint is of the plain optimizer
        ("PP2", "refused"),  # one layer
    ]
    assert under["passed"] and len(said) == 4 and under["layouts"][0]["max_loss_difference"] <= 1e-5
    assert 0 < under["layouts"][0]["max_grad_norm_relative_difference"] <= 1e-4  # tensor parallel sums in another order
    records = [json.loads(line) for line in (folder / "TP2" / "run" / "log.jsonl").read_text().splitlines()]
    assert records[0]["step"] == 2 and "step_00000002" in records[0]["resumed_from"]
    assert records[0]["config"]["parallel"]["tensor_model_parallel_size"] == 2
    assert [record["step"] for record in records if record["kind"] == "train"] == [3, 4, 5, 6, 7, 8]


def test_layouts_with_dropout_or_an_unknown_name_are_refused_before_training(proven, tmp_path):
    dropout = proven[2].model_copy(update={"model": proven[2].model.model_copy(update={"hidden_dropout": 0.1})})
    with pytest.raises(ConfigError, match="model without dropout"):
        verify_layouts.verify_resume_under(dropout, 1, 8, [2], tmp_path / "out", ["TP2"])
    with pytest.raises(ConfigError, match="no layout 'TP3'"):
        verify_layouts.verify_resume_under(proven[2], 1, 8, [2], tmp_path / "out", ["TP3"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stops", [[6], [0, 2], [3, 2], [2, 2], []])
def test_stops_must_rise_and_lie_inside(proven, tmp_path, stops):
    with pytest.raises(ConfigError, match=f"--at = {','.join(map(str, stops))} must be rising and lie between 0 and --steps = 6"):
        verify.verify_resume(proven[2], ranks=1, steps=6, stops=stops, output=tmp_path)


def test_another_number_of_samples_is_seen(proven):
    """Losses may agree by chance, or within a tolerance."""
    proof, _, _ = proven
    assert verify.within_tolerance(proof, "fp32") and not verify.within_tolerance({**proof, "samples_identical": False}, "fp32")


def test_only_layouts_may_differ(proven, tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.lr=1 is no layout"):
        verify.verify_resume(proven[2], ranks=1, steps=6, stops=[2], output=tmp_path, resume_overrides=["optim.lr=1"])


def test_the_settings_of_a_proof_stay_legal_and_train(proven, tmp_path):
    """A schedule with a long final decay keeps its length; a warm-up beyond the proof is shortened, else nothing would be learned."""
    tree = proven[2].model_dump(mode="json")
    tree["optim"].update(lr_decay_style="WSD", lr_decay_steps=None, lr_wsd_decay_steps=400)
    settings = config_from_dict(verify.proof_tree(config_from_dict(tree), tmp_path, 6))
    assert (settings.train.train_steps, settings.train.stop_at_step, settings.lr_decay_steps) == (1000, 6, 1000)
    assert (settings.train.run_dir, settings.optim.lr_warmup_steps) == (tmp_path, 3)
    assert config_from_dict(verify.proof_tree(proven[2], tmp_path, 2000)).train.train_steps == 2001  # never reaches its last step


def test_stops_and_layouts_on_the_command_line(capsys):
    parsed = cli._parser().parse_args(["verify", "resume", "x.yaml", "--at", "2,3,6", "--layouts", "TP2", "PP2"])
    assert (parsed.at, parsed.layouts, parsed.overrides) == ([2, 3, 6], ["TP2", "PP2"], [])
    assert cli._parser().parse_args(["verify", "resume", "x.yaml", "--stop-at", "4"]).at == [4]
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["verify", "resume", "x.yaml", "--at", "2;3"])
    assert "'2;3' is no list of steps, as 6,12,18 is" in capsys.readouterr().err
