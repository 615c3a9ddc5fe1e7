"""Records, and files, that are there twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.data.look.lint_records import EXAMPLES, Records
from dnapretrain.data.look.lint_scan import FileScan

SHOWN_GROUPS = 20


@dataclass(frozen=True)
class LintedFile:
    """One input, read."""

    path: Path
    assembly: str
    scan: FileScan
    records: Records

    @property
    def is_usable(self) -> bool:
        """Whether preprocess would take it."""
        return not self.scan.mistakes


def find_duplicates(files: Sequence[LintedFile]) -> dict[str, Any]:
    """Records with the same bases, on either strand, case ignored; the longest groups are named."""
    digests = np.frombuffer(b"".join(file.records.canonical for file in files), np.uint64).reshape(-1, 2)
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.array(file.records.lengths, np.int64) for file in files)])
    reverse = np.frombuffer(b"".join(file.records.is_reverse for file in files), np.bool_)
    counted = np.concatenate([np.zeros(0, bool), *(np.array(file.records.counted, bool) for file in files)])
    firsts = np.cumsum([0, *(len(file.records.lengths) for file in files)])
    chosen = np.flatnonzero(counted)
    chosen = chosen[np.lexsort((chosen, digests[chosen, 1], digests[chosen, 0]))]
    ordered = digests[chosen]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])) if len(chosen) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(chosen)))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    group_bases = lengths[chosen[starts]]

    def locus(record: int) -> dict[str, str]:
        number = int(np.searchsorted(firsts, record, "right")) - 1
        file = files[number]
        name = f"{file.assembly}:{file.records.names[record - int(firsts[number])]}"
        return {"path": str(file.path), "record": name, "strand": "-" if reverse[record] else "+"}

    groups = []
    for group in np.argsort(-group_bases, kind="stable")[:SHOWN_GROUPS].tolist():
        members = chosen[starts[group] : starts[group] + sizes[group]].tolist()
        shown = [locus(member) for member in members[:EXAMPLES]]
        flip = shown[0]["strand"] == "-"  # of the first record, the strand is + by definition
        for member in shown:
            member["strand"] = "-" if (member["strand"] == "-") != flip else "+"
        groups.append({"bases": int(group_bases[group]), "records": len(members), "shown": shown})
    first_of_group = np.repeat(chosen[starts], sizes)
    members_of = np.concatenate([np.zeros(0, np.int64), *(chosen[start : start + size] for start, size in zip(starts, sizes, strict=True))])
    return {
        "groups": len(starts),
        "records": int((sizes - 1).sum()),
        "bases": int(((sizes - 1) * group_bases).sum()),
        "of_them_reverse_complement": int((reverse[members_of] != reverse[first_of_group]).sum()),
        "longest": groups,
        "compared_on_one_strand_only": sum(file.records.one_strand_only for file in files),
    }


def same_content(files: Sequence[LintedFile]) -> list[list[str]]:
    """Files with the same record names and bases in the same order, whatever their format and packing."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(file.records.content.hexdigest(), []).append(str(file.path))
    return [paths for paths in groups.values() if len(paths) > 1]
