"""The native FASTA scanner against a slow Python one, and gzip files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain import _core
from dnapretrain.data.formats.fasta import MAX_DOCUMENT, CutPolicy, FastaFile
from dnapretrain.errors import DataError

COUNTS = _core.RECORD_COUNTS


def scan(text: bytes, blocks: int = 4096, min_n_run: int = 10, min_length: int = 1, max_length: int = MAX_DOCUMENT):
    scanner = _core.FastaScanner(min_n_run, min_length, max_length)
    bases, documents, headers, counts = b"", [], [], []
    steps = [text[start : start + blocks] for start in range(0, len(text), blocks)]
    for step in [*steps, None]:
        if step is None:
            scanner.finish()
        else:
            scanner.feed(step)
        part = scanner.take()
        bases += part[0].tobytes()
        documents += [tuple(row) for row in part[1].tolist()]
        headers += part[2]
        counts += [dict(zip(COUNTS, row, strict=True)) for row in part[3].tolist()]
    return bases, documents, headers, counts


def slow_scan(text: bytes, min_n_run: int, min_length: int, max_length: int):
    """The same by regular expressions over whole records."""
    bases, documents, headers, counts = b"", [], [], []
    for number, part in enumerate(re.split(rb"(?m)^>", text)[1:]):
        header, _, body = part.partition(b"\n")
        sequence = re.sub(rb"\s", b"", body)
        clean = sequence.replace(b"U", b"T").replace(b"u", b"t")
        count = dict.fromkeys(COUNTS, 0) | {"total": len(sequence)}
        count["n_run"] = sum(len(run) for run in re.findall(rb"[Nn]{%d,}" % min_n_run, clean))
        edges = [0]
        for run in re.finditer(rb"[Nn]{%d,}" % min_n_run, clean):
            edges += [run.start(), run.end()]
        edges.append(len(clean))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            length = end - start
            if length == 0:
                continue
            if length < min_length:
                count["short_bases"] += length
                count["short_documents"] += 1
                continue
            kept, original = clean[start:end], sequence[start:end]
            bases += kept
            count["kept"] += length
            count["lower_case"] += len(re.findall(rb"[a-z]", kept))
            count["n"] += len(re.findall(rb"[Nn]", kept))
            count["ambiguous"] += len(re.findall(rb"[^ACGTNacgtn]", kept))
            count["u_converted"] += len(re.findall(rb"[Uu]", original))
            parts = -(-length // max_length)
            sizes = [length // parts + (i < length % parts) for i in range(parts)]
            count["documents"] += parts
            for size in sizes:
                documents.append((number, start, start + size))
                start += size
        headers.append(header.strip())
        counts.append(count)
    return bases, documents, headers, counts


sequence_lines = st.lists(
    st.one_of(
        st.text("ACGTacgtNnUuRYKMSWBDHV", max_size=30),
        st.text("ACGT", max_size=30),
        st.integers(0, 40).map(lambda count: "N" * count),
        st.integers(200, 600).map(lambda count: "acgtA" * (count // 5)),
        st.integers(200, 600).map(lambda count: "Nn" * (count // 2)),
        st.sampled_from(["", " ", "\t", "AC GT ", "ACGT\t"]),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(sequence_lines, min_size=1, max_size=5),
    newline=st.sampled_from(["\n", "\r\n"]),
    leading=st.sampled_from(["", "\n", "\r\n \n"]),
    final_newline=st.booleans(),
    blocks=st.sampled_from([1, 2, 7, 61, 4096]),
    min_n_run=st.sampled_from([1, 2, 5, 10, 300]),
    min_length=st.sampled_from([1, 3, 25, 400]),
    max_length=st.sampled_from([800, 1000, MAX_DOCUMENT]),
)
def test_scanner_equals_slow_python(records, newline, leading, final_newline, blocks, min_n_run, min_length, max_length):
    lines = [line for number, record in enumerate(records) for line in [f">r{number} text {number}", *record, "A"]]
    text = (leading + newline.join(lines) + (newline if final_newline else "")).encode()
    expected = slow_scan(text, min_n_run, min_length, max_length)
    assert scan(text, blocks, min_n_run, min_length, max_length) == expected


@pytest.mark.parametrize("blocks", [1, 3, 4096])
@pytest.mark.parametrize(
    ("text", "bases", "documents"),
    [
        (b">a\nACGT\n", b"ACGT", [(0, 0, 4)]),
        (b">a\nACGT", b"ACGT", [(0, 0, 4)]),
        (b">a\r\nAC\r\nGT\r\n", b"ACGT", [(0, 0, 4)]),
        (b"\n\n>a x y\n\nAC\n\n\nGT\n\n", b"ACGT", [(0, 0, 4)]),
        (b">a\nac GT \t\n", b"acGT", [(0, 0, 4)]),
        (b">a\n>b\nAC\n>c\n", b"AC", [(1, 0, 2)]),
        (b">a\nAUug\n", b"ATtg", [(0, 0, 4)]),
        (b">a\nNNNNNNNNN\n", b"NNNNNNNNN", [(0, 0, 9)]),
        (b">a\nNNNNN\nnnnnn\nACGT\n", b"ACGT", [(0, 10, 14)]),
        (b">a\nACNNNNNNNNNNGT\n>b\nNNNNNNNNNNNN\n", b"ACGT", [(0, 0, 2), (0, 12, 14)]),
        (b">a\nACNNNNNNNNNGTNNNNNNNNNN\n", b"ACNNNNNNNNNGT", [(0, 0, 13)]),
        (b">a\nNNNNN\n>b\nNNNNNA\n", b"NNNNNNNNNNA", [(0, 0, 5), (1, 0, 6)]),
    ],
)
def test_known_answers(text, bases, documents, blocks):
    assert scan(text, blocks)[:2] == (bases, documents)


def test_counts_known_answer():
    text = b">a first record\nACGTacgtNnRyUu\n" + b"N" * 12 + b"\nAC\n" + b"n" * 10 + b"\nACGTA\n>empty\n"
    _, documents, headers, counts = scan(text, min_length=3)
    assert headers == [b"a first record", b"empty"]
    assert documents == [(0, 0, 14), (0, 38, 43)]
    assert counts[0] == {
        "total": 43,
        "kept": 19,
        "lower_case": 7,
        "n": 2,
        "ambiguous": 2,
        "u_converted": 2,
        "n_run": 22,
        "short_bases": 2,
        "documents": 2,
        "short_documents": 1,
    }
    assert counts[1]["total"] == 0


def test_long_segment_is_cut_into_equal_parts():
    _, documents, _, counts = scan(b">a\n" + b"A" * 25 + b"\n", max_length=10)
    assert documents == [(0, 0, 9), (0, 9, 17), (0, 17, 25)]
    assert counts[0]["documents"] == 3


def test_one_line_longer_than_the_stage():
    bases, documents, _, _ = scan(b">a\n" + b"ACGTN" * 200_000 + b"\n", blocks=1_000_003)
    assert bases == b"ACGTN" * 200_000
    assert documents == [(0, 0, 1_000_000)]


def test_scanner_holds_little_between_blocks():
    scanner = _core.FastaScanner(10, 1, MAX_DOCUMENT)
    scanner.feed(b">a\n")
    for _ in range(50):
        scanner.feed(b"ACGT" * 1000)
        assert len(scanner.take()[0]) == 4000  # nothing is held back until the record ends


@pytest.mark.parametrize("blocks", [1, 7, 4096])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"\n\n \n", "line 4: no record: the file holds only blank lines"),
        (b">a\n>b\n", "line 3, record 'b': no bases in the whole file (2 record(s)"),
        (b"ACGT\n>a\n", "line 1: 'A' before the first '>'"),
        (b"\n@read\nACGT\n+\n!!!!\n", "line 2: '@' before the first '>': this looks like FASTQ"),
        (b"\xef\xbb\xbf>a\nACGT\n", "line 1: byte 0xef before the first '>'"),
        (b">a\nACGT\n>\nACGT\n", "line 3, record 'a': the record that begins here has no name"),
        (b"> a\nACGT\n", "line 1: the record that begins here has no name"),
        (b">a\nACGT\n\nACGT\nMKVLAA\n", "line 5, record 'a': 'L' is an amino acid"),
        (b">a\nACGT\nAC-GT\n", "line 3, record 'a': '-' is a gap"),
        (b">a\nACGT*\n", "line 2, record 'a': '*' is a gap"),
        (b">a\nAC.GT\n", "line 2, record 'a': '.' is a gap"),
        (b">a\nACGT\n>b\nACX\n", "line 4, record 'b': 'X' is not a nucleotide code"),
        (b">a\nACGT\n1 acgt\n", "line 3, record 'a': '1' is not a nucleotide code"),
        (b">a\r\nACGT\r\nAC!\r\n", "line 3, record 'a': '!' is not a nucleotide code"),
        (b">a\nACGT>b\nACGT\n", "line 2, record 'a': '>' inside a sequence line"),
        (b">a\nACGT\x00\n", "line 2, record 'a': byte 0x00 is not text"),
        (b">a\nAC\xc3\xa9\n", "line 2, record 'a': byte 0xc3 is not text"),
        (b">a\x00b\nACGT\n", "line 1: the name of the record that begins here holds byte 0x00"),
        (b">a b\x01\nACGT\n", "line 1: the header of record 'a' holds byte 0x01"),
        (b">a\rACGT\r>b\rACGT\r", "line 1: a carriage return inside a header"),
        (b">a\n" + b"ACGT" * 300 + b"\n" + b"ACGT" * 300 + b"E\n", "line 3, record 'a': 'E' is an amino acid"),
    ],
)
def test_errors_name_line_and_record(text, message, blocks):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        scan(text, blocks)
    assert "\n" not in str(caught.value)


def test_endless_header_is_refused():
    with pytest.raises(ValueError, match="more than 1 MiB"):
        scan(b">" + b"x" * 3_000_000, blocks=1 << 20)


@pytest.mark.parametrize("settings_", [(0, 1, 10), (1, 0, 10), (1, 6, 10)])
def test_settings_out_of_range(settings_):
    with pytest.raises(ValueError, match="must be at least"):
        _core.FastaScanner(*settings_)


def read(path: Path, **policy) -> tuple[bytes, list[tuple[str, str]]]:
    blocks = list(FastaFile(path, CutPolicy(**policy)).blocks())
    return b"".join(block.bases.tobytes() for block in blocks), [header for block in blocks for header in block.headers]


def random_fasta(num_bases: int) -> tuple[bytes, bytes]:
    bases = np.frombuffer(b"ACGTacgt", np.uint8)[np.random.default_rng(1).integers(0, 8, num_bases)].tobytes()
    lines = [bases[start : start + 60] for start in range(0, num_bases, 60)]
    return b">chr1 a test\n" + b"\n".join(lines) + b"\n", bases


def test_gzip_members_and_plain_agree(tmp_path):
    text, bases = random_fasta(3_000_000)
    half = len(text) // 2
    (tmp_path / "plain.fa").write_bytes(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text[:half], 1) + gzip.compress(text[half:], 1))  # found by content, not by name
    assert read(tmp_path / "plain.fa") == read(tmp_path / "packed") == (bases, [("chr1", "a test")])


def test_digest_is_of_the_file_as_stored(tmp_path):
    import hashlib

    import xxhash

    packed = gzip.compress(random_fasta(100_000)[0])
    (tmp_path / "a.fa.gz").write_bytes(packed)
    fasta = FastaFile(tmp_path / "a.fa.gz", CutPolicy(), sha256=True)
    assert sum(len(block.bases) for block in fasta.blocks()) == 100_000
    assert fasta.bytes_read == len(packed)
    assert fasta.xxh3_128 == xxhash.xxh3_128_hexdigest(packed)
    assert fasta.sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.99999])
def test_truncated_gzip(tmp_path, keep):
    packed = gzip.compress(random_fasta(2_000_000)[0], 1)
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match=r"cut\.fa\.gz: line \d+.*the gzip file is truncated"):
        read(path)


@pytest.mark.parametrize("where", [0.3, 0.7])
def test_damaged_gzip(tmp_path, where):
    packed = bytearray(gzip.compress(random_fasta(2_000_000)[0], 1))
    start = int(len(packed) * where)
    packed[start : start + 200] = bytes(200)
    (tmp_path / "bad.fa.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"bad\.fa\.gz: line \d+"):
        read(tmp_path / "bad.fa.gz")


def test_junk_after_gzip(tmp_path):
    (tmp_path / "bad.fa.gz").write_bytes(gzip.compress(b">a\nACGT\n") + b"more text")
    with pytest.raises(DataError, match="the gzip file is truncated here, or other data follows its end"):
        read(tmp_path / "bad.fa.gz")


def test_errors_name_the_file(tmp_path):
    (tmp_path / "p.fa").write_bytes(b">p\nACGT\nMKLV\n")
    with pytest.raises(DataError, match=r"p\.fa: line 3, record 'p': 'L' is an amino acid"):
        read(tmp_path / "p.fa")


@pytest.mark.parametrize("bad_line", [b"", b"AC!\n"])
def test_a_name_used_twice_is_an_error_before_what_follows(tmp_path, bad_line):
    records = b"".join(b">n%d x\nAC\n" % number for number in range(100_000))
    (tmp_path / "p.fa").write_bytes(records + b">n7\nAC\n" + bad_line)
    with pytest.raises(DataError, match=r"p\.fa: line 200001, record 'n7': this name was used at line 15 already. Rename"):
        read(tmp_path / "p.fa")
    (tmp_path / "p.fa").write_bytes(records)
    assert len(read(tmp_path / "p.fa")[1]) == 100_000


def test_a_false_alarm_of_the_names_is_passed_over(tmp_path):
    scanner = _core.FastaScanner(10, 1, MAX_DOCUMENT)
    scanner.watch("b")
    scanner.feed(b">a\nAC\n>b\nAC\n")
    assert (scanner.watched_line, scanner.repeats) == (3, [])
    scanner.feed(b">b\nAC\n")
    assert (scanner.watched_line, scanner.repeats) == (3, [("b", 5)])
    (tmp_path / "p.fa").write_bytes(b">a\nAC\n>b\nAC\n")
    file = FastaFile(tmp_path / "p.fa", CutPolicy())
    file._check_names(SimpleNamespace(repeats=[("b", 3)]))  # as if a and b had one fingerprint
    with pytest.raises(DataError, match="line 5, record 'a': this name was used at line 1"):
        file._check_names(SimpleNamespace(repeats=[("b", 3), ("a", 5)]))
