"""What is given on the command line, and any sequence file as FASTA text.

`find_inputs` makes paths of files, folders, patterns and lists. `open_source` tells what a file is by its first bytes,
never by its name, unpacks it, and rewrites it as FASTA text for the one scanner that cleans and cuts bases.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnapretrain.data.formats.blocks import open_blocks
from dnapretrain.data.formats.compression import PACKING_SUFFIXES, DigestedFile
from dnapretrain.data.formats.fastq import fastq_as_fasta
from dnapretrain.data.formats.flatfile import embl_as_fasta, genbank_as_fasta, gff3_as_fasta
from dnapretrain.data.formats.helpers import Helpers
from dnapretrain.data.formats.lines import Text
from dnapretrain.data.formats.twobit import MAGICS, two_bit_as_fasta
from dnapretrain.errors import DataError

SEQUENCE_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".fq", ".fastq", ".2bit")
"""What is taken from a folder."""
ANNOTATION_SUFFIXES = (".gb", ".gbk", ".gbff", ".embl", ".gff3", ".gff")
"""They often lie beside the FASTA of the same genome, so they are taken only where they are named."""
WHAT_TO_GIVE = "Give FASTA, FASTQ, 2bit, GenBank, EMBL or GFF3 files, folders of them, patterns or @lists"

BLOCK_BYTES = 1 << 20
SNIFFED_BYTES = 4096

REFUSED = {
    b"PK\x03\x04": "a zip archive. Unpack it first with unzip",
    b"BAM\x01": "BAM. Write its reads as FASTQ first, for example with samtools fastq",
    b"CRAM": "CRAM. Write its reads as FASTQ first, for example with samtools fastq",
    b"BCF\x02": "BCF, variants without sequence. Give the FASTA of the reference",
    b"##fileformat=VCF": "VCF, variants without sequence. Give the FASTA of the reference",
    **dict.fromkeys((b"@HD\t", b"@SQ\t", b"@RG\t", b"@PG\t"), "SAM. Write its reads as FASTQ first, for example with samtools fastq"),
    **dict.fromkeys(MAGICS, "2bit data inside a packed file. Unpack it first: 2bit is read at many places at once"),
}
TRANSLATORS: dict[bytes, tuple[str, Callable[[Iterator[Text]], Iterator[Text]]]] = {
    b"@": ("FASTQ", fastq_as_fasta),
    b"LOCUS ": ("GenBank", genbank_as_fasta),
    b"ID   ": ("EMBL", embl_as_fasta),
    b"##gff-version": ("GFF3", gff3_as_fasta),
}


@dataclass(frozen=True)
class SourceText:
    """An open sequence file."""

    format: str
    """FASTA, FASTQ, 2bit, GenBank, EMBL or GFF3."""
    text: Iterator[Text]
    """Its records as FASTA text. A block is overwritten by the next one. Raises ValueError, PackedError and OSError."""


@contextmanager
def open_source(
    path: Path, sha256: bool = False, opened: Callable[[DigestedFile], None] = lambda file: None, helpers: Helpers | None = None
) -> Iterator[SourceText]:
    """The records of a file as FASTA text, whatever its format and packing; `opened` gets the file that counts and digests.

    `helpers` read and inflate ahead. Raises ValueError (a format that is refused), PackedError (cut or damaged packing) and OSError.
    """
    with path.open("rb", buffering=0) as raw:
        digested = DigestedFile(raw, sha256)
        opened(digested)
        if os.pread(raw.fileno(), 4, 0) in MAGICS:
            yield SourceText("2bit", two_bit_as_fasta(digested))
            return
        blocks = open_blocks(raw, digested, BLOCK_BYTES, helpers or Helpers())
        try:
            yield _sniff(iter(blocks))
        finally:
            blocks.close()  # helpers may still read the file


def _sniff(blocks: Iterator[Text]) -> SourceText:
    head: list[bytes] = []
    while sum(map(len, head)) < SNIFFED_BYTES and (block := next(blocks, None)) is not None:
        head.append(bytes(block))
    start = b"".join(head)[:SNIFFED_BYTES]
    for magic, what in REFUSED.items():
        if start.startswith(magic):
            raise ValueError(f"line 1: this is {what}")
    text = itertools.chain(head, blocks)
    for magic, (name, translate) in TRANSLATORS.items():
        if start.lstrip().startswith(magic):
            return SourceText(name, translate(text))
    return SourceText("FASTA", text)


def find_inputs(inputs: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files that `inputs` stand for, in order, and what should be said about files left out of folders.

    Each is a file; a folder (the FASTA, FASTQ and 2bit files directly in it, by name); a pattern with `*`, `?` or `[`, where `**`
    goes into sub-folders (the files it matches, by name; no folders); or `@FILE`, a list with one of the former on each line, where
    blank lines and lines that begin with `#` are left out and paths are relative to the working folder. Raises DataError where one
    stands for nothing.
    """
    paths: list[Path] = []
    notes: list[str] = []
    for item in inputs:
        if str(item).startswith("@"):
            for number, line in _list_lines(Path(str(item)[1:])):
                if line.startswith("@"):
                    raise DataError(f"{str(item)[1:]}: line {number}: '{line}' is a list inside a list. Name its files here")
                paths += _expand(Path(line), f"{str(item)[1:]}: line {number}: ", notes)
        else:
            paths += _expand(item, "", notes)
    if not paths:
        raise DataError(f"no input. {WHAT_TO_GIVE}")
    return paths, notes


def _list_lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read: {error.strerror or error}. Give @FILE with one path on each line") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a list of paths but binary data. Give @FILE with one path on each line") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]


def _expand(item: Path, place: str, notes: list[str]) -> list[Path]:
    if item.is_dir():
        return _in_folder(item, place, notes)
    if not glob.has_magic(str(item)) or item.exists():
        return [item]
    found = sorted(path for path in map(Path, glob.glob(str(item), recursive=True)) if not path.is_dir())  # noqa: PTH207 (keeps `./`, absolute paths)
    if not found:
        raise DataError(f"{place}{item}: no file matches this pattern. {WHAT_TO_GIVE}")
    return found


def _in_folder(folder: Path, place: str, notes: list[str]) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    found = [path for path in files if ends_like(path.name, SEQUENCE_SUFFIXES)]
    left_out = [path.name for path in files if ends_like(path.name, ANNOTATION_SUFFIXES)]
    if not found:
        raise DataError(
            f"{place}{folder}: no FASTA files (.fa, .fasta, .fna, .ffn), FASTQ (.fq, .fastq) or .2bit, plain or packed, in this folder. "
            "Give the files themselves"
        )
    if left_out:
        notes.append(
            f"{folder}: {len(left_out)} GenBank, EMBL or GFF3 file(s) left out, {left_out[0]} first. Name them to read their sequence"
        )
    return found


def ends_like(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name, plain or packed, has one of the suffixes after something else."""
    unpacked = _without(name, PACKING_SUFFIXES)
    return _without(unpacked, suffixes) != unpacked


def strip_suffixes(name: str) -> str:
    """A file name without the suffixes of its packing and format: the assembly it stands for."""
    return _without(_without(name, PACKING_SUFFIXES), SEQUENCE_SUFFIXES + ANNOTATION_SUFFIXES)


def _without(name: str, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def check_readable(path: Path) -> int:
    """The size of `path` in bytes. Raises DataError where it is missing, no regular file, or not readable."""
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. {WHAT_TO_GIVE}")
        if not path.is_file():
            raise DataError(f"{path}: not a regular file. Write the sequence to a file first")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
