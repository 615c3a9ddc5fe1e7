"""The contigs of one assembly of a base shard, put together again: any region, with N where bases were left out."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.shards.shard import EDITS, LABELS, Shard
from dnapretrain.errors import ConfigError, DataError

N = ord("N")


@dataclass
class Contig:
    """One contig; documents in ascending order."""

    name: str
    starts: list[int]
    ends: list[int]
    offsets: list[int]
    """Of each document in the shard's bases."""
    limit: int = 0
    """The contig has no more bases than this."""
    is_exact: bool = True
    """It has as many."""
    is_circular: bool = False

    @property
    def end(self) -> int:
        """End of the last base that the shard holds."""
        return self.ends[-1]


class Assembly:
    """The contigs of an assembly, and their bases."""

    def __init__(self, shard: Shard, name: str | None) -> None:
        """Raises ConfigError for an assembly that is not there, DataError for shards that are not of whole contigs."""
        self.shard = shard
        names = list(dict.fromkeys(shard.coordinates.assembly))
        if (name is None and len(names) > 1) or (name is not None and name not in names):
            some = ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")
            said = f"has no assembly '{name}'" if name is not None else f"holds {len(names)} assemblies"
            raise ConfigError(f"{shard.prefix} {said}. Give --assembly with the one that the annotation is for: {some}")
        self.name = name or names[0]
        self.source = next((source for source in shard.manifest["sources"] if source["assembly"] == self.name), None)
        self.contigs = self._find_contigs()
        held = sum(contig.end for contig in self.contigs.values())
        # Bases behind the last document of a contig are not recorded, but those of all contigs together are.
        left_out = self.source["counts"]["total_bases"] - held if self.source else 0
        records = self.source["counts"]["records"] if self.source else len(self.contigs)
        for contig in self.contigs.values():
            contig.limit = contig.end + max(left_out, 0)
            contig.is_exact = left_out <= 0 or records == 1

    def _find_contigs(self) -> dict[str, Contig]:
        shard, where = self.shard, self.shard.coordinates
        if where.blocks is not None or {EDITS, LABELS} & set(shard.manifest["files"]) or "-" in where.strand:
            raise DataError(
                f"{shard.prefix}: a shard of haplotypes, genes or reversed documents. Give the base shard of the assembly itself"
            )
        contigs: dict[str, Contig] = {}
        rows = zip(where.contig, where.assembly, where.start.tolist(), where.end.tolist(), shard.offsets.tolist(), strict=True)
        for document, (name, assembly, start, end, offset) in enumerate(rows):
            if assembly != self.name or start == end:
                continue
            contig = contigs.setdefault(name, Contig(name, [], [], []))
            if contig.ends and start < contig.end:
                raise DataError(f"{shard.prefix}: {where.locus(document)} overlaps the document before it. Give a shard of whole contigs")
            contig.starts.append(start)
            contig.ends.append(end)
            contig.offsets.append(offset)
        return contigs

    def read(self, contig: Contig, start: int, end: int) -> tuple[NDArray[np.uint8], int]:
        """Bases [start, end) of a contig, N where the shard has none; and how many those are."""
        bases = np.full(end - start, N, np.uint8)
        filled = end - start
        for number in range(bisect_right(contig.ends, start), len(contig.starts)):
            first, last = max(contig.starts[number], start), min(contig.ends[number], end)
            if first >= last:
                break
            at = contig.offsets[number] + first - contig.starts[number]
            bases[first - start : last - start] = self.shard.bases[at : at + last - first]
            filled -= last - first
        return bases, filled
