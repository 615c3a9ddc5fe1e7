"""Places that zero-shot probes ask about: start and stop codons, ends of introns, by strand; and the bases around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xxhash

from dnapretrain._core import reverse_complement
from dnapretrain.data.genes.gene_models import Gene, Transcript
from dnapretrain.data.genes.gene_regions import Extraction
from dnapretrain.data.shards.contigs import Contig
from dnapretrain.data.shards.selection import Bed

KINDS = ("start", "stop", "donor", "acceptor")
MIN_INTRON = 20
"""Bases: shorter gaps between exons are no introns (frameshifts, errors of assemblies)."""
NO_GENES = ("pseudo", "tRNA", "rRNA")
"""Types of genes that have no start and stop codons, or introns of another kind."""


@dataclass(frozen=True)
class Place:
    """The first base of a site on its strand."""

    contig: Contig
    strand: str
    at: int
    code: int = 1
    """The genetic code there."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is, whatever gene says so."""
        return self.contig.name, self.strand, self.at

    @property
    def locus(self) -> str:
        """As people write it: contig:position(strand), 1-based."""
        return f"{self.contig.name}:{self.at + 1}({self.strand})"

    def shifted(self, by: int) -> Place:
        """So many bases on, on its strand."""
        return Place(self.contig, self.strand, self.at + (by if self.strand == "+" else -by), self.code)


def keyed(*parts: object) -> int:
    """A hash of 64 bits: what is drawn depends on nothing else."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode())


def reverse_of(bases: str) -> str:
    """The reverse complement."""
    return reverse_complement(np.frombuffer(bases.encode(), np.uint8)).tobytes().decode()


class GenePlaces:
    """The annotated places of an assembly, each once, as far as they lie within the intervals of a BED file, and its bases."""

    def __init__(self, extraction: Extraction, within: Bed | None) -> None:
        self.extraction, self._genome = extraction, extraction.genome
        self._within = within.intervals if within else None
        self._num_bases = sum(contig.end for contig in self._genome.contigs.values())
        found: dict[str, dict[tuple[str, str, int], Place]] = {kind: {} for kind in KINDS}
        for gene, contig in extraction.genes:
            for transcript in gene.transcripts:
                for kind, at, code in self._of_transcript(gene, transcript):
                    place = Place(contig, transcript.strand, at, code)
                    if self.is_within(place):
                        found[kind].setdefault(place.key, place)
        self.of_kind = {kind: list(places.values()) for kind, places in found.items()}
        self.known = {kind: frozenset(places) for kind, places in found.items()}
        """Keys of the places of each kind."""

    def read(self, place: Place, first: int, last: int) -> str:
        """Bases `first` to `last` (not included) as counted from the place on its strand, upper case; N beyond the ends of the contig."""
        minus = place.strand == "-"
        start, end = (place.at - last + 1, place.at - first + 1) if minus else (place.at + first, place.at + last)
        bases = self._genome.read(place.contig, start, end)[0].tobytes().decode().upper()
        return reverse_of(bases) if minus else bases

    def anywhere(self, *key: object) -> Place:
        """A base of the assembly, on either strand, drawn by a key."""
        draw = keyed("anywhere", *key)
        at, strand = draw // 2 % self._num_bases, "+-"[draw % 2]
        for contig in self._genome.contigs.values():
            if at < contig.end:
                return Place(contig, strand, at)
            at -= contig.end
        raise AssertionError("the draw is below the number of bases")

    def is_within(self, place: Place) -> bool:
        """Whether the first base of a site lies where it may."""
        if self._within is None:
            return True
        intervals = self._within.get(place.contig.name)
        if intervals is None:
            return False
        number = int(np.searchsorted(intervals[:, 0], place.at, side="right")) - 1
        return number >= 0 and place.at < int(intervals[number, 1])

    def _of_transcript(self, gene: Gene, transcript: Transcript) -> Iterator[tuple[str, int, int]]:
        """(kind, first base on the strand, genetic code)."""
        minus = transcript.strand == "-"
        if transcript.strand not in "+-" or transcript.mixed or gene.type in NO_GENES:
            return
        for cds in transcript.coding:
            code, first, last = self.extraction.code_of(cds), cds.pieces[0], cds.pieces[-1]
            if not cds.partial5 and not cds.exception and first[1] - first[0] >= 3:
                yield "start", first[1] - 1 if minus else first[0], code
            if not cds.partial3 and not cds.exception and last[1] - last[0] >= 3:
                yield "stop", last[0] + 2 if minus else last[1] - 3, code
        for one, following in pairwise(transcript.exons):
            left, right = (following[1], one[0]) if minus else (one[1], following[0])
            if right - left >= MIN_INTRON:
                yield "donor", right - 1 if minus else left, 1
                yield "acceptor", left + 1 if minus else right - 2, 1
