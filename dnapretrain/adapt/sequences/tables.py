"""Sequences with labels, from any file that users keep them in, row by row and in order.

FASTA (and what `preprocess` reads), CSV and TSV (plain or packed), Parquet, a folder of `datasets.Dataset.save_to_disk`, and BED with
the FASTA of its contigs, minus strands reverse-complemented. Sequences come in upper case with T for U. What cannot be read is an
error that names the row; no row is left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnapretrain.adapt.sequences.records import LETTERS, read_records
from dnapretrain.adapt.sequences.table_files import Cells, arrow_rows, is_saved_dataset, parquet_rows, text_rows
from dnapretrain.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
PACKED_SUFFIXES = (".gz", ".bgz", ".bgzf", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class TableOptions:
    """Which columns are what."""

    sequence_column: str = "sequence"
    label_columns: tuple[str, ...] | None = None
    """None: `label`, where there is one. Of FASTA, the keys of `key=value` in the description; of BED, `name`, `score` or `column7` on."""
    name_column: str | None = None
    """Of CSV, TSV, Parquet and saved datasets. None: `name` where there is one, else rows are named by their number."""
    needs_labels: bool = False
    """Every row must have a label in each label column, and there must be one."""
    fasta: Path | None = None
    """The contigs that the intervals of a BED file are on."""
    from_kmers: bool = False
    """Sequences are written as overlapping k-mers with spaces between, as DNABERT's: join them."""


@dataclass(frozen=True)
class Row:
    """One sequence."""

    number: int
    """1-based, in the file."""
    name: str
    sequence: str
    """Upper case, T for U; letters of LETTERS."""
    labels: Mapping[str, str]
    """Label column -> text as in the file; "" where it is missing."""


@dataclass(frozen=True)
class SequenceTable:
    """All rows of a file."""

    source: str
    names: tuple[str, ...]
    sequences: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    """Label column -> text of each row; "" where it is missing."""

    def __len__(self) -> int:
        return len(self.sequences)

    def select(self, rows: Sequence[int]) -> SequenceTable:
        """These rows (0-based), in this order."""
        labels = {column: tuple(values[row] for row in rows) for column, values in self.labels.items()}
        return replace(
            self, names=tuple(self.names[row] for row in rows), sequences=tuple(self.sequences[row] for row in rows), labels=labels
        )


def read_table(path: str | Path, options: TableOptions | None = None) -> SequenceTable:
    """All rows. Raises DataError as `read_rows` does."""
    rows = list(read_rows(path, options))
    columns = rows[0].labels
    labels = {column: tuple(row.labels[column] for row in rows) for column in columns}
    return SequenceTable(str(path), tuple(row.name for row in rows), tuple(row.sequence for row in rows), labels)


def read_rows(path: str | Path, options: TableOptions | None = None) -> Iterator[Row]:
    """The rows of a file, in order; of FASTA, CSV, TSV and Parquet in bounded memory.

    Raises DataError for a file that is missing, empty or of another kind; a missing column (naming those there); a letter that is no
    base, with row and position; an empty sequence; a missing label where they are needed; a record name used twice.
    """
    path, options = Path(path), options or TableOptions()
    number = 0
    for number, row in enumerate(_rows(path, options), 1):
        labels = {column: value.strip() for column, value in row.labels.items()}
        if options.needs_labels:
            _check_labels(path, number, row.name, labels)
        yield Row(number, row.name, _bases(path, number, row, options), labels)
    if not number:
        raise DataError(f"{path} has no row. Give a file with one sequence per row or record.")


def _check_labels(path: Path, number: int, name: str, labels: Mapping[str, str]) -> None:
    if not labels:
        raise DataError(f"{path} has no label column: name it with --label-column (FASTA: 'label=VALUE' in each description).")
    for column, value in labels.items():
        if not value:
            raise DataError(f"{path}: row {number} ({name}) has no label in column '{column}'. Fill it in, or remove the row.")


def _rows(path: Path, options: TableOptions) -> Iterator[Cells]:
    if path.is_dir():
        if is_saved_dataset(path):
            return arrow_rows(path, options.sequence_column, options.label_columns, options.name_column)
        raise DataError(f"{path} is a folder, but no dataset saved with `save_to_disk` (no state.json). Give a file.")
    if not path.is_file():
        raise DataError(f"no such file: {path}. Give FASTA, CSV, TSV, Parquet, a saved dataset, or BED with --fasta.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Give a file with one sequence per row or record.")
    suffix = _suffix(path)
    if suffix == ".bed" or options.fasta:
        return _bed_rows(path, options)
    if suffix in (".parquet", ".pq"):
        return parquet_rows(path, options.sequence_column, options.label_columns, options.name_column)
    if suffix in TEXT_SUFFIXES:
        return text_rows(path, options.sequence_column, options.label_columns, options.name_column)
    return _fasta_rows(path, options)


def _suffix(path: Path) -> str:
    """The suffix without that of packing, lower case."""
    inner = path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path
    return inner.suffix.lower()


def _fasta_rows(path: Path, options: TableOptions) -> Iterator[Cells]:
    columns = options.label_columns
    for number, (name, description, bases) in enumerate(read_records(path), 1):
        pairs = dict(re.findall(r"(\S+?)=(\S*)", description))
        if columns is None:  # what the first record has, the others must have
            columns = ("label",) if "label" in pairs else ()
        for column in columns:
            if column not in pairs:
                raise DataError(f"{path}: record {number} ({name}) has no '{column}=VALUE' in its description: {description[:60]!r}.")
        yield Cells(name or f"record{number}", bases, {column: pairs[column] for column in columns})


def _bed_rows(path: Path, options: TableOptions) -> Iterator[Cells]:
    from dnapretrain.adapt.sequences.intervals import interval_rows

    if options.fasta is None:
        raise DataError(f"{path} is BED: name the sequence file of its contigs with --fasta.")
    return interval_rows(path, options.fasta, options.label_columns or ())


def _bases(path: Path, number: int, row: Cells, options: TableOptions) -> str:
    """The sequence of a row, checked."""
    text = row.sequence.strip()
    if options.from_kmers or " " in text:
        text = _join_kmers(path, number, row.name, text, options.from_kmers)
    bases = text.upper().replace("U", "T")
    if not bases:
        raise DataError(f"{path}: row {number} ({row.name}) has no bases. Remove it, or fill it in.")
    if not LETTERS.issuperset(bases):
        position = next(position for position, letter in enumerate(bases, 1) if letter not in LETTERS)
        raise DataError(
            f"{path}: row {number} ({row.name}) has {text[position - 1]!r} at position {position}, which is no base "
            f"(A, C, G, T, U, N, or an IUPAC code). Remove or replace it, or name the right column with --sequence-column."
        )
    return bases


def _join_kmers(path: Path, number: int, name: str, text: str, wanted: bool) -> str:
    """The sequence that overlapping k-mers were cut from; DataError where they are not wanted, or none."""
    pieces = text.split()
    k = len(pieces[0]) if pieces else 0
    neighbours = enumerate(itertools.pairwise(pieces), 1)
    step = next((at for at, (one, two) in neighbours if len(two) != k or one[1:] != two[:-1]), None)
    where = f"{path}: row {number} ({name})"
    if step is not None or not pieces or k < 2:
        shown = f"'{pieces[step - 1]} {pieces[step]}'" if step is not None else f"{text[:20]!r}"
        raise DataError(f"{where} is neither a plain sequence nor overlapping k-mers with spaces between: {shown}.")
    if not wanted:
        raise DataError(
            f"{where} is written as overlapping {k}-mers with spaces between, as DNABERT's tables are; the models here cut bases into "
            f"tokens themselves. Give plain sequences, or --from-kmers to join them."
        )
    return pieces[0] + "".join(piece[-1] for piece in pieces[1:])
