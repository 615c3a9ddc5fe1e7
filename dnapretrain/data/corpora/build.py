"""A corpus from its manifest: look up, download, check, preprocess, lock. Each step takes up where a killed run ended.

OUTPUT/downloads/NAME.fna.gz      each genome as the server stores it; NAME is the assembly in loci
OUTPUT/downloads/records/KEY.json how it was fetched (KEY: accession or name)
OUTPUT/shards/train/NAME.*        one base shard for each training genome, so that a blend can weigh species
OUTPUT/shards/valid.*, test.*     one base shard for each held-out side
OUTPUT/data.yaml                  section `data` for a run
OUTPUT/corpus.lock.json           written last, when nothing is missing
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dnapretrain import __version__
from dnapretrain.data.corpora.corpus import LOCK_FORMAT, LOCK_VERSION, SIDES, Entry, Manifest, lock_differences, require_entries, split_name
from dnapretrain.data.corpora.download import Downloader, FetchError, part_size
from dnapretrain.data.corpora.fetched import Fetched, Wanted, finished, write_json
from dnapretrain.data.corpora.ncbi import ncbi_address, published_md5
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard, shard_file, verify_shard
from dnapretrain.errors import ConfigError, DataError

BASES_PER_BYTE = {True: 4.5, False: 1.0}
"""Bytes of shard for each byte of FASTA, gzip or plain: for the check of the disk only."""
LOCK_NAME = "corpus.lock.json"

Say = Callable[[str], None]


@dataclass
class Genome:
    """One entry on its way from an accession to documents."""

    entry: Entry
    side: str
    name: str = ""
    wanted: Wanted | None = None
    fetched: Fetched | None = None
    size: int | None = None
    failure: str = ""


@dataclass
class Outcome:
    """What a run came to; `lock` is there when nothing is missing."""

    genomes: list[Genome]
    skipped: int
    lock: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Genome]:
        """Entries that could not be had or read."""
        return [genome for genome in self.genomes if genome.failure]


def build_corpus(
    manifest: Manifest,
    output: Path,
    downloader: Downloader,
    *,
    workers: int = 4,
    base_url: str | None = None,
    dry_run: bool = False,
    only_download: bool = False,
    locked: dict[str, Any] | None = None,
    say: Say = print,
) -> Outcome:
    """Build or finish the corpus in `output`; failures of single entries are in the outcome, and the others are done.

    Raises ConfigError for settings, DataError where `output` cannot be used, the disk is too small, or the corpus
    differs from the lock `locked`.
    """
    require_entries(manifest)
    if workers < 1:
        raise ConfigError(f"--workers = {workers} is below 1. Give the number of downloads at the same time")
    pairs = list(zip(manifest.chosen(), manifest.sides(), strict=True))
    genomes = [Genome(entry, side) for entry, side in pairs if not entry.skip]
    outcome = Outcome(genomes, len(pairs) - len(genomes), notices=manifest.notices())
    base = (base_url or manifest.base_url).rstrip("/")
    with _only_run(output, dry_run):
        _each(genomes, workers, downloader, lambda genome: _look_up(genome, manifest, output, base, downloader))
        _check_names(genomes)
        _check_disk(genomes, output, only_download, say)
        if dry_run:
            return outcome
        _each(genomes, workers, downloader, lambda genome: _download(genome, downloader, say))
        shards = {} if only_download else _build_shards(manifest, genomes, output, workers, downloader, say)
        if outcome.failed:
            return outcome
        lock = _lock(manifest, genomes, shards, base)
        if locked:
            _compare(locked, lock, output)
        if shards:
            _write_data_section(output, shards)
        write_json(output / LOCK_NAME, lock)
        outcome.lock = lock
    return outcome


def format_outcome(outcome: Outcome, manifest: Manifest, output: Path) -> str:
    """What a person reads at the end: what is here, what differs from the published corpus, what failed and what to do."""
    lines = [f"note: {notice}" for notice in outcome.notices]
    for side in SIDES:
        names = [genome for genome in outcome.genomes if genome.side == side]
        if names:
            lines.append(f"{side}: {len(names)} genomes, {sum(bool(genome.failure) for genome in names)} failed")
    if outcome.lock and outcome.lock["shards"]:
        bases = sum(shard["kept_bases"] for shard in outcome.lock["shards"].values())
        published = f" (published: {manifest.expected.bases:,.0f})" if manifest.expected.bases else ""
        lines.append(f"{bases:,} bases in {len(outcome.lock['shards'])} shards{published}; settings: {output / 'data.yaml'}")
    if outcome.lock:
        lines.append(f"locked: {output / LOCK_NAME}")
    for genome in outcome.failed:
        lines.append(f"failed: {genome.entry.key}: {' '.join(genome.failure.split())}")
    if outcome.failed:
        lines.append(
            f"{len(outcome.failed)} of {len(outcome.genomes)} genomes failed; the others are kept, and nothing is locked. Run the same "
            "command again: only what is missing is fetched. 'skip: REASON' leaves out an entry that cannot be had; it keeps its place in "
            "the split"
        )
    return "\n".join(lines)


@contextmanager
def _only_run(output: Path, dry_run: bool) -> Iterator[None]:
    """Two runs must not write to one folder; the lock falls with the process, kill -9 included."""
    if dry_run:
        yield
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = (output / ".running").open("wb")
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}. Choose another --output") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{output}: another run is building this corpus. Wait for it, or choose another --output") from None
        except OSError:
            pass  # some cluster file systems have no locks
        yield


def _each(genomes: Sequence[Genome], workers: int, downloader: Downloader, work: Callable[[Genome], None]) -> None:
    """Run `work` on all genomes that have not failed; a DataError is that genome's failure, anything else ends the run."""

    def guarded(genome: Genome) -> None:
        try:
            work(genome)
        except FetchError as error:
            genome.failure = str(error)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(guarded, genome) for genome in genomes if not genome.failure]
        try:
            for future in futures:
                future.result()
        except BaseException:
            downloader.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _look_up(genome: Genome, manifest: Manifest, output: Path, base: str, downloader: Downloader) -> None:
    """Find address, checksum and size, without a request where an earlier run has finished the file."""
    entry, folder = genome.entry, output / "downloads"
    record = folder / "records" / f"{entry.key}.json"
    done = finished(record, folder, entry.size, entry.md5, entry.sha256)
    if done and (entry.accession or done.url == entry.url):
        genome.name, genome.fetched, genome.size = split_name(done.file)[0], done, done.size
        genome.wanted = Wanted(done.url, folder / done.file, record)
        return
    checked_by = "manifest" if entry.md5 or entry.sha256 else "none"
    if entry.url:
        url = entry.url
        if base != manifest.base_url.rstrip("/"):
            url = url.replace(manifest.base_url.rstrip("/"), base, 1)
        genome.name = entry.name or entry.key
        md5 = entry.md5
    else:
        url, directory = ncbi_address(entry, base, downloader)
        genome.name = entry.name or re.sub(r"[^A-Za-z0-9._+-]", "_", directory)
        md5 = entry.md5 or published_md5(url, downloader)
        if md5 and checked_by == "none":
            checked_by = "md5checksums.txt"
    genome.size = entry.size or downloader.head(url).size
    path = folder / f"{genome.name}{split_name(url)[1]}"
    genome.wanted = Wanted(url, path, record, entry.size, md5, entry.sha256, checked_by)


def _check_names(genomes: Sequence[Genome]) -> None:
    seen: dict[str, Genome] = {}
    for genome in genomes:
        other = seen.setdefault(genome.name, genome) if genome.name else genome
        if other is not genome:
            raise ConfigError(f"entries {other.entry.key} and {genome.entry.key} are both called '{genome.name}'. Give one a 'name'")


def _check_disk(genomes: Sequence[Genome], output: Path, only_download: bool, say: Say) -> None:
    """Raises DataError where the files, and the shards made of them, will not fit."""
    missing = [genome for genome in genomes if genome.wanted and not genome.fetched]
    download = sum(max(0, (genome.size or 0) - part_size(genome.wanted.path)) for genome in missing if genome.wanted)
    unknown = sum(genome.size is None for genome in missing)
    shards = 0
    if not only_download:
        for genome in genomes:
            if genome.wanted and not shard_file(_prefix(output, genome), "json").exists():
                shards += int((genome.size or 0) * BASES_PER_BYTE[genome.wanted.path.name.endswith(".gz")])
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    stated = f", {unknown} of unknown size" if unknown else ""
    say(
        f"{len(genomes)} genomes: {len(genomes) - len(missing) - sum(bool(g.failure) for g in genomes)} here, {len(missing)} to fetch "
        f"({download / 1e9:,.3f} GB{stated}); shards about {shards / 1e9:,.3f} GB; free {free / 1e9:,.1f} GB"
    )
    if download + shards > free:
        raise DataError(
            f"{output}: {free / 1e9:,.1f} GB are free, but {download / 1e9:,.1f} GB are to be downloaded and the shards take about "
            f"{shards / 1e9:,.1f} GB more. Free space, choose another --output, or begin with --only-download"
        )


def _download(genome: Genome, downloader: Downloader, say: Say) -> None:
    wanted = genome.wanted
    if wanted is None or genome.fetched:
        return
    # A file without a record is one that somebody brought here, or the record was lost.
    genome.fetched = downloader.adopt(wanted) if wanted.path.exists() and not _superseded(wanted) else downloader.fetch(wanted)
    genome.size = genome.fetched.size
    checked = "no checksum to compare with" if wanted.checked_by == "none" else f"checksum as in {wanted.checked_by}"
    say(f"{genome.name}: {genome.size:,} bytes, {checked}")


def _superseded(wanted: Wanted) -> bool:
    """Whether the file has a record, but not one of what is wanted now."""
    return wanted.record.exists()


def _prefix(output: Path, genome: Genome) -> Path:
    return output / "shards" / ("train" if genome.side == "train" else "") / (genome.name if genome.side == "train" else genome.side)


def _build_shards(
    manifest: Manifest, genomes: Sequence[Genome], output: Path, workers: int, downloader: Downloader, say: Say
) -> dict[str, dict[str, Any]]:
    """Manifests of the shards by prefix below `output`. A held-out side is built when all of its genomes are here."""
    shards: dict[str, dict[str, Any]] = {}

    def build(prefix: str, members: Sequence[Genome]) -> None:
        made = _built_already(output / prefix, members, manifest)
        if not made:
            made = preprocess(
                [genome.wanted.path for genome in members if genome.wanted],
                output / prefix,
                assembly=members[0].name if len(members) == 1 else None,
                min_n_run=manifest.preprocess.min_n_run,
                min_length=manifest.preprocess.min_length,
                overwrite=True,
                progress=lambda _: downloader.check(),  # Ctrl-C ends the other threads too
            )
            say(f"{prefix}: {made['counts']['kept_bases']:,} bases in {made['counts']['documents']:,} documents")
        shards[prefix] = made

    def train(genome: Genome) -> None:
        try:
            build(f"shards/train/{genome.name}", [genome])
        except DataError as error:
            raise FetchError(str(error)) from None

    _each([genome for genome in genomes if genome.side == "train"], workers, downloader, train)
    for side in SIDES[1:]:
        members = [genome for genome in genomes if genome.side == side]
        if members and not any(genome.failure for genome in members):
            try:
                build(f"shards/{side}", members)
            except DataError as error:
                culprit = next((genome for genome in members if genome.wanted and str(genome.wanted.path) in str(error)), members[0])
                culprit.failure = str(error)
    order = [f"shards/train/{genome.name}" for genome in genomes if genome.side == "train"] + ["shards/valid", "shards/test"]
    return {prefix: shards[prefix] for prefix in order if prefix in shards}


def _built_already(prefix: Path, members: Sequence[Genome], manifest: Manifest) -> dict[str, Any] | None:
    """The manifest of a shard that an earlier run made of just these files with these settings."""
    try:
        made = open_shard(prefix).manifest
    except DataError:
        return None
    wanted = [(genome.name, genome.fetched.xxh3_128) for genome in members if genome.fetched]
    have = [(source.get("assembly"), source.get("xxh3_128")) for source in made["sources"]]
    settings = manifest.preprocess.model_dump()
    same = {key: made["cleaning"].get(key) for key in settings} == settings and made["tool_version"] == __version__
    return made if same and wanted == have else None


def _lock(manifest: Manifest, genomes: Sequence[Genome], shards: dict[str, dict[str, Any]], base: str) -> dict[str, Any]:
    entries = []
    for genome in genomes:
        entry, fetched = genome.entry, genome.fetched
        if fetched is None:
            raise RuntimeError(f"{genome.name}: locked, but not fetched")
        assembly = genome.name.removeprefix(f"{entry.accession}_") if entry.accession and not entry.name else entry.assembly
        facts: dict[str, Any] = {
            "name": genome.name,
            "accession": entry.accession,
            "assembly": assembly,
            "species": entry.species,
            "group": entry.group,
        }
        facts |= {"side": genome.side, "url": fetched.url, "size": fetched.size, "md5": fetched.md5, "sha256": fetched.sha256}
        entries.append(facts | {"checked_by": fetched.checked_by, "last_modified": fetched.last_modified, "date": fetched.date})
    return {
        "format": LOCK_FORMAT,
        "format_version": LOCK_VERSION,
        "tool_version": __version__,
        "name": manifest.name,
        "source": manifest.source,
        "base_url": base,
        "preprocess": manifest.preprocess.model_dump(),
        "skipped": [{"key": entry.key, "reason": entry.skip} for entry in manifest.chosen() if entry.skip],
        "entries": entries,
        "shards": {prefix: {"kept_bases": made["counts"]["kept_bases"], "files": made["files"]} for prefix, made in shards.items()},
    }


def _compare(locked: dict[str, Any], lock: dict[str, Any], output: Path) -> None:
    """Raises DataError where the corpus on disk, read again in full, is not the locked one."""
    for prefix in lock["shards"]:
        verify_shard(output / prefix)
    differences = lock_differences(locked, lock)
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise DataError(
            f"{output}: not the locked corpus: {'; '.join(differences[:3])}{more}. Locked with version {locked['tool_version']}, "
            f"this is {__version__}. Use the locked version, or lock anew without --locked"
        )


def _write_data_section(output: Path, shards: dict[str, dict[str, Any]]) -> None:
    """`data.yaml`: training genomes weighed by their bases, as one shard of them all would be; held-out sides by name."""
    train = [
        {"prefix": str((output / prefix).resolve()), "weight": float(made["counts"]["kept_bases"])}
        for prefix, made in shards.items()
        if prefix.startswith("shards/train/")
    ]
    held_out = {side: str((output / f"shards/{side}").resolve()) for side in SIDES[1:] if f"shards/{side}" in shards}
    text = yaml.safe_dump({"data": {"train": train, **({"valid": held_out} if held_out else {})}}, sort_keys=False)
    (output / "data.yaml").write_text("# Copy this section into the settings of a run.\n" + text)
