"""The sequences of a BED file's intervals, in its order and on their strand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnapretrain._core import reverse_complement
from dnapretrain.adapt.sequences.records import read_records
from dnapretrain.adapt.sequences.table_files import Cells, open_text
from dnapretrain.errors import DataError

BED_FIELDS = ("contig", "start", "end", "name", "score", "strand")
LABELS = ("name", "score")


@dataclass(frozen=True)
class _Interval:
    line: int
    contig: str
    start: int
    end: int
    """0-based half-open."""
    fields: list[str]

    @property
    def strand(self) -> str:
        return self.fields[5] if len(self.fields) > 5 else "."

    @property
    def name(self) -> str:
        """That of the file, or `contig:start-end`, 1-based, with the strand where it is minus."""
        if len(self.fields) > 3 and self.fields[3] not in ("", "."):
            return self.fields[3]
        return f"{self.contig}:{self.start + 1}-{self.end}" + ("(-)" if self.strand == "-" else "")


def interval_rows(bed: Path, fasta: Path, labels: tuple[str, ...]) -> Iterator[Cells]:
    """One row per interval. The sequence file is read once, and the sequences of all intervals are held.

    labels: of `name`, `score`, `column7` and further. Raises DataError for a line that is no BED, a contig that is not there, an
    interval beyond its end, and a spliced one (BED12 with several blocks).
    """
    numbers = [_label_number(bed, label) for label in labels]
    intervals = list(_read_intervals(bed))
    if not fasta.is_file():
        raise DataError(f"no such sequence file: {fasta}. --fasta names the one with the contigs of {bed}.")
    texts = _cut(bed, fasta, intervals)
    for interval, text in zip(intervals, texts, strict=True):
        for label, at in zip(labels, numbers, strict=True):
            if at >= len(interval.fields):
                raise DataError(f"{bed}: line {interval.line} has {len(interval.fields)} columns, and label '{label}' is number {at + 1}.")
        yield Cells(interval.name, text, {label: interval.fields[at] for label, at in zip(labels, numbers, strict=True)})


def _label_number(bed: Path, label: str) -> int:
    if label in LABELS:
        return BED_FIELDS.index(label)
    number = label.removeprefix("column")
    if number != label and number.isdigit() and int(number) >= 4:
        return int(number) - 1
    raise DataError(f"{bed}: BED has no column '{label}'. Name {', '.join(LABELS)} or columnN, counted from 1.")


def _read_intervals(bed: Path) -> Iterator[_Interval]:
    for line, text in enumerate(_lines(bed), 1):
        if not text.strip() or text.startswith(("#", "track", "browser")):
            continue
        fields = text.split("\t") if "\t" in text else text.split()
        try:
            contig, start, end = fields[0], int(fields[1]), int(fields[2])
        except (IndexError, ValueError):
            raise DataError(f"{bed}: line {line} is not BED (contig, start, end): {text[:60]!r}. Mend or remove it.") from None
        if not 0 <= start < end:
            raise DataError(f"{bed}: line {line} has start {start} and end {end}; BED needs 0 <= start < end. Mend it.")
        interval = _Interval(line, contig, start, end, fields)
        if interval.strand not in ("+", "-", ".", ""):
            raise DataError(f"{bed}: line {line} has strand {interval.strand!r}; it is +, - or '.'. Mend it.")
        if len(fields) > 9 and fields[9].isdigit() and int(fields[9]) > 1:
            raise DataError(f"{bed}: line {line} has {fields[9]} blocks. Spliced sequence comes from `dnapretrain extract`, or bedtools.")
        yield interval


def _lines(bed: Path) -> Iterator[str]:
    with open_text(bed) as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def _cut(bed: Path, fasta: Path, intervals: list[_Interval]) -> list[str]:
    """Bases of each interval, on its strand."""
    by_contig: dict[str, list[int]] = {}
    for number, interval in enumerate(intervals):
        by_contig.setdefault(interval.contig, []).append(number)
    texts = [""] * len(intervals)
    found: list[str] = []
    for name, _, bases in read_records(fasta):
        found.append(name)
        for number in by_contig.pop(name, []):
            interval = intervals[number]
            if interval.end > len(bases):
                raise DataError(
                    f"{bed}: line {interval.line} ends at {interval.end}, but {name} of {fasta} has {len(bases)} bases. "
                    "Is it another assembly?"
                )
            piece = bases[interval.start : interval.end]
            texts[number] = reverse_complement_text(piece) if interval.strand == "-" else piece
    if by_contig:
        missing = next(iter(by_contig))
        known = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise DataError(
            f"{bed}: line {intervals[by_contig[missing][0]].line}: {fasta} has no contig '{missing}' ({len(by_contig)} such names); "
            f"it has {known}. Rename one side (chr1 or 1?)."
        )
    return texts


def reverse_complement_text(text: str) -> str:
    """The other strand, IUPAC codes included."""
    return reverse_complement(np.frombuffer(text.encode("ascii"), np.uint8)).tobytes().decode("ascii")
