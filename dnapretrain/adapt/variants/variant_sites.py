"""Variants with the sequence around them: from a VCF, or every substitution of a region, checked against a reference.

Positions are 0-based; text for people is 1-based. A `Site` is a variant as a model sees it, on one strand and trimmed to what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.records import read_records
from dnapretrain.data.genes.contig_names import Place, match_contigs
from dnapretrain.data.variants.vcf import VcfFile, is_sequence
from dnapretrain.errors import ConfigError, DataError

BASES = frozenset("ACGT")
TO_N = str.maketrans({letter: "N" for letter in "RYSWKMBDHV"})
"""Models read ambiguity codes as N here, so that every token has a known number of bases."""
ON_MISMATCH = ("error", "skip")


@dataclass(frozen=True)
class Variant:
    """One ALT allele of one record."""

    contig: str
    """As the VCF names it."""
    start: int
    id: str
    ref: str
    alt: str
    """Upper case where it is bases."""
    info: str = "."
    line: int = 0
    """Of the VCF."""
    allele: int = 0
    """Its place among the ALT alleles of its record."""
    num_alleles: int = 1

    @property
    def locus(self) -> str:
        """contig:position, 1-based."""
        return f"{self.contig}:{self.start + 1}"


@dataclass(frozen=True)
class Site:
    """A variant and its flanks: A, C, G, T, N; alleles of A, C, G, T, without what they begin or end with in common."""

    left: str
    ref: str
    alt: str
    right: str

    def reverse(self) -> Site:
        """The same on the other strand."""
        left, ref, alt, right = (reverse_complement_text(text) for text in (self.right, self.ref, self.alt, self.left))
        return Site(left, ref, alt, right)

    @property
    def is_substitution(self) -> bool:
        """As many bases in place of others."""
        return len(self.ref) == len(self.alt)


@dataclass
class Reference:
    """The contigs of a sequence file that are asked for, one byte per base, and where they lie."""

    path: Path
    contigs: Mapping[str, str]
    """Upper case, as stored."""
    places: Mapping[str, list[Place]]
    """Where the contigs of the variants lie; nowhere: left out."""
    on_mismatch: str = "error"

    def site(self, variant: Variant, flank: int, source: str) -> Site | str:
        """The site with at most `flank` bases on each side, or why there is none.

        Raises DataError with the locus where REF is not what the reference has, or lies beyond its end; `source`: for the message.
        """
        found = self._contig(variant)
        if found is None:
            return "no contig"
        if variant.alt == ".":
            return "no ALT allele"
        if not is_sequence(variant.alt.encode()):
            return "symbolic allele"
        name, start = found
        bases, end = self.contigs[name], start + len(variant.ref)
        if problem := self._mismatch(variant, bases, name, start):
            if self.on_mismatch == "skip":
                return "REF mismatch"
            where = f"{source}: line {variant.line}: " if variant.line else ""
            raise DataError(
                f"{where}{variant.locus}: {problem}. Give the assembly that the variants were called on, or count such rows with "
                "--on-ref-mismatch skip."
            )
        if not BASES.issuperset(variant.ref + variant.alt):
            return "ambiguous allele"
        return trimmed(bases[max(0, start - flank) : start], variant.ref, variant.alt, bases[end : end + flank], flank)

    def _contig(self, variant: Variant) -> tuple[str, int] | None:
        """Contig of the file and position on it; of several windows, the one that the variant begins in."""
        places = self.places[variant.contig]
        for place in places:
            start = variant.start - (place.offset or 0)
            if 0 <= start < len(self.contigs[place.contig]) or len(places) == 1:
                return place.contig, start
        return None

    def _mismatch(self, variant: Variant, bases: str, name: str, start: int) -> str:
        end = start + len(variant.ref)
        if start < 0 or end > len(bases):
            return f"REF {_short(variant.ref)} ends at {end:,} of '{name}' of {self.path}, which has {len(bases):,} bases"
        there = bases[start:end]
        if all(one == other or other not in "ACGTN" for one, other in zip(variant.ref, there, strict=True)):
            return ""
        return f"REF is {_short(variant.ref)}, but {self.path} has {_short(there)} there"


def _short(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}... ({len(text)} bases)"


def trimmed(left: str, ref: str, alt: str, right: str, flank: int) -> Site | str:
    """The site of what differs between the alleles: the shared end is taken off first, then the shared beginning."""
    shared = 0
    while shared < min(len(ref), len(alt)) and ref[-1 - shared] == alt[-1 - shared]:
        shared += 1
    right = (ref[len(ref) - shared :] + right)[:flank]
    ref, alt = ref[: len(ref) - shared], alt[: len(alt) - shared]
    shared = 0
    while shared < min(len(ref), len(alt)) and ref[shared] == alt[shared]:
        shared += 1
    left = left + ref[:shared]
    left = left[max(0, len(left) - flank) :]
    ref, alt = ref[shared:], alt[shared:]
    if not ref and not alt:
        return "REF equals ALT"
    return Site(left.translate(TO_N), ref, alt, right.translate(TO_N))


def open_reference(
    fasta: Path, names: list[str], source: str, contig_names: str | None = None, skip_missing: bool = False, on_mismatch: str = "error"
) -> Reference:
    """The contigs of `fasta` that `names` mean. Raises DataError for a name that it has not, ConfigError for options.

    contig_names: None (names are equal), `chr`, or a mapping file, as `match_contigs` has it; nothing is guessed.
    """
    if on_mismatch not in ON_MISMATCH:
        raise ConfigError(f"on_ref_mismatch = {on_mismatch} is none of {', '.join(ON_MISMATCH)}.")
    if not fasta.is_file():
        raise DataError(f"no such sequence file: {fasta}. --fasta names the reference of {source}.")
    wanted = set(names)
    contigs: dict[str, str] = {}
    for name, _, bases in read_records(fasta):
        if name in contigs:
            raise DataError(f"{fasta}: contig '{name}' comes twice. Rename or remove one.")
        # With a rule any contig may be meant; without one, the others are only names.
        contigs[name] = bases.upper() if contig_names or name in wanted else ""
    places = match_contigs(names, list(contigs), contig_names, skip_missing, Path(source), where=str(fasta))
    used = {place.contig for found in places.values() for place in found}
    return Reference(fasta, {name: bases for name, bases in contigs.items() if name in used}, places, on_mismatch)


def vcf_contigs(path: Path) -> list[str]:
    """The contigs that records of a VCF are on, in their order. Raises DataError."""
    found = list(dict.fromkeys(record.contig for record in _file(path).records()))
    if not found:
        raise DataError(f"{path} has no record. Give a VCF with variants.")
    return found


def vcf_variants(path: Path) -> Iterator[Variant]:
    """Each ALT allele of each record, in order; a record whose ALT is '.' once, with that. Raises DataError."""
    for record in _file(path).records():
        alts = record.alts or (b".",)
        for allele, alt in enumerate(alts):
            yield Variant(
                record.contig,
                record.start,
                record.id.decode("utf-8", "backslashreplace"),
                record.ref.decode(),
                alt.decode("utf-8", "backslashreplace"),
                record.info.decode("utf-8", "backslashreplace"),
                record.line,
                allele,
                len(alts),
            )


def _file(path: Path) -> VcfFile:
    if not path.is_file():
        raise DataError(f"no such VCF: {path}.")
    return VcfFile(path, sites=True)


@dataclass(frozen=True)
class Region:
    """A stretch of a contig, 0-based half-open."""

    contig: str
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """`chr:start-end`, 1-based with its end, commas allowed. Raises ConfigError."""
        contig, _, span = text.rpartition(":")
        first, _, last = span.replace(",", "").partition("-")
        if not contig or not first.isdecimal() or not last.isdecimal() or not 1 <= int(first) <= int(last):
            raise ConfigError(f"region {text} is not chr:start-end with 1 <= start <= end (1-based, the end included).")
        return cls(contig, int(first) - 1, int(last))

    def __str__(self) -> str:
        return f"{self.contig}:{self.start + 1}-{self.end}"


def region_variants(region: Region, reference: Reference) -> Iterator[Variant]:
    """The three substitutions of each base of a region; a base that is not A, C, G or T has none. Raises DataError beyond the end."""
    places = reference.places[region.contig]
    offset = places[0].offset or 0
    if len(places) > 1:
        raise DataError(f"region {region}: '{region.contig}' is {len(places)} windows of {reference.path}. Name the contig of the file.")
    bases = reference.contigs[places[0].contig]
    if region.start < offset or region.end > offset + len(bases):
        raise DataError(f"region {region} is not within '{region.contig}': bases {offset + 1:,} to {offset + len(bases):,} are there.")
    for start in range(region.start, region.end):
        ref = bases[start - offset]
        for alt in "ACGT":
            if ref in BASES and ref != alt:
                yield Variant(region.contig, start, ".", ref, alt)
