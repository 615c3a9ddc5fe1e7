"""The bases that a shard holds of a locus, read back to the plus strand of the contig."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from dnapretrain import _core
from dnapretrain.data.shards.locus import Locus, split_locus
from dnapretrain.data.shards.shard import Shard
from dnapretrain.errors import ConfigError

LINE = 60
"""Bases of a printed line."""


def parse_locus(text: str, shard: Shard) -> Locus:
    """`assembly:contig:start-end` or `contig:start-end`, 1-based, end included. Raises ConfigError, also for contigs not in the shard."""
    name, start, end = split_locus(text, "--locus")
    pairs = list(dict.fromkeys(zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True)))
    holders = [pair for pair in pairs if name in (pair[1], ":".join(pair))]
    if not holders:
        names = [":".join(pair) for pair in pairs]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ConfigError(f"--locus {text}: the shard has no contig '{name}'. Near names: {', '.join(near)}")
    if len(holders) > 1:
        raise ConfigError(f"--locus {text}: '{name}' is in {len(holders)} assemblies. Give one: {', '.join(map(':'.join, holders[:5]))}")
    return Locus(*holders[0], start, end)


def read_locus(shard: Shard, text: str) -> dict[str, Any]:
    """What each document holds of the locus `text`, in pieces, on the plus strand of the contig, and what no document holds.

    A piece ends where the document does, at an intron, and at the origin of a circular contig. Of a haplotype: what stands on
    it for the bases of the reference, and inserted bases after the base before them. Intervals are 1-based, end included.
    Raises ConfigError for loci that are not of this shard.
    """
    locus = parse_locus(text, shard)
    where = shard.coordinates
    is_there = np.array([pair == (locus.assembly, locus.contig) for pair in zip(where.assembly, where.contig, strict=True)])
    reaches = (where.span_start < locus.end) & (where.span_end > locus.start)
    pieces, held = [], []
    for document in np.flatnonzero(is_there & reaches).tolist():
        for start, end, bases in _pieces(shard, document, locus):
            held.append((start, end))
            piece = {"document": document, "locus": _written(locus, start, end), "strand": where.strand[document], "bases": bases}
            if where.haplotype:
                piece["haplotype"] = where.haplotype[document]
            pieces.append(piece)
    missing = [_written(locus, start, end) for start, end in _gaps(held, locus)]
    return {"asked": _written(locus, locus.start, locus.end), "pieces": pieces, "missing": missing}


def format_locus(found: dict[str, Any]) -> str:
    """FASTA: a record for each piece, named by its place."""
    lines = []
    for piece in found["pieces"]:
        strand = " stored as its reverse complement" if piece["strand"] == "-" else ""
        haplotype = f" haplotype={piece['haplotype']}" if "haplotype" in piece else ""
        lines.append(f">{piece['locus']} document={piece['document']}{haplotype}{strand}")
        lines += [piece["bases"][start : start + LINE] for start in range(0, len(piece["bases"]), LINE)]
    return "\n".join(lines)


def _pieces(shard: Shard, document: int, locus: Locus) -> list[tuple[int, int, str]]:
    """(start, end, bases) on the contig, ascending, of what a document holds of the locus."""
    offset, length = int(shard.offsets[document]), int(shard.lengths[document])
    where, stored = shard.coordinates, shard.bases
    found = []
    if shard.edits is not None:
        span = int(where.span_start[document]), int(where.span_end[document])
        start, end = max(span[0], locus.start), min(span[1], locus.end)
        first, last = shard.edits.cuts([document, document], [start - span[0], end - span[0]]).tolist()
        return [(start, end, stored[offset + first : offset + (length if end == span[1] else last)].tobytes().decode())]
    at = 0
    for first, last in where.pieces(document, 0, length):
        start, end = max(first, locus.start), min(last, locus.end)
        if start < end:
            minus = where.strand[document] == "-"
            begin = offset + at + (last - end if minus else start - first)
            bases = np.asarray(stored[begin : begin + end - start])
            found.append((start, end, (_core.reverse_complement(bases) if minus else bases).tobytes().decode()))
        at += last - first
    return sorted(found)


def _gaps(held: list[tuple[int, int]], locus: Locus) -> list[tuple[int, int]]:
    at, gaps = locus.start, []
    for start, end in [*sorted(held), (locus.end, locus.end)]:
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    return gaps


def _written(locus: Locus, start: int, end: int) -> str:
    return f"{locus.assembly}:{locus.contig}:{start + 1}-{end}"
