"""Which parts of the scanned documents stay: inside or outside BED intervals, and not too rich in N.

A source is scanned and written first; then its documents and their coordinates are all known, and its bytes are moved
together in the file, block by block. Without these settings nothing of this runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.shards.writer import FileWriter
from dnapretrain.errors import DataError

Intervals = dict[str, NDArray[np.int64]]
"""By contig, or `assembly:contig`: (n, 2) start and end, 0-based half-open, in order, merged."""
MOVED_BYTES = 1 << 20
END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Bed:
    """A BED file: its intervals, and what the manifest says of it."""

    path: Path
    intervals: Intervals
    entry: dict[str, Any]

    def within(self, assembly: str) -> Bed:
        """The same intervals for one assembly: what is named `assembly:contig` stands under `contig` too."""
        intervals = dict(self.intervals)
        for name, own in self.intervals.items():
            contig = name.removeprefix(f"{assembly}:")
            if contig != name:
                intervals[contig] = _merge(np.concatenate([intervals[contig], own])) if contig in intervals else own
        return replace(self, intervals=intervals)


@dataclass(frozen=True)
class Selection:
    """What stays of the documents."""

    include: Bed | None = None
    """Only what lies in these intervals."""
    exclude: Bed | None = None
    """Only what lies outside of these."""
    max_n_fraction: float | None = None
    """Documents with a larger share of N are left out."""

    @property
    def has_intervals(self) -> bool:
        """Whether documents are cut at the edges of intervals."""
        return self.include is not None or self.exclude is not None

    @property
    def is_active(self) -> bool:
        """Whether anything may be left out."""
        return self.has_intervals or self.max_n_fraction is not None

    def within(self, assembly: str) -> Selection:
        """The selection for an input of this assembly."""
        include, exclude = (bed and bed.within(assembly) for bed in (self.include, self.exclude))
        return replace(self, include=include, exclude=exclude)

    def cleaning(self) -> dict[str, Any]:
        """The settings, as the manifest holds them."""
        given = {
            "include_bed": self.include and self.include.entry,
            "exclude_bed": self.exclude and self.exclude.entry,
            "max_n_fraction": self.max_n_fraction,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Selected:
    """What became of the documents of one source."""

    documents: NDArray[np.int64]
    """(n, 3): contig, start, end of those that stay."""
    letters: NDArray[np.int64]
    """Occurrences of each byte value in them."""
    regions: int
    """Bases left out for the BED files."""
    short_documents: int
    short: int
    n_fraction_documents: int
    n_fraction: int
    """Bases left out, like `short`."""


def read_bed(path: Path) -> Bed:
    """Read the intervals of a BED file. Raises DataError, with the line, where it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the BED file cannot be read: {error.strerror or error}") from None
    found: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        fields = line.split()
        try:
            contig, start, end = fields[0], int(fields[1]), int(fields[2])
        except (IndexError, ValueError):
            raise DataError(f"{path}: line {number} is not BED (contig, start, end): {line[:60]!r}. Mend or remove it") from None
        if not 0 <= start < end <= END:
            raise DataError(f"{path}: line {number} has start {start} and end {end}; BED needs 0 <= start < end < 2^63. Mend it")
        found.setdefault(contig, []).append((start, end))
    if not found:
        raise DataError(f"{path}: the BED file has no interval. Leave the option out, or give another file")
    entry = {"path": str(path), "size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    return Bed(path, {contig: _merge(np.array(pairs, np.int64)) for contig, pairs in found.items()}, entry)


def check_intervals(bed: Bed, contigs_of: list[tuple[Path, str, dict[str, int]]]) -> None:
    """Raise DataError unless each name of the BED file is one contig of one input, and its intervals lie within its length there.

    `contigs_of` holds, for each input, its path, its assembly, and the lengths of its contigs that the BED files name.
    """
    for name, intervals in bed.intervals.items():
        holders = [
            (path, assembly, contig, lengths[contig])
            for path, assembly, lengths in contigs_of
            for contig in dict.fromkeys((name, name.removeprefix(f"{assembly}:")))
            if contig in lengths
        ]
        if not holders:
            raise DataError(
                f"{bed.path}: contig '{name}' is in none of the inputs. Use their record names, or assembly:contig, or remove its lines"
            )
        if len(holders) > 1:
            (first, *_), (second, assembly, contig, _) = holders[:2]
            raise DataError(
                f"{bed.path}: contig '{name}' is in {first} and in {second}. Say which one in the first column, as assembly:contig, "
                f"for example '{assembly}:{contig}', with lines for each that is meant"
            )
        path, _, _, length = holders[0]
        if intervals[-1, 1] > length:
            raise DataError(
                f"{bed.path}: contig '{name}' ends at {length} in {path}, an interval at {intervals[-1, 1]}. "
                "Give the BED file of this assembly"
            )


def select(
    selection: Selection,
    contigs: list[str],
    documents: NDArray[np.int64],
    min_length: int,
    max_length: int,
    upper_case: bool,
    writer: FileWriter,
    mark: tuple[int, Any],
) -> Selected:
    """Keep what `selection` allows of `documents` ((n, 3): contig, start, end), whose bases lie in `writer` from `mark` on.

    In this order: cut at the edges of intervals, leave out what is shorter than `min_length`, leave out what
    has too much N, cut what is longer than `max_length` into equal parts. With `upper_case` the bases become upper case.
    """
    lengths = documents[:, 2] - documents[:, 1]
    places = np.cumsum(lengths) - lengths
    pieces, parents = cut(selection, contigs, documents)
    places = places[parents] + pieces[:, 1] - documents[parents, 1]
    sizes = pieces[:, 2] - pieces[:, 1]
    regions = int(lengths.sum() - sizes.sum())
    stays = sizes >= min_length
    short_documents, short = int((~stays).sum()), int(sizes[~stays].sum())
    pieces, places, sizes = pieces[stays], places[stays], sizes[stays]
    rich = np.zeros(len(sizes), bool)
    if selection.max_n_fraction is not None:
        rich = _count_n(writer, mark[0], places, sizes) > selection.max_n_fraction * sizes
    n_fraction_documents, n_fraction = int(rich.sum()), int(sizes[rich].sum())
    pieces, places, sizes = pieces[~rich], places[~rich], sizes[~rich]
    letters = _move_together(writer, mark, places, sizes, upper_case)
    return Selected(equal_parts(pieces, max_length), letters, regions, short_documents, short, n_fraction_documents, n_fraction)


def _merge(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ordered[:, 1])
    first = np.concatenate([[True], ordered[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([ordered[first, 0], reach[last]], axis=1)


def _outside(intervals: NDArray[np.int64]) -> NDArray[np.int64]:
    edges = np.concatenate([[0], intervals.ravel(), [END]]).reshape(-1, 2)
    return edges[edges[:, 0] < edges[:, 1]]


def cut(selection: Selection, contigs: list[str], documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The parts of the documents inside the allowed intervals, in order, and the document that each is a part of."""
    parents = np.arange(len(documents))
    for bed, outside in ((selection.include, False), (selection.exclude, True)):
        if bed is None:
            continue
        firsts = np.searchsorted(documents[:, 0], np.arange(len(contigs) + 1))
        kept, kept_parents = [documents[:0]], [parents[:0]]
        at = 0  # what follows the last contig with intervals is kept whole where they exclude
        for number, contig in enumerate(contigs):
            if contig not in bed.intervals:
                continue
            first, last = firsts[number], firsts[number + 1]
            allowed = _outside(bed.intervals[contig]) if outside else bed.intervals[contig]
            parts, which = _intersect(documents[first:last], allowed)
            if outside:
                kept.append(documents[at:first])
                kept_parents.append(parents[at:first])
            kept.append(parts)
            kept_parents.append(parents[first + which])
            at = last
        if outside:
            kept.append(documents[at:])
            kept_parents.append(parents[at:])
        documents, parents = np.concatenate(kept), np.concatenate(kept_parents)
    return documents, parents


def _intersect(documents: NDArray[np.int64], allowed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The parts of one contig's documents inside `allowed`, and the document of each. Both inputs are in order, without overlaps."""
    first = np.searchsorted(allowed[:, 1], documents[:, 1], "right")
    counts = np.searchsorted(allowed[:, 0], documents[:, 2], "left") - first
    which = np.repeat(np.arange(len(documents)), counts)
    interval = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + first[which]
    parts = documents[which]
    parts[:, 1] = np.maximum(parts[:, 1], allowed[interval, 0])
    parts[:, 2] = np.minimum(parts[:, 2], allowed[interval, 1])
    return parts, which


def equal_parts(pieces: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
    """As the scanner cuts: parts differ by one base at most, the longer ones first."""
    sizes = pieces[:, 2] - pieces[:, 1]
    counts = -(-sizes // max_length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    quotient, rest = np.repeat(sizes // counts, counts), np.repeat(sizes % counts, counts)
    parts = np.repeat(pieces, counts, axis=0)
    parts[:, 1] += number * quotient + np.minimum(number, rest)
    parts[:, 2] = parts[:, 1] + quotient + (number < rest)
    return parts


def _count_n(writer: FileWriter, start: int, places: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """N, of either case, in each piece."""
    counts = np.zeros(len(places), np.int64)
    for at, bases, first, last in _blocks_of(writer, start, places, sizes):
        before = np.concatenate([[0], np.cumsum((bases & 0xDF) == ord("N"))])
        begins = np.clip(places[first:last] - at, 0, len(bases))
        ends = np.clip(places[first:last] + sizes[first:last] - at, 0, len(bases))
        counts[first:last] += before[ends] - before[begins]
    return counts


def _move_together(
    writer: FileWriter, mark: tuple[int, Any], places: NDArray[np.int64], sizes: NDArray[np.int64], upper_case: bool
) -> NDArray[np.int64]:
    """Rewrite the file from `mark` with the pieces alone, and count its letters."""
    letters = np.zeros(256, np.int64)
    blocks = _blocks_of(writer, mark[0], places, sizes)
    writer.rewind(mark)
    for at, bases, first, last in blocks:
        steps = np.zeros(len(bases) + 1, np.int8)
        steps[np.clip(places[first:last] - at, 0, len(bases))] += 1
        steps[np.clip(places[first:last] + sizes[first:last] - at, 0, len(bases))] -= 1
        kept = bases[np.cumsum(steps[:-1], dtype=np.int8) > 0]
        if upper_case:
            kept &= 0xDF
        letters += _core.count_bytes(kept)
        writer.write(kept.data)
    writer.cut()
    return letters


def _blocks_of(
    writer: FileWriter, start: int, places: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.uint8], int, int]]:
    """What was written from byte `start` on, block by block: place, bases, and the range of pieces that reach into it.

    A block is read before anything is written over it: what is kept moves to the front.
    """
    ends = places + sizes
    end = int(ends[-1]) if len(ends) else 0
    with writer.reader() as file:
        for at in range(0, end, MOVED_BYTES):
            file.seek(start + at)
            bases = np.frombuffer(file.read(min(MOVED_BYTES, end - at)), np.uint8)
            first = int(np.searchsorted(ends, at, "right"))
            last = int(np.searchsorted(places, at + len(bases), "left"))
            if last > first:
                yield at, bases, first, last
