"""FASTA files to one base shard: scan, cut, write to a staging folder, and rename once all of it is on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__, _core
from dnapretrain.data.fasta import MAX_DOCUMENT, CutPolicy, FastaFile, check_readable, is_fasta_name, strip_suffixes
from dnapretrain.data.indexed_dataset import index_bytes
from dnapretrain.data.progress import Meter, OnProgress, TerminalProgress
from dnapretrain.data.shard_writer import FileWriter, commit, staging_folder
from dnapretrain.data.shards import FORMAT, FORMAT_VERSION
from dnapretrain.errors import ConfigError, DataError

COPY_BYTES = 1 << 20
BED_LINES = 1 << 16


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
) -> dict[str, Any]:
    """Write the shard `output`.bin, .idx, .bed, .json and return its manifest.

    `inputs` are FASTA files, plain or gzip, or folders of them. `workers` files are read at the same
    time; the bytes written do not depend on it. Progress goes to `progress`, or to stderr where that
    is a terminal. Raises ConfigError for settings, DataError for inputs and outputs that cannot be used.
    """
    output = Path(output)
    _check_settings(workers, min_n_run, min_length)
    policy = CutPolicy(min_n_run, min_length)
    sources = _find_sources([Path(item) for item in inputs], assembly)
    on_terminal = TerminalProgress() if progress is None and sys.stderr.isatty() else None
    meter = Meter(sum(source.size for source in sources), progress or on_terminal)
    try:
        with staging_folder(output, overwrite) as staging:
            with FileWriter(staging / "bin") as bin_writer:
                scanned = _scan_all(sources, policy, sha256, workers, bin_writer, meter)
            lengths = np.concatenate([item.documents[:, 2] - item.documents[:, 1] for item in scanned])
            if len(lengths) == 0:
                raise DataError(f"nothing is left of {len(sources)} input(s): {_dropped(scanned)}. Lower --min-length or raise --min-n-run")
            with FileWriter(staging / "idx") as idx_writer:
                idx_writer.write(index_bytes(lengths))
            with FileWriter(staging / "bed") as bed_writer:
                for item in scanned:
                    _write_bed(item, bed_writer)
            files = {"bin": bin_writer.entry(), "idx": idx_writer.entry(), "bed": bed_writer.entry()}
            manifest = _manifest(policy, scanned, lengths, files)
            with FileWriter(staging / "json") as json_writer:
                json_writer.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
            commit(staging, output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}. Free space or choose another --output") from None
    finally:
        if on_terminal:
            on_terminal.end()
    return manifest


def _check_settings(workers: int, min_n_run: int, min_length: int) -> None:
    for name, value in (("--workers", workers), ("--min-n-run", min_n_run), ("--min-length", min_length)):
        if value < 1:
            raise ConfigError(f"{name} = {value} is below 1. Give a positive number")
    if min_length > MAX_DOCUMENT // 2:
        raise ConfigError(f"--min-length = {min_length} exceeds {MAX_DOCUMENT // 2} bases, half the longest document. Lower it")


def _find_sources(inputs: Sequence[Path], assembly: str | None) -> list[_Source]:
    paths: list[Path] = []
    for item in inputs:
        if item.is_dir():
            found = sorted(path for path in item.iterdir() if is_fasta_name(path.name) and not path.is_dir())
            if not found:
                raise DataError(f"{item}: no FASTA files (.fa, .fasta, .fna, .ffn, plain or .gz) in this folder. Give the files themselves")
            paths += found
        else:
            paths.append(item)
    if not paths:
        raise DataError("no input. Give FASTA files, plain or gzip, or folders of them")
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
    return [_Source(path, name, check_readable(path)) for name, path in path_of.items()]


def _scan_all(
    sources: Sequence[_Source], policy: CutPolicy, sha256: bool, workers: int, writer: FileWriter, meter: Meter
) -> list[_Scanned]:
    """Scan the inputs, write their bases to `writer` in input order."""
    if workers == 1 or len(sources) == 1:
        return [_scan(source, policy, sha256, writer, meter) for source in sources]

    def scan_to_part(source: _Source, part: Path) -> _Scanned:
        with FileWriter(part) as part_writer:
            return _scan(source, policy, sha256, part_writer, meter)

    # Threads, not processes: inflating, scanning and hashing run with the GIL released.
    parts = [writer.path.with_name(f"part-{number}") for number in range(len(sources))]
    scanned = []
    with ThreadPoolExecutor(min(workers, len(sources))) as pool:
        futures = [pool.submit(scan_to_part, source, part) for source, part in zip(sources, parts, strict=True)]
        try:
            for future, part in zip(futures, parts, strict=True):
                scanned.append(future.result())
                with part.open("rb", buffering=0) as file:
                    while data := file.read(COPY_BYTES):
                        writer.write(data)
                part.unlink()
        except BaseException:
            meter.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scanned


def _scan(source: _Source, policy: CutPolicy, sha256: bool, writer: FileWriter, meter: Meter) -> _Scanned:
    fasta = FastaFile(source.path, policy, sha256)
    contigs: list[str] = []
    documents = [np.zeros((0, 3), np.int64)]
    totals = np.zeros(len(_core.RECORD_COUNTS), np.int64)
    empty_records = 0
    written, read = writer.size, 0
    for block in fasta.blocks():
        writer.write(block.bases.data)
        contigs += [name for name, _ in block.headers]
        if len(block.documents):
            documents.append(block.documents)
        totals += block.counts.sum(axis=0)
        empty_records += int((block.counts[:, _core.RECORD_COUNTS.index("total")] == 0).sum())
        meter.add(fasta.bytes_read - read, len(block.bases))
        read = fasta.bytes_read
    counts = _named_counts(len(contigs), empty_records, totals)
    if writer.size - written != counts["kept_bases"]:
        raise RuntimeError(f"{source.path}: wrote {writer.size - written} bases but counted {counts['kept_bases']}")
    entry = {"path": str(source.path), "assembly": source.assembly, "size": fasta.bytes_read, "xxh3_128": fasta.xxh3_128}
    if fasta.sha256:
        entry["sha256"] = fasta.sha256
    return _Scanned(entry | {"counts": counts}, contigs, np.concatenate(documents))


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


def _dropped(scanned: Sequence[_Scanned]) -> str:
    counts = _sum_counts(item.source["counts"] for item in scanned)
    n_run, short = counts["dropped_bases"]["n_run"], counts["dropped_bases"]["short"]
    return f"of {counts['total_bases']} bases, {n_run} lie in N runs and {short} in documents that are too short"


def _manifest(policy: CutPolicy, scanned: Sequence[_Scanned], lengths: NDArray[np.int64], files: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "content": "bases",
        "cleaning": asdict(policy),
        "counts": _sum_counts(item.source["counts"] for item in scanned),
        "longest_document": int(lengths.max()),
        "shortest_document": int(lengths.min()),
        "files": files,
        "sources": [item.source for item in scanned],
    }


def _write_bed(scanned: _Scanned, writer: FileWriter) -> None:
    contigs, assembly = scanned.contigs, scanned.source["assembly"]
    for first in range(0, len(scanned.documents), BED_LINES):
        lines = [
            f"{contigs[contig]}\t{start}\t{end}\t{assembly}\t0\t+\t{start}\t{start}\t0\t1\t{end - start}\t0\n"
            for contig, start, end in scanned.documents[first : first + BED_LINES].tolist()
        ]
        writer.write("".join(lines).encode())
