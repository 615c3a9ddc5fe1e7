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

from dnapretrain._core import PackedBases
from dnapretrain.data.shards.edits import Edits, read_edits
from dnapretrain.data.shards.indexed_dataset import map_bin, read_index
from dnapretrain.data.shards.packed import ASCII, ENCODINGS, EXCEPTIONS, TWO_BIT, map_packed
from dnapretrain.errors import DataError

FORMAT = "dnapretrain-shard"
FORMAT_VERSION = 1
DATA_KINDS = ("bin", "idx", "bed")
EDITS = "edits"
"""A fourth file, of haplotype shards only."""
LABELS = "labels.tsv"
"""A fourth file, of shards made by `extract` only: feature, type, strand and clade of each document."""
HAPLOTYPES = "haplotypes"
"""`content` of their manifests."""
READ_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Blocks:
    """The stretches of contig that make up spliced documents, one after another; 0-based half-open."""

    first: NDArray[np.int64]
    """(documents + 1,): the first block of each document, then the number of blocks."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """On the contig, in the order of the document on its plus strand: ascending, but for documents across the origin of a
    circular contig and trans-spliced ones."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Where each document comes from; entry i is document i. 0-based half-open."""

    contig: list[str]
    span_start: NDArray[np.int64]
    span_end: NDArray[np.int64]
    """From the first to the last base on the contig, introns included."""
    strand: list[str]
    """'-': what is stored is the reverse complement."""
    assembly: list[str]
    blocks: Blocks | None = None
    """None: each document is one stretch."""
    haplotype: tuple[str, ...] = ()
    """`sample.1` or `sample.2`; empty for shards without haplotypes."""
    edits: Edits | None = None
    """Where haplotypes differ from their stretch; they are never spliced or reversed."""

    @cached_property
    def minus(self) -> NDArray[np.bool_]:
        """Which documents are stored as the reverse complement."""
        return np.fromiter((sign == "-" for sign in self.strand), np.bool_, len(self.strand))

    @property
    def start(self) -> NDArray[np.int64]:
        """First base of each document, of a shard without spliced documents: others are not start + offset. Raises DataError."""
        self._check_unspliced()
        return self.span_start

    @property
    def end(self) -> NDArray[np.int64]:
        """End of each document, as `start`."""
        self._check_unspliced()
        return self.span_end

    def locus(self, document: int) -> str:
        """`assembly:contig:start-end` of a document as people write it: 1-based, end included, introns included."""
        return f"{self.assembly[document]}:{self.contig[document]}:{self.span_start[document] + 1}-{self.span_end[document]}"

    def pieces(self, document: int, start: int, end: int) -> list[tuple[int, int]]:
        """Contig intervals of bases [start, end) of a stored document, in the order in which they are stored.

        Of haplotypes: what lies between the reference bases that their first and last base stand for.
        """
        blocks = [(int(self.span_start[document]), int(self.span_end[document]))]
        if self.blocks is not None:
            chosen = slice(int(self.blocks.first[document]), int(self.blocks.first[document + 1]))
            blocks = list(zip(self.blocks.start[chosen].tolist(), self.blocks.end[chosen].tolist(), strict=True))
        if self.edits is not None and start < end:
            ends, _ = self.edits.to_reference(document, [start, end - 1])
            start, end = int(ends[0]), int(ends[1]) + 1
        minus = self.strand[document] == "-"
        found, at = [], 0
        for first, last in reversed(blocks) if minus else blocks:
            begin, finish = max(start - at, 0), min(end - at, last - first)
            if begin < finish:
                found.append((last - finish, last - begin) if minus else (first + begin, first + finish))
            at += last - first
        return found

    def _check_unspliced(self) -> None:
        if self.blocks is not None:
            pieces = np.diff(self.blocks.first)
            document = int(pieces.argmax())
            raise DataError(
                f"{self.locus(document)} is spliced from {pieces[document]} pieces, and this needs documents that are one stretch of a "
                "contig. Give the base shard, or one made by dnapretrain extract --features gene"
            )


@dataclass(frozen=True, eq=False)
class Shard:
    """A finished base shard, mapped read-only."""

    prefix: Path
    lengths: NDArray[np.int64]
    """Bases of each document."""
    offsets: NDArray[np.int64]
    """Where each document begins in `bases`."""
    bases: NDArray[np.uint8] | PackedBases
    """All documents, one ASCII byte for each base, case kept. Slices of packed bases are decoded: read what you need, piece by piece."""
    manifest: dict[str, Any]
    digest: str
    """XXH3-128 of the bases as ASCII, in 32 hexadecimal digits: the same for both encodings."""

    @property
    def encoding(self) -> str:
        """How the `.bin` holds the bases: one of ENCODINGS."""
        return encoding_of(self.manifest)

    @cached_property
    def coordinates(self) -> Coordinates:
        """Coordinates of the documents, read from the `.bed` when first asked for. Raises DataError where it does not fit."""
        spans = self.lengths if self.edits is None else self.lengths - self.edits.grown()
        return _read_bed(shard_file(self.prefix, "bed"), spans, self.edits)

    @cached_property
    def edits(self) -> Edits | None:
        """Where documents differ from the interval of the reference that their coordinates name; None: nowhere (no haplotypes)."""
        if EDITS not in self.manifest["files"]:
            return None
        return read_edits(shard_file(self.prefix, EDITS), len(self.lengths))

    def reference_position(self, document: int, offset: int) -> tuple[int, bool]:
        """Position on the contig of a base of a document of the plus strand; False: the base was inserted after that position."""
        place, exact = (offset, True) if self.edits is None else self.edits.to_reference(document, offset)
        return int(self.coordinates.start[document]) + int(place), bool(exact)

    def document_offset(self, document: int, position: int) -> tuple[int, bool]:
        """The inverse; False: this document lacks the base, and the offset is that of the first base after it."""
        place = position - int(self.coordinates.start[document])
        offset, exact = (place, True) if self.edits is None else self.edits.from_reference(document, place)
        return int(offset), bool(exact)


def shard_file(prefix: Path, kind: str) -> Path:
    """`PREFIX.kind`; a prefix may hold dots."""
    return prefix.with_name(f"{prefix.name}.{kind}")


def open_shard(prefix: str | Path) -> Shard:
    """Open a finished shard. Raises DataError where it is missing, unfinished, of another format, cut or changed in size."""
    prefix = Path(prefix)
    manifest = read_manifest(prefix)
    for kind in manifest["files"]:
        path, size = shard_file(prefix, kind), manifest["files"][kind]["size"]
        found = _size(path)
        if found != size:
            raise DataError(f"{path}: {found} bytes, but the manifest says {size}: cut or replaced. Copy the shard again")
    packed = encoding_of(manifest) == TWO_BIT
    content = manifest["bases"] if packed else manifest["files"]["bin"]
    index = read_index(shard_file(prefix, "idx"), content["size"])
    follows = np.concatenate([[0], np.cumsum(index.lengths)])
    in_order = np.array_equal(follows[:-1], index.pointers) and follows[-1] == content["size"]
    if index.dtype != np.uint8 or index.packed != packed or not in_order:
        raise DataError(
            f"{prefix}.idx: not the index of a base shard (uint8 documents, one after another). Run dnapretrain preprocess again"
        )
    bases: NDArray[np.uint8] | PackedBases
    if packed:
        bases = map_packed(shard_file(prefix, "bin"), shard_file(prefix, EXCEPTIONS), content["size"])
    else:
        bases = map_bin(shard_file(prefix, "bin"), np.dtype(np.uint8)).view(np.uint8)
    return Shard(prefix, index.lengths, index.pointers, bases, manifest, content["xxh3_128"])


def verify_shard(prefix: str | Path) -> str:
    """Read all files of a shard again and return its digest. Raises DataError where one differs from the manifest."""
    shard = open_shard(prefix)
    for kind in shard.manifest["files"]:
        path, digest = shard_file(shard.prefix, kind), shard.manifest["files"][kind]["xxh3_128"]
        found = _digest(path)
        if found != digest:
            raise DataError(f"{path}: XXH3-128 is {found}, but the manifest says {digest}: the file was changed. Copy the shard again")
    if shard.encoding == TWO_BIT:
        _check_bases(shard)
    return shard.digest


def encoding_of(manifest: dict[str, Any]) -> str:
    """How the `.bin` of a manifest holds its bases. Raises DataError for an encoding of another version."""
    encoding = manifest.get("encoding", ASCII)
    if encoding not in ENCODINGS:
        raise DataError(f"shard encoding '{encoding}' is not known, only {' and '.join(ENCODINGS)}. Read it with a newer dnapretrain")
    return str(encoding)


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
    if not isinstance(files, dict) or any(set(files.get(kind, ())) != {"size", "xxh3_128"} for kind in {*DATA_KINDS, *files}):
        raise DataError(f"{path}: section 'files' is damaged. Run dnapretrain preprocess again")
    if encoding_of(manifest) == TWO_BIT and (EXCEPTIONS not in files or set(manifest.get("bases", ())) != {"size", "xxh3_128"}):
        raise DataError(f"{path}: section 'files' or 'bases' of packed bases is damaged. Run dnapretrain preprocess again")
    return manifest


def _check_bases(shard: Shard) -> None:
    digest = xxhash.xxh3_128()
    for start in range(0, len(shard.bases), READ_BYTES):
        digest.update(shard.bases[start : start + READ_BYTES].data)
    if digest.hexdigest() != shard.digest:
        raise DataError(
            f"{shard.prefix}: its bases have XXH3-128 {digest.hexdigest()}, but the manifest says {shard.digest}: "
            ".bin, .exceptions and .json are not of one shard. Copy it again"
        )


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


def _read_bed(path: Path, spans: NDArray[np.int64], edits: Edits | None) -> Coordinates:
    """`spans`: bases of each document on its contig. Lines of haplotypes have a 13th column."""
    count = len(spans)
    contig: list[str] = []
    strand: list[str] = []
    assembly: list[str] = []
    haplotype: list[str] = []
    span = np.zeros((2, count), np.int64)
    blocks: list[tuple[int, int]] = []
    first = [0]
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                name, start, end, source, _, sign, _, _, _, *pieces = line.rstrip("\n").split("\t")
                stretches = _stretches(int(start), int(end), *(pieces if edits is None else pieces[:-1]))
                if number >= count or sum(to - from_ for from_, to in stretches) != spans[number] or sign not in ("+", "-"):
                    raise ValueError
                blocks += stretches
                first.append(len(blocks))
                span[:, number] = int(start), int(end)
                contig.append(sys.intern(name))
                strand.append(sys.intern(sign))
                assembly.append(sys.intern(source))
                if edits is not None:
                    haplotype.append(sys.intern(pieces[-1]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError):
        line_number = len(contig) + 1
        raise DataError(
            f"{path}: line {line_number} does not fit document {line_number} of the shard: changed or damaged. Copy it again"
        ) from None
    if len(contig) != count:
        raise DataError(f"{path}: {len(contig)} lines for {count} documents: cut or damaged. Copy it again")
    if len(blocks) == count:
        return Coordinates(contig, span[0], span[1], strand, assembly, haplotype=tuple(haplotype), edits=edits)
    table = np.array(blocks, np.int64)
    return Coordinates(contig, span[0], span[1], strand, assembly, Blocks(np.array(first, np.int64), table[:, 0], table[:, 1]))


def _stretches(start: int, end: int, count: str, sizes: str, offsets: str) -> list[tuple[int, int]]:
    """Contig intervals of a BED12 line. Raises ValueError where they do not reach from `start` to `end`."""
    if count == "1" and int(sizes) == end - start and offsets == "0":
        return [(start, end)]
    pairs = zip(offsets.split(","), sizes.split(","), strict=True)
    stretches = [(start + int(offset), start + int(offset) + int(size)) for offset, size in pairs]
    reach = min(from_ for from_, _ in stretches), max(to for _, to in stretches)
    if len(stretches) != int(count) or reach != (start, end) or any(from_ >= to for from_, to in stretches):
        raise ValueError
    return stretches
