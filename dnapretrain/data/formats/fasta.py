"""Sequence files of any format, read once and in bounded memory as blocks of clean bases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.compression import DigestedFile, PackedError
from dnapretrain.data.formats.inputs import open_source
from dnapretrain.errors import DataError

MAX_DOCUMENT = 2_000_000_000
"""Bases. Megatron's index keeps lengths as int32; longer segments are cut into equal parts."""


@dataclass(frozen=True)
class CutPolicy:
    """How records are cut into documents."""

    min_n_run: int = 10
    """Runs of at least this many N are left out; shorter ones are kept."""
    min_length: int = 1
    """Bases: shorter documents are left out."""
    max_length: int = MAX_DOCUMENT
    """Bases: longer documents are cut into equal parts."""


@dataclass(frozen=True)
class Block:
    """What one block of text added. Documents may begin in one block and end in a later one."""

    bases: NDArray[np.uint8]
    documents: NDArray[np.int64]
    """(n, 3): number of the record in the file, start, end on the contig, 0-based half-open."""
    headers: list[tuple[str, str]]
    """Name and description of the records that ended."""
    counts: NDArray[np.int64]
    """(records, len(_core.RECORD_COUNTS)), of the records that ended."""


class FastaFile:
    """One sequence file, read as FASTA; iterate over `blocks()` once, then ask for its format, size and digests as stored."""

    def __init__(self, path: Path, policy: CutPolicy, sha256: bool = False) -> None:
        self.path = path
        self.format = ""
        """FASTA, FASTQ, 2bit, GenBank, EMBL or GFF3, once reading has begun."""
        self._policy = policy
        self._want_sha256 = sha256
        self._file: DigestedFile | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of the stored file read so far."""
        return self._file.bytes_read if self._file else 0

    @property
    def xxh3_128(self) -> str:
        """XXH3-128 of what was read, as 32 hexadecimal digits."""
        if self._file is None:
            raise RuntimeError("nothing was read yet")
        return str(self._file.xxh3_128.hexdigest())

    @property
    def sha256(self) -> str | None:
        """SHA-256 of what was read, where it was asked for."""
        return self._file.sha256.hexdigest() if self._file and self._file.sha256 else None

    def blocks(self) -> Iterator[Block]:
        """Yield the documents of the file. Raises DataError naming the file, and the line and the record where there are any."""
        scanner = _core.FastaScanner(self._policy.min_n_run, self._policy.min_length, self._policy.max_length)
        try:
            with open_source(self.path, self._want_sha256, self._opened) as source:
                self.format = source.format
                for text in source.text:
                    scanner.feed(text)
                    yield _take(scanner)
                scanner.finish()
                yield _take(scanner)
        except PackedError as error:
            raise DataError(f"{self.path}: {_place(scanner)}: {error}") from None
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _opened(self, file: DigestedFile) -> None:
        self._file = file


def _take(scanner: _core.FastaScanner) -> Block:
    bases, documents, lines, counts = scanner.take()
    return Block(bases, documents, [_split_header(line) for line in lines], counts)


def _split_header(line: bytes) -> tuple[str, str]:
    name, _, description = line.decode("utf-8", "backslashreplace").replace("\t", " ").partition(" ")
    return name, description.strip()


def _place(scanner: _core.FastaScanner) -> str:
    record = f", record '{scanner.record_name}'" if scanner.record_name else ""
    return f"line {scanner.line}{record}"
