"""The short version of `make fuzz`, and what fuzzing found once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_readers
import run

from dnapretrain import _core
from dnapretrain.data.genes.annotation import AnnotationFile
from dnapretrain.data.genes.gene_models import read_genes
from dnapretrain.data.shards.selection import read_bed
from dnapretrain.data.tokens.bpe import bpe_of_json, load_bpe, vocabulary_of_merges
from dnapretrain.data.variants.vcf import VcfFile
from dnapretrain.errors import DataError


def test_readers_read_or_refuse():
    outcomes, faults = fuzz_readers.fuzz(2200, seed=0)
    assert not faults, "\n".join(faults)
    assert all(counts["read"] > 10 and counts["refused"] > 10 for counts in outcomes.values()), outcomes


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("clang++"), reason="no clang++: the harnesses of the native core are not run")
@pytest.mark.parametrize("harness", run.HARNESSES, ids=lambda harness: harness.name)
def test_native_harness(harness, tmp_path):
    runs = 100 if harness.name == "bpe" else 1000
    status, executions, _ = run.run(harness, run.build(harness, tmp_path), runs, seed=1)
    assert status == 0, next(tmp_path.glob("*.log")).read_text(errors="replace")[-3000:]
    assert executions >= runs


def test_merge_that_never_happens_makes_no_token():
    # C + G comes first, so AC + G never finds its parts side by side.
    encoder = vocabulary_of_merges([("C", "G"), ("A", "C"), ("AC", "G")]).encoder()
    ids, lengths = encoder.encode(np.frombuffer(b"ACG", np.uint8))
    assert ids.tolist() == [5, 9]
    assert lengths.tolist() == [1, 2]


@pytest.mark.parametrize("order", ["AACC", "ACGA", "ACG", "ACGTA", "acgt"])
def test_base_order_holds_each_base_once(order):
    with pytest.raises(ValueError, match="once each"):
        _core.Encoder(k=2, base_order=order, first_id=5, pad=0, bos=1, eos=2, unk=3, n=3, lowercase_weight=1.0)


@pytest.mark.parametrize(("k", "singles", "message"), [(10**15, "ACGTN", "k must be 1 to 8"), (2, "N", "must hold A, C, G and T")])
def test_split_encoder_refuses(k, singles, message):
    settings = {"base_order": "ACGT", "first_id": 20, "first_single": 5, "pad": 0, "bos": 1, "eos": 2, "unk": 3, "lowercase_weight": 1.0}
    with pytest.raises(ValueError, match=message):
        _core.SplitEncoder(k=k, singles=singles, **settings)


@pytest.mark.parametrize("digits", [19, 30, 5000])
def test_numbers_that_no_integer_holds(tmp_path, digits):
    number, path = "9" * digits, tmp_path / "file"
    path.write_text(f"c\t.\tgene\t1\t{number}\t.\t+\t.\tID=g\n")
    with pytest.raises(DataError, match=r"line 1 runs from '1' to '9{19}"):
        list(AnnotationFile(path).rows())
    path.write_text(f"c\t.\tCDS\t1\t9\t.\t+\t0\tID=g;transl_table={number}\n")
    assert read_genes(path).genes[0].transcripts[0].coding[0].table is None
    path.write_text(
        f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts\nc\t{number}\t.\tA\tC\t.\t.\t.\tGT\t0|1\n"
    )
    with pytest.raises(DataError, match=r"line 3: POS is '9{19}"):
        list(VcfFile(path).records())
    path.write_text(f"c\t0\t{number}{number}\n")
    with pytest.raises(DataError, match="line 1"):
        read_bed(path)


def test_annotation_of_two_formats(tmp_path):
    path = tmp_path / "file"
    path.write_text("##gff-version 3\nc\t.\tgene\t1\t9\t.\t+\t.\tID=g\n##gff-version 2\n")
    with pytest.raises(DataError, match="line 3 says gtf, what comes before is gff3"):
        read_genes(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": {"vocab": {}, "merges": [[1, 2]]}}'])
def test_tokenizer_that_is_none(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        load_bpe(tmp_path / "tokenizer.json")


def test_tokenizer_with_a_pre_tokenizer_that_is_none():
    contents = vocabulary_of_merges([("A", "C")]).to_json() | {"pre_tokenizer": "Whitespace"}
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        bpe_of_json(contents, "x")
