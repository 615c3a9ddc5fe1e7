"""Clusters of homologous pieces: what must stay on one side of a split, so that nothing held out stands in the training bases too.

1. Contigs are cut into tiles; the kept k-mers of all documents that lie on a tile, on either strand, are its sketch (homology.py).
2. Tiles become pieces of at most `piece` bases: on a grid of their contig, but where most of what a tile shares with an earlier place
   lies in one earlier cell of the grid, it belongs to that cell. So a second genome is cut where the first one is. If both had
   grids of their own, each piece would overlap two of the other genome, those two more, and all would be one cluster.
3. Two pieces are linked if the smaller one shares `link` of its kept k-mers with the other; clusters are what links connect (single
   linkage). Of a k-mer that stands in many pieces, pairs with the first MOST_HOLDERS of them are counted.

Memory: about 60 bytes per kept k-mer and 150 per tile; bases are streamed. More shards need a larger --scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__, _core
from dnapretrain.data.audit.homology import BATCH_BASES, MIN_HASHES, SHOWN
from dnapretrain.data.sampling.clusters import cluster_lines
from dnapretrain.data.sampling.split import cut_in_blocks, in_documents, number_contigs
from dnapretrain.data.shards.shard import Shard, open_shard
from dnapretrain.data.shards.stretches import ragged
from dnapretrain.errors import ConfigError

MOST_HOLDERS = 16
PAIRS_AT_A_TIME = 1 << 24
LEAST_RUN = 4
"""Tiles: fewer in a row that belong elsewhere stay with their neighbours, so that documents are not cut at every small repeat."""
TILE_HASHES = 5
"""Kept k-mers of a tile, on average."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClusterSettings:
    """How pieces are cut and linked. Raises ConfigError for values out of range."""

    k: int = 31
    scale: int = 50
    """One k-mer of so many is kept, on average."""
    piece: int = 20_000
    """Bases of a piece, at most."""
    link: float = 0.1
    """Share of the kept k-mers of the smaller piece."""

    def __post_init__(self) -> None:
        if not _core.MIN_SKETCH_K <= self.k <= _core.MAX_SKETCH_K:
            raise ConfigError(f"--k = {self.k} is not from {_core.MIN_SKETCH_K} to {_core.MAX_SKETCH_K}. Give a length in between")
        if self.scale < 1:
            raise ConfigError(f"--scale = {self.scale} is below 1. Give 1 for all k-mers, 50 for one of 50")
        if not 0 < self.link <= 1:
            raise ConfigError(f"--link = {self.link:g} is not above 0 and at most 1. Give the share of k-mers, 0.1 for example")
        if self.piece < 2 * LEAST_RUN * self.tile:
            raise ConfigError(
                f"--piece = {self.piece} is under {2 * LEAST_RUN * self.tile} bases, which are needed to judge at --scale = {self.scale}. "
                "Give a larger --piece, or a lower --scale"
            )

    @property
    def tile(self) -> int:
        """Bases of a tile: TILE_HASHES kept k-mers, on average."""
        return TILE_HASHES * self.scale

    @property
    def tiles_per_piece(self) -> int:
        """Tiles of a cell of the grid."""
        return self.piece // self.tile


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles that hold bases, in order of their contigs, and their sketches."""

    contigs: list[tuple[str, str]]
    contig: Ints
    number: Ints
    """On the contig: bases [number x tile, (number + 1) x tile)."""
    start: Ints
    end: Ints
    """Of what documents hold of them, on the contig."""
    hash: NDArray[np.uint64]
    """Of each kept k-mer, sorted; a k-mer once for each tile that has it."""
    tile: Ints
    """In these arrays; sorted where hashes are equal."""

    @property
    def first_holder(self) -> Ints:
        """Of each kept k-mer: the first tile that has it."""
        first = np.ones(len(self.hash), np.bool_)
        first[1:] = self.hash[1:] != self.hash[:-1]
        holder: Ints = self.tile[np.flatnonzero(first)][np.cumsum(first) - 1]
        return holder


def sketch_tiles(shards: Sequence[Shard], settings: ClusterSettings) -> Tiles:
    """Tiles of all shards; documents that lie on one place share its tile."""
    numbers: dict[tuple[str, str], int] = {}
    cuts, keys = [], []
    for shard in shards:
        pieces, block = cut_in_blocks(shard, settings.tile)
        contig = number_contigs(shard, numbers)[pieces.document]
        cuts.append((pieces, in_documents(shard, pieces)))
        keys.append((contig << 40) | block)  # 2^40 tiles are more than any contig has
    distinct = np.unique(np.concatenate(keys))
    start, end = np.full(len(distinct), np.iinfo(np.int64).max), np.zeros(len(distinct), np.int64)
    hashes, tiles = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for shard, (pieces, (first, last)), key in zip(shards, cuts, keys, strict=True):
        tile = np.searchsorted(distinct, key)
        np.minimum.at(start, tile, pieces.start)
        np.maximum.at(end, tile, pieces.end)
        for found, of_tile in _sketches(shard, pieces.document, first, last, tile, settings):
            hashes.append(found)
            tiles.append(of_tile)
    hashed, tiled = _distinct_pairs(np.concatenate(hashes), np.concatenate(tiles))
    return Tiles(list(numbers), distinct >> 40, distinct & ((1 << 40) - 1), start, end, hashed, tiled)


def _sketches(
    shard: Shard, document: Ints, first: Ints, last: Ints, tile: Ints, settings: ClusterSettings
) -> Iterator[tuple[NDArray[np.uint64], Ints]]:
    reach, at = np.cumsum(last - first), 0
    while at < len(tile):
        to = max(at + 1, int(np.searchsorted(reach, (reach[at - 1] if at else 0) + BATCH_BASES, side="right")))
        offset = shard.offsets[document[at:to]]
        limit = offset + shard.lengths[document[at:to]]
        hashes, counts = _core.sketch(shard.bases, offset + first[at:to], offset + last[at:to], limit, k=settings.k, scale=settings.scale)
        yield _distinct_pairs(hashes, np.repeat(tile[at:to], counts))
        at = to


def _distinct_pairs(hashes: NDArray[np.uint64], places: Ints) -> tuple[NDArray[np.uint64], Ints]:
    """Sorted, without repeats."""
    order = np.lexsort((places, hashes))
    hashes, places = hashes[order], places[order]
    new = np.ones(len(hashes), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (places[1:] != places[:-1])
    return hashes[new], places[new]


def cut_pieces(tiles: Tiles, settings: ClusterSettings) -> Ints:
    """The piece of each tile; pieces are numbered in order from 0, and each is one stretch of its contig."""
    contig_cells = np.zeros(len(tiles.contigs) + 1, np.int64)
    np.maximum.at(contig_cells[1:], tiles.contig, tiles.number // settings.tiles_per_piece + 1)
    own = np.cumsum(contig_cells)[tiles.contig] + tiles.number // settings.tiles_per_piece
    label = _homologous_cells(tiles, own, settings.link)
    first, length = _runs(tiles.contig, label)
    short = np.repeat((length < LEAST_RUN) & (label[first] != own[first]), length)
    label = np.where(short, own, label)
    first, length = _runs(tiles.contig, label)
    # What is left over beside a longer run goes with the one before it; at the beginning of a contig, with the one behind it.
    begins, adjacent = np.ones(len(first), np.bool_), np.zeros(len(first), np.bool_)
    begins[1:] = tiles.contig[first[1:]] != tiles.contig[first[:-1]]
    adjacent[1:] = ~begins[1:] & (tiles.number[first[1:]] == tiles.number[first[1:] - 1] + 1)
    long = length >= LEAST_RUN
    follows_rest = np.append(False, begins[:-1] & ~long[:-1])
    starts = ~adjacent | (long & ~follows_rest)
    return np.repeat(np.cumsum(starts) - 1, length)


def _homologous_cells(tiles: Tiles, own: Ints, link: float) -> Ints:
    """Of each tile: the earlier cell that has most of its k-mers, if those are the share `link`; else its own cell."""
    cell = own[tiles.first_holder]
    elsewhere = cell != own[tiles.tile]
    tile, cell = tiles.tile[elsewhere], cell[elsewhere]
    order = np.lexsort((cell, tile))
    tile, cell = tile[order], cell[order]
    first, votes = _runs(tile, cell)
    tile, cell = tile[first], cell[first]
    order = np.lexsort((cell, -votes, tile))
    tile, cell, votes = tile[order], cell[order], votes[order]
    best = np.ones(len(tile), np.bool_)
    best[1:] = tile[1:] != tile[:-1]
    tile, cell, votes = tile[best], cell[best], votes[best]
    chosen = votes >= link * np.bincount(tiles.tile, minlength=len(own))[tile]
    label = own.copy()
    label[tile[chosen]] = cell[chosen]
    return label


def _runs(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Where runs of equal pairs begin, and how long they are."""
    new = np.ones(len(first), np.bool_)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    at = np.flatnonzero(new)
    return at, np.diff(np.append(at, len(first)))


def shared_hashes(hashes: NDArray[np.uint64], pieces: Ints) -> tuple[Ints, Ints, Ints, int]:
    """Pairs of pieces (first < second), how many k-mers they share, and k-mers with more than MOST_HOLDERS holders.

    Input as of `_distinct_pairs`. Of a k-mer, pairs of one of its first MOST_HOLDERS pieces with any of them count.
    """
    first = np.ones(len(hashes), np.bool_)
    first[1:] = hashes[1:] != hashes[:-1]
    at = np.flatnonzero(first)
    size = np.diff(np.append(at, len(hashes)))
    place = np.arange(len(hashes)) - np.repeat(at, size)
    partners = np.minimum(place, MOST_HOLDERS)  # each holder meets those before it
    low, high, count = (np.zeros(0, np.int64) for _ in range(3))
    reach, done = np.cumsum(partners), 0
    while done < len(hashes):
        to = max(done + 1, int(np.searchsorted(reach, (reach[done - 1] if done else 0) + PAIRS_AT_A_TIME, side="right")))
        holder, partner = ragged(partners[done:to])
        holder += done
        low = np.concatenate([low, pieces[holder - place[holder] + partner]])
        high = np.concatenate([high, pieces[holder]])
        count = np.concatenate([count, np.ones(len(holder), np.int64)])
        order = np.lexsort((high, low))
        low, high, count = low[order], high[order], count[order]
        runs, _ = _runs(low, high)
        low, high, count = low[runs], high[runs], np.add.reduceat(count, runs) if len(runs) else count
        done = to
    return low, high, count, int((size > MOST_HOLDERS).sum())


def connected(count: int, low: Ints, high: Ints) -> Ints:
    """Of each of `count` pieces: the number of its cluster, from 1, in order of their first pieces (union-find)."""
    parent = list(range(count))

    def root(piece: int) -> int:
        while parent[piece] != piece:
            parent[piece] = parent[parent[piece]]
            piece = parent[piece]
        return piece

    for a, b in zip(low.tolist(), high.tolist(), strict=True):
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    _, cluster = np.unique(np.array([root(piece) for piece in range(count)], np.int64), return_inverse=True)
    return cluster.astype(np.int64) + 1


class HomologyClusters:
    """The clusters of some shards. Raises ConfigError for a shard given twice, DataError for shards that cannot be read."""

    def __init__(self, prefixes: Sequence[str | Path], settings: ClusterSettings) -> None:
        if len({Path(prefix).resolve() for prefix in prefixes}) < len(prefixes):
            raise ConfigError("a shard is given twice. Give each shard once")
        self.settings = settings
        self._shards = [open_shard(prefix) for prefix in prefixes]
        tiles = sketch_tiles(self._shards, settings)
        if not len(tiles.contig):
            raise ConfigError("the shards hold no bases, so there is nothing to cluster")
        piece = cut_pieces(tiles, settings)
        hashes, pieces = _distinct_pairs(tiles.hash, piece[tiles.tile])
        first = np.flatnonzero(np.diff(piece, prepend=-1))
        self._contigs, self._contig = tiles.contigs, tiles.contig[first]
        self._start, self._end = tiles.start[first], tiles.end[np.append(first[1:], len(piece)) - 1]
        self._hashes = np.bincount(pieces, minlength=len(first))
        self._kept = len(hashes)
        low, high, shared, self._frequent = shared_hashes(hashes, pieces)
        smaller = np.minimum(self._hashes[low], self._hashes[high])
        linked = (smaller >= MIN_HASHES) & (shared >= settings.link * smaller)
        self._links = int(linked.sum())
        self._cluster = connected(len(first), low[linked], high[linked])

    def report(self) -> dict[str, Any]:
        """Plain values. Bases are those of the pieces on their contigs: a place that several documents hold counts once."""
        bases, size = self._end - self._start, np.bincount(self._cluster)[1:]
        of_cluster = np.zeros(len(size), np.int64)
        np.add.at(of_cluster, self._cluster - 1, bases)
        unjudged = self._hashes < MIN_HASHES
        largest = np.argsort(-of_cluster, kind="stable")[:SHOWN]
        return {
            "settings": {**vars(self.settings), "tile": self.settings.tile, "min_hashes": MIN_HASHES},
            "bases": int(bases.sum()),
            "pieces": len(bases),
            "longest_piece": int(bases.max()),
            "links": self._links,
            "clusters": len(size),
            "alone": {"pieces": int((size == 1).sum()), "bases": int(of_cluster[size == 1].sum())},
            "not_judged": {"pieces": int(unjudged.sum()), "bases": int(bases[unjudged].sum())},
            "hashes": self._kept,
            "frequent_hashes": self._frequent,
            "largest": [
                {"cluster": int(number) + 1, "pieces": int(size[number]), "bases": int(of_cluster[number])} for number in largest.tolist()
            ],
        }

    def lines(self) -> Iterator[str]:
        """Of the cluster file."""
        report = self.report()
        header = {
            "tool_version": __version__,
            "settings": report["settings"],
            "shards": [{"prefix": str(shard.prefix), "xxh3_128": shard.digest} for shard in self._shards],
            "pieces": report["pieces"],
            "clusters": report["clusters"],
        }
        rows = zip(self._contig.tolist(), self._start.tolist(), self._end.tolist(), self._cluster.tolist(), strict=True)
        named = ((*self._contigs[contig], start, end, cluster) for contig, start, end, cluster in rows)
        yield from cluster_lines(header, ((contig, start, end, cluster, assembly) for assembly, contig, start, end, cluster in named))


def format_clusters(report: dict[str, Any]) -> str:
    """The text that `dnapretrain cluster` prints."""
    settings, alone, unjudged = report["settings"], report["alone"], report["not_judged"]
    lines = [
        f"{settings['k']}-mers of either strand, one of {settings['scale']} kept ({report['hashes']:,}), in pieces of about "
        f"{settings['piece']:,} bases, {report['longest_piece']:,} at most",
        f"pieces      {report['pieces']:,} with {report['bases']:,} bases",
        f"links       {report['links']:,} pairs share {100 * settings['link']:g} % or more of the k-mers of the smaller one",
        f"clusters    {report['clusters']:,}; {alone['pieces']:,} pieces with {alone['bases']:,} bases are alone",
        f"not judged  {unjudged['pieces']:,} pieces with {unjudged['bases']:,} bases, under {settings['min_hashes']} kept k-mers",
    ]
    if report["frequent_hashes"]:
        lines.append(
            f"k-mers in more than {MOST_HOLDERS} pieces, counted with the first {MOST_HOLDERS} only: {report['frequent_hashes']:,}"
        )
    lines += [
        f"  cluster {row['cluster']}: {row['pieces']:,} pieces, {row['bases']:,} bases" for row in report["largest"] if row["pieces"] > 1
    ]
    return "\n".join(lines)
