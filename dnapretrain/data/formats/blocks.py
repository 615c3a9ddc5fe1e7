"""Unpacked bytes of a file in blocks, unpacked ahead by other threads: one after another, or, of BGZF, side by side."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from functools import partial
from threading import Condition
from typing import Any, Protocol

import numpy as np

from dnapretrain.data.formats.compression import BGZF_FIELD, HEAD_BYTES, READ_BYTES, DigestedFile, Gzip, Readable, open_unpacked
from dnapretrain.data.formats.helpers import Helpers, Task

BGZF_MAGIC = b"\x1f\x8b\x08\x04"
BGZF_BLOCK = 1 << 16
"""Bytes of a BGZF block at most, packed or not."""
BLOCKS_AHEAD = 3
"""Of a stream, filled while one is used: readers and scanners take turns in being slow."""


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
            self._task = Task(self._fill_free)  # known before it begins: at its end it forgets itself
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
        rest = Gzip(_Joined(self._packed, self._file))
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
    stream = Gzip(io.BytesIO(group))
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
    if isinstance(stream, Gzip) and os.pread(raw.fileno(), HEAD_BYTES, 0)[12:16] == BGZF_FIELD:
        return _BgzfBlocks(digested, block_bytes, helpers)
    return _StreamBlocks(stream, block_bytes, helpers)
