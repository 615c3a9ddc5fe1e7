"""Frames, stops and proteins: hand-computed cases, and NCBI's tables as Biopython has them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dnapretrain.adapt.generation.coding_report import CodingSettings, compare_halves, run_check_cds
from dnapretrain.adapt.generation.codon_checks import check_coding, sense_codons, trim_to_stop
from dnapretrain.adapt.generation.compositions import compare_counts, gc_share, js_divergence, kmer_counts, ks_distance, wilson
from dnapretrain.adapt.metrics import pearson
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.cli import main
from dnapretrain.data.genes.codons import START_CODONS, STOP_CODONS, amino_acids, translate
from dnapretrain.errors import ConfigError, DataError


def test_amino_acids_are_those_of_biopython_in_every_code():
    tables = pytest.importorskip("Bio.Data.CodonTable").unambiguous_dna_by_id
    assert set(START_CODONS) == set(tables)
    for code, table in tables.items():
        own = amino_acids(code)
        assert {codon: aa for codon, aa in own.items() if aa != "*"} == table.forward_table, code
        assert {codon for codon, aa in own.items() if aa == "*"} == set(table.stop_codons) - set(table.forward_table)
    with pytest.raises(ConfigError, match=r"genetic code 7 is none of NCBI's: 1, 2, 3, 4"):
        amino_acids(7)


@pytest.mark.parametrize("code", [1, 2, 4, 11, 25])
def test_translation_is_that_of_biopython(code):
    seq = pytest.importorskip("Bio.Seq").Seq
    random = np.random.default_rng(code)
    for length in (0, 2, 3, 300, 301, 302):
        bases = "".join(random.choice(list("ACGT"), length))
        assert translate(bases, code) == str(seq(bases[: length // 3 * 3]).translate(table=code))
    assert translate("ATGNAAGGG", code) == "MXG"


def test_the_checks_of_a_coding_sequence():
    good = check_coding("ATGAAAGGGTAA", 1)
    assert (good.whole, good.start, good.stop, good.inner_stops, good.protein, good.valid, good.behind_stop) == (
        True, True, True, 0, "MKG", True, 0,
    )  # fmt: skip
    cases = {
        "ATGAAAGGGTA": (False, True, False, 0, "MKG"),  # no whole number of codons
        "AAAATGGGGTAA": (True, False, True, 0, "KMG"),
        "ATGAAAGGG": (True, True, False, 0, "MKG"),
        "ATGTAAGGGTAG": (True, True, True, 1, "M"),
        "ATGTAATGATAG": (True, True, True, 2, "M"),
        "TAA": (True, False, True, 0, ""),
        "AT": (False, False, False, 0, ""),
        "ATGTAAA": (False, True, False, 0, "M"),  # its last whole codon is a stop, but a base follows
    }
    for bases, (whole, start, stop, inner, protein) in cases.items():
        found = check_coding(bases, 1)
        assert (found.whole, found.start, found.stop, found.inner_stops, found.protein) == (whole, start, stop, inner, protein), bases
        assert not found.valid
    assert check_coding("ATGTAAGGGTAG", 1).behind_stop == 6
    assert not check_coding("ATGANAGGGTAA", 1).valid and check_coding("ATGANAGGGTAA", 1).other_letters == 1
    assert check_coding("GTGAAATAA", 11).protein == "MK"  # a start codon is read as M
    assert not check_coding("GTGAAATAA", 1).start
    assert check_coding("ATGTGAGGGTAA", 4).valid and check_coding("ATGTGAGGGTAA", 4).protein == "MWG"
    assert check_coding("ATGTGAGGGTGA", 27).valid  # TGA: W within, stop at the end


def test_cutting_behind_the_first_stop():
    assert trim_to_stop("ATGAAATAACCCTAG", 1) == "ATGAAATAA"
    assert trim_to_stop("ATGAAACCC", 1) == "ATGAAACCC"
    assert trim_to_stop("ATGATAACC", 1) == "ATGATAACC"  # TAA out of frame
    assert sense_codons(["ATGAAATAAGGG", "ATGNAAAAATA"], 1) == {"ATG": 2, "AAA": 2}


def test_divergence_and_distances_by_hand():
    assert js_divergence(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert js_divergence(np.array([2.0, 2]), np.array([1.0, 1])) == 0
    # P = (1, 0), Q = (1/2, 1/2): M = (3/4, 1/4)
    by_hand = (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5 * np.log2(2)) / 2
    assert js_divergence(np.array([5.0, 0]), np.array([3.0, 3])) == pytest.approx(by_hand)
    distance = pytest.importorskip("scipy.spatial.distance").jensenshannon
    random = np.random.default_rng(0)
    one, other = random.random(64), random.random(64)
    assert js_divergence(one, other) == pytest.approx(distance(one, other, base=2) ** 2)
    assert compare_counts(one, other)["pearson"] == pytest.approx(pearson(one / one.sum(), other / other.sum()))
    with pytest.raises(DataError, match="nothing to count"):
        js_divergence(np.zeros(4), one[:4])
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    stats = pytest.importorskip("scipy.stats")
    some, others = random.integers(0, 40, 50), random.integers(5, 60, 70)
    assert ks_distance(some.tolist(), others.tolist()) == pytest.approx(stats.ks_2samp(some, others).statistic)
    found = wilson(7, 20)
    expected = stats.binomtest(7, 20).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_kmers_and_gc_by_hand():
    assert kmer_counts(["ACGTN", "AC", "A"], 2).nonzero()[0].tolist() == [1, 6, 11]  # AC, CG, GT
    assert kmer_counts(["ACGTN", "AC", "A"], 2)[1] == 2
    assert kmer_counts(["AAAA"], 3)[0] == 2
    assert gc_share("GCAN") == pytest.approx(2 / 3) and np.isnan(gc_share("NN"))


def genes(count, seed, gc=0.5):
    random = np.random.default_rng(seed)
    table = amino_acids(11)
    sense = [codon for codon in table if table[codon] != "*"]
    weights = np.array([gc_share(codon) * gc + (1 - gc_share(codon)) * (1 - gc) for codon in sense])
    found = []
    for _ in range(count):
        inner = random.choice(sense, int(random.integers(10, 60)), p=weights / weights.sum())
        found.append("ATG" + "".join(inner) + "TAA")
    return found


def as_table(sequences, source="generated"):
    return SequenceTable(source, tuple(f"s{row}" for row in range(len(sequences))), tuple(sequences), {})


def test_the_report_counts_and_compares(tmp_path):
    natural = genes(200, 0)
    generated = [*genes(40, 1), natural[3], natural[3], "ATGTAAGGG", "CCC"]
    found = run_check_cds(as_table(generated), as_table(natural, "nat"), as_table(natural), tmp_path, CodingSettings(code=11))
    own = found["generated"]
    assert (own["sequences"], own["valid"]["count"], own["start"]["count"], own["no_inner_stop"]["count"]) == (44, 42, 43, 43)
    assert found["natural"]["valid"]["value"] == 1
    assert found["duplicates"]["repeated"] == 1 and found["duplicates"]["equal_to_training"] == 2
    assert found["duplicates"]["share_50_bases_with_training"] == 2
    halves = compare_halves(natural, 44, CodingSettings(code=11))
    assert found["natural_halves"] == halves
    assert abs(found["compared"]["codons"]["js_divergence"] - halves["codons"]["js_divergence"]) < 0.02
    skewed = run_check_cds(as_table(genes(44, 2, gc=0.9)), as_table(natural), None, tmp_path / "skewed", CodingSettings(code=11))
    assert skewed["compared"]["codons"]["js_divergence"] > 2 * found["compared"]["codons"]["js_divergence"]
    lines = (tmp_path / "proteins.fa").read_text().splitlines()
    assert sum(line.startswith(">") for line in lines) == 42 and lines[1].startswith("M")
    rows = [line.split("\t") for line in (tmp_path / "check_cds.tsv").read_text().splitlines()]
    assert len(rows) == 45 and rows[43][rows[0].index("inner_stops")] == "1"
    assert json.loads((tmp_path / "check_cds.json").read_text())["codon_usage"]["natural"]["ATG"] > 0
    everything = run_check_cds(as_table(generated), None, None, tmp_path / "all", CodingSettings(code=11, proteins="all"))
    assert "natural" not in everything and (tmp_path / "all" / "proteins.fa").read_text().count(">") == 44


def test_the_verb_writes_tables_picture_and_proteins(tmp_path, capsys):
    (tmp_path / "made.fa").write_text("".join(f">m{row}\n{bases}AAA\n" for row, bases in enumerate(genes(12, 3))))
    (tmp_path / "natural.fa").write_text("".join(f">n{row}\n{bases}\n" for row, bases in enumerate(genes(30, 4))))
    arguments = ["check-cds", str(tmp_path / "made.fa"), "--natural", str(tmp_path / "natural.fa"), "--genetic-code", "11"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "all of these: valid" in (said := capsys.readouterr().out) and "0.000 [0.000" in said
    assert main([*arguments, "--trim-to-stop", "--train", str(tmp_path / "made.fa"), "--output", str(tmp_path / "cut")]) == 0
    assert "12 of 12 were cut behind their first stop" in (said := capsys.readouterr().out) and "1.000 [" in said
    assert (tmp_path / "cut" / "check_cds.png").read_bytes()[:4] == b"\x89PNG"
    for option, value, message in (("--genetic-code", "99", "genetic code 99"), ("--kmers", "9", "lengths of 1 to 8")):
        assert main([*arguments, option, value, "--output", str(tmp_path / "bad")]) != 0
        assert message in capsys.readouterr().err
    assert set(STOP_CODONS[11]) == {"TAA", "TAG", "TGA"}
