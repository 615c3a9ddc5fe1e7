"""`inspect` by known answers on a small shard."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import sequence_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.cli import main
from dnapretrain.data.genes.extract import extract
from dnapretrain.data.genes.gene_regions import settings_from_text
from dnapretrain.data.look.inspect import format_inspection, inspect_shard, length_histogram
from dnapretrain.data.look.inspect_locus import read_locus
from dnapretrain.data.look.inspect_picture import draw_shard
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.variants.haplotypes import make_haplotypes
from dnapretrain.errors import ConfigError, DataError


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    text = b">chr1\nGGGGCCacTTAA\n>chr2\nRU" + b"N" * 10 + b"NA" + b"C" * 70 + b"\n>e\n>chr3\nAN\n>chr4\nTTTTTT\n"
    (tmp_path / "asm.fa").write_bytes(text)
    preprocess([tmp_path / "asm.fa"], tmp_path / "s", min_length=3)
    return tmp_path / "s"


def test_values(prefix):
    found = inspect_shard(prefix)
    # kept: chr1 (12), chr2 after the run (71), chr4 (6); RU and AN are short
    assert (found["documents"], found["bases"]) == (3, 89)
    assert found["composition"] == {"A": 4, "C": 73, "G": 4, "T": 8, "N": 0, "other": 0}
    assert found["gc"] == 77 / 89
    assert found["n_share"] == 0
    assert found["lower_case_share"] == 2 / 89
    assert found["lengths"] == {"min": 6, "median": 12, "n50": 71, "max": 71}
    assert found["contigs"]["number"] == 3
    assert found["contigs"]["longest"][0] == {"assembly": "asm", "contig": "chr2", "bases": 71}
    assert [document["locus"] for document in found["first"]] == ["asm:chr1:1-12", "asm:chr2:14-84", "asm:chr4:1-6"]
    assert found["first"][0]["bases"] == "GGGGCCacTTAA"
    assert found["first"][1]["bases"] == "A" + "C" * 59
    assert found["first"][1]["is_longer"]
    assert found["counts"]["dropped_bases"] == {"n_run": 11, "short": 4}
    assert found["counts"]["empty_records"] == 1
    assert json.loads(json.dumps(found)) == found


def test_text(prefix):
    text = format_inspection(inspect_shard(prefix, check=True))
    for line in (
        "documents    3",
        "bases        89",
        "composition  A 4  C 73  G 4  T 8  N 0  other 0",
        "lower case   2.25 %",
        "lengths      min 6  median 12  N50 71  max 71",
        "left out     of 104 bases: n_run 11, short 4; short documents 2",
        "document     asm:chr1:1-12 (+)  GGGGCCacTTAA",
    ):
        assert line in text.split("\n")
    assert "files agree with the manifest" in text


def test_check_finds_a_changed_base(prefix):
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes().replace(b"ac", b"ag"))
    assert not inspect_shard(prefix)["checked"]
    with pytest.raises(DataError, match=r"s\.bin: XXH3-128"):
        inspect_shard(prefix, check=True)


def test_half_of_the_bases_lie_in_documents_of_n50_or_longer(tmp_path):
    (tmp_path / "a.fa").write_bytes(b"".join(b">r%d\n%s\n" % (i, b"A" * size) for i, size in enumerate((2, 2, 2, 3, 3, 4, 8, 8))))
    preprocess([tmp_path / "a.fa"], tmp_path / "s")  # 32 bases: 8 + 8 are half
    assert inspect_shard(tmp_path / "s")["lengths"] == {"min": 2, "median": 3, "n50": 8, "max": 8}


def test_number_of_documents_shown(prefix):
    assert [len(inspect_shard(prefix, documents=number)["first"]) for number in (0, 2, 99)] == [0, 2, 3]
    with pytest.raises(ConfigError, match="--documents = -1 is below 0"):
        inspect_shard(prefix, documents=-1)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 12) | st.integers(1, 2 * 10**9), min_size=1, max_size=30))
def test_histogram_equals_slow_python(lengths):
    rows = length_histogram(np.array(lengths))
    assert rows[0]["from"] <= min(lengths) <= rows[0]["to"]
    assert rows[-1]["from"] <= max(lengths) <= rows[-1]["to"]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        inside = [length for length in lengths if row["from"] <= length <= row["to"]]
        assert (row["documents"], row["bases"]) == (len(inside), sum(inside))
        assert str(row["from"]).rstrip("0") in ("1", "2", "5")
        assert following is None or following["from"] == row["to"] + 1


def test_histogram_and_sources_in_text(tmp_path):
    (tmp_path / "a.fq").write_bytes(files.fastq([("x", "ACGTAC" * 50), ("y", "AC" * 50), ("z", "A" * 20)]))
    (tmp_path / "b.fa").write_bytes(b">c\n" + b"acgt" * 10 + b"\n")
    inputs = [tmp_path / "a.fq", tmp_path / "b.fa", tmp_path / "none.fa"]
    preprocess(inputs, tmp_path / "s", on_error="skip")
    text = format_inspection(inspect_shard(tmp_path / "s"))
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith("lengths"))
    assert [re.sub(" +", " ", line).strip() for line in lines[at + 1 : at + 5]] == [
        "20 to 49 | ######## 13.04 % of bases, 2 document(s)",
        "50 to 99 | 0.00 % of bases, 0 document(s)",
        "100 to 199 | ############## 21.74 % of bases, 1 document(s)",
        "200 to 499 | ######################################## 65.22 % of bases, 1 document(s)",
    ]
    assert "a.fq (a), FASTQ, " in text
    assert "b.fa (b), FASTA, all lower case, written in upper case, " in text
    assert f"skipped      {tmp_path / 'none.fa'}: no such file" in text


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height; every chunk's checksum must be right."""
    data, at = path.read_bytes(), 8
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        assert zlib.crc32(data[at + 4 : at + 8 + length]) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        at += 12 + length
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("text", [b">c\nA\n", b">n\nNNN\n", b"".join(b">r%d\n%s\n" % (n, b"ACGGT" * (n + 1)) for n in range(60))])
def test_a_picture_of_any_shard(tmp_path, capsys, text):
    (tmp_path / "x.fa").write_bytes(text)
    preprocess([tmp_path / "x.fa"], tmp_path / "s")
    assert main(["inspect", str(tmp_path / "s"), "--picture", str(tmp_path / "deep" / "p.png"), "--documents", "0"]) == 0
    assert "document     " not in capsys.readouterr().out
    assert size_of_png(tmp_path / "deep" / "p.png") == (1800, 1140)
    with pytest.raises(ConfigError, match=r"p\.jpg does not end in \.png"):
        draw_shard(tmp_path / "s", tmp_path / "p.jpg")


GENES = """##gff-version 3
c1	x	gene	11	40	.	-	.	ID=g1
c1	x	mRNA	11	40	.	-	.	ID=t1;Parent=g1
c1	x	exon	11	18	.	-	.	Parent=t1
c1	x	exon	31	40	.	-	.	Parent=t1
c1	x	gene	51	60	.	+	.	ID=g2
c1	x	mRNA	51	60	.	+	.	ID=t2;Parent=g2
c1	x	exon	51	60	.	+	.	Parent=t2
"""


@pytest.fixture
def contig() -> str:
    return "".join(np.array(list("ACGTacgt"))[np.random.default_rng(5).integers(0, 8, 80)])


@pytest.fixture
def genes(tmp_path: Path, contig: str) -> Path:
    (tmp_path / "asm.fa").write_text(f">c1\n{contig}\n")
    (tmp_path / "g.gff3").write_text(GENES)
    preprocess([tmp_path / "asm.fa"], tmp_path / "base")
    extract(tmp_path / "base", tmp_path / "g.gff3", tmp_path / "genes", settings_from_text("transcript", None, None, spliced=True))
    return tmp_path / "genes"


@pytest.mark.parametrize("start", [1, 11, 14, 18, 19, 30, 31, 52])
@pytest.mark.parametrize("end", [12, 18, 19, 31, 36, 40, 41, 55, 80])
def test_a_locus_of_spliced_and_reversed_documents_reads_as_the_contig(genes, contig, start, end):
    if start > end:
        return
    found = read_locus(open_shard(genes), f"asm:c1:{start}-{end}")
    seen = set()
    for piece in found["pieces"]:
        first, last = map(int, piece["locus"].rpartition(":")[2].split("-"))
        assert piece["bases"] == contig[first - 1 : last]
        assert piece["strand"] == ("-" if last <= 40 else "+")
        seen |= set(range(first, last + 1))
    exons = {*range(11, 19), *range(31, 41), *range(51, 61)}
    assert seen == exons & set(range(start, end + 1))
    missing = {at for text in found["missing"] for at in range(int(text.split(":")[2].split("-")[0]), int(text.split("-")[1]) + 1)}
    assert missing == set(range(start, end + 1)) - seen


def test_labels_are_counted(genes):
    found = inspect_shard(genes)
    assert found["labels"]["feature"] == {"transcript": 2}
    assert found["labels"]["strand"] == {"-": 1, "+": 1}
    assert "by feature   transcript 2" in format_inspection(found).split("\n")


def test_a_locus_of_haplotypes(tmp_path):
    bases = "ACGTACGGTTCAGGATCCAT"
    (tmp_path / "ref.fa").write_text(f">c\n{bases}\n")
    preprocess([tmp_path / "ref.fa"], tmp_path / "ref")
    head = "##fileformat=VCFv4.2\n##contig=<ID=c,length=20>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n"
    rows = ["c\t5\t.\tA\tATTT\t.\t.\t.\tGT\t0|1\n", "c\t9\t.\tTTC\tT\t.\t.\t.\tGT\t1|0\n", "c\t15\t.\tA\tG\t.\t.\t.\tGT\t1|1\n"]
    (tmp_path / "v.vcf").write_text(head + "".join(rows))
    make_haplotypes(tmp_path / "ref", [tmp_path / "v.vcf"], tmp_path / "h", samples="all")
    shard = open_shard(tmp_path / "h")

    def read(text: str) -> dict[str, str]:
        return {piece["haplotype"]: piece["bases"] for piece in read_locus(shard, text)["pieces"]}

    assert read("c:1-20") == {"S.1": "ACGTACGGT" + "AGGGTCCAT", "S.2": "ACGTATTTCGGTTCAGGGTCCAT"}
    assert read("c:4-6") == {"S.1": "TAC", "S.2": "TATTTC"}
    assert read("c:6-6") == {"S.1": "C", "S.2": "C"}
    assert read("c:9-12") == {"S.1": "TA", "S.2": "TTCA"}
    assert read("c:15-15") == {"S.1": "G", "S.2": "G"}
    found = inspect_shard(tmp_path / "h")
    assert found["haplotypes"] == {"number": 2, "samples": 1, "edits": 4, "first": ["S.1", "S.2"]}
    assert "haplotypes   2 of 1 sample(s), 4 edits: S.1, S.2" in format_inspection(found).split("\n")


def test_locus_command(prefix, capsys):
    assert main(["inspect", str(prefix), "--locus", "chr2:10-16"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ">asm:chr2:14-16 document=1\nACC\n"
    assert printed.err == "dnapretrain: not in the shard: asm:chr2:10-13\n"
    assert main(["inspect", str(prefix), "--locus", "asm:chr3:1-2"]) == 2
    assert "the shard has no contig 'asm:chr3'. Near names: asm:chr" in capsys.readouterr().err
    assert main(["inspect", str(prefix), "--locus", "asm:chr1:90-95", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"asked": "asm:chr1:90-95", "pieces": [], "missing": ["asm:chr1:90-95"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [("chr1", "is not a locus"), ("chr1:5-4", "starts at 5 and ends at 4"), ("chr1:0-4", "starts at 0"), ("chr1:-", "is not a locus")],
)
def test_locus_errors(prefix, text, says):
    with pytest.raises(ConfigError, match=says):
        read_locus(open_shard(prefix), text)


def test_a_contig_of_two_assemblies_needs_its_assembly(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.fa").write_text(f">c\nACGT{name.upper().replace('B', 'C')}\n")
    preprocess([tmp_path / "a.fa", tmp_path / "b.fa"], tmp_path / "s")
    with pytest.raises(ConfigError, match=r"'c' is in 2 assemblies\. Give one: a:c, b:c"):
        read_locus(open_shard(tmp_path / "s"), "c:1-2")
    assert read_locus(open_shard(tmp_path / "s"), "b:c:4-5")["pieces"][0]["bases"] == "TC"
