"""Classes of regions from annotations: CDS, UTR, exon and intron from the rows of a GFF3 or GTF file, one class of a BED file.

By rows: CDS rows and stop codons are CDS. UTR rows, and exons of transcripts that have a CDS, are UTR where they are not CDS. Exons of
other transcripts are `exon`; so is a whole transcript or gene without any part. What else of a gene or transcript there is, is intron.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.genes.annotation import AnnotationFile, Row
from dnapretrain.data.shards.selection import read_bed
from dnapretrain.errors import ConfigError

ANNOTATION_CLASSES = ("CDS", "UTR", "exon", "intron")
"""In the order of their precedence."""
ANNOTATION_SUFFIXES = (".gff", ".gff3", ".gtf")

Key = tuple[str, ...]
Intervals = NDArray[np.int64]
"""(n, 2): start and end, 0-based half-open, sorted, apart."""


@dataclass(frozen=True)
class RegionFile:
    """Regions of one file, by the names that it has for sequences."""

    classes: dict[str, dict[str, Intervals]]
    """Class -> name of the sequence -> where it lies. The class that stands first has a base that several have."""
    silent: tuple[str, ...]
    """Names of sequences that the file knows, and has no region on."""
    is_annotation: bool
    """What it leaves of its sequences is intergenic."""
    entry: dict[str, Any]
    """path, size, xxh3_128."""

    @property
    def names(self) -> list[str]:
        """Sequences with a region, in the order of the file."""
        return list(dict.fromkeys(name for intervals in self.classes.values() for name in intervals))


def read_regions(name: str, path: Path) -> RegionFile:
    """The regions of a file; `name` is the class of a BED file. Raises ConfigError for other files, DataError for damaged ones."""
    plain = path.name.removesuffix(".gz")
    if plain.endswith(ANNOTATION_SUFFIXES):
        return _read_annotation(path)
    if path.suffix == ".bed":
        bed = read_bed(path)
        return RegionFile({name: dict(bed.intervals)}, (), False, bed.entry)
    known = ", ".join(f"{suffix}, {suffix}.gz" for suffix in ANNOTATION_SUFFIXES)
    raise ConfigError(f"data.regions.files.{name}: {path} is neither BED nor GFF3 nor GTF by its name. Known: .bed, {known}")


@dataclass
class _Genes:
    """What must be known of all rows before exons and genes can be told apart."""

    coding: set[Key] = field(default_factory=set)
    """Transcripts (or genes) with a CDS."""
    with_parts: set[Key] = field(default_factory=set)
    """Transcripts and genes that something lies in."""
    spans: list[tuple[Row, Key]] = field(default_factory=list)
    exons: list[tuple[Row, list[Key]]] = field(default_factory=list)


def _read_annotation(path: Path) -> RegionFile:
    file = AnnotationFile(path)
    genes, found = _Genes(), {name: dict[str, list[tuple[int, int]]]() for name in ANNOTATION_CLASSES}
    for row in file.rows():
        own, parents, above = _keys(row, file.format == "gtf")
        genes.with_parts.update(above)
        if row.role in ("gene", "transcript"):
            genes.spans.append((row, own))
        elif row.role == "exon":
            genes.exons.append((row, parents))
        elif row.role in ("cds", "stop_codon"):
            genes.coding.update(parents)
            _add(found["CDS"], row)
        elif row.role == "utr":
            _add(found["UTR"], row)
    for row, parents in genes.exons:
        _add(found["UTR" if genes.coding.intersection(parents) else "exon"], row)
    for row, own in genes.spans:
        _add(found["intron" if own in genes.with_parts else "exon"], row)
    classes = {kind: {name: _merged(pairs) for name, pairs in of_name.items()} for kind, of_name in found.items()}
    named = {name for of_name in found.values() for name in of_name}
    entry = {"path": str(path), "size": file.size, "xxh3_128": file.xxh3_128}
    return RegionFile(classes, tuple(name for name in file.lengths if name not in named), True, entry)


def _keys(row: Row, is_gtf: bool) -> tuple[Key, list[Key], list[Key]]:
    """What names a gene or transcript row; what names those that a part belongs to; all that have the row within them."""
    if not is_gtf:
        parents: list[Key] = [(row.contig, parent) for parent in row.parents]
        return (row.contig, row.attributes.get("ID") or f"line-{row.line}"), parents, parents
    gene: Key = (row.contig, "gene", row.attributes.get("gene_id", ""))
    own: Key = (row.contig, "transcript", gene[2], row.attributes.get("transcript_id", ""))
    if row.role == "gene":
        return gene, [], []
    return own, [own], [gene] if row.role == "transcript" else [own, gene]


def _add(of_name: dict[str, list[tuple[int, int]]], row: Row) -> None:
    of_name.setdefault(row.contig, []).append((row.start, row.end))


def _merged(pairs: Iterable[tuple[int, int]]) -> Intervals:
    """Sorted; those that touch or overlap are one."""
    table = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    reach = np.maximum.accumulate(table[:, 1])
    first = np.concatenate([[True], table[1:, 0] > reach[:-1]])
    return np.stack([table[first, 0], reach[np.concatenate([first[1:], [True]])]], axis=1)
