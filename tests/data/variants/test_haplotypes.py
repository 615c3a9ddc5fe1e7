"""Haplotypes: equal to a plain version on random variants, to bcftools on real ones, and traceable base by base."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnapretrain.config import DataConfig, SplitConfig, TokenizerConfig
from dnapretrain.data.look.inspect import format_inspection, inspect_shard
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.sampling.split import split_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, shard_file, verify_shard
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.data.variants import apply_edits, variant_store
from dnapretrain.data.variants.haplotypes import make_haplotypes
from dnapretrain.data.variants.variant_store import shared_ends
from dnapretrain.errors import ConfigError, DataError

HEADER = "##fileformat=VCFv4.2\n"
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"


def write_vcf(path: Path, samples: list[str], records: list[tuple], header: str = HEADER, form: str = "GT") -> Path:
    """Records are (contig, 1-based position, REF, ALT, calls)."""
    lines = [f"{contig}\t{at}\t.\t{ref}\t{alt}\t.\t.\t.\t{form}\t" + "\t".join(calls) for contig, at, ref, alt, calls in records]
    path.write_text(header + COLUMNS + "\t".join(samples) + "\n" + "".join(f"{line}\n" for line in lines))
    return path


def reference(folder: Path, text: str, name: str = "ref") -> Path:
    (folder / f"{name}.fa").write_text(text)
    preprocess([folder / f"{name}.fa"], folder / name, overwrite=True)
    return folder / name


def documents(prefix: Path) -> dict[tuple[str, str, int], str]:
    """Bases by (haplotype, contig, start)."""
    shard = open_shard(prefix)
    where = shard.coordinates
    return {
        (where.haplotype[number], where.contig[number], int(where.start[number])): shard.bases[offset : offset + length].tobytes().decode()
        for number, (offset, length) in enumerate(zip(shard.offsets.tolist(), shard.lengths.tolist(), strict=True))
    }


def slow_haplotype(bases: str, records: list[tuple[int, str, str]]) -> tuple[str, list[int | None], int]:
    """Apply (0-based start, REF, ALT) in order; also the reference position of each base (None: inserted) and the overlapping."""
    pieces: list[tuple[str, int | None]] = []
    at = overlapping = 0
    frozen, after_insertion = -1, False
    for start, ref, alt in records:
        indel = len(ref) != len(alt) and ref[0].upper() == alt[0].upper()
        if indel:
            front, back = shared_ends(ref.upper().encode(), alt.upper().encode())
            indel = front + back == min(len(ref), len(alt))
        if start < frozen or (start == frozen and (not indel or after_insertion)):
            overlapping += 1
            continue
        front, back = shared_ends(ref.upper().encode(), alt.upper().encode())
        first, last = start + front, start + len(ref) - back
        pieces += [(bases[place], place) for place in range(at, first)]
        for number, base in enumerate(alt[front : len(alt) - back]):
            place = first + number if first + number < last else None
            pieces.append((base.lower() if bases[start].islower() else base.upper(), place))
        at = last
        frozen, after_insertion = start + len(ref) - 1, len(alt) > len(ref)
    pieces += [(bases[place], place) for place in range(at, len(bases))]
    return "".join(base for base, _ in pieces), [place for _, place in pieces], overlapping


BASES = st.text("ACGTacgt", min_size=1, max_size=60)
ALLELES = st.text("ACGT", min_size=1, max_size=4)


@st.composite
def cases(draw):
    """A contig with a gap (so two documents) and records in order, with REF as it stands there."""
    left, right = draw(BASES), draw(BASES)
    contig = left + "N" * 10 + right
    records = []
    for start in sorted(draw(st.lists(st.integers(0, len(contig) - 1), max_size=14))):
        ref = contig[start : start + draw(st.integers(1, 4))]
        alts = draw(st.lists(ALLELES, min_size=1, max_size=3))
        calls = [draw(st.sampled_from(["|", "/"])).join(str(allele) for allele in draw(PAIR(len(alts)))) for _ in range(3)]
        records.append((start, ref, alts, calls))
    return left, right, records


def PAIR(count: int):  # noqa: N802
    return st.tuples(*[st.sampled_from([".", *map(str, range(count + 1))])] * 2)


@given(case=cases(), block=st.sampled_from([1, 3, 7, 1 << 22]), window=st.sampled_from([1, 5, 1 << 21]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_equals_the_plain_version_on_random_variants(tmp_path, monkeypatch, case, block, window):
    left, right, records = case
    monkeypatch.setattr(apply_edits, "BLOCK_BASES", block)
    monkeypatch.setattr(variant_store.VariantStore.__init__, "__defaults__", (window,))
    samples = ["a", "b.c", "d"]
    prefix = reference(tmp_path, f">c\n{left}{'N' * 10}{right}\n>other\nACGT\n")
    starts = {0: left, len(left) + 10: right}
    lines, expected = [], {(f"{name}.{side}", start): [] for name in samples for side in (1, 2) for start in starts}
    inside = calls_seen = unphased = 0
    for start, ref, alts, calls in records:
        lines.append(("c", start + 1, ref, ",".join(alts), calls))
        document = next((first for first, bases in starts.items() if first <= start and start + len(ref) <= first + len(bases)), None)
        if document is None:
            continue
        inside += 1
        for name, call in zip(samples, calls, strict=True):
            pair = call.replace("/", "|").split("|")
            calls_seen += 2
            if "/" in call and pair[0] != pair[1]:
                unphased += 2
                continue
            for side, allele in enumerate(pair, 1):
                if allele not in ".0":
                    expected[f"{name}.{side}", document].append((start - document, ref, alts[int(allele) - 1]))
    vcf = write_vcf(tmp_path / "v.vcf", samples, lines)
    if not inside:
        with pytest.raises(DataError, match="none of"):
            make_haplotypes(prefix, [vcf], tmp_path / "h", on_unphased="skip", overwrite=True)
        return
    manifest = make_haplotypes(prefix, [vcf], tmp_path / "h", on_unphased="skip", overwrite=True)
    counts, made = manifest["haplotypes"]["alleles"], documents(tmp_path / "h")
    shard = open_shard(tmp_path / "h")
    overlapping = 0
    for number, key in enumerate(made):
        name, contig, start = key
        assert contig == "c"
        bases, places, skipped = slow_haplotype(starts[start], expected[name, start])
        assert made[key] == bases
        overlapping += skipped
        check_coordinates(shard, number, places, len(starts[start]))
    assert list(made) == [(f"{name}.{side}", "c", start) for name in samples for side in (1, 2) for start in starts]
    assert counts["total"] == calls_seen == sum(count for key, count in counts.items() if key != "total")
    assert (counts["unphased"], counts["overlapping"]) == (unphased, overlapping)
    assert manifest["haplotypes"]["records"] == {
        "total": len(records),
        "used": inside,
        "outside_documents": len(records) - inside,
        "no_alternative": 0,
    }


def check_coordinates(shard, number: int, places: list[int | None], ref_length: int) -> None:
    """Every base of a document and every base of its reference, both ways, one by one and all at once.

    `places` has None for an inserted base: it belongs to a reference base before it, kept or deleted, and after the last kept one.
    """
    start = int(shard.coordinates.start[number])
    kept = [(offset, place) for offset, place in enumerate(places) if place is not None]
    found, _ = shard.edits.to_reference(number, np.arange(len(places)))
    assert (np.diff(found) >= 0).all()
    for offset, place in enumerate(places):
        position, exact = shard.reference_position(number, offset)
        assert position - start == found[offset] and exact == (place is not None)
        if place is None:
            before = max((other for at, other in kept if at < offset), default=0)
            after = min((other for at, other in kept if at > offset), default=ref_length)
            assert before <= found[offset] < max(after, 1)
        else:
            assert found[offset] == place
            assert shard.document_offset(number, position) == (offset, True)
    for place in set(range(ref_length)) - {place for _, place in kept}:
        offset, exact = shard.document_offset(number, start + place)
        assert not exact
        assert (found[:offset] <= place).all() and (found[offset:] >= place).all()
        assert all(at < offset for at, other in kept if other < place) and all(at >= offset for at, other in kept if other > place)


# Known answers

TOY = ">c\nACGTACGTAC\n"
CASES = {
    "snv": ([(2, "C", "T", "0|1")], "ACGTACGTAC", "ATGTACGTAC"),
    "insertion": ([(2, "C", "CGG", "1|0")], "ACGGGTACGTAC", "ACGTACGTAC"),
    "deletion": ([(2, "CGT", "C", "0|1")], "ACGTACGTAC", "ACACGTAC"),
    "mnv": ([(2, "CGT", "TTT", "1|1")], "ATTTACGTAC", "ATTTACGTAC"),
    "several alleles": ([(2, "CG", "C,CGA,TG", "2|3")], "ACGATACGTAC", "ATGTACGTAC"),
    "whole reference replaced": ([(1, "ACGTACGTAC", "T", "1|0")], "T", "ACGTACGTAC"),
    "insertion at the end": ([(10, "C", "CTT", "1|0")], "ACGTACGTACTT", "ACGTACGTAC"),
    "insertion before the first base": ([(1, "A", "TA", "1|0")], "TACGTACGTAC", "ACGTACGTAC"),
    "snv then insertion at its base": ([(2, "C", "T", "1|1"), (2, "C", "CA", "1|0")], "ATAGTACGTAC", "ATGTACGTAC"),
    "insertion then snv at its base": ([(2, "C", "CA", "1|0"), (2, "C", "T", "1|0")], "ACAGTACGTAC", "ACGTACGTAC"),
    "snv in a deletion": ([(2, "CGTA", "C", "1|1"), (4, "T", "G", "1|0")], "ACCGTAC", "ACCGTAC"),
    "snv after a deletion": ([(2, "CG", "C", "1|0"), (4, "T", "G", "1|0")], "ACGACGTAC", "ACGTACGTAC"),
    "missing": ([(2, "C", "T", ".|1")], "ACGTACGTAC", "ATGTACGTAC"),
    "star and symbolic": ([(2, "C", "*,<DEL>,T", "1|2"), (3, "G", "T", "0|1")], "ACGTACGTAC", "ACTTACGTAC"),
    "breakend": ([(2, "C", "C[c:9[", "1|0")], "ACGTACGTAC", "ACGTACGTAC"),
    "no alternative": ([(2, "C", ".", "0|0"), (3, "G", "T", "1|0")], "ACTTACGTAC", "ACGTACGTAC"),
    "no phase needed": ([(2, "C", "T", "1/1")], "ATGTACGTAC", "ATGTACGTAC"),
}


@pytest.mark.parametrize("name", CASES)
def test_known_answers(tmp_path, name):
    records, first, second = CASES[name]
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", at, ref, alt, [call]) for at, ref, alt, call in records])
    manifest = make_haplotypes(reference(tmp_path, TOY), [vcf], tmp_path / "h")
    assert documents(tmp_path / "h") == {("s.1", "c", 0): first, ("s.2", "c", 0): second}
    assert open_shard(tmp_path / "h").digest == verify_shard(tmp_path / "h")
    counts = manifest["haplotypes"]["alleles"]
    assert counts["total"] == 2 * len(records) == sum(count for key, count in counts.items() if key != "total")


def test_files_as_they_are_documented(tmp_path):
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "CGG", ["1|0"]), ("c", 8, "T", "A", ["1|0"])])
    make_haplotypes(reference(tmp_path, TOY), [vcf], tmp_path / "h")
    assert shard_file(tmp_path / "h", "bed").read_text().splitlines() == [
        f"c\t0\t10\tref\t0\t+\t0\t0\t0\t1\t10\t0\ts.{side}" for side in (1, 2)
    ]
    path = shard_file(tmp_path / "h", "edits")
    first = np.fromfile(path, "<i8")[-3:]
    rows = np.memmap(path, "<i4", "r", offset=16, shape=(first[-1], 4))
    assert first.tolist() == [0, 2, 2]
    assert rows.tolist() == [[2, 0, 2, 2], [7, 1, 9, 1]]
    assert path.read_bytes()[:16] == b"DNAEDITS\1\0\0\0\0\0\0\0"
    text = format_inspection(inspect_shard(tmp_path / "h", check=True))
    assert "ref:c:1-10" in text


@pytest.mark.parametrize(
    "change", [lambda data: data[:-8], lambda data: data[:-1], lambda data: b"X" + data[1:], lambda data: data + b"\0" * 8]
)
def test_damaged_edit_list_is_refused(tmp_path, change):
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "CGG", ["1|0"])])
    make_haplotypes(reference(tmp_path, TOY), [vcf], tmp_path / "h")
    path = shard_file(tmp_path / "h", "edits")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"h\.edits"):
        verify_shard(tmp_path / "h")


def test_second_haplotype_of_haploid_calls_is_left_out_and_counted(tmp_path):
    """A chromosome X of two males and a female: one document with haploid calls only, one with diploid ones too."""
    prefix = reference(tmp_path, ">X\nACGTACGTAC" + "N" * 10 + "GGGGG\n")
    records = [("X", 2, "C", "T", ["1", "0|1", "."]), ("X", 4, "T", "A", ["0", "0|0", "1"])]
    records += [("X", 22, "G", "A", ["1|1", "0|1", "0"]), ("X", 23, "G", "T", ["1", "1|1", "0|0"])]
    manifest = make_haplotypes(prefix, [write_vcf(tmp_path / "v.vcf", ["m", "f", "n"], records)], tmp_path / "h")
    assert documents(tmp_path / "h") == {
        ("m.1", "X", 0): "ATGTACGTAC",
        ("m.1", "X", 20): "GATGG",
        ("m.2", "X", 20): "GAGGG",
        ("f.1", "X", 0): "ACGTACGTAC",
        ("f.1", "X", 20): "GGTGG",
        ("f.2", "X", 0): "ATGTACGTAC",
        ("f.2", "X", 20): "GATGG",
        ("n.1", "X", 0): "ACGAACGTAC",
        ("n.1", "X", 20): "GGGGG",
        ("n.2", "X", 20): "GGGGG",
    }
    assert manifest["haplotypes"]["second_haplotypes_left_out"] == 2
    counts = manifest["haplotypes"]["alleles"]
    assert (counts["absent"], counts["missing"], counts["total"]) == (6, 1, 24)
    assert sum(counts.values()) == 48


def test_samples_contig_names_and_several_files(tmp_path):
    prefix = reference(tmp_path, ">chr1\nACGT\n>chr2\nGGGG\n>chr3\nTTTT\n")
    one = write_vcf(tmp_path / "1.vcf", ["a", "b"], [("1", 1, "A", "T", ["0|1", "1|0"])])
    two = write_vcf(tmp_path / "2.vcf", ["b", "a"], [("2", 4, "G", "C", ["0|1", "1|1"])])
    names = tmp_path / "names.tsv"
    names.write_text("# VCF\tshard\n1\tchr1\n2\tchr2\n")
    manifest = make_haplotypes(prefix, [one, two], tmp_path / "h", contig_names=names)
    assert documents(tmp_path / "h") == {
        ("a.1", "chr1", 0): "ACGT",
        ("a.1", "chr2", 0): "GGGC",
        ("a.2", "chr1", 0): "TCGT",
        ("a.2", "chr2", 0): "GGGC",
        ("b.1", "chr1", 0): "TCGT",
        ("b.1", "chr2", 0): "GGGG",
        ("b.2", "chr1", 0): "ACGT",
        ("b.2", "chr2", 0): "GGGC",
    }
    assert manifest["haplotypes"]["reference_documents"] == {"used": 2, "without_records": 1}
    (tmp_path / "list").write_text("b\n\n")
    for samples in ("b", f"@{tmp_path / 'list'}"):
        make_haplotypes(prefix, [one, two], tmp_path / "h", samples=samples, contig_names=names, overwrite=True)
        assert {name for name, _, _ in documents(tmp_path / "h")} == {"b.1", "b.2"}


def test_preprocess_over_haplotypes_leaves_no_edit_list(tmp_path):
    prefix = reference(tmp_path, TOY)
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "CGG", ["1|0"])])
    make_haplotypes(prefix, [vcf], tmp_path / "h")
    with pytest.raises(DataError, match=r"h\.bin exists already"):
        make_haplotypes(prefix, [vcf], tmp_path / "h")
    with pytest.raises(DataError, match="a shard of haplotypes"):
        make_haplotypes(tmp_path / "h", [vcf], tmp_path / "g")
    preprocess([tmp_path / "ref.fa"], tmp_path / "h", overwrite=True)
    assert not shard_file(tmp_path / "h", "edits").exists()
    assert open_shard(tmp_path / "h").edits is None
    assert open_shard(tmp_path / "h").reference_position(0, 3) == (3, True)
    assert open_shard(tmp_path / "h").document_offset(0, 3) == (3, True)


# Errors

ERRORS = {
    "mismatch": ([("c", 2, "G", "T", ["0|0"])], r"line 3: REF is 'G' at c:2, but ref of .* has 'C' there"),
    "long mismatch": ([("c", 2, "CGA", "T", ["0|0"])], r"REF is 'CGA' at c:2-4, but ref of .* has 'CGT' there"),
    "unphased": ([("c", 2, "C", "T", ["0/1"])], r"line 3: genotype '0/1' of sample 's' at c:2 is not phased.*--on-unphased skip"),
    "half missing without phase": ([("c", 2, "C", "T", ["./1"])], "is not phased"),
    "contig": ([("chrC", 2, "C", "T", ["0|1"])], r"line 3: contig 'chrC' is not in .*\(c\).*--contig-names"),
    "all in gaps": ([("c", 200, "C", "T", ["0|1"])], "none of 1 records lies in a document"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_records_that_do_not_fit_are_named_and_leave_nothing(tmp_path, case):
    records, message = ERRORS[case]
    prefix = reference(tmp_path, TOY)
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], records)
    with pytest.raises(DataError, match=message) as caught:
        make_haplotypes(prefix, [vcf], tmp_path / "out" / "h")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_header_that_does_not_fit(tmp_path):
    header = HEADER + "##contig=<ID=c,assembly=x,length=9>\n"
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "T", ["0|1"])], header)
    with pytest.raises(DataError, match=r"line 4: contig 'c' has 9 bases in the header, but ref:c:1-10 lies beyond"):
        make_haplotypes(reference(tmp_path, TOY), [vcf], tmp_path / "h")


def test_settings_that_cannot_be_used(tmp_path):
    prefix = reference(tmp_path, TOY)
    vcf = write_vcf(tmp_path / "v.vcf", ["s", "t"], [("c", 2, "C", "T", ["0|1", "0|0"])])
    other = write_vcf(tmp_path / "w.vcf", ["s"], [("c", 2, "C", "T", ["0|1"])])
    (tmp_path / "names").write_text("c chr1\n")
    (tmp_path / "unknown").write_text("x\ty\n")
    for message, arguments in (
        ("'u' is not among its 2 samples", {"samples": "s,u"}),
        ("names 's' twice", {"samples": "s,s"}),
        ("names no sample", {"samples": ","}),
        ("cannot be read", {"samples": "@none"}),
        ("'maybe' is not known", {"on_unphased": "maybe"}),
        ("line 1 is not 'name in the VCF<tab>name in the shard'", {"contig_names": tmp_path / "names"}),
        ("gives 'y', which is no contig", {"contig_names": tmp_path / "unknown"}),
        ("its samples are not those", {"vcfs": [vcf, other]}),
        ("was in another file", {"vcfs": [vcf, other], "samples": "s"}),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            make_haplotypes(prefix, arguments.pop("vcfs", [vcf]), tmp_path / "h", **arguments)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    prefix = reference(tmp_path, TOY)
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "T", ["0|1"])])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DataError, match=r"2 haplotypes of 10 bases need 420 bytes, but 10 are free"):
        make_haplotypes(prefix, [vcf], tmp_path / "h")


def test_reference_must_be_whole_contigs_of_one_assembly(tmp_path):
    (tmp_path / "a.fa").write_text(TOY)
    (tmp_path / "b.fa").write_text(TOY)
    preprocess([tmp_path / "a.fa", tmp_path / "b.fa"], tmp_path / "two")
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 2, "C", "T", ["0|1"])])
    with pytest.raises(DataError, match="contig 'c' is in the assemblies 'a' and 'b'"):
        make_haplotypes(tmp_path / "two", [vcf], tmp_path / "h")


# Samples and splits


def test_samples_name_the_reference_and_the_haplotype(tmp_path):
    """Windows of 4 bases of ACGTTTAACGAC (TTA inserted after position 4, position 8 deleted) and of the reference."""
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [("c", 4, "T", "TTTA", ["1|0"]), ("c", 7, "GT", "G", ["1|0"])])
    make_haplotypes(reference(tmp_path, TOY), [vcf], tmp_path / "h")
    prefix = str(tmp_path / "h")
    data = DataConfig(train=[{"prefix": prefix}], valid={"v": prefix}, sequence_length=4)
    stream = held_out_streams(data, build_tokenizer(TokenizerConfig(kind="nucleotide")))["v"]
    assert stream.tokenizer.add_bos
    loci = [str(locus) for sample in range(stream.num_samples) for locus in stream.locate(sample)]
    assert loci == [
        "ref:c:1-4(+) s.1",
        "ref:c:4-5(+) s.1",
        "ref:c:6-10(+) s.1",
        "ref:c:1-4(+) s.2",
        "ref:c:5-8(+) s.2",
        "ref:c:9-10(+) s.2",
    ]


@pytest.mark.parametrize("by", ["block", "bed", "contig"])
def test_a_haplotype_is_on_the_same_side_as_its_reference(tmp_path, by):
    """Each base of each haplotype, indels included; together the sides hold every base once."""
    rng = np.random.default_rng(3)
    contig = "".join(rng.choice(list("ACGT"), 3000))
    records = []
    for start in range(5, 2980, 7):
        kind = rng.integers(3)
        ref = contig[start : start + (1 if kind else 4)]
        alt = ref[0] + "".join(rng.choice(list("ACGT"), 3)) if kind == 1 else ref[0] if kind == 0 else "ACGT".replace(ref, "")[0]
        records.append(("c", start + 1, ref, alt, [f"{rng.integers(2)}|{rng.integers(2)}"]))
    prefix = reference(tmp_path, f">c\n{contig}\n>d\nACGTACGT\n")
    vcf = write_vcf(tmp_path / "v.vcf", ["s"], [*records, ("d", 2, "C", "CA", ["1|1"])])
    make_haplotypes(prefix, [vcf], tmp_path / "h")
    (tmp_path / "v.bed").write_text("c\t100\t777\nc\t1500\t1501\n")
    config = {
        "block": SplitConfig(by="block", block_size=50, valid_fraction=0.3, test_fraction=0.2),
        "bed": SplitConfig(by="bed", valid_bed=tmp_path / "v.bed"),
        "contig": SplitConfig(by="contig", valid_contigs=["d"]),
    }[by]
    plain, made = open_shard(prefix), open_shard(tmp_path / "h")
    splits = split_documents([plain, made], config)
    side_of: dict[tuple[str, int], str] = {}
    for side, segments in splits[0].items():
        for document, start, length in zip(segments.document, segments.start, segments.length, strict=True):
            for offset in range(start, start + length):
                side_of[plain.coordinates.contig[document], int(plain.coordinates.start[document]) + offset] = side
    seen = 0
    for side, segments in splits[1].items():
        for document, start, length in zip(segments.document, segments.start, segments.length, strict=True):
            places, _ = made.edits.to_reference(document, np.arange(start, start + length))
            for position in (places + made.coordinates.start[document]).tolist():
                assert side_of[made.coordinates.contig[document], position] == side
                seen += 1
    assert seen == len(made.bases) != 2 * len(plain.bases)


# Real variants, against bcftools


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("DNAPRETRAIN_TEST_DATA")
    if not folder:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    return Path(folder)


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def consensus(folder: Path, fasta: str, vcf: Path, sample: str, side: int) -> str:
    """What `bcftools consensus` makes of a FASTA with one record."""
    (folder / "consensus.fa").write_text(fasta)
    command = ["bcftools", "consensus", "-s", sample, "-H", str(side), "-f", str(folder / "consensus.fa"), str(vcf)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "".join(text.splitlines()[1:])


def need_bcftools() -> None:
    if not shutil.which("bcftools"):
        pytest.skip("bcftools is not installed")


@pytest.fixture(scope="module")
def chr20(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chr20")
    preprocess([data / "human" / "GRCh37_chr20_1-2500000.fa.gz"], folder / "ref")
    vcf = data / "variants" / "1000G_chr20_reference_1.0-2.5Mb.vcf.gz"
    with gzip.open(vcf, "rt") as file:
        names = next(line for line in file if line.startswith("#CHROM")).split()[9:]
    make_haplotypes(folder / "ref", [vcf], folder / "h", samples=",".join(names[::60]))
    return folder


def test_1000_genomes_equals_bcftools(data, chr20):
    need_bcftools()
    vcf = data / "variants" / "1000G_chr20_reference_1.0-2.5Mb.vcf.gz"
    shutil.copy(vcf, chr20 / "v.vcf.gz")
    subprocess.run(["bcftools", "index", "-f", str(chr20 / "v.vcf.gz")], check=True)
    fasta = unpacked(data / "human" / "GRCh37_chr20_1-2500000.fa.gz")
    for (name, _, start), bases in documents(chr20 / "h").items():
        sample, _, side = name.rpartition(".")
        assert "N" * start + bases == consensus(chr20, fasta, chr20 / "v.vcf.gz", sample, int(side))


def test_1000_genomes_equals_the_plain_version_and_maps_back(data, chr20):
    text = unpacked(data / "human" / "GRCh37_chr20_1-2500000.fa.gz")
    contig = "".join(text.splitlines()[1:])
    shard, made = open_shard(chr20 / "h"), documents(chr20 / "h")
    with gzip.open(data / "variants" / "1000G_chr20_reference_1.0-2.5Mb.vcf.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file if not line.startswith("##")]
    column = {name: number for number, name in enumerate(rows[0])}
    indels = 0
    for number, ((name, _, start), bases) in enumerate(list(made.items())[:2]):
        sample, _, side = name.rpartition(".")
        records = []
        for row in rows[1:]:
            allele = int(row[column[sample]].split("|")[int(side) - 1])
            if allele:
                records.append((int(row[1]) - 1 - start, row[3], row[4].split(",")[allele - 1]))
        expected, places, _ = slow_haplotype(contig[start:], records)
        assert bases == expected
        indels += sum(len(ref) != len(alt) for _, ref, alt in records)
        found, exact = shard.edits.to_reference(number, np.arange(len(bases)))
        wanted = np.array([-1 if place is None else place for place in places])
        assert np.array_equal(exact, wanted >= 0)
        assert np.array_equal(found[exact], wanted[exact])
        offsets, both = shard.edits.from_reference(number, found[exact])
        assert both.all()
        assert np.array_equal(offsets, np.flatnonzero(exact))
    assert indels > 50


def test_volvox_equals_bcftools_where_no_phase_is_needed(data, tmp_path):
    """Unphased calls: refused, or skipped and counted; bcftools gets the homozygous ones only."""
    packed = data / "awkward" / "volvox.filtered.vcf.gz"
    preprocess([data / "awkward" / "volvox.fa"], tmp_path / "ref")
    with pytest.raises(
        DataError, match=r"line \d+: genotype '0/1' of sample 'sample_data/raw/volvox/volvox-sorted.bam' at ctgA:2644 is not"
    ):
        make_haplotypes(tmp_path / "ref", [packed], tmp_path / "h")
    manifest = make_haplotypes(tmp_path / "ref", [packed], tmp_path / "h", on_unphased="skip")
    lines = unpacked(packed).splitlines(keepends=True)
    alike = [line for line in lines if line.startswith("#") or line.split("\t")[9].startswith("1/1")]
    counts = manifest["haplotypes"]["alleles"]
    assert counts["unphased"] == 2 * (len(lines) - len(alike)) == 2 * 21
    assert counts["applied"] + counts["overlapping"] == 2 * sum(not line.startswith("#") for line in alike)
    fasta = (data / "awkward" / "volvox.fa").read_text()
    ctg_a = ">" + fasta.split(">")[1]
    (tmp_path / "alike.vcf").write_text("".join(alike))
    bases = {name: text for (name, contig, _), text in documents(tmp_path / "h").items() if contig == "ctgA"}
    assert len(bases) == 2
    assert len(set(bases.values())) == 1
    need_bcftools()
    subprocess.run(["bcftools", "view", "-Oz", "-o", str(tmp_path / "v.vcf.gz"), str(tmp_path / "alike.vcf")], check=True)
    subprocess.run(["bcftools", "index", str(tmp_path / "v.vcf.gz")], check=True)
    sample = "sample_data/raw/volvox/volvox-sorted.bam"
    assert next(iter(bases.values())) == consensus(tmp_path, ctg_a, tmp_path / "v.vcf.gz", sample, 1)
