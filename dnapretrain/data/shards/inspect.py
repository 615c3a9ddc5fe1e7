"""What a shard holds, as plain values and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.shards.packed import ASCII, EXCEPTIONS
from dnapretrain.data.shards.shard import Shard, open_shard, verify_shard

SHOWN_DOCUMENTS = 3
SHOWN_BASES = 60
SHOWN_CONTIGS = 8
COUNT_BYTES = 1 << 26


def inspect_shard(prefix: str | Path, check: bool = False) -> dict[str, Any]:
    """What the shard holds, in plain values (shares are fractions of all bases, GC of A, C, G and T).

    `check` reads all files again and compares them with the manifest. Raises DataError where the shard
    is unfinished, damaged, or (with `check`) changed.
    """
    shard = open_shard(prefix)
    if check:
        verify_shard(prefix)
    return {
        "prefix": str(prefix),
        "documents": len(shard.lengths),
        "bases": len(shard.bases),
        "encoding": shard.encoding,
        "stored_bytes": sum(entry["size"] for kind, entry in shard.manifest["files"].items() if kind in ("bin", EXCEPTIONS)),
        **_composition(shard),
        "lengths": _length_summary(shard.lengths),
        "contigs": _contigs(shard),
        "first": [_document(shard, number) for number in range(min(SHOWN_DOCUMENTS, len(shard.lengths)))],
        "cleaning": shard.manifest["cleaning"],
        "counts": shard.manifest["counts"],
        "sources": shard.manifest["sources"],
        "tool_version": shard.manifest["tool_version"],
        "digest": shard.digest,
        "checked": check,
    }


def format_inspection(inspection: dict[str, Any]) -> str:
    """The text that `dnapretrain inspect` prints."""
    counts, lengths, contigs = inspection["counts"], inspection["lengths"], inspection["contigs"]
    composition = "  ".join(f"{base} {count:,}" for base, count in inspection["composition"].items())
    dropped = ", ".join(f"{reason} {bases:,}" for reason, bases in counts["dropped_bases"].items())
    longest = ", ".join(f"{item['assembly']}:{item['contig']} {item['bases']:,}" for item in contigs["longest"])
    more = f", and {contigs['number'] - len(contigs['longest'])} more" if contigs["number"] > len(contigs["longest"]) else ""
    lines = [
        f"shard        {inspection['prefix']}",
        f"documents    {inspection['documents']:,}",
        f"bases        {inspection['bases']:,}",
        f"composition  {composition}",
        f"GC           {_percent(inspection['gc'])} of A, C, G, T",
        f"N            {_percent(inspection['n_share'])}",
        f"lower case   {_percent(inspection['lower_case_share'])}",
        f"lengths      min {lengths['min']:,}  median {lengths['median']:,}  N50 {lengths['n50']:,}  max {lengths['max']:,}",
        f"contigs      {contigs['number']:,}: {longest}{more}",
        f"records      {counts['records']:,}, of them empty {counts['empty_records']:,}",
        f"left out     of {counts['total_bases']:,} bases: {dropped}; short documents {counts['dropped_documents']['short']:,}",
        f"U made T     {counts['u_converted']:,}",
    ]
    if inspection["encoding"] != ASCII:
        lines.insert(3, f"encoding     {inspection['encoding']}, {inspection['stored_bytes']:,} bytes")
    for source in inspection["sources"]:
        lines.append(f"source       {source['path']} ({source['assembly']}), {source['size']:,} bytes, XXH3-128 {source['xxh3_128']}")
    for document in inspection["first"]:
        lines.append(
            f"document     {document['locus']} ({document['strand']})  {document['bases']}{'...' if document['is_longer'] else ''}"
        )
    state = "files agree with the manifest" if inspection["checked"] else "not checked (--check reads the files again)"
    lines.append(f"digest       XXH3-128 {inspection['digest']}, {state}")
    return "\n".join(lines)


def _composition(shard: Shard) -> dict[str, Any]:
    counts = np.zeros(256, np.int64)
    for start in range(0, len(shard.bases), COUNT_BYTES):
        counts += _core.count_bytes(np.asarray(shard.bases[start : start + COUNT_BYTES]))
    upper, lower = counts[ord("A") : ord("Z") + 1], counts[ord("a") : ord("z") + 1]
    both = {chr(ord("A") + letter): int(upper[letter] + lower[letter]) for letter in range(26)}
    composition = {base: both[base] for base in "ACGTN"}
    composition["other"] = len(shard.bases) - sum(composition.values())
    strong, weak = both["G"] + both["C"], both["A"] + both["T"]
    return {
        "composition": composition,
        "gc": strong / (strong + weak) if strong + weak else None,
        "n_share": both["N"] / len(shard.bases),
        "lower_case_share": int(lower.sum()) / len(shard.bases),
    }


def _length_summary(lengths: NDArray[np.int64]) -> dict[str, int]:
    ordered = np.sort(lengths)
    from_longest = np.cumsum(ordered[::-1])
    half = int(np.searchsorted(from_longest, (int(from_longest[-1]) + 1) // 2))
    return {
        "min": int(ordered[0]),
        "median": int(ordered[(len(ordered) - 1) // 2]),
        "n50": int(ordered[::-1][half]),
        "max": int(ordered[-1]),
    }


def _contigs(shard: Shard) -> dict[str, Any]:
    bases: dict[tuple[str, str], int] = {}
    where = shard.coordinates
    for assembly, contig, length in zip(where.assembly, where.contig, shard.lengths.tolist(), strict=True):
        bases[assembly, contig] = bases.get((assembly, contig), 0) + length
    longest = sorted(bases.items(), key=lambda item: -item[1])[:SHOWN_CONTIGS]
    return {
        "number": len(bases),
        "longest": [{"assembly": assembly, "contig": contig, "bases": count} for (assembly, contig), count in longest],
    }


def _document(shard: Shard, number: int) -> dict[str, Any]:
    offset, length = int(shard.offsets[number]), int(shard.lengths[number])
    shown = shard.bases[offset : offset + min(length, SHOWN_BASES)]
    return {
        "locus": shard.coordinates.locus(number),
        "strand": shard.coordinates.strand[number],
        "length": length,
        "bases": shown.tobytes().decode("ascii"),
        "is_longer": length > SHOWN_BASES,
    }


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"
