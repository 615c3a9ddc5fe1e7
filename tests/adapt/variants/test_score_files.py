"""Variants from a VCF against a reference, labels, the table that is written, saturation, and the verb."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_folders import write_folder

from dnapretrain.adapt.backbones.backbone import load_backbone
from dnapretrain.adapt.variants.score import ScoreSettings, score_sites
from dnapretrain.adapt.variants.variant_labels import Rule, labeller, separation
from dnapretrain.adapt.variants.variant_sites import Region, Variant, open_reference, trimmed, vcf_variants
from dnapretrain.cli import main
from dnapretrain.errors import ConfigError, DataError

CONTIG = "".join(np.random.default_rng(5).choice(list("ACGT"), 300))
OTHER = "acgtRNACGTACGTTT"
OTHERS = {base: "ACGT"["CGTA".index(base)] for base in "ACGT"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name)[0] for name in ("generator", "aido-dna")}


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "ref.fa"
    path.write_text(f">1 one\n{CONTIG}\n>2\n{OTHER}\n")
    return path


def write_vcf(path, *rows):
    lines = ["##fileformat=VCFv4.2", "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"])]
    text = "\n".join([*lines, *("\t".join([*map(str, row[:5]), ".", "PASS", row[5] if len(row) > 5 else "."]) for row in rows)]) + "\n"
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(text)
    return path


def rows_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("name", ["generator", "aido-dna"])
def test_each_allele_has_a_row_in_the_order_of_the_vcf(name, folders, reference, tmp_path, capsys):
    snv = CONTIG[99]
    alts = [base for base in "ACGT" if base != snv]
    vcf = write_vcf(
        tmp_path / "x.vcf.gz",
        ("1", 100, "rs1", snv, ",".join(alts)),
        ("1", 50, ".", CONTIG[49:52], CONTIG[49]),  # not sorted
        ("2", 3, ".", "G", "A"),
        ("1", 70, ".", CONTIG[69], "<DEL>"),
        ("1", 71, ".", CONTIG[70], "."),
        ("2", 5, ".", "A", "C"),  # R there
        ("2", 6, ".", "N", "C"),
        ("1", 300, "last", CONTIG[299], OTHERS[CONTIG[299]].lower()),
    )
    output = tmp_path / "scores.tsv.gz"
    options = ["--window", "48", "--scores", "llr,likelihood,distance", "--layers", "0,-1", "--both-strands", "--pseudo-bases", "6"]
    arguments = ["score", str(folders[name]), "--vcf", str(vcf), "--fasta", str(reference), "--output", str(output), *options]
    assert main(arguments) == 0
    rows = rows_of(output)
    assert [(row["chrom"], row["pos"], row["alt"]) for row in rows] == [
        *(("1", "100", alt) for alt in alts),
        *(("1", "50", CONTIG[49]), ("2", "3", "A"), ("1", "70", "<DEL>"), ("1", "71", "."), ("2", "5", "C"), ("2", "6", "C")),
        ("1", "300", OTHERS[CONTIG[299]]),
    ]
    indel = "likelihood" if name == "generator" else "pseudo"
    assert [row["method"] for row in rows] == ["marginal"] * 3 + [indel, "marginal", "NA", "NA", "marginal", "NA", "marginal"]
    assert [row["reason"] for row in rows if row["method"] == "NA"] == ["symbolic allele", "no ALT allele", "ambiguous allele"]
    assert {row["strands"] for row in rows if row["method"] != "NA"} == {"2"}
    columns = [column for column in rows[0] if column.startswith(("llr", "likelihood", "cosine", "l1", "l2", "dot"))]
    assert columns[:3] == ["llr", "likelihood", "cosine_mean_layer0"] and len(columns) == 2 + 16
    backbone = load_backbone(folders[name])
    settings = ScoreSettings(("llr", "likelihood", "distance"), 48, (0, -1), both_strands=True, pseudo_bases=6)
    for row in rows[:4]:
        start, ref = int(row["pos"]) - 1, row["ref"]
        site = trimmed(CONTIG[:start], ref, row["alt"], CONTIG[start + len(ref) :], 400)
        wanted = score_sites(backbone, [site], settings)[0].values
        assert {column: float(row[column]) for column in columns} == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    said = capsys.readouterr().out
    assert "1 of 10 alleles have no score: symbolic allele" in said and "1 of 10 alleles have no score: ambiguous allele" in said
    about = json.loads((tmp_path / "scores.tsv.gz.json").read_text())
    assert about["num_alleles"] == 10 and about["reasons"] == {"symbolic allele": 1, "no ALT allele": 1, "ambiguous allele": 1}
    assert about["settings"]["both_strands"] is True and about["fasta"] == str(reference)


def test_ref_mismatches_and_contigs(folders, reference, tmp_path, capsys):
    wrong = OTHERS[CONTIG[9]]
    vcf = write_vcf(tmp_path / "x.vcf", ("chr1", 10, ".", wrong, CONTIG[9]), ("chr1", 299, ".", CONTIG[298:] + "AA", CONTIG[298]))
    output = tmp_path / "x.tsv"
    output.write_text("before")
    base = ["score", str(folders["generator"]), "--vcf", str(vcf), "--fasta", str(reference), "--output", str(output), "--scores", "llr"]
    for options, message in (
        ([], "'chr1' (1 of 1 names) is no contig of"),
        (["--contig-names", "chr"], f"line 3: chr1:10: REF is {wrong}, but {reference} has {CONTIG[9]} there"),
        (["--contig-names", "chr", "--on-ref-mismatch", "drop"], "on_ref_mismatch = drop"),
        (["--window", "3"], "window = 3 bases"),
        (["--saturate", "1:1-2"], "give one of them"),
        (["--picture", "a.png"], "--picture is the heat map of --saturate"),
        (["--contig-names", "chr", "--negative", "AF<1"], "Add --positive"),
    ):
        assert main(base + options) != 0
        said = capsys.readouterr().err
        assert message in said, said
        assert output.read_text() == "before" and not list(tmp_path.glob(".*unfinished"))
    assert main([*base, "--contig-names", "chr", "--on-ref-mismatch", "skip"]) == 0
    assert [row["reason"] for row in rows_of(output)] == ["REF mismatch"] * 2
    assert "2 of 2 alleles have no score: REF mismatch" in capsys.readouterr().out
    absent = write_vcf(tmp_path / "y.vcf", ("9", 1, ".", "A", "C"), ("1", 10, ".", CONTIG[9], wrong))
    base[3] = str(absent)
    assert main([*base, "--skip-missing-contigs"]) == 0
    assert [row["reason"] for row in rows_of(output)] == ["no contig", "."]


def test_a_contig_that_is_a_window_of_another(reference, tmp_path):
    (tmp_path / "map.tsv").write_text("chr20\t1\t1000\n")
    found = open_reference(reference, ["chr20"], "x.vcf", str(tmp_path / "map.tsv"))
    site = found.site(Variant("chr20", 1010, ".", CONTIG[10], OTHERS[CONTIG[10]]), 5, "x.vcf")
    assert (site.left, site.ref, site.right) == (CONTIG[5:10], CONTIG[10], CONTIG[11:16])
    with pytest.raises(DataError, match=r"chr20:11: .*ends at -989 of '1'"):
        found.site(Variant("chr20", 10, ".", "A", "C"), 5, "x.vcf")


def test_labels_of_info_and_of_a_table(tmp_path, reference):
    variant = Variant("1", 99, ".", "A", "T", "AF=0.5,0.001;CLNSIG=Benign;DB", 7, 1, 2)
    assert [Rule.parse(text).holds(variant) for text in ("AF<0.01", "AF>=0.01", "CLNSIG=Benign|Likely_benign", "CLNSIG=x", "EAS_AF<1")] == [
        *(True, False, True, False),
        None,
    ]
    for text in ("AF", "AF<x", "<3", "AF!3"):
        with pytest.raises(ConfigError, match="rule"):
            Rule.parse(text)
    assert labeller("AF<0.01", None, None).label(variant) == 1 and labeller("AF>0.01", None, None).label(variant) == 0
    assert labeller("AF<0.0001", "AF>=0.01", None).label(variant) is None and labeller("EAS_AF<1", None, None).label(variant) is None
    with pytest.raises(DataError, match="1:100 A>T is positive and negative"):
        labeller("AF<0.01", "CLNSIG=Benign", None).label(variant)
    table = tmp_path / "labels.csv"
    table.write_text("chrom,pos,ref,alt,label\n1,100,a,T,1\n1,101,A,T,0\n")
    found = labeller(None, None, table)
    assert found.label(variant) == 1 and found.label(Variant("1", 99, ".", "A", "C")) is None
    assert found.unused() == "1 of 2 labels of the table are of no allele in the VCF"
    for text, message in (
        ("chrom,pos,ref,label\n", "no column 'alt'"),
        ("chrom,pos,ref,alt,label\n1,x,A,T,1\n", "line 2 has no position"),
        ("chrom,pos,ref,alt,label\n1,1,A,T,2\n", "label '2'"),
        ("chrom,pos,ref,alt,label\n1,1,A,T,1\n1,1,A,T,0\n", "line 3: 1:1 A>T has both labels"),
        ("chrom,pos,ref,alt,label\n", "has no row"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            labeller(None, None, table)


def test_separation_ranks_by_the_sign_of_a_score():
    labels, scores = np.array([1, 1, 0, 0, 0, 1]), np.array([-3.0, -2, -1, 0, 1, np.nan])
    found = separation(labels, scores, -1)
    assert (found.auroc.value, found.auprc.value, found.positives, found.negatives) == (1.0, 1.0, 2, 3)
    assert separation(labels, scores, 1).auroc.value == 0 and separation(labels[:2], scores[:2], 1) is None


def test_saturation_has_every_substitution(folders, reference, tmp_path, capsys):
    output, picture = tmp_path / "s.tsv", tmp_path / "s.png"
    arguments = ["score", str(folders["aido-dna"]), "--saturate", "1:2-140", "--fasta", str(reference), "--output", str(output)]
    assert main([*arguments, "--scores", "llr", "--window", "30", "--picture", str(picture)]) == 0
    rows = rows_of(output)
    wanted = [(str(at + 1), CONTIG[at], alt) for at in range(1, 140) for alt in "ACGT" if alt != CONTIG[at]]
    assert [(row["pos"], row["ref"], row["alt"]) for row in rows] == wanted
    backbone = load_backbone(folders["aido-dna"])
    site = trimmed(CONTIG[:57], CONTIG[57], rows[56 * 3]["alt"], CONTIG[58:], 400)
    alone = score_sites(backbone, [site], ScoreSettings(("llr",), 30))[0].values["llr"]
    assert float(rows[56 * 3]["llr"]) == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert picture.read_bytes()[:4] == b"\x89PNG" and "417 by marginal" in capsys.readouterr().out
    for region, message in (
        ("1:0-5", "not chr:start-end"),
        ("1:5-400", "not within '1'"),
        ("1:1-5000", "5,000 bases"),
        ("3:1-2", "no contig"),
    ):
        arguments[3] = region
        assert main([*arguments, "--scores", "llr", "--picture", str(picture)]) != 0
        assert message in capsys.readouterr().err
    assert Region.parse("chr1:1,001-2,000") == Region("chr1", 1000, 2000)


@pytest.mark.skipif(not os.environ.get("DNAPRETRAIN_TEST_DATA"), reason="DNAPRETRAIN_TEST_DATA is not set")
def test_real_sites_match_their_reference():
    """1000 Genomes sites: each REF is what the sequence has, and rows of several alleles split."""
    folder = Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "variants"
    vcf = folder / "vg_1mb1kgp_z_sites.vcf.gz"
    reference = open_reference(folder / "vg_1mb1kgp_z.fa.gz", ["z"], str(vcf))
    sites = [reference.site(variant, 60, str(vcf)) for variant in vcf_variants(vcf)]
    assert len(sites) > 28_998
    strange = [site for site in sites if isinstance(site, str)]
    assert set(strange) <= {"symbolic allele"} and len(strange) < 100
