"""Who carries which allele, turned from the VCF's order (by position) into that of the output (by haplotype), on disk.

Alleles are written as they come; which haplotypes carry them is gathered for a window of records, sorted by haplotype and
written. Memory holds one window, whatever the number of records and samples; the files (removed with the staging folder)
take about 40 bytes for each allele and 4 for each time that one is carried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.variants.vcf import VcfRecord

WINDOW_CARRIED = 1 << 21
WINDOW_ALLELES = 1 << 16
"""Either ends a window."""
ALLELE = np.dtype(
    [
        ("document", "<i8"),
        ("bases_at", "<i8"),  # where its bases begin among the bases of all alleles
        ("start", "<i4"),  # REF, from the beginning of the document
        ("ref_length", "<i4"),
        ("front", "<i4"),  # bases that REF and ALT share at their beginning, and
        ("back", "<i4"),  # at their end
        ("length", "<i4"),  # of ALT without both
        ("is_indel", "?"),  # an insertion or deletion behind a shared first base
    ]
)


class VariantStore:
    """Alleles and their carriers, for H haplotypes: `add` in file order, then `finish`, then `carried_by`."""

    def __init__(self, folder: Path, num_haplotypes: int, window_carried: int = WINDOW_CARRIED) -> None:
        self._folder, self._num_haplotypes, self._window_carried = folder, num_haplotypes, window_carried
        self._files = {name: (folder / name).open("wb") for name in ("alleles", "allele-bases", "carried", "windows")}
        self._rows: list[tuple[int, int, int, int, int, int, int, bool]] = []
        self._bases: list[bytes] = []
        self._haplotypes: list[NDArray[np.int64]] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._carried_in_window = 0
        self._window_starts: list[tuple[int, int]] = []  # first allele, first carried
        self.num_alleles = self.num_carried = self._num_bases = 0

    def add(self, document: int, start: int, record: VcfRecord, alt: int, haplotypes: NDArray[np.int64]) -> None:
        """One allele (number `alt` of ALT, from 1) of a record that begins `start` bases into a document, and who carries it."""
        bases = record.alts[alt - 1]
        front, back = shared_ends(record.ref, bases)
        kept = bases[front : len(bases) - back]
        is_indel = record.ref[0] == bases[0] and len(record.ref) != len(bases) and (not kept or front + back == len(record.ref))
        self._rows.append((document, self._num_bases, start, len(record.ref), front, back, len(kept), is_indel))
        self._bases.append(kept)
        self._num_bases += len(kept)
        self._haplotypes.append(haplotypes)
        self._numbers.append(np.full(len(haplotypes), len(self._rows) - 1, np.int64))
        self._carried_in_window += len(haplotypes)
        if self._carried_in_window >= self._window_carried or len(self._rows) >= WINDOW_ALLELES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        haplotypes, numbers = np.concatenate(self._haplotypes), np.concatenate(self._numbers)
        order = np.argsort(haplotypes.astype(np.int32), kind="stable")  # by haplotype, in file order
        self._window_starts.append((self.num_alleles, self.num_carried))
        self._files["alleles"].write(np.array(self._rows, ALLELE).tobytes())
        self._files["allele-bases"].write(b"".join(self._bases))
        self._files["carried"].write(numbers[order].astype("<u4").tobytes())
        bounds = np.searchsorted(haplotypes[order], np.arange(self._num_haplotypes + 1))
        self._files["windows"].write(bounds.astype("<i8").tobytes())
        self.num_alleles += len(self._rows)
        self.num_carried += len(numbers)
        self._rows, self._bases, self._haplotypes, self._numbers = [], [], [], []
        self._carried_in_window = 0

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        """End of the variants; they are read from here on."""
        self._flush()
        self.close()
        self._alleles = self._map("alleles", ALLELE)
        self.bases: NDArray[np.uint8] = self._map("allele-bases", np.dtype(np.uint8))
        """Bases of the alleles, upper case."""
        self._carried = self._map("carried", np.dtype("<u4"))
        self._windows = self._map("windows", np.dtype("<i8")).reshape(-1, self._num_haplotypes + 1)

    def _map(self, name: str, dtype: Any) -> NDArray[Any]:
        path = self._folder / name
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)

    def carried_by(self, haplotype: int) -> NDArray[np.void]:
        """The alleles (rows of ALLELE) that a haplotype carries, in file order."""
        parts = [np.zeros(0, np.int64)]
        bounds = self._windows[:, haplotype : haplotype + 2].tolist()
        for (first_allele, first_carried), (low, high) in zip(self._window_starts, bounds, strict=True):
            parts.append(self._carried[first_carried + low : first_carried + high].astype(np.int64) + first_allele)
        rows: NDArray[np.void] = self._alleles[np.concatenate(parts)]
        return rows


def shared_ends(ref: bytes, alt: bytes) -> tuple[int, int]:
    """Bases that two alleles share at the beginning and at the end: the first base, then from the end, then from the beginning."""
    shorter = min(len(ref), len(alt))
    front = int(ref[0] == alt[0])
    back = 0
    while back < shorter - front and ref[-1 - back] == alt[-1 - back]:
        back += 1
    while front < shorter - back and ref[front] == alt[front]:
        front += 1
    return front, back


def without_overlaps(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of the alleles of one haplotype are applied: of those that overlap, the first (the rule of `bcftools consensus`).

    An allele overlaps if its REF begins at or before the last base of the REF applied before it on the same document. An insertion
    or deletion behind a shared first base may begin on that very base, but not after an insertion.
    """
    applied = np.ones(len(rows), np.bool_)
    if not len(rows):
        return applied
    changes = np.concatenate([[True], rows["document"][1:] != rows["document"][:-1]])
    apart = np.cumsum(changes) << 33  # so that documents never touch
    start = rows["start"] + apart
    last = start + rows["ref_length"] - 1
    reached = np.maximum.accumulate(last)
    touching = np.flatnonzero(start[1:] <= reached[:-1]) + 1  # others are applied, whatever was before
    previous = -2
    frozen, after_insertion = 0, False
    grows = rows["length"] + rows["front"] + rows["back"] > rows["ref_length"]
    for number in touching.tolist():
        if number != previous + 1:
            frozen, after_insertion = int(last[number - 1]), bool(grows[number - 1])
        previous = number
        at = int(start[number])
        if at > frozen or (at == frozen and rows["is_indel"][number] and not after_insertion):
            frozen, after_insertion = int(last[number]), bool(grows[number])
        else:
            applied[number] = False
    return applied
