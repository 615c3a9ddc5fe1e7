"""Packed files: gzip (many members, BGZF), Zstandard, xz and bzip2, told by their first bytes and read in bounded memory."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import xxhash
from isal import igzip

HEAD_BYTES = 18
PACKING_SUFFIXES = (".gz", ".bgz", ".zst", ".xz", ".bz2")
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BGZF_FIELD = b"BC\x02\x00"
READ_BYTES = 1 << 17


class Readable(Protocol):
    """What bytes are read from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; the number of bytes, 0 at the end."""
        ...


class DigestedFile(io.RawIOBase):
    """A file that counts and digests what is read from it."""

    def __init__(self, file: io.FileIO, sha256: bool) -> None:
        self._file = file
        self.bytes_read = 0
        self.xxh3_128 = xxhash.xxh3_128()
        self.sha256 = hashlib.sha256() if sha256 else None

    def readable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Of the stored file: reading at a place of one's own choice (os.pread) goes past the digest."""
        return self._file.fileno()

    def readinto(self, buffer: Any) -> int:
        """Read, count and digest up to len(`buffer`) bytes."""
        size = self._file.readinto(buffer)
        self.bytes_read += size
        self.xxh3_128.update(memoryview(buffer)[:size])
        if self.sha256 is not None:
            self.sha256.update(memoryview(buffer)[:size])
        return size

    def read_up_to(self, position: int | None) -> None:
        """Count and digest what lies before `position` of the file, or all of it."""
        buffer = memoryview(bytearray(READ_BYTES))
        while position is None or self.bytes_read < position:
            wanted = READ_BYTES if position is None else min(READ_BYTES, position - self.bytes_read)
            if not self.readinto(buffer[:wanted]):
                return


class PackedError(Exception):
    """The packed data is cut or damaged; the text says which."""


class Gzip:
    """The unpacked bytes of a gzip file, by the fastest inflater there is."""

    def __init__(self, digested: io.RawIOBase | io.BytesIO) -> None:
        self._stream = igzip.IGzipFile(fileobj=digested, mode="rb")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; 0 at the end."""
        try:
            return int(self._stream.readinto(buffer))
        except EOFError:
            raise _truncated("gzip") from None
        except (igzip.BadGzipFile, igzip.isal_zlib.error, zlib.error) as error:
            raise _damaged("gzip", error) from None


class _Decoder(Protocol):
    """One frame (stream) of a packed file: what the modules lzma, bz2 and zstd of Python have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Frames:
    """The unpacked bytes of a file of frames. Python's own file classes take whatever follows the last frame for its end."""

    def __init__(
        self, name: str, digested: DigestedFile, new_decoder: Callable[[], _Decoder], failures: tuple[type[Exception], ...]
    ) -> None:
        self._name, self._file, self._failures = name, digested, failures
        self._new_decoder = new_decoder
        self._decoder = new_decoder()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; 0 at the end."""
        while True:
            if self._decoder.eof:
                data = self._decoder.unused_data or self._file.read(READ_BYTES)
                if self._name == "xz":  # streams may be padded
                    while data and not data.strip(b"\0"):
                        data = self._file.read(READ_BYTES)
                    data = data.lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                data = self._file.read(READ_BYTES)
                if not data:
                    raise _truncated(self._name)
            else:
                data = b""
            try:
                unpacked = self._decoder.decompress(data, len(buffer))
            except self._failures as error:
                raise _damaged(self._name, error) from None
            if unpacked:
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)


def open_unpacked(raw: io.FileIO, digested: DigestedFile) -> Readable:
    """The unpacked bytes of the file `raw`, which `digested` wraps; the file itself where it is not packed.

    Raises PackedError, while it is read too, where the packed data is cut or damaged.
    """
    head = raw.read(HEAD_BYTES)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is Gzip and head[12:14] == b"BC":
        _check_bgzf_end(raw)
    raw.seek(0)
    return opener(digested) if opener else digested


def unpacks_alone(path: Path) -> bool:
    """Whether unpacking takes nearly all the time there is for a file, so that no other thread can help with it: xz and bzip2."""
    with path.open("rb") as raw:
        head = raw.read(HEAD_BYTES)
    return any(head.startswith(magic) for magic, opener in _OPENERS.items() if opener in (_xz, _bzip2))


def _zstandard(digested: DigestedFile) -> Readable:
    # The module of Python 3.14 and its backport: other packages do not tell a frame that is cut.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _Frames("Zstandard", digested, zstd.ZstdDecompressor, (zstd.ZstdError,))


def _xz(digested: DigestedFile) -> Readable:
    import lzma

    return _Frames("xz", digested, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), (lzma.LZMAError,))


def _bzip2(digested: DigestedFile) -> Readable:
    import bz2

    return _Frames("bzip2", digested, bz2.BZ2Decompressor, (OSError, ValueError))


_OPENERS: dict[bytes, Callable[[DigestedFile], Readable]] = {
    b"\x1f\x8b": Gzip,
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"\xfd7zXZ\x00": _xz,
    b"BZh": _bzip2,
}


def _check_bgzf_end(raw: io.FileIO) -> None:
    # A BGZF file cut between two blocks is valid gzip; only its missing end marker tells.
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - len(BGZF_END)))
    if raw.read() != BGZF_END:
        raise _truncated("gzip")


def _truncated(name: str) -> PackedError:
    return PackedError(f"the {name} file is truncated here, or other data follows its end. Fetch or pack it again")


def _damaged(name: str, error: Exception) -> PackedError:
    return PackedError(f"the {name} file is damaged here ({_one_line(error)}). Fetch or pack it again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
