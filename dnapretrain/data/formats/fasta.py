"""Sequence files of any format, read once and in bounded memory as blocks of clean bases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.compression import DigestedFile, PackedError
from dnapretrain.data.formats.helpers import Helpers
from dnapretrain.data.formats.inputs import open_source
from dnapretrain.data.formats.lines import place
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
    record_name: str
    """Of the record that has not ended yet."""


class FastaFile:
    """One sequence file, read as FASTA; iterate over `blocks()` once, then ask for its format, size and digests as stored.

    `helpers` read and inflate ahead of the blocks that were asked for.
    """

    def __init__(self, path: Path, policy: CutPolicy, sha256: bool = False, helpers: Helpers | None = None) -> None:
        self.path = path
        self.format = ""
        """FASTA, FASTQ, 2bit, GenBank, EMBL or GFF3, once reading has begun."""
        self._policy = policy
        self._want_sha256 = sha256
        self._helpers = helpers or Helpers()
        self._file: DigestedFile | None = None
        self._cleared = 0  # repeats that were none: two names with the same fingerprint

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
        scanner = self._scanner()
        try:
            with open_source(self.path, self._want_sha256, self._opened, self._helpers) as source:
                self.format = source.format
                for text in source.text:
                    scanner.feed(text)
                    self._check_names(scanner)
                    yield _take(scanner)
                scanner.finish()
                self._check_names(scanner)
                yield _take(scanner)
        except PackedError as error:
            raise DataError(f"{self.path}: {place(scanner.line, scanner.record_name.encode())}: {error}") from None
        except ValueError as error:
            self._check_names(scanner)  # of an earlier line than the error
            raise DataError(f"{self.path}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _scanner(self) -> _core.FastaScanner:
        return _core.FastaScanner(self._policy.min_n_run, self._policy.min_length, self._policy.max_length)

    def _check_names(self, scanner: _core.FastaScanner) -> None:
        """Raise DataError where a name stands for two records."""
        while len(scanner.repeats) > self._cleared:
            name, line = scanner.repeats[self._cleared]
            first = first_line_of(self.path, name)
            if first != line:
                raise DataError(f"{self.path}: {place(line, name.encode())}: {used_twice(first)}")
            self._cleared += 1

    def _opened(self, file: DigestedFile) -> None:
        self._file = file


def first_line_of(path: Path, name: str) -> int:
    """Line of the first record of this name, by reading the file again: a scanner keeps fingerprints of names alone."""
    scanner = _core.FastaScanner(1, 1, MAX_DOCUMENT)
    scanner.watch(name)
    with open_source(path) as source:
        for text in source.text:
            with suppress(ValueError):  # of a later line of this block
                scanner.feed(text)
                scanner.take()
            if scanner.watched_line:
                break
    return int(scanner.watched_line)


def used_twice(line: int) -> str:
    """What is wrong with the name of a record that another one had at this line."""
    return f"this name was used at line {line} already. Rename one of the two records"


def _take(scanner: _core.FastaScanner) -> Block:
    bases, documents, lines, counts = scanner.take()
    return Block(bases, documents, [_split_header(line) for line in lines], counts, scanner.record_name)


def _split_header(line: bytes) -> tuple[str, str]:
    name, _, description = line.decode("utf-8", "backslashreplace").replace("\t", " ").partition(" ")
    return name, description.strip()
