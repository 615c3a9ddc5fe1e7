"""Splits: which bases of the training shards are held out. A base is on one side only, on both strands.

Sides are decided in contig coordinates, by names: two shards that hold the same locus agree on it, spliced documents and haplotypes too
(a base that a haplotype inserts goes with the base before it). Documents are cut where sides meet, so no sample reads across.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.config import SplitConfig
from dnapretrain.data.sampling.clusters import Intervals, choose_clusters, missing_piece, read_clusters
from dnapretrain.data.shards.shard import Shard
from dnapretrain.data.shards.stretches import Stretches, find_stretches, ragged
from dnapretrain.errors import ConfigError

SIDES = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


@dataclass(frozen=True)
class Segments:
    """Stretches of documents, in document order; `start` counts bases from the document's first."""

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    @property
    def bases(self) -> int:
        """Bases of all segments together."""
        return int(self.length.sum())


def split_documents(shards: Sequence[Shard], config: SplitConfig) -> list[dict[str, Segments]]:
    """Segments of each shard for each side ('train', 'valid', 'test'); together they are all its bases.

    Raises ConfigError for a contig that is in no shard or on two sides, a bad BED file, and a side that was asked for but got nothing.
    """
    if config.by == "none":
        nothing = Segments(*(np.zeros(0, np.int64) for _ in range(3)))
        splits = [{"train": whole_documents(shard), "valid": nothing, "test": nothing} for shard in shards]
    elif config.by == "block":
        splits = [_by_block(shard, config) for shard in shards]
    elif config.by == "cluster":
        splits = _by_cluster(shards, config)
    else:
        held_out = _held_out_contigs(config) if config.by == "contig" else _held_out_intervals(config)
        _check_names(held_out, shards)
        splits = [_by_intervals(shard, held_out) for shard in shards]
    for side, key in _asked_for(config).items():
        if not any(split[side].bases for split in splits):
            raise ConfigError(f"data.split holds out no bases for '{side}'. Change data.split.{key}")
    return splits


def _asked_for(config: SplitConfig) -> dict[str, str]:
    keys = {"contig": "{}_contigs", "bed": "{}_bed", "block": "{}_fraction (or make data.split.block_size smaller)"}
    keys["cluster"] = "{}_fraction: no cluster is that small (or make smaller pieces: dnapretrain cluster --piece)"
    if config.by == "none":
        return {}
    given = {
        "valid": config.valid_contigs or config.valid_bed or config.valid_fraction,
        "test": config.test_contigs or config.test_bed or config.test_fraction,
    }
    return {side: keys[config.by].format(side) for side, value in given.items() if value}


def whole_documents(shard: Shard) -> Segments:
    """Each document that holds bases, as one segment."""
    document = np.flatnonzero(shard.lengths).astype(np.int64)
    return Segments(document, np.zeros(len(document), np.int64), shard.lengths[document].astype(np.int64))


def _segments(
    shard: Shard, document: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64], side: NDArray[np.int64]
) -> dict[str, Segments]:
    """Sides of pieces in document order that touch each other; neighbours on one side become one segment."""
    first = np.ones(len(document), np.bool_)
    first[1:] = (document[1:] != document[:-1]) | (side[1:] != side[:-1])
    last = np.append(first[1:], True)[: len(first)]
    document, start, end, side = document[first], start[first], end[last], side[first]
    kept = end > start
    return {
        name: Segments(document[chosen], start[chosen], (end - start)[chosen])
        for name, chosen in ((name, kept & (side == number)) for number, name in enumerate(SIDES))
    }


@dataclass(frozen=True, eq=False)
class ContigPieces:
    """All bases of the documents of a shard, cut on their contigs."""

    document: NDArray[np.int64]
    stretch: NDArray[np.int64]
    """Of `stretches`, those of whole documents."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """On the contig."""


def whole_stretches(shard: Shard) -> Stretches:
    """Where all documents lie; haplotypes with the bases that they lack, so that each is one stretch."""
    coordinates, documents = shard.coordinates, np.arange(len(shard.lengths), dtype=np.int64)
    if coordinates.edits is None:
        return find_stretches(coordinates, documents, np.zeros_like(documents), shard.lengths.astype(np.int64))
    held = documents[coordinates.span_start < coordinates.span_end]
    return Stretches(held, np.zeros_like(held), coordinates.span_start[held], coordinates.span_end[held])


def cut_in_blocks(shard: Shard, size: int) -> tuple[ContigPieces, NDArray[np.int64]]:
    """The bases of a shard cut at multiples of `size` on their contigs, and the number of the block of each piece."""
    whole = whole_stretches(shard)
    first, last = whole.start // size, (whole.end - 1) // size
    stretch, place = ragged(last - first + 1)
    block = first[stretch] + place
    start, end = np.maximum(block * size, whole.start[stretch]), np.minimum((block + 1) * size, whole.end[stretch])
    return ContigPieces(whole.query[stretch], stretch, start, end), block


def in_documents(shard: Shard, pieces: ContigPieces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First base and end of each piece in its document: reversed on the minus strand, by their edits for haplotypes."""
    coordinates, whole = shard.coordinates, whole_stretches(shard)
    if coordinates.edits is not None:
        origin = coordinates.span_start[pieces.document]
        return coordinates.edits.cuts(pieces.document, pieces.start - origin), coordinates.edits.cuts(pieces.document, pieces.end - origin)
    from_start, from_end = pieces.start - whole.start[pieces.stretch], whole.end[pieces.stretch] - pieces.end
    start = whole.offset[pieces.stretch] + np.where(coordinates.minus[pieces.document], from_end, from_start)
    return start, start + pieces.end - pieces.start


def _on_sides(shard: Shard, pieces: ContigPieces, side: NDArray[np.int64]) -> dict[str, Segments]:
    start, end = in_documents(shard, pieces)
    order = np.lexsort((end, start, pieces.document))
    return _segments(shard, pieces.document[order], start[order], end[order], side[order])


def number_contigs(shard: Shard, numbers: dict[tuple[str, str], int]) -> NDArray[np.int64]:
    """Number of the (assembly, contig) of each document; new ones are added to `numbers`."""
    pairs = zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True)
    return np.fromiter((numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int64, len(shard.lengths))


def block_sides(name: str, blocks: NDArray[np.int64], config: SplitConfig) -> NDArray[np.int64]:
    """Side of each block of the contig `name` (`assembly`, NUL, `contig`): a keyed hash of name and block number."""
    mask = (1 << 64) - 1
    key = xxhash.xxh64_intdigest(name.encode(), seed=config.seed & mask)
    x = blocks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)  # wraps: splitmix64 from here on
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    share = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
    limits = np.cumsum([config.valid_fraction, config.test_fraction])
    return np.select([share < limits[0], share < limits[1]], [VALID, TEST], TRAIN).astype(np.int64)


def _by_block(shard: Shard, config: SplitConfig) -> dict[str, Segments]:
    pieces, block = cut_in_blocks(shard, config.block_size)
    numbers: dict[tuple[str, str], int] = {}
    contig = number_contigs(shard, numbers)[pieces.document]
    side = np.empty(len(block), np.int64)
    order = np.argsort(contig, kind="stable")
    bounds = np.searchsorted(contig[order], np.arange(len(numbers) + 1))
    for (assembly, name), number in numbers.items():
        rows = order[bounds[number] : bounds[number + 1]]
        side[rows] = block_sides(f"{assembly}\0{name}", block[rows], config)
    return _on_sides(shard, pieces, side)


def _by_intervals(shard: Shard, held_out: dict[str, Intervals]) -> dict[str, Segments]:
    pieces, side = _cut_at(shard, lambda assembly, contig: _of_contig(held_out, assembly, contig), TRAIN)
    return _on_sides(shard, pieces, side)


def _by_cluster(shards: Sequence[Shard], config: SplitConfig) -> list[dict[str, Segments]]:
    assert config.clusters is not None, "validated with the configuration"
    clusters = read_clusters(config.clusters)
    clusters.check(shards)
    bases = np.zeros(clusters.count + 1, np.int64)
    cut = [_cut_at(shard, lambda *contig: clusters.intervals.get(contig, []), 0) for shard in shards]
    for shard, (pieces, cluster) in zip(shards, cut, strict=True):
        if (cluster == 0).any():
            raise missing_piece(clusters, shard.coordinates.locus(int(pieces.document[(cluster == 0).argmax()])))
        start, end = in_documents(shard, pieces)
        np.add.at(bases, cluster, end - start)
    sides = np.append(TRAIN, choose_clusters(bases[1:], (config.valid_fraction, config.test_fraction), config.seed))
    return [_on_sides(shard, pieces, sides[cluster]) for shard, (pieces, cluster) in zip(shards, cut, strict=True)]


def _cut_at(shard: Shard, intervals_of: Callable[[str, str], Intervals], other: int) -> tuple[ContigPieces, NDArray[np.int64]]:
    """The bases of a shard cut at sorted intervals of their contigs, and the number of the interval; `other`: in none."""
    coordinates, whole = shard.coordinates, whole_stretches(shard)
    of_contig: dict[tuple[str, str], Intervals] = {}
    pieces: list[tuple[int, int, int, int, int]] = []
    rows = zip(whole.query.tolist(), whole.start.tolist(), whole.end.tolist(), strict=True)
    for stretch, (document, start, end) in enumerate(rows):
        key = coordinates.assembly[document], coordinates.contig[document]
        if key not in of_contig:
            of_contig[key] = intervals_of(*key)
        intervals = of_contig[key]
        for at in range(bisect_right(intervals, start, key=itemgetter(1)), len(intervals)):
            from_, to, number = intervals[at]
            if from_ >= end:
                break
            if from_ > start:
                pieces.append((document, stretch, start, from_, other))
            pieces.append((document, stretch, max(from_, start), min(to, end), number))
            start = min(to, end)
        if start < end:
            pieces.append((document, stretch, start, end, other))
    table = np.array(pieces, np.int64).reshape(-1, 5)
    return ContigPieces(*table[:, :4].T), table[:, 4]


def _of_contig(held_out: dict[str, Intervals], assembly: str, contig: str) -> Intervals:
    """Intervals under the names `contig` and `assembly:contig`, sorted, apart. Raises ConfigError where they disagree."""
    return _merged(contig, sorted(held_out.get(contig, []) + held_out.get(f"{assembly}:{contig}", [])))


def _held_out_contigs(config: SplitConfig) -> dict[str, Intervals]:
    everything = np.iinfo(np.int64).max
    for name in config.valid_contigs:
        if name in config.test_contigs:
            raise ConfigError(f"contig '{name}' is in data.split.valid_contigs and in data.split.test_contigs. Remove it from one")
    sides = ((config.valid_contigs, VALID), (config.test_contigs, TEST))
    return {name: [(0, int(everything), side)] for names, side in sides for name in names}


def _held_out_intervals(config: SplitConfig) -> dict[str, Intervals]:
    """Intervals of both BED files by contig, sorted and merged."""
    held_out: dict[str, Intervals] = {}
    for path, side in ((config.valid_bed, VALID), (config.test_bed, TEST)):
        if path is not None:
            _read_intervals(path, side, held_out)
    return {contig: _merged(contig, sorted(intervals)) for contig, intervals in held_out.items()}


def _read_intervals(path: Path, side: int, held_out: dict[str, Intervals]) -> None:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"BED file {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        fields = line.split("\t")
        try:
            contig, start, end = fields[0], int(fields[1]), int(fields[2])
        except (ValueError, IndexError):
            raise ConfigError(f"{path}: line {number} is not 'contig<tab>start<tab>end'. Mend it") from None
        if not 0 <= start < end:
            raise ConfigError(f"{path}: line {number} has start {start} and end {end}; BED needs 0 <= start < end. Mend it")
        held_out.setdefault(contig, []).append((start, end, side))


def _merged(contig: str, intervals: Intervals) -> Intervals:
    merged: Intervals = []
    for start, end, side in intervals:
        if merged and start < merged[-1][1]:
            if side != merged[-1][2]:
                both = f"{contig}:{start + 1}-{min(end, merged[-1][1])}"
                raise ConfigError(f"{both} is held out by data.split both for valid and for test. Remove it from one")
            start, end = merged[-1][0], max(end, merged[-1][1])
            merged.pop()
        merged.append((start, end, side))
    return merged


def _check_names(held_out: dict[str, Intervals], shards: Sequence[Shard]) -> None:
    """Every name must be that of a contig, or `assembly:contig`."""
    known: dict[str, str] = {}
    for shard in shards:
        for assembly, contig in dict.fromkeys(zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True)):
            known[contig] = known[f"{assembly}:{contig}"] = contig
    for name in held_out:
        if name not in known:
            some = ", ".join(list(dict.fromkeys(known.values()))[:5])
            raise ConfigError(f"data.split names contig '{name}', which is in no training shard. Known: {some}")
