"""UCSC .2bit files, either byte order, as FASTA text: contig by contig, a piece at a time.

Four bases to a byte (T 0, C 1, A 2, G 3, the first base in the high bits), blocks of N, and blocks of lower
case. Version 0 holds offsets in 32 bits, version 1 in 64.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.formats.compression import DigestedFile

MAGICS = {b"\x43\x27\x41\x1a": "<", b"\x1a\x41\x27\x43": ">"}
PIECE = 1 << 20
"""Bases decoded at a time; a multiple of 4."""
QUADS: NDArray[np.uint32] = np.frombuffer(bytes(itertools.chain(*itertools.product(b"TCAG", repeat=4))), np.uint32)
"""The four letters of each byte, in the order of memory."""


@dataclass(frozen=True)
class _Blocks:
    """Stretches of a contig that do not overlap, in order."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def within(self, start: int, end: int) -> NDArray[np.bool_] | None:
        """Which of the bases [start, end) they cover; None for none."""
        first, last = np.searchsorted(self.ends, start, "right"), np.searchsorted(self.starts, end, "left")
        if first >= last:
            return None
        inner = np.clip(np.stack([self.starts[first:last], self.ends[first:last]], axis=1).ravel(), start, end)
        gaps = np.diff(np.concatenate([[start], inner, [end]]))
        return np.repeat(np.arange(len(gaps)) % 2 == 1, gaps)


def two_bit_as_fasta(file: DigestedFile) -> Iterator[bytes | memoryview]:
    """FASTA text of a .2bit file, one line for each contig. Raises ValueError, with the record, for one that is cut or damaged."""
    reader = _Reader(file)
    for name, offset in reader.index():
        yield b">" + name + b"\n"
        yield from reader.contig(name, offset)
        yield b"\n"
    file.read_up_to(None)


class _Reader:
    def __init__(self, file: DigestedFile) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._order = MAGICS[self._read(0, 4, "header")]
        version, self._count, _ = self._integers(4, 3, "header").tolist()
        if version not in (0, 1):
            raise ValueError(f"2bit version {version} is not known (0 and 1 are). Unpack it with twoBitToFa")
        self._offset_bytes = 4 + 4 * version

    def index(self) -> list[tuple[bytes, int]]:
        """Name and place of each contig, in the order of the index."""
        contigs: dict[bytes, int] = {}
        at = 16
        for number in range(1, self._count + 1):
            (length,) = self._read(at, 1, f"index, entry {number}")
            name = self._read(at + 1, length, f"index, entry {number}")
            at += 1 + length
            if not name or not all(0x21 <= byte < 0x7F for byte in name):
                raise ValueError(
                    f"index, entry {number}: the name {name!r} is empty or holds other than printable ASCII: damaged. Fetch it again"
                )
            if name in contigs:
                raise ValueError(f"index, entry {number}: the name '{name.decode()}' is used twice. Rename one of the two records")
            contigs[name] = int(self._integers(at, 1, f"index, entry {number}", self._offset_bytes)[0])
            at += self._offset_bytes
        return list(contigs.items())

    def contig(self, name: bytes, at: int) -> Iterator[memoryview]:
        """The bases of the contig whose record begins at byte `at`."""
        what = f"record '{name.decode()}'"
        size = int(self._integers(at, 1, what)[0])
        n_blocks, at = self._blocks(at + 4, size, what)
        masked, at = self._blocks(at, size, what)
        at += 4  # reserved
        self._check(at, (size + 3) // 4, what)
        for start in range(0, size, PIECE):
            end = min(start + PIECE, size)
            packed = np.frombuffer(self._read(at + start // 4, (end - start + 3) // 4, what), np.uint8)
            bases = QUADS[packed].view(np.uint8)[: end - start]
            if (is_n := n_blocks.within(start, end)) is not None:
                bases[is_n] = ord("N")
            if (is_lower := masked.within(start, end)) is not None:
                bases |= is_lower.view(np.uint8) << 5
            self._file.read_up_to(at + end // 4)
            yield bases.data

    def _blocks(self, at: int, size: int, what: str) -> tuple[_Blocks, int]:
        """The block list at byte `at`, and where it ends."""
        count = int(self._integers(at, 1, what)[0])
        starts = self._integers(at + 4, count, what)
        ends = starts + self._integers(at + 4 + 4 * count, count, what)
        if count and (ends[-1] > size or (ends < starts).any() or (starts[1:] < ends[:-1]).any()):
            raise ValueError(f"{what}: blocks overlap or reach beyond its {size} bases: the file is damaged. Fetch it again")
        return _Blocks(starts, ends), at + 4 + 8 * count

    def _integers(self, at: int, count: int, what: str, width: int = 4) -> NDArray[np.int64]:
        return np.frombuffer(self._read(at, count * width, what), f"{self._order}u{width}").astype(np.int64)

    def _read(self, at: int, size: int, what: str) -> bytes:
        self._check(at, size, what)
        return os.pread(self._file.fileno(), size, at)

    def _check(self, at: int, size: int, what: str) -> None:
        if at < 0 or at + size > self._size:
            raise ValueError(f"{what}: reaches byte {at + size}, the file ends at {self._size}: it is truncated or damaged. Fetch it again")
