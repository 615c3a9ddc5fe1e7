"""What `lint` learns from the records of one file: composition, digests of content, what looks odd, what preprocess would keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.fasta import MAX_DOCUMENT, CutPolicy
from dnapretrain.data.look.lint_scan import WHOLE
from dnapretrain.data.shards.manifest import letter_counts
from dnapretrain.data.shards.scan import ALL_LOWER_PER_MILLE
from dnapretrain.data.shards.selection import Selection, cut, equal_parts

MAX_BOTH_STRANDS = 1 << 28
"""Bases of the longest record that is held to be read on the other strand too."""
SHORT = 20
"""Bases: shorter records are noted."""
ONE_BASE = 0.95
HALF_N = 0.5
MANY_AMBIGUOUS = 0.1
EXAMPLES = 5
CHUNK = 1 << 20
N = ord("N")
UPPER_BITS = np.uint8(0xDF)
UPPER = slice(ord("A"), ord("Z") + 1)
LOWER = slice(ord("a"), ord("z") + 1)
HINTS = {
    "circular": r"\bcircular\b",
    "plasmid": r"\bplasmid",
    "mitochondrion": r"mitochondri|_mito\b|^nc_012920",
    "plastid": r"chloroplast|plastid\b|apicoplast",
    "alternate": r"_alt\b|alternate locus|\balt_ref_loci",
    "patch": r"_fix\b|\bpatch\b",
    "haplotype": r"_hap\d*\b|\bhaplotig|^h[12]tg",
    "unplaced": r"^chrun|_random\b|\bunplaced\b|\bunlocalized\b",
    "decoy": r"decoy|^chrebv\b|\bhs37d5\b",
    "vector_or_adapter": r"\bvector\b|adapter|adaptor|\bprimer\b|univec|phix|\bsynthetic construct\b",
    "unverified": r"\bunverified\b",
}
"""What a header in lower case says of its record; for information only."""
PATTERNS = {kind: re.compile(pattern) for kind, pattern in HINTS.items()}
WORDS = {kind: [word.encode() for word in re.sub(r"\\[bd]\*?|\^|h\[12\]", "", pattern).split("|")] for kind, pattern in HINTS.items()}
"""A plain word of each option of the patterns: where none stands, which is found much faster, no pattern needs to be tried."""
SHORT_NAMES = {name: "mitochondrion" for name in ("m", "mt", "chrm", "chrmt", "mito")} | {"pt": "plastid", "chrpt": "plastid"}


@dataclass
class Noted:
    """Records of one kind."""

    records: int = 0
    bases: int = 0
    examples: list[str] | None = None

    def add(self, name: str, bases: int) -> None:
        """One more."""
        self.records += 1
        self.bases += bases
        self.examples = self.examples or []
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)

    def values(self) -> dict[str, Any]:
        """As the report has it."""
        return {"records": self.records, "bases": self.bases, "examples": self.examples or []}


class Records:
    """Takes the records of one file, in order. `selection` is that of its assembly.

    Memory: the open record up to MAX_BOTH_STRANDS bases (all of it where something is selected), 17 bytes and the name for each record.
    """

    def __init__(self, policy: CutPolicy, selection: Selection) -> None:
        self._policy, self._selection = policy, selection
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.canonical = bytearray()
        """16 bytes for each record: the smaller of the XXH3-128 of its upper-case bases and of their reverse complement."""
        self.is_reverse = bytearray()
        self.counted: list[bool] = []
        """Whether the record has a base among A, C, G, T: others are not looked at for duplicates."""
        self.letters = np.zeros(256, np.int64)
        self.asked = np.zeros(len(_core.RECORD_COUNTS), np.int64)
        self.documents: list[NDArray[np.int64]] = []
        """Lengths of the documents that preprocess would write."""
        self.n_runs, self.longest_n_run, self.one_strand_only = 0, 0, 0
        self.suspicious: dict[str, Noted] = {}
        self.hints: dict[str, Noted] = {}
        self.content = xxhash.xxh3_128()
        self.selected = {"regions": 0, "short": 0, "short_documents": 0, "n_fraction": 0, "n_fraction_documents": 0}
        self.kept_letters = np.zeros(256, np.int64)
        self.lengths_of: dict[str, int] = {}
        self._named = {name for bed in (selection.include, selection.exclude) if bed for name in bed.intervals}
        self._pending = np.zeros((0, 3), np.int64)
        self._start()

    def _start(self) -> None:
        self._held: list[NDArray[np.uint8]] = []
        self._size = 0
        self._counts = np.zeros(256, np.int64)
        self._forward = xxhash.xxh3_128()
        self._runs = 0

    def cut_as_asked(self, documents: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """As preprocess would cut them, before selection."""
        self.asked += counts.sum(axis=0)
        if self._selection.is_active:
            self._pending = np.concatenate([self._pending, documents])
        elif len(documents):
            self.documents.append(documents[:, 2] - documents[:, 1])

    def records(self, bases: NDArray[np.uint8], headers: list[bytes], lengths: list[int]) -> None:
        """More bases, and the records that ended in them."""
        at = 0
        together = b"\n".join(headers).lower()
        kinds = [kind for kind, words in WORDS.items() if any(word in together for word in words)]
        for header, length in zip(headers, lengths, strict=True):
            end = at + length - self._size
            self._add(bases[at:end])
            self._end(header.decode("utf-8", "backslashreplace"), kinds)
            at = end
        self._add(bases[at:])

    def abandon(self) -> None:
        """The open record is broken: it is forgotten."""
        self._start()

    def _add(self, bases: NDArray[np.uint8]) -> None:
        if not len(bases):
            return
        counts = _core.count_bytes(bases)
        self._counts += counts
        self._size += len(bases)
        upper = bases & UPPER_BITS if counts[LOWER].any() else bases
        self._forward.update(upper.data)
        if counts[N] or counts[N | 0x20]:
            self._find_runs(upper)
        if self._selection.is_active:
            self._held.append(bases)
        elif self._size <= MAX_BOTH_STRANDS:
            self._held.append(upper)
        else:
            self._held.clear()

    def _find_runs(self, upper: NDArray[np.uint8]) -> None:
        """Runs of N of any length. The scanner keeps an open run back until it ends, so none is in two parts."""
        steps = np.diff((upper == N).view(np.int8), prepend=np.int8(0), append=np.int8(0))
        sizes = np.flatnonzero(steps == -1) - np.flatnonzero(steps == 1)
        self._runs += len(sizes)
        self.longest_n_run = max(self.longest_n_run, int(sizes.max()))

    def _end(self, header: str, kinds: list[str]) -> None:
        name, _, _ = header.replace("\t", " ").partition(" ")
        self.letters += self._counts
        self.n_runs += self._runs
        self._digest()
        self._judge(name, self._counts)
        self._hint(name, header.lower(), kinds)
        if self._selection.is_active:
            self._select(name)
            if name in self._named:
                self.lengths_of[name] = self._size
        self.names.append(name)
        self.lengths.append(self._size)
        self.content.update(f"{name}\t{self._size}\t".encode("utf-8", "backslashreplace") + self._forward.digest())
        self._start()

    def _hint(self, name: str, header: str, kinds: list[str]) -> None:
        found = {kind for kind in kinds if PATTERNS[kind].search(header)}
        if name.lower() in SHORT_NAMES:
            found.add(SHORT_NAMES[name.lower()])
        for kind in found:
            self.hints.setdefault(kind, Noted()).add(name, self._size)

    def _digest(self) -> None:
        forward = self._forward.digest()
        self.is_reverse.append(0)
        if self._size > MAX_BOTH_STRANDS:
            self.one_strand_only += 1
            self.canonical += forward
            return
        other = xxhash.xxh3_128()
        for part in reversed(self._held):
            for end in range(len(part), 0, -CHUNK):
                bases = part[max(0, end - CHUNK) : end]
                other.update(_core.reverse_complement(bases & UPPER_BITS if self._selection.is_active else bases).data)
        reverse = other.digest()
        self.is_reverse[-1] = reverse < forward
        self.canonical += min(forward, reverse)

    def _judge(self, name: str, counts: NDArray[np.int64]) -> None:
        both = counts[UPPER] + counts[LOWER]
        a, c, g, t, n = both[[0, 2, 6, 19, 13]].tolist()
        size, known = self._size, a + c + g + t
        self.counted.append(known > 0)
        kinds = []
        if size == 0:
            kinds.append("empty")
        elif size < SHORT:
            kinds.append("very_short")
        elif size - known - n > MANY_AMBIGUOUS * size:
            kinds.append("protein_like")
        if n > HALF_N * size:
            kinds.append("over_half_n")
        if known >= SHORT and max(a, c, g, t) > ONE_BASE * known:
            kinds.append("one_base")
        for kind in kinds:
            self.suspicious.setdefault(kind, Noted()).add(name, size)

    def _select(self, name: str) -> None:
        """Choose the parts of the record's documents as preprocess does once all are written."""
        last = int(np.searchsorted(self._pending[:, 0], len(self.names), "right"))
        documents = self._pending[:last].copy()
        self._pending = self._pending[last:]
        documents[:, 0] = 0
        pieces, _ = cut(self._selection, [name], documents)
        sizes = pieces[:, 2] - pieces[:, 1]
        self.selected["regions"] += int((documents[:, 2] - documents[:, 1]).sum() - sizes.sum())
        is_short = sizes < self._policy.min_length
        self._leave_out("short", sizes[is_short])
        pieces = pieces[~is_short]
        sequence = np.concatenate(self._held) if self._held else np.zeros(0, np.uint8)
        letters = [_core.count_bytes(sequence[start:end]) for _, start, end in pieces.tolist()]
        kept = np.ones(len(pieces), bool)
        limit = self._selection.max_n_fraction
        if limit is not None:
            n = np.array([row[N] + row[N | 0x20] for row in letters], np.int64)
            sizes = pieces[:, 2] - pieces[:, 1]
            kept = n <= limit * sizes
            self._leave_out("n_fraction", sizes[~kept])
        for row, stays in zip(letters, kept.tolist(), strict=True):
            if stays:
                self.kept_letters += row
        parts = equal_parts(pieces[kept], MAX_DOCUMENT)
        self.documents.append(parts[:, 2] - parts[:, 1])

    def _leave_out(self, reason: str, sizes: NDArray[np.int64]) -> None:
        self.selected[reason] += int(sizes.sum())
        self.selected[f"{reason}_documents"] += len(sizes)

    def is_all_lower_case(self) -> bool:
        """Whether lower case is no mask here; judged of what is kept before selection."""
        counts = dict(zip(_core.RECORD_COUNTS, self.asked.tolist(), strict=True))
        return counts["lower_case"] * 1000 > counts["kept"] * ALL_LOWER_PER_MILLE

    def preprocess_counts(self) -> dict[str, Any]:
        """`counts` of the source in the manifest that preprocess would write."""
        asked = dict(zip(_core.RECORD_COUNTS, self.asked.tolist(), strict=True))
        chosen, selection = self.selected, self._selection
        counts: dict[str, Any] = {
            "records": len(self.lengths),
            "empty_records": self.lengths.count(0),
            "documents": sum(map(len, self.documents)),
            "dropped_documents": {"short": asked["short_documents"] + chosen["short_documents"]},
            "total_bases": asked["total"],
            "kept_bases": int(self.kept_letters.sum()) if selection.is_active else asked["kept"],
            "dropped_bases": {"n_run": asked["n_run"], "short": asked["short_bases"] + chosen["short"]},
            **{key: asked[key] for key in ("lower_case", "n", "ambiguous", "u_converted")},
        }
        if selection.is_active:
            counts |= letter_counts(self.kept_letters)
        if self.is_all_lower_case():
            counts["lower_case"] = 0
        if selection.has_intervals:
            counts["dropped_bases"]["regions"] = chosen["regions"]
        if selection.max_n_fraction is not None:
            counts["dropped_bases"]["n_fraction"] = chosen["n_fraction"]
            counts["dropped_documents"]["n_fraction"] = chosen["n_fraction_documents"]
        return counts


def policy_of(min_n_run: int, min_length: int, selection: Selection) -> CutPolicy:
    """How preprocess has the scanner cut: what is selected is cut to length afterwards."""
    policy = CutPolicy(min_n_run, min_length)
    return replace(policy, max_length=WHOLE) if selection.is_active else policy
