"""VCF files, plain or packed, read once and line by line: the header checked, genotypes of chosen samples only, or sites alone.

Coordinates are 0-based half-open. Every error names the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.formats.compression import DigestedFile, PackedError, Readable, open_unpacked
from dnapretrain.data.formats.lines import text_lines
from dnapretrain.errors import DataError

BLOCK_BYTES = 1 << 20
COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO".split(b"\t")
FIXED_COLUMNS = 9
ALLELE = re.compile(rb"[ACGTNRYKMSWBDHV]+", re.IGNORECASE)
CONTIG = re.compile(r"##contig=<.*?\bID=([^,>]+)")
CONTIG_LENGTH = re.compile(r"[<,]length=([0-9]{1,18})(?![0-9])")
POSITION = re.compile(rb"[0-9]{1,18}")
"""As many digits as 64 bits hold for certain."""

MISSING, ABSENT, UNPHASED = -1, -2, -3
"""Codes beside allele numbers: `.`; the second haplotype of a haploid call; alleles that differ without a phase."""

# Four bytes `0|1<tab>` read as one little-endian word: the bits that are the same for all phased calls of alleles 0 to 7.
PHASED_MASK, PHASED_BITS, ALLELE_BITS = np.uint32(0xFFF8FFF8), np.uint32(0x09307C30), np.uint32(0x00070007)


@dataclass(frozen=True)
class VcfRecord:
    """One line of a VCF."""

    line: int
    contig: str
    start: int
    ref: bytes
    """Upper case."""
    alts: tuple[bytes, ...]
    """Upper case; '*' and symbolic alleles (<DEL>, breakends) as they are written. Empty where ALT is '.'."""
    format: bytes
    calls: bytes
    """The columns of all samples."""
    id: bytes = b"."
    info: bytes = b"."

    @property
    def end(self) -> int:
        """End of REF on the contig."""
        return self.start + len(self.ref)


@dataclass(frozen=True)
class Calls:
    """Calls of S chosen samples at one record. Haplotype 2 s is the first, 2 s + 1 the second of sample s."""

    haplotypes: NDArray[np.int64]
    """Those that carry another allele than REF, rising."""
    alleles: NDArray[np.int16]
    """Theirs; 1 is the first of ALT."""
    missing: int = 0
    absent: int = 0
    unphased: int = 0
    """Haplotypes with that code."""
    haploid: NDArray[np.bool_] | None = None
    """(S,): called as haploid. None: no sample is."""


@dataclass
class VcfFile:
    """One VCF file: `open()` reads its header, `records()` the rest, once."""

    path: Path
    sites: bool = False
    """Only sites are asked for: columns of genotypes may be missing, and records may stand in any order."""
    samples: list[str] = field(default_factory=list)
    contig_lengths: dict[str, int] = field(default_factory=dict)
    """Of the contigs for which the header tells it."""
    line: int = 0
    """Of the record read last."""
    _digested: DigestedFile | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of the stored file read so far."""
        return self._digested.bytes_read if self._digested else 0

    @property
    def xxh3_128(self) -> str:
        """XXH3-128 of what was read, as 32 hexadecimal digits."""
        if self._digested is None:
            raise RuntimeError("nothing was read yet")
        return self._digested.xxh3_128.hexdigest()

    def open(self) -> VcfFile:
        """Read the header only. Raises DataError for a file that is no VCF with genotypes."""
        for _ in self._lines():
            break
        return self

    def records(self) -> Iterator[VcfRecord]:
        """The records in order. Raises DataError where the file is cut, damaged, not sorted (unless `sites`), or a line is wrong."""
        contig, start, seen = "", -1, set[str]()
        for line in self._lines():
            record = self._record(line)
            if self.sites:
                yield record
                continue
            if record.contig != contig:
                if record.contig in seen:
                    self.fail(f"contig '{record.contig}' comes a second time. Sort the file, for example with bcftools sort")
                seen.add(record.contig)
                contig = record.contig
            elif record.start < start:
                self.fail(
                    f"position {record.start + 1} of '{contig}' comes after {start + 1}. Sort the file, for example with bcftools sort"
                )
            start = record.start
            yield record

    def fail(self, message: str) -> NoReturn:
        """Raise DataError naming the file and the line read last."""
        raise DataError(f"{self.path}: line {self.line}: {message}")

    def _lines(self) -> Iterator[bytes]:
        """Lines after the header, which is read on the way."""
        self.line, header = 0, True
        try:
            with self.path.open("rb", buffering=0) as raw:
                self._digested = DigestedFile(raw, sha256=False)
                for lines in text_lines(_blocks(open_unpacked(raw, self._digested))):
                    for line in lines:
                        self.line += 1
                        line = line.removesuffix(b"\r")
                        if header:
                            header = self._header_line(line)
                        elif line:
                            yield line
                if header:
                    self.fail("the file ends before its line #CHROM: no VCF, or cut. Fetch it again" if self.line else "the file is empty")
                self._digested.read_up_to(None)
        except PackedError as error:
            self.fail(str(error))
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _header_line(self, line: bytes) -> bool:
        """Read one line of the header; whether more follow."""
        if self.line == 1:
            self.samples, self.contig_lengths = [], {}
            if line.startswith(b"BCF"):
                self.fail("this is BCF. Write it as VCF first: bcftools view -Oz -o file.vcf.gz file.bcf")
            if not line.startswith(b"##fileformat=VCF"):
                shown = line[:60].decode("utf-8", "backslashreplace").replace("\t", " ")
                kind = "" if self.sites else " with genotypes (column FORMAT)"
                self.fail(f"not a VCF: it should begin with '##fileformat=VCFv4', not '{shown}'. Give a VCF{kind}")
        text = line.decode("utf-8", "backslashreplace")
        if line.startswith(b"##"):
            name, length = CONTIG.match(text), CONTIG_LENGTH.search(text)
            if name and length:
                self.contig_lengths[name[1]] = int(length[1])
            return True
        columns = line.split(b"\t")
        if columns[: len(COLUMNS)] != COLUMNS:
            self.fail("this should be the line '#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT ...', with tabs. The header is damaged")
        if self.sites:
            return False
        if len(columns) <= FIXED_COLUMNS or columns[FIXED_COLUMNS - 1] != b"FORMAT":
            self.fail("the file holds sites without genotypes (no column FORMAT with samples). Give the VCF of the phased samples")
        self.samples = text.split("\t")[FIXED_COLUMNS:]
        if len(set(self.samples)) < len(self.samples):
            twice = next(name for name in self.samples if self.samples.count(name) > 1)
            self.fail(f"sample '{twice}' has two columns. Rename one, for example with bcftools reheader")
        return False

    def _record(self, line: bytes) -> VcfRecord:
        fields = line.split(b"\t", FIXED_COLUMNS)
        num_columns = len(COLUMNS) if self.sites else FIXED_COLUMNS + 1
        if len(fields) < num_columns:
            wanted = num_columns if self.sites else FIXED_COLUMNS + len(self.samples)
            self.fail(f"{len(fields)} columns in place of {wanted}: cut or damaged. Fetch the file again")
        contig, position, name, ref, alt = fields[:5]
        genotypes = (b"", b"") if self.sites else (fields[FIXED_COLUMNS - 1], fields[FIXED_COLUMNS])
        if not contig or not POSITION.fullmatch(position):
            self.fail(f"POS is {_shown(position)} on contig {_shown(contig)}. Give the position as a number")
        if not ALLELE.fullmatch(ref):
            self.fail(f"REF is {_shown(ref)}, which is no sequence of bases. Mend the record")
        alts = () if alt == b"." else tuple(alt.upper().split(b","))
        start = int(position) - 1
        return VcfRecord(
            self.line,
            contig.decode("utf-8", "backslashreplace"),
            start,
            ref.upper(),
            alts,
            *genotypes,
            name,
            fields[len(COLUMNS) - 1],
        )


class CallReader:
    """Reads the calls of chosen samples from the lines of one file."""

    def __init__(self, vcf: VcfFile, samples: Sequence[str], skip_unphased: bool) -> None:
        column = {name: number for number, name in enumerate(vcf.samples)}
        for name in samples:
            if name not in column:
                some = ", ".join(vcf.samples[:5])
                raise DataError(f"{vcf.path}: sample '{name}' is not among its {len(column)} samples ({some}, ...). Change --samples")
        self._vcf, self._samples, self._skip_unphased = vcf, list(samples), skip_unphased
        self._columns = np.array([column[name] for name in samples], np.int64)
        self._all = np.array_equal(self._columns, np.arange(len(vcf.samples)))
        self._known: dict[bytes, tuple[int, int]] = {}

    def read(self, record: VcfRecord) -> Calls:
        """The calls at `record`. Raises DataError for a genotype that cannot be read, or is unphased where that is an error."""
        words = self._phased_words(record)
        if words is None:
            return self._read_slowly(record)
        words = words & ALLELE_BITS
        carriers = np.flatnonzero(words)
        pairs = words[carriers].view(np.uint16)  # first and second allele of each carrier
        carried = np.flatnonzero(pairs)
        alleles = pairs[carried].astype(np.int16)
        self._check_alleles(record, alleles)
        return Calls(2 * carriers[carried // 2] + carried % 2, alleles)

    def _phased_words(self, record: VcfRecord) -> NDArray[np.uint32] | None:
        """The calls as one word each, where all are `a|b` with one digit and nothing else; else None."""
        if record.format != b"GT" or len(record.calls) != 4 * len(self._vcf.samples) - 1:
            return None
        words: NDArray[np.uint32] = np.frombuffer(record.calls + b"\t", "<u4")
        if not ((words & PHASED_MASK) == PHASED_BITS).all():
            return None
        return words if self._all else words[self._columns]

    def _read_slowly(self, record: VcfRecord) -> Calls:
        if record.format != b"GT" and not record.format.startswith(b"GT:"):
            self._vcf.fail(f"FORMAT is {_shown(record.format)}, without GT as its first field. Leave out records without genotypes")
        fields = record.calls.split(b"\t")
        if len(fields) != len(self._vcf.samples):
            self._vcf.fail(f"{len(fields)} samples in place of {len(self._vcf.samples)}: cut or damaged. Fetch the file again")
        pairs = [self._pair(fields[column].partition(b":")[0]) for column in self._columns.tolist()]
        codes = np.array(pairs, np.int16).reshape(-1)
        unphased = np.flatnonzero(codes == UNPHASED)
        if len(unphased) and not self._skip_unphased:
            sample = int(unphased[0]) // 2
            text = fields[int(self._columns[sample])].partition(b":")[0]
            self._vcf.fail(
                f"genotype {_shown(text)} of sample '{self._samples[sample]}' at {record.contig}:{record.start + 1} is not phased, so its "
                "haplotypes are not known. Phase the file, or keep REF there and count it with --on-unphased skip"
            )
        haplotypes = np.flatnonzero(codes > 0)
        self._check_alleles(record, codes[haplotypes])
        missing, absent = int((codes == MISSING).sum()), int((codes == ABSENT).sum())
        haploid = (codes[1::2] == ABSENT) if absent else None
        return Calls(haplotypes, codes[haplotypes], missing, absent, len(unphased), haploid)

    def _pair(self, text: bytes) -> tuple[int, int]:
        pair = self._known.get(text)
        if pair is None:
            pair = self._known[text] = self._parse(text)
        return pair

    def _parse(self, text: bytes) -> tuple[int, int]:
        parts = re.split(rb"[|/]", text)
        if len(parts) > 2 or not all(part == b"." or (part.isdigit() and len(part) < 5) for part in parts):
            ploidy = f": {len(parts)} haplotypes" if len(parts) > 2 else ""
            self._vcf.fail(f"genotype {_shown(text)} cannot be read{ploidy}. Known are '0|1', '.|.', and '1' for haploid calls")
        codes = [MISSING if part == b"." else int(part) for part in parts]
        if len(codes) == 1:
            return codes[0], ABSENT
        if b"/" in text and codes[0] != codes[1]:
            return UNPHASED, UNPHASED
        return codes[0], codes[1]

    def _check_alleles(self, record: VcfRecord, alleles: NDArray[np.int16]) -> None:
        if len(alleles) and alleles.max() > len(record.alts):
            self._vcf.fail(f"a genotype has allele {alleles.max()}, but ALT lists {len(record.alts)}. Mend the record")


def is_sequence(alt: bytes) -> bool:
    """Whether an allele of ALT is bases, not '*' (deleted by another record), <DEL>, a breakend or the like."""
    return ALLELE.fullmatch(alt) is not None


def _blocks(stream: Readable) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while size := stream.readinto(buffer):
        yield buffer[:size]


def _shown(text: bytes) -> str:
    shown = text[:40].decode("utf-8", "backslashreplace")
    return f"'{shown}{'...' if len(text) > 40 else ''}'"
