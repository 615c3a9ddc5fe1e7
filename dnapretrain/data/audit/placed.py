"""Segments of shards on their contigs, which lie end to end on one axis: from a place to the segments that hold it, and back.

A base belongs to the place of the contig that it comes from; one that a haplotype inserts belongs to the base before it, and what a
haplotype lacks is not held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.sampling.lengths import LengthPart
from dnapretrain.data.sampling.split import Segments, number_contigs
from dnapretrain.data.shards.shard import Shard
from dnapretrain.data.shards.stretches import find_stretches, ragged

RUNS_AT_A_TIME = 1_000_000
"""About so many runs are held in memory, whatever the number of epochs."""


@dataclass(frozen=True, eq=False)
class Axis:
    """All contigs of some shards end to end, sorted by their labels."""

    contigs: list[tuple[str, str]]
    """Assembly and contig."""
    labels: list[str]
    """`assembly:contig`, or the contig alone where the shards hold one assembly."""
    offset: NDArray[np.int64]
    """Where each begins; one more than contigs."""
    of_document: list[NDArray[np.int64]]
    """Of each shard: the contig of each document."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Axis:
        """Contigs are as long as the last document on them reaches."""
        numbers: dict[tuple[str, str], int] = {}
        of_document = [number_contigs(shard, numbers) for shard in shards]
        length = np.zeros(len(numbers), np.int64)
        for shard, numbered in zip(shards, of_document, strict=True):
            np.maximum.at(length, numbered, shard.coordinates.span_end)
        several = len({assembly for assembly, _ in numbers}) > 1
        labelled = sorted((f"{pair[0]}:{pair[1]}" if several else pair[1], number, pair) for pair, number in numbers.items())
        rank = np.empty(len(numbers), np.int64)
        rank[[number for _, number, _ in labelled]] = np.arange(len(numbers))
        offset = np.concatenate([[0], np.cumsum(length[[number for _, number, _ in labelled]])]).astype(np.int64)
        return cls([row[2] for row in labelled], [row[0] for row in labelled], offset, [rank[numbered] for numbered in of_document])


@dataclass(frozen=True, eq=False)
class Placed:
    """Stretches of the axis that segments of a shard hold; a segment of a spliced document has several. 48 bytes each."""

    shard: Shard
    segments: Segments
    shift: NDArray[np.int64]
    """Of each document of the shard: where its contig begins on the axis."""
    number: NDArray[np.int64]
    """Of the segment."""
    offset: NDArray[np.int64]
    """Of the stretch in its segment: 0, but in spliced documents."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """On the axis; of haplotypes with what they lack in between."""

    @classmethod
    def of(cls, axis: Axis, shard_number: int, shard: Shard, segments: Segments) -> Placed:
        """All stretches of segments of the n-th shard of the axis."""
        shift = axis.offset[axis.of_document[shard_number]]
        document, first, last = segments.document, segments.start, segments.start + segments.length
        if shard.edits is not None:
            origin = (shift + shard.coordinates.span_start)[document]
            start, end = (shard.edits.to_reference(document, at)[0] for at in (first, last - 1))
            return cls(shard, segments, shift, np.arange(len(document)), np.zeros_like(document), origin + start, origin + end + 1)
        found = find_stretches(shard.coordinates, document, first, last)
        by = shift[document[found.query]]
        return cls(shard, segments, shift, found.query, found.offset - first[found.query], found.start + by, found.end + by)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Places in order of their start, the starts, and the last end up to each."""
        order = np.argsort(self.start, kind="stable")
        return order, self.start[order], np.maximum.accumulate(self.end[order])

    def _candidates(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        _, starts, reach = self._sorted
        first = np.searchsorted(reach, start, side="right")
        return first, np.maximum(np.searchsorted(starts, end), first) - first

    def count_near(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of intervals of the axis: how many stretches are looked at to find those that overlap."""
        return self._candidates(start, end)[1]

    def overlapping(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(interval, place in these arrays) of all stretches that share bases with intervals of the axis, by interval."""
        first, count = self._candidates(start, end)
        interval, step = ragged(count)
        place = self._sorted[0][first[interval] + step]
        kept = (self.end[place] > start[interval]) & (self.start[place] < end[interval])
        return interval[kept], place[kept]

    def in_segment(self, at: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Intervals of the axis within the stretches at these places, as [start, end) in their segments; empty where lacking."""
        document = self._document(at)
        if self.shard.edits is not None:
            number = self.number[at]
            origin, first = (self.shift + self.shard.coordinates.span_start)[document], self.segments.start[number]
            cuts = [self.shard.edits.cuts(document, edge - origin) - first for edge in (start, end)]
            return cuts[0].clip(0, self.segments.length[number]), cuts[1].clip(0, self.segments.length[number])
        begin = np.where(self.shard.coordinates.minus[document], self.end[at] - end, start - self.start[at]) + self.offset[at]
        return begin, begin + end - start

    def on_axis(
        self, at: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What [start, end) in the segments hold of the stretches at these places: number of the query, start and end on the axis."""
        document = self._document(at)
        if self.shard.edits is not None:
            first = self.segments.start[self.number[at]]
            found = find_stretches(self.shard.coordinates, document, first + start, first + end)
            by = self.shift[document[found.query]]
            return found.query, found.start + by, found.end + by
        start, end = start - self.offset[at], end - self.offset[at]
        begin = np.where(self.shard.coordinates.minus[document], self.end[at] - end, self.start[at] + start)
        return np.arange(len(at)), begin, begin + end - start

    def minus(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the reverse complement is stored of the stretches at these places."""
        return self.shard.coordinates.minus[self._document(at)]

    def haplotypes(self) -> tuple[list[str], NDArray[np.int64]]:
        """Names, and the number of the name of each document; nothing of a shard without haplotypes."""
        names, number = np.unique(np.array(self.shard.coordinates.haplotype, dtype=object), return_inverse=True)
        return names.tolist(), number

    def _document(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.segments.document[self.number[at]]


def training_runs(
    part: LengthPart,
    source: int,
    segments: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    first_epoch: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Runs of samples of one length that read bases [starts, ends) of segments of a source, some epochs at a time, from an epoch on.

    Arrays: number of the query, sample id of the run, first base and end in the segment, whether the shard's other strand is read.
    All runs of one sample come together.
    """
    stream, limit = part.stream, part.num_samples
    segments, starts, ends = (np.ascontiguousarray(array, np.int64) for array in (segments, starts, ends))
    epochs = -(-stream.draws_read(source, limit)[0] // stream.draws_per_epoch(source)) if len(segments) else 0
    epoch, count = first_epoch, 1
    while epoch < epochs:
        some = range(epoch, min(epoch + count, epochs))
        query, draws, run_starts, lengths, reverse = stream.readers(source, segments, starts, ends, some)
        epoch, count = some.stop, max(1, RUNS_AT_A_TIME * len(some) // max(len(draws), len(segments) * len(some)))
        ids = stream.sample_ids(source, draws)
        kept = np.flatnonzero((ids >= 0) & (ids < limit))
        yield query[kept], part.run_ids(ids[kept]), run_starts[kept], (run_starts + lengths)[kept], reverse[kept]
