"""Base shards as they are read: `.bin` (bases), `.idx` (lengths), `.bed` (coordinates), `.json` (manifest)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.data.indexed_dataset import map_bin, read_index
from dnapretrain.errors import DataError

FORMAT = "dnapretrain-shard"
FORMAT_VERSION = 1
DATA_KINDS = ("bin", "idx", "bed")
READ_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Where each document comes from; entry i is document i. 0-based half-open."""

    contig: list[str]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    strand: list[str]
    assembly: list[str]

    def locus(self, document: int) -> str:
        """`assembly:contig:start-end` of a document as people write it: 1-based, end included."""
        return f"{self.assembly[document]}:{self.contig[document]}:{self.start[document] + 1}-{self.end[document]}"


@dataclass(frozen=True, eq=False)
class Shard:
    """A finished base shard, mapped read-only."""

    prefix: Path
    lengths: NDArray[np.int64]
    """Bases of each document."""
    offsets: NDArray[np.int64]
    """Where each document begins in `bases`."""
    bases: NDArray[np.uint8]
    """All documents, one ASCII byte for each base, case kept."""
    manifest: dict[str, Any]
    digest: str
    """XXH3-128 of the `.bin`, as 32 hexadecimal digits."""

    @cached_property
    def coordinates(self) -> Coordinates:
        """Coordinates of the documents, read from the `.bed` when first asked for. Raises DataError where it does not fit."""
        return _read_bed(shard_file(self.prefix, "bed"), self.lengths)


def shard_file(prefix: Path, kind: str) -> Path:
    """`PREFIX.kind`; a prefix may hold dots."""
    return prefix.with_name(f"{prefix.name}.{kind}")


def open_shard(prefix: str | Path) -> Shard:
    """Open a finished shard. Raises DataError where it is missing, unfinished, of another format, cut or changed in size."""
    prefix = Path(prefix)
    manifest = read_manifest(prefix)
    for kind in DATA_KINDS:
        path, size = shard_file(prefix, kind), manifest["files"][kind]["size"]
        found = _size(path)
        if found != size:
            raise DataError(f"{path}: {found} bytes, but the manifest says {size}: cut or replaced. Copy the shard again")
    index = read_index(shard_file(prefix, "idx"), manifest["files"]["bin"]["size"])
    bases = map_bin(shard_file(prefix, "bin"), np.dtype(np.uint8))
    follows = np.concatenate([[0], np.cumsum(index.lengths)])
    if index.dtype != np.uint8 or not np.array_equal(follows[:-1], index.pointers) or follows[-1] != len(bases):
        raise DataError(
            f"{prefix}.idx: not the index of a base shard (uint8 documents, one after another). Run dnapretrain preprocess again"
        )
    return Shard(prefix, index.lengths, index.pointers, bases.view(np.uint8), manifest, manifest["files"]["bin"]["xxh3_128"])


def verify_shard(prefix: str | Path) -> str:
    """Read all files of a shard again and return its digest. Raises DataError where one differs from the manifest."""
    shard = open_shard(prefix)
    for kind in DATA_KINDS:
        path, digest = shard_file(shard.prefix, kind), shard.manifest["files"][kind]["xxh3_128"]
        found = _digest(path)
        if found != digest:
            raise DataError(f"{path}: XXH3-128 is {found}, but the manifest says {digest}: the file was changed. Copy the shard again")
    return shard.digest


def read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest of a shard. Raises DataError where there is none (the shard is not finished) or it is not ours."""
    path = shard_file(prefix, "json")
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        if shard_file(prefix, "bin").exists():
            raise DataError(f"{prefix}: no manifest {path.name}, so the shard is not finished. Run dnapretrain preprocess again") from None
        raise DataError(f"{prefix}: no such shard ({path.name} is missing). Give the prefix that preprocess --output was given") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: not JSON: damaged, or not a manifest. Run dnapretrain preprocess again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of a base shard. Give the prefix that preprocess --output was given")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: shard format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}. Run preprocess again")
    files = manifest.get("files")
    if not isinstance(files, dict) or any(set(files.get(kind, ())) != {"size", "xxh3_128"} for kind in DATA_KINDS):
        raise DataError(f"{path}: section 'files' is damaged. Run dnapretrain preprocess again")
    return manifest


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. A shard is .bin, .idx, .bed and .json together") from None


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _read_bed(path: Path, lengths: NDArray[np.int64]) -> Coordinates:
    count = len(lengths)
    coordinates = Coordinates([], np.zeros(count, np.int64), np.zeros(count, np.int64), [], [])
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                contig, start, end, assembly, _, strand, _ = line.split("\t", 6)
                if number >= count or int(end) - int(start) != lengths[number] or strand not in ("+", "-"):
                    raise ValueError
                coordinates.contig.append(sys.intern(contig))
                coordinates.start[number], coordinates.end[number] = int(start), int(end)
                coordinates.strand.append(sys.intern(strand))
                coordinates.assembly.append(sys.intern(assembly))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        line_number = len(coordinates.contig) + 1
        raise DataError(
            f"{path}: line {line_number} does not fit document {line_number} of the shard: changed or damaged. Copy it again"
        ) from None
    if len(coordinates.contig) != count:
        raise DataError(f"{path}: {len(coordinates.contig)} lines for {count} documents: cut or damaged. Copy it again")
    return coordinates
