"""Downloaded files on the disk: what was wanted, the record of a finished file, and the checks before it gets its name."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from isal import igzip

from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.shards.writer import sync_folder


class DamagedError(Exception):
    """The whole file is here and is not what it should be."""


@dataclass(frozen=True)
class Wanted:
    """One file to fetch. Size (bytes) and checksums are checked where they are given."""

    url: str
    path: Path
    record: Path
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    checked_by: str = "none"
    """Where size and checksums come from: manifest, md5checksums.txt, none."""


@dataclass(frozen=True)
class Fetched:
    """A finished file: written as JSON beside it, and so recognised by the next run without a request."""

    url: str
    file: str
    """Name of the file, without its folder."""
    checked_by: str
    size: int
    md5: str
    sha256: str
    xxh3_128: str
    validator: str | None
    last_modified: str | None
    date: str
    """UTC, ISO 8601."""
    mtime_ns: int
    """Of the file: while it and the size stay, the file is not read again."""


def finished(record: Path, folder: Path, size: int | None, md5: str | None, sha256: str | None) -> Fetched | None:
    """What `record` says of a file in `folder` that is still so; None where it must be fetched.

    The file is read again only where its size or time differ from the record. Size and checksums are compared where they are given.
    """
    try:
        fetched = Fetched(**json.loads(record.read_bytes()))
        status = (folder / fetched.file).stat()
    except (OSError, ValueError, TypeError):
        return None
    expected = {"size": size, "md5": md5, "sha256": sha256}
    if status.st_size != fetched.size or any(value not in (None, getattr(fetched, name)) for name, value in expected.items()):
        return None
    if status.st_mtime_ns != fetched.mtime_ns and digests(folder / fetched.file)["sha256"] != fetched.sha256:
        return None
    return fetched


def digests(path: Path) -> dict[str, Any]:
    """Size in bytes, MD5 (what NCBI publishes), SHA-256 and XXH3-128 of a file, read once."""
    md5, sha256, xxh3 = hashlib.md5(usedforsecurity=False), hashlib.sha256(), xxhash.xxh3_128()
    size = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(1 << 20):
            size += len(data)
            for digest in (md5, sha256, xxh3):
                digest.update(data)
    return {"size": size, "md5": md5.hexdigest(), "sha256": sha256.hexdigest(), "xxh3_128": xxh3.hexdigest()}


def check_gzip(path: Path, name: str) -> None:
    """Inflate a file whose name ends in .gz, to its end. Raises DamagedError."""
    if not name.endswith(".gz"):
        return
    try:
        with path.open("rb") as raw, igzip.IGzipFile(fileobj=raw, mode="rb") as text:
            buffer = bytearray(1 << 20)
            while text.readinto(buffer):
                pass
    except (EOFError, igzip.BadGzipFile, igzip.isal_zlib.error, zlib.error) as error:
        with path.open("rb") as raw:
            start = raw.read(24)
        raise DamagedError(f"the gzip data are damaged or cut ({error}; the file begins with {start!r})") from None


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` so that `path` holds either all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    sync_folder(path.parent)
