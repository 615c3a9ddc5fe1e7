"""Files of a shard while it is made: bases, BED lines and lengths side by side, the shard's own and those of parts scanned early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.shards.writer import FileWriter, SpooledWriter

STAGED_KINDS = ("bin", "bed", "lengths")
"""`lengths`: int32 for each document."""
BED_LINES = 1 << 14


def staged_file(folder: Path, stem: str, kind: str) -> Path:
    """Where the staged bytes of one kind lie."""
    return folder / (f"{stem}.{kind}" if stem else kind)


class Room:
    """Memory that all parts share."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether `size` bytes were free, which they then are not any more."""
        with self._lock:
            fits = size <= self._free
            self._free -= size if fits else 0
            return fits

    def give(self, size: int) -> None:
        """Take these bytes back."""
        with self._lock:
            self._free += size


class StagedFiles:
    """Bases, BED lines and lengths of documents, written side by side: the files of the shard itself, which are kept, and put on disk."""

    stem = ""

    def __init__(self, folder: Path) -> None:
        self._use(FileWriter(staged_file(folder, "", kind), keep=True) for kind in STAGED_KINDS)

    def _use(self, writers: Iterable[FileWriter]) -> None:
        self.bases, self.lines, self.lengths = self.all = tuple(writers)
        self.marks = [writer.mark() for writer in self.all]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for writer in self.all:
                stack.enter_context(writer)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def begin(self) -> None:
        """What is written from here on is of one source."""
        self.marks = [writer.mark() for writer in self.all]
        for writer in self.all:
            writer.begin_section()

    def make_room(self, size: int) -> None:
        """`size` bytes more are about to be written; nobody writes at this moment."""

    def take_back(self) -> None:
        """Remove what was written of the source."""
        for writer, mark in zip(self.all, self.marks, strict=True):
            writer.rewind(mark)
            writer.cut()

    def add(self, names: Sequence[str], first: int, documents: NDArray[np.int64], assembly: str) -> None:
        """Write lines and lengths of `documents` (n, 3): record, start, end; `names` are those of the records from `first` on."""
        for at in range(0, len(documents), BED_LINES):
            rows = documents[at : at + BED_LINES]
            lines = [
                f"{names[record - first]}\t{start}\t{end}\t{assembly}\t0\t+\t{start}\t{start}\t0\t1\t{end - start}\t0\n"
                for record, start, end in rows.tolist()
            ]
            self.lines.write("".join(lines).encode())
            self.lengths.write((rows[:, 2] - rows[:, 1]).astype("<i4").tobytes())


class PartFiles(StagedFiles):
    """What is scanned before its turn: in memory; where that is full, in the shard if its turn has come by then, else in files."""

    def __init__(self, folder: Path, stem: str, room: Room, shard: StagedFiles, is_turn: Callable[[], bool]) -> None:
        self.stem = stem
        self._room, self._taken, self._shard, self._is_turn = room, 0, shard, is_turn
        self._spools = [SpooledWriter(staged_file(folder, stem, kind)) for kind in STAGED_KINDS]
        self._use(self._spools)

    @property
    def in_memory(self) -> bool:
        """Nothing of it is in any file."""
        return self._spools[0].in_memory and self.all[0] is self._spools[0]

    def make_room(self, size: int) -> None:
        """Leave the memory where there is no room in it for `size` bytes more."""
        if not self.in_memory:
            return
        wanted = sum(writer.size for writer in self.all) + size - self._taken
        if wanted <= 0:
            return
        if self._room.take(wanted):
            self._taken += wanted
        elif self._is_turn():
            self.stem = ""
            self.move_to(self._shard)
            self._use(self._shard.all)
            self.marks = self._shard.marks
        else:
            self.spill()

    def spill(self) -> None:
        """From here on in files of its own."""
        for spool in self._spools:
            spool.spill()
        self._give_back()

    def move_to(self, files: StagedFiles) -> dict[str, tuple[int, int, str]]:
        """Append what is in memory to `files`: the places it has there."""
        files.begin()
        for writer, spool in zip(files.all, self._spools, strict=True):
            spool.pour_into(writer)
            writer.flush()
        self._give_back()
        return {kind: writer.section() for kind, writer in zip(STAGED_KINDS, files.all, strict=True)}

    def take_back(self) -> None:
        """Remove what was written of the source."""
        super().take_back()
        self._give_back()

    def _give_back(self) -> None:
        self._room.give(self._taken)
        self._taken = 0
