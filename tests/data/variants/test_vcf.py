"""VCF files: what is read, fast and slow path alike, and every error with file and line."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnapretrain.data.variants.vcf import CallReader, VcfFile, is_sequence
from dnapretrain.errors import DataError

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=c,length=100>\n##contig=<ID=HLA:1,assembly=x>\n"
HEADER += "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def text(*lines: str, samples: str = "a\tb", header: str = HEADER) -> bytes:
    return (header + samples + "\n" + "".join(f"{line}\n" for line in lines)).encode()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bgzf(data: bytes, size: int = 50) -> bytes:
    """Blocks of `size` bytes, then the end marker."""
    blocks = []
    for at in range(0, len(data), size):
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(data[at : at + size]) + packer.flush()
        head = struct.pack("<BBBBIBBHBBHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(packed) + 25)
        blocks.append(head + packed + struct.pack("<II", zlib.crc32(data[at : at + size]), len(data[at : at + size])))
    return b"".join(blocks) + BGZF_END


LINE = "c\t5\trs1\tAc\tG,<DEL>,*,at\t.\tPASS\tX=1\tGT:DP\t0|1:3\t.|2:4"
PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bgzf": bgzf,
    "two members": lambda data: gzip.compress(data[:70]) + gzip.compress(data[70:]),
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_header_and_records(tmp_path, packing, ends, last):
    data = text(LINE, "c\t5\t.\tA\t.\t.\t.\t.\tGT\t0|0\t0|0", "", "HLA:1\t1\t.\tA\tT\t.\t.\t.\tGT\t0|1\t1|1").replace(b"\n", ends.encode())
    data = data if last else data[: -len(ends)]
    path = write(tmp_path / "v", PACKED[packing](data))
    vcf = VcfFile(path).open()
    assert (vcf.samples, vcf.contig_lengths) == (["a", "b"], {"c": 100})
    found = [(item.line, item.contig, item.start, item.end, item.ref, item.alts, item.format, item.calls) for item in vcf.records()]
    assert found == [
        (5, "c", 4, 6, b"AC", (b"G", b"<DEL>", b"*", b"AT"), b"GT:DP", b"0|1:3\t.|2:4"),
        (6, "c", 4, 5, b"A", (), b"GT", b"0|0\t0|0"),
        (8, "HLA:1", 0, 1, b"A", (b"T",), b"GT", b"0|1\t1|1"),
    ]
    assert vcf.bytes_read == path.stat().st_size
    assert len(vcf.xxh3_128) == 32


@pytest.mark.parametrize(
    ("alt", "plain"), [(b"ACGTN", True), (b"*", False), (b"<CN0>", False), (b"A[c:5[", False), (b".A", False), (b"A.", False)]
)
def test_alleles_of_bases(alt, plain):
    assert is_sequence(alt) == plain


ALLELE = st.sampled_from([".", "0", "1", "2", "3"])


@given(
    calls=st.lists(st.tuples(ALLELE, st.sampled_from("||||/"), ALLELE), min_size=1, max_size=8),
    haploid=st.sets(st.integers(0, 7)),
    chosen=st.permutations(range(8)),
    with_depth=st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_calls_equal_a_plain_reading(tmp_path, calls, haploid, chosen, with_depth):
    names = [f"s{number}" for number in range(len(calls))]
    chosen = [number for number in chosen if number < len(calls)]
    chosen = chosen[: 1 + len(chosen) // 2]
    texts = [first if number in haploid else first + sign + second for number, (first, sign, second) in enumerate(calls)]
    fields = [f"{item}:7" for item in texts] if with_depth else texts
    line = "c\t1\t.\tA\tC,G,T\t.\t.\t.\t" + ("GT:DP\t" if with_depth else "GT\t") + "\t".join(fields)
    vcf = VcfFile(write(tmp_path / "v.vcf", text(line, samples="\t".join(names)))).open()
    found = CallReader(vcf, [names[number] for number in chosen], skip_unphased=True).read(next(vcf.records()))
    carried, missing, absent, unphased = [], 0, 0, 0
    for place, number in enumerate(chosen):
        pair = texts[number].replace("/", "|").split("|")
        if len(pair) == 2 and "/" in texts[number] and pair[0] != pair[1]:
            unphased += 2
            continue
        absent += len(pair) == 1
        missing += pair.count(".")
        carried += [(2 * place + side, int(allele)) for side, allele in enumerate(pair) if allele not in ".0"]
    assert list(zip(found.haplotypes.tolist(), found.alleles.tolist(), strict=True)) == carried
    assert (found.missing, found.absent, found.unphased) == (missing, absent, unphased)
    assert (found.haploid.tolist() if found.haploid is not None else [False] * len(chosen)) == [number in haploid for number in chosen]


def test_fast_path_is_taken_for_phased_calls_and_only_then(tmp_path):
    vcf = VcfFile(write(tmp_path / "v.vcf", text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1\t1|0", "c\t2\t.\tA\tC\t.\t.\t.\tGT\t0|1\t.|0"))).open()
    reader = CallReader(vcf, ["b"], skip_unphased=False)
    fast, slow = vcf.records()
    assert reader._phased_words(fast) is not None
    assert reader._phased_words(slow) is None


ERRORS = {
    "empty": (b"", "the file is empty"),
    "five columns": (
        b"I\t3080\tgk463204\tA\tT\n",
        r"line 1: not a VCF: it should begin with '##fileformat=VCFv4', not 'I 3080 gk463204 A T'",
    ),
    "bcf": (b"BCF\2\2rest\n", r"line 1: this is BCF\..*bcftools view"),
    "cut header": (b"##fileformat=VCFv4.2\n##x\n", "line 2: the file ends before its line #CHROM"),
    "spaces": (b"##fileformat=VCFv4.2\n#CHROM POS\n", "line 2: this should be the line '#CHROM POS"),
    "sites only": (text(header=HEADER.replace("\tFORMAT\t", ""), samples=""), "line 4: the file holds sites without genotypes"),
    "sample twice": (text(samples="a\ta"), "line 4: sample 'a' has two columns"),
    "few columns": (text("c\t1\t.\tA\tC\t.\t."), r"line 5: 7 columns in place of 11"),
    "few samples": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1"), r"line 5: 1 samples in place of 2"),
    "many samples": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1\t0|1"), r"line 5: 3 samples in place of 2"),
    "position": (text("c\t1x\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1"), "line 5: POS is '1x' on contig 'c'"),
    "negative": (text("c\t-1\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1"), "line 5: POS is '-1'"),
    "ref": (text("c\t1\t.\t<A>\tC\t.\t.\t.\tGT\t0|1\t0|1"), "line 5: REF is '<A>'"),
    "no ref": (text("c\t1\t.\t\tC\t.\t.\t.\tGT\t0|1\t0|1"), "line 5: REF is ''"),
    "order": (
        text("c\t2\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1", "c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1"),
        "line 6: position 1 of 'c' comes after 2",
    ),
    "contig again": (text(*(f"{name}\t2\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0|1" for name in "cdc")), "line 7: contig 'c' comes a second time"),
    "no gt": (text("c\t1\t.\tA\tC\t.\t.\t.\tDP\t1\t2"), "line 5: FORMAT is 'DP', without GT"),
    "allele": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1\t2|0"), "line 5: a genotype has allele 2, but ALT lists 1"),
    "allele, slowly": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t.|1\t2|0"), "line 5: a genotype has allele 2, but ALT lists 1"),
    "allele without any": (text("c\t1\t.\tA\t.\t.\t.\t.\tGT\t0|1\t0|0"), "line 5: a genotype has allele 1, but ALT lists 0"),
    "triploid": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|1|1\t0|0"), r"line 5: genotype '0\|1\|1' cannot be read: 3 haplotypes"),
    "junk": (text("c\t1\t.\tA\tC\t.\t.\t.\tGT\t0|x\t0|0"), r"line 5: genotype '0\|x' cannot be read"),
    "unphased": (text("c\t7\t.\tA\tC\t.\t.\t.\tGT\t0|1\t0/1"), r"line 5: genotype '0/1' of sample 'b' at c:7 is not phased"),
    "cut gzip": (gzip.compress(text(LINE))[:-12], r"the gzip file is (truncated|damaged)"),
    "cut bgzf": (bgzf(text(LINE))[: -len(BGZF_END)], "the gzip file is truncated"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_file_and_line(tmp_path, case):
    data, message = ERRORS[case]
    path = write(tmp_path / "bad.vcf", data)
    with pytest.raises(DataError, match=message) as caught:
        vcf = VcfFile(path).open()
        reader = CallReader(vcf, vcf.samples, skip_unphased=False)
        for record in vcf.records():
            reader.read(record)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.vcf: cannot be read: No such file"):
        VcfFile(tmp_path / "none.vcf").open()


MEMORY = """
import resource, sys
from pathlib import Path
from dnapretrain.data.variants.vcf import CallReader, VcfFile
vcf = VcfFile(Path(sys.argv[1])).open()
reader = CallReader(vcf, vcf.samples, False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for record in vcf.records():
    reader.read(record)
print(record.line, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """60 MB of text, packed to little."""
    samples = "\t".join(f"s{number}" for number in range(2500))
    calls = "\t".join(["0|0", "0|1"] * 1250)
    lines = (f"c\t{at + 1}\t.\tA\tC\t.\t.\t.\tGT\t{calls}" for at in range(6000))
    with gzip.open(tmp_path / "v.gz", "wb", 1) as file:
        file.write(text(samples=samples))
        file.writelines(f"{line}\n".encode() for line in lines)
    result = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "v.gz")], capture_output=True, text=True, check=True)
    line, megabytes = map(int, result.stdout.split())
    assert (line, megabytes < 16) == (6004, True)


# Real files


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("DNAPRETRAIN_TEST_DATA")
    if not folder:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    return Path(folder)


def test_1000_genomes(data):
    vcf = VcfFile(data / "variants" / "1000G_chr20_reference_1.0-2.5Mb.vcf.gz").open()
    reader = CallReader(vcf, vcf.samples, skip_unphased=False)
    assert len(vcf.samples) == 300
    with gzip.open(vcf.path, "rt") as file:
        lines = [line.split() for line in file if not line.startswith("#")]
    records = 0
    for record, fields in zip(vcf.records(), lines, strict=True):
        codes = np.zeros(600, np.int16)
        found = reader.read(record)
        codes[found.haplotypes] = found.alleles
        assert (record.contig, str(record.start + 1), record.ref.decode(), ",".join(a.decode() for a in record.alts)) == (
            *fields[:2],
            *fields[3:5],
        )
        assert "|".join(map(str, codes.tolist())) == "|".join(fields[9:])
        records += 1
    assert records == 11_893


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("variants/celegans_1pct_sites_5col.tsv.gz", r"line 1: not a VCF: .* not 'I 3080 gk463204 A T'"),
        ("variants/vg_1mb1kgp_z_sites.vcf.gz", r"line \d+: the file holds sites without genotypes"),
        ("genomes/lambda_NC_001416.1.fa.gz", "line 1: not a VCF"),
        ("awkward/volvox.2bit", "not a VCF|the file ends"),
    ],
)
def test_other_real_files_are_refused(data, name, message):
    with pytest.raises(DataError, match=message):
        VcfFile(data / name).open()
