"""Sequence files to one base shard: scan, cut, write to a staging folder, and rename once all of it is on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.data.formats.fasta import MAX_DOCUMENT, CutPolicy
from dnapretrain.data.formats.inputs import check_readable, find_inputs, strip_suffixes
from dnapretrain.data.shards.assemble import Assembler, Skipped
from dnapretrain.data.shards.encode import check_encoding, pack_staged, packing_notes
from dnapretrain.data.shards.indexed_dataset import index_blocks
from dnapretrain.data.shards.manifest import base_manifest, sum_counts, write_manifest
from dnapretrain.data.shards.packed import ASCII, TWO_BIT
from dnapretrain.data.shards.progress import Meter, OnProgress, TerminalProgress
from dnapretrain.data.shards.scan import Piece, Settings, Source
from dnapretrain.data.shards.selection import Selection, check_intervals, read_bed
from dnapretrain.data.shards.writer import FileWriter, Staging, commit, lasting_staging
from dnapretrain.errors import ConfigError, DataError

ON_ERROR = ("stop", "skip")


def preprocess(
    inputs: Sequence[str | Path],
    output: str | Path,
    workers: int = 1,
    min_n_run: int = 10,
    min_length: int = 1,
    assembly: str | None = None,
    sha256: bool = False,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    max_n_fraction: float | None = None,
    include_bed: str | Path | None = None,
    exclude_bed: str | Path | None = None,
    on_error: str = "stop",
    restart: bool = False,
    encoding: str = ASCII,
) -> dict[str, Any]:
    """Write the shard `output`.bin, .idx, .bed, .json and return its manifest.

    `inputs` are files, folders, patterns or `@lists` (`find_inputs`) of FASTA, FASTQ, 2bit, GenBank, EMBL, or
    GFF3 with ##FASTA, packed or not (`open_source`). `workers` threads read them, several at the same time and
    each in several steps; the bytes written do not depend on it. Documents are cut at the edges of `include_bed` (only what lies inside
    stays) and `exclude_bed` (only what lies outside); then those shorter than `min_length`, then those with a share of N
    above `max_n_fraction` are left out. Of an input with more than 99.9 % lower-case letters, lower case is no
    mask: it is written in upper case and marked `all_lower_case` in the manifest. With `on_error="skip"` an input
    that cannot be used is left out as a whole and listed under `skipped` of the manifest. With `encoding="2bit"` the bases
    are packed once all are there (1.25 bytes each on disk until then) and `output`.exceptions is written too.

    A run that is stopped, by kill -9 or by an input that is refused too, leaves the inputs it has finished in a folder beside the
    output. The next run takes over those that have the same size, time and settings and whose bytes are whole; `restart` throws them
    away.

    What should be known (inputs taken over, skipped, made upper case, qualities left out) is said on stderr, and progress where
    that is a terminal, or to `progress`. Raises ConfigError for settings, DataError for inputs and outputs that cannot be used.
    """
    output = Path(output)
    _check_settings(workers, min_n_run, min_length, max_n_fraction, on_error)
    check_encoding(encoding)
    include, exclude = (read_bed(Path(path)) if path is not None else None for path in (include_bed, exclude_bed))
    selection = Selection(include, exclude, max_n_fraction)
    settings = Settings(CutPolicy(min_n_run, min_length), selection, sha256, on_error)
    found, notes = _find_sources([Path(item) for item in inputs], assembly, on_error)
    sources = [item for item in found if isinstance(item, Source)]
    on_terminal = TerminalProgress() if progress is None and sys.stderr.isatty() else None
    meter = Meter(sum(source.size for source in sources), progress or on_terminal)
    outcomes: list[Piece | Skipped] = []
    try:
        with lasting_staging(output, overwrite) as staging:
            try:
                if restart:
                    staging.clear()
                assembler = Assembler(staging, sources, settings, meter, _say)
                made = iter(assembler.run(workers))
                outcomes = [item if isinstance(item, Skipped) else next(made) for item in found]
                notes += _notes(outcomes)
                manifest = _write_rest(staging, assembler.files, settings, outcomes, encoding)
                notes += packing_notes(manifest)
            except BaseException as error:
                if isinstance(error, DataError) and outcomes:
                    staging.keep = False  # refused as a whole: other settings are needed, and with them all is read again
                if staging.keep:
                    notes.append(f"finished inputs are kept in {staging.folder}: the same command goes on from there")
                raise
            commit(staging.folder, output)
    finally:
        if on_terminal:
            on_terminal.end()
        for note in notes:
            _say(note)
    return manifest


def _say(note: str) -> None:
    print(f"dnapretrain: {note}", file=sys.stderr)


def _write_rest(
    staging: Staging, files: dict[str, Any], settings: Settings, outcomes: Sequence[Piece | Skipped], encoding: str
) -> dict[str, Any]:
    """Write index and manifest beside bases and lines."""
    pieces = [item for item in outcomes if isinstance(item, Piece)]
    skipped = [item for item in outcomes if isinstance(item, Skipped)]
    _check_result(pieces, skipped, settings.selection)
    lengths = np.memmap(staging.folder / "lengths", "<i4", "r")
    with FileWriter(staging.folder / "idx") as idx_writer:
        for block in index_blocks(lengths):
            idx_writer.write(block)
    manifest = base_manifest(
        {"min_n_run": settings.policy.min_n_run, "min_length": settings.policy.min_length, "max_length": settings.policy.max_length}
        | settings.selection.cleaning(),
        [item.source for item in pieces],
        [{"path": str(item.path), "error": item.error} for item in skipped],
        (int(lengths.max()), int(lengths.min())),
        {"bin": files["bin"], "idx": idx_writer.entry(), "bed": files["bed"]},
    )
    if encoding == TWO_BIT:
        manifest = pack_staged(staging.folder, manifest)
    write_manifest(staging.folder, manifest)
    return manifest


def _check_result(pieces: Sequence[Piece], skipped: Sequence[Skipped], selection: Selection) -> None:
    if not pieces:
        raise DataError(f"none of {len(skipped)} input(s) could be used; the first: {skipped[0].error}")
    for bed in (selection.include, selection.exclude):
        if bed is not None:
            check_intervals(bed, [(Path(item.source["path"]), item.source["assembly"], item.lengths) for item in pieces])
    if not any(item.source["counts"]["documents"] for item in pieces):
        raise DataError(f"nothing is left of {len(pieces)} input(s): {_dropped(pieces, selection)}")


def _check_settings(workers: int, min_n_run: int, min_length: int, max_n_fraction: float | None, on_error: str) -> None:
    for name, value in (("--workers", workers), ("--min-n-run", min_n_run), ("--min-length", min_length)):
        if value < 1:
            raise ConfigError(f"{name} = {value} is below 1. Give a positive number")
    if min_length > MAX_DOCUMENT // 2:
        raise ConfigError(f"--min-length = {min_length} exceeds {MAX_DOCUMENT // 2} bases, half the longest document. Lower it")
    if max_n_fraction is not None and not 0 <= max_n_fraction <= 1:
        raise ConfigError(f"--max-n-fraction = {max_n_fraction} is not a share. Give a number from 0 to 1")
    if on_error not in ON_ERROR:
        raise ConfigError(f"--on-error = {on_error} is not known. Give one of {', '.join(ON_ERROR)}")


def _find_sources(inputs: Sequence[Path], assembly: str | None, on_error: str) -> tuple[list[Source | Skipped], list[str]]:
    """The inputs, in order, with those that cannot even be opened; and what should be said about files left out of folders."""
    paths, notes = find_inputs(inputs)
    path_of: dict[str, Path] = {}
    for path in paths:
        name = assembly or strip_suffixes(path.name)
        if name in path_of:
            raise DataError(
                f"{path}: assembly '{name}' is the name of {path_of[name]} already. Rename a file, or join files of one assembly"
            )
        if ":" in name or not name.isprintable():
            raise DataError(f"{path}: assembly name {name!r} holds ':' or a control character. Give another one with --assembly")
        path_of[name] = path
    found: list[Source | Skipped] = []
    for name, path in path_of.items():
        try:
            size = check_readable(path)
            found.append(Source(path, name, size, path.stat().st_mtime_ns))
        except DataError as error:
            if on_error == "stop":
                raise
            found.append(Skipped(path, str(error)))
    return found, notes


def _dropped(pieces: Sequence[Piece], selection: Selection) -> str:
    counts = sum_counts(item.source["counts"] for item in pieces)
    dropped = counts["dropped_bases"]
    text = f"of {counts['total_bases']} bases, {dropped['n_run']} lie in N runs and {dropped['short']} in documents that are too short"
    way_out = "Lower --min-length or raise --min-n-run"
    if selection.is_active:
        text += f", {dropped.get('regions', 0)} are left out by BED files and {dropped.get('n_fraction', 0)} in documents with too much N"
        way_out += ", or give other intervals or a larger --max-n-fraction"
    return f"{text}. {way_out}"


def _notes(outcomes: Sequence[Piece | Skipped]) -> list[str]:
    """What the user should know though nothing failed."""
    scanned = [item for item in outcomes if isinstance(item, Piece)]
    skipped = [item for item in outcomes if isinstance(item, Skipped)]
    notes = [f"skipped: {item.error}" for item in skipped]
    if skipped:
        notes.append(f"{len(skipped)} of {len(skipped) + len(scanned)} input(s) skipped (--on-error skip), listed in the manifest")
    reads = [item.source for item in scanned if item.source.get("format") == "FASTQ"]
    if reads:
        records = sum(source["counts"]["records"] for source in reads)
        notes.append(f"{len(reads)} FASTQ input(s), {records:,} reads: their qualities are not kept")
    notes += [
        f"{item.source['path']}: over 99.9 % lower case, so lower case is no mask: written in upper case (all_lower_case in the manifest)"
        for item in scanned
        if item.source.get("all_lower_case")
    ]
    return notes
