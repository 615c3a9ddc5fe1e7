"""Packed files: gzip (many members, BGZF), Zstandard, xz and bzip2, told by their first bytes and read in bounded memory."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any, Protocol

import numpy as np
import xxhash
from isal import igzip

from dnapretrain.data.formats.helpers import Helpers, Task

HEAD_BYTES = 18
PACKING_SUFFIXES = (".gz", ".bgz", ".zst", ".xz", ".bz2")
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BGZF_MAGIC, BGZF_FIELD = b"\x1f\x8b\x08\x04", b"BC\x02\x00"
BGZF_BLOCK = 1 << 16
"""Bytes of a BGZF block at most, packed or not."""
READ_BYTES = 1 << 17
BLOCKS_AHEAD = 3
"""Of a stream, filled while one is used: readers and scanners take turns in being slow."""


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


class _Gzip:
    """The unpacked bytes of a gzip file, by the fastest inflater there is."""

    def __init__(self, digested: io.RawIOBase | io.BytesIO) -> None:
        self._stream = igzip.IGzipFile(fileobj=digested, mode="rb")

    def readinto(self, buffer: memoryview, /) -> int:
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


class Blocks(Protocol):
    """Unpacked bytes in blocks; one may be overwritten by the next."""

    def __iter__(self) -> Iterator[bytes | memoryview]: ...

    def close(self) -> None:
        """No helper touches the file any more."""
        ...


class _StreamBlocks:
    """Blocks of a stream. While one is used, a helper fills the others one after another, until none is free."""

    def __init__(self, stream: Readable, block_bytes: int, helpers: Helpers) -> None:
        self._stream, self._helpers = stream, helpers
        # Pages that are not used cost nothing.
        self._free = [np.empty(block_bytes, np.uint8).data for _ in range(BLOCKS_AHEAD + 1 if helpers.workers > 1 else 1)]
        self._filled: deque[tuple[memoryview, int | Exception]] = deque()
        self._changed = Condition()
        self._task: Task[None] | None = None  # of a helper that fills, or soon will
        self._ended = False
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[memoryview]:
        while True:
            buffer, size = self._next()
            if isinstance(size, Exception):
                raise size
            if not size:
                return
            if size == len(buffer):  # else it has ended, as a rule
                self._go_on()
            yield buffer[:size]
            with self._changed:
                self._free.append(buffer)

    def close(self) -> None:
        self._ended = True
        if task := self._task:
            task.abandon()

    def _go_on(self) -> None:
        if self._helpers.workers > 1 and not self._task and self._free and not self._ended:
            self._task = Task(self._fill_free)
            self._helpers.take(self._task)

    def _next(self) -> tuple[memoryview, int | Exception]:
        """The next block, filled by this thread where no helper has begun."""
        with self._changed:
            while self._task and not self._filled:
                if self._task.withdraw():
                    self._task = None
                else:
                    self._changed.wait()
        if not self._filled:
            self._fill_one()
        return self._filled.popleft()

    def _fill_free(self) -> None:
        while True:
            self._fill_one()
            with self._changed:
                self._changed.notify()
                if self._ended or not self._free:
                    self._task = None
                    return

    def _fill_one(self) -> None:
        buffer = self._free.pop()
        try:
            size: int | Exception = self._fill(buffer)
        except Exception as error:
            size = error
        if not size or isinstance(size, Exception):
            self._ended = True
        self._filled.append((buffer, size))

    def _fill(self, buffer: memoryview) -> int:
        """Bytes read; what comes before an error is given first. Readers return less than asked for, and each block has a price."""
        if self._error is not None:
            raise self._error
        size = 0
        try:
            while size < len(buffer) and (read := self._stream.readinto(buffer[size:])):
                size += read
        except Exception as error:
            if size == 0:
                raise
            self._error = error
        return size


class _BgzfBlocks:
    """Unpacked bytes of a BGZF file: its blocks say how long they are, so groups of them are inflated side by side."""

    def __init__(self, digested: DigestedFile, block_bytes: int, helpers: Helpers) -> None:
        self._file, self._block_bytes, self._helpers = digested, block_bytes, helpers
        self._packed = b""  # read, and not yet in a group
        self._groups: deque[Task[memoryview]] = deque()

    def __iter__(self) -> Iterator[memoryview]:
        at_once = 2 * self._helpers.workers - 1
        more = True
        while more or self._groups:
            while more and len(self._groups) < at_once:
                group, size = self._next_group()
                more = bool(group)
                if more:
                    self._groups.append(self._helpers.start(partial(_inflate, group, size)))
            if self._groups:
                yield self._groups.popleft().result()
        # A block that is cut, or a member of plain gzip: the rest is read as any gzip file.
        buffer = memoryview(bytearray(self._block_bytes))
        rest = _Gzip(_Joined(self._packed, self._file))
        while self._packed and (size := rest.readinto(buffer)):
            yield buffer[:size]

    def close(self) -> None:
        for task in self._groups:
            task.abandon()

    def _next_group(self) -> tuple[bytes, int]:
        """Whole blocks, and their bytes when unpacked; nothing where none follows."""
        at = size = 0
        while size < self._block_bytes:
            length = _bgzf_length(self._packed, at)
            if at + length > len(self._packed):
                data = self._file.read(READ_BYTES)
                if not data:
                    break
                self._packed += data
                continue
            if not length:
                break
            size += int.from_bytes(self._packed[at + length - 4 : at + length], "little")
            at += length
        group, self._packed = self._packed[:at], self._packed[at:]
        return group, size


def _bgzf_length(data: bytes, at: int) -> int:
    """Of the block that begins at byte `at`, as far as it is there: the bytes needed to tell; 0 for what is no block."""
    head = data[at : at + HEAD_BYTES]
    if len(head) < HEAD_BYTES:
        return HEAD_BYTES
    if head[:4] != BGZF_MAGIC or head[12:16] != BGZF_FIELD:
        return 0
    length = int.from_bytes(head[16:18], "little") + 1
    end = data[at + length - 4 : at + length]
    return length if length > HEAD_BYTES and (len(end) < 4 or int.from_bytes(end, "little") <= BGZF_BLOCK) else 0


def _inflate(group: bytes, size: int) -> memoryview:
    stream = _Gzip(io.BytesIO(group))
    unpacked = np.empty(size + 1, np.uint8).data  # one more, so that the last checksum is looked at
    filled = 0
    while read := stream.readinto(unpacked[filled:]):
        filled += read
    return unpacked[:filled]


class _Joined(io.RawIOBase):
    """Some bytes, then those of a file."""

    def __init__(self, data: bytes, file: DigestedFile) -> None:
        self._data, self._file = memoryview(data), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._data:
            return self._file.readinto(buffer)
        size = min(len(self._data), len(buffer))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size


def open_blocks(raw: io.FileIO, digested: DigestedFile, block_bytes: int, helpers: Helpers) -> Blocks:
    """The same bytes as `open_unpacked` in blocks of about `block_bytes`, unpacked ahead by `helpers`; to be closed before the file is."""
    stream = open_unpacked(raw, digested)
    if isinstance(stream, _Gzip) and os.pread(raw.fileno(), HEAD_BYTES, 0)[12:16] == BGZF_FIELD:
        return _BgzfBlocks(digested, block_bytes, helpers)
    return _StreamBlocks(stream, block_bytes, helpers)


def open_unpacked(raw: io.FileIO, digested: DigestedFile) -> Readable:
    """The unpacked bytes of the file `raw`, which `digested` wraps; the file itself where it is not packed.

    Raises PackedError, while it is read too, where the packed data is cut or damaged.
    """
    head = raw.read(HEAD_BYTES)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is _Gzip and head[12:14] == b"BC":
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
    b"\x1f\x8b": _Gzip,
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
