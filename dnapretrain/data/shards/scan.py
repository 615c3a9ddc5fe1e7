"""One sequence file to its part of a shard: bases, BED lines and lengths, in files that grow as it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.fasta import Block, CutPolicy, FastaFile
from dnapretrain.data.formats.helpers import Helpers, Task
from dnapretrain.data.shards.manifest import letter_counts
from dnapretrain.data.shards.progress import Meter
from dnapretrain.data.shards.selection import Selection, select
from dnapretrain.data.shards.staged import STAGED_KINDS, StagedFiles
from dnapretrain.data.shards.writer import FileWriter

NEVER_CUT = 1 << 62
WRITTEN_AT_ONCE = 1 << 17
"""Bytes that are written sooner than another thread is woken."""
ALL_LOWER_PER_MILLE = 999
"""More lower-case letters than this, of a thousand, and lower case is no mask."""


@dataclass(frozen=True)
class Settings:
    """How each input is read."""

    policy: CutPolicy
    selection: Selection
    sha256: bool
    on_error: str


@dataclass(frozen=True)
class Source:
    """An input, as it was when the run began."""

    path: Path
    assembly: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Piece:
    """What one input became."""

    source: dict[str, Any]
    """As the manifest holds it."""
    mtime_ns: int
    stem: str
    """The staged files that hold it: empty for those of the shard itself, else those of a part."""
    places: dict[str, tuple[int, int, str]]
    """Start, size and XXH3-128 in each of the staged files."""
    lengths: dict[str, int]
    """Of the contigs that the BED files name."""


class _WriteBehind:
    """Writes and digests one block while the next is scanned."""

    def __init__(self, files: StagedFiles, helpers: Helpers) -> None:
        self._files, self._helpers = files, helpers
        self._task: Task[None] | None = None

    def write(self, data: memoryview) -> None:
        self.wait()
        self._files.make_room(len(data))
        writer = self._files.bases
        if self._helpers.workers == 1 or len(data) < WRITTEN_AT_ONCE:
            writer.write(data)
        else:
            self._task = self._helpers.start(lambda: writer.write(data))

    def wait(self) -> None:
        task, self._task = self._task, None
        if task:
            task.result()

    def abandon(self) -> None:
        if self._task:
            self._task.abandon()


class _Tally:
    """What is summed over the blocks of a source."""

    def __init__(self) -> None:
        self.records = self.empty_records = 0
        self._totals = np.zeros(len(_core.RECORD_COUNTS), np.int64)

    def add(self, block: Block) -> None:
        self._totals += block.counts.sum(axis=0)
        self.records += len(block.headers)
        self.empty_records += int((bases_of_records(block) == 0).sum())

    def counts(self) -> dict[str, Any]:
        total = dict(zip(_core.RECORD_COUNTS, self._totals.tolist(), strict=True))
        return {
            "records": self.records,
            "empty_records": self.empty_records,
            "documents": total["documents"],
            "dropped_documents": {"short": total["short_documents"]},
            "total_bases": total["total"],
            "kept_bases": total["kept"],
            "dropped_bases": {"n_run": total["n_run"], "short": total["short_bases"]},
            "lower_case": total["lower_case"],
            "n": total["n"],
            "ambiguous": total["ambiguous"],
            "u_converted": total["u_converted"],
        }


def bases_of_records(block: Block) -> NDArray[np.int64]:
    """Bases of each record that ended."""
    return block.counts[:, _core.RECORD_COUNTS.index("total")]


def scan(source: Source, settings: Settings, files: StagedFiles, meter: Meter, helpers: Helpers) -> Piece:
    """Append the documents of `source` to `files`. Raises DataError where it cannot be used; `files` then hold a beginning of it."""
    settings = replace(settings, selection=settings.selection.within(source.assembly))
    selection, policy = settings.selection, settings.policy
    # Regions are chosen from whole segments; what is still too long is cut after that.
    fasta = FastaFile(source.path, replace(policy, max_length=NEVER_CUT) if selection.is_active else policy, settings.sha256, helpers)
    tally, chosen, behind = _Tally(), _Chosen(), _WriteBehind(files, helpers)
    files.begin()
    read = 0
    try:
        for block in fasta.blocks():
            behind.write(block.bases.data)
            names = [name for name, _ in block.headers]
            if selection.is_active:
                chosen.add(names, block)
            elif len(block.documents):
                files.add([*names, block.record_name], tally.records, block.documents, source.assembly)
            tally.add(block)
            meter.add(fasta.bytes_read - read, len(block.bases))
            read = fasta.bytes_read
        behind.wait()
    finally:
        behind.abandon()
    counts = tally.counts()
    all_lower_case = counts["lower_case"] * 1000 > counts["kept_bases"] * ALL_LOWER_PER_MILLE
    mark = files.marks[0]  # only now: files may have changed
    if files.bases.size - mark[0] == counts["kept_bases"] and (selection.is_active or all_lower_case):
        documents = _select(settings, chosen, all_lower_case, counts, files.bases, mark)
        if selection.is_active:
            files.add(chosen.contigs, 0, documents, source.assembly)
    if files.bases.size - mark[0] != counts["kept_bases"]:
        raise RuntimeError(f"{source.path}: wrote {files.bases.size - mark[0]} bases but counted {counts['kept_bases']}")
    for writer in files.all:
        writer.flush()
    places = {kind: writer.section() for kind, writer in zip(STAGED_KINDS, files.all, strict=True)}
    entry = _entry(source, fasta, all_lower_case) | {"counts": counts}
    return Piece(entry, source.mtime_ns, files.stem, places, chosen.lengths(selection))


class _Chosen:
    """What a selection needs to know of the whole source: contigs, their lengths, documents."""

    def __init__(self) -> None:
        self.contigs: list[str] = []
        self._documents = [np.zeros((0, 3), np.int64)]
        self._bases = [np.zeros(0, np.int64)]

    def add(self, names: list[str], block: Block) -> None:
        self.contigs += names
        self._documents.append(block.documents)
        self._bases.append(bases_of_records(block))

    def documents(self) -> NDArray[np.int64]:
        return np.concatenate(self._documents)

    def lengths(self, selection: Selection) -> dict[str, int]:
        named = {contig for bed in (selection.include, selection.exclude) if bed for contig in bed.intervals}
        if not named:
            return {}
        return {
            contig: length for contig, length in zip(self.contigs, np.concatenate(self._bases).tolist(), strict=True) if contig in named
        }


def _select(
    settings: Settings, chosen: _Chosen, upper_case: bool, counts: dict[str, Any], writer: FileWriter, mark: tuple[int, Any]
) -> NDArray[np.int64]:
    """Leave out what the selection does not allow; `counts` change with it."""
    selection, policy = settings.selection, settings.policy
    # Where only letters change, all bases are as good as one document.
    documents = chosen.documents() if selection.is_active else np.array([[0, 0, counts["kept_bases"]]])
    selected = select(selection, chosen.contigs, documents, policy.min_length, policy.max_length, upper_case, writer, mark)
    letters = selected.letters
    if selection.is_active:
        counts["documents"] = len(selected.documents)
    counts["kept_bases"] = int(letters.sum())
    counts |= letter_counts(letters)
    counts["dropped_bases"]["short"] += selected.short
    counts["dropped_documents"]["short"] += selected.short_documents
    if selection.has_intervals:
        counts["dropped_bases"]["regions"] = selected.regions
    if selection.max_n_fraction is not None:
        counts["dropped_bases"]["n_fraction"] = selected.n_fraction
        counts["dropped_documents"]["n_fraction"] = selected.n_fraction_documents
    if counts["kept_bases"] + sum(counts["dropped_bases"].values()) != counts["total_bases"]:
        raise RuntimeError(f"kept and dropped bases do not add up to those read: {counts}")
    return selected.documents


def _entry(source: Source, fasta: FastaFile, all_lower_case: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": str(source.path), "assembly": source.assembly, "size": fasta.bytes_read, "xxh3_128": fasta.xxh3_128}
    if fasta.sha256:
        entry["sha256"] = fasta.sha256
    if fasta.format != "FASTA":
        entry["format"] = fasta.format
    if all_lower_case:
        entry["all_lower_case"] = True
    return entry
