"""Classes of regions from GFF3, GTF and BED rows."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from dnapretrain.data.genes.region_classes import read_regions
from dnapretrain.errors import ConfigError, DataError


def gff(path: Path, rows: str) -> Path:
    lines = ["\t".join(line.split(None, 8)) for line in rows.strip().splitlines()]
    path.write_text("##gff-version 3\n##sequence-region silent 1 50\n" * path.name.endswith("gff3") + "\n".join(lines) + "\n")
    return path


def letters(path: Path, name: str = "c", length: int = 60) -> str:
    """One letter for each base: the first class that covers it."""
    text = ["."] * length
    for kind, of_name in reversed(read_regions("x", path).classes.items()):
        for start, end in of_name.get(name, np.zeros((0, 2), int)).tolist():
            text[start:end] = {"CDS": "C", "UTR": "U", "exon": "e", "intron": "i", "x": "x"}[kind] * (end - start)
    return "".join(text)


GFF3 = """
c . gene 3 30 . + . ID=g
c . mRNA 3 30 . + . ID=m;Parent=g
c . exon 3 10 . + . Parent=m,n
c . exon 20 30 . + . Parent=m
c . CDS 6 10 . + 0 ID=p;Parent=m
c . CDS 20 24 . + 0 ID=p;Parent=m
c . lnc_RNA 3 34 . + . ID=n;Parent=g
c . exon 26 34 . + . Parent=n
c . tRNA_gene 40 44 . - . ID=t
c . repeat_region 1 60 . . . ID=r
c . gene 50 55 . + . ID=b
c . CDS 50 55 . + 0 ID=q;Parent=b
"""
EXPECTED = "..UUUCCCCCiiiiiiiiiCCCCCUUUUUUeeee.....eeeee.....CCCCCC....."
GTF = """
c . gene 3 34 . + . gene_id "g";
c . transcript 3 30 . + . gene_id "g"; transcript_id "m";
c . exon 3 10 . + . gene_id "g"; transcript_id "m";
c . exon 20 30 . + . gene_id "g"; transcript_id "m";
c . CDS 6 10 . + 0 gene_id "g"; transcript_id "m";
c . CDS 20 21 . + 0 gene_id "g"; transcript_id "m";
c . stop_codon 22 24 . + 0 gene_id "g"; transcript_id "m";
c . exon 3 10 . + . gene_id "g"; transcript_id "n";
c . exon 26 34 . + . gene_id "g"; transcript_id "n";
c . transcript 40 44 . - . gene_id "t"; transcript_id "t";
c . CDS 50 55 . + 0 gene_id "b"; transcript_id "b";
"""


def test_gff3_and_gtf_by_hand(tmp_path):
    """A coding and a non-coding transcript of one gene, a gene without parts, a CDS right under its gene."""
    assert letters(gff(tmp_path / "a.gff3", GFF3)) == EXPECTED
    assert letters(gff(tmp_path / "a.gtf", GTF)) == EXPECTED


def test_gzip_names_and_entry(tmp_path):
    path = gff(tmp_path / "a.gff3", GFF3)
    packed = tmp_path / "a.gff3.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    found = read_regions("x", packed)
    assert (found.names, found.silent, found.is_annotation) == (["c"], ("silent",), True)
    assert found.entry["size"] == packed.stat().st_size and len(found.entry["xxh3_128"]) == 32


def test_bed_is_one_class(tmp_path):
    path = tmp_path / "repeats.bed"
    path.write_text("c\t5\t9\tAlu\nc\t8\t12\nd\t0\t3\n")
    found = read_regions("x", path)
    assert letters(path, length=14) == ".....xxxxxxx.."
    assert (found.names, found.is_annotation, list(found.classes)) == (["c", "d"], False, ["x"])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.regions\.files\.x.*neither BED nor GFF3"):
        read_regions("x", tmp_path / "a.vcf")
    with pytest.raises(DataError, match="cannot be read"):
        read_regions("x", tmp_path / "a.gff3")
    with pytest.raises(DataError, match="cannot be read"):
        read_regions("x", tmp_path / "a.bed")


@pytest.mark.skipif("DNAPRETRAIN_TEST_DATA" not in os.environ, reason="DNAPRETRAIN_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "coding", "intron"),
    [("ecoli_K12_MG1655", (0.86, 0.89), (0, 0.002)), ("celegans_WBcel235_1pct", (0.15, 0.35), (0.4, 0.6))],
)
def test_real_annotations(name, coding, intron):
    """Shares of the spans that are known of these genomes."""
    found = read_regions("x", Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "genomes" / f"{name}.gff3.gz")
    size = {kind: sum(int((rows[:, 1] - rows[:, 0]).sum()) for rows in of_name.values()) for kind, of_name in found.classes.items()}
    total = {"ecoli_K12_MG1655": 4_641_652, "celegans_WBcel235_1pct": size["intron"] + size["exon"]}[name]
    assert coding[0] < size["CDS"] / total < coding[1]
    only_intron = total_intron(found)
    assert intron[0] <= only_intron / total <= intron[1]


def total_intron(found):
    """Bases of genes that no part has."""
    bases = 0
    for name, spans in found.classes["intron"].items():
        parts = np.zeros(int(spans.max()) + 1, bool)
        for start, end in spans.tolist():
            parts[start:end] = True
        for kind in ("CDS", "UTR", "exon"):
            for start, end in found.classes[kind].get(name, np.zeros((0, 2), int)).tolist():
                parts[start:end] = False
        bases += int(parts.sum())
    return bases
