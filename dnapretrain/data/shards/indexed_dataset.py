"""Megatron's `.bin`/`.idx` pair: one writer, and a reader that checks every bound before it is used.

Layout of `.idx`, little-endian, as megatron/core/datasets/indexed_dataset.py (0.16.1) reads it: magic
(9 bytes), version u64 = 1, dtype code u8, number of sequences u64, length of the document index u64,
lengths int32[sequences], byte pointers int64[sequences], document index int64[documents + 1].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
MAX_LENGTH = 2**31 - 1
BLOCK = 1 << 18
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
PACKED = 0x82
"""Dtype code of bases at 2 bits each, lengths and pointers in bases. No code of Megatron's: it refuses such an index instead of
reading packed bytes as bases."""
CODE_AT = 17
"""Byte of the `.idx` that holds the dtype code."""


@dataclass(frozen=True)
class Index:
    """What an `.idx` file says. Arrays are int64."""

    dtype: np.dtype[np.generic]
    lengths: NDArray[np.int64]
    """Elements of each sequence."""
    pointers: NDArray[np.int64]
    """Byte at which each sequence begins in the `.bin`."""
    documents: NDArray[np.int64]
    """First sequence of each document, then the number of sequences."""
    packed: bool = False
    """Of bases at 2 bits each: pointers are bases, as lengths are."""


def index_bytes(lengths: NDArray[np.int64]) -> bytes:
    """The `.idx` of uint8 sequences that follow each other in the `.bin`, each a document of its own."""
    if len(lengths) and not (lengths.min() >= 0 and lengths.max() <= MAX_LENGTH):
        raise ValueError(f"sequence lengths run from {lengths.min()} to {lengths.max()}; the index holds 0 to {MAX_LENGTH}")
    return b"".join(index_blocks(lengths))


def index_blocks(lengths: NDArray[np.integer[Any]]) -> Iterator[bytes]:
    """The same block by block, for lengths that are within bounds."""
    count = len(lengths)
    yield HEADER.pack(MAGIC, VERSION, 1, count, count + 1)
    for first in range(0, count, BLOCK):
        yield lengths[first : first + BLOCK].astype("<i4").tobytes()
    at = 0
    for first in range(0, count, BLOCK):
        ends = at + np.cumsum(lengths[first : first + BLOCK], dtype=np.int64)
        yield np.concatenate([[at], ends[:-1]]).astype("<i8").tobytes()
        at = int(ends[-1])
    for first in range(0, count + 1, BLOCK):
        yield np.arange(first, min(first + BLOCK, count + 1), dtype="<i8").tobytes()


def read_index(path: Path, bin_size: int) -> Index:
    """Read an `.idx` whose `.bin` has `bin_size` bytes (packed: bases). Raises DataError where it is cut, foreign, or points outside."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DataError(f"{path}: not a Megatron index (it should begin with MMIDIDX). Write the shard again with dnapretrain preprocess")
    _, version, code, num_sequences, num_documents = HEADER.unpack_from(data)
    if version != VERSION or code not in (*DTYPES, PACKED):
        raise DataError(f"{path}: index version {version} with dtype code {code}; known are version {VERSION}, codes 1 to {len(DTYPES)}")
    expected = HEADER.size + 12 * num_sequences + 8 * num_documents
    if len(data) != expected:
        raise DataError(f"{path}: {len(data)} bytes, but its {num_sequences} sequences need {expected}: cut or damaged. Copy it again")
    dtype = np.dtype(DTYPES.get(code, np.uint8))
    lengths = np.frombuffer(data, "<i4", num_sequences, HEADER.size).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", num_sequences, HEADER.size + 4 * num_sequences).astype(np.int64)
    documents = np.frombuffer(data, "<i8", num_documents, HEADER.size + 12 * num_sequences).astype(np.int64)
    _check_bounds(path, dtype, lengths, pointers, bin_size)
    if num_documents == 0 or documents[0] != 0 or documents[-1] != num_sequences or (np.diff(documents) < 0).any():
        raise DataError(f"{path}: its document index does not run from 0 to {num_sequences}: damaged. Copy it again")
    return Index(dtype, lengths, pointers, documents, code == PACKED)


def map_bin(path: Path, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """The elements of a `.bin`, mapped read-only. Raises DataError where it is missing, empty, or cut."""
    try:
        size = path.stat().st_size
        if size == 0 or size % dtype.itemsize:
            raise DataError(f"{path}: {size} bytes are not a positive number of {dtype} elements: cut or damaged. Copy it again")
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_bounds(path: Path, dtype: np.dtype[np.generic], lengths: NDArray[np.int64], pointers: NDArray[np.int64], bin_size: int) -> None:
    # Compared without adding to a pointer, which could overflow in a damaged file.
    room = bin_size - lengths * dtype.itemsize
    wrong = np.flatnonzero((lengths < 0) | (pointers < 0) | (pointers > room))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{path}: sequence {first} ({lengths[first]} elements from byte {pointers[first]}) lies outside the {bin_size} bytes "
            "of the .bin: one of the two files is cut or damaged. Copy both again"
        )
