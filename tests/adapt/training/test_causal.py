"""Causal fine-tuning: its loss against plain code, control prompts, a planted rule that generation follows, and design."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from reference import small_config, write_random
from small_folders import write_folder

from dnapretrain.adapt.backbones.controls import Controls, read_controls
from dnapretrain.adapt.backbones.folder import finetuned_model
from dnapretrain.adapt.generation.compositions import gc_share
from dnapretrain.adapt.generation.generate import generate
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.causal import CausalLoop, causal_rows, load_causal
from dnapretrain.adapt.training.classifier_loop import LoopSettings
from dnapretrain.adapt.training.finetune import FinetuneSettings, classifier_encoder, run_finetune
from dnapretrain.adapt.training.predict import predict_table
from dnapretrain.cli import main
from dnapretrain.convert.hf import to_hf
from dnapretrain.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("peft", reason="peft is not installed (it is in the dev extras)")
CAUSAL = Target("causal", ("kind",), ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("decoder")
    write_random(place / "native", small_config())
    to_hf(place / "native", place / "hf")
    return place / "hf"


@pytest.fixture(scope="module")
def generator_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("generator"), "generator")[0]


def planted(rows=240, seed=0, source="planted"):
    """Condition `at`: 85 % A and T; `gc`: 85 % G and C; 20 to 30 bases, all ending in ACGTACGT."""
    random = np.random.default_rng(seed)
    sequences, kinds = [], []
    for row in range(rows):
        kinds.append(("at", "gc")[row % 2])
        common = 0.425 if kinds[-1] == "gc" else 0.075
        bases = random.choice(list("ACGT"), int(random.integers(12, 22)), p=[0.5 - common, common, common, 0.5 - common])
        sequences.append("".join(bases) + "ACGTACGT")
    return SequenceTable(source, tuple(f"r{row}" for row in range(rows)), tuple(sequences), {"kind": tuple(kinds)})


LOOP = LoopSettings(lr=1e-2, batch_size=16, epochs=8, patience=0)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """Learned from random weights, so that nothing of what it does is there before."""
    output = tmp_path_factory.mktemp("tuned") / "out"
    settings = FinetuneSettings(task="causal", loop=LOOP, from_scratch=True, num_bootstrap=50)
    return output, run_finetune(folder, planted(), None, planted(60, 1, "test"), output, settings)


def test_generated_sequences_follow_their_condition(tuned, capsys, tmp_path):
    output, found = tuned
    first, last = found["runs"][0]["epochs"][0], found["runs"][0]["valid"]
    assert last["bits_per_base"] < first["bits_per_base"] < 2.2 and last["bits_per_base"] < 1.75
    assert abs(found["runs"][0]["test"]["bits_per_base"]["value"] - last["bits_per_base"]) < 0.25
    assert main(["generate", str(output), "--condition", "all", "--num-samples", "12", "--num-bases", "40", "--until-end"]) == 0
    records = capsys.readouterr().out.split(">")[1:]
    shares = {"at": [], "gc": []}
    for record in records:
        header, *lines = record.splitlines()
        assert f"condition={header[:2]}" in header
        shares[header[:2]].append(gc_share("".join(lines)[:-8] or "N"))
    assert np.nanmean(shares["gc"]) > np.nanmean(shares["at"]) + 0.3
    assert sum("ended=yes" in record for record in records) >= 20
    assert sum("".join(record.splitlines()[1:]).endswith("ACGTACGT") for record in records) >= 12
    model = finetuned_model(output)
    made = generate(model, ["ACGT"], 9, seed=4, num_samples=2, conditions=["gc"])
    assert made == generate(model, ["ACGT"], 9, seed=4, num_samples=2, conditions=["gc"], batch_size=1)
    assert made != generate(model, ["ACGT"], 9, seed=5, num_samples=2, conditions=["gc"])
    assert [one.name for one in made] == ["gc_prompt1_sample1", "gc_prompt1_sample2"] and made[0].ended is None


def test_the_folder_is_a_plain_llama_and_says_its_conditions(tuned, folder):
    from transformers import AutoModelForCausalLM

    model = finetuned_model(tuned[0])
    said = json.loads((model / "controls.json").read_text())
    assert said["names"] == ["at", "gc"] and said["prompts"] == {"at": ["<mask>"], "gc": ["<unk>"]}
    plain = AutoModelForCausalLM.from_pretrained(str(model))
    assert plain.config.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(ConfigError, match="fine-tuned with conditions: name at, gc, or all"):
        generate(model, ["A"], 3)
    with pytest.raises(ConfigError, match="condition 'ab' is unknown: this model knows at, gc"):
        generate(model, ["A"], 3, conditions=["ab"])
    with pytest.raises(ConfigError, match="condition 'at' is unknown: this model was fine-tuned without"):
        generate(folder, ["A"], 3, conditions=["at"])
    with pytest.raises(ConfigError, match="write sequences"):
        predict_table(tuned[0], planted(4))


def test_design_is_scored_by_a_predictor_of_other_data(tuned, folder, tmp_path, capsys):
    labels = planted(160, 7)
    settings = FinetuneSettings(loop=LoopSettings(lr=1e-2, epochs=8, batch_size=16), from_scratch=True, num_bootstrap=20)
    run_finetune(folder, labels, None, None, tmp_path / "judge", settings)
    with (tmp_path / "natural.csv").open("w") as file:
        csv.writer(file).writerows([("sequence", "kind"), *zip(labels.sequences[:40], labels.labels["kind"][:40], strict=True)])
    common = [str(tuned[0]), "--predictor", str(tmp_path / "judge"), "--num-samples", "15", "--num-bases", "24"]
    natural = ["--natural", str(tmp_path / "natural.csv"), "--label-column", "kind"]
    assert main(["design", *common, *natural, "--output", str(tmp_path / "design")]) == 0
    said = capsys.readouterr().out
    assert "natural gc" in said and "p_gc with the order of the conditions: Spearman" in said
    found = json.loads((tmp_path / "design" / "design.json").read_text())
    assert found["trend"]["gc"]["value"] > 0.6 and found["trend"]["p_gc"]["value"] > 0.5
    rows = [line.split("\t") for line in (tmp_path / "design" / "design.tsv").read_text().splitlines()]
    assert rows[0] == ["name", "condition", "length", "gc", "p_gc"] and len(rows) == 31
    mean = np.mean([float(row[3]) for row in rows[1:16]])
    assert found["conditions"]["at"]["gc"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert (tmp_path / "design" / "design.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "design" / "designs.fa").read_text().count(">") == 30
    assert main(["design", str(folder), "--prefix", "low=AAAA", "--prefix", "high=CCCC", "--num-samples", "2", "--num-bases", "9",
                 "--output", str(tmp_path / "prefix")]) == 0  # fmt: skip
    capsys.readouterr()
    assert [line.split("\t")[1:3] for line in (tmp_path / "prefix" / "design.tsv").read_text().splitlines()[1:]] == [
        ["low", "9"], ["low", "9"], ["high", "9"], ["high", "9"],
    ]  # fmt: skip
    for options, message in ((["--prefix", "low=A"], "knows conditions"), (["--prefix", "A"], "is not NAME=BASES")):
        assert main(["design", str(tuned[0]), *options, "--output", str(tmp_path / "x")]) != 0
        assert message in capsys.readouterr().err
    assert main(["design", str(folder), "--output", str(tmp_path / "x")]) != 0
    assert "knows no conditions" in capsys.readouterr().err


def test_rows_and_losses_are_those_written_down(generator_folder):
    """6-mers: <s>, the control prompt, words with the last one filled up, </s>; the loss by a plain loop over tokens."""
    encoder = classifier_encoder(generator_folder)
    tokenizer = encoder.tokenizer
    table = SequenceTable("t", ("a", "b", "c"), ("ACGTACGTA", "ACGNACTTTTTT", "AAAAAA"), {"kind": ("x", "y", "z")})
    controls = Controls.of("kind", table.labels["kind"])
    rows = causal_rows(table, encoder, controls)
    mask, unk = tokenizer.mask_id, tokenizer.unk_id
    word = {text: value for value, text in enumerate(tokenizer.tokens)}
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert [one.ids.tolist() for one in rows.encoded] == [
        [bos, mask, mask, word["ACGTAC"], word["GTAAAA"], eos],
        [bos, mask, unk, unk, word["TTTTTT"], eos],
        [bos, unk, mask, word["AAAAAA"], eos],
    ]
    assert [int(one) for one in rows.truth] == [9, 6, 6] and "1 of 3 sequences end within a k-mer, which 3 A's" in encoder.counts.lines()[0]
    loop = CausalLoop(load_causal(generator_folder, 0, False, "cpu"), encoder, CAUSAL, LoopSettings(), "cpu", 0)
    loop.model.eval()
    nats, learned, of_bases = 0.0, 0, []
    with torch.no_grad():
        for one in rows.encoded:
            logits = loop.model(input_ids=torch.tensor(one.ids)[None]).logits[0].log_softmax(-1)
            bases = 0.0
            for place in range(3, len(one.ids)):
                if (token := int(one.ids[place])) == unk:
                    continue
                nats, learned = nats - float(logits[place - 1, token]), learned + 1
                bases -= 0.0 if token == eos else float(logits[place - 1, token])
            of_bases.append(bases)
    found = loop.evaluate(rows)
    assert found["loss"] == pytest.approx(nats / learned, rel=1e-5)
    assert found["bits_per_base"] == pytest.approx(sum(of_bases) / math.log(2) / 21, rel=1e-5)
    assert [float(one) for one in loop.predict(rows)] == pytest.approx(of_bases, rel=1e-5)
    assert float(loop._losses(rows, [0, 1, 2])[0]) == pytest.approx(nats, rel=1e-5)


def test_truncated_sequences_have_no_end(generator_folder):
    table = SequenceTable("t", ("a", "b"), ("ACGTAC" * 5, "ACGTAC"), {})
    encoder = classifier_encoder(generator_folder, "truncate", 4)
    rows = causal_rows(table, encoder, Controls())
    assert [len(one.ids) for one in rows.encoded] == [3, 3] and [one.specials for one in rows.encoded] == [(1, 0), (1, 1)]
    assert [int(one) for one in rows.truth] == [12, 6]
    with pytest.raises(DataError, match=r"sequence 1 .* the model reads 3"):
        causal_rows(table, classifier_encoder(generator_folder, "error", 4), Controls())


@pytest.mark.parametrize("method", ("lora", "ia3"))
def test_adapters_are_merged_into_a_whole_folder(folder, tmp_path, method):
    loop = LoopSettings(lr=1e-2, epochs=4, batch_size=16)
    table = planted(48)
    table = SequenceTable(table.source, table.names, table.sequences, {})
    found = run_finetune(folder, table, None, None, tmp_path / "out", FinetuneSettings(task="causal", method=method, loop=loop))
    assert found["runs"][0]["trainable_parameters"] < found["runs"][0]["parameters"]
    place = finetuned_model(tmp_path / "out")
    assert read_controls(place) == Controls()
    encoder = classifier_encoder(place)
    rows = causal_rows(table, encoder, Controls()).select(np.arange(5))
    merged = CausalLoop(load_causal(place, 0, False, "cpu"), encoder, CAUSAL, LoopSettings(), "cpu", 0).evaluate(rows)
    plain = CausalLoop(load_causal(folder, 0, False, "cpu"), encoder, CAUSAL, LoopSettings(), "cpu", 0).evaluate(rows)
    assert merged["loss"] < plain["loss"] - 0.01
    assert len(generate(place, [""], 10)[0].generated) == 10


def test_conditions_as_bins_and_as_names():
    bins = Controls.of("activity", [str(value) for value in range(9)], num_bins=3)
    assert bins.names == ("bin1", "bin2", "bin3") and bins.width == 2
    assert [bins.number(text, 1, "t") for text in ("-5", "0", "2.5", "3", "5.3", "5.4", "99")] == [0, 0, 0, 1, 1, 2, 2]
    assert Controls.of("c", ["10", "9", "10"]).names == ("9", "10")
    with pytest.raises(DataError, match="row 2 has 'x' in column 'a', which is no finite number"):
        Controls.of("a", ["1", "x"], 2)
    with pytest.raises(DataError, match="repeat too often for 3 bins"):
        Controls.of("a", ["1"] * 8 + ["2"], 3)
    with pytest.raises(DataError, match="all rows have 'a'"):
        Controls.of("c", ["a", "a"])
    with pytest.raises(DataError, match="row 7 has condition 'd', which the training table lacks"):
        Controls.of("c", ["a", "b"]).number("d", 7, "t")


def test_what_causal_cannot_do_is_said(folder, tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("sequence,kind\nACGT,a\nACGG,b\n")
    base = ["finetune", str(folder), "--train", str(table), "--output", str(tmp_path / "o")]
    for options, message in (
        (["--task", "causal", "--method", "head"], "method = head"),
        (["--task", "causal", "--condition-bins", "2"], "needs --condition-column"),
        (["--task", "causal", "--label-column", "kind"], "Name conditions with --condition-column"),
        (["--condition-column", "kind"], "is for --task causal"),
        (["--task", "causal", "--class-weights"], "no meaning for causal"),
        (["--task", "causal", "--condition-column", "kinds"], "no column 'kinds'"),
    ):
        assert main([*base, *options]) != 0
        assert message in capsys.readouterr().err, options
    (tmp_path / "aido").mkdir()
    encoder, _ = write_folder(tmp_path / "aido", "aido-dna")
    with pytest.raises(ConfigError, match="holds an encoder"):
        run_finetune(encoder, planted(8), None, None, tmp_path / "o", FinetuneSettings(task="causal"))
    (tmp_path / "controls.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_controls(tmp_path)
