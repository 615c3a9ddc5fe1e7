"""Tables with named columns: CSV and TSV, Parquet, and the Arrow files of a saved dataset, as the cells of a sequence table."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnapretrain.adapt.extras import need
from dnapretrain.data.formats.compression import DigestedFile, PackedError, Readable, open_unpacked
from dnapretrain.errors import DataError

STATE = "state.json"
"""In a folder that `datasets.Dataset.save_to_disk` wrote."""
SPLITS = "dataset_dict.json"
"""In a folder of several of these."""


@dataclass(frozen=True)
class Cells:
    """A row as it stands in the file."""

    name: str
    sequence: str
    labels: Mapping[str, str]
    """"" where a label is missing."""


@dataclass(frozen=True)
class _Columns:
    """Numbers of the columns that are read."""

    sequence: int
    labels: dict[str, int]
    name: int | None

    @property
    def wanted(self) -> list[int]:
        return [self.sequence, *self.labels.values(), *([] if self.name is None else [self.name])]


def _columns(path: Path, header: Sequence[str], sequence: str, labels: tuple[str, ...] | None, name: str | None) -> _Columns:
    """Raises DataError for a column that is not there, naming those that are, and for one that is there twice."""
    labels = labels if labels is not None else (("label",) if "label" in header else ())
    name = name or ("name" if "name" in header else None)
    for column, option in ((sequence, "--sequence-column"), *((label, "--label-column") for label in labels), (name, "--name-column")):
        if column is not None and column not in header:
            known = ", ".join(header)
            hint = " The first line looks like data: put a line with the names of the columns before it." if _is_data(header) else ""
            raise DataError(f"{path} has no column '{column}': there are {known[:300]}. Name the right one with {option}.{hint}")
        if column is not None and header.count(column) > 1:
            raise DataError(f"{path} has {header.count(column)} columns named '{column}'. Rename all but one.")
    return _Columns(header.index(sequence), {label: header.index(label) for label in labels}, header.index(name) if name else None)


def _is_data(header: Sequence[str]) -> bool:
    return any(len(text) > 10 and set(text.upper()) <= set("ACGTN") for text in header)


def text_rows(path: Path, sequence: str, labels: tuple[str, ...] | None, name: str | None) -> Iterator[Cells]:
    """Rows of CSV or TSV (a tab in the first line), packed or not. Raises DataError with the line."""
    csv.field_size_limit(sys.maxsize)  # sequences are longer than its 131,072 letters
    with open_text(path) as lines:
        yield from _csv_rows(path, lines, sequence, labels, name)


@contextmanager
def open_text(path: Path) -> Iterator[Iterable[str]]:
    """The lines of a text file, with their ends; plain, gzip, zstd, xz or bzip2, told by content. Raises DataError while it is read."""
    try:
        with path.open("rb", buffering=0) as raw:
            stream = open_unpacked(raw, DigestedFile(raw, False))
            yield io.TextIOWrapper(io.BufferedReader(_Raw(stream)), encoding="utf-8-sig", newline="")
    except PackedError as error:
        raise DataError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}). Write it as UTF-8, or give it the suffix of its format.") from None


class _Raw(io.RawIOBase):
    """A stream of unpacked bytes as Python's readers want one."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._stream.readinto(buffer))


def _csv_rows(path: Path, lines: Iterable[str], sequence: str, labels: tuple[str, ...] | None, name: str | None) -> Iterator[Cells]:
    lines = iter(lines)
    first = next(lines, "")
    reader = csv.reader(_after(first, lines), delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        header = [text.strip() for text in next(reader, [])]
        if not header:
            raise DataError(f"{path} has no line with the names of its columns. Put one first.")
        columns = _columns(path, header, sequence, labels, name)
        number = 0
        for fields in reader:
            if not fields:  # an empty line
                continue
            number += 1
            if len(fields) != len(header):
                raise DataError(f"{path}: line {reader.line_num} has {len(fields)} fields, the first line {len(header)}. Mend it.")
            row_name = fields[columns.name] if columns.name is not None else f"row{number}"
            yield Cells(row_name, fields[columns.sequence], {label: fields[at] for label, at in columns.labels.items()})
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}. Mend the quotes.") from None


def _after(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def parquet_rows(path: Path, sequence: str, labels: tuple[str, ...] | None, name: str | None) -> Iterator[Cells]:
    """Rows of a Parquet file. Raises DataError for a file that is none."""
    parquet = need("pyarrow.parquet", "reading Parquet")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise DataError(f"{path} is no whole Parquet file: {' '.join(str(error).split())}. Write it again.") from None
    header = file.schema_arrow.names
    columns = _columns(path, header, sequence, labels, name)
    names = [header[at] for at in columns.wanted]
    yield from _batch_rows(path, file.iter_batches(batch_size=4096, columns=names), header, columns)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote this folder."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def arrow_rows(folder: Path, sequence: str, labels: tuple[str, ...] | None, name: str | None) -> Iterator[Cells]:
    """Rows of a folder of `datasets.Dataset.save_to_disk`, read without that package. Raises DataError."""
    ipc = need("pyarrow.ipc", "reading a saved dataset")
    if (folder / SPLITS).is_file():
        splits = json.loads((folder / SPLITS).read_text()).get("splits", [])
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}. Give one of its folders, for example {folder / (splits or [''])[0]}."
        )
    state = json.loads((folder / STATE).read_text())
    if state.get("_indices_files"):
        raise DataError(f"{folder} has an indices mapping over its rows. Save it again after `.flatten_indices()`.")
    return _arrow_files(folder, [folder / file["filename"] for file in state["_data_files"]], ipc, sequence, labels, name)


def _arrow_files(
    folder: Path, files: list[Path], ipc: Any, sequence: str, labels: tuple[str, ...] | None, name: str | None
) -> Iterator[Cells]:
    number = 0
    for path in files:
        try:
            with path.open("rb") as raw:
                reader = ipc.open_stream(raw)
                header = reader.schema.names
                for row in _batch_rows(folder, reader, header, _columns(folder, header, sequence, labels, name), number):
                    number += 1
                    yield row
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}. Save the dataset again.") from None


def _batch_rows(path: Path, batches: Iterable[Any], header: Sequence[str], columns: _Columns, number: int = 0) -> Iterator[Cells]:
    for batch in batches:
        sequences = batch.column(header[columns.sequence]).to_pylist()
        labels = {label: batch.column(header[at]).to_pylist() for label, at in columns.labels.items()}
        names = batch.column(header[columns.name]).to_pylist() if columns.name is not None else None
        for at, bases in enumerate(sequences):
            number += 1
            row_name = str(names[at]) if names else f"row{number}"
            if not isinstance(bases, str):
                found = "no sequence" if bases is None else f"{type(bases).__name__}, not text, in column '{header[columns.sequence]}'"
                raise DataError(f"{path}: row {number} ({row_name}) has {found}. Mend it.")
            yield Cells(row_name, bases, {label: _text(values[at]) for label, values in labels.items()})


def _text(value: Any) -> str:
    """A label as CSV would have it: "" for null, items of a list with spaces between."""
    if value is None:
        return ""
    return " ".join(map(_text, value)) if isinstance(value, list) else str(value)
