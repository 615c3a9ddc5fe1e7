"""How often each base was read by training samples, as bedGraph.

The corpus is walked in slices of the contigs laid end to end. Of each slice only the places are held where the count
changes, at most one per base of the slice, however long the run. What every epoch reads alike is counted once and multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import RunConfig
from dnapretrain.data.audit.placed import Axis, Placed, training_runs
from dnapretrain.data.audit.runs import open_train
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.errors import ConfigError

SLICE = 1 << 24
"""Bases looked at together."""

Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Start, end and count of stretches, in order and apart."""


@dataclass
class Summary:
    """Of all bases of contigs that the training side holds."""

    sources: list[str]
    """What each shard holds."""
    bases: int = 0
    never_seen: int = 0
    times_seen: int = 0
    """Over all bases together."""
    most: int = 0

    def format(self, up_to_step: int) -> str:
        """One line for people, and one for each shard where there are several."""
        mean, share = self.times_seen / max(self.bases, 1), 100 * self.never_seen / max(self.bases, 1)
        return (
            f"{self.bases:,} training bases up to step {up_to_step:,}: read {mean:.4g} times on average, {self.most:,} at most; "
            f"{self.never_seen:,} never ({share:.3g} %)" + "".join(f"\n  {source}" for source in self.sources if len(self.sources) > 1)
        )


@dataclass(frozen=True, eq=False)
class _Pieces:
    """All training segments in order of their first base on the axis."""

    axis: Axis
    placed: list[Placed]
    """Of each source."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    reach: NDArray[np.int64]
    """The last end up to here: segments may overlap."""
    source: NDArray[np.int64]
    row: NDArray[np.int64]
    """In `placed` of the source."""


def write_coverage(config: RunConfig, up_to_step: int, output: TextIO) -> Summary:
    """Write bedGraph lines `contig start end times` of all training bases, sorted; neighbours that differ only in place are merged.

    Each document's copy of a base counts: that of a gene, of each haplotype. What a haplotype inserts is read with the base before it.
    Contigs are named `assembly:contig` where the training data hold several assemblies. Bases outside the training side (held
    out, runs of N) have no line; those never read have a 0. Raises ConfigError for a step below 0.
    """
    if up_to_step < 0:
        raise ConfigError(f"--up-to-step = {up_to_step} is below 0. Give a step of the run")
    stream, limit = open_train(config), config.samples_after(up_to_step)
    summary = Summary([_describe(source) for source in stream.sources])
    pieces = _lay_out(stream)
    for start, end, count in _merged(_slices(stream, pieces, limit), pieces.axis.offset):
        length = end - start
        summary.bases += int(length.sum())
        summary.never_seen += int(length[count == 0].sum())
        summary.times_seen += int((length * count).sum())
        summary.most = max(summary.most, int(count.max(initial=0)))
        contig = np.searchsorted(pieces.axis.offset, start, side="right") - 1
        offset = pieces.axis.offset[contig]
        rows = zip(contig.tolist(), (start - offset).tolist(), (end - offset).tolist(), count.tolist(), strict=True)
        output.writelines(f"{pieces.axis.labels[number]}\t{first}\t{last}\t{times}\n" for number, first, last, times in rows)
    return summary


def _describe(source: Source) -> str:
    coordinates, documents = source.shard.coordinates, np.unique(source.segments.document)
    haplotypes = {coordinates.haplotype[document] for document in documents.tolist()} if coordinates.haplotype else set()
    spliced = int((np.diff(coordinates.blocks.first)[documents] > 1).sum()) if coordinates.blocks is not None else 0
    kinds = [f"{len(haplotypes):,} haplotypes"] if haplotypes else [f"{spliced:,} of them spliced"] if spliced else []
    return ", ".join([f"{source.shard.prefix}: {source.segments.bases:,} bases in {len(documents):,} documents", *kinds])


def _lay_out(stream: TrainStream) -> _Pieces:
    axis = Axis.of([source.shard for source in stream.sources])
    placed = [Placed.of(axis, number, source.shard, source.segments) for number, source in enumerate(stream.sources)]
    start = np.concatenate([of.start for of in placed])
    end = np.concatenate([of.end for of in placed])
    source = np.repeat(np.arange(len(placed)), [len(of.start) for of in placed])
    row = np.concatenate([np.arange(len(of.start)) for of in placed])
    order = np.argsort(start, kind="stable")
    return _Pieces(axis, placed, start[order], end[order], np.maximum.accumulate(end[order]), source[order], row[order])


def _slices(stream: TrainStream, pieces: _Pieces, limit: int) -> Iterator[Runs]:
    """Stretches of each slice that hold training bases, with their counts."""
    at = 0
    while True:
        first = int(np.searchsorted(pieces.reach, at, side="right"))
        if first == len(pieces.start):
            return
        at = max(at, int(pieces.start[first]))
        to = at + SLICE
        inside = np.arange(first, int(np.searchsorted(pieces.start, to)))
        inside = inside[pieces.end[inside] > at]
        start, end = np.maximum(pieces.start[inside], at), np.minimum(pieces.end[inside], to)
        held, times = _Changes(), _Changes()
        for source in np.unique(pieces.source[inside]).tolist():
            of_source = pieces.source[inside] == source
            _count(
                stream, source, pieces.placed[source], pieces.row[inside][of_source], start[of_source], end[of_source], limit, held, times
            )
        if len(held.place):
            yield _stretches(held, times, pieces.axis.offset)
        at = to


class _Changes:
    """Places where a count changes, and by how much."""

    def __init__(self) -> None:
        self.place = np.zeros(0, np.int64)
        self.by = np.zeros(0, np.int64)

    def add(self, start: NDArray[np.int64], end: NDArray[np.int64], times: int) -> None:
        """Count stretches `times` times."""
        by = np.repeat([times, -times], [len(start), len(end)])
        place, group = np.unique(np.concatenate([self.place, start, end]), return_inverse=True)
        total = np.zeros(len(place), np.int64)
        np.add.at(total, group, np.concatenate([self.by, by]))
        self.place, self.by = place[total != 0], total[total != 0]

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The count at each place."""
        return np.concatenate([[0], np.cumsum(self.by)])[np.searchsorted(self.place, places, side="right")]


def _count(
    stream: TrainStream,
    source: int,
    placed: Placed,
    row: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    limit: int,
    held: _Changes,
    times: _Changes,
) -> None:
    """Adds what these stretches of one source hold, and what the first `limit` samples read of it."""
    first, last = (np.ascontiguousarray(edge) for edge in placed.in_segment(row, start, end))
    held.add(*placed.on_axis(row, first, last)[1:], 1)
    segments = placed.number[row]

    def add(query: NDArray[np.int64], run_start: NDArray[np.int64], run_end: NDArray[np.int64], epochs: int) -> None:
        _, from_, to = placed.on_axis(row[query], np.maximum(run_start, first[query]), np.minimum(run_end, last[query]))
        times.add(from_, to, epochs)

    for part in stream.parts(limit):
        upper, left = part.stream.draws_read(source, part.num_samples)
        whole = min([upper, *left[:1].tolist()]) // part.stream.draws_per_epoch(source) if part.stream.reads_alike else 0
        if whole:
            query, _, run_start, length, _ = part.stream.readers(source, segments, first, last, range(1))
            add(query, run_start, run_start + length, whole)
        for query, _, run_start, run_end, _ in training_runs(part, source, segments, first, last, whole):
            add(query, run_start, run_end, 1)


def _stretches(held: _Changes, times: _Changes, offset: NDArray[np.int64]) -> Runs:
    ends = offset[np.searchsorted(offset, held.place[0]) : np.searchsorted(offset, held.place[-1])]  # where a contig ends, a stretch does
    places = np.unique(np.concatenate([held.place, times.place, ends]))
    start, end = places[:-1], places[1:]
    kept = held.at(start) > 0
    return start[kept], end[kept], times.at(start[kept])


def _merged(slices: Iterator[Runs], offset: NDArray[np.int64]) -> Iterator[Runs]:
    """The same with stretches joined that touch within a contig and have one count, also across slices."""
    held: Runs | None = None  # the last stretch so far: the next slice may go on with it
    for piece in slices:
        start, end, count = piece if held is None else (np.concatenate(pair) for pair in zip(held, piece, strict=True))
        begins = np.ones(len(start), np.bool_)
        begins[1:] = (start[1:] != end[:-1]) | (count[1:] != count[:-1]) | np.isin(start[1:], offset)
        first = np.flatnonzero(begins)
        start, end, count = start[first], end[np.append(first[1:], len(begins)) - 1], count[first]
        yield start[:-1], end[:-1], count[:-1]
        held = (start[-1:], end[-1:], count[-1:])
    if held is not None:
        yield held
