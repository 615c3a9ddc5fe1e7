"""Shards and Megatron's index: what is written is what Megatron and we read; damage is named."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from dnapretrain.data.shards.indexed_dataset import HEADER, index_bytes, read_index
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, shard_file, verify_shard
from dnapretrain.errors import DataError

TEXT = b">chr1 first\nACGTacgtNN\nACGT\n>chr2\nGG" + b"N" * 12 + b"TTT\n>chr3\nAAAA\n"
DOCUMENTS = [b"ACGTacgtNNACGT", b"GG", b"TTT", b"AAAA"]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "tiny.fa").write_bytes(TEXT)
    preprocess([tmp_path / "tiny.fa"], tmp_path / "shard.v1")  # a prefix may hold dots
    return tmp_path / "shard.v1"


def test_documents_and_coordinates(prefix):
    shard = open_shard(str(prefix))
    assert shard.lengths.dtype == shard.offsets.dtype == np.int64
    assert isinstance(shard.bases, np.memmap)
    assert [
        shard.bases[offset : offset + length].tobytes() for offset, length in zip(shard.offsets, shard.lengths, strict=True)
    ] == DOCUMENTS
    where = shard.coordinates
    assert where.contig == ["chr1", "chr2", "chr2", "chr3"]
    assert list(zip(where.start.tolist(), where.end.tolist(), strict=True)) == [(0, 14), (0, 2), (14, 17), (0, 4)]
    assert where.strand == ["+"] * 4
    assert where.assembly == ["tiny"] * 4
    assert where.locus(2) == "tiny:chr2:15-17"
    assert verify_shard(prefix) == shard.digest == shard.manifest["files"]["bin"]["xxh3_128"]


def test_bed12_lines(prefix):
    lines = shard_file(prefix, "bed").read_bytes().decode().split("\n")
    assert lines[2] == "chr2\t14\t17\ttiny\t0\t+\t14\t14\t0\t1\t3\t0"
    assert len(lines) == 5
    assert lines[4] == ""


def test_megatron_reads_it(prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    assert [dataset[number].tobytes() for number in range(len(dataset))] == DOCUMENTS
    assert dataset[0].dtype == np.uint8
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert dataset.sequence_lengths.tolist() == [14, 2, 3, 4]


def test_index_is_the_bytes_megatron_writes(tmp_path):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint8)
    for document in DOCUMENTS:
        builder.add_document(torch.from_numpy(np.frombuffer(document, np.uint8).copy()), [len(document)])
    builder.finalize(str(tmp_path / "m.idx"))
    assert index_bytes(np.array([len(document) for document in DOCUMENTS])) == (tmp_path / "m.idx").read_bytes()


def test_reads_other_dtypes_megatron_writes(tmp_path):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    builder.add_document(torch.arange(5), [2, 3])
    builder.finalize(str(tmp_path / "m.idx"))
    index = read_index(tmp_path / "m.idx", 10)
    assert index.dtype == np.uint16
    assert (index.lengths.tolist(), index.pointers.tolist(), index.documents.tolist()) == ([2, 3], [0, 4], [0, 2])


def test_pointers_beyond_32_bits():
    lengths = np.array([2_000_000_000, 2_000_000_000, 2_000_000_000, 5])
    pointers = np.frombuffer(index_bytes(lengths), "<i8", 4, HEADER.size + 16)
    assert pointers.tolist() == [0, 2_000_000_000, 4_000_000_000, 6_000_000_000]
    with pytest.raises(ValueError, match="2147483648"):
        index_bytes(np.array([2**31]))


def test_every_cut_of_the_index_is_refused(prefix, tmp_path):
    data = shard_file(prefix, "idx").read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut.idx").write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut\.idx"):
            read_index(tmp_path / "cut.idx", len(b"".join(DOCUMENTS)))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"NOTMEGATR", "not a Megatron index"),
        (9, struct.pack("<Q", 2), "index version 2"),
        (17, b"\x09", "dtype code 9"),
        (18, struct.pack("<Q", 2**60), "cut or damaged"),
        (34, struct.pack("<i", 24), "sequence 0"),
        (34, struct.pack("<i", -1), "sequence 0"),
        (34 + 16 + 24, struct.pack("<q", 20), "sequence 3"),
        (34 + 16 + 24, struct.pack("<q", -1), "sequence 3"),
        (34 + 16 + 24, struct.pack("<q", 2**63 - 1), "sequence 3"),
        (34 + 16 + 32, struct.pack("<q", 1), "document index"),
        (34 + 16 + 32 + 8, struct.pack("<q", 9), "document index"),
    ],
)
def test_damaged_index_is_refused(prefix, tmp_path, offset, value, message):
    data = bytearray(shard_file(prefix, "idx").read_bytes())
    data[offset : offset + len(value)] = value
    (tmp_path / "bad.idx").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_index(tmp_path / "bad.idx", len(b"".join(DOCUMENTS)))


def test_without_manifest_it_is_not_finished(prefix):
    shard_file(prefix, "json").unlink()
    with pytest.raises(DataError, match="not finished"):
        open_shard(prefix)
    with pytest.raises(DataError, match="no such shard"):
        open_shard(prefix.with_name("other"))


@pytest.mark.parametrize("kind", ["bin", "idx", "bed"])
def test_cut_missing_and_changed_files(prefix, kind):
    path = shard_file(prefix, kind)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{kind}: {len(data) - 1} bytes, but the manifest says {len(data)}"):
        open_shard(prefix)
    changed = bytearray(data)
    changed[-1] ^= 2
    path.write_bytes(changed)
    with pytest.raises(DataError, match=f"shard.v1.{kind}"):
        verify_shard(prefix)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_shard(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format="other"), "not the manifest of a base shard"),
        (lambda manifest: manifest.update(format_version=99), "shard format 99"),
        (lambda manifest: manifest.pop("files"), "section 'files' is damaged"),
        (lambda manifest: manifest["files"].pop("bed"), "section 'files' is damaged"),
    ],
)
def test_foreign_manifest(prefix, change, message):
    path = shard_file(prefix, "json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        open_shard(prefix)


def test_manifest_that_is_no_json(prefix):
    shard_file(prefix, "json").write_text('{"format"')
    with pytest.raises(DataError, match="not JSON"):
        open_shard(prefix)


def test_bed_that_does_not_fit_names_the_line(prefix):
    path = shard_file(prefix, "bed")
    path.write_bytes(path.read_bytes().replace(b"\t14\t17\t", b"\t14\t18\t"))
    with pytest.raises(DataError, match=r"bed: line 3 does not fit"):
        _ = open_shard(prefix).coordinates


def test_a_real_genome_against_megatron(tmp_path):
    if "DNAPRETRAIN_TEST_DATA" not in os.environ:
        pytest.skip("DNAPRETRAIN_TEST_DATA is not set")
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    preprocess([Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "human" / "NT_077402.2_Nrun.fa.gz"], tmp_path / "s")
    shard, dataset = open_shard(tmp_path / "s"), IndexedDataset(str(tmp_path / "s"))
    assert len(dataset) == len(shard.lengths) > 1
    for number in range(len(dataset)):
        offset = shard.offsets[number]
        assert np.array_equal(dataset[number], shard.bases[offset : offset + shard.lengths[number]])
    counts = shard.manifest["counts"]
    assert counts["total_bases"] == 257_719 == counts["kept_bases"] + sum(counts["dropped_bases"].values())
