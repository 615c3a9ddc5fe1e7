"""Look before working: what sequence files hold, what is wrong with them, and what preprocess would make of them.

Nothing is written, and nothing stops at the first bad file. Counts are those of preprocess: the same scanner cuts, the same selection
chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.data.formats.fasta import MAX_DOCUMENT
from dnapretrain.data.formats.inputs import check_readable, find_inputs, strip_suffixes
from dnapretrain.data.look.inspect import composition, length_summary
from dnapretrain.data.look.lint_duplicates import LintedFile, find_duplicates, same_content
from dnapretrain.data.look.lint_records import EXAMPLES, Noted, Records, policy_of
from dnapretrain.data.look.lint_scan import FileScan, Mistake
from dnapretrain.data.shards.selection import Selection, check_intervals, read_bed
from dnapretrain.errors import ConfigError, DataError

FORMAT = "dnapretrain-lint"
FORMAT_VERSION = 1
KMER = 6
BPE_BASES = 5
"""Bases per token of a vocabulary of 4,096, about: windows reckon with as many."""
INDEX_BYTES = (34 + 8, 4 + 8 + 8)
"""Of `.idx`: for itself, for each document."""
BED_BYTES = 17
"""Of a `.bed` line, without its names and numbers."""
MANIFEST_BYTES = (1500, 700)
"""Of a manifest, about: for itself, for each source."""


@dataclass(frozen=True)
class LintSettings:
    """As preprocess takes them. Raises ConfigError for values out of range."""

    min_n_run: int = 10
    min_length: int = 1
    max_n_fraction: float | None = None
    include_bed: Path | None = None
    exclude_bed: Path | None = None
    assembly: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name, value in (("--workers", self.workers), ("--min-n-run", self.min_n_run), ("--min-length", self.min_length)):
            if value < 1:
                raise ConfigError(f"{name} = {value} is below 1. Give a positive number")
        if self.min_length > MAX_DOCUMENT // 2:
            raise ConfigError(f"--min-length = {self.min_length} exceeds {MAX_DOCUMENT // 2} bases, half the longest document. Lower it")
        if self.max_n_fraction is not None and not 0 <= self.max_n_fraction <= 1:
            raise ConfigError(f"--max-n-fraction = {self.max_n_fraction} is not a share. Give a number from 0 to 1")


def lint(inputs: Sequence[str | Path], settings: LintSettings | None = None) -> dict[str, Any]:
    """The report on `inputs` (as of `find_inputs`), in plain values with stable keys; FORMAT.md names them.

    `verdict` is "errors" where preprocess with these settings would stop, and "clean" otherwise. Each file is read once. Memory: 17
    bytes and a name per record, and per worker a record of up to 2^28 bases (its whole length where BED files or a share of N select).
    Raises ConfigError for settings, DataError for BED files that cannot be read.
    """
    settings = settings or LintSettings()
    include, exclude = (read_bed(path) if path is not None else None for path in (settings.include_bed, settings.exclude_bed))
    selection = Selection(include, exclude, settings.max_n_fraction)
    paths, errors, notes = _find([Path(item) for item in inputs])
    assemblies = [settings.assembly or strip_suffixes(path.name) for path in paths]
    errors += _name_errors(paths, assemblies)

    def read(path: Path, assembly: str) -> LintedFile:
        scan, chosen = FileScan(path), selection.within(assembly)
        records = Records(policy_of(settings.min_n_run, settings.min_length, chosen), chosen)
        try:
            check_readable(path)
        except DataError as error:
            scan.mistakes.append(Mistake(str(error).removeprefix(f"{path}: ")))
        else:
            scan.read(policy_of(settings.min_n_run, settings.min_length, chosen), records)
        return LintedFile(path, assembly, scan, records)

    with ThreadPoolExecutor(settings.workers) as pool:  # threads: what takes time runs with the GIL released
        files = list(pool.map(read, paths, assemblies))
    usable = [file for file in files if file.is_usable]
    errors += _selection_errors(selection, usable)
    if usable and not any(len(lengths) for file in usable for lengths in file.records.documents):
        errors.append({"path": None, "message": "nothing is left of the inputs with these settings: lower --min-length, raise --min-n-run"})
    reports = [_file_report(file) for file in files]
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "settings": given,
        "files": reports,
        "total": _total(files),
        "errors": errors,
        "notes": notes,
        "duplicates": find_duplicates(files),
        "same_content": same_content(usable),
        "preprocess": _preprocess(usable, len(files)),
        "verdict": "clean" if not errors and len(usable) == len(files) else "errors",
    }


def _find(inputs: Sequence[Path]) -> tuple[list[Path], list[dict[str, Any]], list[str]]:
    """The files; an input that stands for none is an error of its own."""
    paths: list[Path] = []
    errors: list[dict[str, Any]] = []
    notes: list[str] = []
    for item in inputs:
        try:
            found, said = find_inputs([item])
        except DataError as error:
            errors.append({"path": str(item), "message": str(error)})
            continue
        paths += found
        notes += said
    return paths, errors, notes


def _name_errors(paths: Sequence[Path], assemblies: Sequence[str]) -> list[dict[str, Any]]:
    """Names that preprocess refuses: those of two inputs, and those that loci cannot hold."""
    errors: list[dict[str, Any]] = []
    first: dict[str, Path] = {}
    for path, name in zip(paths, assemblies, strict=True):
        if name in first:
            message = f"assembly '{name}' is the name of {first[name]} already. Rename a file, or join files of one assembly"
            errors.append({"path": str(path), "message": message})
        elif ":" in name or not name.isprintable():
            message = f"assembly name {name!r} holds ':' or a control character. Give another one with --assembly"
            errors.append({"path": str(path), "message": message})
        first.setdefault(name, path)
    return errors


def _selection_errors(selection: Selection, files: Sequence[LintedFile]) -> list[dict[str, Any]]:
    errors: list[dict[str, Any]] = []
    contigs_of = [(file.path, file.assembly, file.records.lengths_of) for file in files]
    for bed in (selection.include, selection.exclude):
        if bed is None:
            continue
        try:
            check_intervals(bed, contigs_of)
        except DataError as error:
            errors.append({"path": str(bed.path), "message": str(error).removeprefix(f"{bed.path}: ")})
    return errors


def _file_report(file: LintedFile) -> dict[str, Any]:
    scan, records = file.scan, file.records
    return {
        "path": str(file.path),
        "assembly": file.assembly,
        "size": scan.file.bytes_read if scan.file else None,
        "xxh3_128": scan.file.xxh3_128.hexdigest() if scan.file and not scan.stopped_early else None,
        "format": scan.format,
        "compression": scan.compression,
        "line_ends": scan.line_ends,
        **_facts([file]),
        "all_lower_case": file.is_usable and records.is_all_lower_case(),
        "errors": [asdict(mistake) for mistake in scan.mistakes],
        "stopped_early": scan.stopped_early,
        "usable": file.is_usable,
        "counts": records.preprocess_counts() if file.is_usable else None,
    }


def _facts(files: Sequence[LintedFile]) -> dict[str, Any]:
    """What one file, or all together, hold; of a file with errors, its sound records."""
    records = [file.records for file in files]
    letters = sum((one.letters for one in records), np.zeros(256, np.int64))
    lengths = np.concatenate([np.array(one.lengths, np.int64) for one in records]) if records else np.zeros(0, np.int64)
    other = {chr(code): int(letters[code] + letters[code | 0x20]) for code in b"BDHKMRSVWY"}
    return {
        "records": len(lengths),
        "empty_records": int((lengths == 0).sum()),
        "broken_records": sum(file.scan.broken_records for file in files),
        "bases": int(lengths.sum()),
        **composition(letters),
        "other_letters": {letter: count for letter, count in other.items() if count},
        "n_runs": sum(one.n_runs for one in records),
        "longest_n_run": max((one.longest_n_run for one in records), default=0),
        "lengths": length_summary(lengths) if len(lengths) else None,
        "suspicious": _joined([one.suspicious for one in records], files),
        "hints": _joined([one.hints for one in records], files),
    }


def _joined(notes: Sequence[dict[str, Noted]], files: Sequence[LintedFile]) -> dict[str, Any]:
    joined: dict[str, Noted] = {}
    for of_file, file in zip(notes, files, strict=True):
        for kind, noted in of_file.items():
            into = joined.setdefault(kind, Noted(examples=[]))
            into.records += noted.records
            into.bases += noted.bases
            into.examples = [*(into.examples or []), *(f"{file.assembly}:{name}" for name in noted.examples or [])][:EXAMPLES]
    return {kind: noted.values() for kind, noted in sorted(joined.items())}


def _total(files: Sequence[LintedFile]) -> dict[str, Any]:
    return {
        "files": len(files),
        "usable_files": sum(file.is_usable for file in files),
        "size": sum(file.scan.file.bytes_read for file in files if file.scan.file),
        **_facts(files),
        "errors": sum(len(file.scan.mistakes) for file in files),
    }


def _preprocess(files: Sequence[LintedFile], given: int) -> dict[str, Any]:
    """What preprocess with --on-error skip would write of these files; without it, the same where no file has an error."""
    counts = [file.records.preprocess_counts() for file in files]
    documents: list[NDArray[np.int64]] = [lengths for file in files for lengths in file.records.documents]
    lengths = np.concatenate([np.zeros(0, np.int64), *documents])
    bed = sum(map(_bed_bytes, files))
    kept = int(lengths.sum())
    disk = kept + INDEX_BYTES[0] + INDEX_BYTES[1] * len(lengths) + bed + MANIFEST_BYTES[0] + MANIFEST_BYTES[1] * len(files)
    return {
        "files": len(files),
        "files_with_errors": given - len(files),
        "counts": _sum(counts) if counts else None,
        "lengths": length_summary(lengths) if len(lengths) else None,
        "tokens": {"nucleotide": kept, "kmer_6": int((-(-lengths // KMER)).sum()), "bpe_4096_estimate": -(-kept // BPE_BASES)},
        "disk_bytes_estimate": disk,
    }


def _bed_bytes(file: LintedFile) -> int:
    """Of the file's lines of the `.bed`, about: five numbers and two names in each."""
    records = file.records
    documents = sum(map(len, records.documents))
    names = len(file.assembly) + sum(map(len, records.names)) // max(1, len(records.names))
    of_place = len(str(max(records.lengths, default=0) // 2))
    of_length = len(str(sum(records.lengths) // max(1, documents)))
    return documents * (BED_BYTES + names + 4 * of_place + of_length)


def _sum(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _sum([column[key] for column in counts]) if isinstance(first, dict) else sum(column[key] for column in counts)
        for key, first in counts[0].items()
    }
