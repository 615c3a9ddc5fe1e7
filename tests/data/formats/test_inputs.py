"""Every format and packing gives the same bases; what is cut, damaged or no sequence is an error with its place."""

from __future__ import annotations

import gzip
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import sequence_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fasta import scan

from dnapretrain import _core
from dnapretrain.data.formats import twobit
from dnapretrain.data.formats.fasta import CutPolicy, FastaFile
from dnapretrain.data.formats.fastq import fastq_as_fasta
from dnapretrain.data.formats.flatfile import embl_as_fasta, genbank_as_fasta, gff3_as_fasta
from dnapretrain.data.formats.inputs import find_inputs, strip_suffixes
from dnapretrain.errors import DataError

FORMATS = {
    "FASTA": files.fasta,
    "FASTQ": files.fastq,
    "2bit": files.two_bit,
    "GenBank": files.genbank,
    "EMBL": files.embl,
    "GFF3": files.gff3,
}
TRANSLATORS = {"FASTQ": fastq_as_fasta, "GenBank": genbank_as_fasta, "EMBL": embl_as_fasta, "GFF3": gff3_as_fasta}
RECORDS = [("chr1.1", "ACGTNNACGTTTGACA" * 30 + "N" * 15 + "GGC"), ("chr2.7", "T" * 61), ("c3.2", "ACG")]
NEVER_SPLIT = 10**9


def read(path: Path, min_n_run: int = 10) -> tuple[str, list[tuple[str, str, tuple[int, int]]], FastaFile]:
    """Bases of all documents; name, description and coordinates of each."""
    file = FastaFile(path, CutPolicy(min_n_run))
    bases, documents, headers = b"", [], []
    for block in file.blocks():
        bases += block.bases.tobytes()
        documents += block.documents.tolist()
        headers += block.headers
        assert int(block.counts[:, _core.RECORD_COUNTS.index("total")].sum()) == int(
            sum(block.counts[:, _core.RECORD_COUNTS.index(name)].sum() for name in ("kept", "n_run", "short_bases"))
        )
    return bases.decode(), [(*headers[number], (start, end)) for number, start, end in documents], file


@pytest.mark.parametrize("packing", files.PACKINGS)
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_and_packings_agree(tmp_path, kind, packing):
    (tmp_path / "plain.fa").write_bytes(files.fasta(RECORDS))
    path = tmp_path / "named_like_nothing"
    path.write_bytes(files.PACKINGS[packing](FORMATS[kind](RECORDS)))
    if kind == "2bit" and packing != "plain":
        with pytest.raises(DataError, match="line 1: this is 2bit data inside a packed file"):
            read(path)
        return
    expected, found = read(tmp_path / "plain.fa"), read(path)
    assert found[0] == expected[0]
    assert [(name, where) for name, _, where in found[1]] == [(name, where) for name, _, where in expected[1]]
    assert {text for _, text, _ in found[1]} == ({""} if kind == "2bit" else {"text"})
    assert found[2].format == kind
    assert found[2].bytes_read == path.stat().st_size
    import xxhash

    assert found[2].xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())


@pytest.mark.parametrize("packing", ["gzip", "zstd", "xz", "bzip2"])
def test_frames_follow_each_other_and_nothing_is_lost_in_silence(tmp_path, packing):
    pack = files.PACKINGS[packing]
    text = files.fasta([("a", "ACGT" * 200_000), ("b", "GATTACA" * 1000)])
    path = tmp_path / "x.fa"
    path.write_bytes(text)
    expected = read(path)[:2]
    frames = pack(text[:1000]) + pack(b"") + pack(text[1000:])
    path.write_bytes(frames)
    assert read(path)[:2] == expected
    for damaged in (frames[:-3], frames[: len(frames) // 2], frames[:-1], frames + b"junk", frames + b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.fa: line \d+.*the \w+ file is (truncated|damaged) here"):
            read(path)
    path.write_bytes(frames[:10] + b"\xff" * 40 + frames[50:])
    with pytest.raises(DataError, match=r"x\.fa: line 1: "):
        read(path)


def test_xz_padding_between_streams_is_allowed(tmp_path):
    pack = files.PACKINGS["xz"]
    (tmp_path / "x").write_bytes(pack(b">a\nACG") + bytes(8) + pack(b"T\n") + bytes(200_000))
    assert read(tmp_path / "x")[0] == "ACGT"


BASES = st.text("ACGTNacgtn", max_size=150)
NAMES = [f"r{number}.{number + 1}" for number in range(6)]


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(TRANSLATORS)),
    bases=st.lists(BASES, min_size=1, max_size=6),
    newline=st.sampled_from(["\n", "\r\n"]),
    width=st.sampled_from([1, 7, 60, 10**9]),
    repeat_title=st.booleans(),
    final_newline=st.booleans(),
    blocks=st.sampled_from([1, 3, 50, 1000, 10**6]),
)
def test_line_formats_equal_fasta_line_for_line(kind, bases, newline, width, repeat_title, final_newline, blocks):
    records = [(name, text + "A") for name, text in zip(NAMES, bases, strict=False)]
    text = FORMATS[kind](records, newline=newline, **({"width": width, "repeat_title": repeat_title} if kind == "FASTQ" else {}))
    text = text if final_newline else text[: -len(newline)]
    made = b"".join(map(bytes, TRANSLATORS[kind](iter([text[start : start + blocks] for start in range(0, len(text), blocks)]))))
    if kind in ("GenBank", "EMBL"):
        records = [(name, sequence.upper()) for name, sequence in records]
    assert scan(made) == scan(files.fasta(records))
    assert made.rstrip(b"\n").count(b"\n") <= text.count(b"\n") <= made.count(b"\n")
    for name, _ in records:  # the header of each record is on its line, or in its record's lines
        assert made[: made.index(f">{name}".encode())].count(b"\n") >= text[: text.index(name.split(".")[0].encode())].count(b"\n")


@settings(max_examples=60, deadline=None)
@given(
    bases=st.lists(st.lists(st.sampled_from(["ACGT", "acg", "N", "nn", "T" * 37, "gN"]), max_size=30).map("".join), min_size=1, max_size=5),
    order=st.sampled_from("<>"),
    version=st.sampled_from([0, 1]),
    piece=st.sampled_from([4, 8, 64, 1 << 20]),
)
def test_two_bit_is_exact(tmp_path_factory, bases, order, version, piece):
    records = [(name, text + "A") for name, text in zip(NAMES, bases, strict=False)]
    path = tmp_path_factory.mktemp("twobit") / "x"
    path.write_bytes(files.two_bit(records, order, version))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twobit, "PIECE", piece)
        found = read(path, NEVER_SPLIT)
    assert found[0] == "".join(text for _, text in records)
    assert [name for name, _, _ in found[1]] == [name for name, _ in records]
    assert found[2].bytes_read == path.stat().st_size


@pytest.mark.parametrize(("kind", "bio"), [("FASTQ", "fastq"), ("GenBank", "genbank"), ("EMBL", "embl"), ("2bit", "twobit")])
def test_biopython_reads_the_same(tmp_path, kind, bio):
    from Bio import SeqIO

    data = FORMATS[kind](RECORDS)
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") if bio == "twobit" else io.StringIO(data.decode()) as file:
        expected = [(record.id, str(record.seq)) for record in SeqIO.parse(file, bio)]
    assert expected == RECORDS
    bases, documents, _ = read(tmp_path / "x", NEVER_SPLIT)
    assert (bases, [name for name, _, _ in documents]) == ("".join(text for _, text in expected), [name for name, _ in expected])


def test_two_bit_of_a_large_contig_is_read_in_little_memory(tmp_path):
    size = 200_000_000  # 200 MB of bases from 50 MB, mostly a hole in the file
    head = files.two_bit([("chr1", "")])[:-16]
    path = tmp_path / "x.2bit"
    path.write_bytes(head + struct.pack("<7I", size, 1, 8, size - 8, 0, 0, 0))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size // 4)
    code = """
import resource, sys
from pathlib import Path
from dnapretrain.data.formats.fasta import CutPolicy, FastaFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(len(block.bases) for block in FastaFile(Path(sys.argv[1]), CutPolicy()).blocks())
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kept, kilobytes = map(int, result.stdout.split())
    assert kept == 8  # all but the first 8 are N
    assert kilobytes < 60_000


GENBANK = files.genbank([("A.1", "ACGT" * 40)])
EMBL = files.embl([("A.1", "ACGT" * 40)])
TWO_BIT = files.two_bit([("chr1", "ACGTNNNN" * 40)])
ERRORS = {
    "FASTQ without '+'": (b"@a\nACGT\n@b\nACGT\n+\nIIII\n", "line 3, record 'a': '@' where sequence or '+' should follow"),
    "FASTQ, fewer qualities": (b"@a\nACGT\n+\nIII\n@b\nACGT\n+\nIIII\n", "line 5, record 'a': 4 bases but at least 5 qualities"),
    "FASTQ, more qualities": (b"@a\nACGT\n+\nIIIII\n", "line 4, record 'a': 4 bases but at least 5 qualities"),
    "FASTQ, CR within lines": (b"@a\r\nAC\rGT\r\n+\r\nIII\rI\r\n", "line 4, record 'a': 4 bases but at least 5 qualities"),
    "FASTQ, form feed among qualities": (b"@a\nACGT\n+\n\fIIII\n", "line 4, record 'a': 4 bases but at least 5 qualities"),
    "FASTQ, more lines": (b"@a\nACGT\n+\nIIII\nIIII\n", "line 5: a FASTQ record begins with '@', this line with b'I'"),
    "FASTQ, cut in qualities": (
        b"@a\nAC\n+\nII\n@b\nACGT\n+\nII",
        "line 9, record 'b': the file ends inside this record, after 4 bases and 2",
    ),
    "FASTQ, cut after '+'": (b"@a\nAC\n+\n", "line 4, record 'a': the file ends inside this record"),
    "FASTQ, other title": (b"@a\nAC\n+b\nII\n", "line 3, record 'a': the '+' line names another record"),
    "FASTQ, hidden record": (b"@a\n>AC\n+\nIII\n", "line 2, record 'a': '>' where sequence"),
    "FASTQ, blank then '>'": (b"@a\n >AC\n+\nIIII\n", "line 2, record 'a': '>' where sequence"),
    "FASTQ of protein": (b"@a\nACGT\n+\nIIII\n@b\nMKLV\n+\nIIII\n", "line 6, record 'b': 'L' is an amino acid"),
    "FASTQ, same name": (b"@a\nAC\n+\nII\n@a\nAC\n+\nII\n", "line 5, record 'a': this name was used at line 1 already"),
    "FASTQ without name": (b"@\nAC\n+\nII\n", "line 1: the record that begins here has no name"),
    "GenBank, cut": (GENBANK[:-20], "record 'A.1': the file ends inside this record: the line '//' is missing"),
    "GenBank, line missing": (
        GENBANK.replace(b"       61 acgt", b"       65 acgt"),
        "line 8, record 'A.1': position 65 is printed where 61",
    ),
    "GenBank, shorter": (GENBANK.replace(b"160 bp", b"170 bp"), "line 10, record 'A.1': 160 bases, but its first line says 170"),
    "GenBank, protein": (GENBANK.replace(b"160 bp", b"160 aa"), "line 1: this is a protein record"),
    "GenBank, no sequence": (b"LOCUS  A  4 bp\nCONTIG      join(x:1..4)\n//\n", "line 3, record 'A': the record has no sequence"),
    "GenBank, amino acids": (GENBANK.replace(b"        1 acgt", b"        1 mklv"), "line 7, record 'A.1': 'L' is an amino acid"),
    "GenBank, binary": (GENBANK.replace(b"        1 acgt", b"        1 ac\x00t"), "line 7, record 'A.1': a sequence line that holds more"),
    "GenBank, junk between": (GENBANK + b"junk\n", "line 11: a GenBank record begins with LOCUS"),
    "GenBank, same name": (GENBANK * 2, "line 16, record 'A.1': this name was used at line 6 already"),
    "EMBL, cut": (EMBL[:-3], "record 'A.1': the file ends inside this record"),
    "EMBL, line missing": (EMBL.replace(b"120\n", b"121\n"), "line 7, record 'A.1': position 121 is printed where 120"),
    "EMBL, longer": (EMBL.replace(b"160 BP.", b"150 BP."), "160 bases, but its first line says 150"),
    "UniProt": (b"ID   001R_FRG3G   Reviewed;   256 AA.\n", "line 1: this is a protein record"),
    "GFF3 alone": (b"##gff-version 3\na\t.\tgene\t1\t2\t.\t+\t.\tID=x\n", "line 3: GFF3 without a ##FASTA part"),
    "GFF3, bad base": (files.gff3([("a", "ACGE")]), "line 5, record 'a': 'E' is an amino acid"),
    "2bit, cut": (TWO_BIT[:-1], "record 'chr1': reaches byte"),
    "2bit, cut in the header": (TWO_BIT[:9], "header: reaches byte 16, the file ends at 9"),
    "2bit, cut in the index": (TWO_BIT[:20], "index, entry 1: reaches byte"),
    "2bit, version": (TWO_BIT[:4] + b"\x02" + TWO_BIT[5:], "2bit version 2 is not known"),
    "2bit, same name": (files.two_bit([("a", "ACGT"), ("a", "ACGT")]), "index, entry 2: the name 'a' is used twice"),
    "2bit, bad name": (files.two_bit([("a b", "ACGT")]), "index, entry 1: the name b'a b'"),
    "2bit, blocks": (
        TWO_BIT.replace(struct.pack("<I", 4), struct.pack("<I", 9), 1),
        "record 'chr1': blocks overlap or reach beyond its 320",
    ),
    "SAM": (b"@HD\tVN:1.6\n", "line 1: this is SAM"),
    "BAM": (gzip.compress(b"BAM\x01" + bytes(100)), "line 1: this is BAM"),
    "VCF": (b"##fileformat=VCFv4.2\n", "line 1: this is VCF"),
    "zip": (b"PK\x03\x04" + bytes(50), "line 1: this is a zip archive"),
    "junk": (bytes(range(1, 200)), "line 1: byte 0x01 before the first '>': the file is binary"),
    "truncated magic": (b"\x28\xb5\x2f\xfd", "the Zstandard file is truncated here"),
    "empty zstd": (files.PACKINGS["zstd"](b""), "line 1: the file is empty"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_place(tmp_path, case):
    data, message = ERRORS[case]
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "bad")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'bad'}: ")
    assert "\n" not in str(caught.value)


def test_endless_line_is_refused():
    with pytest.raises(ValueError, match="line 2: a line of more than 256 MiB"):
        for _ in fastq_as_fasta(iter([b"@a\n", *[b"A" * (1 << 26)] * 5])):
            pass


HEADS = [b"", b">a\n", b"@a\nAC\n+\nII\n", b"LOCUS       A 4 bp\n", b"ID   A; SV 1; 4 BP.\n", b"##gff-version 3\n##FASTA\n"]
HEADS += [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh9", b"CB\x41\x1a", TWO_BIT[:20], TWO_BIT]
SOUND = [make(RECORDS) for make in FORMATS.values()] + [pack(files.fasta(RECORDS)) for pack in files.PACKINGS.values()]


def sound_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read(path)  # checks that kept and dropped bases add up
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "f"


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=400))
def test_random_bytes_never_crash(fuzzed, head, rest):
    sound_or_refused(fuzzed, head + rest)


@settings(max_examples=300, deadline=None)
@given(data=st.sampled_from(SOUND), start=st.integers(0, 1000), length=st.integers(0, 50), put=st.binary(max_size=20))
def test_damaged_files_never_crash(fuzzed, data, start, length, put):
    start %= len(data)
    sound_or_refused(fuzzed, data[:start] + put + data[start + length :])


def make_tree(folder: Path) -> None:
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("b.fa", "a.fq.gz", "c.2bit", "notes.txt", "g.gbff.gz", ".fa", "sub/d.fna.zst", "sub/deep/e.fasta", "x[1].fa", "x1.fa"):
        (folder / name).write_bytes(b">a\nACGT\n")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["b.fa", "notes.txt"], ["b.fa", "notes.txt"]),
        (["."], ["a.fq.gz", "b.fa", "c.2bit", "x1.fa", "x[1].fa"]),
        (["sub/deep", "b.fa"], ["sub/deep/e.fasta", "b.fa"]),
        (["*.fa"], ["b.fa", "x1.fa", "x[1].fa"]),
        (["**/*.f*a*"], ["b.fa", "sub/d.fna.zst", "sub/deep/e.fasta", "x1.fa", "x[1].fa"]),
        (["x[1].fa"], ["x[1].fa"]),
        (["x[12].fa"], ["x1.fa"]),
        (["@list.txt", "b.fa"], ["c.2bit", "sub/d.fna.zst", "sub/deep/e.fasta", "b.fa"]),
    ],
)
def test_what_inputs_stand_for(tmp_path, monkeypatch, items, expected):
    make_tree(tmp_path)
    (tmp_path / "list.txt").write_text("# my files\nc.2bit\n\n  sub/d*\r\nsub/deep\n")
    monkeypatch.chdir(tmp_path)
    paths, notes = find_inputs([Path(item) for item in items])
    assert [str(path) for path in paths] == expected
    assert notes == (
        [".: 1 GenBank, EMBL or GFF3 file(s) left out, g.gbff.gz first. Name them to read their sequence"] if items == ["."] else []
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("*.fasta", "*.fasta: no file matches this pattern"),
        ("@none.txt", "none.txt: the list cannot be read: No such file"),
        ("@binary", "binary: not a list of paths"),
        ("@nested", "nested: line 2: '@list' is a list inside a list"),
        ("@pattern", "pattern: line 1: *.nothing: no file matches"),
        ("@empty", "no input"),
        ("sub", "sub: no FASTA files"),
    ],
)
def test_inputs_that_stand_for_nothing(tmp_path, monkeypatch, item, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name, data in {"binary": b"\xff\xfe", "nested": b"a\n@list\n", "pattern": b"*.nothing\n", "empty": b"# none\n"}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=re.escape(message)):
        find_inputs([Path(item)])


def test_assembly_names():
    names = ("hg38.fa.gz", "x.y.FASTA", "a.fna", "b.txt", "c.gz", ".fa", "r.fq.zst", "hs1.2bit", "e.gbff.xz", "s.gff3.bgz")
    assert [strip_suffixes(name) for name in names] == ["hg38", "x.y", "a", "b.txt", "c", ".fa", "r", "hs1", "e", "s"]


def test_quads_hold_four_letters_each():
    assert twobit.QUADS[[0b00011011, 0b11111110]].tobytes() == b"TCAGGGGA"
