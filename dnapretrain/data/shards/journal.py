"""What a run has finished, for the run after it: one line of JSON for each piece, in the staging folder.

A line is written when the bytes it speaks of were handed to the system, so it outlives the process; both are synced
now and then. What a crash of the machine makes of that does no harm: a piece is taken over only where the digests of
its bytes are right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from dnapretrain import __version__
from dnapretrain.data.shards.scan import Piece, Settings, Source
from dnapretrain.data.shards.staged import STAGED_KINDS, staged_file
from dnapretrain.data.shards.writer import LOCK, read_stretch, sync_folder

NAME = "journal"
VERSION = 1


def fingerprint(settings: Settings) -> str:
    """Of all that decides what an input becomes, this version of the tool included."""
    what = [VERSION, __version__, asdict(settings.policy), settings.selection.cleaning(), settings.sha256]
    return xxhash.xxh3_128_hexdigest(json.dumps(what, sort_keys=True).encode())


class Journal:
    """The pieces in a staging folder; a later line on the same source counts."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._fingerprint = fingerprint(settings)

    def add(self, piece: Piece) -> None:
        """Write down that `piece` is finished."""
        with self._path.open("ab", buffering=0) as file:
            file.write(self._line(piece))

    def sync(self) -> None:
        """All lines are on disk."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fdatasync(file.fileno())

    def rewrite(self, pieces: Iterable[Piece]) -> None:
        """Forget all but these, and remove files that none of them is in."""
        pieces = list(pieces)
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.writelines(map(self._line, pieces))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        sync_folder(self._folder)
        used = {staged_file(self._folder, stem, kind) for stem in ("", *(piece.stem for piece in pieces)) for kind in STAGED_KINDS}
        for path in self._folder.iterdir():
            if path not in used and path.name not in (LOCK, NAME):
                path.unlink()

    def reusable(self, sources: Sequence[Source]) -> tuple[dict[int, Piece], list[str]]:
        """Pieces of these sources (by number) whose file and settings are the same, bytes not looked at; and what to say of others."""
        lines = self._read()
        found: dict[int, Piece] = {}
        settings = changed = 0
        for number, source in enumerate(sources):
            line = lines.pop(_key(str(source.path), source.assembly), None)
            if line is None:
                continue
            piece = Piece(line["source"], line["mtime_ns"], line["stem"], _places(line["places"]), line["lengths"])
            if line["fingerprint"] != self._fingerprint:
                settings += 1
            elif (piece.source["size"], piece.mtime_ns) != (source.size, source.mtime_ns):
                changed += 1
            else:
                found[number] = piece
        reasons = {
            "were read with other settings or by another version": settings,
            "have changed since": changed,
            "are no inputs of this run": len(lines),
        }
        return found, [f"of those that an earlier run had finished, {count} {what}" for what, count in reasons.items() if count]

    def whole(self, piece: Piece) -> bool:
        """Whether the staged bytes of a piece are there as they were written."""
        return all(self._digest(piece, kind) == piece.places[kind][2] for kind in STAGED_KINDS)

    def _digest(self, piece: Piece, kind: str) -> str | None:
        start, size, _ = piece.places[kind]
        digest, path = xxhash.xxh3_128(), staged_file(self._folder, piece.stem, kind)
        if not path.exists():
            return None
        for data in read_stretch(path, start, size):
            digest.update(data)
        return digest.hexdigest()

    def _line(self, piece: Piece) -> bytes:
        return (json.dumps({"fingerprint": self._fingerprint} | vars(piece)) + "\n").encode()

    def _read(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            for text in self._path.read_bytes().split(b"\n")[:-1]:  # without LF: the run ended while it was written
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                lines[_key(line["source"]["path"], line["source"]["assembly"])] = line
        return lines


def _key(path: str, assembly: str) -> str:
    return f"{assembly}:{Path(path).absolute()}"


def _places(places: dict[str, Sequence[Any]]) -> dict[str, tuple[int, int, str]]:
    return {kind: (start, size, digest) for kind, (start, size, digest) in places.items()}
