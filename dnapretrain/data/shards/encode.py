"""Shards from one encoding to the other: the last stage of `preprocess --encoding 2bit`, and `convert_shard` for finished ones.

Bases are read and written in pieces; memory goes with their number by 8 bytes for every 65,536 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.shards.indexed_dataset import CODE_AT, PACKED
from dnapretrain.data.shards.manifest import write_manifest
from dnapretrain.data.shards.packed import ENCODINGS, EXCEPTIONS, HEADER, MAGIC, TWO_BIT, VERSION
from dnapretrain.data.shards.shard import Shard, open_shard, shard_file
from dnapretrain.data.shards.writer import FileWriter, commit, read_stretch, staging_folder
from dnapretrain.errors import ConfigError, DataError

PIECE = 64 * _core.PACKED_BLOCK
UINT8 = 1


def check_encoding(encoding: str) -> None:
    """Raises ConfigError for an encoding that there is not."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"--encoding = {encoding} is not known. Give one of {', '.join(ENCODINGS)}")


def pack_staged(staging: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Pack the ASCII `bin` of a staging folder that lacks its manifest only: `bin`, `idx` and `exceptions` of a packed shard.

    `manifest` is that of the ASCII shard; returns that of the packed one. The staged `bin` is replaced once all of it is packed.
    Raises DataError where it is not the one that the manifest names.
    """
    bases = np.memmap(staging / "bin", np.uint8, mode="r")
    files = _pack(bases, staging / "bin", staging, staging / "packed", manifest["files"]["bin"])
    (staging / "packed").replace(staging / "bin")
    return _packed_manifest(manifest, files | {"idx": _write_index((staging / "idx").read_bytes(), PACKED, staging)})


def packing_notes(manifest: dict[str, Any]) -> list[str]:
    """What should be said of a shard where packing gained nothing."""
    if manifest.get("encoding") != TWO_BIT:
        return []
    packed, plain = (sum(manifest["files"][kind]["size"] for kind in ("bin", EXCEPTIONS)), manifest["bases"]["size"])
    if packed < plain:
        return []
    why = "case or ambiguous letters change too often, each change takes 3 bytes"
    return [f"2bit: {packed:,} bytes are no smaller than ASCII ({plain:,}): {why}. Use --encoding ascii"]


def convert_shard(prefix: str | Path, output: str | Path, encoding: str, overwrite: bool = False) -> dict[str, Any]:
    """Write the shard `prefix` as `output` in `encoding` (ascii, 2bit) and return its manifest. Bases, digest and all else stay.

    The shard itself may be replaced (`output` = `prefix`, `overwrite`). Raises ConfigError for an encoding that is not known or that
    it has, DataError for a shard that is not whole and an output that cannot be written.
    """
    check_encoding(encoding)
    shard, output = open_shard(prefix), Path(output)
    if shard.encoding == encoding:
        raise ConfigError(f"{prefix} is encoded in {encoding} already. Ask for {' or '.join(set(ENCODINGS) - {encoding})}, or copy it")
    with staging_folder(output, overwrite) as staging:
        index = shard_file(shard.prefix, "idx").read_bytes()
        if encoding == TWO_BIT:
            files = _pack(shard.bases, shard_file(shard.prefix, "bin"), staging, staging / "bin", shard.manifest["files"]["bin"])
            manifest = _packed_manifest(shard.manifest, files | {"idx": _write_index(index, PACKED, staging)})
        else:
            files = {"bin": _unpack(shard, staging), "idx": _write_index(index, UINT8, staging)}
            manifest = _ascii_manifest(shard.manifest, files)
        for kind in set(manifest["files"]) - {"bin", "idx", EXCEPTIONS}:
            _copy(shard_file(shard.prefix, kind), staging / kind, manifest["files"][kind])
        write_manifest(staging, manifest)
        commit(staging, output)
    return manifest


def _pieces(bases: NDArray[np.uint8] | _core.PackedBases) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(bases), PIECE):
        yield np.asarray(bases[start : start + PIECE])


def checked_bases(shard: Shard) -> Iterator[NDArray[np.uint8]]:
    """All bases of a shard in ASCII, piece by piece. Raises DataError at the end where they are not those of the manifest."""
    digest = xxhash.xxh3_128()
    for piece in _pieces(shard.bases):
        digest.update(piece.data)
        yield piece
    if digest.hexdigest() != shard.digest:
        raise DataError(f"{shard.prefix}: its bases are not those of the manifest ({shard.digest}): the files were changed. Copy it again")


def _pack(
    bases: NDArray[np.uint8] | _core.PackedBases, source: Path, staging: Path, target: Path, expected: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write `target` and the exceptions; entries for the manifest."""
    digest, state, per_block = xxhash.xxh3_128(), 0, [np.zeros(1, np.int64)]
    spools = staging / "offsets", staging / "states"
    with FileWriter(target) as bin_writer, spools[0].open("wb") as offsets_file, spools[1].open("wb") as states_file:
        for number, piece in enumerate(_pieces(bases)):
            digest.update(piece.data)
            try:
                packed, offsets, states, counts, state = _core.pack_bases(piece, state)
            except ValueError as error:
                raise DataError(f"{source}: {error} (counted from base {number * PIECE}): damaged. Make the shard again") from None
            bin_writer.write(packed.data)
            offsets_file.write(offsets.astype("<u2").data)
            states_file.write(states.data)
            per_block.append(counts)
    if digest.hexdigest() != expected["xxh3_128"]:
        raise DataError(f"{source}: XXH3-128 is {digest.hexdigest()}, but the manifest says {expected['xxh3_128']}: the file was changed")
    before = np.cumsum(np.concatenate(per_block)).astype("<i8")
    with FileWriter(staging / EXCEPTIONS) as writer:
        writer.write(HEADER.pack(MAGIC, VERSION, len(bases), int(before[-1])) + before.tobytes())
        for spool in spools:
            _append(spool, writer)
            spool.unlink()
    return {"bin": bin_writer.entry(), EXCEPTIONS: writer.entry()}


def _unpack(shard: Shard, staging: Path) -> dict[str, Any]:
    with FileWriter(staging / "bin") as writer:
        for piece in checked_bases(shard):
            writer.write(piece.data)
    return writer.entry()


def _write_index(index: bytes, code: int, staging: Path) -> dict[str, Any]:
    with FileWriter(staging / "idx") as writer:
        writer.write(index[:CODE_AT] + bytes([code]) + index[CODE_AT + 1 :])
    return writer.entry()


def _packed_manifest(manifest: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    for key, value in manifest.items():
        packed[key] = value | files if key == "files" else value
        if key == "content":
            packed["encoding"] = TWO_BIT
        if key == "files":
            packed["bases"] = value["bin"]
    return packed


def _ascii_manifest(manifest: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    unpacked = {key: value for key, value in manifest.items() if key not in ("encoding", "bases")}
    unpacked["files"] = {kind: entry for kind, entry in (manifest["files"] | files).items() if kind != EXCEPTIONS}
    return unpacked


def _append(path: Path, writer: FileWriter) -> None:
    for data in read_stretch(path, 0, path.stat().st_size):
        writer.write(data)


def _copy(path: Path, target: Path, expected: dict[str, Any]) -> None:
    with FileWriter(target) as writer:
        _append(path, writer)
    if writer.entry() != expected:
        raise DataError(f"{path}: not the file that the manifest names: changed. Copy the shard again")
