"""Corpora by name: which genomes, on which side of the split, and the lock file that pins every byte of them.

A manifest (YAML) names assemblies; the ones in `dnapretrain/corpora` are known by their file name. A published list
that its authors give out elsewhere is not copied: such a manifest holds the rule and the counts, and says where the
list is (`--accessions FILE`). The lock (JSON) holds what each entry turned out to be.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import Field, ValidationError, model_validator

from dnapretrain.config import Section
from dnapretrain.errors import ConfigError, DataError

CORPORA = Path(__file__).resolve().parents[2] / "corpora"
NCBI = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
ACCESSION = re.compile(r"GC[AF]_\d{9}\.\d+")
NCBI_NAME = re.compile(r"(GC[AF]_\d{9}\.\d+)_((?:(?!_from_genomic)[^/])+?)(?:_genomic\.fna\.gz|(?<!\.gz)(?<!\.txt))")
"""Folder or genomic FASTA of an assembly; not its other files (_cds_from_genomic.fna.gz, _genomic.gff.gz)."""
SUFFIX = re.compile(r"(\.(fa|fasta|fna|ffn|fq|fastq|gb|gbk|gbff|embl|2bit))?(\.(gz|bgz|zst|xz|bz2))?$")
LOCK_FORMAT, LOCK_VERSION = "dnapretrain-corpus-lock", 1
SIDES = ("train", "valid", "test")
Side = Literal["train", "valid", "test"]

COLUMNS = {
    "accession": ("accession", "assembly_accession"),
    "assembly": ("assembly", "asm_name"),
    "url": ("url",),
    "ftp_path": ("ftp_path",),
    "name": ("name",),
    "species": ("species", "organism_name"),
    "group": ("group", "clade"),
    "side": ("side", "split"),
    "skip": ("skip",),
    "size": ("size",),
    "md5": ("md5",),
    "sha256": ("sha256",),
}
"""Columns of a table of entries, and what NCBI's assembly_summary.txt calls them; others are not read."""


class Entry(Section):
    """One genome: an assembly of NCBI by accession, or any FASTA file by address."""

    accession: str | None = Field(None, pattern=rf"^{ACCESSION.pattern}$")
    """Assembly accession with its version, GCF_000005845.2."""
    assembly: str | None = None
    """Its name, as in the folder names of NCBI (ASM584v2); None: it is looked up in the folder listing."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Address of a FASTA file, plain or gzip; for an accession only where it is not in NCBI's layout."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """The assembly in loci and file names. Default: ACCESSION_ASSEMBLY, or the file name of the address."""
    species: str = ""
    group: str = ""
    side: Side | None = None
    skip: str = ""
    """Why the entry is left out; it keeps its place in the order that a split rule counts."""
    size: int | None = Field(None, gt=0)
    """Bytes of the file as stored."""
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _has_a_source(self) -> Entry:
        if not self.accession and not self.url:
            raise ValueError("an entry needs 'accession' (GCF_000005845.2) or 'url'")
        return self

    @property
    def key(self) -> str:
        """What names the entry before anything is asked of a server."""
        return self.name or self.accession or split_name(self.url or "")[0]


class SplitRule(Section):
    """Sides by place in the list: the last `test_last` are test, the `valid_before` before them validation, the rest training."""

    test_last: int = Field(0, ge=0)
    valid_before: int = Field(0, ge=0)


class Expected(Section):
    """What the source says of the corpus; a difference is reported."""

    entries: int | None = None
    groups: dict[str, int] = Field(default_factory=dict)
    bases: float | None = None


class Cleaning(Section):
    """Settings of `preprocess`."""

    min_n_run: int = Field(10, gt=0)
    min_length: int = Field(1, gt=0)


class Manifest(Section):
    """A corpus as it is asked for."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    source: str = ""
    """Where these facts come from."""
    base_url: str = Field(NCBI, pattern=r"^https?://")
    """Holds GCA/ and GCF/ folders in NCBI's layout."""
    missing: str = ""
    """What the entries lack and how to supply it with --accessions; set where there are none."""
    groups: tuple[str, ...] = ()
    """Entries of other groups are left out and counted; empty: all are in."""
    split: SplitRule | None = None
    """None: each entry's `side`, 'train' where it has none."""
    expected: Expected = Expected()
    preprocess: Cleaning = Cleaning()
    entries: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if not self.entries and not self.missing:
            raise ValueError("'entries' is empty")
        twice = [key for key, count in Counter(entry.key for entry in self.entries).items() if count > 1]
        if twice:
            raise ValueError(f"'{twice[0]}' is in the list twice; take one out, or tell them apart with 'name'")
        if self.split and any(entry.side for entry in self.entries):
            raise ValueError("there is a 'split' rule, and entries have a 'side' too; remove one of them")
        if self.split and self.entries and self.split.test_last + self.split.valid_before >= len(self.chosen()):
            held_out = self.split.test_last + self.split.valid_before
            raise ValueError(f"the split rule holds out {held_out} entries of {len(self.chosen())}; nothing is left for training")
        return self

    def chosen(self) -> list[Entry]:
        """Entries of the wanted groups, in order; those to skip are among them."""
        return [entry for entry in self.entries if not self.groups or entry.group in self.groups]

    def sides(self) -> list[Side]:
        """Side of each chosen entry. Skipped entries keep their place, so a withdrawn genome moves no other."""
        chosen = self.chosen()
        if not self.split:
            return [entry.side or "train" for entry in chosen]
        test = len(chosen) - self.split.test_last
        valid = test - self.split.valid_before
        return ["train" if place < valid else "valid" if place < test else "test" for place in range(len(chosen))]

    def notices(self) -> list[str]:
        """Differences between the list and what the source says of it."""
        chosen, expected = self.chosen(), self.expected
        lines = []
        if len(chosen) < len(self.entries):
            lines.append(f"{len(self.entries) - len(chosen)} entries of the list are in other groups than {', '.join(self.groups)}")
        if skipped := sum(bool(entry.skip) for entry in chosen):
            lines.append(f"{skipped} entries are marked to be skipped")
        if expected.entries is not None and expected.entries != len(chosen):
            lines.append(f"{len(chosen)} entries, but the published corpus has {expected.entries}")
        counts = Counter(entry.group for entry in chosen)
        for group, count in expected.groups.items():
            if len(counts) > 1 and counts[group] != count:
                lines.append(f"group {group}: {counts[group]} entries, but the published corpus has {count}")
        return lines


def corpus_names() -> list[str]:
    """Names of the corpora that come with the package."""
    return sorted(path.stem for path in CORPORA.glob("*.yaml"))


def load_manifest(name_or_file: str | Path, accessions: Path | None = None) -> Manifest:
    """The manifest called so, or in that file; `accessions` supplies or replaces its entries.

    A file that is no YAML manifest (.txt, .tsv, .csv) is a list of accessions itself. Raises ConfigError.
    """
    path = Path(name_or_file)
    if path.suffix in (".txt", ".tsv", ".csv") and path.is_file():
        if accessions:
            raise ConfigError(f"--accessions {accessions}, but {path} is a list itself. Give a corpus name or a YAML manifest with it")
        return _validate({"name": re.sub(r"[^A-Za-z0-9._-]", "_", path.stem), "entries": read_list(path)}, path)
    if not path.is_file() and str(name_or_file) in corpus_names():
        path = CORPORA / f"{name_or_file}.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = corpus_names()
        near = difflib.get_close_matches(str(name_or_file), known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name_or_file}: neither a file nor one of the corpora {', '.join(known)}.{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML manifest: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: not a manifest: expected keys such as name and entries. A list of accessions ends in .txt, .tsv or .csv"
        )
    if accessions:
        tree["entries"] = read_list(accessions)
    return _validate(tree, path)


def require_entries(manifest: Manifest) -> None:
    """Raises ConfigError that tells how to supply the list, where a manifest has none."""
    if not manifest.chosen():
        reason = manifest.missing or f"no entry is in the groups {', '.join(manifest.groups)}"
        raise ConfigError(f"corpus {manifest.name}: {' '.join(reason.split())}")


def read_list(path: Path) -> list[dict[str, Any]]:
    """Entries of a user's list: accessions or addresses one per line, or a table with a header (tabs or commas).

    A plain line holds an accession or an address and may go on with the species; blank lines and lines that begin
    with # are layout. A table names its columns as COLUMNS has them, which NCBI's assembly_summary.txt does. Addresses in
    NCBI's layout are taken apart to accession and name, because its other folders move. Raises ConfigError with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    header = _find_header(lines)
    rows = _table_rows(lines, *header) if header else _plain_rows(lines, path)
    entries = [_entry(row, path, number) for number, row in rows]
    if not entries:
        raise ConfigError(f"{path}: no entries. Give one accession (GCF_000005845.2) or address per line, or a table with a header")
    return entries


def _find_header(lines: Sequence[str]) -> tuple[int, str] | None:
    """Number of the header line and the delimiter, where the list is a table."""
    known = {"accession", "assembly_accession", "url"}
    for number, line in enumerate(lines):
        for delimiter in "\t,":
            names = {name.strip().strip('"').lower() for name in line.lstrip("# ").split(delimiter)}
            if names & known and not ACCESSION.search(line):
                return number, delimiter
        if line.strip() and not line.startswith("#"):
            return None
    return None


def _table_rows(lines: Sequence[str], header: int, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    names = [name.strip().lower() for name in next(csv.reader([lines[header].lstrip("# ")], delimiter=delimiter))]
    column = {ours: names.index(name) for ours, theirs in COLUMNS.items() for name in theirs if name in names}
    for number, line in enumerate(lines[header + 1 :], header + 2):
        if line.strip() and not line.startswith("#"):
            # NCBI's tables, separated by tabs, hold quotes as text.
            values = line.split("\t") if delimiter == "\t" else next(csv.reader([line]))
            cells = {ours: values[place].strip() for ours, place in column.items() if place < len(values)}
            yield number, {ours: value for ours, value in cells.items() if value not in ("", "na")}


def _plain_rows(lines: Sequence[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = re.search(r"(?:https?|ftp)://[^\s,;\"']+", text) or ACCESSION.search(text)
        if not match:
            raise ConfigError(
                f"{path}:{number}: '{text[:60]}' holds neither an assembly accession with its version (GCF_000005845.2) nor an address. "
                "A sequence accession (NC_...) belongs to an assembly: give that one, or the address of a FASTA file"
            )
        row = {"url" if "://" in match[0] else "accession": match[0]}
        rest = text[match.end() :].strip(" \t,;\"'")
        yield number, row | ({"species": rest} if rest else {})


def _entry(row: dict[str, str], path: Path, number: int) -> dict[str, Any]:
    """A row as an entry of a manifest."""
    entry: dict[str, Any] = {key: value for key, value in row.items() if key not in ("url", "ftp_path")}
    url = row.get("url") or row.get("ftp_path") or ""
    in_layout = NCBI_NAME.fullmatch(unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]))
    if in_layout and "/genomes/" in url:
        entry |= {"accession": in_layout[1], "assembly": in_layout[2]}
    elif url.startswith("ftp://"):
        raise ConfigError(f"{path}:{number}: {url}: addresses begin with https:// or http://. Most FTP servers answer to https as well")
    elif row.get("url"):
        entry["url"] = url
    return entry


def _validate(tree: dict[str, Any], path: Path) -> Manifest:
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = [*Manifest.model_fields, *Entry.model_fields, *SplitRule.model_fields, *Expected.model_fields, *Cleaning.model_fields]
            near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
            message = "unknown key" + (f"; the nearest known one is '{near[0]}'" if near else "")
        elif not message.startswith("an entry needs") and first["loc"]:
            message += f" (got {str(first.get('input'))[:80]!r})"
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{message}") from None


def split_name(url: str) -> tuple[str, str]:
    """Stem and suffix (.fna.gz) of the file that an address names; both can be names of files here."""
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    match = SUFFIX.search(name)
    stem = name[: match.start()] if match else name
    return re.sub(r"[^A-Za-z0-9._+-]", "_", stem).lstrip(".") or "genome", match[0] if match and match[0] else ".fa"


def read_lock(path: Path) -> dict[str, Any]:
    """A lock file. Raises DataError where it is missing or not one."""
    try:
        lock = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}. Give the corpus.lock.json of the corpus to reproduce"
        ) from None
    except ValueError:
        raise DataError(f"{path}: not JSON, so not a corpus lock file") from None
    if not isinstance(lock, dict) or lock.get("format") != LOCK_FORMAT or lock.get("format_version") != LOCK_VERSION:
        raise DataError(f"{path}: not a corpus lock file of format {LOCK_VERSION} of this tool")
    return lock


def lock_manifest(lock: dict[str, Any], path: Path) -> Manifest:
    """The manifest that a lock pins: its addresses, sizes and checksums are then demanded of the servers."""
    entries = [
        {key: item[key] for key in ("accession", "assembly", "name", "species", "group", "side", "url", "size", "md5", "sha256")}
        for item in lock["entries"]
    ]
    tree = {key: lock[key] for key in ("name", "base_url", "preprocess")}
    return _validate({**tree, "entries": entries}, path)


def check_fits_lock(manifest: Manifest, lock: dict[str, Any]) -> None:
    """Raises ConfigError where a lock was not made of this manifest: other entries, sides or settings."""
    asked = {entry.key: side for entry, side in zip(manifest.chosen(), manifest.sides(), strict=True) if not entry.skip}
    locked = {(item["accession"] if item["accession"] in asked else item["name"]): item["side"] for item in lock["entries"]}
    other = [key for key in (*asked, *locked) if asked.get(key) != locked.get(key)]
    if other:
        sides = f"{asked.get(other[0], 'not in it')} in the manifest, {locked.get(other[0], 'not in it')} in the lock"
        raise ConfigError(
            f"--locked: the lock is not of corpus {manifest.name}: '{other[0]}' is {sides}. Give the lock alone, or its manifest"
        )
    if manifest.preprocess.model_dump() != lock["preprocess"]:
        raise ConfigError(f"--locked: preprocess is {manifest.preprocess.model_dump()} in the manifest, {lock['preprocess']} in the lock")


def lock_differences(wanted: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """What differs between two locks in content; addresses, dates and the version of the tool may."""
    lines = [f"{key}: {got[key]!r}, locked {wanted[key]!r}" for key in ("name", "preprocess") if wanted[key] != got[key]]
    old, new = ({item["name"]: item for item in lock["entries"]} for lock in (wanted, got))
    lines += [f"{name}: not in the corpus" for name in old if name not in new]
    lines += [f"{name}: not in the lock" for name in new if name not in old]
    for name in [name for name in old if name in new]:
        for key in ("accession", "side", "size", "sha256"):
            if old[name][key] != new[name][key]:
                lines.append(f"{name}: {key} is {new[name][key]!r}, locked {old[name][key]!r}")
    shards_old, shards_new = wanted["shards"], got["shards"]
    if shards_old and shards_new:  # else one of them was made with --only-download
        lines += [f"{prefix}: a shard of one of them only" for prefix in sorted(set(shards_old) ^ set(shards_new))]
    for prefix in [prefix for prefix in shards_old if prefix in shards_new]:
        for kind, entry in shards_old[prefix]["files"].items():
            if shards_new[prefix]["files"][kind] != entry:
                lines.append(f"{prefix}.{kind}: XXH3-128 is {shards_new[prefix]['files'][kind]['xxh3_128']}, locked {entry['xxh3_128']}")
    return lines
