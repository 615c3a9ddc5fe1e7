"""A step or a sample -> the loci that it reads, in text `assembly:contig:start-end`, 1-based, end included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.data.audit.runs import Steps
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.errors import ConfigError


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
    if rank is None or world_size is None:
        given, other = ("--world-size", "--rank") if rank is None else ("--rank", "--world-size")
        raise ConfigError(
            f"{given} needs {other} too: a data-parallel rank, and how many the run had (the last number of its log's `layout`)"
        )
    if not 0 <= rank < world_size:
        raise ConfigError(f"--rank = {rank} is none of --world-size = {world_size} ranks. Give one from 0 to {world_size - 1}")
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


def locate(stream: TrainStream | SampleStream, wanted: Sequence[Wanted], with_bases: bool = False) -> Iterator[dict[str, Any]]:
    """What each sample reads, as plain values; loci and blocks in reading order, 0-based half-open. Raises DataError for an id outside."""
    for item in wanted:
        loci = stream.locate(item.sample)
        rows = [
            {
                "locus": str(locus),
                **{name: getattr(locus, name) for name in ("assembly", "contig", "start", "end", "strand", "phase")},
                "blocks": [list(block) for block in locus.blocks],
                **({"haplotype": locus.haplotype} if locus.haplotype else {}),
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
