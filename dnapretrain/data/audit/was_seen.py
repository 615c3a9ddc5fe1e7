"""A locus -> the side of the split that it lies on, and the training samples that read it, from all shards that hold it.

No sample is looked at that does not read near a locus: the sample index, the permutations and the blend are inverted. A sample reads a base
of a locus if it reads a document's copy of it: a spliced gene's, a haplotype's (the base that stands for it, or what follows it inserted).
Loci in text are `assembly:contig:start-end`, 1-based, end included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import RunConfig
from dnapretrain.data.audit.placed import Axis, Placed, training_runs
from dnapretrain.data.audit.runs import Steps, open_train
from dnapretrain.data.sampling.lengths import LengthPart
from dnapretrain.data.sampling.split import SIDES, split_documents, whole_documents
from dnapretrain.data.shards.locus import Locus, split_locus
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.errors import ConfigError

STRETCHES_AT_A_TIME = 1_000_000
"""Loci are looked at so many together that about so many stretches of documents lie near them."""
NAMED = 5
"""Haplotypes named in text; JSON has all."""


@dataclass
class Held:
    """What one side of one shard holds of a locus."""

    prefix: str
    side: str
    bases: int
    """A base that two documents hold counts twice."""
    samples: int = 0
    """Training samples that read at least one base of it there."""
    haplotypes: dict[str, int] = field(default_factory=dict)
    """Those that were read, and by how many samples; a packed sample may read several."""


@dataclass
class Seen:
    """What became of a locus."""

    locus: Locus
    held: list[Held] = field(default_factory=list)
    absent: int = 0
    """Bases of the locus that are in no shard: runs of N, what preprocessing left out, beyond the end of the contig."""
    any: int = 0
    """Training samples that read at least one base of it, and all of its bases."""
    all: int = 0
    strands: dict[str, int] = field(default_factory=lambda: {"+": 0, "-": 0})
    """Samples that read a base of it, by strand of the contig; a packed sample may have both."""
    samples: tuple[int, int] | None = None
    """The first and the last sample that read a base of it."""
    steps: tuple[int, int] | None = None

    @property
    def sides(self) -> dict[str, int]:
        """Bases on each side of the split and in each set of data.valid; a base that two documents hold counts twice."""
        sides: dict[str, int] = {}
        for held in self.held:
            sides[held.side] = sides.get(held.side, 0) + held.bases
        return sides

    def to_dict(self, up_to_step: int) -> dict[str, Any]:
        """Plain values; coordinates are 0-based half-open."""
        first_sample, last_sample = self.samples or (None, None)
        first_step, last_step = self.steps or (None, None)
        return {
            "locus": str(self.locus),
            **vars(self.locus),
            "sides": self.sides,
            "not_in_data": self.absent,
            "up_to_step": up_to_step,
            "samples_any": self.any,
            "samples_all": self.all,
            "strands": self.strands,
            "first_step": first_step,
            "last_step": last_step,
            "first_sample": first_sample,
            "last_sample": last_sample,
            "shards": [vars(held) for held in self.held],
        }


def was_seen(config: RunConfig, loci: Sequence[str], up_to_step: int) -> list[Seen]:
    """What became of each locus up to a step. Raises ConfigError for a locus that cannot be read or a contig that is not known."""
    if up_to_step < 0:
        raise ConfigError(f"--up-to-step = {up_to_step} is below 0. Give a step of the run")
    stream, steps = open_train(config), Steps(config)
    shards = [source.shard for source in stream.sources]
    held_out = {name: open_shard(prefix) for name, prefix in config.data.valid.items()}
    everything = [*shards, *held_out.values()]
    axis = Axis.of(everything)
    names = _names(axis)
    seen = [Seen(_parse_locus(text, names)) for text in loci]
    parts = [
        (side, number, split[side])
        for number, split in enumerate(split_documents(shards, config.data.split))
        for side in SIDES
        if split[side].bases
    ]
    parts += [(name, number, whole_documents(shard)) for number, (name, shard) in enumerate(held_out.items(), len(shards))]
    placed = [(side, number, Placed.of(axis, number, everything[number], segments)) for side, number, segments in parts]
    limit = config.samples_after(up_to_step)
    for some in _some_at_a_time(seen, axis, placed):
        for side, number, segments in placed:
            held = some.book(side, segments)
            if side == "train" and limit:
                for part in stream.parts(limit):
                    _find_readers(some, held, segments, part, number)
        some.finish(steps)
    return seen


def read_bed(path: Path) -> list[str]:
    """The intervals of a BED file as texts of loci. Raises ConfigError for a line that is none."""
    loci = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"BED file {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith(("#", "track", "browser")):
            fields = line.split("\t")
            if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal() and int(fields[1]) < int(fields[2])):
                raise ConfigError(f"{path}: line {number} is not 'contig<tab>start<tab>end' with start below end. Mend it")
            loci.append(f"{fields[0]}:{int(fields[1]) + 1}-{int(fields[2])}")
    return loci


def _names(axis: Axis) -> dict[str, set[tuple[str, str]]]:
    """What a contig may be called: `contig` and `assembly:contig`."""
    names: dict[str, set[tuple[str, str]]] = {}
    for assembly, contig in axis.contigs:
        names.setdefault(contig, set()).add((assembly, contig))
        names.setdefault(f"{assembly}:{contig}", set()).add((assembly, contig))
    return names


def _parse_locus(text: str, names: dict[str, set[tuple[str, str]]]) -> Locus:
    if ":" not in text and Path(text).is_file():
        raise ConfigError(f"'{text}' is a file, not a locus. Give --bed {text}")
    name, start, end = split_locus(text)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:3]
        raise ConfigError(f"contig '{name}' is in no shard of the run. Near names: {', '.join(near)}")
    if len(names[name]) > 1:
        some = ", ".join(sorted(":".join(pair) for pair in names[name])[:5])
        raise ConfigError(f"contig '{name}' is in {len(names[name])} assemblies. Give one of them: {some}")
    [(assembly, contig)] = names[name]
    return Locus(assembly, contig, start, end)


@dataclass(frozen=True, eq=False)
class _Some:
    """Some loci, on the axis, and what is known of them so far."""

    seen: Sequence[Seen]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """Cut where the contig ends."""
    size: NDArray[np.int64]
    """Bases of the loci, not cut."""
    counts: NDArray[np.int64]
    """(4, loci): samples that read any, all, the plus and the minus strand."""
    range: NDArray[np.int64]
    """(2, loci): first and last sample."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    """Locus, start and end of all that is held of them."""

    @classmethod
    def of(cls, seen: Sequence[Seen], start: NDArray[np.int64], end: NDArray[np.int64]) -> _Some:
        size = np.array([item.locus.end - item.locus.start for item in seen], np.int64)
        samples = np.stack([np.full(len(seen), np.iinfo(np.int64).max), np.full(len(seen), -1)])
        return cls(seen, start, end, size, np.zeros((4, len(seen)), np.int64), samples)

    def book(self, side: str, placed: Placed) -> dict[int, Held]:
        """Adds what is held by one side of a shard; by locus."""
        locus, at = placed.overlapping(self.start, self.end)
        start, end = np.maximum(placed.start[at], self.start[locus]), np.minimum(placed.end[at], self.end[locus])
        if placed.shard.edits is not None:
            query, start, end = placed.on_axis(at, *placed.in_segment(at, start, end))
            locus = locus[query]
        self.found.append((locus, start, end))
        bases = np.zeros(len(self.seen), np.int64)
        np.add.at(bases, locus, end - start)
        held = {number: Held(str(placed.shard.prefix), side, int(bases[number])) for number in np.flatnonzero(bases).tolist()}
        for number, item in held.items():
            self.seen[number].held.append(item)
        return held

    def finish(self, steps: Steps) -> None:
        """Writes the counts into the loci."""
        locus, start, end = (np.concatenate(arrays) for arrays in zip(*self.found, strict=True))
        held = np.zeros(len(self.seen), np.int64)
        groups, lengths = _union(locus, start, end)
        held[groups] = lengths
        for number, item in enumerate(self.seen):
            item.absent = int(self.size[number] - held[number])
            item.any, item.all, plus, minus = self.counts[:, number].tolist()
            item.strands = {"+": plus, "-": minus}
            if item.any:
                first, last = self.range[:, number].tolist()
                item.samples, item.steps = (first, last), (steps.of_sample(first), steps.of_sample(last))


def _some_at_a_time(seen: Sequence[Seen], axis: Axis, placed: Sequence[tuple[str, int, Placed]]) -> Iterator[_Some]:
    number_of = {pair: number for number, pair in enumerate(axis.contigs)}
    contig = np.array([number_of[item.locus.assembly, item.locus.contig] for item in seen], np.int64)
    limits = axis.offset[contig + 1]
    start = np.minimum(axis.offset[contig] + [item.locus.start for item in seen], limits)
    end = np.minimum(axis.offset[contig] + [item.locus.end for item in seen], limits)
    near = np.cumsum(np.sum([1 + segments.count_near(start, end) for _, _, segments in placed], axis=0))
    at = 0
    while at < len(seen):
        to = max(at + 1, int(np.searchsorted(near, (near[at - 1] if at else 0) + STRETCHES_AT_A_TIME, side="right")))
        yield _Some.of(seen[at:to], start[at:to], end[at:to])
        at = to


def _find_readers(some: _Some, held: dict[int, Held], placed: Placed, part: LengthPart, source: int) -> None:
    """Adds what the samples of one length read of the loci from one source."""
    of_locus, at = placed.overlapping(some.start, some.end)
    start, end = np.maximum(placed.start[at], some.start[of_locus]), np.minimum(placed.end[at], some.end[of_locus])
    first, last = placed.in_segment(at, start, end)
    minus, names, haplotype = placed.minus(at), *placed.haplotypes()
    document = placed.segments.document[placed.number[at]]
    for query, ids, run_start, run_end, reverse in training_runs(part, source, placed.number[at], first, last):
        begin, finish = np.maximum(run_start, first[query]), np.minimum(run_end, last[query])
        locus, strand = of_locus[query], minus[query] != reverse
        row, from_, to = placed.on_axis(at[query], begin, finish)
        _book_samples(some, held, locus, ids, strand)
        _book_whole(some, locus[row], ids[row], from_, to)
        if names:
            number, named, times = _count_distinct(locus, haplotype[document[query]], ids)
            for of, name, count in zip(number.tolist(), named.tolist(), times.tolist(), strict=True):
                held[of].haplotypes[names[name]] = held[of].haplotypes.get(names[name], 0) + count


def _book_samples(some: _Some, held: dict[int, Held], locus: NDArray[np.int64], ids: NDArray[np.int64], minus: NDArray[np.bool_]) -> None:
    """Adds samples that read bases of loci; all runs of a sample on a locus are among them."""
    for row, chosen in ((0, slice(None)), (2, ~minus), (3, minus)):
        number, _, times = _count_distinct(locus[chosen], np.zeros_like(locus[chosen]), ids[chosen])
        some.counts[row, number] += times
        if row == 0:
            for of, count in zip(number.tolist(), times.tolist(), strict=True):
                held[of].samples += count
    np.minimum.at(some.range[0], locus, ids)
    np.maximum.at(some.range[1], locus, ids)


def _book_whole(some: _Some, locus: NDArray[np.int64], ids: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    """Adds the samples that read all bases of a locus, from what each reads of it."""
    order = np.lexsort((ids, locus))
    locus, ids, start, end = (array[order] for array in (locus, ids, start, end))
    begins = np.ones(len(locus), np.bool_)
    begins[1:] = (locus[1:] != locus[:-1]) | (ids[1:] != ids[:-1])
    groups, lengths = _union(np.cumsum(begins) - 1, start, end)
    of_group = locus[begins][groups]
    np.add.at(some.counts[1], of_group[lengths == some.size[of_group]], 1)


def _count_distinct(
    first: NDArray[np.int64], second: NDArray[np.int64], third: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(first, second) without repeats, and how many different `third` there are with each."""
    order = np.lexsort((third, second, first))
    first, second, third = first[order], second[order], third[order]
    pair, triple = np.ones(len(first), np.bool_), np.ones(len(first), np.bool_)
    pair[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    triple[1:] = pair[1:] | (third[1:] != third[:-1])
    return first[pair], second[pair], np.bincount((np.cumsum(pair) - 1)[triple], minlength=int(pair.sum()))


def _union(group: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups of intervals, and how many bases those of each hold together."""
    order = np.lexsort((start, group))
    group, start, end = group[order], start[order], end[order]
    first = np.ones(len(group), np.bool_)
    first[1:] = group[1:] != group[:-1]
    at = np.flatnonzero(first)
    if not len(at):
        return group, start
    # The groups are laid end to end, so that one running maximum does for all.
    low, high = start[at], np.maximum.reduceat(end, at)
    by = (np.cumsum(high - low) - (high - low) - low)[np.cumsum(first) - 1]
    start, end = start + by, end + by
    reached = np.concatenate([[0], np.maximum.accumulate(end)[:-1]])
    new = np.maximum(end - np.maximum(start, reached), 0)
    return group[at], np.add.reduceat(new, at)


def format_seen(item: Seen, up_to_step: int) -> str:
    """A few lines for people."""
    sides = [f"{side} {bases:,}" for side, bases in item.sides.items()] + ([f"not in the data {item.absent:,}"] if item.absent else [])
    lines = [f"{item.locus}  {item.locus.end - item.locus.start:,} bases", f"  bases        {', '.join(sides)}"]
    if len(item.held) > 1 or any(held.haplotypes for held in item.held):
        lines += [f"  shard        {_format_held(held)}" for held in item.held]
    if item.samples is None or item.steps is None:
        return "\n".join([*lines, f"  not seen     by any training sample up to step {up_to_step:,}"])
    strands = ", ".join(f"{strand} {count:,}" for strand, count in item.strands.items())
    return "\n".join(
        [
            *lines,
            f"  seen         by {item.any:,} training samples up to step {up_to_step:,}, all of it by {item.all:,}; strands {strands}",
            f"  first, last  step {item.steps[0]:,} (sample {item.samples[0]:,}), step {item.steps[1]:,} (sample {item.samples[1]:,})",
        ]
    )


def _format_held(held: Held) -> str:
    text = f"{held.prefix}: {held.side} {held.bases:,}"
    if held.side == "train":
        text += f", read by {held.samples:,} samples"
    if held.haplotypes:
        more = f", ... ({len(held.haplotypes):,})" if len(held.haplotypes) > NAMED else ""
        text += f" of haplotypes {', '.join(list(held.haplotypes)[:NAMED])}{more}"
    return text
