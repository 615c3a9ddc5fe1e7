"""The sequence of GenBank and EMBL flat files, and of GFF3 with ##FASTA, as FASTA text.

Line i of the FASTA text is line i of the file (a blank one where it holds no sequence), so that the
scanner's errors name the right line. Features are not looked at, and no record is held in memory: that is
why these are not Biopython's parsers, which build whole records. Flat files are lower case throughout, which masks
nothing: their bases come out upper case.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from dnapretrain.data.formats.lines import Text, place, text_lines

NO_SEQUENCE = "Fetch the full record, for example format 'gbwithparts' or the .gbff of the assembly, or give its FASTA"
MAX_ANNOTATION_LINE = 1 << 20
MAX_DIGITS = 18
"""Longer numbers are damage: 64 bits do not hold them."""
FIRST_FASTA = re.compile(rb"^(?:##FASTA|>)", re.MULTILINE)
GENBANK_LENGTH = re.compile(rb"\s(\d+) (bp|aa)\b")
EMBL_LENGTH = re.compile(rb"(\d+) (BP|AA)\.")


@dataclass
class _Record:
    """What is known of the record that is being read."""

    name: bytes
    length: int | None
    """Bases that its first line promises."""
    description: bytes = b""
    in_sequence: bool = False
    bases: int = 0


class _Flat(ABC):
    """One line at a time: what it is as FASTA. The two formats differ in how lines begin."""

    kind = "flat file"
    first = b""
    """How the first line of a record begins."""

    def __init__(self) -> None:
        self.line = 0
        self.record: _Record | None = None

    def take(self, line: bytes) -> bytes:
        self.line += 1
        record = self.record
        if record is None:
            if line.startswith(self.first):
                self.record = self.begin(line)
            elif line.strip():
                raise self.fail(f"a {self.kind} record begins with {self.first.decode()}, this line does not. Records are cut or damaged")
            return b""
        if line.startswith(b"//"):
            self._end(record)
            return b""
        if record.in_sequence:
            return self._bases(record, line)
        self.head(record, line)
        return b">" + record.name + b" " + record.description if record.in_sequence else b""

    @abstractmethod
    def begin(self, line: bytes) -> _Record:
        """The record that its first line begins."""

    @abstractmethod
    def head(self, record: _Record, line: bytes) -> None:
        """Note what a line before the sequence says; sets `in_sequence` at the last of them."""

    @abstractmethod
    def split(self, record: _Record, line: bytes) -> tuple[bytes, bytes, int]:
        """Letters of a sequence line, the position printed beside them, and the one that should be."""

    def end_of_file(self) -> None:
        if self.record:
            raise self.fail("the file ends inside this record: the line '//' is missing, it is truncated. Fetch it again")

    def fail(self, message: str) -> ValueError:
        return ValueError(f"{place(self.line, self.record.name if self.record else b'')}: {message}")

    def measure(self, line: bytes, pattern: re.Pattern[bytes]) -> int | None:
        found = pattern.search(line)
        if found and found[2].lower() == b"aa":
            raise self.fail("this is a protein record (aa). Give nucleotide records")
        if found and len(found[1]) > MAX_DIGITS:
            raise self.fail(f"a length of {len(found[1])} digits: the line is damaged. Fetch it again")
        return int(found[1]) if found else None

    def _bases(self, record: _Record, line: bytes) -> bytes:
        letters, printed, expected = self.split(record, line)
        if printed and (not printed.isdigit() or len(printed) > MAX_DIGITS or int(printed) != expected):
            shown = printed[:20].decode("ascii", "backslashreplace")
            raise self.fail(f"position {shown} is printed where {expected} should be: lines are missing or damaged. Fetch it again")
        if letters and not letters.isalpha():
            raise self.fail(
                "a sequence line that holds more than letters: the file is damaged, or the line '//' is missing. Fetch it again"
            )
        record.bases += len(letters)
        return letters.upper()

    def _end(self, record: _Record) -> None:
        if not record.in_sequence:
            raise self.fail(f"the record has no sequence (only annotation, or a CONTIG line that points elsewhere). {NO_SEQUENCE}")
        if record.length is not None and record.bases != record.length:
            raise self.fail(f"{record.bases} bases, but its first line says {record.length}: cut or damaged. Fetch it again")
        self.record = None


class _GenBank(_Flat):
    kind, first = "GenBank", b"LOCUS"
    _in_definition = False

    def begin(self, line: bytes) -> _Record:
        words = line.split(maxsplit=2)
        if len(words) < 2:
            raise self.fail("a LOCUS line without a name. Mend it")
        return _Record(words[1], self.measure(line, GENBANK_LENGTH))

    def head(self, record: _Record, line: bytes) -> None:
        if line.startswith(b"DEFINITION"):
            record.description = line[10:].strip()
        elif self._in_definition and line[:1] == b" ":
            record.description += b" " + line.strip()
            return
        elif line.startswith(b"VERSION"):
            record.name = [*line.split()[1:2], record.name][0]
        record.in_sequence = line.startswith(b"ORIGIN")
        self._in_definition = line.startswith(b"DEFINITION")

    def split(self, record: _Record, line: bytes) -> tuple[bytes, bytes, int]:
        printed, _, letters = line.strip().partition(b" ")
        return letters.replace(b" ", b""), printed, record.bases + 1


class _Embl(_Flat):
    kind, first = "EMBL", b"ID "

    def begin(self, line: bytes) -> _Record:
        fields = [field.strip() for field in line[3:].split(b";")]
        words = fields[0].split()
        if not words:
            raise self.fail("an ID line without a name. Mend it")
        version = fields[1][3:].strip() if len(fields) > 1 and fields[1].startswith(b"SV ") else b""
        return _Record(words[0] + b"." + version if version.isdigit() else words[0], self.measure(line, EMBL_LENGTH))

    def head(self, record: _Record, line: bytes) -> None:
        if line.startswith(b"DE "):
            record.description = (record.description + b" " + line[3:].strip()).strip()
        record.in_sequence = line.startswith(b"SQ ")

    def split(self, record: _Record, line: bytes) -> tuple[bytes, bytes, int]:
        letters, _, printed = line.strip().rpartition(b" ")
        if not printed.isdigit():
            letters, printed = letters + printed, b""
        letters = letters.replace(b" ", b"")
        return letters, printed, record.bases + len(letters)


def genbank_as_fasta(blocks: Iterator[Text]) -> Iterator[bytes]:
    """FASTA text of a GenBank flat file; names are accession.version. Raises ValueError (line, record) for a cut record or protein."""
    return _translate(blocks, _GenBank())


def embl_as_fasta(blocks: Iterator[Text]) -> Iterator[bytes]:
    """FASTA text of an EMBL flat file; names are accession.version where the ID line has both. Errors as for GenBank."""
    return _translate(blocks, _Embl())


def _translate(blocks: Iterator[Text], reader: _Flat) -> Iterator[bytes]:
    for lines in text_lines(blocks):
        yield b"\n".join([*map(reader.take, lines), b""])
    reader.end_of_file()


def gff3_as_fasta(blocks: Iterator[Text]) -> Iterator[bytes | memoryview]:
    """What follows ##FASTA (or begins with the first '>') in a GFF3 file. Raises ValueError where there is no such part."""
    line, rest = 1, b""
    for block in blocks:
        text = rest + bytes(block)
        found = FIRST_FASTA.search(text)
        end = found.start() if found else text.rfind(b"\n") + 1
        newlines = text.count(b"\n", 0, end)
        line += newlines
        yield b"\n" * newlines
        rest = text[end:]
        if found:
            yield rest.removeprefix(b"##FASTA")
            yield from blocks
            return
        if len(rest) > MAX_ANNOTATION_LINE:
            raise ValueError(f"line {line}: a line of more than {MAX_ANNOTATION_LINE >> 20} MiB in an annotation: the file is damaged")
    raise ValueError(f"line {line}: GFF3 without a ##FASTA part: annotation, no sequence. Give the FASTA of the assembly")
