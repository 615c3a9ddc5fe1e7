"""Probes: folds' models against a plain loop, no sight of held-out rows, the cache, and the verb from a table to its JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_folders import write_folder

from dnapretrain.adapt.backbones.backbone import load_backbone
from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_sequences
from dnapretrain.adapt.embedding.embedding_cache import cached_embeddings, folder_digest
from dnapretrain.adapt.embedding.probe import ProbeSettings, evenly, run_probe
from dnapretrain.adapt.embedding.probe_models import ProbeTask, fit, predict, search
from dnapretrain.adapt.metrics import classification_scores
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.cli import main
from dnapretrain.errors import ConfigError, DataError


def task(num_classes=3, rows=90, metric="mcc", seed=5):
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % max(num_classes, 2)
    vectors = (rng.normal(size=(rows, 4)) * [1, 100, 1, 1] + [0, 50, 0, 0]).astype(np.float32)
    vectors[:, 0] += 2 * truth
    if not num_classes:
        truth = 3 * vectors[:, 0] + rng.normal(size=rows)
    return ProbeTask(vectors, truth, num_classes, rng.permutation(rows) % 3, metric, seed=7)


def test_search_equals_a_plain_loop_over_the_folds():
    given = task()
    result = search(given, "logistic", 4)
    assert result.trials[0]["C"] == 1.0 and len(result.trials) == 4
    values = []
    for fold in range(3):
        out = given.folds_N == fold
        scaler = StandardScaler().fit(given.vectors_NH[~out])
        plain = LogisticRegression(C=result.parameters["C"], max_iter=1000).fit(
            scaler.transform(given.vectors_NH[~out]), given.truth_N[~out]
        )
        probabilities = plain.predict_proba(scaler.transform(given.vectors_NH[out]))
        assert result.validation[fold] == pytest.approx(classification_scores(given.truth_N[out], probabilities))
        values.append(result.validation[fold]["mcc"])
    best = max(result.trials, key=lambda trial: trial["value"])
    assert best["C"] == result.parameters["C"] and best["value"] == pytest.approx(np.mean(values)) and np.mean(values) > 0.4


def test_held_out_rows_are_not_seen():
    """Whatever stands in the rows of a fold, its model, scaler included, is the same."""
    clean = task()
    poisoned = task()
    poisoned.vectors_NH[poisoned.folds_N == 1] *= 1e6
    poisoned.truth_N[poisoned.folds_N == 1] = 0
    for probe in ("logistic", "mlp"):
        models = [search(one, probe, 1).models[1] for one in (clean, poisoned)]
        at = clean.vectors_NH[:5]
        assert (predict(models[0], at, 3) == predict(models[1], at, 3)).all()


@pytest.mark.parametrize("probe", ["logistic", "mlp"])
def test_regression(probe):
    given = task(num_classes=0, metric="pearson", rows=120)
    result = search(given, probe, 2)
    assert np.mean([row["pearson"] for row in result.validation]) > 0.8


def test_a_class_that_a_model_never_saw_has_no_chance():
    given = task()
    model, _ = fit(given, "logistic", {"C": 1.0}, given.truth_N != 1)
    found = predict(model, given.vectors_NH, 3)
    assert (found[:, 1] == 0).all() and found.sum(axis=1) == pytest.approx(1)


def test_ten_layers_at_most():
    assert evenly(4) == [0, 1, 2, 3, 4] and evenly(9) == list(range(10)) and evenly(1) == [0, 1]
    assert evenly(32) == [0, 4, 7, 11, 14, 18, 21, 25, 28, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("aido"), "aido-dna")[0]


def sequences(count, seed=0):
    """Half rich in A and T, half in G and C: any layer can tell them."""
    rng = np.random.default_rng(seed)
    shares = ([0.4, 0.1, 0.1, 0.4], [0.1, 0.4, 0.4, 0.1])
    return ["".join(rng.choice(list("ACGT"), 36, p=shares[row % 2])) for row in range(count)], [
        "at" if row % 2 == 0 else "gc" for row in range(count)
    ]


def write_table(path, count, seed=0, more=()):
    rows = [*zip(*sequences(count, seed), strict=True), *more]
    path.write_text("sequence,label\n" + "".join(f"{sequence},{label}\n" for sequence, label in rows))
    return path


def test_the_cache_knows_what_vectors_depend_on(folder, tmp_path):
    loads = []

    def load():
        loads.append(1)
        return load_backbone(folder)

    texts, _ = sequences(6)
    settings = EmbedSettings((0, 2))
    how = {"dtype": "fp32"}
    digest = folder_digest(folder)
    first, _, was_there = cached_embeddings(tmp_path, digest, load, texts, settings, how)
    assert not was_there and first == pytest.approx(embed_sequences(load_backbone(folder), texts, settings))
    again, notes, was_there = cached_embeddings(tmp_path, digest, load, texts, settings, how)
    assert was_there and len(loads) == 1 and (again == first).all() and notes == []
    [path] = tmp_path.glob("*.npy")
    others = (
        (digest, texts[::-1], settings, how),
        (digest, texts, EmbedSettings((0, 1)), how),
        (digest, texts, EmbedSettings((0, 2), "max"), how),
        (digest, texts, EmbedSettings((0, 2), both_strands=True), how),
        (digest, texts, settings, {"dtype": "bf16"}),
        ("other", texts, settings, how),
    )
    for other in others:
        assert not cached_embeddings(tmp_path, other[0], load, *other[1:])[2]
    path.write_bytes(path.read_bytes()[:-9])
    mended, _, was_there = cached_embeddings(tmp_path, digest, load, texts, settings, how)
    assert not was_there and (mended == first).all()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    assert folder_digest(copy) == digest
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert folder_digest(copy) != digest


def test_the_verb(folder, tmp_path, capsys):
    texts, _ = sequences(60)
    more = [(reverse_complement_text(texts[0]), "at"), (texts[1], "at")]  # a copy on the other strand; a copy with another label
    train = write_table(tmp_path / "train.csv", 60, more=more)
    test = write_table(tmp_path / "test.csv", 30, seed=1, more=[(texts[5], "gc")])
    arguments = [
        "probe",
        folder,
        "--train",
        train,
        "--test",
        test,
        "--output",
        tmp_path / "out",
        "--folds",
        "3",
        "--trials",
        "2",
        "--layers",
        "0,-1",
    ]
    assert main([*map(str, arguments), "--probes", "logistic"]) == 0
    said = capsys.readouterr()
    assert (
        "2 of 62 training rows repeat another" in said.err
        and "1 training rows have the sequence of another row and another label" in said.err
    )
    assert "leakage: 1 of 31 test rows" in said.err and said.err.count("embedded") == 2
    assert said.out.count("logistic regression") == 2 and said.out.count("<- best of the folds") == 1
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [row["layer"] for row in found["rows"]] == [0, 2] and found["classes"] == ["at", "gc"] and found["num_different"] == 60
    for row in found["rows"]:
        assert row["test"]["auroc"]["low"] <= row["test"]["auroc"]["value"] <= row["test"]["auroc"]["high"]
        assert row["test"]["mcc"]["value"] > 0.7 and len(row["validation"]["mcc"]["folds"]) == 3
    assert (tmp_path / "out" / "probe.png").read_bytes().startswith(b"\x89PNG")
    # The same again, from the cache and on two processes, without a test table: what the folds say does not change.
    arguments = [*arguments[:4], *arguments[6:]]
    assert main([*map(str, arguments), "--probes", "logistic", "--workers", "2", "--json"]) == 0
    said = capsys.readouterr()
    again = json.loads(said.out)
    assert "from the cache" in said.err and "embedded" not in said.err.replace("embeddings", "")
    for one, other in zip(found["rows"], again["rows"], strict=True):
        assert one["validation"] == other["validation"] and one["trials"] == other["trials"] and "test" not in other


def table(labels, source="t.csv", seed=0):
    texts, _ = sequences(len(labels), seed)
    return SequenceTable(source, tuple(texts), tuple(texts), {"label": tuple(labels)})


def test_what_cannot_be_probed(folder, tmp_path):
    good = table("ab" * 6)
    cases = (
        (good, table("abc", "u.csv"), {}, DataError, "u.csv: row 3 has label 'c', which the training table lacks: a, b"),
        (table("aaaa"), None, {}, DataError, "all labels of column 'label' are 'a'"),
        (good, None, {"task": "regression"}, DataError, "row 1 has label 'a', which is no number"),
        (table(["1", "nan", "2"]), None, {"task": "regression"}, DataError, "row 2 has label 'nan', which is not finite"),
        (SequenceTable("t.csv", ("x",), ("ACGT",), {}), None, {}, ConfigError, "gives none"),
        (good, None, {"num_folds": 13}, DataError, "12 different sequences cannot be dealt to 13 folds"),
        (good, None, {"metric": "r2"}, ConfigError, "metric = r2"),
        (good, None, {"task": "x"}, ConfigError, "task = x"),
        (good, None, {"probes": ("svm",)}, ConfigError, "probe = svm"),
        (good, None, {"pooling": "none"}, ConfigError, "one vector per sequence"),
        (good, None, {"num_trials": 0}, ConfigError, "num_trials = 0"),
    )
    for train, test, settings, error, message in cases:
        with pytest.raises(error, match=message):
            run_probe(folder, train, test, tmp_path, ProbeSettings(**{"num_folds": 2, **settings}))


def test_an_undefined_metric_is_no_best(folder):
    """A fold of one class: AUROC is not defined, and the search goes on."""
    given = task(num_classes=2)
    given.truth_N[given.folds_N == 0] = 0
    result = search(dataclasses.replace(given, metric="auroc"), "logistic", 2)
    assert math.isnan(result.validation[0]["auroc"]) and all(-1 <= trial["value"] <= 1 for trial in result.trials)
