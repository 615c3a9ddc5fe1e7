"""Whole records of a sequence file, one after the other: what FASTA prompts, tables and intervals are cut from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dnapretrain.data.formats.fasta import CutPolicy, FastaFile

LETTERS = frozenset("ACGTNRYSWKMBDHV")
"""What a sequence may hold, U beside: anything but A, C, G, T is read as in training, as N or as the unknown token."""

_WHOLE = CutPolicy(min_n_run=np.iinfo(np.int64).max)


def read_records(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, description and bases (as stored, T for U) of each record of a file in any format that `preprocess` reads, in order.

    Runs of N stay. One record is held at a time. Raises DataError naming the file, and the line and the record where there are any.
    """
    texts: dict[int, list[bytes]] = {}
    ended, waiting = 0, bytearray()
    for block in FastaFile(path, _WHOLE).blocks():
        waiting += block.bases.tobytes()  # a document may begin in one block and end in a later one
        at = 0
        for record, start, end in block.documents.tolist():
            texts.setdefault(record, []).append(bytes(waiting[at : at + end - start]))
            at += end - start
        del waiting[:at]
        for name, description in block.headers:
            yield name, description, b"".join(texts.pop(ended, [])).decode("ascii")
            ended += 1
