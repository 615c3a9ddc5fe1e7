"""Sketches of shards, and leakage: how much of what is held out stands in the training bases too, on either strand.

Documents are cut into pieces; of the distinct k-mers that begin in a piece (a k-mer and its reverse complement are one, case is ignored,
a letter other than A, C, G, T breaks them) those with a small hash are kept, one of `scale` on average, the same ones wherever
they stand. The share of a piece's kept k-mers that occurs elsewhere estimates the share of all its k-mers that does; at `scale` 1 it is
exact. Bases that differ at a rate d leave about (1 - d)^k of the k-mers: 0.9 is 0.34 % at k = 31, and 0.5 is 2.2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.split import SIDES, Segments, split_documents, whole_documents
from dnapretrain.data.shards.shard import Shard, open_shard
from dnapretrain.errors import ConfigError

MIN_HASHES = 10
"""Pieces with fewer are not judged: a few chance matches would decide."""
BATCH_BASES = 1 << 26
"""About so many bases are sketched at a time."""
SHOWN = 10
"""Worst pieces, or largest clusters, that a report names."""


@dataclass(frozen=True)
class SketchSettings:
    """Which k-mers are kept, and of which stretches. Raises ConfigError for values out of range."""

    k: int = 31
    scale: int = 50
    """One k-mer of so many is kept, on average."""
    piece: int = 10_000
    """Bases of a piece at most; documents are cut into equal parts."""

    def __post_init__(self) -> None:
        if not _core.MIN_SKETCH_K <= self.k <= _core.MAX_SKETCH_K:
            raise ConfigError(
                f"--k = {self.k} is not from {_core.MIN_SKETCH_K} to {_core.MAX_SKETCH_K}. Give a length of k-mers in between"
            )
        if self.scale < 1:
            raise ConfigError(f"--scale = {self.scale} is below 1. Give 1 for all k-mers, 50 for one of 50")
        if self.piece < MIN_HASHES * self.scale:
            raise ConfigError(
                f"--piece = {self.piece} bases hold fewer than the {MIN_HASHES} k-mers that a judgement needs, of which --scale = "
                f"{self.scale} keeps one in {self.scale}. Give --piece {MIN_HASHES * self.scale} or more, or lower --scale"
            )


@dataclass(frozen=True, eq=False)
class Pieces:
    """Stretches of documents of one shard; places count from the first base of the document. 32 bytes each."""

    shard: Shard
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    limit: NDArray[np.int64]
    """End of the segment: k-mers that begin in a piece may reach into the next, so none is lost between two."""

    @classmethod
    def of(cls, shard: Shard, segments: Segments, piece: int) -> Pieces:
        """Segments, in their order, in equal parts of at most `piece` bases (they differ by one base at most)."""
        counts = -(-segments.length // piece)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first, length, parts = (np.repeat(array, counts) for array in (segments.start, segments.length, counts))
        start, end = number * length // parts, (number + 1) * length // parts
        return cls(shard, np.repeat(segments.document, counts), first + start, first + end, first + length)

    def __len__(self) -> int:
        return len(self.document)

    @property
    def bases(self) -> NDArray[np.int64]:
        """Bases of each piece."""
        return self.end - self.start

    def intervals(self, number: int) -> list[tuple[int, int]]:
        """Where a piece lies on its contig, 0-based half-open; several of a spliced document."""
        return self.shard.coordinates.pieces(int(self.document[number]), int(self.start[number]), int(self.end[number]))

    def contig(self, number: int) -> tuple[str, str]:
        """Assembly and contig."""
        document = int(self.document[number])
        return self.shard.coordinates.assembly[document], self.shard.coordinates.contig[document]

    def locus(self, number: int) -> str:
        """As people write it: 1-based, end included, introns included."""
        intervals = self.intervals(number)
        return f"{':'.join(self.contig(number))}:{min(start for start, _ in intervals) + 1}-{max(end for _, end in intervals)}"

    def sketches(self, settings: SketchSettings) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
        """Batches of pieces in order: the first one's number, the kept hashes of all, and how many each piece has."""
        reach = np.cumsum(self.bases)
        at = 0
        while at < len(self):
            to = int(np.searchsorted(reach, (reach[at - 1] if at else 0) + BATCH_BASES, side="right"))
            chosen = slice(at, max(to, at + 1))
            offset = self.shard.offsets[self.document[chosen]]
            starts, ends, limits = (offset + array[chosen] for array in (self.start, self.end, self.limit))
            hashes, counts = _core.sketch(self.shard.bases, starts, ends, limits, k=settings.k, scale=settings.scale)
            yield at, hashes, counts
            at = chosen.stop


def bed_names(shards: Sequence[Shard]) -> dict[tuple[str, str], str]:
    """What a BED file calls (assembly, contig): the contig, or `assembly:contig` where several assemblies have one of that name."""
    pairs = dict.fromkeys(
        pair for shard in shards for pair in dict.fromkeys(zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True))
    )
    holders: dict[str, int] = {}
    for _, contig in pairs:
        holders[contig] = holders.get(contig, 0) + 1
    return {(assembly, contig): contig if holders[contig] == 1 else f"{assembly}:{contig}" for assembly, contig in pairs}


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The pieces of one held-out set that lie in one shard, and where in the training bases each kept hash was first met."""

    name: str
    pieces: Pieces
    counts: NDArray[np.int64]
    """Hashes of each piece."""
    met: NDArray[np.int64]
    """Of each hash: number of the first training piece that has it; -1: none."""

    @property
    def shared(self) -> NDArray[np.int64]:
        """Hashes of each piece that stand in the training bases."""
        before = np.concatenate([[0], np.cumsum(self.met >= 0)])
        ends = np.cumsum(self.counts)
        found: NDArray[np.int64] = before[ends] - before[ends - self.counts]
        return found

    @property
    def containment(self) -> NDArray[np.float64]:
        """Share of the hashes of each piece; nan where it has too few."""
        share = self.shared / np.maximum(self.counts, 1)
        return np.where(self.counts >= MIN_HASHES, share, np.nan)


class Leakage:
    """What the held-out sets of a configuration share with its training side.

    Memory: about 40 bytes per kept hash of the held-out sets and 32 per piece of either side; training bases are streamed.
    Raises ConfigError where nothing is held out.
    """

    def __init__(self, config: RunConfig, settings: SketchSettings, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"--threshold = {threshold:g} is not above 0 and at most 1. Give the share of k-mers that is too much")
        self.settings, self.threshold = settings, threshold
        shards = [open_shard(source.prefix) for source in config.data.train]
        splits = split_documents(shards, config.data.split)
        self._train = [Pieces.of(shard, split["train"], settings.piece) for shard, split in zip(shards, splits, strict=True)]
        held_out = [
            (side, Pieces.of(shard, split[side], settings.piece))
            for side in SIDES[1:]
            for shard, split in zip(shards, splits, strict=True)
            if split[side].bases
        ]
        for name, prefix in config.data.valid.items():
            shard = open_shard(prefix)
            held_out.append((name, Pieces.of(shard, whole_documents(shard), settings.piece)))
        if not held_out:
            raise ConfigError("nothing is held out, so nothing can leak. Set data.split or data.valid")
        self._held_out = self._find(held_out)

    def _find(self, held_out: list[tuple[str, Pieces]]) -> list[_HeldOut]:
        sketched = [list(pieces.sketches(self.settings)) for _, pieces in held_out]
        counts = [np.concatenate([batch[2] for batch in batches]) for batches in sketched]
        hashes = np.concatenate([batch[1] for batches in sketched for batch in batches])
        del sketched
        distinct, place = np.unique(hashes, return_inverse=True)
        met = np.full(len(distinct), -1, np.int64)
        before = 0
        for pieces in self._train:
            for first, found, of_piece in pieces.sketches(self.settings):
                if len(distinct):
                    _meet(distinct, met, found, np.repeat(before + first + np.arange(len(of_piece)), of_piece))
            before += len(pieces)
        ends = np.cumsum([count.sum() for count in counts])
        parts = np.split(met[place], ends[:-1])
        return [_HeldOut(name, pieces, *rest) for (name, pieces), *rest in zip(held_out, counts, parts, strict=True)]

    def report(self) -> dict[str, Any]:
        """Plain values, of each held-out set and of the settings; shares are fractions."""
        sets = {name: self._report_set([part for part in self._held_out if part.name == name]) for name in self._names()}
        settings = {**vars(self.settings), "threshold": self.threshold, "min_hashes": MIN_HASHES}
        return {"settings": settings, "train_bases": sum(int(pieces.bases.sum()) for pieces in self._train), "sets": sets}

    def bed(self) -> Iterator[str]:
        """BED lines of the held-out pieces at or above the threshold: contig, start, end, set, share of 1000."""
        names = bed_names([part.pieces.shard for part in self._held_out])
        for part in self._held_out:
            containment = part.containment
            for number in np.flatnonzero(containment >= self.threshold).tolist():
                name = names[part.pieces.contig(number)]
                score = round(1000 * float(containment[number]))
                for start, end in sorted(part.pieces.intervals(number)):
                    yield f"{name}\t{start}\t{end}\t{part.name}\t{score}\n"

    def _names(self) -> list[str]:
        return list(dict.fromkeys(part.name for part in self._held_out))

    def _report_set(self, parts: list[_HeldOut]) -> dict[str, Any]:
        bases, counts, shared, containment = (
            np.concatenate(arrays)
            for arrays in zip(*((part.pieces.bases, part.counts, part.shared, part.containment) for part in parts), strict=True)
        )
        leaks, unjudged = containment >= self.threshold, np.isnan(containment)
        hashes, total = int(counts.sum()), int(bases.sum())
        worst = np.argsort(-np.nan_to_num(containment), kind="stable")[:SHOWN]
        before = np.cumsum([0, *(len(part.pieces) for part in parts)])
        rows = []
        for number in worst[np.nan_to_num(containment[worst]) > 0].tolist():
            which = int(np.searchsorted(before, number, side="right")) - 1
            rows.append(self._row(parts[which], number - int(before[which]), float(containment[number])))
        return {
            "bases": total,
            "pieces": len(bases),
            "leaked_pieces": int(leaks.sum()),
            "leaked_bases": int(bases[leaks].sum()),
            "leaked_bases_share": int(bases[leaks].sum()) / total,
            "not_judged_pieces": int(unjudged.sum()),
            "not_judged_bases": int(bases[unjudged].sum()),
            "hashes": hashes,
            "hashes_in_training": int(shared.sum()),
            "hashes_share": int(shared.sum()) / hashes if hashes else None,
            "worst": rows,
        }

    def _row(self, part: _HeldOut, number: int, containment: float) -> dict[str, Any]:
        end = int(part.counts[: number + 1].sum())
        met = part.met[end - int(part.counts[number]) : end]
        pieces, times = np.unique(met[met >= 0], return_counts=True)
        found = int(pieces[times.argmax()])
        for training in self._train:
            if found < len(training):
                break
            found -= len(training)
        bases = int(part.pieces.bases[number])
        return {"locus": part.pieces.locus(number), "bases": bases, "containment": containment, "in_training": training.locus(found)}


def _meet(distinct: NDArray[np.uint64], met: NDArray[np.int64], hashes: NDArray[np.uint64], pieces: NDArray[np.int64]) -> None:
    """Note the piece of each hash that is one of `distinct` (in order) and was not met before; the first piece counts."""
    place = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
    fresh = (distinct[place] == hashes) & (met[place] < 0)
    met[place[fresh][::-1]] = pieces[fresh][::-1]


def format_leakage(report: dict[str, Any]) -> str:
    """The text that `dnapretrain leakage` prints."""
    settings = report["settings"]
    lines = [
        f"{settings['k']}-mers of either strand, one of {settings['scale']} kept, in pieces of at most {settings['piece']:,} bases; "
        f"training side {report['train_bases']:,} bases"
    ]
    for name, row in report["sets"].items():
        share = f"{100 * row['hashes_share']:.2f} %" if row["hashes_share"] is not None else "none"
        lines += [
            f"{name}: {row['bases']:,} bases in {row['pieces']:,} pieces",
            f"  k-mers that stand in training too   {share} ({row['hashes_in_training']:,} of {row['hashes']:,} kept)",
            f"  bases in pieces with {100 * settings['threshold']:g} % or more     {100 * row['leaked_bases_share']:.2f} % "
            f"({row['leaked_bases']:,} in {row['leaked_pieces']:,} pieces)",
            f"  not judged, under {settings['min_hashes']} kept k-mers     {row['not_judged_bases']:,} bases "
            f"in {row['not_judged_pieces']:,} pieces",
        ]
        lines += [f"  {100 * piece['containment']:6.2f} %  {piece['locus']}  as in {piece['in_training']}" for piece in row["worst"]]
    return "\n".join(lines)
