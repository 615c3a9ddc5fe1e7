"""Section data.probes: questions asked at every evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from dnapretrain.config.section import Section

ProbeName = Literal[
    "start_codon",
    "start_frame",
    "stop_codon",
    "stop_frame",
    "splice_donor",
    "splice_acceptor",
    "synonymous",
    "nonsense",
    "reverse_complement",
]
"""What a probe asks; docs/in-loop-probes.md explains each."""


PROBE_WINDOW = 256
"""Bases of its windows where nothing else is set."""


class ProbesConfig(Section):
    """Questions of biology that the model is asked at every evaluation, without training: is the true sequence likelier than an altered
    one? They change nothing of what a run trains on. Off without `genome` and `annotation`."""

    genome: Path | None = None
    """A shard prefix, or a sequence file, which every rank reads anew at every start: for large genomes give the shard."""
    annotation: Path | None = None
    """Its genes: GFF3 or GTF, plain or gzip."""
    assembly: str | None = None
    """The assembly of the shard that the annotation is for; needed where it holds several."""
    contig_names: str | None = None
    """How names of the annotation are matched with contigs; by default they are equal. chr, or a file, as in data.regions."""
    skip_missing_contigs: bool = False
    """Leave out genes on names that no contig has; else they are an error."""
    within: Path | None = None
    """BED file: only sites whose first base lies there, so that probes can keep to bases that are held out."""
    names: tuple[ProbeName, ...] = Field(get_args(ProbeName), min_length=1)
    sites: int = Field(200, gt=0)
    """Of each probe at most, and as many controls; chosen by a hash of where they lie, so the same in every run."""
    window_length: int | None = Field(None, gt=0)
    """Bases that the model reads around a site; default 256, or what a sample has room for. In whole words of k-mer tokenizers."""
    controls: bool = True
    """Make the same changes at places that are not annotated, where the letters are the same: what the letters alone are worth."""
    genetic_code: int = 1
    """NCBI's number, for coding sequences without transl_table."""
    force: bool = False
    """Go on where lengths of contigs, or start and stop codons, say that the annotation is of another assembly."""

    @property
    def is_active(self) -> bool:
        """Whether anything is asked."""
        return self.genome is not None and self.annotation is not None
