"""Where tokens come from and where bases went: a step or sample -> loci; a locus -> the samples that read it.

`was_seen` looks at no sample that does not read the locus: the sample index, the permutations and the blend are inverted.
Steps count from 1, as in the log of a run; loci in text are `assembly:contig:start-end`, 1-based, end included.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import RunConfig, load_config
from dnapretrain.data.sampling.samples import SampleStream, held_out_streams, train_stream
from dnapretrain.data.sampling.split import SIDES, Segments, split_documents, whole_documents
from dnapretrain.data.shards.shard import Shard, open_shard
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError

LOG_TAIL = 1 << 20
"""Bytes at the end of a log that are searched for its last step."""
RUNS_AT_A_TIME = 1_000_000
"""About so many runs are held in memory, whatever the number of epochs."""


@dataclass(frozen=True)
class Steps:
    """Which samples each step reads: sample ids follow each other, and the batch size may rise."""

    config: RunConfig

    def samples(self, step: int) -> range:
        """Sample ids of a step. Raises ConfigError below step 1."""
        if step < 1:
            raise ConfigError(f"step {step} does not exist: steps count from 1")
        first = self.config.samples_after(step - 1)
        return range(first, first + self.config.global_batch_size(first))

    def of_sample(self, sample: int) -> int:
        """The step that reads a sample."""
        start, step, full = 0, 1, self.config.train.global_batch_size
        while (size := self.config.global_batch_size(start)) < full:
            if sample < start + size:
                return step
            start, step = start + size, step + 1
        return step + (sample - start) // full


def open_config(run_or_config: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a config file, or of a run folder (its run.yaml). Raises ConfigError where there are none."""
    if not run_or_config.is_dir():
        return load_config(run_or_config, overrides)
    if not (run_or_config / "run.yaml").is_file():
        raise ConfigError(f"{run_or_config} holds no run.yaml, so no run has started there. Give a run folder or a config file")
    return load_config(run_or_config / "run.yaml", overrides)


def open_run(run_or_config: str | Path) -> tuple[RunConfig, int]:
    """The settings of a run folder (its run.yaml) or of a config file, and the last step: what the run has reached, or train_steps.

    Raises ConfigError where there is neither.
    """
    path = Path(run_or_config)
    config = open_config(path)
    step = _last_step(path) if path.is_dir() else None
    return config, config.train.train_steps if step is None else step


def _last_step(run: Path) -> int | None:
    """Of the log, else of the newest checkpoint (of the folder itself, where it is one)."""
    log, checkpoints = run / "log.jsonl", run / "checkpoints"
    if log.is_file():
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = file.read().splitlines()
        for line in reversed(lines):
            record = _json(line)
            if record.get("kind") in ("train", "start") and isinstance(record.get("step"), int):
                return int(record["step"])
    latest = checkpoints / "latest"
    state = (checkpoints / latest.read_text().strip() if latest.is_file() else run) / "state.json"
    return int(_json(state.read_bytes())["step"]) if state.is_file() else None


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:  # as a killed process leaves a line
        return {}
    return value if isinstance(value, dict) else {}


def open_train(config: RunConfig) -> SampleStream:
    """The training stream of a run. Raises ConfigError and DataError."""
    return train_stream(config.data_by_samples(), build_tokenizer(config.tokenizer))


# ---- locate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A sample to locate, and which part of its step it is."""

    sample: int
    step: int | None = None
    rank: int | None = None
    micro_batch: int | None = None


def samples_of_step(config: RunConfig, step: int, rank: int | None = None, world_size: int | None = None) -> list[Wanted]:
    """The samples of a step in order, or of one of `world_size` data-parallel ranks, micro-batch by micro-batch.

    Raises ConfigError for a rank that is none, and a batch that does not divide among the ranks.
    """
    samples = Steps(config).samples(step)
    if rank is None and world_size is None:
        return [Wanted(sample, step) for sample in samples]
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise ConfigError(f"--rank = {rank} and --world-size = {world_size}: give both, the rank from 0 to world size - 1")
    micro = config.train.micro_batch_size
    if len(samples) % (micro * world_size):
        raise ConfigError(
            f"step {step} has {len(samples)} samples, which are not divisible by train.micro_batch_size x --world-size = {micro} x "
            f"{world_size}. Give the data-parallel size of the run"
        )
    return [
        Wanted(samples.start + (index * world_size + rank) * micro + place, step, rank, index)
        for index in range(len(samples) // (micro * world_size))
        for place in range(micro)
    ]


def open_set(config: RunConfig, name: str) -> SampleStream:
    """The stream of set `name`: 'train', or a held-out one. Raises ConfigError for a set that the run has not."""
    if name == "train":
        return open_train(config)
    held_out = held_out_streams(config.data, build_tokenizer(config.tokenizer))
    if name not in held_out:
        raise ConfigError(f"the run has no set '{name}'. It has: {', '.join(['train', *held_out])}")
    return held_out[name]


def locate(stream: SampleStream, wanted: Sequence[Wanted], with_bases: bool = False) -> Iterator[dict[str, Any]]:
    """What each sample reads, as plain values; loci in reading order, 0-based half-open. Raises DataError for an id outside."""
    for item in wanted:
        loci = stream.locate(item.sample)
        rows = [
            {
                "locus": str(locus),
                **{name: getattr(locus, name) for name in ("assembly", "contig", "start", "end", "strand", "phase")},
            }
            for locus in loci
        ]
        if with_bases:
            for row, (_, bases) in zip(rows, stream.read(item.sample), strict=True):
                row["bases"] = bases.tobytes().decode()
        place = {name: value for name, value in vars(item).items() if value is not None}
        yield {"set": stream.name, **place, "source": loci[0].prefix, "epoch": loci[0].epoch, "loci": rows}


def format_located(found: dict[str, Any]) -> str:
    """One line for the sample, one for each locus."""
    place = "".join(
        f"{name.replace('_', '-')} {found[name]}  " for name in ("step", "rank", "micro_batch", "sample", "epoch") if name in found
    )
    lines = [f"{found['set']}  {place}{found['source']}"]
    return "\n".join([*lines, *(f"  {locus['locus']}  phase {locus['phase']}" for locus in found["loci"])])


def format_fasta(found: dict[str, Any]) -> str:
    """One record per locus, bases as the sample reads them; the header says where the locus lies and which sample it is."""
    place = " ".join(f"{name}={found[name]}" for name in ("set", "sample", "step", "rank", "micro_batch", "epoch") if name in found)
    return "".join(f">{locus['locus']} {place} phase={locus['phase']}\n{locus['bases']}\n" for locus in found["loci"])


# ---- was-seen --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Locus:
    """Bases [start, end) of a contig, 0-based."""

    assembly: str
    contig: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.assembly}:{self.contig}:{self.start + 1}-{self.end}"


@dataclass
class Seen:
    """What became of a locus."""

    locus: Locus
    sides: dict[str, int] = field(default_factory=dict)
    """Bases on each side of the split and in each set of data.valid; a base that two documents hold counts twice."""
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
        }


def was_seen(config: RunConfig, loci: Sequence[str], up_to_step: int) -> list[Seen]:
    """What became of each locus up to a step. Raises ConfigError for a locus that cannot be read or a contig that is not known."""
    if up_to_step < 0:
        raise ConfigError(f"--up-to-step = {up_to_step} is below 0. Give a step of the run")
    stream, steps = open_train(config), Steps(config)
    shards = [source.shard for source in stream.sources]
    held_out = {name: open_shard(prefix) for name, prefix in config.data.valid.items()}
    names = _names([*shards, *held_out.values()])
    seen = [Seen(_parse_locus(text, names)) for text in loci]
    contigs = {(item.locus.assembly, item.locus.contig) for item in seen}
    splits = split_documents(shards, config.data.split)
    placed = [
        (side, number, Placed.of(shard, split[side], contigs))
        for number, (shard, split) in enumerate(zip(shards, splits, strict=True))
        for side in SIDES
    ]
    placed += [(name, -1, Placed.of(shard, whole_documents(shard), contigs)) for name, shard in held_out.items()]
    for item in seen:
        _book_sides(item, placed)
    limit = config.samples_after(up_to_step)
    for side, number, segments in placed:
        if side == "train":
            _find_readers(seen, segments, stream, number, limit)
    for item in seen:
        item.steps = (steps.of_sample(item.samples[0]), steps.of_sample(item.samples[1])) if item.samples else None
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


def _names(shards: Sequence[Shard]) -> dict[str, set[tuple[str, str]]]:
    """What a contig may be called: `contig` and `assembly:contig`."""
    names: dict[str, set[tuple[str, str]]] = {}
    for shard in shards:
        for assembly, contig in set(zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True)):
            names.setdefault(contig, set()).add((assembly, contig))
            names.setdefault(f"{assembly}:{contig}", set()).add((assembly, contig))
    return names


def _parse_locus(text: str, names: dict[str, set[tuple[str, str]]]) -> Locus:
    found = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if not found:
        raise ConfigError(f"'{text}' is not a locus. Give assembly:contig:start-end, 1-based, e.g. hg38:chr1:10,001-20,000")
    name, start, end = found[1], int(found[2].replace(",", "") or 0), int(found[3].replace(",", "") or 0)
    if not 1 <= start <= end:
        raise ConfigError(f"locus {text} starts at {start} and ends at {end}; loci are 1-based, end included. Mend it")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:3]
        raise ConfigError(f"contig '{name}' is in no shard of the run. Near names: {', '.join(near)}")
    if len(names[name]) > 1:
        some = ", ".join(sorted(":".join(pair) for pair in names[name])[:5])
        raise ConfigError(f"contig '{name}' is in {len(names[name])} assemblies. Give one of them: {some}")
    [(assembly, contig)] = names[name]
    return Locus(assembly, contig, start - 1, end)


@dataclass(frozen=True)
class Placed:
    """Stretches of contigs that segments of a shard hold; a segment of a spliced document has several."""

    assembly: NDArray[np.object_]
    contig: NDArray[np.object_]
    number: NDArray[np.int64]
    """Of the segment."""
    offset: NDArray[np.int64]
    """Of the stretch in its segment: 0, but in spliced documents."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    minus: NDArray[np.bool_]

    @classmethod
    def of(cls, shard: Shard, segments: Segments, contigs: set[tuple[str, str]] | None = None) -> Placed:
        """Segments on these contigs (default: on all)."""
        coordinates = shard.coordinates
        if shard.edits is not None:
            raise DataError(f"{shard.prefix} holds haplotypes, whose bases have no one place on the contig. Ask a run on the reference")
        chosen = np.arange(len(segments.document), dtype=np.int64)
        if contigs is not None:
            pairs = zip(coordinates.assembly, coordinates.contig, strict=True)
            wanted = np.fromiter((pair in contigs for pair in pairs), np.bool_, len(shard.lengths))
            chosen = chosen[wanted[segments.document]]
        document, first, length = segments.document[chosen], segments.start[chosen], segments.length[chosen]
        offset = np.zeros(len(chosen), np.int64)
        minus = (np.array(coordinates.strand, dtype="U1") == "-")[document]
        if coordinates.blocks is None:
            start = np.where(minus, coordinates.span_end[document] - first - length, coordinates.span_start[document] + first)
            end = start + length
        else:
            pieces = [coordinates.pieces(*row) for row in zip(document.tolist(), first.tolist(), (first + length).tolist(), strict=True)]
            of_segment = np.repeat(np.arange(len(pieces)), [len(stretches) for stretches in pieces])
            start, end = np.array([stretch for stretches in pieces for stretch in stretches], np.int64).reshape(-1, 2).T
            chosen, document, minus = chosen[of_segment], document[of_segment], minus[of_segment]
            before = np.cumsum(end - start) - (end - start)
            offset = before - (np.cumsum(length) - length)[of_segment]
        names = [np.array(column, dtype=object)[document] for column in (coordinates.assembly, coordinates.contig)]
        return cls(names[0], names[1], chosen, offset, start, end, minus)

    def overlapping(self, locus: Locus) -> NDArray[np.int64]:
        """Places (of these arrays) of segments that share bases with `locus`."""
        same = (self.contig == locus.contig) & (self.assembly == locus.assembly)
        return np.flatnonzero(same & (self.start < locus.end) & (self.end > locus.start))

    def in_segment(self, at: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Contig intervals as [start, end) in the segments at these places; the same arithmetic leads back."""
        minus, offset = self.minus[at], self.offset[at]
        first = np.where(minus, self.end[at] - end, start - self.start[at]) + offset
        return first, first + end - start

    def on_contig(self, at: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """[start, end) in the segments at these places as contig intervals."""
        minus, start, end = self.minus[at], start - self.offset[at], end - self.offset[at]
        first = np.where(minus, self.end[at] - end, self.start[at] + start)
        return first, first + end - start


def _book_sides(item: Seen, placed: Sequence[tuple[str, int, Placed]]) -> None:
    pieces: list[tuple[int, int]] = []
    for side, _, segments in placed:
        at = segments.overlapping(item.locus)
        start, end = np.maximum(segments.start[at], item.locus.start), np.minimum(segments.end[at], item.locus.end)
        if len(at):
            item.sides[side] = item.sides.get(side, 0) + int((end - start).sum())
        pieces += zip(start.tolist(), end.tolist(), strict=True)
    item.absent = item.locus.end - item.locus.start - _union(pieces)


def _union(intervals: Sequence[tuple[int, int]]) -> int:
    """Bases that the intervals hold together."""
    total = reached = 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _find_readers(seen: Sequence[Seen], placed: Placed, stream: SampleStream, source: int, limit: int) -> None:
    """Adds what the first `limit` samples read of the loci from one source."""
    overlaps = [placed.overlapping(item.locus) for item in seen]
    at = np.concatenate(overlaps) if overlaps else np.zeros(0, np.int64)
    if not len(at) or not limit:
        return
    of_locus = np.repeat(np.arange(len(seen)), [len(places) for places in overlaps])
    locus_start = np.array([item.locus.start for item in seen], np.int64)[of_locus]
    locus_end = np.array([item.locus.end for item in seen], np.int64)[of_locus]
    start, end = np.maximum(placed.start[at], locus_start), np.minimum(placed.end[at], locus_end)
    first, last = placed.in_segment(at, start, end)
    for query, ids, run_start, run_end, reverse in training_runs(stream, source, placed.number[at], first, last, limit):
        from_, to = placed.on_contig(at[query], np.maximum(run_start, first[query]), np.minimum(run_end, last[query]))
        minus = placed.minus[at[query]] != reverse
        for number in np.unique(of_locus[query]):
            rows = of_locus[query] == number
            _book_runs(seen[number], ids[rows], from_[rows], to[rows], minus[rows])


def training_runs(
    stream: SampleStream,
    source: int,
    segments: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    limit: int,
    first_epoch: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Runs of the first `limit` samples that read bases [starts, ends) of segments of a source, some epochs at a time, from an epoch on.

    Arrays: number of the query, sample id, first base and end in the segment, whether the shard's other strand is read.
    All runs of one sample come together.
    """
    segments, starts, ends = (np.ascontiguousarray(array, np.int64) for array in (segments, starts, ends))
    epochs = -(-stream.draws_read(source, limit)[0] // stream.draws_per_epoch(source))
    epoch, count = first_epoch, 1
    while epoch < epochs:
        some = range(epoch, min(epoch + count, epochs))
        query, draws, run_starts, lengths, reverse = stream.readers(source, segments, starts, ends, some)
        epoch, count = some.stop, max(1, RUNS_AT_A_TIME * len(some) // max(len(draws), len(segments) * len(some)))
        ids = stream.sample_ids(source, draws)
        kept = np.flatnonzero((ids >= 0) & (ids < limit))
        yield query[kept], ids[kept], run_starts[kept], (run_starts + lengths)[kept], reverse[kept]


def _book_runs(item: Seen, ids: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64], minus: NDArray[np.bool_]) -> None:
    """Adds runs that read bases [start, end) of the locus; all runs of a sample are among them."""
    samples, first, count = np.unique(ids, return_index=True, return_counts=True)
    size = item.locus.end - item.locus.start
    item.any += len(samples)
    item.all += int(((end - start)[first[count == 1]] == size).sum())
    for sample in samples[count > 1].tolist():
        rows = ids == sample
        item.all += _union(list(zip(start[rows].tolist(), end[rows].tolist(), strict=True))) == size
    for strand, rows in (("+", ~minus), ("-", minus)):
        item.strands[strand] += len(np.unique(ids[rows]))
    low, high = int(samples[0]), int(samples[-1])
    item.samples = (min(low, item.samples[0]), max(high, item.samples[1])) if item.samples else (low, high)


def format_seen(item: Seen, up_to_step: int) -> str:
    """A few lines for people."""
    sides = [f"{side} {bases:,}" for side, bases in item.sides.items()] + ([f"not in the data {item.absent:,}"] if item.absent else [])
    lines = [f"{item.locus}  {item.locus.end - item.locus.start:,} bases", f"  bases        {', '.join(sides)}"]
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
