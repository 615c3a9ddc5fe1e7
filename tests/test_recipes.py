"""The recipes: published sizes and schedules by hand, how files build on each other, and that each can be planned without data."""

from __future__ import annotations

import json
import math

import pytest

from dnapretrain.cli import main
from dnapretrain.config_file import dump_config, load_config, read_recipe, recipe_names
from dnapretrain.errors import ConfigError

WEIGHTS = {
    "generator-1.2b": 1_162_061_824,
    "generator-3b": 2_998_262_784,
    "generator-v2-1.2b": 1_162_061_824,
    "generator-v2-3b": 2_998_262_784,
    # The published files of NT v1 hold a contact head of layers x heads + 1 weights beside the language model.
    "nt-v1-500m-human-ref": 485_699_306 - (24 * 20 + 1),
    "nt-v1-500m-1000g": 485_699_306 - (24 * 20 + 1),
    "nt-v1-2.5b-1000g": 2_547_801_226 - (32 * 20 + 1),
    "nt-v1-2.5b-multi": 2_547_801_226 - (32 * 20 + 1),
    "nt-v2-50m": 54_855_179,
    "nt-v2-100m": 96_839_179,
    "nt-v2-250m": 233_545_995,
    "nt-v2-500m": 496_245_771,
    "dnabert2-117m": 117_074_176,
    "aido-dna-300m": 300_264_464,
    "aido-dna-7b": 7_285_036_304,
}
TINY = ("tiny-aido-dna", "tiny-dnabert2", "tiny-generator", "tiny-nt-v1", "tiny-nt-v2")


def test_the_names_are_fixed():
    assert recipe_names() == sorted([*WEIGHTS, *TINY])


@pytest.mark.parametrize("name", WEIGHTS)
def test_plan_counts_the_published_weights(name, capsys):
    assert main(["plan", name, "--gpus", "128", "--gpu", "a100-80g", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == WEIGHTS[name]
    assert plan["own_layout"] is not None, plan["own_layout_problem"]
    assert plan["own_layout"]["free_bytes"] > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_header_names_sources_and_what_is_open(name):
    header = "".join(line for line in read_recipe(name).splitlines() if line.startswith("#"))
    assert "Open:" in header or any(
        f"{other}" in header for other in ("header has the sources", "Sources", "data and masking of", "as 500m", "the model of")
    )


@pytest.mark.parametrize(
    ("name", "tokens", "steps"),
    [
        ("generator-1.2b", 2_097_152, 386e9 / 2_097_152),
        ("generator-v2-3b", 2_097_152, 422e9 / 2_097_152),
        ("nt-v1-2.5b-1000g", 1_024_000, 300e9 / 1_024_000),
        ("nt-v2-50m", 1_048_576, 300e9 / 1_048_576),
        ("nt-v2-250m", 1_048_576, 1e12 / 1_048_576),
        ("dnabert2-117m", 4096 * 128, 500_000),
        ("aido-dna-7b", 1024 * 4002, 100_000),
    ],
)
def test_batches_in_the_unit_of_the_paper(name, tokens, steps):
    config = load_config(name)
    assert config.train.global_batch_size * config.data.sequence_length == tokens
    assert abs(config.train.train_steps - steps) <= 1


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        # Step 8,000 is half-way up from 5e-5; behind 16,000 the rate falls with the square root.
        ("nt-v1-500m-human-ref", {0: 5e-5, 8_000: 7.5e-5, 16_000: 1e-4, 64_000: 5e-5, 256_000: 2.5e-5}),
        ("nt-v2-500m", {0: 5e-5, 16_000: 1e-4, 144_000: 1e-4 / 3}),
        ("dnabert2-117m", {0: 0, 15_000: 2.5e-4, 30_000: 5e-4, 265_000: 2.5e-4, 500_000: 0}),
        ("generator-1.2b", {0: 0, 1_000: 2e-4, 2_000: 4e-4, 2_000 + 182_059 // 2: 2e-4, 184_059: 0}),
        ("aido-dna-300m", {0: 0, 2_000: 2e-4, 51_000: 2e-5 + 0.9e-4, 100_000: 2e-5}),
    ],
)
def test_schedules_by_hand(name, rates):
    from types import SimpleNamespace

    from dnapretrain.train.optimizer import build_schedule

    config = load_config(name)
    schedule = build_schedule(config, SimpleNamespace(param_groups=[{"lr": 0.0, "weight_decay": 0.0}]))
    for step, rate in rates.items():
        schedule.num_steps = step * config.train.global_batch_size
        found = schedule.get_lr({"max_lr": config.optim.lr, "min_lr": config.optim.min_lr})
        assert math.isclose(found, rate, rel_tol=2e-5, abs_tol=1e-12), (step, found)


def test_what_differs_between_siblings():
    reference, thousand = load_config("nt-v1-500m-human-ref"), load_config("nt-v1-500m-1000g")
    assert thousand.model == reference.model
    assert (reference.data.masking.random_replace_prob, thousand.data.masking.random_replace_prob) == (0.1, 0.0)
    assert load_config("nt-v1-2.5b-multi").data.masking == reference.data.masking
    assert load_config("nt-v1-2.5b-multi").model == load_config("nt-v1-2.5b-1000g").model
    for name in ("nt-v1-500m-human-ref", "nt-v2-50m", "dnabert2-117m", "aido-dna-7b"):
        assert load_config(name).data.masking.mlm_probability == 0.15
    assert load_config("dnabert2-117m").model.hidden_dropout == 0.1
    assert load_config("aido-dna-7b").model.head_dim == 136
    for size in ("1.2b", "3b"):
        first, second = load_config(f"generator-{size}"), load_config(f"generator-v2-{size}")
        assert (first.train.loss, second.train.loss) == ("token", "nucleotide")
        assert (second.model, second.tokenizer, second.optim) == (first.model, first.tokenizer, first.optim)
        assert second.data == first.data.model_copy(update={"pack_order": "contig"})
        assert (first.bases_per_loss, second.bases_per_loss) == (6, 1)


def test_a_file_builds_on_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: nt-v2-250m\ndata: {train: shards/mine}\nparallel: {tp: 2}\noptim: {lr: 2.0e-4}\n")
    (tmp_path / "data.yaml").write_text("data: {train: [a, b]}\n")
    mine, base = load_config(tmp_path / "mine.yaml", [str(tmp_path / "data.yaml"), "optim.lr=3e-4"]), load_config("nt-v2-250m")
    assert [str(source.prefix) for source in mine.data.train] == ["a", "b"]
    assert mine.optim == base.optim.model_copy(update={"lr": 3e-4})
    assert mine.model == base.model
    assert mine.parallel.tensor_model_parallel_size == 2
    (tmp_path / "saved.yaml").write_text(dump_config(mine))
    assert load_config(tmp_path / "saved.yaml") == mine
    (tmp_path / "below.yaml").write_text("recipe: mine.yaml\n")  # counts from the file's own folder
    assert load_config(tmp_path / "below.yaml").optim.lr == 2e-4


def test_sets_of_the_recipe_below_are_replaced_as_a_whole(tmp_path):
    assert sorted(load_config("nt-v2-500m").data.valid) == ["test", "valid"]
    (tmp_path / "none.yaml").write_text("recipe: nt-v2-500m\ndata: {valid: {}}\n")
    (tmp_path / "other.yaml").write_text("recipe: nt-v2-500m\ndata: {valid: {mine: shards/mine}, split: {seed: 3}}\n")
    assert load_config(tmp_path / "none.yaml").data.valid == {}
    assert load_config("nt-v2-500m", [str(tmp_path / "none.yaml")]).data.valid == {}
    other = load_config(tmp_path / "other.yaml").data
    assert {name: str(prefix) for name, prefix in other.valid.items()} == {"mine": "shards/mine"}
    assert other.split.seed == 3 and other.stride == 12_000


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_reads_the_quickstart_alone(name):
    data = load_config(name).data
    assert [str(source.prefix) for source in data.train] == ["runs/quickstart/ecoli"]
    assert not data.valid


def test_names_as_people_write_them():
    assert load_config("recipe=nucleotide-transformer-v2-250m") == load_config("nt-v2-250m")
    with pytest.raises(ConfigError, match=r"config file not found: aido-dna-8b\. Did you mean the recipe 'aido-dna-7b'\?"):
        load_config("aido-dna-8b")
    with pytest.raises(ConfigError, match="config file not found"):
        load_config("../recipes/aido-dna-7b")


def test_a_file_that_names_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("recipe: b.yaml\n")
    (tmp_path / "b.yaml").write_text("recipe: a.yaml\n")
    with pytest.raises(ConfigError, match="names itself as its recipe"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", [*WEIGHTS, *TINY])
def test_the_verb_shows_it(name, capsys):
    assert main(["recipes"]) == 0
    assert f"\n{name} " in f"\n{capsys.readouterr().out}"
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out == read_recipe(name)


def test_a_dictionary_of_names_is_replaced_as_a_whole(tmp_path):
    assert load_config("nt-v2-500m").data.valid
    (tmp_path / "mine.yaml").write_text("recipe: nt-v2-500m\ndata: {valid: {}}\n")
    assert load_config(tmp_path / "mine.yaml").data.valid == {}
    for name in TINY:
        assert load_config(name).data.valid == {}
