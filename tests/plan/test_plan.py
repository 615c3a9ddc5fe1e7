"""The planner: what it says of a run, what it needs to say it, and its check against the real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dnapretrain.cli import main
from dnapretrain.config_file import config_from_dict, load_config
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.counts import flops_per_token
from dnapretrain.parallel.gpus import Gpu, gpu_by_kind
from dnapretrain.plan.check import check_counts, format_check
from dnapretrain.plan.layouts import with_layout
from dnapretrain.plan.make import make_plan
from dnapretrain.plan.page import _three, format_plan, write_layout

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "gpt.yaml"
GENERATOR_3B = {
    "data": {"train": "nowhere", "sequence_length": 16_384},
    "tokenizer": {"kind": "kmer", "k": 6},
    "model": {"num_layers": 30, "hidden_size": 3072, "num_attention_heads": 32, "num_query_groups": 4, "ffn_hidden_size": 8448},
    "parallel": {"tp": 1},
    "optim": {"lr": 4e-4},
    "train": {"run_dir": "nowhere", "train_steps": 1000, "micro_batch_size": 2, "global_batch_size": 128},
}


def generator(**sections):
    return config_from_dict({name: {**section, **sections.get(name, {})} for name, section in GENERATOR_3B.items()})


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "generator.yaml"
    path.write_text(yaml.safe_dump(GENERATOR_3B))
    return path


def test_no_torch_no_megatron_no_data(recipe):
    program = (
        "import sys; from dnapretrain.cli import main; code = main(sys.argv[1:]); "
        "loaded = {'torch', 'megatron', 'transformer_engine', 'transformers'} & set(sys.modules); sys.exit(code or len(loaded))"
    )
    command = [sys.executable, "-c", program, "plan", str(recipe), "--gpus", "64", "--gpu", "h100"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "parameters   2,998,096,896" in result.stdout


def test_the_files_own_layout_is_shown_even_where_it_does_not_fit():
    plan = make_plan(generator(), 64, gpu_by_kind("h100"))
    own = plan["own_layout"]
    assert (own["tp"], own["pp"], own["dp"], own["fits"]) == (1, 1, 64, False)
    assert own["total_bytes"] - own["free_bytes"] > own["total_bytes"]
    (line,) = [line for line in format_plan(plan).splitlines() if line.endswith("<- the file's")]
    assert f"NO, {-own['free_bytes'] / 2**30:.1f} too much" in line
    illegal = make_plan(generator(parallel={"pp": 3}), 64, gpu_by_kind("h100"))
    assert illegal["own_layout"] is None
    assert "the file's layout is not legal here: 64 rank(s) cannot hold tensor parallel 1 x pipeline parallel 3" in format_plan(illegal)


def test_the_files_own_layout_stands_in_its_place_when_it_is_among_the_best():
    best = make_plan(generator(), 64, gpu_by_kind("h200"))["best_layouts"][1]
    plan = make_plan(with_layout(generator(), best), 64, gpu_by_kind("h200"))
    rows = [line for line in format_plan(plan).splitlines() if "| yes" in line]
    assert [row.endswith("<- the file's") for row in rows].index(True) == 1
    assert len(rows) == min(8, len(plan["best_layouts"]))


@pytest.mark.parametrize(("count", "said"), [(64, "8 per node"), (60, "8 per node, of which the last would have 4"), (4, "8 per node")])
def test_a_node_that_is_not_full_is_named(count, said):
    assert format_plan(make_plan(generator(), count, gpu_by_kind("h100"))).splitlines()[0].endswith(f"; {said}")


def test_a_layout_that_fits_nowhere_says_the_way_out():
    plan = make_plan(generator(), 1, Gpu("tiny", 10**9, 100.0, (), 1e12, 100, 1e11, 1e10))
    assert plan["best_layouts"] == []
    assert "no legal layout fits: use more GPUs" in format_plan(plan)


def test_more_memory_is_asked_for_exactly_where_the_sum_exceeds_the_gpu():
    config = generator(train={"micro_batch_size": 1, "recompute": "full"})
    needed = make_plan(config, 8, gpu_by_kind("h200"))["own_layout"]["total_bytes"]
    for spare, fits in ((0, True), (-1, False)):
        own = make_plan(config, 8, Gpu("just", needed + spare, 100.0, (), 1e12, 100, 1e11, 1e10))["own_layout"]
        assert (own["fits"], own["free_bytes"]) == (fits, spare)


def test_arithmetic_of_compute_and_time():
    config = generator()
    plan = make_plan(config, 64, gpu_by_kind("a100-80"), 0.5)
    compute, assumed, best = plan["compute"], plan["assumed"], plan["best_layouts"][0]
    flops = flops_per_token(config.model, 16_384, 4101) * 128 * 16_384
    assert compute["flops_per_step"] == flops and compute["flops_of_run"] == 1000 * flops
    assert assumed["seconds_per_step"] == pytest.approx(flops / (64 * 312e12 * 0.5))
    assert assumed["days"] == pytest.approx(1000 * assumed["seconds_per_step"] / 86_400)
    assert assumed["tokens_per_second"] == pytest.approx(128 * 16_384 / assumed["seconds_per_step"])
    assert best["days"] == pytest.approx(1000 * best["seconds_per_step"] / 86_400)
    assert best["gpu_hours"] == pytest.approx(best["days"] * 24 * 64)
    assert best["tokens_per_second"] == pytest.approx(128 * 16_384 / best["seconds_per_step"])
    assert best["mfu"] == pytest.approx(flops / best["seconds_per_step"] / (64 * 312e12))
    assert "assumed" in plan and make_plan(config, 64, gpu_by_kind("a100-80"))["assumed"] is None


def test_no_time_is_said_of_fp32():
    plan = make_plan(generator(train={"precision": "fp32"}, data={"sequence_length": 2048}), 64, gpu_by_kind("a100-80"), 0.5)
    assert plan["assumed"]["days"] is None and plan["best_layouts"][0]["days"] is None
    ranked = [layout["tp"] * layout["cp"] * layout["pp"] for layout in plan["best_layouts"]]
    assert ranked == sorted(ranked)
    assert "nothing said for fp32" in format_plan(plan) and "no time is said of fp32" in format_plan(plan)


def test_disks():
    plan = make_plan(generator(), 64, gpu_by_kind("h100"))
    disk, best = plan["storage"], plan["best_layouts"][0]
    assert disk["bytes_read_per_second"] == pytest.approx(6 * best["tokens_per_second"])
    assert disk["checkpoint_bytes"] == 14 * plan["parameters"]["stored"]
    assert disk["checkpoint_seconds"] == pytest.approx(disk["checkpoint_bytes"] / 2e9)  # one rank writes: its weights are everybody's
    spread = make_plan(generator(parallel={"use_distributed_optimizer": True}), 64, gpu_by_kind("h100"))["storage"]
    assert spread["checkpoint_seconds"] == pytest.approx(disk["checkpoint_seconds"] / 8)
    assert spread["checkpoint_pause_seconds"] == pytest.approx(disk["checkpoint_bytes"] / 64 / 20e9)


def test_a_ramp_makes_the_run_shorter():
    run = make_plan(generator(train={"rampup_batch_size": [64, 64, 6400]}), 32, gpu_by_kind("h100"))["run"]
    assert run == {"steps": 1000, "samples": 121_600, "tokens": 121_600 * 16_384, "bases_at_most": 121_600 * 16_384 * 6}


def test_lengths_are_summed_over_the_run_and_memory_is_that_of_the_longest():
    stages = [{"until_step": 900, "sequence_length": 4096}, {"until_step": 5000}, {"sequence_length": 32_768}]
    config, plain = (
        generator(data={"stages": stages}),
        {length: generator(data={"sequence_length": length}) for length in (4096, 16_384, 32_768)},
    )
    plan = make_plan(config, 64, gpu_by_kind("h100"))
    whole = {length: make_plan(of_length, 64, gpu_by_kind("h100")) for length, of_length in plain.items()}
    assert plan["run"]["tokens"] == 128 * (900 * 4096 + 100 * 16_384) and plan["run"]["samples"] == 128_000
    of_lengths = [whole[length]["compute"]["flops_of_run"] for length in (4096, 16_384)]
    assert plan["compute"]["flops_of_run"] == pytest.approx(0.9 * of_lengths[0] + 0.1 * of_lengths[1])
    own = {length: of_length["own_layout"] for length, of_length in whole.items()}
    assert plan["own_layout"]["days"] == pytest.approx(0.9 * own[4096]["days"] + 0.1 * own[16_384]["days"])
    assert plan["sequence_length"] == 16_384, "the last stage is beyond the end of the run"
    assert plan["own_layout"]["seconds_per_step"] == own[16_384]["seconds_per_step"]
    assert [stage["from_step"] for stage in plan["compute"]["stages"]] == [1, 901]
    assert plan["own_layout"]["memory"] == own[32_768]["memory"]
    assert "from step 901: sequence 16,384, 12,800 samples, 2,097,152 tokens per step" in format_plan(plan)
    assert "from step" not in format_plan(whole[4096])


def test_command_line(recipe, capsys):
    assert main(["plan", str(recipe), "--gpus", "64", "--gpu", "H100", "parallel.tp=4", "--json", "--mfu", "0.3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["own_layout"]["tp"] == 4
    assert plan["assumed"]["mfu"] == 0.3
    assert plan["gpu"]["kind"] == "h100"
    best = plan["best_layouts"][0]
    assert {name: best[name] for name in plan["legal_layouts"][0]} in plan["legal_layouts"]
    assert main(["plan", str(QUICKSTART), "--gpus", "2", "--gpu", "l4"]) == 0
    page = capsys.readouterr().out
    assert "parameters   855,680 (885,888 with the vocabulary's padding)" in page
    assert max(len(line) for line in page.splitlines() if not line.startswith("as settings")) <= 190


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", "64", "--gpu", "v100"], "no data sheet for GPU 'v100'. Known: a10, "),
        (["--gpus", "0", "--gpu", "h100"], "--gpus = 0 is below 1."),
        (["--gpus", "8", "--gpu", "h100", "--mfu", "40"], "--mfu = 40.0 is not a share of the peak."),
        (["--gpus", "8"], "plan needs --gpu KIND"),
        (["--gpus", "8", "--gpu", "h100", "--network-gbps", "0"], "--network-gbps = 0.0 is no speed."),
        (["--gpus", "8", "--gpu", "h100", "model.layers=3"], "unknown config key 'model.layers'"),
    ],
)
def test_mistakes_are_one_line(recipe, capsys, arguments, says):
    assert main(["plan", str(recipe), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1


def check_in_rank(env, store, tree, gpus, wrong_by=0, every_rank=False):
    from dnapretrain.plan import check

    config = config_from_dict(tree)
    right = check.rank_parameters
    check.rank_parameters = lambda *arguments: right(*arguments) + wrong_by
    try:
        return check_counts(config, build_tokenizer(config.tokenizer), gpus, every_rank)
    finally:
        check.rank_parameters = right


def test_the_check_plays_every_stage_and_tensor_parallel_rank(ranks, tiny_config):
    tree = tiny_config(**{"parallel.tp": 2, "parallel.pp": 4, "model.transformer_impl": "transformer_engine"})
    (rows,) = ranks.run(1, check_in_rank, tree=tree, gpus=16)
    assert [(row["rank"], row["pp_rank"], row["tp_rank"]) for row in rows] == [
        (4 * stage + rank, stage, rank) for stage in range(4) for rank in range(2)
    ]
    assert all(row["formula"] == row["model"] for row in rows)
    assert format_check(rows).count("equal") == 4
    (rows,) = ranks.run(1, check_in_rank, tree=tree, gpus=16, wrong_by=1)
    assert format_check(rows).count("DIFFERENT") == 4
    with pytest.raises(ConfigError, match="cannot hold"):
        check_counts(config_from_dict(tree), build_tokenizer(config_from_dict(tree).tokenizer), 4)


def test_every_rank_of_a_large_job_has_the_weights_of_the_formula(ranks, tiny_config):
    parallel = {"parallel.tp": 2, "parallel.pp": 4, "parallel.vpp": 2, "model.num_layers": 8}
    tree = tiny_config(**parallel, **{"train.micro_batch_size": 1, "train.global_batch_size": 128})
    (rows,) = ranks.run(1, check_in_rank, tree=tree, gpus=256, every_rank=True)
    assert [row["rank"] for row in rows] == list(range(256))
    assert [row["pp_rank"] for row in rows] == [rank // 64 for rank in range(256)]
    assert all(row["formula"] == row["model"] for row in rows)
    assert "on each of 64 rank(s): equal" in format_check(rows)


def test_a_context_of_a_million_is_spread_over_ranks(ranks, tiny_config):
    plan = make_plan(generator(data={"sequence_length": 2**20}), 64, gpu_by_kind("h100"))
    assert plan["best_layouts"][0]["cp"] >= 4
    assert all(layout["tp"] * layout["cp"] * layout["pp"] * layout["dp"] == 64 for layout in plan["legal_layouts"])
    tree = tiny_config(**{"parallel.tp": 2, "parallel.pp": 2, "parallel.cp": 2})
    (rows,) = ranks.run(1, check_in_rank, tree=tree, gpus=16)
    assert [row["rank"] for row in rows] == [0, 1, 8, 9] and all(row["formula"] == row["model"] for row in rows)


def test_a_check_that_fails_is_the_exit_code(recipe, capsys, monkeypatch):
    row = {"rank": 0, "pp_rank": 0, "tp_rank": 0, "formula": 10}
    for counted, code in ((10, 0), (11, 1)):
        monkeypatch.setattr("dnapretrain.plan.check.check_counts", lambda *arguments, counted=counted: [{**row, "model": counted}])
        assert main(["plan", str(recipe), "--gpus", "64", "--gpu", "h100", "--check"]) == code
    assert "DIFFERENT on rank 0: 11" in capsys.readouterr().out


def test_a_plan_changes_nothing_in_the_settings_it_is_given():
    config = load_config(QUICKSTART)
    before = config.model_dump()
    make_plan(config, 8, gpu_by_kind("h100"))
    assert config.model_dump() == before


def test_columns_keep_their_zeros() -> None:
    assert [_three(value) for value in (1.2, 0.26, 12.0, 123.4)] == ["1.20", "0.260", "12.0", "123"]


def test_where_no_layout_is_legal_more_memory_is_not_the_advice(tmp_path: Path) -> None:
    plan = make_plan(generator(), 61, gpu_by_kind("h100"))
    assert not plan["legal_layouts"]
    page = format_plan(plan)
    assert "no layout is legal: change train.global_batch_size or the number of GPUs" in page and "more memory" not in page
    with pytest.raises(ConfigError, match=r"no layout is legal, so .* was not written\. Change train\.global_batch_size or --gpus"):
        write_layout(plan, tmp_path / "none.yaml", "generator")
