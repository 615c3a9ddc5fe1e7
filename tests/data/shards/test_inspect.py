"""`inspect` by known answers on a small shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnapretrain.data.shards.inspect import format_inspection, inspect_shard
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.errors import DataError


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
