"""`verify layouts` passes on sound layouts, lists those it cannot run, and sees one that is wrong."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from dnapretrain import cli, verify_layouts
from dnapretrain.config_file import config_from_dict, load_config
from dnapretrain.errors import ConfigError, DnaPretrainError

STEPS = 3


def statuses(proof):
    return {result["layout"]: result["status"] for result in proof["layouts"]}


def log_lines(loss_offset=0.0, norm_factor=1.0, steps=STEPS):
    records = [{"kind": "start", "step": 0}]
    records += [
        {"kind": "train", "step": step, "loss": 1.4 - 0.1 * step + loss_offset, "grad_norm": norm_factor / step}
        for step in range(1, steps + 1)
    ]
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def runs_without_training(monkeypatch):
    """Stands in for the processes: writes the log that `logs` has for a layout (default: one rank's), or fails."""
    logs, started = {}, []

    def run(arguments, said):
        verb, file, flag, ranks = arguments
        assert (verb, flag) == ("pretrain", "--ranks")
        config = load_config(file)
        started.append((said.parent.name, int(ranks), config))
        log = logs.get(said.parent.name, log_lines())
        said.write_text(log)
        if not log.startswith("{"):
            return 2
        (config.train.run_dir / "checkpoints").mkdir(parents=True)
        (config.train.run_dir / "log.jsonl").write_text(log)
        return 0

    monkeypatch.setattr(verify_layouts, "_run", run)
    return logs, started


@pytest.mark.slow
def test_sound_layouts_pass_and_others_are_listed(tiny_config, tmp_path):
    """The real thing: one rank and two layouts of two ranks, in fresh processes."""
    config = config_from_dict(tiny_config("unused", **{"parallel.pp": 2}))
    said = []
    names = ["TP2+SP", "TP4", "DP2+distopt", "PP4"]
    proof = verify_layouts.verify_layouts(config, tmp_path / "proof", STEPS, max_ranks=2, only=names, say=said.append)
    assert proof["passed"]
    assert statuses(proof) == {"TP2+SP": "passed", "TP4": "left out", "DP2+distopt": "passed", "PP4": "left out"}
    for result in proof["layouts"][::2]:
        assert result["max_loss_difference"] <= 1e-5
        assert result["max_grad_norm_relative_difference"] <= 1e-4
    assert json.loads((tmp_path / "proof" / "layouts.json").read_text()) == proof
    assert said[-1] == "PASSED: 2 passed, 2 left out"
    assert not (tmp_path / "unused").exists()
    assert not list((tmp_path / "proof").rglob("checkpoints"))
    assert "2 rank(s) = tensor 2 x pipeline 1 x data 1" in (tmp_path / "proof" / "TP2+SP" / "output.txt").read_text()


def test_another_run_is_seen(tiny_config, tmp_path, monkeypatch):
    """The real thing again, but the second run has other initial weights."""
    config, tree = config_from_dict(tiny_config()), verify_layouts._tree

    def wrong(config, layout, folder, steps):
        settings = tree(config, layout, folder, steps)
        settings["train"]["seed"] += layout.recompute == "full"
        return settings

    monkeypatch.setattr(verify_layouts, "_tree", wrong)
    proof = verify_layouts.verify_layouts(config, tmp_path / "proof", STEPS, only=["recompute-full"])
    assert statuses(proof) == {"recompute-full": "FAILED"} and not proof["passed"]
    assert proof["layouts"][0]["max_loss_difference"] > 1e-3


@pytest.mark.parametrize(
    ("log", "status"),
    [
        (log_lines(), "passed"),
        (log_lines(loss_offset=9e-6, norm_factor=1.00009), "passed"),
        (log_lines(loss_offset=2e-5), "FAILED"),
        (log_lines(loss_offset=-2e-5), "FAILED"),
        (log_lines(norm_factor=1.0002), "FAILED"),
        (log_lines(loss_offset=math.nan), "FAILED"),
        (log_lines(norm_factor=math.nan), "FAILED"),
        (log_lines(norm_factor=math.inf), "FAILED"),
    ],
)
def test_the_bounds_of_fp32(tiny_config, tmp_path, runs_without_training, log, status):
    logs, _ = runs_without_training
    logs["DP2"] = log
    proof = verify_layouts.verify_layouts(config_from_dict(tiny_config()), tmp_path, STEPS, only=["TP2", "DP2"])
    assert statuses(proof) == {"TP2": "passed", "DP2": status}
    assert proof["passed"] == (status == "passed")


def test_all_layouts_with_their_settings(tiny_config, tmp_path, runs_without_training):
    """Every layout gets its own settings on top of the user's, whose layout counts for nothing."""
    _, started = runs_without_training
    user = config_from_dict(tiny_config(**{"parallel.tp": 2, "train.recompute": "selective", "model.num_query_groups": 4}))
    said = []
    proof = verify_layouts.verify_layouts(user, tmp_path, STEPS, say=said.append)
    assert set(statuses(proof).values()) == {"passed"} and list(statuses(proof)) == list(verify_layouts.LAYOUTS)
    assert [name for name, _, _ in started] == ["one-rank", *verify_layouts.LAYOUTS]
    for name, ranks, config in started:
        parallel = config.parallel
        assert parallel.tensor_model_parallel_size == (4 if "TP4" in name else 2 if "TP2" in name else 1)
        assert parallel.pipeline_model_parallel_size == (4 if "PP4" in name else 2 if "PP2" in name else 1)
        assert parallel.virtual_pipeline_model_parallel_size == (2 if "interleaved" in name else None)
        assert parallel.context_parallel_size == (4 if "CP4" in name else 2 if "CP2" in name else 1)
        assert parallel.sequence_parallel == ("SP" in name.split("+"))
        assert parallel.use_distributed_optimizer == ("distopt" in name)
        assert ranks == parallel.model_parallel_size * (2 if "DP2" in name else 1)
        assert config.train.recompute == ("full" if "full" in name else "selective")
        assert (config.train.micro_batch_size, config.train.global_batch_size) == (2, 8)
        assert (config.train.stop_at_step, config.train.train_steps, config.optim.lr_warmup_steps) == (3, 40, 2)
        assert (config.model, config.data) == (user.model, user.data)
    assert len(said) == 3 + 1 + len(verify_layouts.LAYOUTS) + 1


def test_what_the_rules_refuse_is_listed_with_the_reason(tiny_config, tmp_path, runs_without_training):
    _, started = runs_without_training
    said = []
    config = config_from_dict(tiny_config(**{"train.micro_batch_size": 8}))
    proof = verify_layouts.verify_layouts(config, tmp_path, STEPS, only=["TP4", "DP2"], say=said.append)
    assert statuses(proof) == {"TP4": "refused", "DP2": "refused"}
    assert not proof["passed"]  # nothing ran
    assert [name for name, _, _ in started] == ["one-rank"]
    assert "refused: model.num_query_groups = 2 is not divisible by" in said[-3]
    assert "refused: train.global_batch_size = 8 is not divisible by train.micro_batch_size x data-parallel size = 8 x 2" in said[-2]
    assert said[-1] == "FAILED: 2 refused"


def test_dropout_is_set_to_zero_and_said(tiny_config, tmp_path, runs_without_training):
    _, started = runs_without_training
    tree = tiny_config(**{"data.masking": {"mlm_probability": 0.15}})
    tree["model"].update(kind="encoder", hidden_dropout=0.1, attention_dropout=0.2, ffn_dropout="inner", token_dropout=0.12)
    said = []
    proof = verify_layouts.verify_layouts(config_from_dict(tree), tmp_path, STEPS, only=["TP2"], say=said.append)
    assert "model.hidden_dropout and model.attention_dropout set to 0: ranks draw different numbers" in said
    assert proof["dropout_set_to_0"] == ["attention_dropout", "hidden_dropout"]
    for _, _, config in started:
        assert (config.model.hidden_dropout, config.model.attention_dropout, config.model.token_dropout) == (0, 0, 0.12)


def test_bf16_says_that_fp32_is_stricter(tiny_config, tmp_path, runs_without_training):
    logs, _ = runs_without_training
    logs["TP2"] = log_lines(loss_offset=0.01, norm_factor=1.1)
    said = []
    config = config_from_dict(tiny_config(**{"train.precision": "bf16"}))
    assert verify_layouts.verify_layouts(config, tmp_path, STEPS, only=["TP2"], say=said.append)["passed"]
    assert any("train.precision=fp32 is the strict proof" in line for line in said)


def test_a_layout_that_cannot_train_fails_with_its_error(tiny_config, tmp_path, runs_without_training):
    logs, _ = runs_without_training
    logs["TP2"] = "starting\nerror: the disk is full. Free some.\n"
    proof = verify_layouts.verify_layouts(config_from_dict(tiny_config()), tmp_path, STEPS, only=["TP2", "PP2"])
    assert statuses(proof) == {"TP2": "FAILED", "PP2": "passed"} and not proof["passed"]
    assert proof["layouts"][0]["reason"] == f"the disk is full. Free some. ({tmp_path / 'TP2' / 'output.txt'})"


def test_one_rank_must_train(tiny_config, tmp_path, runs_without_training):
    logs, _ = runs_without_training
    logs["one-rank"] = "Killed\n"
    with pytest.raises(DnaPretrainError, match=r"one rank cannot train this configuration: exit code 2 \(.*output\.txt\)"):
        verify_layouts.verify_layouts(config_from_dict(tiny_config()), tmp_path, STEPS, only=["TP2"])


def test_a_log_without_a_step_is_an_error(tiny_config, tmp_path, runs_without_training):
    logs, _ = runs_without_training
    logs["TP2"] = log_lines(steps=2)
    with pytest.raises(DnaPretrainError, match=r"steps \[3\] are missing"):
        verify_layouts.verify_layouts(config_from_dict(tiny_config()), tmp_path, STEPS, only=["TP2"])


def test_bad_arguments_are_named(tiny_config, tmp_path, monkeypatch):
    config = config_from_dict(tiny_config())
    with pytest.raises(ConfigError, match=r"no layout 'TP3'\. Known: TP2, TP4"):
        verify_layouts.verify_layouts(config, tmp_path, only=["TP3"])
    with pytest.raises(ConfigError, match="--steps = 0"):
        verify_layouts.verify_layouts(config, tmp_path, steps=0)
    with pytest.raises(ConfigError, match="--ranks = 0"):
        verify_layouts.verify_layouts(config, tmp_path, max_ranks=0)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="starts its own ranks"):
        verify_layouts.verify_layouts(config, tmp_path)


@pytest.mark.parametrize(("log", "code"), [(log_lines(), 0), (log_lines(loss_offset=1.0), 1)])
def test_the_command(tiny_config, tmp_path, runs_without_training, capsys, log, code):
    logs, started = runs_without_training
    logs["PP2"] = log
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config()))
    options = ["--steps", str(STEPS), "--output", str(tmp_path / "proof"), "--ranks", "2", "--only", "TP2", "PP2"]
    assert cli.main(["verify", "layouts", str(tmp_path / "tiny.yaml"), "train.seed=5", *options]) == code
    assert all(config.train.seed == 5 for _, _, config in started)
    assert capsys.readouterr().out.splitlines()[-1] == ("PASSED: 2 passed" if code == 0 else "FAILED: 1 passed, 1 FAILED")


def test_the_output_of_a_run_goes_to_its_file(tmp_path, capfd):
    assert verify_layouts._run(["--version"], tmp_path / "said") == 0
    assert (tmp_path / "said").read_text().startswith("dnapretrain ")
    assert verify_layouts._run(["pretrain", str(tmp_path / "none.yaml")], tmp_path / "said") == 2
    assert "error: config file not found" in (tmp_path / "said").read_text()
    assert capfd.readouterr() == ("", "")


def test_a_pipeline_that_does_not_divide_the_layers_has_fewer_at_its_ends(tiny_config, tmp_path):
    from dnapretrain.verify_layouts import LAYOUTS, _tree

    config = config_from_dict(tiny_config(**{"model.num_layers": 7}))
    for name, spread in (("PP2", [4, 3]), ("PP4", [2, 2, 2, 1]), ("TP2", [7])):
        resolved = config_from_dict(_tree(config, LAYOUTS[name], tmp_path, 1))
        assert resolved.parallel.layers_on_ranks(7) == spread
    with pytest.raises(ConfigError, match="not divisible by pipeline stages = 4"):
        config_from_dict(_tree(config, LAYOUTS["PP2-interleaved"], tmp_path, 1))
