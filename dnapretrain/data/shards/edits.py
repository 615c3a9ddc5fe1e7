"""The edit list of a haplotype shard, `PREFIX.edits`: where each base of a document lies on the reference, and back.

Layout, little-endian: magic (8 bytes `DNAEDITS`), version u64 = 1, then one row of four int32 for each edit, documents one
after another, then int64[documents + 1]: the number of edits before each document, and of all. A row says that bases
[ref_offset, ref_offset + ref_length) of the reference document were replaced by bases [offset, offset + length) of this
one; offsets count from the beginning of either document. Bases that both alleles begin or end with are not part of an edit.

    first = np.fromfile(path, "<i8")[-documents - 1 :]          # any file size is a multiple of 8
    rows = np.memmap(path, "<i4", "r", offset=16, shape=(first[-1], 4))
    of_document = rows[first[d] : first[d + 1]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnapretrain.errors import DataError

MAGIC = b"DNAEDITS"
VERSION = 1
HEADER = MAGIC + VERSION.to_bytes(8, "little")
REF_OFFSET, REF_LENGTH, OFFSET, LENGTH = range(4)
ROW_BYTES = 16


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits of the D documents of a shard."""

    rows: NDArray[np.int32]
    """(edits, 4), columns REF_OFFSET, REF_LENGTH, OFFSET, LENGTH; mapped, sorted within each document."""
    first: NDArray[np.int64]
    """(D + 1,): where the edits of each document begin."""

    def grown(self) -> NDArray[np.int64]:
        """(D,): bases that each document is longer than its interval of the reference."""
        last = (
            self.rows[np.maximum(self.first[1:] - 1, 0)].astype(np.int64)
            if len(self.rows)
            else np.zeros((len(self.first) - 1, 4), np.int64)
        )
        grown = last[:, OFFSET] + last[:, LENGTH] - last[:, REF_OFFSET] - last[:, REF_LENGTH]
        return np.where(self.first[1:] > self.first[:-1], grown, 0)

    def to_reference(self, documents: ArrayLike, offsets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Bases of documents -> bases of the reference documents, both counted from the beginning; never falling.

        The second array tells which bases stand for a base of the reference: copied, or put in its place. Of a replacement with
        another length the first bases stand for each other. An inserted base gets the reference base before it (the first of the
        document where there is none).
        """
        documents, offsets = np.broadcast_arrays(np.asarray(documents, np.int64), np.asarray(offsets, np.int64))
        row, found = self._last_edit(OFFSET, documents, offsets)
        ref_offset, ref_length, offset, length = row.T
        within = offsets - offset
        in_edit = found & (within < length)
        inside = ref_offset + np.minimum(within, ref_length - 1)
        after = ref_offset + ref_length + within - length
        places = np.where(found, np.where(in_edit, inside, after), offsets)
        return np.maximum(places, 0), ~in_edit | (within < ref_length)

    def from_reference(self, documents: ArrayLike, places: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The inverse. A base of the reference that the document lacks gets the first base after it (False in the second array)."""
        documents, places = np.broadcast_arrays(np.asarray(documents, np.int64), np.asarray(places, np.int64))
        row, found = self._last_edit(REF_OFFSET, documents, places)
        ref_offset, ref_length, offset, length = row.T
        within = places - ref_offset
        in_edit = found & (within < ref_length)
        inside = offset + np.minimum(within, length)
        after = offset + length + within - ref_length
        return np.where(found, np.where(in_edit, inside, after), places), ~in_edit | (within < length)

    def cuts(self, documents: ArrayLike, places: ArrayLike) -> NDArray[np.int64]:
        """Where documents are cut if their reference is cut before `places`: what is inserted stays with the base before it."""
        return np.where(np.asarray(places) > 0, self.from_reference(documents, places)[0], 0)

    def count_until(self, column: int, documents: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place in `rows` behind the last edit of each document whose `column` is not above the value: a binary search for all at once."""
        low, high = self.first[documents], self.first[documents + 1]
        while (low < high).any():
            middle = (low + high) // 2
            below = (low < high) & (self.rows[np.minimum(middle, len(self.rows) - 1), column] <= values)
            low, high = np.where(below, middle + 1, low), np.where(below, high, np.minimum(middle, high))
        return low

    def _last_edit(
        self, column: int, documents: NDArray[np.int64], values: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The last edit of each document whose `column` is not above the value (n, 4), and whether there is one."""
        behind = self.count_until(column, documents, values)
        rows = self.rows[np.maximum(behind - 1, 0)].astype(np.int64) if len(self.rows) else np.zeros((*behind.shape, 4), np.int64)
        return rows, behind > self.first[documents]


def edits_tail(counts: Sequence[int]) -> bytes:
    """What ends the file, for the number of edits of each document."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype("<i8").tobytes()


def read_edits(path: Path, num_documents: int) -> Edits:
    """Map an edit list. Raises DataError where it is cut, foreign, or of another number of documents."""
    tail = 8 * (num_documents + 1)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(HEADER))
            file.seek(max(0, size - tail))
            first = np.frombuffer(file.read(), "<i8").astype(np.int64) if size % 8 == 0 else np.zeros(0, np.int64)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    rows = size - len(HEADER) - tail
    if head != HEADER or len(first) != num_documents + 1 or first[0] != 0 or first[-1] * ROW_BYTES != rows or (np.diff(first) < 0).any():
        raise DataError(
            f"{path}: not the edit list (version {VERSION}) of {num_documents} documents: cut, damaged or foreign. Copy it again"
        )
    if not rows:
        return Edits(np.zeros((0, 4), np.int32), first)
    return Edits(np.memmap(path, "<i4", "r", len(HEADER), (int(first[-1]), 4)), first)
