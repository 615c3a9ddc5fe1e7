"""BED intervals, the share of N, skipped inputs, and lower case that is no mask: against a slow Python version."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import sequence_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.data.shards import selection as module
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.selection import Bed, Selection, read_bed, select
from dnapretrain.data.shards.shard import open_shard, verify_shard
from dnapretrain.data.shards.writer import FileWriter
from dnapretrain.errors import ConfigError, DataError


def slow(records, min_n_run, min_length, include, exclude, max_n):
    """Documents [(contig, start, end, bases)], and bases dropped by reason: letter by letter."""
    documents, dropped = [], {"n_run": 0, "short": 0, "regions": 0, "n_fraction": 0}
    for contig, bases in records:
        inside = [True] * len(bases)
        if include is not None:
            inside = [any(name == contig and start <= at < end for name, start, end in include) for at in range(len(bases))]
        for name, start, end in exclude or []:
            inside = [was and not (name == contig and start <= at < end) for at, was in enumerate(inside)]
        spans = [True] * len(bases)
        for run in re.finditer(f"[Nn]{{{min_n_run},}}", bases):
            spans[run.start() : run.end()] = [False] * len(run.group())
            dropped["n_run"] += len(run.group())
        at = 0
        while at < len(bases):
            if not spans[at]:
                at += 1
                continue
            segment_end = next((place for place in range(at, len(bases)) if not spans[place]), len(bases))
            if segment_end - at < min_length:
                dropped["short"] += segment_end - at
                at = segment_end
                continue
            while at < segment_end:
                end = next((place for place in range(at, segment_end) if inside[place] != inside[at]), segment_end)
                part = bases[at:end]
                if not inside[at]:
                    dropped["regions"] += len(part)
                elif len(part) < min_length:
                    dropped["short"] += len(part)
                elif max_n is not None and len(re.findall("[Nn]", part)) > max_n * len(part):
                    dropped["n_fraction"] += len(part)
                else:
                    documents.append((contig, at, end, part))
                at = end
    return documents, dropped


CONTIGS = st.lists(
    st.lists(st.sampled_from(["ACGT", "acg", "N", "NNN", "nn", "GR"]), min_size=1, max_size=25).map("".join), min_size=1, max_size=4
)


@st.composite
def cases(draw):
    records = [(f"c{number}", "T" + bases) for number, bases in enumerate(draw(CONTIGS))]
    longest = st.integers(0, min(len(bases) for _, bases in records) - 1)
    interval = st.builds(
        lambda name, a, b: (name, min(a, b), max(a, b) + 1), st.sampled_from([name for name, _ in records]), longest, longest
    )
    beds = st.none() | st.lists(interval, min_size=1, max_size=6)
    return records, draw(st.sampled_from([1, 2, 4, 99])), draw(st.sampled_from([1, 3, 8])), draw(beds), draw(beds)


@settings(max_examples=100, deadline=None)
@given(case=cases(), max_n=st.sampled_from([None, 0.0, 0.2, 0.5, 1.0]), block=st.sampled_from([1, 5, 1 << 20]))
def test_selection_equals_slow_python(tmp_path_factory, case, max_n, block):
    records, min_n_run, min_length, include, exclude = case
    folder = tmp_path_factory.mktemp("select")
    (folder / "x.fa").write_bytes(files.fasta(records))
    beds = {}
    for name, bed in (("include_bed", include), ("exclude_bed", exclude)):
        if bed is not None:
            (folder / name).write_text("track x\n# y\n" + "".join(f"{contig}\t{start}\t{end}\tname\n" for contig, start, end in bed))
            beds[name] = folder / name
    expected, dropped = slow(records, min_n_run, min_length, include, exclude, max_n)
    arguments = {"min_n_run": min_n_run, "min_length": min_length, "max_n_fraction": max_n, **beds}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOVED_BYTES", block)
        patch.setattr("dnapretrain.data.shards.scan.ALL_LOWER_PER_MILLE", 1000)
        if not expected:
            with pytest.raises(DataError, match="nothing is left of 1 input"):
                preprocess([folder / "x.fa"], folder / "s", **arguments)
            return
        manifest = preprocess([folder / "x.fa"], folder / "s", **arguments)
    verify_shard(folder / "s")
    shard = open_shard(folder / "s")
    where = shard.coordinates
    texts = [shard.bases[start : start + size].tobytes().decode() for start, size in zip(shard.offsets, shard.lengths, strict=True)]
    assert list(zip(where.contig, where.start.tolist(), where.end.tolist(), texts, strict=True)) == expected
    counts, kept = manifest["counts"], "".join(texts)
    assert counts["dropped_bases"] == {
        reason: bases
        for reason, bases in dropped.items()
        if reason in ("n_run", "short") or (reason == "regions" and beds) or (reason == "n_fraction" and max_n is not None)
    }
    assert counts["total_bases"] == sum(len(bases) for _, bases in records) == counts["kept_bases"] + sum(dropped.values())
    assert [counts[key] for key in ("documents", "kept_bases", "lower_case", "n", "ambiguous")] == [
        len(expected), len(kept), len(re.findall("[a-z]", kept)), len(re.findall("[Nn]", kept)), kept.count("R"),
    ]  # fmt: skip


def test_long_pieces_are_cut_into_equal_parts(tmp_path):
    bed = Bed(Path("b"), {"c": np.array([[2, 27]])}, {})
    with FileWriter(tmp_path / "bin") as writer:
        mark = writer.mark()
        writer.write(b"ACGTA" * 6)
        selected = select(Selection(include=bed), ["c"], np.array([[0, 0, 30]]), 1, 10, True, writer, mark)
    assert selected.documents.tolist() == [[0, 2, 11], [0, 11, 19], [0, 19, 27]]
    assert (tmp_path / "bin").read_bytes() == (b"ACGTA" * 6)[2:27]
    assert selected.regions == 5


def test_settings_are_in_the_manifest(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">a\nACGTNACGT\n")
    (tmp_path / "i.bed").write_text("a 0 5\na 4 8\n")
    cleaning = preprocess([tmp_path / "x.fa"], tmp_path / "s", max_n_fraction=0.5, include_bed=tmp_path / "i.bed")["cleaning"]
    assert list(cleaning) == ["min_n_run", "min_length", "max_length", "include_bed", "max_n_fraction"]
    assert cleaning["include_bed"] | {"xxh3_128": ""} == {"path": str(tmp_path / "i.bed"), "size": 12, "xxh3_128": ""}
    assert cleaning["max_length"] == 2_000_000_000
    assert "max_n_fraction" not in preprocess([tmp_path / "x.fa"], tmp_path / "t")["cleaning"]


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        ("c9\t1\t2\n", "i.bed: contig 'c9' is in none of the inputs"),
        ("c\t1\t2\n", "i.bed: contig 'c' is in"),
        ("c\t1\t2\n", "Say which one in the first column, as assembly:contig, for example 'y:c'"),
        ("x:b\t1\t2\n", "i.bed: contig 'x:b' is in none of the inputs"),
        ("z:c\t1\t2\n", "i.bed: contig 'z:c' is in none of the inputs"),
        ("x:c\t1\t2\ny:c\t1\t5\n", "i.bed: contig 'y:c' ends at 4 in"),
        ("b\t1\t7\n", "i.bed: contig 'b' ends at 6 in"),
        ("b\t1\n", "i.bed: line 1 is not BED"),
        ("# x\n\nb\tone\t7\n", "i.bed: line 3 is not BED"),
        ("b\t5\t5\n", "i.bed: line 1 has start 5 and end 5"),
        ("b\t-1\t5\n", "i.bed: line 1 has start -1"),
        ("# nothing\n", "i.bed: the BED file has no interval"),
        (None, "i.bed: the BED file cannot be read: No such file"),
    ],
)
@pytest.mark.parametrize("option", ["include_bed", "exclude_bed"])
def test_bed_errors(tmp_path, option, bed, message):
    (tmp_path / "x.fa").write_bytes(b">c\nACGT\n")
    (tmp_path / "y.fa").write_bytes(b">b\nACGTAC\n>c\nACGT\n")
    if bed is not None:
        (tmp_path / "i.bed").write_text(bed)
    with pytest.raises(DataError, match=re.escape(message)):
        preprocess([tmp_path / "x.fa", tmp_path / "y.fa"], tmp_path / "s", **{option: tmp_path / "i.bed"})
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("bed", "kept"),
    [
        ("x:c 0 2\n", "AC"),
        ("y:c 1 3\nx:c 0 2\n", "ACcc"),
        ("y:c 1 3\nx:c 0 2\ny:c 2 6\n", "ACccccc"),
        ("b 1 3\ny:b 2 5\n", "GGGG"),  # both name the same contig
        ("HLA:c:d 1 3\n", "TT"),  # a colon may be part of a contig's name
        ("y:HLA:c:d 0 1\n", "T"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bed_file_may_name_the_assembly(tmp_path, bed, kept, workers):
    (tmp_path / "x.fa").write_bytes(b">c\nACACACAC\n")
    (tmp_path / "y.fa").write_bytes(b">b\nGGGGGGGG\n>c\ncccccccA\n>HLA:c:d\nTTTT\n")
    (tmp_path / "i.bed").write_text(bed)
    inputs = [tmp_path / "x.fa", tmp_path / "y.fa"]
    preprocess(inputs, tmp_path / "in", include_bed=tmp_path / "i.bed", workers=workers)
    assert (tmp_path / "in.bin").read_text() == kept
    counts = preprocess(inputs, tmp_path / "out", exclude_bed=tmp_path / "i.bed", workers=workers)["counts"]
    assert counts["dropped_bases"]["regions"] == len(kept)
    assert counts["kept_bases"] == 28 - len(kept)


def test_a_name_that_is_two_contigs_is_an_error(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">c\nACGT\n")
    (tmp_path / "y.fa").write_bytes(b">x:c\nACGT\n")
    (tmp_path / "i.bed").write_text("x:c 0 2\n")
    with pytest.raises(DataError, match=r"contig 'x:c' is in .*x\.fa and in .*y\.fa\. .* for example 'y:x:c'"):
        preprocess([tmp_path / "x.fa", tmp_path / "y.fa"], tmp_path / "s", include_bed=tmp_path / "i.bed")
    (tmp_path / "i.bed").write_text("y:x:c 0 2\n")
    assert preprocess([tmp_path / "x.fa", tmp_path / "y.fa"], tmp_path / "s", include_bed=tmp_path / "i.bed")["counts"]["kept_bases"] == 2


def test_intervals_are_merged(tmp_path):
    (tmp_path / "x.bed").write_text("a 5 9\na 1 3\na 3 4\na 6 7\nb 0 1\n")
    intervals = read_bed(tmp_path / "x.bed").intervals
    assert {contig: found.tolist() for contig, found in intervals.items()} == {"a": [[1, 4], [5, 9]], "b": [[0, 1]]}


@pytest.mark.parametrize("setting", [{"max_n_fraction": -0.1}, {"max_n_fraction": 1.5}, {"on_error": "go"}])
def test_setting_errors(tmp_path, setting):
    with pytest.raises(ConfigError, match=r"--(max-n-fraction|on-error) = "):
        preprocess([tmp_path / "x.fa"], tmp_path / "s", **setting)


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_inputs_are_skipped_counted_and_named(tmp_path, capsys, workers):
    sound = [tmp_path / "a.fa", tmp_path / "d.fq", tmp_path / "f.fa"]
    for path in sound:
        path.write_bytes((files.fastq if path.suffix == ".fq" else files.fasta)([(path.stem, "ACGTA" * 500_000)]))
    bad = {"b.fa": b">a\n" + b"ACGT" * 700_000 + b"\n>p\nMKLV\n", "e.fa.gz": files.PACKINGS["gzip"](files.fasta([("x", "ACGT" * 9)]))[:-9]}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    inputs = [sound[0], tmp_path / "b.fa", tmp_path / "missing.fa", sound[1], tmp_path / "e.fa.gz", sound[2]]
    with pytest.raises(DataError, match=r"missing\.fa: no such file"):
        preprocess(inputs, tmp_path / "s", workers=workers)
    manifest = preprocess(inputs, tmp_path / "s", workers=workers, on_error="skip")
    expected = preprocess(sound, tmp_path / "t")
    for kind in ("bin", "idx", "bed"):
        assert (tmp_path / f"s.{kind}").read_bytes() == (tmp_path / f"t.{kind}").read_bytes()
    assert {key: value for key, value in manifest.items() if key != "skipped"} == expected
    assert [entry["path"].rpartition("/")[2] for entry in manifest["skipped"]] == ["b.fa", "missing.fa", "e.fa.gz"]
    assert "b.fa: line 4, record 'p': 'L' is an amino acid" in manifest["skipped"][0]["error"]
    err = capsys.readouterr().err
    assert "dnapretrain: 3 of 6 input(s) skipped (--on-error skip), listed in the manifest\n" in err
    assert "dnapretrain: 1 FASTQ input(s), 1 reads: their qualities are not kept\n" in err
    verify_shard(tmp_path / "s")


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_usable_is_an_error(tmp_path, workers):
    (tmp_path / "a.fa").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"none of 2 input\(s\) could be used; the first: .*a\.fa: line 1"):
        preprocess([tmp_path / "a.fa", tmp_path / "missing"], tmp_path / "s", on_error="skip", workers=workers)
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize(("upper", "is_mask"), [(0, False), (9, False), (10, True), (5000, True)])
@pytest.mark.parametrize("workers", [1, 2])
def test_lower_case_over_the_limit_is_no_mask(tmp_path, capsys, upper, is_mask, workers):
    bases = "A" * upper + "acgtn" * ((10_000 - upper) // 5) + "g" * (-upper % 5)
    (tmp_path / "x.fa").write_bytes(files.fasta([("c", bases)]))
    (tmp_path / "other.fa").write_bytes(files.fasta([("c", "ACgt")]))
    manifest = preprocess([tmp_path / "x.fa", tmp_path / "other.fa"], tmp_path / "s", workers=workers)
    assert (tmp_path / "s.bin").read_text() == (bases if is_mask else bases.upper()) + "ACgt"
    source = manifest["sources"][0]
    assert source.get("all_lower_case") == (None if is_mask else True)
    assert source["counts"]["lower_case"] == (10_000 - upper if is_mask else 0)
    assert source["counts"]["n"] == bases.count("n")
    assert "all_lower_case" not in manifest["sources"][1]
    assert ("over 99.9 % lower case" in capsys.readouterr().err) != is_mask
    verify_shard(tmp_path / "s")


def test_the_mask_is_judged_before_intervals_are_chosen(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">c\nACGTacgtACGT\n")
    (tmp_path / "i.bed").write_text("c 4 8\n")
    manifest = preprocess([tmp_path / "x.fa"], tmp_path / "s", include_bed=tmp_path / "i.bed")
    assert (tmp_path / "s.bin").read_bytes() == b"acgt"
    assert manifest["counts"]["lower_case"] == 4
