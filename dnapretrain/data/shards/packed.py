"""Bases at 2 bits each as they are read: `.bin`, and `.exceptions` for what 2 bits cannot say (FORMAT.md).

The exceptions are changes of state, found by block: reading a window looks at the changes of its blocks alone, however many there are
(the soft-masked human genome has about 10 million). Both files are mapped; what is decoded is what a slice asks for.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from dnapretrain._core import PACKED_BLOCK, PackedBases
from dnapretrain.errors import DataError

ASCII, TWO_BIT = "ascii", "2bit"
ENCODINGS = (ASCII, TWO_BIT)
EXCEPTIONS = "exceptions"
"""A fourth file, of packed shards only."""
MAGIC = b"DNAEXCPT"
VERSION = 1
HEADER = struct.Struct("<8sQQQ")
"""Magic, version, bases, changes."""


def num_blocks(bases: int) -> int:
    """Blocks that have a place in the table of `.exceptions`."""
    return -(-bases // PACKED_BLOCK)


def map_packed(bin_path: Path, exceptions_path: Path, bases: int) -> PackedBases:
    """The bases of a packed shard, mapped read-only. Raises DataError where the files do not fit each other or `bases`."""
    try:
        packed = np.memmap(bin_path, np.uint8, mode="r")
        found = np.memmap(exceptions_path, np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise DataError(f"{bin_path}, {exceptions_path}: cannot be read: {error}. Copy the shard again") from None
    if len(found) < HEADER.size or bytes(found[: len(MAGIC)]) != MAGIC:
        raise DataError(f"{exceptions_path}: not the exceptions of packed bases (they begin with {MAGIC.decode()}). Copy the shard again")
    _, version, held, changes = HEADER.unpack(bytes(found[: HEADER.size]))
    if version != VERSION:
        raise DataError(f"{exceptions_path}: version {version}, this version reads {VERSION}. Read it with a newer dnapretrain")
    table = HEADER.size + 8 * (num_blocks(bases) + 1)
    if held != bases or len(found) != table + 3 * changes:
        raise DataError(
            f"{exceptions_path}: {len(found)} bytes with {changes} changes of {held} bases do not fit the {bases} bases of the shard: "
            "cut or of another shard. Copy both again"
        )
    before = found[HEADER.size : table].view("<i8")
    try:
        return PackedBases(packed, bases, before, found[table : table + 2 * changes].view("<u2"), found[table + 2 * changes :])
    except ValueError as error:
        raise DataError(f"{exceptions_path}: damaged: {error}. Copy the shard again") from None
