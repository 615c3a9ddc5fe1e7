"""Suites and their runs: data files, baselines that learn what they can, what is skipped, kept and said."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from small_folders import write_folder

from dnapretrain.adapt.backbones.backbone import open_backbone
from dnapretrain.adapt.benchmarks.baselines import (
    PENALTIES,
    RIDGES,
    DilatedConvolutions,
    Parts,
    convolution_baseline,
    kmer_counts,
    one_hot,
    run_baseline,
    token_shares,
)
from dnapretrain.adapt.benchmarks.benchmark_jobs import run_units
from dnapretrain.adapt.benchmarks.benchmark_marks import styles
from dnapretrain.adapt.benchmarks.benchmark_runs import BenchmarkSettings, TaskTables, Unit, combine
from dnapretrain.adapt.benchmarks.entrants import model_names
from dnapretrain.adapt.benchmarks.suites import SuiteTask, find_split, parse_changes, read_suite, suite_names, task_settings
from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_sequences
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.tables import SequenceTable, TableOptions, read_table
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.finetune import classifier_encoder, run_finetune
from dnapretrain.cli import main
from dnapretrain.convert.hf import from_hf
from dnapretrain.convert.native import read_state, state_text
from dnapretrain.errors import ConfigError

MOTIF = "TGACTCA"
CLASSES = Target("classification", ("label",), ("0", "1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("aido"), "aido-dna")[0]


def table(rows, seed, length=60):
    """Label 1: a motif at any place."""
    random = np.random.default_rng(seed)
    sequences = []
    for row in range(rows):
        bases = "".join(random.choice(list("ACGT"), length)).replace(MOTIF, "A" * 7)
        at = int(random.integers(length - 7))
        sequences.append(bases[:at] + MOTIF + bases[at + 7 :] if row % 2 else bases)
    return SequenceTable("t", tuple(map(str, range(rows))), tuple(sequences), {"label": tuple(str(row % 2) for row in range(rows))})


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("sequence", "label"), *zip(rows.sequences, rows.labels["label"], strict=True)])


def test_suites_of_the_package():
    assert suite_names() == ["gener", "genomic-benchmarks", "gue", "nt", "nt-revised"]
    sizes = {name: len(read_suite(name).tasks) for name in suite_names()}
    assert sizes == {"gener": 2, "genomic-benchmarks": 9, "gue": 28, "nt": 18, "nt-revised": 18}
    gue = read_suite("gue")
    for model, mean in (("DNABERT-2", 0.6681), ("NT-2.5B-multi", 0.6693)):  # averages over the 28 published cells
        assert np.mean([task.published[model] for task in gue.tasks]) == pytest.approx(mean, abs=1e-4)
    tata = task_settings(next(task for task in gue.tasks if task.name == "prom/prom_core_tata"))
    assert (tata.loop.epochs, tata.loop.lr, tata.loop.warmup, tata.loop.select_by, tata.method) == (10, 3e-5, 50, "loss", "full")
    assert [task.name for task in gue.choose(["tf", "mouse/2"])] == [*(f"tf/{number}" for number in range(5)), "mouse/2"]
    assert next(task for task in gue.tasks if task.name == "virus/covid").metric == "f1"
    nt = task_settings(read_suite("nt").tasks[0])
    assert (nt.method, nt.num_folds) == ("ia3", 10)
    with pytest.raises(ConfigError, match="has no task tf/9"):
        gue.choose(["tf/9"])


def test_changes_over_a_suite():
    task = read_suite("gue").tasks[0]
    found = task_settings(task, parse_changes(["method=lora", "rank=4", "epochs=1", "class_weights=true"]))
    assert (found.method, found.adapter.rank, found.loop.epochs, found.loop.class_weights, found.loop.lr) == ("lora", 4, 1, True, 1e-4)
    assert task_settings(task, parse_changes(["lr=2e-4"])).loop.lr == 2e-4
    with pytest.raises(ConfigError, match="momentum is no setting"):
        task_settings(task, {"momentum": 1})
    with pytest.raises(ConfigError, match="not NAME=VALUE"):
        parse_changes(["lora"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "pearson"}, "metric pearson, which is none of mcc"),
        ({"splits": {"train": "train"}}, "must name train and test"),
        ({"sources": {}}, "does not say where it is from"),
        ({"tasks": {"a": {"published": {"X": 71.0}}}}, "numbers are shares"),
        ({"tasks": {"a": {"numbers": {}}}}, "unknown key 'numbers'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"settings": {"lr": -1}}, "lr and clip_grad must be above 0"),
    ],
)
def test_suites_that_cannot_be(tmp_path, change, message):
    good = {"title": "T", "reference": "R", "splits": {"train": "train", "test": "test"}, "metric": "mcc", "sources": {"X": "a paper"}}
    good["tasks"] = {"a": {"published": {"X": 0.7}}}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(good))
    assert read_suite(str(path)).tasks[0].published == {"X": 0.7}
    path.write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(ConfigError, match=message):
        read_suite(str(path))


def test_kmers_and_tokens_by_hand(folder):
    counts = kmer_counts(["ACGTN", "AAA"], max_k=2).toarray()
    assert counts.shape == (2, 20) and counts[0, :4] == pytest.approx([0.25] * 4) and counts[1, :4].tolist() == [1, 0, 0, 0]
    assert counts[0, 4 + np.array([1, 6, 11])] == pytest.approx([1 / 3] * 3) and counts[0, 4:].sum() == pytest.approx(1)  # AC CG GT
    assert kmer_counts(["NN"]).nnz == 0
    encoder = classifier_encoder(folder)
    shares = token_shares(["AACG" * 3000], encoder).toarray()  # longer than the model: all of it counts
    names = {encoder.tokenizer.tokens[at]: float(value) for at, value in enumerate(shares[0]) if value}
    assert names == pytest.approx({"A": 0.5, "C": 0.25, "G": 0.25}) and encoder.counts.sequences == 0


def test_padding_does_not_reach_the_convolutions():
    torch.manual_seed(0)
    model = DilatedConvolutions(2).eval()
    texts = ["ACGTTGCA" * 4, "GGCA" * 20]
    with torch.no_grad():
        together, alone = model(*one_hot(texts)), model(*one_hot(texts[:1]))
    assert together[0].numpy() == pytest.approx(alone[0].numpy(), abs=1e-6)


def test_baselines_find_what_they_can(folder):
    """A motif at any place: k-mers and convolutions see it, single bases do not."""
    parts = Parts(table(400, 1), table(100, 2), table(200, 3))
    truth = CLASSES.truth(parts.test)
    kmer, about = run_baseline("kmer", parts, CLASSES, None, 0)
    assert CLASSES.scores(truth, list(kmer))["auroc"] > 0.9 and about["C"] in (0.01, 0.1, 1.0, 10.0)
    tokens, _ = run_baseline("tokens", parts, CLASSES, classifier_encoder(folder), 0)
    assert CLASSES.scores(truth, list(tokens))["auroc"] < 0.8
    cnn, about = convolution_baseline(parts, CLASSES, 0, epochs=5)
    assert CLASSES.scores(truth, list(cnn))["auroc"] > 0.9 and 1 <= about["best_epoch"] <= 5
    few = Parts(*[table(64, 4, length=30)] * 3)
    one, two = (convolution_baseline(few, CLASSES, 0, epochs=1)[0] for _ in range(2))
    assert (one == two).all()
    with pytest.raises(ConfigError, match="baselines are of classification and regression"):
        run_baseline("kmer", parts, Target("multilabel", ("label",), ()), None, 0)
    with pytest.raises(ConfigError, match="needs a model's tokenizer"):
        run_baseline("tokens", parts, CLASSES, None, 0)


def numbers(rows, seed):
    """Two columns: the share of G and C times 100 + 7, and 105 with the motif, else 100."""
    plain = table(rows, seed)
    shares = [sum(text.count(base) for base in "GC") / len(text) for text in plain.sequences]
    labels = {"gc": tuple(str(100 * share + 7) for share in shares), "motif": tuple(str(100 + 5 * (row % 2)) for row in range(rows))}
    return SequenceTable("t", plain.names, plain.sequences, labels)


def test_baselines_of_numbers(folder):
    """The share is linear in tokens, the motif is seen by k-mers and convolutions; numbers come back on their own scale."""
    parts = Parts(numbers(400, 1), numbers(100, 2), numbers(200, 3))
    target = Target.of(parts.train, "regression")

    def scores(found):
        assert found.shape == (200, 2)
        return target.scores(target.truth(parts.test), list(found))

    tokens, about = run_baseline("tokens", parts, target, classifier_encoder(folder), 0)
    assert scores(tokens)["r2:gc"] > 0.99 and scores(tokens)["r2:motif"] < 0.3 and about["alpha"] in RIDGES
    kmer, _ = run_baseline("kmer", parts, target, None, 0)
    assert scores(kmer)["pearson:motif"] > 0.7
    cnn, about = convolution_baseline(parts, target, 0, epochs=5)
    assert scores(cnn)["pearson"] > 0.5 and scores(cnn)["r2"] > 0 and about["valid_pearson"] > 0.5


def small_task(changes):
    changes = {"num_bootstrap": 10, **changes}
    return TaskTables(SuiteTask("small", "mcc", changes, {}), table(60, 1), table(20, 2), table(20, 3), (), {})


def test_folds_one_by_one_are_those_of_one_call(folder, tmp_path):
    task, settings, said = small_task({"epochs": 1, "num_folds": 2, "lr": 1e-3}), BenchmarkSettings(seeds=(1,)), []
    units = [Unit(task, "hf", 1, fold, folder=folder, digest="d") for fold in (0, 1)]
    alone = run_units(units, tmp_path / "alone", settings, 1, said.append)
    whole = run_finetune(folder, task.train, None, task.test, tmp_path / "whole", settings.of_task(task.task, 1, False), shared={})
    assert [list(one) for one in alone] == [["seed_1_fold_0"], ["seed_1_fold_1"]]
    assert {run["name"]: run["test"] for run in whole["runs"]} == alone[0] | alone[1]
    assert (
        "small: hf, seed 1, fold 1: mcc" in said[1] and (tmp_path / "alone" / "hf" / "small" / "seed_1" / "fold_1" / "done.json").is_file()
    )


def test_processes_give_what_one_gives(tmp_path, monkeypatch):
    task, settings, said = small_task({}), BenchmarkSettings(), []
    units = [Unit(task, "cnn", seed, baseline="cnn") for seed in (1, 2)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    together = run_units(units, tmp_path / "together", settings, 2, said.append)
    torch.set_num_threads(1)
    alone = run_units(units, tmp_path / "alone", settings, 1, said.append)
    torch.set_num_threads(threads)
    assert together == alone and together[0] != together[1] and sorted(said[:2]) == said[2:]
    written = [json.loads((tmp_path / where / "cnn" / "small" / "seed_2" / "result.json").read_text()) for where in ("together", "alone")]
    assert written[0] == written[1]  # the loss of the best epoch too
    monkeypatch.setattr("dnapretrain.adapt.benchmarks.benchmark_jobs.run_unit", None)
    assert run_units(units, tmp_path / "together", settings, 2, said.append) == together  # kept
    with pytest.raises(ConfigError, match="jobs = 0"):
        run_units(units, tmp_path / "together", settings, 0, said.append)


def test_a_killed_process_is_said(tmp_path):
    """A unit whose process ends at once: no result, and a way out."""
    task = replace(small_task({}), notes=(Exits(),))
    units = [Unit(task, "cnn", seed, baseline="cnn") for seed in (1, 2)]
    with pytest.raises(ConfigError, match=r"one of 2 jobs was killed .* fewer --jobs"):
        run_units(units, tmp_path, BenchmarkSettings(), 2, lambda line: None)


class Exits:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_over_seeds_and_folds():
    one = combine([{"seed_1": {"mcc": {"value": 0.5, "low": 0.4, "high": 0.6}}}], "mcc")
    assert (one["value"], one["low"], one["high"], one["interval"]) == (0.5, 0.4, 0.6, "test rows")
    runs = [{"seed_1": {"mcc": {"value": value, "low": 0, "high": 1}}} for value in (0.5, 0.6, 0.7)]
    assert combine(runs, "mcc")["low"] == pytest.approx(0.6 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)


def test_names_of_models(tmp_path):
    assert list(model_names([tmp_path / "a" / "hf", tmp_path / "b" / "hf", tmp_path / "c"])) == ["a-hf", "b-hf", "c"]
    with pytest.raises(ConfigError, match="named twice"):
        model_names([tmp_path, tmp_path])


def test_splits_are_found_whatever_their_kind(tmp_path):
    assert find_split(tmp_path, "train") is None
    (tmp_path / "train.tsv.gz").touch()
    assert find_split(tmp_path, "train") == tmp_path / "train.tsv.gz"
    (tmp_path / "train.csv").touch()
    with pytest.raises(ConfigError, match="Remove one"):
        find_split(tmp_path, "train")


@pytest.fixture
def data(tmp_path):
    """tf/0 whole, tf/1 without a test table and with rows of tf/0, tf/2 without a table to learn from."""
    first = table(60, 1)
    for name, rows in (("train", first), ("dev", table(20, 2)), ("test", table(20, 3))):
        write_table(tmp_path / "gue" / "tf" / "0" / f"{name}.csv", rows)
    copies = SequenceTable("c", ("1", "2"), (reverse_complement_text(first.sequences[0]), first.sequences[1]), {"label": ("0", "1")})
    write_table(tmp_path / "gue" / "tf" / "1" / "train.csv", table(60, 4))
    write_table(tmp_path / "gue" / "tf" / "1" / "dev.csv", copies)
    write_table(tmp_path / "gue" / "tf" / "2" / "dev.csv", table(20, 5))
    return tmp_path / "gue"


def test_the_verb_runs_skips_and_resumes(folder, data, tmp_path, capsys, monkeypatch):
    arguments = [
        "benchmark",
        str(folder),
        "--suite",
        "gue",
        "--data",
        str(data),
        "--output",
        str(tmp_path / "out"),
        "--tasks",
        "tf/0,tf/1,tf/2",
    ]
    arguments += ["--seeds", "1,2", "--from-scratch", "--set", "epochs=1", "--set", "num_bootstrap=20"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "tf/2: skipped, no train table" in said.err and "not on disk: tf/2" in said.out
    assert "note: judged on dev, for there is no test" in said.out and "published, of other rows" in said.out
    assert "leakage between tasks: tf/1: 2 of 2 test rows share 50 bases in a row with training rows of tf/0" in said.out
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    [first, second] = result["tasks"]
    assert set(first["contestants"]) == {"hf", "hf (random weights)", "tokens of hf", "kmer", "cnn"}
    assert len(first["contestants"]["hf"]["values"]) == 2 and first["published"]["DNABERT-2"] == 0.7199
    assert first["notes"] == [] and second["rows"] == {"train": 60, "valid": 0, "test": 2}
    assert (tmp_path / "out" / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    one = json.loads((tmp_path / "out" / "hf" / "tf" / "0" / "seed_1" / "result.json").read_text())
    assert one["settings"]["loop"]["epochs"] == 1 and one["settings"]["loop"]["select_by"] == "loss" and one["settings"]["keep"] == "none"

    from dnapretrain.adapt.benchmarks import benchmark_runs

    count = []
    plain = benchmark_runs.run_finetune
    monkeypatch.setattr(benchmark_runs, "run_finetune", lambda *given, **more: (count.append(given), plain(*given, **more))[1])
    assert main(arguments) == 0 and not count
    assert capsys.readouterr().out == said.out
    shutil.rmtree(tmp_path / "out" / "hf" / "tf" / "0" / "seed_2")
    (tmp_path / "out" / "hf" / "tf" / "1" / "seed_1" / "done.json").write_text("{")  # stopped in the middle
    assert main(arguments) == 0 and len(count) == 2
    assert capsys.readouterr().out == said.out
    write_table(data / "tf" / "0" / "test.csv", table(20, 9))
    assert main([*arguments, "--baselines", "none"]) == 0 and len(count) == 2 + 4  # other data: two seeds, with and without pretraining


def test_no_two_contestants_look_alike():
    names = [f"m{at}{end}" for at in range(9) for end in ("", " (random weights)")] + [f"tokens of m{at}" for at in range(9)]
    looks = styles([*names, "kmer", "cnn"])
    assert len(set(looks.values())) == len(looks) == 29
    assert looks["m8"][0] == looks["m8 (random weights)"][0] == looks["tokens of m8"][0] != looks["m1"][0]  # one colour per model
    assert looks["m8 (random weights)"][2] and not looks["m8"][2]


def test_frozen_layers_instead_of_finetuning(folder, data, tmp_path, capsys):
    """Equal to embeddings and regression by hand; random weights by seed, kept when the model is trained on."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    arguments = ["benchmark", str(own), "--suite", "gue", "--data", str(data), "--output", str(tmp_path / "out"), "--tasks", "tf/0,tf/1"]
    arguments += ["--seeds", "1,2", "--from-scratch", "--frozen", "0,-1", "--baselines", "none", "--set", "num_bootstrap=20"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "less random weights, mean of 2 tasks" in said.out
    cells = json.loads((tmp_path / "out" / "benchmark.json").read_text())["tasks"][0]["contestants"]
    assert (cells["own"]["interval"], len(cells["own"]["values"])) == ("test rows", 1)
    assert len(set(cells["own (random weights)"]["values"])) == 2  # other weights, other numbers

    tables = [read_table(data / "tf" / "0" / f"{name}.csv", TableOptions(needs_labels=True)) for name in ("train", "dev", "test")]
    backbone = open_backbone(own)
    vectors = [np.hstack([embed_sequences(backbone, one.sequences, EmbedSettings((at,)))[:, 0] for at in (0, 2)]) for one in tables]
    mean, sd = vectors[0].mean(axis=0), vectors[0].std(axis=0)
    vectors = [(one - mean) / np.where(sd > 0, sd, 1) for one in vectors]
    truth = [np.array([int(value) for value in one.labels["label"]]) for one in tables]
    models = [LogisticRegression(C=penalty, max_iter=2000, tol=1e-8).fit(vectors[0], truth[0]) for penalty in PENALTIES]
    best = max(models, key=lambda model: matthews_corrcoef(truth[1], model.predict(vectors[1])))
    assert cells["own"]["value"] == pytest.approx(matthews_corrcoef(truth[2], best.predict(vectors[2])), abs=1e-9)

    weights = load_file(own / "model.safetensors")
    save_file({name: one * 1.5 for name, one in weights.items()}, own / "model.safetensors", metadata={"format": "pt"})
    assert main(arguments) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if "seed" in line] == ["tf/0: own", "tf/1: own"]
    assert main([*arguments, "--frozen", "7"]) == 2 and "layer 7 is not there" in capsys.readouterr().err


def test_a_series_of_checkpoints(folder, data, tmp_path, capsys):
    run = tmp_path / "mine"
    for step in (20, 100):
        checkpoint = run / "checkpoints" / f"step_{step:08}"
        from_hf(folder, checkpoint)
        state = {**read_state(checkpoint), "step": step, "consumed_tokens": step * 512}
        (checkpoint / "state.json").write_text(state_text(checkpoint, state))
    arguments = ["benchmark", str(run), "--suite", "gue", "--data", str(data), "--output", str(tmp_path / "out"), "--tasks", "tf/0"]
    arguments += ["--seeds", "1", "--from-scratch", "--baselines", "tokens", "--set", "epochs=1", "--set", "num_bootstrap=10"]
    assert main([*arguments, "--checkpoints", "all"]) == 0
    said = capsys.readouterr().out
    assert "mine over consumed tokens: tf/0 (mcc)\n  step        20             10,240 tokens" in said
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [(one["name"], one["consumed_tokens"]) for one in result["series"]] == [("mine step 20", 10240), ("mine step 100", 51200)]
    contestants = result["tasks"][0]["contestants"]
    assert list(contestants) == ["mine step 20", "mine step 100", "mine (random weights)", "tokens of mine"]
    assert contestants["mine step 20"] == contestants["mine step 100"]  # the same weights
    assert (tmp_path / "out" / "benchmark-curve.png").read_bytes()[:4] == b"\x89PNG"
    for given, message in (("20,30", "no finished checkpoint of step 30; it has 20, 100"), ("last", "neither 'all' nor steps")):
        assert main([*arguments, "--checkpoints", given]) == 2 and message in capsys.readouterr().err
    assert main(["benchmark", str(folder), *arguments[2:], "--checkpoints", "all"]) == 2 and "needs runs" in capsys.readouterr().err


def test_nothing_to_run_is_an_error(folder, data, tmp_path, capsys):
    arguments = ["benchmark", str(folder), "--suite", "gue", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--tasks", "tf/2"]) == 2 and "nothing to run" in capsys.readouterr().err
    assert main([*arguments, "--suite", "glue"]) == 2 and "neither a suite (gener," in capsys.readouterr().err
    assert main([*arguments, "--baselines", "svm"]) == 2 and "baseline = svm" in capsys.readouterr().err
    assert main([*arguments, "--max-rows", "3"]) == 2 and "20 is the least" in capsys.readouterr().err
