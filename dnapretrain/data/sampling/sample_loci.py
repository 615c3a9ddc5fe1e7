"""Where the bases of a sample lie on their contig."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.shards.stretches import find_stretches


@dataclass(frozen=True)
class SampleLocus:
    """Bases that a sample reads, 0-based half-open on the contig: exactly those behind its tokens, so the phase is already applied.

    From start to end lie other bases too where there are several blocks.
    """

    prefix: str
    assembly: str
    contig: str
    start: int
    end: int
    strand: str
    """'-': the sample reads the reverse complement of contig[start:end]."""
    phase: int
    epoch: int
    haplotype: str = ""
    """`sample.1` or `sample.2`; its bases may be fewer or more than end - start."""
    blocks: tuple[tuple[int, int], ...] = ()
    """Where the bases lie, in reading order: several where a document is spliced, or a haplotype lacks bases. What a haplotype inserts
    lies on the base before it."""

    def __str__(self) -> str:
        """As people write it, 1-based: the blocks of spliced documents (in reading order), from end to end of haplotypes."""
        haplotype = f" {self.haplotype}" if self.haplotype else ""
        blocks = [(self.start, self.end)] if self.haplotype or not self.blocks else self.blocks
        return f"{self.assembly}:{self.contig}:{','.join(f'{start + 1}-{end}' for start, end in blocks)}({self.strand}){haplotype}"


def locus_of_run(source: Source, segment: int, start: int, length: int, phase: int, reverse: bool, epoch: int) -> SampleLocus:
    """The locus of `length` bases from `start` on in a segment of a source, which a sample reads."""
    document = int(source.segments.document[segment])
    coordinates = source.shard.coordinates
    start += int(source.segments.start[segment])
    of_document, first, last = (np.array([value], np.int64) for value in (document, start, start + length))
    found = find_stretches(coordinates, of_document, first, last)
    blocks = list(zip(found.start.tolist(), found.end.tolist(), strict=True))
    return SampleLocus(
        prefix=str(source.shard.prefix),
        assembly=coordinates.assembly[document],
        contig=coordinates.contig[document],
        start=int(found.start.min()),
        end=int(found.end.max()),
        strand="-" if bool(coordinates.minus[document]) != reverse else "+",
        phase=phase,
        epoch=epoch,
        haplotype=coordinates.haplotype[document] if coordinates.haplotype else "",
        blocks=tuple(blocks[::-1] if reverse else blocks),
    )
