"""Edits applied to a document of the reference: the bases of a haplotype, and what the edit list says of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_BASES = 1 << 22
LOWER_CASE = np.uint8(0x20)
NO_EDITS = np.zeros(0, [("start", "<i4"), ("front", "<i4"), ("back", "<i4"), ("ref_length", "<i4"), ("length", "<i4"), ("bases_at", "<i8")])


def haplotype_blocks(reference: NDArray[np.uint8], edits: NDArray[np.void], bases: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """A reference document with edits applied, in blocks. New bases take the case of the reference base at the record's position."""
    starts, replaced = edits["start"] + edits["front"], edits["ref_length"] - edits["front"] - edits["back"]
    ends = starts + replaced
    at, done = 0, 0
    while at < len(reference) or done < len(edits):
        end = min(at + BLOCK_BASES, len(reference))
        upto = int(np.searchsorted(starts, end)) if end < len(reference) else len(edits)
        if upto > done:
            end = max(end, int(ends[upto - 1]))
        block = np.array(reference[at:end])
        part = slice(done, upto)
        cases = reference[edits["start"][part]] & LOWER_CASE
        single = (replaced[part] == 1) & (edits["length"][part] == 1)
        block[starts[part][single] - at] = bases[edits["bases_at"][part][single]] | cases[single]
        pieces, taken = [], at
        others = np.flatnonzero(~single)
        for number in others.tolist():
            edit = edits[done + number]
            pieces.append(block[taken - at : int(starts[done + number]) - at])
            first = int(edit["bases_at"])
            pieces.append(bases[first : first + int(edit["length"])] | cases[number])
            taken = int(ends[done + number])
        yield np.concatenate([*pieces, block[taken - at :]]) if pieces else block
        at, done = end, upto


def edit_rows(edits: NDArray[np.void]) -> NDArray[np.int32]:
    """Rows of the edit list: first base and bases replaced in the reference, first base and bases in the haplotype."""
    replaced = edits["ref_length"] - edits["front"] - edits["back"]
    grown = np.cumsum(edits["length"] - replaced) - (edits["length"] - replaced)
    starts = edits["start"] + edits["front"]
    return np.stack([starts, replaced, starts + grown, edits["length"]], axis=1).astype("<i4")
