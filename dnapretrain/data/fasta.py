"""FASTA files, plain or gzip, read once and in bounded memory as blocks of clean bases."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from isal import igzip
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.errors import DataError

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn")
MAX_DOCUMENT = 2_000_000_000
"""Bases. Megatron's index keeps lengths as int32; longer segments are cut into equal parts."""

BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -d"),
    b"\xfd7zXZ": ("xz", "xz -d"),
    b"BZh": ("bzip2", "bzip2 -d"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\x43\x27\x41\x1a": ("2bit", "twoBitToFa"),
    b"\x1a\x41\x27\x43": ("2bit", "twoBitToFa"),
}


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


class _HashingFile(io.RawIOBase):
    """A file that counts and digests what is read from it."""

    def __init__(self, file: io.FileIO, sha256: bool) -> None:
        self._file = file
        self.bytes_read = 0
        self.xxh3_128 = xxhash.xxh3_128()
        self.sha256 = hashlib.sha256() if sha256 else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)
        self.bytes_read += size
        self.xxh3_128.update(memoryview(buffer)[:size])
        if self.sha256 is not None:
            self.sha256.update(memoryview(buffer)[:size])
        return size


class FastaFile:
    """One FASTA file; iterate over `blocks()` once, then ask for sizes and digests of the file as stored."""

    def __init__(self, path: Path, policy: CutPolicy, sha256: bool = False) -> None:
        self.path = path
        self._policy = policy
        self._want_sha256 = sha256
        self._hashing: _HashingFile | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of the stored file read so far."""
        return self._hashing.bytes_read if self._hashing else 0

    @property
    def xxh3_128(self) -> str:
        """XXH3-128 of what was read, as 32 hexadecimal digits."""
        if self._hashing is None:
            raise RuntimeError("nothing was read yet")
        return self._hashing.xxh3_128.hexdigest()

    @property
    def sha256(self) -> str | None:
        """SHA-256 of what was read, where it was asked for."""
        return self._hashing.sha256.hexdigest() if self._hashing and self._hashing.sha256 else None

    def blocks(self) -> Iterator[Block]:
        """Yield the documents of the file. Raises DataError naming the file, the line and the record."""
        scanner = _core.FastaScanner(self._policy.min_n_run, self._policy.min_length, self._policy.max_length)
        try:
            with self.path.open("rb", buffering=0) as raw:
                self._hashing = _HashingFile(raw, self._want_sha256)
                with _open_text(raw, self._hashing) as text:
                    buffer = memoryview(bytearray(BLOCK_BYTES))
                    while size := text.readinto(buffer):
                        scanner.feed(buffer[:size])
                        yield _take(scanner)
                scanner.finish()
                yield _take(scanner)
        except (EOFError, igzip.BadGzipFile, igzip.isal_zlib.error, zlib.error) as error:
            raise DataError(f"{self.path}: {_place(scanner)}: {_gzip_fault(error)}") from None
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None


def check_readable(path: Path) -> int:
    """The size of `path` in bytes. Raises DataError where it is missing, no regular file, or not readable."""
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Give FASTA files, plain or gzip, or folders of them")
        if not path.is_file():
            raise DataError(f"{path}: not a regular file. Write the sequence to a file first")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def is_fasta_name(name: str) -> bool:
    """Whether a file name ends like FASTA, plain or gzip."""
    return strip_suffixes(name) != _without(name, (".gz",))


def strip_suffixes(name: str) -> str:
    """A file name without its gzip and FASTA suffixes: the assembly it stands for."""
    return _without(_without(name, (".gz",)), FASTA_SUFFIXES)


def _without(name: str, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _open_text(raw: io.FileIO, hashing: _HashingFile) -> io.RawIOBase | io.BufferedIOBase:
    magic = raw.read(18)
    for start, (name, tool) in OTHER_FORMATS.items():
        if magic.startswith(start):
            raise ValueError(f"line 1: this is {name} data. Unpack it first with {tool}, or pack it with gzip")
    if magic.startswith(GZIP_MAGIC):
        if magic[12:14] == b"BC":
            _check_bgzf_end(raw)
        raw.seek(0)
        return igzip.IGzipFile(fileobj=hashing, mode="rb")
    raw.seek(0)
    return hashing


def _check_bgzf_end(raw: io.FileIO) -> None:
    # A BGZF file cut between two blocks is valid gzip; only its missing end marker tells.
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - len(BGZF_END)))
    if raw.read() != BGZF_END:
        raise EOFError


def _take(scanner: _core.FastaScanner) -> Block:
    bases, documents, lines, counts = scanner.take()
    return Block(bases, documents, [_split_header(line) for line in lines], counts)


def _split_header(line: bytes) -> tuple[str, str]:
    name, _, description = line.decode("utf-8", "backslashreplace").replace("\t", " ").partition(" ")
    return name, description.strip()


def _place(scanner: _core.FastaScanner) -> str:
    record = f", record '{scanner.record_name}'" if scanner.record_name else ""
    return f"line {scanner.line}{record}"


def _gzip_fault(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the gzip file is truncated here, or other data follows its end. Fetch or pack it again"
    return f"the gzip file is damaged here ({error}). Fetch or pack it again"
