"""Shards joined are byte for byte the shard of all inputs; what does not fit together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_preprocess import shard_bytes, write_fasta

from dnapretrain.cli import main
from dnapretrain.data.shards.merge import merge
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, verify_shard
from dnapretrain.data.variants.haplotypes import make_haplotypes
from dnapretrain.errors import ConfigError, DataError


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [write_fasta(tmp_path / name, seed, 3_000 * (seed + 1)) for seed, name in enumerate(["b.fa", "a.fa.gz", "d.fa", "c.fa", "e.fa"])]


@pytest.mark.parametrize("cuts", [[1], [2, 4], [1, 2, 4, 5]])
@pytest.mark.parametrize("options", [{}, {"min_n_run": 3, "min_length": 7, "sha256": True}, {"max_n_fraction": 0.07}])
def test_merged_equals_made_at_once(tmp_path, inputs, cuts, options):
    (tmp_path / "bad.fa").write_bytes(b">x\nMKLV\n")
    inputs.insert(2, tmp_path / "bad.fa")
    preprocess(inputs, tmp_path / "expected", on_error="skip", **options)
    parts = []
    for first, last in zip([0, *cuts], [*cuts, len(inputs)], strict=True):
        parts.append(tmp_path / f"part{first}")
        preprocess(inputs[first:last], parts[-1], on_error="skip", **options)
    merge(parts, tmp_path / "new" / "s")
    assert shard_bytes(tmp_path / "new" / "s") == shard_bytes(tmp_path / "expected")
    if len(parts) > 2:
        merge(parts[:2], tmp_path / "two")
        merge([tmp_path / "two", *parts[2:]], tmp_path / "t")
        assert shard_bytes(tmp_path / "t") == shard_bytes(tmp_path / "expected")
    verify_shard(tmp_path / "new" / "s")
    assert not list(tmp_path.glob(".*"))


def test_command_line_and_move(tmp_path, inputs, capsys):
    preprocess(inputs, tmp_path / "expected")
    preprocess(inputs[:2], tmp_path / "x")
    preprocess(inputs[2:], tmp_path / "y")
    assert main(["merge", str(tmp_path / "x"), str(tmp_path / "y"), "--output", str(tmp_path / "s"), "--move"]) == 0
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")
    assert not [*tmp_path.glob("x.*"), *tmp_path.glob("y.*")]
    assert main(["merge", str(tmp_path / "s"), "--output", str(tmp_path / "t")]) != 0
    assert "at least two" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path, inputs):
    for number, path in enumerate(inputs[:3]):
        preprocess([path], tmp_path / f"s{number}", min_n_run=10 + number // 2)
    preprocess([inputs[0], inputs[3]], tmp_path / "again")
    cases = [
        (["s0", "s2"], ConfigError, "s0 was made with min_n_run = 10, .*s2 with min_n_run = 11"),
        (["s0", "again"], DataError, "again: assembly 'b' is in .*s0 already"),
        (["s0", "s1", "s0"], DataError, "s0: given twice"),
        (["s0"], ConfigError, "at least two"),
        (["s0", "none"], DataError, "none: no such shard"),
    ]
    for names, kind, message in cases:
        with pytest.raises(kind, match=message):
            merge([tmp_path / name for name in names], tmp_path / "out")
    with pytest.raises(DataError, match="--output is one of the shards"):
        merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "s1", overwrite=True)
    merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "out")
    merge([tmp_path / "s1", tmp_path / "s0"], tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("kind", ["bin", "idx", "bed"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_found_while_copying(tmp_path, inputs, kind, damage):
    for number, path in enumerate(inputs[:2]):
        preprocess([path], tmp_path / f"s{number}")
    path = tmp_path / f"s1.{kind}"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(DataError, match=rf"s1\.{kind}: .*(changed|cut or replaced)"):
        merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "out", move=True)
    assert not [*tmp_path.glob("out*"), *tmp_path.glob(".out*")]
    assert (tmp_path / "s0.json").exists()


def haplotypes(folder: Path, sample: str, calls: list[tuple[int, str, str]]) -> Path:
    rows = "".join(f"c1\t{at}\t.\t{ref}\t{alt}\t.\t.\t.\tGT\t0|1\n" for at, ref, alt in calls)
    head = f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{sample}\n"
    (folder / f"{sample}.vcf").write_text(head + rows)
    make_haplotypes(folder / "ref", [folder / f"{sample}.vcf"], folder / sample)
    return folder / sample


def test_edits_stay_with_their_documents(tmp_path):
    (tmp_path / "ref.fa").write_bytes(b">c1\n" + b"ACGT" * 50 + b"\n")
    preprocess([tmp_path / "ref.fa"], tmp_path / "ref")
    parts = [
        haplotypes(tmp_path, "one", [(5, "A", "AGG"), (9, "A", "T")]),
        haplotypes(tmp_path, "two", [(13, "ACGT", "A")]),
        haplotypes(tmp_path, "three", [(1, "A", "C"), (41, "A", "ATTT"), (81, "AC", "A")]),
    ]
    merge(parts, tmp_path / "s")
    verify_shard(tmp_path / "s")
    shard, at = open_shard(tmp_path / "s"), 0
    assert shard.coordinates.haplotype == ("one.1", "one.2", "two.1", "two.2", "three.1", "three.2")
    for part in map(open_shard, parts):
        for document in range(len(part.lengths)):
            for offset in range(int(part.lengths[document])):
                assert shard.reference_position(at, offset) == part.reference_position(document, offset)
            length = int(part.lengths[document])
            stretch = [whole.bases[start : start + length] for whole, start in ((shard, shard.offsets[at]), (part, part.offsets[document]))]
            assert np.array_equal(*stretch)
            at += 1
    assert len(shard.manifest["haplotypes"]) == 3
    assert len(shard.manifest["sources"]) == 1
    with pytest.raises(DataError, match=r"s: sample 'two' is in .*two already"):
        merge([parts[1], tmp_path / "s"], tmp_path / "t")
    with pytest.raises(DataError, match=r"ref holds bases, .*one haplotypes. Merge shards of one kind only"):
        merge([tmp_path / "ref", parts[0]], tmp_path / "t")


def test_labels_have_one_header(tmp_path):
    from dnapretrain.data.genes.extract import extract
    from dnapretrain.data.genes.gene_regions import settings_from_text

    for name in ("x", "y"):
        (tmp_path / f"{name}.fa").write_bytes(b">c1\n" + b"ACGT" * 50 + b"\n")
        preprocess([tmp_path / f"{name}.fa"], tmp_path / name)
        (tmp_path / f"{name}.gff3").write_text("##gff-version 3\nc1\t.\tgene\t11\t40\t.\t-\t.\tID=g;gene_biotype=tRNA\n")
        extract(tmp_path / name, tmp_path / f"{name}.gff3", tmp_path / f"{name}g", settings_from_text("gene", None, None))
    merge([tmp_path / "xg", tmp_path / "yg"], tmp_path / "s")
    verify_shard(tmp_path / "s")
    tables = [(tmp_path / f"{name}.labels.tsv").read_text().splitlines() for name in ("xg", "yg", "s")]
    assert tables[2] == [*tables[0], *tables[1][1:]]
    assert len(tables[2]) == len(open_shard(tmp_path / "s").lengths) + 1
    assert json.loads((tmp_path / "s.json").read_text())["counts"]["documents"] == 2
    assert (tmp_path / "s.bin").stat().st_size == 60


@pytest.mark.parametrize("encodings", [("2bit", "2bit"), ("ascii", "2bit")])
def test_packed_shards_are_joined_too(tmp_path, inputs, encodings):
    preprocess(inputs, tmp_path / "ascii")
    preprocess(inputs, tmp_path / "packed", encoding="2bit")
    for name, part, encoding in zip("xy", (inputs[:2], inputs[2:]), encodings, strict=True):
        preprocess(part, tmp_path / name, encoding=encoding)
    merge([tmp_path / "x", tmp_path / "y"], tmp_path / "s")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "ascii")
    merge([tmp_path / "x", tmp_path / "y"], tmp_path / "t", encoding="2bit")
    assert shard_bytes(tmp_path / "t") == shard_bytes(tmp_path / "packed")
    assert (tmp_path / "t.exceptions").read_bytes() == (tmp_path / "packed.exceptions").read_bytes()
    damaged = bytearray((tmp_path / "y.bin").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "y.bin").write_bytes(damaged)
    with pytest.raises(DataError, match="changed"):
        merge([tmp_path / "x", tmp_path / "y"], tmp_path / "u")
