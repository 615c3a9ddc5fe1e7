"""Fine-tuning: IA3, class weights and losses against plain code, the loop, folders that others load, and the verbs end to end."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from small_folders import write_folder

from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target, class_weights
from dnapretrain.adapt.training.classifier_loop import ClassifierLoop, LoopSettings, Stopper, loss_sums, rate_at
from dnapretrain.adapt.training.finetune import FinetuneSettings, classifier_encoder, mean_interval, run_finetune
from dnapretrain.adapt.training.heads import load_classifier, prepare
from dnapretrain.adapt.training.predict import predict_table
from dnapretrain.adapt.training.task_data import encode_rows, token_labels
from dnapretrain.cli import main
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import read_hf_config
from dnapretrain.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("peft", reason="peft is not installed (it is in the dev extras)")
FAMILIES = ("aido-dna", "generator", "nt-v1", "dnabert2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name)[0] for name in FAMILIES}


def table(rows=80, length=36, seed=0, source="table", columns=("label",), values=None):
    """Label 1: many A's."""
    random = np.random.default_rng(seed)
    sequences, labels = [], []
    for row in range(rows):
        share = 0.7 if row % 2 else 0.1
        weights = [share, *[(1 - share) / 3] * 3]
        sequences.append("".join(random.choice(list("ACGT"), length, p=weights)))
        labels.append(str(row % 2))
    given = values or [tuple(labels)] * len(columns)
    return SequenceTable(source, tuple(f"r{row}" for row in range(rows)), tuple(sequences), dict(zip(columns, given, strict=True)))


def family(folder):
    return family_of_folder(read_hf_config(folder))


CLASSES = Target("classification", ("label",), ("0", "1"))


@pytest.mark.parametrize("name", FAMILIES)
def test_ia3_is_a_scaling_of_keys_values_and_the_feedforward(folders, name):
    """Against the plain model with rows of key and value matrices, and columns of the last feed-forward matrix, multiplied."""
    folder = folders[name]
    plain = load_classifier(folder, CLASSES, seed=3).eval()
    adapted = prepare(load_classifier(folder, CLASSES, seed=3), family(folder), CLASSES, "ia3").eval()
    generator = torch.Generator().manual_seed(0)
    weights = dict(plain.named_parameters())
    scaled = []
    with torch.no_grad():
        for key, vector in adapted.named_parameters():
            if "ia3_l" not in key:
                continue
            vector.copy_(1 + 0.5 * torch.randn(vector.shape, generator=generator))
            module = key.removeprefix("base_model.model.").partition(".ia3_l")[0]
            feedforward = module.endswith(("output.dense", "wo", "down_proj"))
            if "Wqkv" in module:
                vector[: len(vector) // 3] = 1
            scaled.append(module)
            weights[f"{module}.weight"].mul_(vector.reshape(1, -1) if feedforward else vector.reshape(-1, 1))
            if not feedforward and f"{module}.bias" in weights:
                weights[f"{module}.bias"].mul_(vector.flatten())
    per_layer = 2 if name == "dnabert2" else 3
    assert len(scaled) == per_layer * plain.config.num_hidden_layers and not any("attention.output" in module for module in scaled)
    encoder = classifier_encoder(folder)
    batch = encoder.collate(encode_rows(table(6), CLASSES, encoder).encoded)
    with torch.no_grad():
        one, two = (model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits for model in (plain, adapted))
    assert one == pytest.approx(two, abs=1e-4) and one.std() > 1e-4


def test_dnabert2s_queries_stay_as_they_are(folders):
    folder = folders["dnabert2"]
    model = prepare(load_classifier(folder, CLASSES, seed=3), family(folder), CLASSES, "ia3")
    rows = encode_rows(table(8), CLASSES, encoder := classifier_encoder(folder))
    ClassifierLoop(model, encoder, CLASSES, LoopSettings(lr=0.05, epochs=2, batch_size=4), "cpu", 0).fit(rows, rows)
    vectors = [vector.detach().flatten() for key, vector in model.named_parameters() if "Wqkv" in key and "ia3_l" in key]
    assert vectors
    for vector in vectors:
        queries, others = vector[: len(vector) // 3], vector[len(vector) // 3 :]
        assert (queries == 1).all() and (others != 1).any()


def test_class_weights_by_hand():
    truth = [np.array(number) for number in (0, 0, 0, 1)]
    assert class_weights(CLASSES, truth) == pytest.approx([4 / (2 * 3), 4 / 2])
    labels = Target("multilabel", ("a", "b"), ())
    assert class_weights(labels, [np.array(one) for one in ([1, 0], [0, 1], [0, 1], [0, 0])]) == pytest.approx([3, 1])
    with pytest.raises(DataError, match="'1' never occurs"):
        class_weights(CLASSES, truth[:3])
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    loss, weight = loss_sums(logits, torch.tensor([0, 0, 0, 1]), CLASSES, torch.tensor([2 / 3, 2.0]))
    by_hand = [np.log(2), np.log(1 + np.exp(-1)), np.log(1 + np.exp(2)), np.log(2)]
    assert (loss / weight).item() == pytest.approx((2 / 3 * sum(by_hand[:3]) + 2 * by_hand[3]) / 4)
    loss, weight = loss_sums(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), labels, torch.tensor([3.0, 1.0]))
    assert (loss / weight).item() == pytest.approx((3 * np.log(2) + np.log(1 + np.e)) / 2)


def test_early_stopping_by_hand():
    stopper = Stopper(patience=2)
    seen = [(stopper.better(value, epoch), stopper.stop) for epoch, value in enumerate((0.1, 0.3, 0.3, float("nan"), 0.9))]
    assert seen == [(True, False), (True, False), (False, False), (False, True), (True, False)]
    assert not any((Stopper(0).better(float("nan"), epoch), Stopper(0).stop)[1] for epoch in range(9))


def test_rates_by_hand():
    settings = LoopSettings(warmup=0.2, schedule="linear")
    assert [rate_at(step, 10, settings) for step in (0, 1, 2, 6, 9)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 1 / 8])
    cosine = LoopSettings(warmup=0, schedule="cosine")
    assert [rate_at(step, 4, cosine) for step in (0, 2)] == pytest.approx([1, 0.5])


def test_the_best_epoch_is_what_stays_and_parts_of_a_batch_are_the_batch(folders):
    rows, other = table(40), table(20, seed=9)
    found = []
    for micro in (None, 3):
        torch.manual_seed(0)
        encoder = classifier_encoder(folders["aido-dna"])
        settings = LoopSettings(lr=2e-2, batch_size=8, micro_batch_size=micro, epochs=6, patience=2, class_weights=True)
        model = load_classifier(folders["aido-dna"], CLASSES, seed=1)
        loop = ClassifierLoop(model, encoder, CLASSES, settings, "cpu", 1)
        valid = encode_rows(other, CLASSES, encoder)
        learned = loop.fit(encode_rows(rows, CLASSES, encoder), valid)
        best = max(learned.epochs, key=lambda one: one["mcc"])
        assert learned.best_epoch == best["epoch"]
        again = loop.evaluate(valid)
        assert again["mcc"] == pytest.approx(best["mcc"]) and again["loss"] == pytest.approx(best["loss"], rel=1e-5)
        assert best["mcc"] > 0.5
        found.append(learned.epochs[0])
    assert found[1]["train_loss"] == pytest.approx(found[0]["train_loss"], rel=1e-3)


def test_labels_of_bases_go_to_tokens_and_back(folders):
    assert token_labels(np.array([0, 0, 1, 1, 1, 0, 2]), np.array([3, 3, 1])).tolist() == [0, 1, 2]
    sequences = table(40, length=37)
    letters = tuple("".join("AB"[base == "A"] for base in sequence) for sequence in sequences.sequences)
    marked = SequenceTable("marked", sequences.names, sequences.sequences, {"label": letters})
    target = Target.of(marked, "tokens")
    for name in ("aido-dna", "nt-v1", "generator", "dnabert2"):
        encoder = classifier_encoder(folders[name])
        rows = encode_rows(marked, target, encoder)
        cut = 36 if name == "generator" else 37  # bases of no whole 6-mer are no token
        assert {int(lengths.sum()) for lengths in rows.bases_per_token} == {cut} and {len(one) for one in rows.truth} == {cut}
    encoder = classifier_encoder(folders["aido-dna"])
    loop = ClassifierLoop(
        load_classifier(folders["aido-dna"], target, 0), encoder, target, LoopSettings(lr=1e-2, epochs=6, batch_size=8), "cpu", 0
    )
    rows = encode_rows(marked, target, encoder)
    loop.fit(rows, rows)
    assert loop.evaluate(rows)["mcc"] > 0.95  # single bases say it all
    assert [one.shape for one in loop.predict(rows)][:2] == [(37, 2), (37, 2)]


@pytest.mark.parametrize(
    ("name", "method"), [("aido-dna", "full"), ("generator", "lora"), ("dnabert2", "ia3"), ("nt-v1", "head"), ("dnabert2", "lora")]
)
def test_what_is_saved_predicts_the_same_and_loads_without_us(folders, name, method, tmp_path):
    import transformers
    from peft import PeftModel

    loop = LoopSettings(lr={"full": 5e-3}.get(method, 3e-2), epochs=3, batch_size=16)
    settings = FinetuneSettings(method=method, loop=loop, num_bootstrap=20)
    train, test = table(64), table(20, seed=5)
    found = run_finetune(folders[name], train, None, test, tmp_path / "out", settings)
    [run] = found["runs"]
    assert (run["trainable_parameters"] == run["parameters"]) == (method == "full")
    assert found["model_digest"] and run["rows"]["train"] + run["rows"]["valid"] == 64
    _, predicted, _ = predict_table(tmp_path / "out", test)
    truth = np.array([int(label) for label in test.labels["label"]])
    accuracy = (np.stack(predicted).argmax(axis=1) == truth).mean()
    assert run["test"]["accuracy"]["value"] == pytest.approx(accuracy)
    place = tmp_path / "out" / "seed_1" / ("adapter" if method in ("lora", "ia3") else "model")
    trust = {} if name == "generator" else {"trust_remote_code": True}
    base = folders[name] if method in ("lora", "ia3") else place
    torch.manual_seed(77)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=2, **trust)
    if method in ("lora", "ia3"):
        model = PeftModel.from_pretrained(model, str(place))
    encoder = classifier_encoder(folders[name])
    batch = encoder.collate(encode_rows(test, CLASSES, encoder).encoded)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert logits.softmax(-1).numpy() == pytest.approx(np.stack(predicted), abs=1e-5)


def test_numbers_and_labels(folders, tmp_path):
    rows = table(60)
    shares = tuple(f"{100 * sequence.count('A') / 36 + 50:.3f}" for sequence in rows.sequences)
    numbers = SequenceTable("numbers", rows.names, rows.sequences, {"a": shares, "b": shares[::-1]})
    loop = LoopSettings(lr=5e-3, epochs=8, batch_size=16)
    found = run_finetune(
        folders["aido-dna"], numbers, None, numbers, tmp_path / "numbers", FinetuneSettings(task="regression", loop=loop, num_bootstrap=20)
    )
    test = found["runs"][0]["test"]
    assert test["pearson:a"]["value"] > 0.9
    assert test["pearson"]["value"] == pytest.approx((test["pearson:a"]["value"] + test["pearson:b"]["value"]) / 2)
    assert found["leakage"]["test in train"]["equal"] == 60
    _, predicted, _ = predict_table(tmp_path / "numbers", numbers)
    assert 50 < np.stack(predicted)[:, 0].mean() < 150  # in the units that were given
    both = table(60, columns=("x", "y"))
    found = run_finetune(
        folders["aido-dna"], both, None, None, tmp_path / "labels", FinetuneSettings(task="multilabel", loop=loop, keep="none", num_folds=2)
    )
    assert [run["fold"] for run in found["runs"]] == [0, 1] and not list((tmp_path / "labels").glob("*/"))
    assert set(found["summary"]["test"]) == {"f1", "accuracy", "auroc", "auprc"}
    with pytest.raises(CheckpointError, match="kept none"):
        predict_table(tmp_path / "labels", both)


def test_the_same_seed_gives_the_same_and_random_weights_are_random(folders, tmp_path):
    rows = table(40)
    loop = LoopSettings(lr=1e-3, epochs=1, batch_size=8)
    found = [
        run_finetune(
            folders["aido-dna"], rows, None, rows, tmp_path / str(number), FinetuneSettings(loop=loop, keep="none", num_bootstrap=5, **more)
        )
        for number, more in enumerate(({}, {}, {"from_scratch": True}, {"seeds": (2,)}))
    ]
    losses = [one["runs"][0]["epochs"][0]["train_loss"] for one in found]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_intervals_of_means():
    found = mean_interval([0.5, 0.6, 0.7])
    assert (found["mean"], found["high"]) == pytest.approx((0.6, 0.6 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert np.isnan(mean_interval([0.5])["low"])


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("sequence", "label"), *zip(rows.sequences, rows.labels["label"], strict=True)])
    return path


def test_the_verbs_from_tables_to_predictions(folders, tmp_path, capsys):
    train = table(60)
    test = SequenceTable("test", ("a", "b"), (train.sequences[0], reverse_complement_text(train.sequences[1])), {"label": ("0", "1")})
    paths = [
        str(write_csv(tmp_path / f"{name}.csv", rows)) for name, rows in (("train", train), ("valid", table(20, seed=3)), ("test", test))
    ]
    output = tmp_path / "out"
    arguments = ["finetune", str(folders["aido-dna"]), "--train", paths[0], "--valid", paths[1], "--test", paths[2]]
    arguments += ["--output", str(output)]
    assert main([*arguments, "--seeds", "1,2", "--epochs", "2", "--lr", "5e-3", "--method", "lora"]) == 0
    said = capsys.readouterr()
    assert "leakage: test in train: 2 of 2 rows are there too" in said.err
    assert "mean of 2 runs" in said.out and "weights learn" in said.out
    result = json.loads((output / "result.json").read_text())
    assert [run["name"] for run in result["runs"]] == ["seed_1", "seed_2"] and result["summary"]["test"]["mcc"]["count"] == 2
    assert len(result["runs"][0]["epochs"]) == 2 and result["tables"]["train"]["rows"] == 60
    assert main(["predict", str(output), paths[1], "--output", str(tmp_path / "p.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 20 and set(rows[0]) == {"name", "class", "p_0", "p_1"}
    assert sum(float(rows[0][name]) for name in ("p_0", "p_1")) == pytest.approx(1, abs=1e-4)
    assert main(arguments) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "ranking"}, "task = ranking is none of"),
        ({"method": "adapter"}, "method = adapter is none of"),
        ({"method": "lora", "from_scratch": True}, "draws at random"),
        ({"num_folds": 1}, "makes no folds"),
        ({"seeds": (1, 1)}, "name each once"),
        ({"task": "regression", "loop": LoopSettings(class_weights=True)}, "no meaning for numbers"),
        ({"loop": LoopSettings(select_by="pearson")}, "select_by = pearson is none of mcc"),
        ({"loop": LoopSettings(schedule="step")}, "schedule = step"),
        ({"loop": LoopSettings(batch_size=0)}, "batch_size = 0"),
        ({"keep": "best"}, "keep = best"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneSettings(**settings).check()


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("classification", table(values=[("1",) * 80]), "all labels of column 'label' are '1'"),
        ("classification", table(columns=("a", "b")), "learns one label column; table gives a, b"),
        ("multilabel", table(values=[("2",) * 80]), "row 1 .r0. has '2' in column 'label'"),
        ("regression", table(values=[("high",) * 80]), "which is no number"),
        ("regression", table(values=[("inf",) * 80]), "not finite"),
        ("regression", table(values=[("3",) * 80]), "all training rows have the number 3"),
        ("tokens", table(values=[("01",) * 80]), "has 36 bases and 2 labels"),
        ("classification", table(length=9000), "Cut it, or choose --on-long truncate"),
    ],
)
def test_bad_tables(folders, tmp_path, task, given, message):
    with pytest.raises((ConfigError, DataError), match=message):
        run_finetune(folders["aido-dna"], given, None, None, tmp_path / "out", FinetuneSettings(task=task))


def test_windows_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="its label is of the whole"):
        run_finetune(folders["aido-dna"], table(), None, None, tmp_path / "out", FinetuneSettings(on_long="window"))
