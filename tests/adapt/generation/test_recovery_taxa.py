"""Sequence recovery by taxon: which bases are asked for, shares and intervals by hand, and the verb against a greedy loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reference import small_config, small_encoder, write_random
from small_folders import write_folder

from dnapretrain.adapt.generation.generate import GeneratedSequence, generate
from dnapretrain.adapt.generation.recovery_taxa import RecoverySettings, RecoveryTests, figures, make_tests, mean_of_taxa, score_tests
from dnapretrain.cli import main
from dnapretrain.config import TokenizerConfig
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError


def tokenizer(kind):
    return build_tokenizer(TokenizerConfig.model_validate({"kind": kind}))


def random_bases(length, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def test_prompts_end_before_the_bases_to_recover_and_hold_whole_k_mers():
    text = random_bases(200, 0)
    sequences = [text, text[:50], text[:30], text[:180] + "N" + text[181:], "N" + text[1:]]
    tests = make_tests(sequences, tokenizer("generator"), 64, RecoverySettings(num_bases=30))
    assert tests.prompts == [text[2:170], text[2:20], ("N" + text[1:])[2:170]]
    assert tests.truths == [text[170:], text[20:50], text[170:]]
    assert (tests.too_short, tests.unknown) == (1, 1)
    long = make_tests([text], tokenizer("generator"), 64, RecoverySettings(prompt_bases=50, num_bases=30))
    assert long.prompts == [text[122:170]]
    full = make_tests([random_bases(9000, 1)], tokenizer("generator"), 16384, RecoverySettings())
    assert len(full.prompts[0]) == 6144
    short = make_tests([random_bases(9000, 1)], tokenizer("generator"), 64, RecoverySettings())
    assert len(short.prompts[0]) == 6 * (63 - 5)  # <s> and 5 new tokens need room
    with pytest.raises(ConfigError, match="no room"):
        make_tests([text], tokenizer("generator"), 6, RecoverySettings())


def test_windows_of_genomes_are_spread_evenly():
    texts = [random_bases(100, 2), random_bases(20, 3), random_bases(150, 4)]
    settings = RecoverySettings(prompt_bases=20, num_bases=10, num_prompts=4)
    tests = make_tests(texts, tokenizer("nucleotide"), 64, settings)
    starts = [0, 48, 96 - 71, 144 - 71]  # of 71 + 121 places: 0, 48, 96, 144
    windows = [texts[record][start : start + 30] for record, start in zip((0, 0, 2, 2), starts, strict=True)]
    assert [one + other for one, other in zip(tests.prompts, tests.truths, strict=True)] == windows
    assert tests.too_short == 1


class Told:
    """Stands in for a model: right but for places given of every second prompt."""

    def __init__(self, truths, wrong):
        self.truths, self.wrong = truths, wrong

    def continue_all(self, prompts, num_bases, sampling, batch_size):
        assert sampling.temperature == 0
        made = []
        for number, (prompt, truth) in enumerate(zip(prompts, self.truths, strict=True)):
            swapped = {place: "ACGT"["ACGT".index(truth[place]) - 1] for place in self.wrong if number % 2 == 0}
            made.append(GeneratedSequence(prompt.name, prompt.bases, "".join(swapped.get(i, b) for i, b in enumerate(truth)), ""))
        return made


def test_shares_intervals_and_the_mean():
    truths = [random_bases(10, seed) for seed in range(40)]
    tests = RecoveryTests(["ACGTAC"] * 40, truths)
    settings = RecoverySettings(num_bases=10, num_bootstrap=200)
    row = score_tests(Told(truths, (2, 9)), tests, settings)
    assert row["base_accuracy"]["value"] == pytest.approx(0.9) and row["next_kmer_accuracy"]["value"] == 0.5
    assert row["base_accuracy"]["low"] < 0.9 < row["base_accuracy"]["high"]
    # the mean of 40 values of 0.8 and 1: its standard error is 0.1 / sqrt(40)
    assert row["base_accuracy"]["high"] - row["base_accuracy"]["low"] == pytest.approx(2 * 1.96 * 0.1 / 40**0.5, rel=0.25)
    assert row["by_position"] == [0.5 if place in (2, 9) else 1.0 for place in range(10)]
    letters = "".join(truths)
    assert row["commonest_base"] == max(letters.count(base) for base in "ACGT") / 400
    right = score_tests(Told(truths, ()), tests, settings)
    both = mean_of_taxa([row, right])
    assert both["base_accuracy"]["value"] == pytest.approx(0.95) and both["next_kmer_accuracy"]["value"] == 0.75
    assert both["base_accuracy"]["high"] - both["base_accuracy"]["low"] == pytest.approx(1.96 * 0.1 / 40**0.5, rel=0.25)
    assert set(figures(np.ones((3, 5), bool))) == {"base_accuracy"}  # too few for 6
    assert figures(np.zeros((9, 6), bool))["next_kmer_accuracy"]["high"] > 0.2  # none of nine


def test_the_verb_asks_by_file_or_column(tmp_path, capsys):
    (tmp_path / "g").mkdir()
    folder, _ = write_folder(tmp_path / "g", "generator")
    texts = [random_bases(100 + number, number) for number in range(6)]
    for name, some in (("fungi", texts[:3]), ("plants", texts[3:])):
        (tmp_path / f"{name}.fa").write_text("".join(f">{name}{at}\n{text}\n" for at, text in enumerate(some)))
    files = [str(tmp_path / "fungi.fa"), str(tmp_path / "plants.fa")]
    assert main(["recovery", str(folder), *files, "--num-bases", "12", "--output", str(tmp_path / "a")]) == 0
    assert "mean of taxa" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "recovery.json").read_text())
    equal = []
    for text in texts[:3]:
        start = (len(text) - 12) % 6
        [made] = generate(folder, [text[start:-12]], 12, temperature=0)
        equal.append([one == other for one, other in zip(made.generated, text[-12:], strict=True)])
    assert found["taxa"]["fungi"]["base_accuracy"]["value"] == pytest.approx(np.mean(equal))
    assert found["mean"]["base_accuracy"]["value"] == pytest.approx(
        np.mean([found["taxa"][name]["base_accuracy"]["value"] for name in ("fungi", "plants")])
    )
    (tmp_path / "t.csv").write_text(
        "sequence,taxon\n" + "".join(f"{text},{'fungi' if at < 3 else 'plants'}\n" for at, text in enumerate(texts))
    )
    by_column = ["recovery", str(folder), str(tmp_path / "t.csv"), "--label-column", "taxon", "--num-bases", "12"]
    assert main([*by_column, "--output", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["taxa"] == found["taxa"]
    assert (tmp_path / "b" / "recovery.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "b" / "recovery.tsv").read_text().splitlines()) == 4
    write_random(tmp_path / "encoder", small_encoder())
    write_random(tmp_path / "decoder", small_config())
    for arguments, message in (
        ([str(tmp_path / "encoder"), *files], "holds an encoder"),
        ([str(folder), *files, "--num-bases", "0"], "num_bases = 0"),
        ([str(folder), files[0], files[0]], "two files give the taxon 'fungi'"),
        ([str(folder), *files, "--num-bases", "102"], "no sequence to recover"),
    ):
        assert main(["recovery", *arguments, "--output", str(tmp_path / "c")]) != 0
        assert message in capsys.readouterr().err
