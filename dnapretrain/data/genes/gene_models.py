"""Genes, transcripts and coding sequences from the rows of an annotation, by rules that hold for GFF3 and GTF alike.

- A gene is a row of type gene, pseudogene or *_gene. A transcript or CDS without parent is a gene of its own; a GTF gene without
  a row is one region for each cluster of its transcripts that overlap.
- Rows whose parent is a gene are those of one transcript of the gene's name. A missing parent is taken as such a transcript, counted.
- A CDS is the rows of one ID. Without ID, or where each row under one transcript has an ID of its own and none overlap, it is all rows
  of the transcript. Stop codons that lie outside (GTF has them so) are joined to it.
- Exons are the exon rows, else CDS and UTR rows joined, else the transcript (gene) as a whole.
- Pieces follow each other 5' to 3' on their strand, or by their attribute `part` (trans-splicing, circular genomes).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from dnapretrain.data.genes.annotation import AnnotationFile, Row

TYPES = ("cds", "pseudo", "tRNA", "rRNA", "ncRNA", "miscRNA", "other")
"""GENERator's words for gene types, and `other`. `cds` is the region of a protein-coding gene."""
NONCODING = frozenset(
    ("antisense", "sense_intronic", "sense_overlapping", "ribozyme", "processed_transcript", "nc_primary_transcript", "non_coding")
)
CODING = frozenset(("protein_coding", "mrna", "nonsense_mediated_decay", "non_stop_decay"))
Piece = tuple[int, int]


@dataclass
class Cds:
    """One coding sequence; pieces 5' to 3', 0-based half-open."""

    pieces: list[Piece]
    phases: list[int | None]
    """Of each piece: bases to its first whole codon."""
    table: int | None
    """Genetic code (transl_table)."""
    partial5: bool
    partial3: bool
    exception: str
    line: int


@dataclass
class Transcript:
    """One transcript; exons 5' to 3'."""

    id: str
    strand: str
    exons: list[Piece]
    coding: list[Cds]
    partial: bool
    mixed: bool
    """Pieces on both strands (trans-splicing), or on top of each other: no single sequence."""
    line: int

    @property
    def span(self) -> Piece:
        """First to last base."""
        return min(start for start, _ in self.exons), max(end for _, end in self.exons)


@dataclass
class Gene:
    """One gene of one contig."""

    id: str
    contig: str
    strand: str
    type: str
    """One of TYPES."""
    regions: list[Piece]
    partial: bool
    transcripts: list[Transcript]
    line: int


@dataclass
class Annotation:
    """All genes of a file, in the order in which they appear there."""

    file: AnnotationFile
    genes: list[Gene]
    counts: dict[str, int]


@dataclass
class _Node:
    """A gene or transcript while its rows are collected."""

    id: str
    rows: list[Row] = field(default_factory=list)
    parents: tuple[str, ...] = ()
    parts: dict[str, list[Row]] = field(default_factory=dict)
    children: list[_Node] = field(default_factory=list)


Key = tuple[str, ...]


def read_genes(path: Path) -> Annotation:
    """All genes of a GFF3 or GTF file. Raises DataError with file and line where it cannot be read."""
    file = AnnotationFile(path)
    counts: Counter[str] = Counter(rows=0, missing_parents=0)
    genes: dict[Key, _Node] = {}
    transcripts: dict[Key, _Node] = {}
    loose: list[tuple[Key, Row]] = []
    key: Key
    for row in file.rows():
        counts["rows"] += 1
        name = row.attributes.get("ID") or row.attributes.get("Name") or f"line-{row.line}"
        if file.format == "gtf":
            gene_id = row.attributes.get("gene_id") or row.attributes.get("transcript_id") or f"line-{row.line}"
            transcript_id = row.attributes.get("transcript_id") or gene_id
            gene_key, key = (row.contig, row.strand, gene_id), (row.contig, row.strand, gene_id, transcript_id)
            if row.role == "gene":
                genes.setdefault(gene_key, _Node(gene_id)).rows.append(row)
                continue
            node = transcripts.setdefault(key, _Node(transcript_id, parents=(gene_id,)))
            _add(node, row)
        elif row.role == "gene":
            genes.setdefault((row.contig, name), _Node(name)).rows.append(row)
        elif row.role == "transcript":
            transcripts.setdefault((row.contig, name), _Node(name, parents=row.parents)).rows.append(row)
        else:
            loose += [((row.contig, parent), row) for parent in row.parents or (f"\0{name}",)]
    for key, row in loose:
        target = transcripts.get(key) or genes.get(key)
        if target is None:
            counts["missing_parents"] += bool(row.parents)
            target = transcripts[key] = _Node(key[1].lstrip("\0"))
        _add(target, row)
    has_codons = any("start_codon" in node.parts or "stop_codon" in node.parts for node in transcripts.values())
    builder = _Builder(file.format == "gtf" and has_codons)
    found = builder.build_gtf(genes, transcripts) if file.format == "gtf" else builder.build_gff3(genes, transcripts, counts)
    found.sort(key=lambda gene: gene.line)
    counts.update(genes=len(found), transcripts=sum(len(gene.transcripts) for gene in found))
    counts["coding_sequences"] = sum(len(transcript.coding) for gene in found for transcript in gene.transcripts)
    return Annotation(file, found, dict(counts))


def _add(node: _Node, row: Row) -> None:
    if row.role == "transcript":
        node.rows.append(row)
    else:
        node.parts.setdefault(row.role, []).append(row)


class _Builder:
    def __init__(self, codons_tell: bool) -> None:
        self._codons_tell = codons_tell
        """The file marks start and stop codons: a CDS without one is incomplete there."""

    def build_gff3(self, genes: dict[Key, _Node], transcripts: dict[Key, _Node], counts: Counter[str]) -> list[Gene]:
        alone = []
        for (contig, _), node in transcripts.items():
            tops = [top for parent in node.parents if (top := _top(contig, parent, genes, transcripts)) is not None]
            counts["missing_parents"] += bool(node.parents) and not tops
            for top in tops:
                genes[top].children.append(node)
            if not tops:
                alone.append(node)
        return [self._gene(node, node.rows) for node in genes.values()] + [self._alone(node) for node in alone]

    def build_gtf(self, genes: dict[Key, _Node], transcripts: dict[Key, _Node]) -> list[Gene]:
        rowless: dict[Key, list[_Node]] = {}
        for key, node in transcripts.items():
            if key[:3] in genes:
                genes[key[:3]].children.append(node)
            else:
                rowless.setdefault(key[:3], []).append(node)
        found = [self._gene(node, node.rows) for node in genes.values()]
        for key, nodes in rowless.items():
            spans = sorted(((*_span(_rows(node)), number) for number, node in enumerate(nodes)), key=lambda item: item[:2])
            cluster, end = _Node(key[2]), -1
            for first, last, number in spans:
                if first >= end and cluster.children:
                    found.append(self._gene(cluster, []))
                    cluster = _Node(key[2])
                cluster.children.append(nodes[number])
                end = max(end, last) if len(cluster.children) > 1 else last
            found.append(self._gene(cluster, []))
        return found

    def _alone(self, node: _Node) -> Gene:
        """A transcript (or rows without one) as a gene of its own."""
        return self._gene(_Node(node.id, children=[node]), [])

    def _gene(self, node: _Node, rows: list[Row]) -> Gene:
        own = [_Node(node.id, rows=[] if node.parts else rows, parts=node.parts)] if node.parts or not node.children else []
        members = own + node.children
        everything = rows or [row for member in members for row in _rows(member)]
        contig, strand = everything[0].contig, everything[0].strand
        regions = [(row.start, row.end) for row in rows] or [_span(everything)]
        return Gene(
            node.id,
            contig,
            strand,
            _gene_type(rows, members),
            regions,
            any("partial" in row.attributes for row in rows),
            [self._transcript(member, rows) for member in members],
            min(row.line for row in everything),
        )

    def _transcript(self, node: _Node, gene_rows: list[Row]) -> Transcript:
        rows = _rows(node)
        exon_rows, cds_rows = node.parts.get("exon", []), node.parts.get("cds", [])
        strand = rows[0].strand
        mixed = len({row.strand for row in [*exon_rows, *cds_rows]}) > 1
        if exon_rows:
            exons = [piece for piece, _ in _in_order(exon_rows, strand)]
            mixed = mixed or any(before[1] > after[0] for before, after in pairwise(sorted(exons)))
        elif cds_rows or "utr" in node.parts:
            pieces = [(row.start, row.end) for role in ("cds", "utr", "stop_codon") for row in node.parts.get(role, [])]
            exons = _merged(pieces)[:: -1 if strand == "-" else 1]
        else:
            exons = [_span(rows)]
        coding = [] if mixed else [self._cds(group, node, strand) for group in _cds_groups(cds_rows, bool(node.rows) or not gene_rows)]
        partial = any("partial" in row.attributes for row in [*node.rows, *exon_rows])
        return Transcript(node.id, strand, exons, coding, partial, mixed, rows[0].line)

    def _cds(self, rows: list[Row], node: _Node, strand: str) -> Cds:
        ordered = _in_order(rows, strand)
        pieces, phases = [piece for piece, _ in ordered], [row.phase for _, row in ordered]
        stops = [(row.start, row.end) for row in node.parts.get("stop_codon", [])]
        if len({row.attributes.get("ID") for row in node.parts["cds"]}) == 1 or len(rows) == len(node.parts["cds"]):
            _join_stop(pieces, phases, [piece for piece in stops if not any(a <= piece[0] and piece[1] <= b for a, b in pieces)], strand)
        marks = {key: value for row in [*node.rows, *rows] for key, value in row.attributes.items()}
        tags = ",".join(row.attributes.get("tag", "") for row in [*node.rows, *rows]).split(",")
        low, high = "start_range" in marks, "end_range" in marks
        if "partial" in marks and not (low or high):
            low = high = True
        five, three = (high, low) if strand == "-" else (low, high)
        if self._codons_tell:
            five, three = five or "start_codon" not in node.parts, three or "stop_codon" not in node.parts
        table = marks.get("transl_table", "")
        return Cds(
            pieces,
            phases,
            int(table) if table.isdecimal() and len(table) < 10 else None,
            five or "cds_start_NF" in tags or bool(phases[0]),
            three or "cds_end_NF" in tags,
            ", ".join(marks[key] for key in ("exception", "transl_except") if key in marks),
            min(row.line for row in rows),
        )


def _rows(node: _Node) -> list[Row]:
    return node.rows or [row for rows in node.parts.values() for row in rows]


def _span(rows: list[Row]) -> Piece:
    return min(row.start for row in rows), max(row.end for row in rows)


def _top(contig: str, parent: str, genes: dict[Key, _Node], transcripts: dict[Key, _Node]) -> Key | None:
    """The gene above `parent`, which may be a transcript of it."""
    for _ in range(8):  # deeper nesting, or a circle, is not a gene
        key = (contig, parent)
        if key in genes:
            return key
        if key not in transcripts or not transcripts[key].parents:
            return None
        parent = transcripts[key].parents[0]
    return None


def _in_order(rows: list[Row], strand: str) -> list[tuple[Piece, Row]]:
    """Pieces 5' to 3'."""
    parts = [row.attributes.get("part", "").partition("/")[0] for row in rows]
    if len(rows) > 1 and all(part.isdecimal() and len(part) < 10 for part in parts):
        order = sorted(range(len(rows)), key=lambda number: int(parts[number]))
    else:
        order = sorted(range(len(rows)), key=lambda number: (rows[number].start, rows[number].end), reverse=strand == "-")
    return [((rows[number].start, rows[number].end), rows[number]) for number in order]


def _cds_groups(rows: list[Row], is_transcript: bool) -> list[list[Row]]:
    """Rows of each CDS under one parent; see the rules above."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.attributes.get("ID", ""), []).append(row)
    if is_transcript and len(groups) == len(rows):
        pieces = sorted((row.start, row.end) for row in rows)
        if all(before[1] <= after[0] for before, after in pairwise(pieces)):
            return [rows] if rows else []
    return list(groups.values())


def _join_stop(pieces: list[Piece], phases: list[int | None], stops: list[Piece], strand: str) -> None:
    """Add what of the stop codon lies outside the CDS at its 3' end."""
    for start, end in sorted(stops, reverse=strand == "-"):
        first, last = pieces[-1]
        if strand == "-" and end == first:
            pieces[-1] = (start, last)
        elif strand != "-" and start == last:
            pieces[-1] = (first, end)
        else:
            pieces.append((start, end))
            phases.append(None)


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Sorted, those that touch or overlap joined."""
    merged: list[Piece] = []
    for start, end in sorted(pieces):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gene_type(rows: list[Row], members: list[_Node]) -> str:
    own = rows[0] if rows else None
    some = [own] if own else [row for member in members for row in _rows(member)[:1]]
    said = [row.attributes[key] for row in some for key in ("gene_biotype", "gene_type", "biotype") if key in row.attributes]
    if any(row.attributes.get("pseudo") == "true" for row in some) or any("pseudo" in word for word in said):
        return "pseudo"
    words = [*said, *([own.type] if own else []), *(["protein_coding"] if any("cds" in member.parts for member in members) else [])]
    for row in (row for member in members for row in member.rows[:1]):
        words += [row.attributes[key] for key in ("transcript_biotype", "transcript_type", "biotype") if key in row.attributes] + [row.type]
    return next((kind for word in words if (kind := type_of(word))), "other")


def type_of(word: str) -> str | None:
    """The type that a biotype or row type stands for; None: it does not tell."""
    name = word.lower().removesuffix("_gene")
    if "pseudo" in name:
        return "pseudo"
    if name in CODING or name.endswith("gene_segment") or name.startswith(("ig_", "tr_")) or name.endswith(("_region", "_segment")):
        return "cds"
    for ending, kind in (("tmrna", "miscRNA"), ("misc_rna", "miscRNA"), ("trna", "tRNA"), ("rrna", "rRNA"), ("rna", "ncRNA")):
        if name.endswith(ending):
            return kind
    return "ncRNA" if name in NONCODING else None
