"""Rows of GFF3 and GTF files, plain or gzip: the dialects of RefSeq, Ensembl, GENCODE, UCSC, SGD and WormBase.

GFF3 or GTF is told by `##gff-version`, or by column 9 of the first row (`key=value` or `key "value"`). Rows that no gene is
made of (introns, repeats, matches, ...) are counted by type and passed over before their attributes are read.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import xxhash

from dnapretrain.errors import DataError

IDENTITY = ("ID", "Parent", "Name", "gene_id", "transcript_id")
BIOTYPES = ("gene_biotype", "biotype", "gene_type", "transcript_biotype", "transcript_type", "pseudo")
COMPLETENESS = ("partial", "start_range", "end_range", "part", "transl_table", "exception", "transl_except", "tag")
WANTED = frozenset((*IDENTITY, *BIOTYPES, *COMPLETENESS))
LANDMARKS = frozenset(("region", "chromosome", "contig", "scaffold", "supercontig"))
EXON_TYPES = frozenset(("exon", "noncoding_exon", "pseudogenic_exon", "coding_exon"))
UTR_TYPES = frozenset(("five_prime_UTR", "three_prime_UTR", "UTR", "5UTR", "3UTR", "five_prime_utr", "three_prime_utr"))
TRANSCRIPT_TYPES = re.compile(r"(rna|transcript|gene_segment)$", re.IGNORECASE)
GTF_ATTRIBUTE = re.compile(r'\s*([^\s;"]+)\s+(?:"([^"]*)"|([^\s;"]+))\s*(?:;|$)')
GFF2_HEADER = re.compile(r"##gff-version\s+2")
NUM_COLUMNS = 9
POSITION = re.compile("[0-9]{1,18}")
"""As many digits as 64 bits hold for certain."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row that a gene is made of, 0-based half-open."""

    line: int
    contig: str
    type: str
    role: str
    """gene, transcript, exon, utr, cds, start_codon or stop_codon."""
    start: int
    end: int
    strand: str
    """+, - or . (not known)."""
    phase: int | None
    attributes: dict[str, str]
    """Those of WANTED, decoded; a repeated key of a GTF row holds its values with commas between them."""
    parents: tuple[str, ...]
    """Of GFF3."""


class AnnotationFile:
    """One GFF3 or GTF file; its other fields are complete when `rows` has been read to the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format = ""
        """gff3 or gtf."""
        self.lengths: dict[str, int] = {}
        """Contigs whose length the file states."""
        self.circular: set[str] = set()
        self.other_types: Counter[str] = Counter()
        """Rows passed over, by type."""
        self.xxh3_128 = ""
        self.size = 0

    def rows(self) -> Iterator[Row]:
        """The rows that genes are made of. Raises DataError with file and line where the file is damaged, or neither GFF3 nor GTF."""
        for number, line in self._lines():
            if line.startswith(("#", ">", "track ", "browser ")) or not line.strip():
                if line.startswith(">") or line.rstrip() == "##FASTA":
                    return
                self._read_header(number, line)
                continue
            row = self._read_row(number, line)
            if row is not None:
                yield row

    def _lines(self) -> Iterator[tuple[int, str]]:
        digest = xxhash.xxh3_128()
        number = 0
        try:
            with self.path.open("rb") as raw:
                while data := raw.read(1 << 20):
                    digest.update(data)
                    self.size += len(data)
                raw.seek(0)
                packed = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                with gzip.open(raw) if packed else raw as file:
                    for number, line in enumerate(file, 1):
                        yield number, line.decode().rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise DataError(f"{self.path}: after line {number}: the gzip data is cut or damaged. Get the file again") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: line {number} is not UTF-8 text. Give a GFF3 or GTF file, plain or gzip") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        self.xxh3_128 = digest.hexdigest()

    def _read_header(self, number: int, line: str) -> None:
        if line.startswith("##gff-version"):
            known, self.format = self.format, "gtf" if GFF2_HEADER.match(line) else "gff3"
            if known not in ("", self.format):
                raise DataError(f"{self.path}: line {number} says {self.format}, what comes before is {known}. Give one file of each")
        elif line.startswith("##sequence-region"):
            fields = line.split()
            if len(fields) == 4 and fields[2] in ("0", "1") and POSITION.fullmatch(fields[3]):
                self.lengths.setdefault(unquote(fields[1]), int(fields[3]))

    def _read_row(self, number: int, line: str) -> Row | None:
        fields = line.split("\t")
        if len(fields) < NUM_COLUMNS:
            raise DataError(f"{self.path}: line {number} has {len(fields)} columns, GFF3 and GTF have 9 with tabs between them. Mend it")
        contig, _, kind, first, last, _, strand, phase, text = fields[:NUM_COLUMNS]
        role = role_of(kind)
        if role is None and kind not in LANDMARKS:
            self.other_types[kind] += 1
            return None
        if not POSITION.fullmatch(first) or not POSITION.fullmatch(last) or not 1 <= int(first) <= int(last):
            raise DataError(
                f"{self.path}: line {number} runs from '{first[:40]}' to '{last[:40]}'; positions count from 1 upwards. Mend it"
            )
        if strand not in ("+", "-", ".", "?") or phase not in ("0", "1", "2", "."):
            raise DataError(f"{self.path}: line {number} has strand '{strand}' and phase '{phase}'; known are + - . and 0 1 2 . Mend it")
        if not self.format:
            self.format = self._guess_format(number, text)
        attributes, parents = self._read_attributes(number, text)
        contig = unquote(contig) if self.format == "gff3" and "%" in contig else contig
        if role is None:
            self._read_landmark(contig, kind, int(first), int(last), text)
            return None
        strand = "." if strand == "?" else strand
        return Row(number, contig, kind, role, int(first) - 1, int(last), strand, None if phase == "." else int(phase), attributes, parents)

    def _guess_format(self, number: int, text: str) -> str:
        if GTF_ATTRIBUTE.match(text) and not re.match(r"\s*[^\s;=]+=", text):
            return "gtf"
        if "=" in text or text.strip() in ("", "."):
            return "gff3"
        raise DataError(f"{self.path}: line {number}: column 9 is neither 'key=value' (GFF3) nor 'key \"value\"' (GTF). Give such a file")

    def _read_attributes(self, number: int, text: str) -> tuple[dict[str, str], tuple[str, ...]]:
        attributes: dict[str, str] = {}
        parents: tuple[str, ...] = ()
        if self.format == "gtf":
            at = 0
            for found in GTF_ATTRIBUTE.finditer(text):
                if text[at : found.start()].strip():
                    break
                at = found.end()
                key, quoted, bare = found.groups()
                value = bare if quoted is None else quoted
                if key in WANTED and value:
                    attributes[key] = f"{attributes[key]},{value}" if key in attributes else value
            if text[at:].strip():
                raise DataError(f"{self.path}: line {number}: attributes are not 'key \"value\";' from column {at + 1} on. Mend it")
            return attributes, parents
        for pair in text.strip().split(";"):
            key, equals, value = pair.strip().partition("=")
            if not equals and key not in ("", "."):
                raise DataError(f"{self.path}: line {number}: attribute '{key}' is not 'key=value'. Mend it")
            if key == "Parent":
                parents = tuple(unquote(parent) for parent in value.split(",") if parent)
            elif key in WANTED:
                attributes[key] = unquote(value) if "%" in value else value
        return attributes, parents

    def _read_landmark(self, contig: str, kind: str, first: int, last: int, text: str) -> None:
        """Rows for a whole contig; other regions that begin at 1 do not name themselves after it."""
        circular = "Is_circular=true" in text
        whole = (
            circular or "gbkey=Src" in text or (kind != "region" and re.search(rf"(^|;)(ID|Name)=(\w+:)?{re.escape(contig)}(;|$)", text))
        )
        if first == 1 and whole:
            self.lengths[contig] = last
            if circular:
                self.circular.add(contig)
        else:
            self.other_types[kind] += 1


@cache
def role_of(kind: str) -> str | None:
    """What a row of type `kind` is for a gene; None: nothing."""
    if kind == "CDS" or kind in ("start_codon", "stop_codon"):
        return kind.lower()
    if kind in EXON_TYPES:
        return "exon"
    if kind in UTR_TYPES:
        return "utr"
    if kind in ("gene", "pseudogene") or kind.endswith("_gene"):
        return "gene"
    return "transcript" if TRANSCRIPT_TYPES.search(kind) else None
