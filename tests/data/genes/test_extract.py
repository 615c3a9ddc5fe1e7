"""Documents of `extract` against a slow version on random genomes, known answers for every rule, and real genomes."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow import reverse_complement

from dnapretrain.config import SplitConfig
from dnapretrain.data.genes.codons import START_CODONS, STOP_CODONS
from dnapretrain.data.genes.contig_names import plain_name
from dnapretrain.data.genes.extract import extract, format_extraction
from dnapretrain.data.genes.gene_regions import ExtractSettings, settings_from_text
from dnapretrain.data.look.inspect import format_inspection, inspect_shard
from dnapretrain.data.sampling.split import SIDES, split_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, shard_file
from dnapretrain.errors import ConfigError, DataError


def genome(folder: Path, records: dict[str, str], min_length: int = 1) -> Path:
    (folder / "asm.fa").write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    preprocess([folder / "asm.fa"], folder / "base", min_length=min_length, overwrite=True)
    return folder / "base"


def gff(folder: Path, rows: str, header: str = "##gff-version 3\n") -> Path:
    lines = ["\t".join(line.split(None, 8)) for line in rows.strip().splitlines()]
    (folder / "a.gff3").write_text(header + "\n".join(lines) + "\n")
    return folder / "a.gff3"


def documents(prefix: Path) -> list[str]:
    shard = open_shard(prefix)
    return [shard.bases[at : at + size].tobytes().decode() for at, size in zip(shard.offsets, shard.lengths, strict=True)]


def labels(prefix: Path) -> list[dict[str, str]]:
    with shard_file(prefix, "labels.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def from_bed(prefix: Path, records: dict[str, str]) -> list[str]:
    """The documents once more, from the `.bed` and the text of the genome alone."""
    found = []
    for line in shard_file(prefix, "bed").read_text().splitlines():
        contig, start, _, _, _, strand, _, _, _, count, sizes, starts = line.split("\t")
        pieces = [(int(start) + int(at), int(size)) for at, size in zip(starts.split(","), sizes.split(","), strict=True)]
        assert len(pieces) == int(count)
        bases = "".join(records[contig][at : at + size] for at, size in pieces)
        found.append(reverse_complement(bases) if strand == "-" else bases)
    return found


# A slow version on random genomes


@st.composite
def annotated(draw):
    """A genome, and genes as (contig, strand, exons, coding exons, phase of the first), 0-based, ascending."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    records, genes = {}, []
    for name in ("c1", "c2"):
        length = int(rng.integers(200, 500))
        bases = rng.choice(list("ACGTacgtRyN"), length, p=[0.15] * 4 + [0.09] * 4 + [0.02, 0.01, 0.01])
        at = int(rng.integers(20, length - 60))
        bases[at : at + int(rng.integers(0, 40))] = "N"
        records[name] = "".join(bases)
        for _ in range(int(rng.integers(0, 4))):
            cuts = np.sort(rng.choice(length - 1, 2 * int(rng.integers(1, 4)), replace=False)).tolist()
            exons = [(start, end + 1) for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
            span = np.sort(rng.choice(np.concatenate([np.arange(*exon) for exon in exons]), 2, replace=True)).tolist()
            coding = [(max(a, span[0]), min(b, span[1] + 1)) for a, b in exons if max(a, span[0]) < min(b, span[1] + 1)]
            genes.append((name, str(rng.choice(["+", "-"])), exons, coding, int(rng.integers(0, 3))))
    return records, genes


def slow_document(text: str, pieces: list[tuple[int, int]], strand: str) -> str:
    """Runs of 10 N are not in the shard and come back as upper-case N."""
    known = re.sub("[Nn]{10,}", lambda run: "N" * len(run[0]), text)
    bases = "".join(known[start:end] for start, end in pieces)
    return reverse_complement(bases) if strand == "-" else bases


def as_gff3(genes) -> str:
    rows = ["##gff-version 3"]
    for number, (contig, strand, exons, coding, phase) in enumerate(genes):
        start, end = exons[0][0] + 1, exons[-1][1]
        rows.append(f"{contig}\tx\tgene\t{start}\t{end}\t.\t{strand}\t.\tID=g{number};gene_biotype=protein_coding")
        rows.append(f"{contig}\tx\tmRNA\t{start}\t{end}\t.\t{strand}\t.\tID=t{number};Parent=g{number}")
        rows += [f"{contig}\tx\texon\t{a + 1}\t{b}\t.\t{strand}\t.\tParent=t{number}" for a, b in exons]
        rows += [f"{contig}\tx\tCDS\t{a + 1}\t{b}\t.\t{strand}\t{phase}\tID=c{number};Parent=t{number}" for a, b in coding]
    return "\n".join(rows) + "\n"


def as_gtf(genes) -> str:
    rows = []
    for number, (contig, strand, exons, coding, phase) in enumerate(genes):
        names = f'gene_id "g{number}"; gene_biotype "protein_coding"; transcript_id "t{number}";'
        rows += [f"{contig}\tx\texon\t{a + 1}\t{b}\t.\t{strand}\t.\t{names}" for a, b in exons[::-1]]
        stop, cut = [], 3  # the last three bases are a stop codon, which GTF leaves out of the CDS
        rest = list(coding if strand == "+" else coding[::-1])
        if sum(b - a for a, b in coding) > 5:
            while cut:
                a, b = rest.pop()
                take = min(cut, b - a)
                stop.append((b - take, b) if strand == "+" else (a, a + take))
                cut -= take
                if take < b - a:
                    rest.append((a, b - take) if strand == "+" else (a + take, b))
        rows += [f"{contig}\tx\tCDS\t{a + 1}\t{b}\t.\t{strand}\t{phase}\t{names}" for a, b in rest]
        rows += [f"{contig}\tx\tstop_codon\t{a + 1}\t{b}\t.\t{strand}\t.\t{names}" for a, b in stop]
    return "\n".join(rows) + "\n"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=annotated(), flank=st.integers(0, 300), up=st.integers(0, 60), down=st.integers(1, 60))
def test_random_genes_equal_the_slow_version(tmp_path, case, flank, up, down):
    records, genes = case
    if not genes:
        return
    expected = []
    for contig, strand, exons, coding, phase in genes:
        text, start, end = records[contig], exons[0][0], exons[-1][1]
        low, high = max(start - flank, 0), min(end + flank, len(text))
        expected.append(("gene", slow_document(text, [(low, high)], strand)))
        expected.append(("transcript", slow_document(text, exons, strand)))
        expected.append(("cds", slow_document(text, coding, strand)[phase:]))
        window = (start - up, start + down) if strand == "+" else (end - down, end + up)
        expected.append(("promoter", slow_document(text, [(max(window[0], 0), min(window[1], len(text)))], strand)))
    expected = [(feature, bases) for feature, bases in expected if set(bases) - {"N"}]
    base = genome(tmp_path, records)
    if open_shard(base).manifest["counts"]["dropped_bases"]["n_run"] and any(text[-10:].upper() == "N" * 10 for text in records.values()):
        return  # which contig the bases at the end belong to is not known, so flanks may be shorter
    wanted = ExtractSettings(("gene", "transcript", "cds", "promoter"), flank=flank, spliced=True, promoter=(up, down), force=True)
    outputs = []
    for kind, text in (("gff3", as_gff3(genes)), ("gtf", as_gtf(genes))):
        (tmp_path / kind).write_text(text)
        manifest = extract(base, tmp_path / kind, tmp_path / f"out-{kind}", wanted, overwrite=True)
        prefix = tmp_path / f"out-{kind}"
        found = documents(prefix)
        pairs = zip([row["feature"] for row in labels(prefix)], found, strict=True)
        # Of N alone: left out where it stands for bases that the shard lacks, kept where it is a short run of the assembly's own.
        assert sorted((feature, bases) for feature, bases in pairs if set(bases) - {"N"}) == sorted(expected)
        assert found == from_bed(prefix, {name: slow_document(bases, [(0, len(bases))], "+") for name, bases in records.items()})
        counts = manifest["counts"]
        assert counts["total_bases"] == counts["kept_bases"] + sum(counts["dropped_bases"].values())
        assert counts["n"] == sum(bases.upper().count("N") for bases in found)
        outputs.append(sorted(zip(shard_file(prefix, "bed").read_text().splitlines(), found, strict=True)))
    assert outputs[0] == outputs[1]


# Known answers

TEXT = "AAAAACCCCCATGGGGtagTTTTTTTTTTTTTTcgATTTCATGACCCCCCACG"
#       01234567890123456789012345678901234567890123456789012


def test_flanks_strands_case_and_labels(tmp_path):
    rows = """
    c x gene 11 19 . + . ID=a%25;gene_biotype=protein_coding
    c x tRNA_gene 34 41 . - . ID=b;partial=true
    c x gene 2 3 . . . ID=u
    """
    base = genome(tmp_path, {"c": TEXT})
    manifest = extract(base, gff(tmp_path, rows), tmp_path / "o", ExtractSettings(flank=2, clade="fng"))
    assert documents(tmp_path / "o") == ["AAAAA", "CCATGGGGtagTT", reverse_complement(TEXT[31:43])]
    assert labels(tmp_path / "o")[1:] == [
        {"feature": "gene", "type": "cds", "strand": "+", "clade": "fng", "gene": "a%25", "transcript": ".", "partial": "."},
        {"feature": "gene", "type": "tRNA", "strand": "-", "clade": "fng", "gene": "b", "transcript": ".", "partial": "?"},
    ]
    assert labels(tmp_path / "o")[0]["strand"] == "."
    lines = shard_file(tmp_path / "o", "bed").read_text().splitlines()
    assert lines[0] == "c\t0\t5\tasm\t0\t+\t0\t0\t0\t1\t5\t0"
    assert lines[2] == "c\t31\t43\tasm\t0\t-\t31\t31\t0\t1\t12\t0"
    assert manifest["extraction"]["clipped"] == {"documents": 1, "bases": 1}
    assert inspect_shard(tmp_path / "o", check=True)["first"][2]["locus"] == "asm:c:32-43"


def test_bases_that_were_left_out_are_n_and_counted(tmp_path):
    text = "ACGT" * 5 + "n" * 12 + "acgt" * 5 + "N" * 30
    base = genome(tmp_path, {"c": text})
    rows = """
    c x gene 15 36 . - . ID=a
    c x gene 53 82 . + . ID=only_n
    """
    manifest = extract(base, gff(tmp_path, rows), tmp_path / "o")
    assert documents(tmp_path / "o") == ["acgt" + "N" * 12 + reverse_complement(text[14:20])]
    assert manifest["extraction"]["filled_with_n"] == 12
    assert manifest["counts"]["dropped_documents"] == {"short": 0, "long": 0, "no_bases": 1}
    assert manifest["counts"]["dropped_bases"]["no_bases"] == 30
    with pytest.raises(DataError, match=r"line 2: a on 'c' ends at 83, but 'c' of .* has 82 bases"):
        extract(base, gff(tmp_path, "c x gene 15 83 . - . ID=a"), tmp_path / "p")


def test_first_codon_begins_after_the_phase(tmp_path):
    rows = """
    c x mRNA 1 40 . + . ID=t
    c x CDS 1 1 . + 2 Parent=t
    c x CDS 10 19 . + 0 Parent=t
    """
    manifest = extract(genome(tmp_path, {"c": TEXT}), gff(tmp_path, rows), tmp_path / "o", ExtractSettings(("cds",)))
    assert documents(tmp_path / "o") == ["ATGGGGtag"]
    assert labels(tmp_path / "o")[0]["partial"] == "5"
    assert manifest["extraction"]["trimmed_phase_bases"] == 2
    assert manifest["extraction"]["codons"]["incomplete"] == 1


def test_isoforms(tmp_path):
    rows = """
    c x gene 1 40 . + . ID=g
    c x mRNA 1 40 . + . ID=a;Parent=g
    c x mRNA 1 30 . + . ID=b;Parent=g
    c x mRNA 5 40 . + . ID=d;Parent=g
    c x CDS 11 19 . + 0 ID=x;Parent=a,b
    c x CDS 11 16 . + 0 ID=y;Parent=d
    """
    base, path = genome(tmp_path, {"c": TEXT}), gff(tmp_path, rows)
    found = {}
    for isoforms in ("all", "distinct", "longest"):
        manifest = extract(base, path, tmp_path / isoforms, ExtractSettings(("cds",), isoforms=isoforms))
        found[isoforms] = [row["transcript"] for row in labels(tmp_path / isoforms)]
        assert manifest["extraction"]["repeats"] == 1
        assert manifest["extraction"]["left_out"]["isoforms_left_out"] == 3 - len(found[isoforms])
    assert found == {"all": ["d", "a", "b"], "distinct": ["d", "a"], "longest": ["a"]}


def test_types_and_lengths(tmp_path):
    rows = """
    c x tRNA_gene 1 5 . + . ID=a
    c x rRNA_gene 11 30 . + . ID=b
    c x tRNA_gene 31 50 . + . ID=c
    """
    base, path = genome(tmp_path, {"c": TEXT}), gff(tmp_path, rows)
    manifest = extract(base, path, tmp_path / "o", ExtractSettings(types=("tRNA",), min_length=6, max_length=20))
    assert [row["gene"] for row in labels(tmp_path / "o")] == ["c"]
    assert manifest["extraction"]["left_out"]["other_types"] == 1
    assert manifest["counts"]["dropped_documents"] == {"short": 1, "long": 0, "no_bases": 0}
    with pytest.raises(DataError, match="no document is left of 3: short 0, long 3"):
        extract(base, path, tmp_path / "p", ExtractSettings(max_length=4))
    assert not list(tmp_path.glob("*p.*"))


CIRCLE = """
c x region 1 53 . + . ID=c:1..53;Is_circular=true
c x gene 50 59 . + . ID=p
c x CDS 50 59 . + 0 ID=pc;Parent=p
c x gene 51 56 . - . ID=m
"""


def test_genes_across_the_origin_of_a_circle(tmp_path):
    assert len(TEXT) == 53
    base = genome(tmp_path, {"c": TEXT})
    extract(base, gff(tmp_path, CIRCLE), tmp_path / "o", ExtractSettings(force=True))
    assert documents(tmp_path / "o") == [TEXT[49:] + TEXT[:6], reverse_complement(TEXT[50:] + TEXT[:3])]
    assert documents(tmp_path / "o") == from_bed(tmp_path / "o", {"c": TEXT})
    where = open_shard(tmp_path / "o").coordinates
    assert where.pieces(0, 2, 6) == [(51, 53), (0, 2)]
    assert where.pieces(1, 1, 6) == [(0, 2), (50, 53)]
    around = CIRCLE + "c x gene 2 4 . - . ID=f\n"
    manifest = extract(base, gff(tmp_path, around), tmp_path / "q", ExtractSettings(force=True, flank=3))
    assert by_gene(tmp_path / "q", "gene")["p"] == [TEXT[46:] + TEXT[:9]]
    assert by_gene(tmp_path / "q", "gene")["f"] == [reverse_complement(TEXT[51:] + TEXT[:7])]
    assert manifest["extraction"]["clipped"]["bases"] == 0
    whole = extract(base, gff(tmp_path, around), tmp_path / "r", ExtractSettings(force=True, flank=30))
    assert by_gene(tmp_path / "r", "gene")["f"] == [reverse_complement(TEXT[:34])]  # longer than the circle: as on a line
    assert whole["extraction"]["clipped"]["bases"] > 0
    with pytest.raises(DataError, match="ends at 59"):
        extract(base, gff(tmp_path, CIRCLE.replace("Is_circular=true", "gbkey=Src")), tmp_path / "p", ExtractSettings(force=True))


def test_pieces_lead_back_to_the_contig_base_by_base(tmp_path):
    rows = """
    c x mRNA 1 40 . + . ID=t
    c x exon 3 9 . + . Parent=t
    c x exon 15 20 . + . Parent=t
    c x mRNA 1 40 . - . ID=u
    c x exon 3 9 . - . Parent=u
    c x exon 12 13 . - . Parent=u
    c x exon 15 20 . - . Parent=u
    """
    extract(genome(tmp_path, {"c": TEXT}), gff(tmp_path, rows), tmp_path / "o", ExtractSettings(("transcript",), spliced=True))
    where = open_shard(tmp_path / "o").coordinates
    for number, document in enumerate(documents(tmp_path / "o")):
        for start in range(len(document)):
            for end in range(start + 1, len(document) + 1):
                pieces = [TEXT[a:b] for a, b in where.pieces(number, start, end)]
                if where.strand[number] == "-":
                    pieces = [reverse_complement(piece) for piece in pieces]
                assert "".join(pieces) == document[start:end]


def test_spliced_documents_are_split_and_inspected_but_no_base_shard(tmp_path):
    base = genome(tmp_path, {"c": TEXT})
    rows = """
    c x mRNA 1 40 . - . ID=t
    c x exon 3 9 . - . Parent=t
    c x exon 15 20 . - . Parent=t
    """
    extract(base, gff(tmp_path, rows), tmp_path / "o", ExtractSettings(("transcript",), spliced=True))
    shard = open_shard(tmp_path / "o")
    (tmp_path / "v.bed").write_text("c\t7\t16\n")
    split = split_documents([shard], SplitConfig(by="bed", valid_bed=tmp_path / "v.bed"))[0]
    found = {side: list(zip(split[side].start.tolist(), split[side].length.tolist(), strict=True)) for side in SIDES}
    assert found == {"train": [(0, 4), (8, 5)], "valid": [(4, 4)], "test": []}
    assert split_documents([shard], SplitConfig(by="none"))[0]["train"].bases == 13
    with pytest.raises(DataError, match="asm:c:3-20 is spliced from 2 pieces, and this needs"):
        shard.reference_position(0, 0)
    assert "document     asm:c:3-20 (-)" in format_inspection(inspect_shard(tmp_path / "o"))
    with pytest.raises(DataError, match="Give the base shard"):
        extract(tmp_path / "o", tmp_path / "a.gff3", tmp_path / "p")


def test_a_split_of_overlapping_genes_keeps_each_base_on_one_side(tmp_path):
    rng = np.random.default_rng(1)
    base = genome(tmp_path, {"c": "".join(rng.choice(list("ACGT"), 20_000))})
    starts = rng.integers(1, 17_000, 60)
    rows = "\n".join(f"c x gene {s} {s + rng.integers(50, 3000)} . {rng.choice(['+', '-'])} . ID=g{n}" for n, s in enumerate(starts))
    extract(base, gff(tmp_path, rows), tmp_path / "o")
    shard = open_shard(tmp_path / "o")
    split = split_documents([shard], SplitConfig(by="block", block_size=500, valid_fraction=0.3, test_fraction=0.2))[0]
    sides = defaultdict(set)
    for side in SIDES:
        for document, start, length in zip(split[side].document, split[side].start, split[side].length, strict=True):
            [(first, last)] = shard.coordinates.pieces(int(document), int(start), int(start + length))
            for position in range(first, last):
                sides[position].add(side)
    assert sum(segments.bases for segments in split.values()) == len(shard.bases)
    assert {len(found) for found in sides.values()} == {1}
    assert {side for found in sides.values() for side in found} == set(SIDES)


# Contig names


def test_contig_names(tmp_path):
    base = genome(tmp_path, {"1": TEXT, "Mito": TEXT, "w": TEXT[20:40]})
    rows = "chr1 x gene 1 9 . + . ID=a\nchrM x gene 2 9 . + . ID=b"
    with pytest.raises(
        DataError, match=r"'chr1' \(2 of 2 names\) is no contig .* has chr1, chrM; the shard has 1, Mito, w\. Give --contig-names"
    ):
        extract(base, gff(tmp_path, rows), tmp_path / "o")
    with pytest.raises(DataError, match="is no contig"):
        extract(base, gff(tmp_path, rows), tmp_path / "o", ExtractSettings(skip_missing_contigs=True))
    manifest = extract(base, gff(tmp_path, rows), tmp_path / "o", contig_names="chr")
    assert manifest["extraction"]["contigs"] == {"chr1": ["1"], "chrM": ["Mito"]}
    assert manifest["extraction"]["contigs_without_genes"] == 1
    assert "contigs      chr1 = ['1']; chrM = ['Mito']" in format_extraction(manifest)
    (tmp_path / "map").write_text("# from Ensembl\nchr1\t1\t0\nchr1\tw\t100\nchrM\t-\nchr9\tabsent\n")
    rows += "\nchr1 x gene 103 110 . - . ID=c\nchr1 x gene 115 121 . - . ID=beyond"
    manifest = extract(base, gff(tmp_path, rows), tmp_path / "p", contig_names=str(tmp_path / "map"))
    assert documents(tmp_path / "p") == [TEXT[:9], reverse_complement(TEXT[22:30])]
    assert manifest["extraction"]["left_out"]["missing_contigs"] == manifest["extraction"]["left_out"]["outside_window"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\tabsent\n", "line 1: 'absent' is no contig of the shard, which has 1, chr_1"),
        ("chr1 1\n", "line 1 is not name<tab>contig"),
        ("chr1\t1\t-5\n", "line 1 is not name<tab>contig"),
        ("chr1\t1\nchr1\tchr_1\n", "line 2: 'chr1' has two contigs"),
    ],
)
def test_bad_map_of_contig_names(tmp_path, text, message):
    base = genome(tmp_path, {"1": TEXT, "chr_1": TEXT})
    (tmp_path / "map").write_text(text)
    with pytest.raises(ConfigError, match=message):
        extract(base, gff(tmp_path, "chr1 x gene 1 9 . + . ID=a"), tmp_path / "o", contig_names=str(tmp_path / "map"))


def test_the_rule_for_contig_names_does_not_choose_between_two(tmp_path):
    base = genome(tmp_path, {"Chr2": TEXT, "chr2": TEXT, "MT": TEXT})
    with pytest.raises(DataError, match="'2' may be any of Chr2, chr2"):
        extract(base, gff(tmp_path, "2 x gene 1 9 . + . ID=a"), tmp_path / "o", contig_names="chr")
    rows = "chrM x gene 1 9 . + . ID=a\nMito x gene 1 9 . + . ID=b"
    with pytest.raises(DataError, match="'chrM' and 'Mito' would both be 'MT'"):
        extract(base, gff(tmp_path, rows), tmp_path / "o", contig_names="chr")
    assert [plain_name(name) for name in ("chrX", "X", "CHRX", "chrMT", "mtDNA", "chr")] == ["X", "X", "X", "M", "M", ""]


# Settings and the fit of annotation and assembly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exon", None, None), "--features 'exon' is not known. Choose from gene, transcript"),
        (("gene", "snoRNA", None), "--types 'snoRNA'"),
        (("promoter", None, None), "go together"),
        (("gene", None, "10:20"), "go together"),
        (("gene,promoter", None, "10"), "'10' is not UP:DOWN"),
        (("gene,promoter", None, "0:0"), "bases are counted from 0"),
    ],
)
def test_bad_lists(arguments, message):
    with pytest.raises(ConfigError, match=message):
        settings_from_text(*arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clade": "human"},
        {"isoforms": "some"},
        {"flank": -1},
        {"spliced": True},
        {"features": ("cds",), "flank": 5},
        {"features": ("transcript",), "spliced": True, "flank": 5},
        {"min_length": 0},
        {"min_length": 9, "max_length": 8},
        {"genetic_code": 7},
    ],
)
def test_bad_settings(wrong):
    with pytest.raises(ConfigError):
        ExtractSettings(**wrong)


def test_another_length_is_another_assembly(tmp_path):
    base = genome(tmp_path, {"c": TEXT, "d": TEXT + "N" * 20})
    for name, stated, fits in (("c", 53, True), ("c", 52, False), ("d", 53, True), ("d", 73, True), ("d", 74, False)):
        path = gff(tmp_path, f"{name} x gene 1 9 . + . ID=a", f"##gff-version 3\n##sequence-region {name} 1 {stated}\n")
        if fits:
            extract(base, path, tmp_path / "o", overwrite=True)
        else:
            with pytest.raises(DataError, match=f"'{name}' has {stated} bases, but"):
                extract(base, path, tmp_path / "o", overwrite=True)
            extract(base, path, tmp_path / "o", ExtractSettings(force=True), overwrite=True)


def test_codons_that_do_not_fit(tmp_path):
    rows = "c x mRNA 1 40 . {} . ID=t\nc x CDS {} {} . {} 0 Parent=t;transl_table={}"
    base = genome(tmp_path, {"c": TEXT})
    good = extract(base, gff(tmp_path, rows.format("+", 11, 19, "+", 11)), tmp_path / "o")["extraction"]["codons"]
    assert (good["complete"], good["valid"], good["share"], good["exceptions"]) == (1, 1, 1.0, [])
    minus = TEXT.index("TCATGA")
    bad = gff(tmp_path, rows.format("-", minus + 1, minus + 6, "-", 1))  # TCATGA
    with pytest.raises(DataError, match="only 0 of 1 complete coding sequences begin with"):
        extract(base, bad, tmp_path / "p")
    forced = extract(base, bad, tmp_path / "p", ExtractSettings(force=True))["extraction"]["codons"]
    locus = f"asm:c:{minus + 1}-{minus + 6}(-)"
    assert forced["exceptions"] == [{"name": "t", "locus": locus, "first": "TCA", "last": "TGA", "note": ""}]
    with pytest.raises(DataError, match="transl_table=99 is not one"):
        extract(base, gff(tmp_path, rows.format("+", 11, 19, "+", 99)), tmp_path / "q")


def test_several_assemblies_need_a_name(tmp_path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.fa").write_text(f">c\n{TEXT if name == 'x' else TEXT[::-1]}\n")
    preprocess([tmp_path / "x.fa", tmp_path / "y.fa"], tmp_path / "base")
    path = gff(tmp_path, "c x gene 1 9 . + . ID=a")
    with pytest.raises(ConfigError, match=r"holds 2 assemblies. Give --assembly .*: x, y"):
        extract(tmp_path / "base", path, tmp_path / "o")
    with pytest.raises(ConfigError, match="has no assembly 'z'"):
        extract(tmp_path / "base", path, tmp_path / "o", assembly="z")
    extract(tmp_path / "base", path, tmp_path / "o", assembly="y")
    assert documents(tmp_path / "o") == [TEXT[::-1][:9]]


def test_labels_are_part_of_the_shard(tmp_path):
    base, path = genome(tmp_path, {"c": TEXT}), gff(tmp_path, "c x gene 1 9 . + . ID=a")
    extract(base, path, tmp_path / "o")
    with pytest.raises(DataError, match="exists already"):
        extract(base, path, tmp_path / "o")
    with shard_file(tmp_path / "o", "labels.tsv").open("a") as file:
        file.write("x")
    with pytest.raises(DataError, match=r"labels\.tsv: \d+ bytes, but the manifest says"):
        open_shard(tmp_path / "o")
    preprocess([tmp_path / "asm.fa"], tmp_path / "o", overwrite=True)  # no labels of an older shard stay beside the new one
    assert not shard_file(tmp_path / "o", "labels.tsv").exists()
    open_shard(tmp_path / "o")


def test_genetic_codes_are_those_of_ncbi():
    table = pytest.importorskip("Bio.Data.CodonTable").unambiguous_dna_by_id
    assert set(START_CODONS) == set(STOP_CODONS) == set(table)
    for code, found in table.items():
        assert START_CODONS[code] == set(found.start_codons) and STOP_CODONS[code] == set(found.stop_codons)


# Real genomes


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`real('genomes/x.fa.gz')` -> prefix of its base shard."""
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    folder = tmp_path_factory.mktemp("real")

    def build(name: str) -> Path:
        prefix = folder / Path(name).name
        if not shard_file(prefix, "json").exists():
            preprocess([data(name)], prefix)
        return prefix

    return build


def data(name: str) -> Path:
    return Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / name


ECOLI = ("genomes/ecoli_K12_MG1655_NC_000913.3.fa.gz", "genomes/ecoli_K12_MG1655.gff3.gz")
YEAST = ("genomes/scerevisiae_R64_chrI-X_Mito.fa.gz", "genomes/scerevisiae_R64_chrI-X_Mito.sgd.gff3.gz")
OLD = ("awkward/yeast_old_assembly_chrI.fa.gz", "awkward/yeast_old_assembly_chrI+II.gff3.gz")


def by_gene(prefix: Path, feature: str) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row, bases in zip(labels(prefix), documents(prefix), strict=True):
        if row["feature"] == feature:
            found[row["gene"].removeprefix("gene-")].append(bases)
    return {gene: sorted(items) for gene, items in found.items()}


def test_ecoli_equals_the_flat_file(real, tmp_path):
    records = pytest.importorskip("Bio.SeqIO")
    with gzip.open(data("genomes/ecoli_K12_MG1655.gbff.gz"), "rt") as file:
        record = next(records.parse(file, "genbank"))
    expected = {"gene": defaultdict(list), "cds": defaultdict(list)}
    for feature in record.features:
        if feature.type.lower() in expected:
            bases = str(feature.location.extract(record.seq))
            if feature.type == "CDS":
                bases = bases[int(feature.qualifiers.get("codon_start", ["1"])[0]) - 1 :]
            expected[feature.type.lower()][feature.qualifiers["locus_tag"][0]].append(bases)
    manifest = extract(real(ECOLI[0]), data(ECOLI[1]), tmp_path / "o", ExtractSettings(("gene", "cds"), clade="bct"))
    for feature, genes in expected.items():
        assert by_gene(tmp_path / "o", feature) == {gene: sorted(items) for gene, items in genes.items()}
    codons = manifest["extraction"]["codons"]
    assert (codons["complete"], codons["valid"], codons["incomplete"]) == (4298, 4298, 17)


@pytest.mark.parametrize(("files", "code", "complete", "valid"), [(ECOLI, 11, 4298, 4298), (YEAST, 1, 3684, 3678)])
def test_coding_sequences_of_both_strands_start_and_stop(real, tmp_path, files, code, complete, valid):
    manifest = extract(real(files[0]), data(files[1]), tmp_path / "o", ExtractSettings(("cds",), types=("cds",)))
    ends = {"+": [], "-": []}
    for row, bases in zip(labels(tmp_path / "o"), documents(tmp_path / "o"), strict=True):
        if row["partial"] == ".":
            ends[row["strand"]].append(bases[:3] in START_CODONS[code] and bases[-3:] in STOP_CODONS[code] and len(bases) % 3 == 0)
    assert sum(map(len, ends.values())) == complete and sum(map(sum, ends.values())) == valid
    assert all(sum(found) >= 0.99 * len(found) and len(found) > 1500 for found in ends.values())
    assert all(":Mito:" in item["locus"] for item in manifest["extraction"]["codons"]["exceptions"])  # ATA, a start in code 3


def test_ecoli_as_gtf_gives_the_same_coding_sequences(real, tmp_path):
    """GTF as NCBI writes it: the CDS ends before the stop codon, which has a row of its own."""
    rows = defaultdict(list)
    with gzip.open(data(ECOLI[1]), "rt") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if len(fields) == 9 and fields[2] == "CDS" and "pseudo=true" not in line and "exception=" not in line:
                name, parent = re.match(r"ID=([^;]+);Parent=gene-([^;]+)", fields[8]).groups()
                rows[parent, name].append(fields)
    lines, single = [], {}
    for (gene, name), parts in rows.items():
        if len(parts) == 1:
            [fields] = parts
            start, end = int(fields[3]), int(fields[4])
            single.setdefault(gene, []).append(name)
            cut, stop = ((start, end - 3), (end - 2, end)) if fields[6] == "+" else ((start + 3, end), (start, start + 2))
            for kind, (first, last) in (("CDS", cut), ("stop_codon", stop)):
                tail = f'gene_id "{gene}"; transcript_id "{name}";'
                lines.append("\t".join([fields[0], "x", kind, str(first), str(last), ".", fields[6], "0", tail]))
    (tmp_path / "a.gtf").write_text("\n".join(lines) + "\n")
    extract(real(ECOLI[0]), tmp_path / "a.gtf", tmp_path / "gtf", ExtractSettings(("cds",), genetic_code=11, force=True))
    extract(real(ECOLI[0]), data(ECOLI[1]), tmp_path / "gff", ExtractSettings(("cds",)))
    from_gtf, from_gff = by_gene(tmp_path / "gtf", "cds"), by_gene(tmp_path / "gff", "cds")
    alone = {gene for gene, names in single.items() if len(from_gff[gene]) == len(names)}
    assert len(alone) > 4200
    assert {gene: from_gtf[gene] for gene in alone} == {gene: from_gff[gene] for gene in alone}


def test_an_annotation_of_an_older_assembly_is_found_out(real, tmp_path):
    (tmp_path / "map").write_text("chrI\tI\nchrII\t-\n")
    wanted = {"output": tmp_path / "o", "contig_names": str(tmp_path / "map"), "overwrite": True}
    with pytest.raises(DataError, match=r"'chrI' has 230208 bases, but 'I' of .* has 230218: the annotation is of another assembly"):
        extract(real(YEAST[0]), data(OLD[1]), **wanted)
    with gzip.open(data(OLD[1]), "rt") as file:  # as it is without the row that states the length
        (tmp_path / "a.gff3").write_text("".join(line for line in file if "\tchromosome\t" not in line))
    with pytest.raises(DataError, match="only 4 of 119 complete coding sequences begin with a start codon and end with a stop codon"):
        extract(real(YEAST[0]), tmp_path / "a.gff3", **wanted)
    with pytest.raises(
        DataError, match=r"'chrII' \(1 of 2 names\) is no contig of the shard. The file has chrI, chrII; the shard has chrI\."
    ):
        extract(real(OLD[0]), data(OLD[1]), tmp_path / "p")
    own = extract(real(OLD[0]), data(OLD[1]), tmp_path / "p", ExtractSettings(("cds",), skip_missing_contigs=True))
    assert (own["extraction"]["codons"]["valid"], own["extraction"]["codons"]["complete"]) == (119, 119)
    assert own["counts"]["documents"] == 121


def test_windows_of_a_chromosome_under_another_name(real, tmp_path):
    path = data("human/GRCh37_chr20_refGene.shared_regions.gtf.gz")
    found = {}
    for name, contig, offset in (
        ("GRCh37_chr20_1-2500000", "20", 0),
        ("GRCh37_chr20_20000001-30000000", "20:20000001-30000000", 20_000_000),
    ):
        base = real(f"human/{name}.fa.gz")
        with pytest.raises(DataError, match=r"'chr20' .1 of 1 names. is no contig"):
            extract(base, path, tmp_path / "o")
        (tmp_path / "map").write_text(f"chr20\t{contig}\t{offset}\n")
        manifest = extract(base, path, tmp_path / "o", ExtractSettings(("cds",)), contig_names=str(tmp_path / "map"), overwrite=True)
        codons, left_out = manifest["extraction"]["codons"], manifest["extraction"]["left_out"]
        found[contig] = (codons["valid"], codons["complete"], left_out["outside_window"])
    assert found == {"20": (55, 55, 60), "20:20000001-30000000": (59, 59, 44)}
    with pytest.raises(DataError, match=r"NAA20 on 'chr20' ends at 20014273, but '20' of .* has 2500000 bases"):
        extract(real("human/GRCh37_chr20_1-2500000.fa.gz"), path, tmp_path / "p", contig_names="chr")


def test_wormbase_transcripts_equal_the_published_ones(real, tmp_path):
    base = real("genomes/celegans_WBcel235_1pct.fa.gz")
    wanted = ExtractSettings(("transcript", "cds"), spliced=True)
    manifest = extract(base, data("genomes/celegans_WBcel235_1pct.gff3.gz"), tmp_path / "o", wanted)
    assert manifest["extraction"]["codons"]["share"] > 0.98  # the four others are cut by the end of the 1 %
    published = {}
    with gzip.open(data("genomes/celegans_transcripts.fa.gz"), "rt") as file:
        for record in file.read().split(">")[1:]:
            header, *lines = record.splitlines()
            published[header.split()[0]] = "".join(lines).upper()
    both = [
        (bases.upper(), published[name])
        for row, bases in zip(labels(tmp_path / "o"), documents(tmp_path / "o"), strict=True)
        if row["feature"] == "transcript" and (name := row["transcript"].removeprefix("Transcript:")) in published
    ]
    assert len(both) == 15
    assert sum(ours == theirs for ours, theirs in both) == 14
    assert all(theirs.startswith(ours) for ours, theirs in both)  # one is cut by the end of the 1 %


def test_soft_masked_scaffold_without_version_line(real, tmp_path):
    base = real("human/human_alt_NT_187562.1_softmasked.fa.gz")
    manifest = extract(base, data("human/human_alt_NT_187562.1.gff3.gz"), tmp_path / "o", ExtractSettings(("gene", "cds"), clade="mam"))
    assert manifest["extraction"]["annotation"]["format"] == "gff3"
    assert (manifest["extraction"]["codons"]["valid"], manifest["extraction"]["codons"]["complete"]) == (2, 2)
    assert [(row["feature"], row["type"], row["strand"], row["partial"]) for row in labels(tmp_path / "o")] == [
        ("gene", "cds", "+", "?"),
        ("cds", "cds", "+", "5"),
        ("gene", "cds", "-", "."),
        ("cds", "cds", "-", "."),
        ("gene", "pseudo", "-", "."),
        ("gene", "cds", "+", "."),
        ("cds", "cds", "+", "."),
    ]
    assert manifest["counts"]["lower_case"] == sum(letter.islower() for bases in documents(tmp_path / "o") for letter in bases) > 0


def test_volvox_as_gff3_and_as_gtf(real, tmp_path):
    base = real("awkward/volvox.fa")
    wanted = ExtractSettings(("cds", "transcript"), spliced=True, force=True)
    found = {}
    for kind in ("gff3", "gtf"):
        extract(base, data(f"awkward/volvox.{kind}"), tmp_path / kind, wanted)
        rows = zip(labels(tmp_path / kind), documents(tmp_path / kind), strict=True)
        found[kind] = {(row["feature"], row["transcript"]): bases for row, bases in rows}
    same = {key for key in found["gtf"] if key[1].startswith(("EDEN", "Apple", "rna-", "cds-"))}
    assert len(same) == 12
    # The GTF lists only the exons of Apple3 that the GFF3 has as CDS and UTR: the same bases.
    assert {key: found["gtf"][key] for key in same} == {key: found["gff3"][key] for key in same}


def test_command_line(real, tmp_path, capsys):
    from dnapretrain.cli import main

    arguments = [str(real(ECOLI[0])), "--annotation", str(data(ECOLI[1])), "--output", str(tmp_path / "o")]
    assert main(["extract", *arguments, "--features", "gene,promoter", "--promoter", "300:50", "--flank", "20", "--clade", "bct"]) == 0
    assert "codons       complete coding sequences with start and stop codon: 4,298 of 4,298 (100.00 %)" in capsys.readouterr().out
    manifest = json.loads(shard_file(tmp_path / "o", "json").read_text())
    assert manifest["extraction"]["settings"]["promoter"] == [300, 50]
    assert manifest["extraction"]["documents"]["feature"] == {"gene": 4639, "promoter": 4640}
    assert main(["extract", *arguments]) == 2
    assert "exists already" in capsys.readouterr().err
