"""Several shards to one, as if one run had made it of all their inputs: for the shards of an array of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.data.shards.edits import HEADER as EDITS_HEADER
from dnapretrain.data.shards.edits import ROW_BYTES
from dnapretrain.data.shards.encode import check_encoding, checked_bases, pack_staged
from dnapretrain.data.shards.indexed_dataset import BLOCK, MAGIC, PACKED, VERSION, index_blocks
from dnapretrain.data.shards.indexed_dataset import HEADER as INDEX_HEADER
from dnapretrain.data.shards.manifest import base_manifest, sum_counts, write_manifest
from dnapretrain.data.shards.packed import ASCII, EXCEPTIONS, TWO_BIT
from dnapretrain.data.shards.shard import DATA_KINDS, EDITS, HAPLOTYPES, LABELS, encoding_of, open_shard, read_manifest, shard_file
from dnapretrain.data.shards.writer import FileWriter, commit, read_stretch, staging_folder
from dnapretrain.errors import ConfigError, DataError

SECTIONS = ("haplotypes", "extraction")
"""Of manifests that are not preprocess's own; a merged shard has a list of them."""


def merge(
    prefixes: Sequence[str | Path], output: str | Path, overwrite: bool = False, move: bool = False, encoding: str = ASCII
) -> dict[str, Any]:
    """Join shards of either encoding in the order given, the result in `encoding`; return the manifest.

    The result is byte for byte what one preprocess of all their inputs in this order writes. Every digest is checked while
    its file is read; memory does not grow with the bases. `move` removes the shards once the result is complete.
    Raises ConfigError where they were not made with the same cleaning, DataError where they cannot be joined or are damaged.
    """
    check_encoding(encoding)
    paths, output = [Path(prefix) for prefix in prefixes], Path(output)
    manifests = [read_manifest(path) for path in paths]
    _check(paths, manifests, output)
    optional = [kind for kind in (EDITS, LABELS) if kind in manifests[0]["files"]]
    with staging_folder(output, overwrite) as staging:
        files = _join(staging, paths, manifests, optional)
        lengths = np.memmap(staging / "lengths", "<i4", "r")
        manifest = _manifest(manifests, lengths, files)
        if encoding == TWO_BIT:
            manifest = pack_staged(staging, manifest)
        write_manifest(staging, manifest)
        commit(staging, output)
    if move:
        for path, old in zip(paths, manifests, strict=True):
            for kind in ("json", *old["files"]):  # without its manifest no shard looks finished
                shard_file(path, kind).unlink(missing_ok=True)
    return manifest


def _check(paths: Sequence[Path], manifests: Sequence[dict[str, Any]], output: Path) -> None:
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} shard(s) to merge. Give at least two prefixes")
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: given twice. Name each shard once")
        if path.resolve() == output.resolve():
            raise DataError(f"{path}: --output is one of the shards to merge. Choose another --output")
        seen[path.resolve()] = path
    first = manifests[0]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        if _kind(manifest) != _kind(first):
            raise DataError(f"{paths[0]} holds {_kind(first)}, {path} {_kind(manifest)}. Merge shards of one kind only")
        _check_cleaning(paths[0], first["cleaning"], path, manifest["cleaning"])
        if set(_kinds(manifest)) != set(_kinds(first)):
            raise DataError(f"{paths[0]} has the files {', '.join(first['files'])}, {path} {', '.join(manifest['files'])}")
    _check_sources(paths, manifests)


def _kinds(manifest: dict[str, Any]) -> list[str]:
    """The files of a shard in ASCII."""
    return [kind for kind in manifest["files"] if kind != EXCEPTIONS]


def _kind(manifest: dict[str, Any]) -> str:
    return "extracted regions" if "extraction" in manifest else str(manifest["content"])


def _check_cleaning(one: Path, cleaning: dict[str, Any], other: Path, other_cleaning: dict[str, Any]) -> None:
    for key in sorted({*cleaning, *other_cleaning}):
        values = [found.get(key, "not set") for found in (cleaning, other_cleaning)]
        if values[0] != values[1]:
            raise ConfigError(
                f"{one} was made with {key} = {values[0]}, {other} with {key} = {values[1]}. "
                "Run dnapretrain preprocess again with the same settings for all"
            )


def _check_sources(paths: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> None:
    """Nothing may come in twice: an assembly, or of haplotypes a sample of the same VCF."""
    holder: dict[tuple[str, ...], Path] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest["content"] == HAPLOTYPES:
            sections = manifest["haplotypes"] if isinstance(manifest["haplotypes"], list) else [manifest["haplotypes"]]
            names: list[tuple[str, ...]] = [
                ("sample", name, vcf["xxh3_128"]) for made in sections for name in made["samples"] for vcf in made["vcf"]
            ]
        else:
            names = [("assembly", source["assembly"]) for source in manifest["sources"]]
        for name in names:
            if name in holder:
                raise DataError(f"{path}: {name[0]} '{name[1]}' is in {holder[name]} already. Leave one of the two shards out")
        holder |= dict.fromkeys(names, path)


def _join(staging: Path, paths: Sequence[Path], manifests: Sequence[dict[str, Any]], optional: Sequence[str]) -> dict[str, Any]:
    """Stage all files of the result; their entries."""
    with ExitStack() as stack:
        writers = {kind: stack.enter_context(FileWriter(staging / kind)) for kind in (*DATA_KINDS, *optional)}
        lengths = stack.enter_context(FileWriter(staging / "lengths", durable=False))
        tail = stack.enter_context(FileWriter(staging / "tail", durable=False)) if EDITS in optional else None
        if tail is not None:
            writers[EDITS].write(EDITS_HEADER)
        for path, manifest in zip(paths, manifests, strict=True):
            for data in _bases(path, manifest):
                writers["bin"].write(data)
            for data in _checked(path, manifest, "bed"):
                writers["bed"].write(data)
            documents = _append_lengths(path, manifest, lengths)
            if tail is not None:
                _append_edits(path, manifest, documents, writers[EDITS], tail)
            if LABELS in optional:
                _append_labels(path, manifest, writers[LABELS], first=path is paths[0])
        lengths.flush()
        if tail is not None:
            tail.write(np.int64(writers[EDITS].size - len(EDITS_HEADER)).astype("<i8").tobytes())
            tail.flush()
            for data in read_stretch(tail.path, 0, tail.size):
                writers[EDITS].write((np.frombuffer(data, "<i8") // ROW_BYTES).astype("<i8").tobytes())
        for block in index_blocks(np.memmap(lengths.path, "<i4", "r")):
            writers["idx"].write(block)
    return {kind: writers[kind].entry() for kind in _kinds(manifests[0])}


def _bases(prefix: Path, manifest: dict[str, Any]) -> Iterator[memoryview]:
    """The bases of a shard in ASCII. Raises DataError where they are not those of the manifest."""
    if encoding_of(manifest) == ASCII:
        yield from _checked(prefix, manifest, "bin")
        return
    for piece in checked_bases(open_shard(prefix)):
        yield piece.data


def _checked(prefix: Path, manifest: dict[str, Any], kind: str, start: int = 0, end: int | None = None) -> Iterator[memoryview]:
    """The bytes of a file of a shard, or a stretch of them. Raises DataError where its size or, at the end, its digest is another one."""
    path, entry, digest, at = shard_file(prefix, kind), manifest["files"][kind], xxhash.xxh3_128(), 0
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            raise DataError(f"{path}: {size} bytes, but the manifest says {entry['size']}: cut or replaced. Copy the shard again")
        for data in read_stretch(path, 0, size):
            digest.update(data)
            wanted = data[max(0, start - at) : max(0, (size if end is None else end) - at)]
            at += len(data)
            if wanted:
                yield wanted
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. A shard is .bin, .idx, .bed and .json together") from None
    found, expected = digest.hexdigest(), entry["xxh3_128"]
    if found != expected:
        raise DataError(f"{path}: XXH3-128 is {found}, but the manifest says {expected}: the file was changed. Copy the shard again")


def _append_lengths(prefix: Path, manifest: dict[str, Any], lengths: FileWriter) -> int:
    """The lengths of the documents of a shard; their number."""
    path = shard_file(prefix, "idx")
    documents = int(manifest["counts"]["documents"])
    start, end = INDEX_HEADER.size, INDEX_HEADER.size + 4 * documents
    head = b"".join(map(bytes, _checked(prefix, manifest, "idx", 0, start)))
    code = 1 if encoding_of(manifest) == ASCII else PACKED
    if head != INDEX_HEADER.pack(MAGIC, VERSION, code, documents, documents + 1):
        raise DataError(f"{path}: not the index of {documents} documents, as the manifest says. Run dnapretrain preprocess again")
    total = 0
    rest = b""
    for data in _checked(prefix, manifest, "idx", start, end):
        lengths.write(data)
        rest += bytes(data)
        whole = len(rest) // 4 * 4
        total += int(np.frombuffer(rest[:whole], "<i4").sum(dtype=np.int64))
        rest = rest[whole:]
    held = manifest.get("bases", manifest["files"]["bin"])["size"]
    if total != held:
        raise DataError(f"{path}: documents of {total} bases together, but the .bin holds {held}. Copy it again")
    return documents


def _append_edits(prefix: Path, manifest: dict[str, Any], documents: int, edits: FileWriter, tail: FileWriter) -> None:
    """The rows of an edit list; for each document, where its rows begin in the rows of the result, in bytes."""
    end = manifest["files"][EDITS]["size"] - 8 * (documents + 1)
    before = edits.size - len(EDITS_HEADER)
    for data in _checked(prefix, manifest, EDITS, len(EDITS_HEADER), end):
        edits.write(data)
    first = np.memmap(shard_file(prefix, EDITS), "<i8", "r", offset=end, shape=(documents + 1,))
    for at in range(0, documents, BLOCK):
        tail.write((first[at : min(at + BLOCK, documents)] * ROW_BYTES + before).astype("<i8").tobytes())


def _append_labels(prefix: Path, manifest: dict[str, Any], labels: FileWriter, first: bool) -> None:
    path = shard_file(prefix, LABELS)
    with path.open("rb") as file:
        header = file.readline()
    if first:
        labels.write(header)
    for data in _checked(prefix, manifest, LABELS, len(header)):
        labels.write(data)


def _manifest(manifests: Sequence[dict[str, Any]], lengths: NDArray[np.int32], files: dict[str, Any]) -> dict[str, Any]:
    first = manifests[0]
    sources: list[dict[str, Any]] = []
    for manifest in manifests:  # haplotypes share those of their reference
        sources += [source for source in manifest["sources"] if first["content"] != HAPLOTYPES or source not in sources]
    skipped = [entry for manifest in manifests for entry in manifest.get("skipped", [])]
    made = base_manifest(first["cleaning"], sources, skipped, (int(lengths.max()), int(lengths.min())), files)
    made |= {"content": first["content"], "counts": sum_counts(manifest["counts"] for manifest in manifests)}
    for section in SECTIONS:
        found = [manifest[section] for manifest in manifests if section in manifest]
        if found:
            made[section] = [item for entry in found for item in (entry if isinstance(entry, list) else [entry])]
    return made
