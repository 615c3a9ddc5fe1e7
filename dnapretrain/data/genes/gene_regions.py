"""Which regions of an assembly an annotation and the settings of `extract` name: documents before they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.fasta import MAX_DOCUMENT
from dnapretrain.data.genes.codons import START_CODONS, CodonCheck
from dnapretrain.data.genes.contig_names import match_contigs
from dnapretrain.data.genes.gene_models import TYPES, Annotation, Cds, Gene, Piece, Transcript
from dnapretrain.data.shards.contigs import Assembly, Contig
from dnapretrain.errors import ConfigError, DataError

FEATURES = ("gene", "transcript", "cds", "promoter")
CLADES = ("mam", "vrt", "inv", "pln", "fng", "prt", "arc", "bct", "mit", "plt", "plm", "vir")
ISOFORMS = ("all", "distinct", "longest")
MIN_VALID_SHARE = 0.5


@dataclass(frozen=True)
class ExtractSettings:
    """What to take; lengths in bases. Raises ConfigError where a value is out of range or fits no other."""

    features: tuple[str, ...] = ("gene",)
    types: tuple[str, ...] = TYPES
    """Types of the genes whose features are taken."""
    flank: int = 0
    """Bases added on both sides of genes and unspliced transcripts, less at the ends of a contig that is not circular."""
    spliced: bool = False
    """Transcripts without introns."""
    promoter: tuple[int, int] | None = None
    """Bases before and after the first base of each transcript."""
    isoforms: str = "all"
    """Of each gene and feature: all documents, those that differ, or the longest one."""
    clade: str | None = None
    min_length: int = 1
    max_length: int = MAX_DOCUMENT
    genetic_code: int = 1
    """For coding sequences without transl_table."""
    skip_missing_contigs: bool = False
    force: bool = False
    """Go on where lengths of contigs or start and stop codons say that the annotation is of another assembly."""

    def __post_init__(self) -> None:
        lists = (("--features", self.features, FEATURES), ("--types", self.types, TYPES))
        one_of = (("--isoforms", (self.isoforms,), ISOFORMS), ("--clade", () if self.clade is None else (self.clade,), CLADES))
        for name, given, known in (*lists, *one_of):
            wrong = [value for value in given if value not in known]
            if wrong or (not given and name != "--clade"):
                raise ConfigError(f"{name} '{wrong[0] if wrong else ''}' is not known. Choose from {', '.join(known)}")
        if self.genetic_code not in START_CODONS:
            raise ConfigError(f"--genetic-code {self.genetic_code} is not one of NCBI's: {', '.join(map(str, sorted(START_CODONS)))}")
        if self.flank < 0 or (self.promoter and (min(self.promoter) < 0 or not sum(self.promoter))):
            raise ConfigError(
                f"--flank = {self.flank}, --promoter = {self.promoter}: bases are counted from 0. Give other numbers (--promoter 1000:200)"
            )
        if not 1 <= self.min_length <= self.max_length <= MAX_DOCUMENT:
            raise ConfigError(
                f"--min-length {self.min_length} and --max-length {self.max_length} must be 1 <= min <= max <= {MAX_DOCUMENT}. Change one"
            )
        unspliced = "gene" in self.features or ("transcript" in self.features and not self.spliced)
        if (self.promoter is not None) != ("promoter" in self.features):
            raise ConfigError("--promoter UP:DOWN and the feature 'promoter' go together. Give both (--features gene,promoter) or none")
        if (self.spliced and "transcript" not in self.features) or (self.flank and not unspliced):
            raise ConfigError("--spliced is for the feature 'transcript', --flank for genes and unspliced transcripts. Change --features")


def settings_from_text(features: str, types: str | None, promoter: str | None, **others: Any) -> ExtractSettings:
    """Settings as the command line has them: lists with commas, a window as UP:DOWN. Raises ConfigError."""
    if promoter is not None:
        up, _, down = promoter.partition(":")
        if not (up.isdecimal() and down.isdecimal()):
            raise ConfigError(f"--promoter '{promoter}' is not UP:DOWN. Give two numbers of bases, for example 1000:200")
        others["promoter"] = (int(up), int(down))
    if types is not None:
        others["types"] = tuple(types.split(","))
    names = features.lower().split(",")  # GFF3 writes CDS
    return ExtractSettings(tuple(dict.fromkeys(names)), **others)


@dataclass(frozen=True)
class Region:
    """One document to be written."""

    feature: str
    gene: str
    transcript: str
    type: str
    strand: str
    contig: Contig
    pieces: tuple[Piece, ...]
    """On the contig, in the order of the plus strand (see data.shards.Blocks)."""
    partial: str
    """5 and 3: the ends at which the annotation says that it is not complete; ?: one of them."""
    clipped: int
    """Bases of flanks beyond the contig."""
    line: int

    @property
    def length(self) -> int:
        """Bases of all pieces."""
        return sum(end - start for start, end in self.pieces)

    @property
    def span(self) -> Piece:
        """First to last base."""
        return min(start for start, _ in self.pieces), max(end for _, end in self.pieces)


class Extraction:
    """Genes in coordinates of the shard, and what becomes of them."""

    def __init__(self, genome: Assembly, models: Annotation, settings: ExtractSettings, rule: str | None) -> None:
        self.genome, self.models, self.settings, self.path = genome, models, settings, models.file.path
        self.counts: Counter[str] = Counter()
        names = [gene.contig for gene in models.genes]
        if not names:
            raise DataError(
                f"{self.path}: no gene, transcript or CDS in {sum(models.file.other_types.values())} rows. Give another annotation"
            )
        self.places = match_contigs(names, list(genome.contigs), rule, settings.skip_missing_contigs, self.path)
        for name, places in self.places.items():
            if name in models.file.lengths and places and places[0].offset is None:
                self._check_length(name, genome.contigs[places[0].contig], models.file.lengths[name])
        self.genes = [placed for gene in models.genes if (placed := self._place(gene)) is not None]

    def _check_length(self, name: str, contig: Contig, stated: int) -> None:
        if contig.end <= stated <= contig.limit:
            contig.limit, contig.is_exact = stated, True
            contig.is_circular = name in self.models.file.circular
        elif not self.settings.force:
            has = f"{contig.end}" if contig.end == contig.limit else f"{contig.end} to {contig.limit}"
            raise DataError(
                f"{self.path}: '{name}' has {stated} bases, but '{contig.name}' of {self.genome.shard.prefix} has {has}: the annotation is "
                "of another assembly, or the shard holds a part (give --contig-names with an offset). To go on all the same give --force"
            )

    def _place(self, gene: Gene) -> tuple[Gene, Contig] | None:
        """The gene in coordinates of its contig; None where it is left out, counted. Raises DataError beyond the contig's end."""
        places = self.places[gene.contig]
        if not places:
            self.counts["missing_contigs"] += 1
            return None
        pieces = [*gene.regions, *(piece for transcript in gene.transcripts for piece in _all_pieces(transcript))]
        start, end = min(first for first, _ in pieces), max(last for _, last in pieces)
        for place in places:
            contig = self.genome.contigs[place.contig]
            offset = place.offset or 0
            if offset <= start and end - offset <= contig.limit * (1 + contig.is_circular):
                return (_moved(gene, -offset) if offset else gene), contig
        if places[0].offset is not None:
            self.counts["outside_window"] += 1
            return None
        contig = self.genome.contigs[places[0].contig]
        raise DataError(
            f"{self.path}: line {gene.line}: {gene.id} on '{gene.contig}' ends at {end}, but '{contig.name}' of {self.genome.shard.prefix} "
            f"has {contig.limit} bases. Give the annotation of this assembly, or --contig-names with an offset if the shard holds a part"
        )

    def check_codons(self) -> CodonCheck:
        """Start and stop codons of all distinct coding sequences. Raises DataError where fewer than half have both."""
        check, seen = CodonCheck(), set()
        for gene, contig in self.genes:
            for transcript in gene.transcripts:
                for cds in transcript.coding:
                    key = (contig.name, transcript.strand, tuple(cds.pieces))
                    if key in seen:
                        continue
                    seen.add(key)
                    region = self._region("cds", gene, transcript, contig, cds.pieces)
                    if gene.type == "pseudo" or cds.partial5 or cds.partial3 or region.length < 6:
                        check.incomplete += 1
                        continue
                    bases, _ = read_bases(self.genome, region)
                    start, end = region.span
                    locus = f"{self.genome.name}:{contig.name}:{start + 1}-{end}({region.strand})"
                    check.add(bases.tobytes(), self.code_of(cds), transcript.id, locus, cds.exception)
        if check.share is not None and check.share < MIN_VALID_SHARE and not self.settings.force:
            raise DataError(
                f"{self.path}: in {self.genome.shard.prefix} only {check.valid} of {check.complete} complete coding sequences begin with a "
                "start codon and end with a stop codon: the annotation is of another assembly, or --genetic-code is wrong. "
                "To extract all the same give --force"
            )
        return check

    def code_of(self, cds: Cds) -> int:
        """The genetic code of a coding sequence. Raises DataError for one that is none of NCBI's."""
        if cds.table is not None and cds.table not in START_CODONS:
            raise DataError(f"{self.path}: line {cds.line}: transl_table={cds.table} is not one of NCBI's genetic codes. Mend it")
        return cds.table or self.settings.genetic_code

    def regions(self) -> list[Region]:
        """All documents, in their order."""
        found: list[Region] = []
        for gene, contig in self.genes:
            if gene.type not in self.settings.types:
                self.counts["other_types"] += 1
                continue
            for feature in self.settings.features:
                found += self._chosen(list(self._of_gene(feature, gene, contig)))
        rank = {name: number for number, name in enumerate(self.genome.contigs)}
        order = {feature: number for number, feature in enumerate(FEATURES)}
        found.sort(key=lambda region: (rank[region.contig.name], *region.span, order[region.feature], region.line))
        return found

    def _of_gene(self, feature: str, gene: Gene, contig: Contig) -> Iterator[Region]:
        flank = self.settings.flank
        if feature == "gene":
            for start, end in gene.regions:
                region = self._region("gene", gene, None, contig, [(start - flank, end + flank)])
                yield replace(region, partial="?" if gene.partial else "")
            return
        for transcript in gene.transcripts:
            if transcript.mixed:
                self.counts["mixed_strands"] += 1
                continue
            start, end = transcript.span
            if feature == "cds":
                for cds in transcript.coding:
                    pieces, trimmed = _from_first_codon(cds, transcript.strand)
                    self.counts["trimmed_phase_bases"] += trimmed
                    if pieces:
                        region = self._region("cds", gene, transcript, contig, pieces)
                        yield replace(region, partial="5" * cds.partial5 + "3" * cds.partial3, line=cds.line)
                    else:
                        self.counts["without_codon"] += 1
            elif feature == "promoter" and self.settings.promoter:
                up, down = self.settings.promoter
                first = transcript.exons[0]
                window = (first[1] - down, first[1] + up) if transcript.strand == "-" else (first[0] - up, first[0] + down)
                yield self._region("promoter", gene, transcript, contig, [window])
            else:
                pieces = transcript.exons if self.settings.spliced else [(start - flank, end + flank)]
                yield replace(self._region("transcript", gene, transcript, contig, pieces), partial="?" if transcript.partial else "")

    def _region(self, feature: str, gene: Gene, transcript: Transcript | None, contig: Contig, pieces: Sequence[Piece]) -> Region:
        strand = transcript.strand if transcript else gene.strand
        placed, clipped = _on_contig(pieces[::-1] if strand == "-" else pieces, contig, gene.regions)
        name, line = (transcript.id, transcript.line) if transcript else ("", gene.line)
        return Region(feature, gene.id, name, gene.type, strand, contig, placed, "", clipped, line)

    def _chosen(self, regions: list[Region]) -> list[Region]:
        """Those of one gene and feature that --isoforms keeps; repeats are counted in any case."""
        kept: list[Region] = []
        seen: set[tuple[Piece, ...]] = set()
        for region in regions:
            self.counts["repeats"] += region.pieces in seen
            if self.settings.isoforms == "all" or region.pieces not in seen:
                kept.append(region)
            seen.add(region.pieces)
        if self.settings.isoforms == "longest" and kept and kept[0].feature != "gene":
            kept = [max(kept, key=lambda region: region.length)]  # the first of equals
        self.counts["isoforms_left_out"] += len(regions) - len(kept)
        return kept

    def summary(self, codons: CodonCheck) -> dict[str, Any]:
        """Section `extraction` of the manifest."""
        file = self.models.file
        left_out = ("missing_contigs", "outside_window", "other_types", "mixed_strands", "without_codon", "isoforms_left_out")
        contigs = {
            name: [place.contig if place.offset is None else [place.contig, place.offset] for place in places]
            for name, places in self.places.items()
        }
        return {
            "base": {"prefix": str(self.genome.shard.prefix), "assembly": self.genome.name, "digest": self.genome.shard.digest},
            "annotation": {"path": str(file.path), "format": file.format, "size": file.size, "xxh3_128": file.xxh3_128},
            "settings": asdict(self.settings),
            "genes": self.models.counts,
            "rows_passed_over": dict(sorted(file.other_types.items())),
            "contigs": contigs,
            "contigs_without_genes": len(set(self.genome.contigs) - {place.contig for places in self.places.values() for place in places}),
            "left_out": {key: self.counts[key] for key in left_out},
            "repeats": self.counts["repeats"],
            "clipped": {"documents": self.counts["clipped_documents"], "bases": self.counts["clipped_bases"]},
            "filled_with_n": self.counts["filled_with_n"],
            "trimmed_phase_bases": self.counts["trimmed_phase_bases"],
            "codons": codons.summary(),
        }


def _all_pieces(transcript: Transcript) -> list[Piece]:
    return transcript.exons + [piece for cds in transcript.coding for piece in cds.pieces]


def _moved(gene: Gene, by: int) -> Gene:
    def move(pieces: list[Piece]) -> list[Piece]:
        return [(start + by, end + by) for start, end in pieces]

    transcripts = [
        replace(item, exons=move(item.exons), coding=[replace(cds, pieces=move(cds.pieces)) for cds in item.coding])
        for item in gene.transcripts
    ]
    return replace(gene, regions=move(gene.regions), transcripts=transcripts)


def _from_first_codon(cds: Cds, strand: str) -> tuple[list[Piece], int]:
    """Pieces without the bases before the first whole codon, and how many those are."""
    trim = left = cds.phases[0] or 0
    pieces = []
    for start, end in cds.pieces:
        cut = min(left, end - start)
        left -= cut
        if cut < end - start:
            pieces.append((start, end - cut) if strand == "-" else (start + cut, end))
    return pieces, trim - left


def _on_contig(pieces: Sequence[Piece], contig: Contig, annotated: Sequence[Piece]) -> tuple[tuple[Piece, ...], int]:
    """Pieces in the order of the plus strand: cut at the origin of a circle, clipped at the ends of others, joined where they follow on.

    Where the length of the contig is not known for sure, its end is the last base that the shard or the annotation has.
    """
    limit = contig.limit if contig.is_exact else max(contig.end, *(end for _, end in annotated))
    found: list[Piece] = []
    clipped = 0
    for start, end in pieces:
        parts = [(start, end)]
        if contig.is_circular and end - start <= limit:
            start, end = start % limit, start % limit + end - start
            parts = [(start, min(end, limit)), (0, end - limit)]
        for first, last in parts:
            low, high = max(first, 0), min(last, limit)
            clipped += max(last - first, 0) - max(high - low, 0)
            if low < high and found and found[-1][1] == low:
                found[-1] = (found[-1][0], high)
            elif low < high:
                found.append((low, high))
    return tuple(found), clipped


def read_bases(genome: Assembly, region: Region) -> tuple[NDArray[np.uint8], int]:
    """Bases of a document 5' to 3', and how many of them are N for want of bases in the shard."""
    read = [genome.read(region.contig, start, end) for start, end in region.pieces]
    bases = read[0][0] if len(read) == 1 else np.concatenate([piece for piece, _ in read])
    return (_core.reverse_complement(bases) if region.strand == "-" else bases), sum(filled for _, filled in read)
