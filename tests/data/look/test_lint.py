"""`lint`: its counts are those of a real preprocess, its facts those of a slow Python version, and no error hides another."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import sequence_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.cli import main
from dnapretrain.data.formats import inputs as formats
from dnapretrain.data.formats.compression import _OPENERS
from dnapretrain.data.formats.inputs import strip_suffixes
from dnapretrain.data.look import lint_records, lint_scan
from dnapretrain.data.look.lint import LintSettings, lint
from dnapretrain.data.look.lint_text import format_lint
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.errors import ConfigError, DataError

COMPLEMENT = str.maketrans("ACGTRYKMBVDHSWN", "TGCAYRMKVBHDSWN")


def flip(bases: str) -> str:
    return bases.upper().translate(COMPLEMENT)[::-1]


def slow_facts(records: list[tuple[str, str]]) -> dict:
    """Letter by letter, of the whole records."""
    text = [bases.replace("U", "T").replace("u", "t") for _, bases in records]
    joined = "".join(text).upper()
    groups: dict[str, int] = {}
    for bases in text:
        if re.search("[ACGTacgt]", bases):
            key = min(bases.upper(), flip(bases))
            groups[key] = groups.get(key, 0) + 1
    repeated = {key: count for key, count in groups.items() if count > 1}
    return {
        "composition": {base: joined.count(base) for base in "ACGTN"} | {"other": len(re.findall("[^ACGTN]", joined))},
        "n_runs": sum(len(re.findall("[Nn]+", bases)) for bases in text),
        "longest_n_run": max((len(run) for bases in text for run in re.findall("[Nn]+", bases)), default=0),
        "lower": len(re.findall("[a-z]", "".join(text))),
        "groups": len(repeated),
        "records": sum(repeated.values()) - len(repeated),
        "bases": sum(len(key) * (count - 1) for key, count in repeated.items()),
    }


PARTS = st.lists(st.sampled_from(["ACGT", "acg", "T", "N", "NNN", "nn", "GR", "U"]), max_size=12).map("".join)


@st.composite
def cases(draw):
    records = [(f"c{number}", bases) for number, bases in enumerate(draw(st.lists(PARTS, min_size=1, max_size=6)))]
    records.append(("last", "TTGCAA" + draw(PARTS)))
    for number in draw(st.lists(st.integers(0, len(records) - 1), max_size=3)):
        bases = records[number][1]
        records.append((f"copy{len(records)}", flip(bases.upper().replace("U", "T")) if draw(st.booleans()) else bases.lower()))
    interval = st.builds(lambda a, b: ("last", min(a, b), max(a, b) + 1), st.integers(0, 5), st.integers(0, 5))
    beds = st.none() | st.lists(interval, min_size=1, max_size=3)
    return records, draw(st.sampled_from([1, 2, 4, 99])), draw(st.sampled_from([1, 3, 8])), draw(beds), draw(beds)


@settings(max_examples=120, deadline=None)
@given(
    case=cases(),
    max_n=st.sampled_from([None, None, 0.0, 0.3]),
    block=st.sampled_from([1, 7, 64, 1 << 20]),
    kind=st.sampled_from(["fasta", "fastq"]),
)
def test_counts_are_those_of_preprocess_and_facts_those_of_slow_python(tmp_path_factory, case, max_n, block, kind):
    records, min_n_run, min_length, include, exclude = case
    folder = tmp_path_factory.mktemp("lint")
    path = folder / "x.fa"
    path.write_bytes(files.fastq(records) if kind == "fastq" else files.fasta(records, width=9))
    arguments = {"min_n_run": min_n_run, "min_length": min_length, "max_n_fraction": max_n}
    for name, bed in (("include_bed", include), ("exclude_bed", exclude)):
        if bed is not None:
            (folder / name).write_text("".join(f"x:{contig}\t{start}\t{end}\n" for contig, start, end in bed))
            arguments[name] = folder / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BLOCK_BYTES", max(block, formats.SNIFFED_BYTES) if kind == "fastq" else block)
        patch.setattr(formats, "SNIFFED_BYTES", 1 if kind == "fasta" else formats.SNIFFED_BYTES)
        patch.setattr(lint_records, "CHUNK", 5)
        report = lint([path], LintSettings(**arguments))
    [file] = report["files"]
    expected = slow_facts(records)
    for key in ("composition", "n_runs", "longest_n_run"):
        assert file[key] == expected[key]
    bases = sum(len(bases) for _, bases in records)
    assert file["lower_case_share"] == expected["lower"] / bases
    assert {key: report["duplicates"][key] for key in ("groups", "records", "bases")} == {
        key: expected[key] for key in ("groups", "records", "bases")
    }
    try:
        manifest = preprocess([path], folder / "s", **arguments)
    except DataError as error:
        assert "nothing is left" in str(error)
        assert report["verdict"] == "errors"
        return
    assert report["verdict"] == "clean"
    [source] = manifest["sources"]
    assert file["counts"] == source["counts"] == report["preprocess"]["counts"]
    assert file["all_lower_case"] == source.get("all_lower_case", False)
    assert (file["xxh3_128"], file["size"]) == (source["xxh3_128"], source["size"])
    shard = open_shard(folder / "s")
    tokens = report["preprocess"]["tokens"]
    assert tokens["nucleotide"] == len(shard.bases)
    assert tokens["kmer_6"] == sum(-(-length // 6) for length in shard.lengths.tolist())


def test_all_lower_case_is_judged_as_preprocess_does(tmp_path):
    (tmp_path / "low.fa").write_bytes(b">c\n" + b"acgtn" * 400 + b"\n")
    (tmp_path / "other.fa").write_bytes(b">c\nACgt\n")
    report = lint([tmp_path / "low.fa", tmp_path / "other.fa"])
    manifest = preprocess([tmp_path / "low.fa", tmp_path / "other.fa"], tmp_path / "s")
    assert [file["all_lower_case"] for file in report["files"]] == [True, False]
    assert [file["counts"] for file in report["files"]] == [source["counts"] for source in manifest["sources"]]


RECORDS = [("a", "ACGTACGTNN" * 30), ("b.1", "GGCATT" * 11), ("empty", ""), ("c", flip("GGCATT" * 11)), ("d", "acgt")]


@pytest.mark.parametrize("packing", list(files.PACKINGS))
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_formats_packings_and_line_ends_are_named(tmp_path, packing, newline):
    path = tmp_path / f"x.fa{files.SUFFIXES[packing]}"
    path.write_bytes(files.PACKINGS[packing](files.fasta(RECORDS, newline=newline)))
    [file] = lint([path])["files"]
    named = {"plain": "none", "gzip": "gzip", "zstd": "Zstandard", "xz": "xz", "bzip2": "bzip2"}
    assert (file["format"], file["compression"]) == ("FASTA", named[packing])
    assert file["line_ends"] == {"\n": "LF", "\r\n": "CRLF"}[newline]
    assert file["records"] == 5
    assert file["counts"] == preprocess([path], tmp_path / "s")["sources"][0]["counts"]


def test_every_packing_that_is_read_has_a_name():
    assert lint_scan.PACKINGS.keys() == _OPENERS.keys()


@pytest.mark.parametrize("kind", ["fastq", "genbank", "embl", "gff3", "two_bit"])
def test_other_formats(tmp_path, kind):
    records = [("a.1", "ACGTACGTNN" * 30), ("b.1", "GGCATT" * 11)]
    (tmp_path / "x").write_bytes(getattr(files, kind)(records))
    (tmp_path / "y.fa").write_bytes(files.fasta(records))
    report = lint([tmp_path / "x", tmp_path / "y.fa"])
    assert report["files"][0]["line_ends"] is None
    assert report["files"][0]["counts"]["total_bases"] == 366
    assert report["same_content"] == [[str(tmp_path / "x"), str(tmp_path / "y.fa")]]
    assert report["duplicates"]["records"] == 2


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_mixed_line_ends_wherever_blocks_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(formats, "SNIFFED_BYTES", 1)
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)
    for name, text, expected in (
        ("m", b">a\r\nACGT\nAC\r\n", "mixed"),
        ("c", b">a\r\nACGT\r\n", "CRLF"),
        ("l", b">a\nA\n", "LF"),
        ("n", b">a\n", "LF"),
    ):
        (tmp_path / name).write_bytes(text)
        assert lint([tmp_path / name])["files"][0]["line_ends"] == expected


BROKEN = b""">one text
ACGT
>two
ACGTMKL
ACGT
>one
ACG
>three
AC
>

ACGT
>four
ACXG
>three
ACGTT
>five
ACGT-
>two
T
"""


@pytest.mark.parametrize("block", [1, 2, 5, 11, 1 << 20])
def test_every_error_of_a_file_is_found_with_line_and_record(tmp_path, monkeypatch, block):
    monkeypatch.setattr(formats, "SNIFFED_BYTES", 1)
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)
    (tmp_path / "x.fa").write_bytes(BROKEN)
    [file] = lint([tmp_path / "x.fa"])["files"]
    found = [(mistake["line"], mistake["record"], mistake["message"][:22]) for mistake in file["errors"]]
    assert found == [
        (4, "two", "'L' is an amino acid, "),
        (6, "one", "this name was used bef"),
        (10, None, "the record that begins"),
        (14, "four", "'X' is not a nucleotid"),
        (15, "three", "this name was used at "),
        (18, "five", "'-' is a gap: this loo"),
    ]
    assert (file["records"], file["bases"], file["broken_records"]) == (5, 4 + 3 + 2 + 5 + 1, 3)
    assert (file["usable"], file["counts"]) == (False, None)
    with pytest.raises(DataError, match=re.escape("x.fa: line 4, record 'two': 'L' is an amino acid")):
        preprocess([tmp_path / "x.fa"], tmp_path / "s")


def test_a_name_used_twice_first_of_all_errors(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">a\nACGT\n>b\nA\n>a\nGG\n>b\nGG\n>b\nT")
    [file] = lint([tmp_path / "x.fa"])["files"]
    assert [(mistake["line"], mistake["record"], mistake["message"][:40]) for mistake in file["errors"]] == [
        (5, "a", "this name was used at line 1 already. Re"),
        (7, "b", "this name was used at line 3 already. Re"),
        (9, "b", "this name was used at line 3 already. Re"),
    ]
    assert (file["records"], file["bases"], file["broken_records"]) == (5, 10, 0)


def test_reading_ends_after_many_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(lint_scan, "MAX_ERRORS", 7)
    (tmp_path / "p.fa").write_bytes(b"".join(b">p%d\nMKLE\n" % number for number in range(50)))
    [file] = lint([tmp_path / "p.fa"])["files"]
    assert (len(file["errors"]), file["stopped_early"], file["broken_records"]) == (7, True, 7)


def test_nothing_stops_at_the_first_bad_file(tmp_path):
    (tmp_path / "a.fa").write_bytes(b">a\nMKLV\n")
    (tmp_path / "b.fa.gz").write_bytes(files.PACKINGS["gzip"](files.fasta([("x", "ACGT" * 9000)]))[:-9])
    (tmp_path / "c.fa").write_bytes(b">c\nACGT\n")
    (tmp_path / "c.fna").write_bytes(b">d\nACGTT\n")
    (tmp_path / "v.vcf").write_bytes(b"##fileformat=VCFv4.2\n")
    (tmp_path / "empty.fa").write_bytes(b"")
    (tmp_path / "no_bases.fa").write_bytes(b">a\n>b\n")
    (tmp_path / "folder").mkdir()
    given = ["a.fa", "missing.fa", "b.fa.gz", "folder", "*.none", "c.fa", "c.fna", "v.vcf", "empty.fa", "no_bases.fa"]
    report = lint([tmp_path / name for name in given], LintSettings(workers=3))
    messages = {Path(file["path"]).name: [mistake["message"] for mistake in file["errors"]] for file in report["files"]}
    says = {
        "a.fa": "'L' is an amino acid",
        "missing.fa": "no such file",
        "b.fa.gz": "the gzip file is truncated here",
        "v.vcf": "this is VCF",
        "empty.fa": "the file is empty",
        "no_bases.fa": "no bases in the whole file (2 record(s), all empty)",
    }
    assert {name for name, found in messages.items() if found} == set(says)
    for name, text in says.items():
        assert text in messages[name][0]
    assert [error["message"][:30] for error in report["errors"]] == [
        f"{tmp_path / 'folder'}: no FASTA"[:30], f"{tmp_path / '*.none'}: no file"[:30], "assembly 'c' is the name of " + str(tmp_path)[:2],
    ]  # fmt: skip
    assert report["verdict"] == "errors"
    assert report["preprocess"]["files_with_errors"] == 6
    assert report["preprocess"]["counts"]["kept_bases"] == 9
    assert report["total"]["usable_files"] == 2


def test_duplicates_on_either_strand_across_files(tmp_path):
    bases = "ACCGTTTACGGATCCA" * 3
    (tmp_path / "a.fa").write_bytes(files.fasta([("x", bases), ("n", "N" * 12), ("y", "ACGGT")]))
    (tmp_path / "b.fa").write_bytes(files.fasta([("z", flip(bases)), ("m", "N" * 12), ("w", bases.lower()), ("one_off", bases[:-1])]))
    found = lint([tmp_path / "a.fa", tmp_path / "b.fa"])["duplicates"]
    assert (found["groups"], found["records"], found["bases"], found["of_them_reverse_complement"]) == (1, 2, 96, 1)
    [group] = found["longest"]
    assert [(member["record"], member["strand"]) for member in group["shown"]] == [("a:x", "+"), ("b:z", "-"), ("b:w", "+")]


def test_records_too_long_for_both_strands_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(lint_records, "MAX_BOTH_STRANDS", 100)
    bases = "ACCGTTTACGGATCCA" * 7
    (tmp_path / "a.fa").write_bytes(files.fasta([("x", bases), ("same", bases), ("other", flip(bases)), ("s", "ACCC"), ("t", "GGGT")]))
    found = lint([tmp_path / "a.fa"])["duplicates"]
    assert (found["groups"], found["records"], found["compared_on_one_strand_only"]) == (2, 2, 3)


def test_suspicious_records_and_hints(tmp_path):
    records = [
        ("fine", "ACGT" * 20), ("empty", ""), ("tiny", "ACGTACGTACGTACGTACG"), ("gap", "ACGTACGTAC" + "N" * 11),
        ("poly", "A" * 96 + "CGTC"),
        ("poly_not", "A" * 95 + "CGTCC"), ("codes", "KRSTMANDSGHVA" * 3), ("chrM", "ACGT" * 6), ("chr6_GL000250v2_alt", "ACGA" * 6),
        ("chrUn_x", "ACGC" * 6), ("pl_plasmid_1", "ACGG" * 6),
    ]  # fmt: skip
    text = files.fasta(records).replace(b">fine text", b">fine UNVERIFIED: E. coli plasmid pX, circular")
    (tmp_path / "x.fa").write_bytes(text)
    [file] = lint([tmp_path / "x.fa"])["files"]
    assert {kind: noted["examples"] for kind, noted in file["suspicious"].items()} == {
        "empty": ["x:empty"], "very_short": ["x:tiny"], "over_half_n": ["x:gap"], "one_base": ["x:poly"], "protein_like": ["x:codes"],
    }  # fmt: skip
    assert {kind: noted["examples"] for kind, noted in file["hints"].items()} == {
        "alternate": ["x:chr6_GL000250v2_alt"], "circular": ["x:fine"], "mitochondrion": ["x:chrM"], "plasmid": ["x:fine"],
        "unplaced": ["x:chrUn_x"], "unverified": ["x:fine"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("x [topology=circular]", "circular"),
        ("x E. coli plasmid F", "plasmid"),
        ("x mitochondrion, complete", "mitochondrion"),
        ("MT", "mitochondrion"),
        ("NC_012920.1 Homo", "mitochondrion"),
        ("x Chloroplast", "plastid"),
        ("x plastid", "plastid"),
        ("x apicoplast", "plastid"),
        ("chr1_KI270762v1_alt", "alternate"),
        ("x alternate locus group ALT_REF_LOCI_1", "alternate"),
        ("chr1_KN196472v1_fix", "patch"),
        ("x PATCH y", "patch"),
        ("chr6_hap12", "haplotype"),
        ("x haplotig", "haplotype"),
        ("h1tg000001l", "haplotype"),
        ("chrUn_KI270302v1", "unplaced"),
        ("chr1_KI270706v1_random", "unplaced"),
        ("x unplaced scaffold", "unplaced"),
        ("x unlocalized", "unplaced"),
        ("x_decoy", "decoy"),
        ("chrEBV", "decoy"),
        ("hs37d5", "decoy"),
        ("x cloning vector", "vector_or_adapter"),
        ("TruSeq_Adapter", "vector_or_adapter"),
        ("phiX174", "vector_or_adapter"),
        ("x UNVERIFIED: y", "unverified"),
        ("x supervector of plasmodium", None),
        ("chr1", None),
        ("h3tg", None),
        ("x dispatcher prehaplotypes circularly", None),
    ],
)
def test_hints_of_names(tmp_path, header, kind):
    (tmp_path / "x.fa").write_text(f">{header}\nACGTACGTACGTACGTACGTA\n")
    assert list(lint([tmp_path / "x.fa"])["files"][0]["hints"]) == ([kind] if kind else [])


def test_bed_files_are_checked(tmp_path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.fa").write_bytes(b">c\nACGTACGT\n")
    (tmp_path / "i.bed").write_text("c 0 3\n")
    inputs = [tmp_path / "x.fa", tmp_path / "y.fa"]
    report = lint(inputs, LintSettings(include_bed=tmp_path / "i.bed"))
    assert "Say which one in the first column" in report["errors"][0]["message"]
    (tmp_path / "i.bed").write_text("y:c 0 3\n")
    report = lint(inputs, LintSettings(include_bed=tmp_path / "i.bed"))
    assert report["verdict"] == "clean"
    assert report["preprocess"]["counts"] == preprocess(inputs, tmp_path / "s", include_bed=tmp_path / "i.bed")["counts"]
    assert report["settings"]["include_bed"] == str(tmp_path / "i.bed")


def test_disk_estimate_and_report_do_not_depend_on_workers(tmp_path):
    rng = np.random.default_rng(1)
    for name in "abc":
        bases = "".join(np.array(list("ACGT"))[rng.integers(0, 4, 30_000)])
        (tmp_path / f"{name}.fa").write_bytes(files.fasta([(f"{name}{at}", bases[at : at + 700]) for at in range(0, 30_000, 700)]))
    inputs = [tmp_path / f"{name}.fa" for name in "abc"]
    report = lint(inputs)
    three = lint(inputs, LintSettings(workers=3))
    assert {**three, "settings": None} == {**report, "settings": None}
    preprocess(inputs, tmp_path / "s")
    real = sum((tmp_path / f"s.{kind}").stat().st_size for kind in ("bin", "idx", "bed", "json"))
    assert report["preprocess"]["disk_bytes_estimate"] == pytest.approx(real, rel=0.03)
    assert not [path for path in tmp_path.iterdir() if path.name not in {f"{name}.fa" for name in "abc"} and not path.name.startswith("s.")]


@pytest.mark.parametrize(
    "setting", [{"workers": 0}, {"min_n_run": 0}, {"min_length": 0}, {"min_length": 2 * 10**9}, {"max_n_fraction": 2.0}]
)
def test_setting_errors(setting):
    with pytest.raises(ConfigError, match=r"--(workers|min-n-run|min-length|max-n-fraction) = "):
        LintSettings(**setting)


def test_command(tmp_path, capsys):
    (tmp_path / "x.fa").write_bytes(files.fasta([("c", "ACGT" * 50), ("copy", "acgt" * 50)]))
    assert main(["lint", str(tmp_path / "x.fa"), "--min-length", "3", "--min-n-run", "5", "--max-n-fraction", "0.5", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    for line in ("verdict      clean: preprocess with these settings takes all of it", "             200 bases: x:c (+), x:copy (+)"):
        assert line in text.split("\n")
    (tmp_path / "x.fa").write_bytes(BROKEN)
    assert main(["lint", str(tmp_path / "x.fa"), "--json", "--assembly", "asm"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == lint([tmp_path / "x.fa"], LintSettings(assembly="asm"))
    text = format_lint(report)
    assert f"error        {tmp_path / 'x.fa'}: line 18, record 'five': '-' is a gap" in text
    assert "verdict      6 error(s), 1 of 1 file(s) cannot be used: preprocess would stop. Mend them" in text
    assert main(["lint", str(tmp_path / "x.fa"), "--workers", "0"]) == 2


@pytest.mark.parametrize("arguments", [{}, {"min_n_run": 3, "min_length": 60}, {"max_n_fraction": 0.01, "min_length": 100}])
def test_real_files_are_counted_and_refused_as_by_preprocess(tmp_path, arguments):
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    folder = Path(os.environ["DNAPRETRAIN_TEST_DATA"])
    inputs = list({strip_suffixes(path.name): path for path in sorted((folder / "awkward").iterdir())}.values())
    inputs.append(folder / "genomes" / "celegans_WBcel235_1pct.fa.gz")
    report = lint(inputs, LintSettings(workers=2, **arguments))
    manifest = preprocess(inputs, tmp_path / "s", workers=2, on_error="skip", **arguments)
    assert report["errors"] == []
    refused = [(file["path"], file["errors"][0]) for file in report["files"] if not file["usable"]]
    assert len(refused) > 5
    for (path, mistake), skipped in zip(refused, manifest["skipped"], strict=True):
        line, record = mistake["line"], mistake["record"]
        place = ", ".join(text for text in (line and f"line {line}", record and f"record '{record}'") if text)
        assert skipped == {"path": path, "error": f"{path}: {place}: {mistake['message']}"}
    kept = [file for file in report["files"] if file["usable"]]
    for file, source in zip(kept, manifest["sources"], strict=True):
        assert [file[key] for key in ("path", "assembly", "size", "xxh3_128", "counts")] == [
            source[key] for key in ("path", "assembly", "size", "xxh3_128", "counts")
        ]
        assert file["format"] == source.get("format", "FASTA")
        assert file["all_lower_case"] == source.get("all_lower_case", False)
    assert report["preprocess"]["counts"] == manifest["counts"]
    size = sum(entry["size"] for entry in manifest["files"].values())
    assert report["preprocess"]["disk_bytes_estimate"] == pytest.approx(size, rel=0.03)
