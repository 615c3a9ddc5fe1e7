"""Sequence files to one base shard: scan, cut, write to a staging folder, and rename once all of it is on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__, _core
from dnapretrain.data.formats.fasta import MAX_DOCUMENT, CutPolicy, FastaFile
from dnapretrain.data.formats.inputs import check_readable, find_inputs, strip_suffixes
from dnapretrain.data.shards.encode import check_encoding, pack_staged, packing_notes
from dnapretrain.data.shards.indexed_dataset import index_bytes
from dnapretrain.data.shards.packed import ASCII, TWO_BIT
from dnapretrain.data.shards.progress import Meter, OnProgress, TerminalProgress
from dnapretrain.data.shards.selection import Selection, check_intervals, read_bed, select
from dnapretrain.data.shards.shard import FORMAT, FORMAT_VERSION
from dnapretrain.data.shards.writer import FileWriter, commit, staging_folder
from dnapretrain.errors import ConfigError, DataError

COPY_BYTES = 1 << 20
BED_LINES = 1 << 16


NEVER_CUT = 1 << 62
ALL_LOWER_PER_MILLE = 999
"""More lower-case letters than this, of a thousand, and lower case is no mask."""
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class _Settings:
    """How each input is read."""

    policy: CutPolicy
    selection: Selection
    sha256: bool
    on_error: str


@dataclass(frozen=True)
class _Source:
    path: Path
    assembly: str
    size: int


@dataclass(frozen=True)
class _Scanned:
    """What one input became."""

    source: dict[str, Any]
    contigs: list[str]
    documents: NDArray[np.int64]
    """(documents, 3): number of the contig, start, end."""
    lengths: dict[str, int]
    """Of the contigs that the BED files name."""


@dataclass(frozen=True)
class _Skipped:
    """An input that was left out."""

    path: Path
    error: str


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
    encoding: str = ASCII,
) -> dict[str, Any]:
    """Write the shard `output`.bin, .idx, .bed, .json and return its manifest.

    `inputs` are files, folders, patterns or `@lists` (`find_inputs`) of FASTA, FASTQ, 2bit, GenBank, EMBL, or
    GFF3 with ##FASTA, packed or not (`open_source`). `workers` files are read at the same time; the bytes written do
    not depend on it. Documents are cut at the edges of `include_bed` (only what lies inside stays) and
    `exclude_bed` (only what lies outside); then those shorter than `min_length`, then those with a share of N
    above `max_n_fraction` are left out. Of an input with more than 99.9 % lower-case letters, lower case is no
    mask: it is written in upper case and marked `all_lower_case` in the manifest. With `on_error="skip"` an input
    that cannot be used is left out as a whole and listed under `skipped` of the manifest. With `encoding="2bit"` the bases
    are packed once all are there (1.25 bytes each on disk until then) and `output`.exceptions is written too.

    What should be known (inputs skipped, made upper case, qualities left out) is said on stderr, and progress where
    that is a terminal, or to `progress`. Raises ConfigError for settings, DataError for inputs and outputs that cannot be used.
    """
    output = Path(output)
    _check_settings(workers, min_n_run, min_length, max_n_fraction, on_error)
    check_encoding(encoding)
    include, exclude = (read_bed(Path(path)) if path is not None else None for path in (include_bed, exclude_bed))
    selection = Selection(include, exclude, max_n_fraction)
    settings = _Settings(CutPolicy(min_n_run, min_length), selection, sha256, on_error)
    sources, skipped, notes = _find_sources([Path(item) for item in inputs], assembly, on_error)
    on_terminal = TerminalProgress() if progress is None and sys.stderr.isatty() else None
    meter = Meter(sum(source.size for source in sources), progress or on_terminal)
    try:
        with staging_folder(output, overwrite) as staging:
            with FileWriter(staging / "bin") as bin_writer:
                outcomes = _scan_all(sources, settings, workers, bin_writer, meter)
            scanned = [item for item in outcomes if isinstance(item, _Scanned)]
            skipped += [item for item in outcomes if isinstance(item, _Skipped)]
            notes += _notes(scanned, skipped)
            manifest = _write_rest(staging, bin_writer, settings, scanned, skipped, encoding)
            notes += packing_notes(manifest)
            commit(staging, output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}. Free space or choose another --output") from None
    finally:
        if on_terminal:
            on_terminal.end()
        for note in notes:
            print(f"dnapretrain: {note}", file=sys.stderr)
    return manifest


def _write_rest(
    staging: Path,
    bin_writer: FileWriter,
    settings: _Settings,
    scanned: Sequence[_Scanned],
    skipped: Sequence[_Skipped],
    encoding: str,
) -> dict[str, Any]:
    """Write index, BED and manifest beside the bases."""
    if not scanned:
        raise DataError(f"none of {len(skipped)} input(s) could be used; the first: {skipped[0].error}")
    for bed in (settings.selection.include, settings.selection.exclude):
        if bed is not None:
            check_intervals(bed, [(Path(item.source["path"]), item.source["assembly"], item.lengths) for item in scanned])
    lengths = np.concatenate([item.documents[:, 2] - item.documents[:, 1] for item in scanned])
    if len(lengths) == 0:
        raise DataError(f"nothing is left of {len(scanned)} input(s): {_dropped(scanned, settings.selection)}")
    with FileWriter(staging / "idx") as idx_writer:
        idx_writer.write(index_bytes(lengths))
    with FileWriter(staging / "bed") as bed_writer:
        for item in scanned:
            _write_bed(item, bed_writer)
    files = {"bin": bin_writer.entry(), "idx": idx_writer.entry(), "bed": bed_writer.entry()}
    manifest = _manifest(settings, scanned, skipped, lengths, files)
    if encoding == TWO_BIT:
        manifest = pack_staged(staging, manifest)
    with FileWriter(staging / "json") as json_writer:
        json_writer.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return manifest


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


def _find_sources(inputs: Sequence[Path], assembly: str | None, on_error: str) -> tuple[list[_Source], list[_Skipped], list[str]]:
    """The inputs, those that cannot even be opened, and what should be said about the rest."""
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
    sources, skipped = [], []
    for name, path in path_of.items():
        try:
            sources.append(_Source(path, name, check_readable(path)))
        except DataError as error:
            if on_error == "stop":
                raise
            skipped.append(_Skipped(path, str(error)))
    return sources, skipped, notes


def _scan_all(sources: Sequence[_Source], settings: _Settings, workers: int, writer: FileWriter, meter: Meter) -> list[_Scanned | _Skipped]:
    """Scan the inputs, write their bases to `writer` in input order."""
    if workers == 1 or len(sources) <= 1:
        return [_try_scan(source, settings, writer, meter) for source in sources]

    def scan_to_part(source: _Source, part: Path) -> _Scanned | _Skipped:
        with FileWriter(part) as part_writer:
            return _try_scan(source, settings, part_writer, meter)

    # Threads, not processes: inflating, scanning and hashing run with the GIL released.
    parts = [writer.path.with_name(f"part-{number}") for number in range(len(sources))]
    outcomes = []
    with ThreadPoolExecutor(min(workers, len(sources))) as pool:
        futures = [pool.submit(scan_to_part, source, part) for source, part in zip(sources, parts, strict=True)]
        try:
            for future, part in zip(futures, parts, strict=True):
                outcomes.append(future.result())
                with part.open("rb", buffering=0) as file:
                    while data := file.read(COPY_BYTES):
                        writer.write(data)
                part.unlink()
        except BaseException:
            meter.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _try_scan(source: _Source, settings: _Settings, writer: FileWriter, meter: Meter) -> _Scanned | _Skipped:
    mark = writer.mark()
    try:
        return _scan(source, settings, writer, meter)
    except DataError as error:
        if settings.on_error == "stop":
            raise
        writer.rewind(mark)
        writer.cut()
        return _Skipped(source.path, str(error))


def _scan(source: _Source, settings: _Settings, writer: FileWriter, meter: Meter) -> _Scanned:
    settings = replace(settings, selection=settings.selection.within(source.assembly))
    selection, policy = settings.selection, settings.policy
    # Regions are chosen from whole segments; what is still too long is cut after that.
    fasta = FastaFile(source.path, replace(policy, max_length=NEVER_CUT) if selection.is_active else policy, settings.sha256)
    contigs: list[str] = []
    bases_of: list[NDArray[np.int64]] = []
    documents = [np.zeros((0, 3), np.int64)]
    totals = np.zeros(len(_core.RECORD_COUNTS), np.int64)
    empty_records = 0
    mark, read = writer.mark(), 0
    for block in fasta.blocks():
        writer.write(block.bases.data)
        contigs += [name for name, _ in block.headers]
        if len(block.documents):
            documents.append(block.documents)
        totals += block.counts.sum(axis=0)
        bases_of_block = block.counts[:, _core.RECORD_COUNTS.index("total")]
        empty_records += int((bases_of_block == 0).sum())
        if selection.has_intervals:
            bases_of.append(bases_of_block)
        meter.add(fasta.bytes_read - read, len(block.bases))
        read = fasta.bytes_read
    counts = _named_counts(len(contigs), empty_records, totals)
    scanned = np.concatenate(documents)
    all_lower_case = counts["lower_case"] * 1000 > counts["kept_bases"] * ALL_LOWER_PER_MILLE
    if writer.size - mark[0] == counts["kept_bases"] and (selection.is_active or all_lower_case):
        scanned = _select(settings, contigs, scanned, all_lower_case, counts, writer, mark)
    if writer.size - mark[0] != counts["kept_bases"]:
        raise RuntimeError(f"{source.path}: wrote {writer.size - mark[0]} bases but counted {counts['kept_bases']}")
    entry: dict[str, Any] = {"path": str(source.path), "assembly": source.assembly, "size": fasta.bytes_read, "xxh3_128": fasta.xxh3_128}
    if fasta.sha256:
        entry["sha256"] = fasta.sha256
    if fasta.format != "FASTA":
        entry["format"] = fasta.format
    if all_lower_case:
        entry["all_lower_case"] = True
    return _Scanned(entry | {"counts": counts}, contigs, scanned, _named_lengths(selection, contigs, bases_of))


def _select(
    settings: _Settings,
    contigs: list[str],
    documents: NDArray[np.int64],
    upper_case: bool,
    counts: dict[str, Any],
    writer: FileWriter,
    mark: tuple[int, Any],
) -> NDArray[np.int64]:
    """Leave out what the selection does not allow; `counts` change with it."""
    selection, policy = settings.selection, settings.policy
    selected = select(selection, contigs, documents, policy.min_length, policy.max_length, upper_case, writer, mark)
    letters = selected.letters
    counts["documents"] = len(selected.documents)
    counts["kept_bases"] = int(letters.sum())
    counts["lower_case"] = int(letters[ord("a") : ord("z") + 1].sum())
    counts["n"] = int(letters[ord("N")] + letters[ord("n")])
    counts["ambiguous"] = counts["kept_bases"] - int(letters[list(b"ACGTNacgtn")].sum())
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


def _named_lengths(selection: Selection, contigs: list[str], bases_of: list[NDArray[np.int64]]) -> dict[str, int]:
    named = {contig for bed in (selection.include, selection.exclude) if bed for contig in bed.intervals}
    if not named:
        return {}
    return {contig: length for contig, length in zip(contigs, np.concatenate(bases_of).tolist(), strict=True) if contig in named}


def _named_counts(records: int, empty_records: int, totals: NDArray[np.int64]) -> dict[str, Any]:
    total = dict(zip(_core.RECORD_COUNTS, totals.tolist(), strict=True))
    return {
        "records": records,
        "empty_records": empty_records,
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


def _sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    columns = list(counts)
    return {
        key: _sum_counts(column[key] for column in columns) if isinstance(first, dict) else sum(column[key] for column in columns)
        for key, first in columns[0].items()
    }


def _dropped(scanned: Sequence[_Scanned], selection: Selection) -> str:
    counts = _sum_counts(item.source["counts"] for item in scanned)
    dropped = counts["dropped_bases"]
    text = f"of {counts['total_bases']} bases, {dropped['n_run']} lie in N runs and {dropped['short']} in documents that are too short"
    way_out = "Lower --min-length or raise --min-n-run"
    if selection.is_active:
        text += f", {dropped.get('regions', 0)} are left out by BED files and {dropped.get('n_fraction', 0)} in documents with too much N"
        way_out += ", or give other intervals or a larger --max-n-fraction"
    return f"{text}. {way_out}"


def _notes(scanned: Sequence[_Scanned], skipped: Sequence[_Skipped]) -> list[str]:
    """What the user should know though nothing failed."""
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


def _manifest(
    settings: _Settings, scanned: Sequence[_Scanned], skipped: Sequence[_Skipped], lengths: NDArray[np.int64], files: dict[str, Any]
) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "content": "bases",
        "cleaning": asdict(settings.policy) | settings.selection.cleaning(),
        "counts": _sum_counts(item.source["counts"] for item in scanned),
        "longest_document": int(lengths.max()),
        "shortest_document": int(lengths.min()),
        "files": files,
        "sources": [item.source for item in scanned],
    }
    if skipped:
        manifest["skipped"] = [{"path": str(item.path), "error": item.error} for item in skipped]
    return manifest


def _write_bed(scanned: _Scanned, writer: FileWriter) -> None:
    contigs, assembly = scanned.contigs, scanned.source["assembly"]
    for first in range(0, len(scanned.documents), BED_LINES):
        lines = [
            f"{contigs[contig]}\t{start}\t{end}\t{assembly}\t0\t+\t{start}\t{start}\t0\t1\t{end - start}\t0\n"
            for contig, start, end in scanned.documents[first : first + BED_LINES].tolist()
        ]
        writer.write("".join(lines).encode())
