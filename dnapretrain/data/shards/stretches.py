"""Where the bases of documents lie on their contigs: for many stretches of documents at once, of every kind of shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.shards.edits import LENGTH, OFFSET, REF_LENGTH, Edits
from dnapretrain.data.shards.shard import Blocks, Coordinates

ROWS_AT_A_TIME = 1 << 22
"""Edits of haplotypes looked at together."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Contig intervals of queries; those of one query follow each other in the order in which its document is stored."""

    query: NDArray[np.int64]
    offset: NDArray[np.int64]
    """First base of the document that lies there."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """0-based half-open on the contig. Of a haplotype: without the bases it lacks; what it inserts lies on the base before."""


def find_stretches(coordinates: Coordinates, document: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]) -> Stretches:
    """Where bases [first, last) of documents lie; queries without bases have no stretch."""
    if coordinates.edits is not None:
        return _of_haplotypes(coordinates, coordinates.edits, document, first, last)
    if coordinates.blocks is not None:
        return _of_spliced(coordinates, coordinates.blocks, document, first, last)
    query = np.flatnonzero(first < last)
    document, first, last = document[query], first[query], last[query]
    start = np.where(coordinates.minus[document], coordinates.span_end[document] - last, coordinates.span_start[document] + first)
    return Stretches(query, first, start, start + last - first)


def ragged(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of rows that belong to groups of these sizes: the group, and the place in it."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)


def _of_spliced(
    coordinates: Coordinates, blocks: Blocks, document: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> Stretches:
    begin, finish = blocks.first[document], blocks.first[document + 1]
    query, place = ragged(finish - begin)
    minus = coordinates.minus[document][query]
    block = np.where(minus, finish[query] - 1 - place, begin[query] + place)  # a document of the minus strand begins with its last block
    size = blocks.end[block] - blocks.start[block]
    reached = np.cumsum(size) - size
    at = reached - reached[np.flatnonzero(place == 0)][np.cumsum(place == 0) - 1]  # of the block in its document
    from_, to = np.maximum(first[query], at) - at, np.minimum(last[query], at + size) - at
    kept = from_ < to
    query, minus, block, at, from_, to = (array[kept] for array in (query, minus, block, at, from_, to))
    start = np.where(minus, blocks.end[block] - to, blocks.start[block] + from_)
    return Stretches(query, at + from_, start, start + to - from_)


def _of_haplotypes(
    coordinates: Coordinates, edits: Edits, document: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> Stretches:
    """From base to base the place on the reference rises by 0 (inserted) or 1, but behind bases that the haplotype lacks."""
    asked = np.flatnonzero(first < last)
    low, high = (edits.count_until(OFFSET, document[asked], at) for at in (first[asked], last[asked] - 1))
    low = np.maximum(low - 1, edits.first[document[asked]])  # the first base may lie within an edit
    query, offset = [asked], [first[asked]]
    reach = np.cumsum(high - low)
    at = 0
    while at < len(asked):
        to = max(at + 1, int(np.searchsorted(reach, (reach[at - 1] if at else 0) + ROWS_AT_A_TIME, side="right")))
        group, place = ragged(high[at:to] - low[at:to])
        rows = np.asarray(edits.rows[low[at:to][group] + place])
        lacking = rows[:, REF_LENGTH] > rows[:, LENGTH]
        query.append(asked[at:to][group[lacking]])
        offset.append(rows[lacking, OFFSET].astype(np.int64) + rows[lacking, LENGTH])
        at = to
    of, begin = np.concatenate(query), np.concatenate(offset)
    kept = (begin >= first[of]) & (begin < last[of])
    of, begin = of[kept], begin[kept]
    order = np.lexsort((begin, of))
    of, begin = of[order], begin[order]
    end = last[of]
    end[:-1] = np.where(of[1:] == of[:-1], begin[1:], end[:-1])
    kept = begin < end
    of, begin, end = of[kept], begin[kept], end[kept]
    start, _ = edits.to_reference(document[of], begin)
    stop, _ = edits.to_reference(document[of], end - 1)
    origin = coordinates.span_start[document[of]]
    return Stretches(of, begin, origin + start, origin + stop + 1)
