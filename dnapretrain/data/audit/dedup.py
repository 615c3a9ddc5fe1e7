"""Exact and near duplicates in shards: what a corpus without them would leave out.

Shards are read in the order given, the documents of each from the longest to the shortest. A document whose bases were met before (case
ignored, either strand; XXH3-128 of what it reads) is an exact duplicate. The others are cut into pieces; a piece is left out if
at least the share `near` of its kept k-mers stands in pieces that stay (homology.py). What stays thus holds, of each piece that is left
out, that share; where pieces begin does not matter. A cluster is a piece that stays and those left out of which it holds more
than any other piece does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.audit.homology import MIN_HASHES, SHOWN, Pieces, SketchSettings, bed_names
from dnapretrain.data.sampling.split import Segments
from dnapretrain.data.shards.shard import EDITS, LABELS, Shard, open_shard
from dnapretrain.errors import ConfigError, DataError

READ_BASES = 1 << 24
UPPER = np.uint8(0xDF)


@dataclass(frozen=True, eq=False)
class _Documents:
    """All documents that hold bases, in the order in which they are looked at."""

    shard: NDArray[np.int64]
    document: NDArray[np.int64]
    length: NDArray[np.int64]
    original: NDArray[np.int64]
    """Place here of the first document with the same bases; its own place where there is none before it."""

    @property
    def is_copy(self) -> NDArray[np.bool_]:
        """Which are exact duplicates."""
        return self.original != np.arange(len(self.original))


class Duplicates:
    """The duplicates of some shards.

    Memory: 17 to 34 bytes per kept hash of what stays (half as much again while the table grows), 72 per piece, 48 per document.
    """

    def __init__(self, prefixes: Sequence[str | Path], settings: SketchSettings, near: float) -> None:
        """Raises ConfigError for settings out of range and a shard given twice, DataError for shards that cannot be read."""
        if not 0 < near <= 1:
            raise ConfigError(f"--near = {near:g} is not above 0 and at most 1. Give the share of k-mers, 0.9 for example")
        if len({Path(prefix).resolve() for prefix in prefixes}) < len(prefixes):
            raise ConfigError("a shard is given twice: all of it would be a duplicate. Give each shard once")
        self.settings, self.near = settings, near
        self._shards = [open_shard(prefix) for prefix in prefixes]
        self._documents = _look_at_documents(self._shards)
        self._pieces = [self._cut(number) for number in range(len(self._shards))]
        self._before = np.cumsum([0, *(len(pieces) for pieces in self._pieces)])
        self._bases = np.concatenate([pieces.bases for pieces in self._pieces])
        kept = _core.KeptSketches(near, MIN_HASHES)
        found = [
            (counts, *kept.offer(hashes, counts)) for pieces in self._pieces for _, hashes, counts in pieces.sketches(settings)
        ]  # in the order of all pieces
        self._counts, self._shared, self._holder = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        self._num_hashes = kept.num_hashes
        copies = np.flatnonzero(self._documents.is_copy)
        self._copies, self._copy_holder = copies, self._holder_of(self._documents.original[copies])
        near_pieces = np.flatnonzero(self._holder >= 0)
        self._near_pieces = near_pieces
        self._clusters = np.unique(np.concatenate([self._copy_holder, self._holder[near_pieces]]))

    def _cut(self, number: int) -> Pieces:
        documents = self._documents
        chosen = (documents.shard == number) & ~documents.is_copy
        document, length = documents.document[chosen], documents.length[chosen]
        return Pieces.of(self._shards[number], Segments(document, np.zeros_like(document), length), self.settings.piece)

    def _holder_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """The piece that stays and stands for the first piece of each document (by place; none of them a copy)."""
        documents_of_pieces = np.where(self._documents.is_copy, 0, -(-self._documents.length // self.settings.piece))
        first = (np.cumsum(documents_of_pieces) - documents_of_pieces)[documents]
        holder: NDArray[np.int64] = np.where(self._holder[first] >= 0, self._holder[first], first)
        return holder

    def report(self) -> dict[str, Any]:
        """Plain values. bases == kept + exact + near."""
        documents = self._documents
        near, copies = self._near_pieces, self._copies
        total, exact = int(documents.length.sum()), int(documents.length[copies].sum())
        near_bases = int(self._bases[near].sum())
        unjudged = self._counts < MIN_HASHES
        return {
            "settings": {**vars(self.settings), "near": self.near, "min_hashes": MIN_HASHES},
            "documents": len(documents.length),
            "bases": total,
            "kept_bases": total - exact - near_bases,
            "exact": {"documents": len(copies), "bases": exact},
            "near": {
                "pieces": len(near),
                "bases": near_bases,
                "all_hashes_pieces": int((self._shared[near] == self._counts[near]).sum()),
                "of_pieces": len(self._bases),
            },
            "not_judged": {"pieces": int(unjudged.sum()), "bases": int(self._bases[unjudged].sum())},
            "kept_hashes": self._num_hashes,
            "clusters": len(self._clusters),
            "largest": self._largest(),
        }

    def bed(self) -> Iterator[str]:
        """BED lines of all that is left out: contig, start, end, number of the cluster, share of 1000. Sorted within each shard.

        Raises DataError for shards of haplotypes and of genes: there, documents that stay lie on the same places.
        """
        for shard in self._shards:
            if {EDITS, LABELS} & set(shard.manifest["files"]):
                raise DataError(
                    f"{shard.prefix}: haplotypes or genes, whose documents overlap on the contig: a BED file cannot leave out one and keep "
                    "the other. Remove --output, or give shards of whole contigs"
                )
        return self._bed_lines()

    def _bed_lines(self) -> Iterator[str]:
        names = bed_names(self._shards)
        rows: list[list[tuple[str, int, int, int, int]]] = [[] for _ in self._shards]
        for place, holder in zip(self._copies.tolist(), self._copy_holder.tolist(), strict=True):
            number = int(self._documents.shard[place])
            where, document = self._shards[number].coordinates, int(self._documents.document[place])
            name, cluster = names[where.assembly[document], where.contig[document]], self._cluster(holder)
            rows[number] += [
                (name, start, end, cluster, 1000) for start, end in where.pieces(document, 0, int(self._documents.length[place]))
            ]
        for piece in self._near_pieces.tolist():
            number, pieces, own = self._find(piece)
            name, cluster = names[pieces.contig(own)], self._cluster(int(self._holder[piece]))
            score = round(1000 * int(self._shared[piece]) / int(self._counts[piece]))
            rows[number] += [(name, start, end, cluster, score) for start, end in pieces.intervals(own)]
        for of_shard in rows:
            yield from ("\t".join(map(str, row)) + "\n" for row in sorted(of_shard))

    def _cluster(self, holder: int) -> int:
        return int(np.searchsorted(self._clusters, holder)) + 1

    def _find(self, piece: int) -> tuple[int, Pieces, int]:
        """Shard, its pieces, and the number there of a piece."""
        shard = int(np.searchsorted(self._before, piece, side="right")) - 1
        return shard, self._pieces[shard], piece - int(self._before[shard])

    def _largest(self) -> list[dict[str, Any]]:
        """The clusters that leave out most bases."""
        holder = np.concatenate([self._copy_holder, self._holder[self._near_pieces]])
        left_out = np.concatenate([self._documents.length[self._copies], self._bases[self._near_pieces]])
        place = np.searchsorted(self._clusters, holder)
        bases, members = np.zeros(len(self._clusters), np.int64), np.bincount(place, minlength=len(self._clusters))
        np.add.at(bases, place, left_out)
        rows = []
        for number in np.argsort(-bases, kind="stable")[:SHOWN].tolist():
            _, pieces, own = self._find(int(self._clusters[number]))
            rows.append({"cluster": number + 1, "kept": pieces.locus(own), "left_out": int(members[number]), "bases": int(bases[number])})
        return rows


def _look_at_documents(shards: Sequence[Shard]) -> _Documents:
    """In order; digests are taken of documents only whose length another one has too."""
    orders = [np.argsort(-shard.lengths, kind="stable") for shard in shards]
    number = np.repeat(np.arange(len(shards)), [len(order) for order in orders])
    document = np.concatenate(orders)
    length = np.concatenate([shard.lengths[order] for shard, order in zip(shards, orders, strict=True)]).astype(np.int64)
    number, document, length = (array[length > 0] for array in (number, document, length))
    _, of_length, times = np.unique(length, return_inverse=True, return_counts=True)
    asked = np.flatnonzero(times[of_length] > 1)
    digests = bytearray()
    for place in asked.tolist():
        shard = shards[number[place]]
        first = int(shard.offsets[document[place]])
        digests += _digest(shard, first, first + int(length[place]))
    table = np.frombuffer(bytes(digests), np.dtype([("a", "<u8"), ("b", "<u8")]))
    _, first_place, same = np.unique(table, return_index=True, return_inverse=True)
    original = np.arange(len(length))
    original[asked] = asked[first_place[same]]
    return _Documents(number, document, length, original)


def _digest(shard: Shard, first: int, last: int) -> bytes:
    """16 bytes that are the same for the reverse complement, and in either case: the smaller one of the two strands' XXH3-128."""
    forward, backward = xxhash.xxh3_128(), xxhash.xxh3_128()
    for start in range(first, last, READ_BASES):
        forward.update((np.asarray(shard.bases[start : min(start + READ_BASES, last)]) & UPPER).data)
    for end in range(last, first, -READ_BASES):
        backward.update(_core.reverse_complement(np.asarray(shard.bases[max(end - READ_BASES, first) : end]) & UPPER).data)
    return min(forward.digest(), backward.digest())


def format_duplicates(report: dict[str, Any]) -> str:
    """The text that `dnapretrain dedup` prints."""
    settings, exact, near, unjudged = report["settings"], report["exact"], report["near"], report["not_judged"]

    def share(bases: int) -> str:
        return f"{bases:,} bases, {100 * bases / max(report['bases'], 1):.2f} %"

    lines = [
        f"{settings['k']}-mers of either strand, one of {settings['scale']} kept, in pieces of at most {settings['piece']:,} bases",
        f"read              {report['documents']:,} documents, {report['bases']:,} bases",
        f"exact duplicates  {exact['documents']:,} documents: {share(exact['bases'])}",
        f"near duplicates   {near['pieces']:,} of {near['of_pieces']:,} pieces with {100 * settings['near']:g} % or more of their k-mers "
        f"in what stays, {near['all_hashes_pieces']:,} of them with all: {share(near['bases'])}",
        f"stays             {share(report['kept_bases'])}; of it not judged, under {settings['min_hashes']} kept k-mers: "
        f"{unjudged['bases']:,} bases in {unjudged['pieces']:,} pieces",
        f"clusters          {report['clusters']:,}",
    ]
    lines += [
        f"  {row['cluster']}: {row['kept']} stays, {row['left_out']:,} left out with {row['bases']:,} bases" for row in report["largest"]
    ]
    return "\n".join(lines)
