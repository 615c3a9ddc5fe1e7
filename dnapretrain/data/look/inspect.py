"""What a shard holds, as plain values and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.shards.packed import ASCII, EXCEPTIONS
from dnapretrain.data.shards.shard import LABELS, Shard, open_shard, shard_file, verify_shard
from dnapretrain.errors import ConfigError, DataError

SHOWN_DOCUMENTS = 3
SHOWN_BASES = 60
SHOWN_CONTIGS = 8
SHOWN_VALUES = 12
COUNT_BYTES = 1 << 26
BAR = 40
"""Letters of the longest bar."""
LABEL_COLUMNS = ("feature", "type", "strand", "clade")
"""Columns of a label file that take few values."""


def inspect_shard(prefix: str | Path, check: bool = False, documents: int = SHOWN_DOCUMENTS) -> dict[str, Any]:
    """What the shard holds, in plain values (shares are fractions of all bases, GC of A, C, G and T), and its first `documents`.

    `check` reads all files again and compares them with the manifest. Raises DataError where the shard
    is unfinished, damaged, or (with `check`) changed; ConfigError for a number of documents below 0.
    """
    if documents < 0:
        raise ConfigError(f"--documents = {documents} is below 0. Give the number of documents to show")
    shard = open_shard(prefix)
    if check:
        verify_shard(prefix)
    return {
        "prefix": str(prefix),
        "content": shard.manifest.get("content"),
        "documents": len(shard.lengths),
        "bases": len(shard.bases),
        **composition(_letters(shard)),
        "lengths": length_summary(shard.lengths),
        "histogram": length_histogram(shard.lengths),
        "encoding": shard.encoding,
        "stored_bytes": sum(entry["size"] for kind, entry in shard.manifest["files"].items() if kind in ("bin", EXCEPTIONS)),
        "contigs": _contigs(shard),
        "labels": _labels(shard),
        "haplotypes": _haplotypes(shard),
        "first": [_document(shard, number) for number in range(min(documents, len(shard.lengths)))],
        "cleaning": shard.manifest["cleaning"],
        "counts": shard.manifest["counts"],
        "sources": shard.manifest["sources"],
        "skipped": shard.manifest.get("skipped", []),
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
        *_histogram_lines(inspection["histogram"]),
        f"contigs      {contigs['number']:,}: {longest}{more}",
        f"records      {counts['records']:,}, of them empty {counts['empty_records']:,}",
        f"left out     of {counts['total_bases']:,} bases: {dropped}; short documents {counts['dropped_documents']['short']:,}",
        f"U made T     {counts['u_converted']:,}",
    ]
    lines += _special_lines(inspection)
    if inspection["encoding"] != ASCII:
        lines.insert(3, f"encoding     {inspection['encoding']}, {inspection['stored_bytes']:,} bytes")
    for source in inspection["sources"]:
        notes = source.get("format", "FASTA") + (", all lower case, written in upper case" if source.get("all_lower_case") else "")
        lines.append(
            f"source       {source['path']} ({source['assembly']}), {notes}, {source['size']:,} bytes, XXH3-128 {source['xxh3_128']}"
        )
    lines += [f"skipped      {item['error']}" for item in inspection["skipped"]]
    for document in inspection["first"]:
        lines.append(
            f"document     {document['locus']} ({document['strand']})  {document['bases']}{'...' if document['is_longer'] else ''}"
        )
    state = "files agree with the manifest" if inspection["checked"] else "not checked (--check reads the files again)"
    lines.append(f"digest       XXH3-128 {inspection['digest']}, {state}")
    return "\n".join(lines)


def _special_lines(inspection: dict[str, Any]) -> list[str]:
    """Of labels and haplotypes."""
    lines = []
    for column, counts in (inspection["labels"] or {}).items():
        shown = "  ".join(f"{value} {count:,}" for value, count in list(counts.items())[:SHOWN_VALUES])
        more = f"  and {len(counts) - SHOWN_VALUES} more" if len(counts) > SHOWN_VALUES else ""
        lines.append(f"{'by ' + column:<12} {shown}{more}")
    if found := inspection["haplotypes"]:
        lines.append(
            f"haplotypes   {found['number']:,} of {found['samples']:,} sample(s), {found['edits']:,} edits: {', '.join(found['first'])}"
        )
    return lines


def _histogram_lines(histogram: list[dict[str, int]]) -> list[str]:
    """A bar for the bases of each class of lengths; none where all documents are of one class."""
    if len(histogram) < 2:
        return []
    most = max(row["bases"] for row in histogram)
    total = sum(row["bases"] for row in histogram)
    width = len(f"{histogram[-1]['to']:,}")
    lines = []
    for row in histogram:
        bar = "#" * (-(-row["bases"] * BAR // most))
        span = f"{row['from']:>{width},} to {row['to']:>{width},}"
        lines.append(f"             {span} | {bar:<{BAR}} {_percent(row['bases'] / total):>8} of bases, {row['documents']:,} document(s)")
    return lines


def length_histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Documents and bases by length, `from` and `to` included: 1, 2 to 4, 5 to 9, 10 to 19, and so on from the shortest to the longest."""
    decades = 10 ** np.arange(19, dtype=np.int64)
    edges = (decades[:, None] * np.array([1, 2, 5])).ravel()[: 3 * 18]
    at = np.searchsorted(edges, lengths, "right") - 1
    documents = np.bincount(at, minlength=len(edges))
    bases = np.zeros(len(edges), np.int64)
    np.add.at(bases, at, lengths)
    return [
        {"from": int(edges[row]), "to": int(edges[row + 1]) - 1, "documents": int(documents[row]), "bases": int(bases[row])}
        for row in range(int(at.min()), int(at.max()) + 1)
    ]


def _letters(shard: Shard) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    for start in range(0, len(shard.bases), COUNT_BYTES):
        counts += _core.count_bytes(np.asarray(shard.bases[start : start + COUNT_BYTES]))
    return counts


def composition(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Composition, GC, and the shares of N and of lower case, from the occurrences of the 256 byte values; shares of nothing are None."""
    total = int(counts.sum())
    upper, lower = counts[ord("A") : ord("Z") + 1], counts[ord("a") : ord("z") + 1]
    both = {chr(ord("A") + letter): int(upper[letter] + lower[letter]) for letter in range(26)}
    of_bases = {base: both[base] for base in "ACGTN"}
    of_bases["other"] = total - sum(of_bases.values())
    strong, weak = both["G"] + both["C"], both["A"] + both["T"]
    return {
        "composition": of_bases,
        "gc": strong / (strong + weak) if strong + weak else None,
        "n_share": both["N"] / total if total else None,
        "lower_case_share": int(lower.sum()) / total if total else None,
    }


def length_summary(lengths: NDArray[np.int64]) -> dict[str, int]:
    """Of at least one length; half of all bases lie in stretches of N50 or longer."""
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


def _labels(shard: Shard) -> dict[str, dict[str, int]] | None:
    """How often each value stands in the columns of the label file, the most frequent first; None without labels."""
    if LABELS not in shard.manifest["files"]:
        return None
    path = shard_file(shard.prefix, LABELS)
    with path.open(encoding="utf-8", newline="\n") as file:
        header = file.readline().rstrip("\n").split("\t")
        if not set(LABEL_COLUMNS) <= set(header):
            raise DataError(f"{path}: its first line does not name {', '.join(LABEL_COLUMNS)}: changed or damaged. Copy the shard again")
        columns = [header.index(name) for name in LABEL_COLUMNS]
        rows = Counter(tuple(line.rstrip("\n").split("\t")[column] for column in columns) for line in file)
    counts = [_counted((row[column], count) for row, count in rows.items()) for column in range(len(columns))]
    return dict(zip(LABEL_COLUMNS, counts, strict=True))


def _counted(values: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for value, count in values:
        found[value] += count
    return dict(found.most_common())


def _haplotypes(shard: Shard) -> dict[str, Any] | None:
    """Names of the haplotypes, and how many edits they have; None without haplotypes."""
    if shard.edits is None:
        return None
    names = list(dict.fromkeys(shard.coordinates.haplotype))
    samples = {name.rpartition(".")[0] for name in names}
    return {"number": len(names), "samples": len(samples), "edits": len(shard.edits.rows), "first": names[:SHOWN_VALUES]}


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
