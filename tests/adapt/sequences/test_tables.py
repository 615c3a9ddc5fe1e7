"""Sequences with labels from every kind of file, and what is said of those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnapretrain.adapt.sequences.records import read_records
from dnapretrain.adapt.sequences.tables import SequenceTable, TableOptions, read_rows, read_table
from dnapretrain.errors import DataError

DATA = (("one", "ACGTN", "0"), ("two", "TTUgca", "1"), ("three", "RYACGT", "0"))
READ = SequenceTable("", ("one", "two", "three"), ("ACGTN", "TTTGCA", "RYACGT"), {"label": ("0", "1", "0")})


def csv_text(delimiter=","):
    return "\n".join(delimiter.join(row) for row in (("name", "sequence", "label"), *DATA)) + "\n"


def write(folder: Path, name: str) -> Path:
    path = folder / name
    inner = path.name.removesuffix(".gz").removesuffix(".bz2")
    if inner.endswith(".parquet"):
        pq.write_table(pa.table({"label": [0, 1, 0], "sequence": [row[1] for row in DATA], "name": [row[0] for row in DATA]}), path)
        return path
    if inner == "saved":
        return saved_dataset(path)
    if inner.endswith((".csv", ".tsv")):
        text = csv_text("\t" if inner.endswith(".tsv") else ",")
    else:
        text = "".join(f">{name} of phage label={label}\n{bases[:3]}\n{bases[3:]}\n" for name, bases, label in DATA)
    pack = gzip.compress if name.endswith(".gz") else bz2.compress if name.endswith(".bz2") else bytes
    path.write_bytes(pack(text.encode()))
    return path


def saved_dataset(folder: Path) -> Path:
    """What `datasets.Dataset.save_to_disk` writes: two files of Arrow's stream format, and their list."""
    folder.mkdir()
    table = pa.table({"name": [row[0] for row in DATA], "sequence": [row[1] for row in DATA], "label": [0, 1, 0]})
    for number, rows in enumerate((table.slice(0, 2), table.slice(2))):
        with (folder / f"data-{number}.arrow").open("wb") as raw, pa.ipc.new_stream(raw, rows.schema) as writer:
            writer.write_table(rows)
    state = {"_data_files": [{"filename": f"data-{number}.arrow"} for number in range(2)], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.bz2", "t.parquet", "saved", "t.fa", "t.fasta.gz"])
def test_every_kind_of_file_gives_the_same_table(name, tmp_path):
    path = write(tmp_path, name)
    table = read_table(path, TableOptions(needs_labels=True))
    assert (table.names, table.sequences, table.labels) == (READ.names, READ.sequences, READ.labels)
    assert table.source == str(path)
    assert table.select([2, 0]).names == ("three", "one") and table.select([2, 0]).labels == {"label": ("0", "0")}


def test_columns_by_other_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffid,dna,dev,hk\ns1,ACGT,1.5,"-2"\n\ns2,GGCC,0.25,3\n')
    table = read_table(path, TableOptions(sequence_column="dna", label_columns=("hk", "dev"), name_column="id"))
    assert table == SequenceTable(str(path), ("s1", "s2"), ("ACGT", "GGCC"), {"hk": ("-2", "3"), "dev": ("1.5", "0.25")})
    assert read_table(path, TableOptions(sequence_column="dna")).names == ("row1", "row2")
    assert read_table(path, TableOptions(sequence_column="dna")).labels == {}


def test_lists_and_nulls_of_parquet(tmp_path):
    pq.write_table(pa.table({"sequence": ["ACG", "TTT"], "label": [[1, 0, 1], None]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").labels == {"label": ("1 0 1", "")}
    with pytest.raises(DataError, match=r"row 2 \(row2\) has no label in column 'label'"):
        read_table(tmp_path / "t.parquet", TableOptions(needs_labels=True))


def test_a_sequence_longer_than_csv_fields_usually_are(tmp_path):
    (tmp_path / "t.csv").write_text("sequence\n" + "ACGT" * 50_000 + "\n")
    assert len(read_table(tmp_path / "t.csv").sequences[0]) == 200_000


def test_records_over_many_blocks_are_whole(tmp_path):
    """Longer than the blocks that files are read in, so that records begin in one and end in another."""
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("ACGTN"), size)) for size in (5, 1_400_000, 17, 1_100_000, 3)]
    lines = (f">r{n} x\n" + "\n".join(text[at : at + 61] for at in range(0, len(text), 61)) for n, text in enumerate(texts))
    (tmp_path / "t.fa").write_text("\n".join(lines) + "\n")
    assert [(name, bases) for name, _, bases in read_records(tmp_path / "t.fa")] == [(f"r{n}", text) for n, text in enumerate(texts)]


BED = "# mine\ncB\t2\t6\tx\t7\t-\tup\ncA\t0\t3\ty\t8\t+\tdown\ncB\t2\t6\n"


def bed_and_fasta(folder):
    (folder / "i.bed").write_text(BED)
    (folder / "g.fa").write_text(">cA\nACGTT\n>cB\nGGNRTTcc\n")
    return folder / "i.bed", folder / "g.fa"


def test_intervals_in_their_order_on_their_strand(tmp_path):
    bed, fasta = bed_and_fasta(tmp_path)
    bed.write_text("".join(BED.splitlines(keepends=True)[:3]))
    table = read_table(bed, TableOptions(fasta=fasta, label_columns=("column7", "score")))
    assert table.names == ("x", "y") and table.sequences == ("AAYN", "ACG")  # cB 2-6 is NRTT
    assert table.labels == {"column7": ("up", "down"), "score": ("7", "8")}
    (bed.parent / "i.bed.gz").write_bytes(gzip.compress(b"cB\t2\t6\ncB\t2\t6\t.\t0\t-\n"))
    plain = read_table(bed.parent / "i.bed.gz", TableOptions(fasta=fasta))
    assert plain.names == ("cB:3-6", "cB:3-6(-)") and plain.sequences == ("NRTT", "AAYN") and plain.labels == {}


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("cB\t2\t9", {}, "line 1 ends at 9, but cB of .* has 8 bases"),
        ("chrB\t2\t6", {}, "has no contig 'chrB' .*it has cA, cB"),
        ("cB\t6\t2", {}, "start 6 and end 2"),
        ("cB\tx\t2", {}, "line 1 is not BED"),
        ("cB\t2\t6\tx\t0\t*", {}, r"strand '\*'"),
        ("cB\t0\t8\tx\t0\t+\t0\t8\t0\t2\t1,1\t0,7", {}, "2 blocks"),
        ("cB\t2\t6", {"label_columns": ("score",)}, "line 1 has 3 columns, and label 'score' is number 5"),
        ("cB\t2\t6", {"label_columns": ("gene",)}, "no column 'gene'"),
        ("# nothing", {}, "has no row"),
    ],
)
def test_intervals_that_cannot_be_cut(line, options, message, tmp_path):
    bed, fasta = bed_and_fasta(tmp_path)
    bed.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_table(bed, TableOptions(fasta=fasta, **options))


def test_bed_needs_its_fasta(tmp_path):
    bed, _ = bed_and_fasta(tmp_path)
    with pytest.raises(DataError, match="--fasta"):
        read_table(bed)
    with pytest.raises(DataError, match="no such sequence file"):
        read_table(bed, TableOptions(fasta=tmp_path / "none.fa"))


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", "seq,label\nACGT,1\n", {}, "no column 'sequence': there are seq, label. Name the right one with --sequence-column"),
        ("t.csv", "sequence,y\nACGT,1\n", {"label_columns": ("label",)}, "no column 'label': there are sequence, y. .*--label-column"),
        ("t.csv", "sequence,y\nACGT,1\n", {"needs_labels": True}, "no label column"),
        ("t.csv", "sequence\nACGT\n", {"name_column": "id"}, "no column 'id'.*--name-column"),
        ("t.csv", "ACGTACGTACGTAC,1\nACGT,1\n", {}, "The first line looks like data"),
        ("t.csv", "sequence,sequence\nA,C\n", {}, "2 columns named 'sequence'"),
        ("t.csv", "sequence,label\nACGT,1\nACXT,0\n", {}, r"row 2 \(row2\) has 'X' at position 3"),
        ("t.csv", "sequence,label\nACGT,1\nAC,\n", {"needs_labels": True}, r"row 2 \(row2\) has no label in column 'label'"),
        ("t.csv", "sequence,label\nACGT,1\n,0\n", {}, r"row 2 \(row2\) has no bases"),
        ("t.csv", "sequence,label\nACGT,1\nACGT\n", {}, "line 3 has 1 fields, the first line 2"),
        ("t.csv", 'sequence,label\n"ACGT,1\n', {}, "line 2.*quotes"),
        ("t.csv", "sequence,label\n", {}, "has no row"),
        ("t.csv", "", {}, "is empty"),
        ("t.fa", ">a\nACGT\n>a\nACGT\n", {}, "record 'a': this name was used at line 1 already"),
        ("t.fa", ">a label=1\nACGT\n>b\nACGT\n", {}, r"record 2 \(b\) has no 'label=VALUE'"),
        ("t.fa", ">a\nMKLV\n", {}, "amino acid"),
        ("t.fa", ">a\nACGT\n>b\n>c\nA\n", {}, r"row 2 \(b\) has no bases"),
        ("t.parquet", "PAR1 not", {}, "no whole Parquet file"),
        ("t.csv", "sequence\nACGT CGTA\n", {}, "overlapping 4-mers with spaces between, as DNABERT's"),
        ("t.csv", "sequence\nACGT CGTA GTTT\n", {"from_kmers": True}, "neither a plain sequence nor overlapping k-mers.*'CGTA GTTT'"),
    ],
)
def test_bad_tables(name, text, options, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name, TableOptions(**options)))


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(DataError, match="no dataset saved"):
        read_table(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="splits train, test"):
        read_table(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")


def test_packed_and_cut(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(csv_text().encode() * 50)[:-20])
    with pytest.raises(DataError, match="truncated"):
        read_table(tmp_path / "t.csv.gz")


def test_overlapping_kmers_are_joined_where_asked(tmp_path):
    (tmp_path / "t.tsv").write_text("sequence\tlabel\nACGT CGTN GTNA\t1\n")
    assert read_table(tmp_path / "t.tsv", TableOptions(from_kmers=True)).sequences == ("ACGTNA",)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    import sys

    from dnapretrain.errors import ConfigError

    path = write(tmp_path, "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pyarrow.*dnapretrain\[adapt\]"):
        read_table(path)
