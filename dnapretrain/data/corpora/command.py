"""What `dnapretrain corpus` does with its arguments: manifest or lock, downloader, progress, report."""

from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path

from dnapretrain.data.corpora.build import Outcome, build_corpus, format_outcome
from dnapretrain.data.corpora.corpus import check_fits_lock, corpus_names, load_manifest, lock_manifest, read_lock
from dnapretrain.data.corpora.download import Downloader
from dnapretrain.errors import ConfigError


def run_corpus(
    name_or_file: str | None,
    output: Path,
    *,
    accessions: Path | None = None,
    base_url: str | None = None,
    workers: int = 4,
    max_rate: float | None = None,
    retries: int = 6,
    timeout: float = 60.0,
    dry_run: bool = False,
    only_download: bool = False,
    locked: Path | None = None,
) -> int:
    """Build the corpus, print what became of it; 0 where it is complete, 1 where entries failed. `max_rate` is in MB/s."""
    for name, value in (("--max-rate", max_rate), ("--timeout", timeout)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} = {value} is not above 0. Give a positive number, or leave it out")
    if retries < 0:
        raise ConfigError(f"--retries = {retries} is below 0. Give 0 for a single attempt")
    if base_url and not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url {base_url}: addresses begin with https:// or http://")
    if name_or_file is None and (locked is None or accessions is not None):
        raise ConfigError(f"no corpus is named. Give one of {', '.join(corpus_names())}, a manifest or a list, or --locked LOCK alone")
    lock = read_lock(locked) if locked else None
    manifest = load_manifest(name_or_file, accessions) if name_or_file is not None else None
    if lock is not None and locked is not None:
        if manifest:
            check_fits_lock(manifest, lock)
        manifest = lock_manifest(lock, locked)
    if manifest is None:
        raise RuntimeError("neither a manifest nor a lock")
    meter = _Meter()
    downloader = Downloader(max_rate * 1e6 if max_rate else None, retries, timeout, on_bytes=meter.add)
    outcome = build_corpus(
        manifest,
        output,
        downloader,
        workers=workers,
        base_url=base_url,
        dry_run=dry_run,
        only_download=only_download,
        locked=lock,
        say=meter.say,
    )
    meter.clear()
    if dry_run:
        print(_table(outcome))
    print(format_outcome(outcome, manifest, output))
    return 1 if outcome.failed else 0


def _table(outcome: Outcome) -> str:
    rows = [("side", "bytes", "checksum", "name", "species")]
    for genome in outcome.genomes:
        if not genome.failure and genome.wanted:
            size = "unknown" if genome.size is None else f"{genome.size:,}"
            rows.append((genome.side, size, genome.wanted.checked_by, genome.name, genome.entry.species))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


class _Meter:
    """Lines on stderr as genomes are done; on a terminal the bytes so far below them, at most five times a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._start = self._drawn = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def add(self, size: int) -> None:
        """Count bytes of any thread."""
        with self._lock:
            self._bytes += size
            now = time.monotonic()
            if self._terminal and now - self._drawn >= 0.2:
                self._drawn = now
                line = f"{self._bytes / 1e6:,.1f} MB fetched, {self._bytes / 1e6 / (now - self._start):,.1f} MB/s"
                self._width = max(self._width, len(line))
                sys.stderr.write("\r" + line.ljust(self._width))
                sys.stderr.flush()

    def say(self, line: str) -> None:
        """One line above the meter."""
        with self._lock:
            self._clear()
            sys.stderr.write(line + "\n")

    def clear(self) -> None:
        """Remove the meter's line."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
