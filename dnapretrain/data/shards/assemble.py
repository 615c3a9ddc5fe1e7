"""Staged pieces to a shard: all bases, lines and lengths one after another, then index and manifest."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dnapretrain.data.formats.compression import unpacks_alone
from dnapretrain.data.formats.helpers import Helpers
from dnapretrain.data.shards.journal import Journal
from dnapretrain.data.shards.progress import Meter
from dnapretrain.data.shards.scan import Piece, Settings, Source, scan
from dnapretrain.data.shards.staged import STAGED_KINDS, PartFiles, Room, StagedFiles, staged_file
from dnapretrain.data.shards.writer import Staging, read_stretch
from dnapretrain.errors import DataError

Say = Callable[[str], None]
PART_MEMORY = 1 << 24
"""Bytes, of all inputs together that are scanned before their turn; what is more goes to files."""
SCANNED_AHEAD = 1 << 20
"""Bytes of an input; smaller ones take less time than it costs to hand them to a thread."""
SYNC_SECONDS = 10.0
"""Finished pieces are put on disk at most so often."""


@dataclass(frozen=True)
class Skipped:
    """An input that was left out."""

    path: Path
    error: str


class Assembler:
    """Brings the pieces of all sources together in order of the sources, whoever made them: an earlier run, this thread or another."""

    def __init__(self, staging: Staging, sources: Sequence[Source], settings: Settings, meter: Meter, say: Say) -> None:
        self._staging, self._folder = staging, staging.folder
        self._sources, self._settings, self._meter, self._say = sources, settings, meter, say
        self._journal = Journal(self._folder, settings)
        self._next_part = itertools.count(1)
        self._room = Room(PART_MEMORY)
        self._assembled = 0
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self.files: dict[str, dict[str, Any]] = {}
        """Size and digest of what was assembled, by kind."""

    def run(self, workers: int) -> list[Piece | Skipped]:
        """What became of each source. The staged files of the shard hold the pieces one after another."""
        with StagedFiles(self._folder) as files, Helpers(workers) as helpers:
            kept = self._take_over(files)
            todo = [number for number in range(len(self._sources)) if number not in kept]
            large = [number for number in todo if self._sources[number].size >= SCANNED_AHEAD]
            width = self._width(workers, large)
            pool = ThreadPoolExecutor(width)
            # Threads, not processes: inflating, scanning and hashing run with the GIL released.
            futures = {number: pool.submit(self._scan, number, files, helpers) for number in large} if width > 1 else {}
            try:
                outcomes = [self._append(number, kept, futures, files, helpers) for number in range(len(self._sources))]
            except BaseException:
                self._meter.stop()
                pool.shutdown(wait=True, cancel_futures=True)  # before the files are closed
                raise
            pool.shutdown()
        self.files = {kind: writer.entry() for kind, writer in zip(STAGED_KINDS, files.all, strict=True)}
        return outcomes

    def _width(self, workers: int, numbers: Sequence[int]) -> int:
        """Sources scanned at the same time: two threads for each, of which one unpacks and one scans, while there is enough to do.

        What is scanned before its turn is written twice: the fewer at the same time, the better.
        """
        alone = workers > 1 and any(unpacks_alone(self._sources[number].path) for number in numbers)
        return max(1, min(workers if alone else (workers + 1) // 2, len(numbers)))

    def _append(
        self,
        number: int,
        kept: dict[int, Piece],
        futures: dict[int, Future[tuple[Piece | Skipped, PartFiles | None]]],
        files: StagedFiles,
        helpers: Helpers,
    ) -> Piece | Skipped:
        part: PartFiles | None = None
        if number in kept:
            outcome: Piece | Skipped = kept[number]
        elif number in futures:
            outcome, part = futures.pop(number).result()
        else:
            outcome, part = self._scan(number, files, helpers)
        if isinstance(outcome, Piece) and outcome.stem:
            outcome = self._move(outcome, part, files)
        with self._lock:
            self._assembled = number + 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            for writer in files.all:
                writer.sync()
            self._journal.sync()
            self._synced = time.monotonic()
        return outcome

    def _scan(self, number: int, files: StagedFiles, helpers: Helpers) -> tuple[Piece | Skipped, PartFiles | None]:
        """Scan a source straight into the files of the shard where all before it are there, else into a part of its own."""
        with helpers.slots:
            if self._is_turn(number):
                return self._try_scan(self._sources[number], files, helpers), None
            with self._part(files, lambda: self._is_turn(number)) as part:
                return self._try_scan(self._sources[number], part, helpers), part

    def _part(self, files: StagedFiles, is_turn: Callable[[], bool]) -> PartFiles:
        with self._lock:
            return PartFiles(self._folder, f"part-{next(self._next_part)}", self._room, files, is_turn)

    def _is_turn(self, number: int) -> bool:
        with self._lock:
            return self._assembled == number

    def _try_scan(self, source: Source, files: StagedFiles, helpers: Helpers) -> Piece | Skipped:
        try:
            piece = scan(source, self._settings, files, self._meter, helpers)
        except DataError as error:
            if self._settings.on_error == "stop":
                raise
            files.take_back()
            return Skipped(source.path, str(error))
        if not (isinstance(files, PartFiles) and files.in_memory):
            self._finished(piece)
        return piece

    def _finished(self, piece: Piece) -> None:
        with self._lock:
            self._journal.add(piece)
            self._staging.keep = True

    def _move(self, piece: Piece, part: PartFiles | None, files: StagedFiles) -> Piece:
        """Append a part to the files of the shard, and remove it."""
        if part and part.in_memory:
            moved = replace(piece, stem="", places=part.move_to(files))
            self._finished(moved)
            return moved
        moved = copy_piece(self._folder, piece, files)
        self._finished(moved)
        for kind in STAGED_KINDS:
            staged_file(self._folder, piece.stem, kind).unlink()
        return moved

    def _take_over(self, files: StagedFiles) -> dict[int, Piece]:
        """What an earlier run has finished and is whole; `files` then end with the last piece that is in its place."""
        found, notes = self._journal.reusable(self._sources)
        damaged = len(found)
        kept: dict[int, Piece] = {}
        for number in range(len(self._sources)):
            if number not in found or not _take_over_in_place(found[number], files):
                break
            kept[number] = found.pop(number)
        self._assembled = len(kept)
        taken = (path.name.split(".")[0].removeprefix("part-") for path in self._folder.glob("part-*"))
        self._next_part = itertools.count(1 + max((int(name) for name in taken if name.isdecimal()), default=0))
        for number, piece in found.items():
            if self._journal.whole(piece):
                kept[number] = piece if piece.stem else self._carry_out(piece, files)
        damaged -= len(kept)
        self._journal.rewrite(kept.values())
        for writer in files.all:
            writer.cut()
        if damaged:
            notes.append(f"of those that an earlier run had finished, {damaged} are damaged or cut")
        if kept:
            self._staging.keep = True
            notes.insert(0, f"goes on where an earlier run was stopped: {len(kept)} of {len(self._sources)} input(s) are finished already")
            pieces = [piece.source for piece in kept.values()]
            self._meter.keep(sum(source["size"] for source in pieces), sum(source["counts"]["kept_bases"] for source in pieces))
        for note in notes:
            self._say(note)
        return kept

    def _carry_out(self, piece: Piece, files: StagedFiles) -> Piece:
        """Give a piece that is not in its place files of its own."""
        with self._part(files, lambda: False) as part:
            part.spill()
            return copy_piece(self._folder, piece, part)


def _take_over_in_place(piece: Piece, files: StagedFiles) -> bool:
    if piece.stem or any(piece.places[kind][0] != writer.size for kind, writer in zip(STAGED_KINDS, files.all, strict=True)):
        return False
    marks = [writer.mark() for writer in files.all]
    if all(writer.take_over(*piece.places[kind][1:]) for kind, writer in zip(STAGED_KINDS, files.all, strict=True)):
        return True
    for writer, mark in zip(files.all, marks, strict=True):
        writer.rewind(mark)
    return False


def copy_piece(folder: Path, piece: Piece, files: StagedFiles) -> Piece:
    """Append the staged bytes of a piece to `files`. Raises RuntimeError where they are not those that were written."""
    places = {}
    for kind, writer in zip(STAGED_KINDS, files.all, strict=True):
        start, size, digest = piece.places[kind]
        writer.begin_section()
        for data in read_stretch(staged_file(folder, piece.stem, kind), start, size):
            writer.write(data)
        writer.flush()
        places[kind] = writer.section()
        if places[kind][1:] != (size, digest):
            raise RuntimeError(f"{staged_file(folder, piece.stem, kind)}: changed since it was written")
    return replace(piece, stem=files.stem, places=places)
