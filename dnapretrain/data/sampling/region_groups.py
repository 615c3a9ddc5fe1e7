"""Which classes the bases of held-out samples belong to, by where they lie, their case, the GC around them and their assembly.

Each way to part the bases is a grouping: every base is in exactly one of its classes, so the sums of the classes are those of the set.
A token's bases may be in several classes: it counts in each with the bases that it has there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import RegionFileConfig, RegionsConfig
from dnapretrain.data.genes.contig_names import match_contigs
from dnapretrain.data.genes.region_classes import RegionFile, read_regions
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.shards.shard import Shard
from dnapretrain.data.shards.stretches import find_stretches
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError

INTERGENIC, UNANNOTATED = "intergenic", "not annotated"
"""What no region covers: of contigs that an annotation knows, and of others."""
UNKNOWN = -1
"""Bases of an unknown token that only the sequence tells."""
GC = np.frombuffer(b"GCgc", np.uint8)
ACGT = np.frombuffer(b"ACGTUacgtu", np.uint8)

Contig = tuple[str, str]
"""Assembly and contig."""
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ContigClasses:
    """The class of every base of a contig: that of base p is codes[number of bounds up to and with p]."""

    bounds: NDArray[np.int64]
    codes: Codes

    def at(self, positions: NDArray[np.int64]) -> Codes:
        """Numbers of the classes at these positions."""
        return self.codes[np.searchsorted(self.bounds, positions, side="right")]


@dataclass(frozen=True, eq=False)
class Annotations:
    """All region files together."""

    classes: tuple[str, ...]
    """By number; those of files in the order of their precedence, then INTERGENIC and UNANNOTATED."""
    of_contig: dict[Contig, ContigClasses]
    report: list[dict[str, Any]]
    """Of each file: path, size, xxh3_128, names that were found as contigs and names that were left out."""


def open_regions(config: RegionsConfig, held_out: dict[str, SampleStream]) -> None:
    """Give each held-out set the classes that `config` asks for. Raises ConfigError and DataError."""
    if not config.is_active or not held_out:
        return
    shards = list({source.shard.prefix: source.shard for stream in held_out.values() for source in stream.sources}.values())
    annotations = _annotations(config.files, shards) if config.files else None
    for stream in held_out.values():
        stream.regions = RegionGroups(config, annotations, stream)


class RegionGroups:
    """The classes that the loss of one held-out set is told apart by."""

    def __init__(self, config: RegionsConfig, annotations: Annotations | None, stream: SampleStream) -> None:
        self._stream, self._annotations = stream, annotations
        self._gc_edges, self._gc_window = config.gc_edges, config.gc_window
        self._shards = [source.shard for source in stream.sources]
        self._assemblies = tuple(dict.fromkeys(name for shard in self._shards for name in shard.coordinates.assembly))
        self._number_of_assembly = {name: number for number, name in enumerate(self._assemblies)}
        self._widths_V, self._singles = _widths(stream.tokenizer)
        self.groupings: dict[str, tuple[str, ...]] = {}
        """Names of the classes of each grouping."""
        if annotations:
            self.groupings["class"] = annotations.classes
        if config.soft_mask:
            self.groupings["case"] = ("upper case", "soft-masked")
        if config.gc_edges:
            self.groupings["gc"] = _gc_names(config.gc_edges)
        if config.assembly:
            self.groupings["assembly"] = self._assemblies
        self.num_classes = sum(map(len, self.groupings.values()))
        self.report = annotations.report if annotations else []
        """Of each file of regions, for the log."""

    def counts(self, sample_ids: Iterable[int], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Bases that each token has in each class, [B, S, classes], classes of the groupings one behind the other.

        `tokens` [B, S] is all that the samples hold, before masking: of the causal objective the first input, then the labels.
        """
        found = np.zeros((*tokens.shape, self.num_classes), np.float32)
        for row, (sample, tokens_S) in enumerate(zip(sample_ids, tokens, strict=True)):
            codes = self.base_codes(int(sample))
            token = np.repeat(np.arange(len(tokens_S)), self._token_widths(int(sample), tokens_S, codes.shape[1]))
            for of_base in codes:
                flat = np.bincount(token * self.num_classes + of_base, minlength=len(tokens_S) * self.num_classes)
                found[row] += flat.reshape(len(tokens_S), self.num_classes)
        return found

    def base_codes(self, sample: int) -> Codes:
        """Class of each base that a sample reads, in reading order, [groupings, bases]; numbered across the groupings."""
        number, runs = self._stream.runs(sample)
        shard = self._shards[number]
        of_runs = []
        for document, first, last, reverse in runs:
            codes = np.stack(self._codes(shard, document, first, last))
            of_runs.append(codes[:, ::-1] if reverse else codes)
        return np.concatenate(of_runs, axis=1) if of_runs else np.zeros((len(self.groupings), 0), np.int64)

    def _codes(self, shard: Shard, document: int, first: int, last: int) -> list[Codes]:
        """Of bases [first, last) of a document, as they are stored: one row for each grouping."""
        contig = shard.coordinates.assembly[document], shard.coordinates.contig[document]
        rows, base = [], 0
        for name, classes in self.groupings.items():
            if name == "class":
                assert self._annotations is not None
                table = self._annotations.of_contig.get(contig)
                codes = np.full(last - first, len(classes) - 1) if table is None else table.at(positions(shard, document, first, last))
            elif name == "case":
                codes = (_bases(shard, document, first, last) >= ord("a")).astype(np.int64)
            elif name == "gc":
                codes = self._gc_codes(shard, document, first, last)
            else:
                codes = np.full(last - first, self._number_of_assembly[contig[0]])
            rows.append(codes + base)
            base += len(classes)
        return rows

    def _gc_codes(self, shard: Shard, document: int, first: int, last: int) -> Codes:
        size, length = self._gc_window, int(shard.lengths[document])
        begin, end = first // size * size, min(-(-last // size) * size, length)
        bases = _bases(shard, document, begin, end)
        starts = np.arange(0, end - begin, size)
        strong, known = (np.add.reduceat(np.isin(bases, some).astype(np.int64), starts) for some in (GC, ACGT))
        code_of_window = np.searchsorted(self._gc_edges, strong / np.maximum(known, 1), side="right")
        return np.repeat(code_of_window, np.diff(np.append(starts, end - begin)))[first - begin : last - begin].astype(np.int64)

    def _token_widths(self, sample: int, tokens_S: NDArray[np.int64], num_bases: int) -> NDArray[np.int64]:
        """Bases that each token of a sample stands for, unknown ones too."""
        widths_S = self._widths_V[tokens_S]
        if (widths_S == UNKNOWN).any():  # a run of letters that are no token: as long as the sequence says
            known = np.isin(np.concatenate([bases for _, bases in self._stream.read(sample)]) & 0xDF, self._singles)
            at = 0
            for place in np.flatnonzero(widths_S == UNKNOWN).tolist():
                start = at = int(widths_S[:place].sum())
                while at < len(known) and not known[at]:
                    at += 1
                widths_S[place] = at - start
        if int(widths_S.sum()) != num_bases:
            raise RuntimeError(f"sample {sample} of '{self._stream.name}' reads {num_bases} bases, its tokens stand for {widths_S.sum()}")
        return widths_S


def positions(shard: Shard, document: int, first: int, last: int) -> NDArray[np.int64]:
    """Where bases [first, last) of a document lie on their contig; what a haplotype inserts, on the base before it."""
    coordinates = shard.coordinates
    if coordinates.edits is not None:
        return int(coordinates.span_start[document]) + coordinates.edits.to_reference(document, np.arange(first, last))[0]
    found = find_stretches(coordinates, *(np.array([value], np.int64) for value in (document, first, last)))
    pieces = [np.arange(start, end) for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True)]
    return np.concatenate([piece[::-1] for piece in pieces] if coordinates.minus[document] else pieces)


def _bases(shard: Shard, document: int, first: int, last: int) -> NDArray[np.uint8]:
    at = int(shard.offsets[document])
    return shard.bases[at + first : at + last]


def _widths(tokenizer: Tokenizer) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bases of each id, 0 for specials; and, where the unknown token is a run of other letters, the letters that are tokens."""
    vocabulary = tokenizer.vocabulary
    widths = np.array([0 if text in vocabulary.specials else len(text) for text in tokenizer.tokens], np.int64)
    runs = bool(vocabulary.singles)
    widths[tokenizer.unk_id] = UNKNOWN if runs else 1 if tokenizer.bpe else tokenizer.k
    letters = {text for text in vocabulary.singles} if runs else set()
    return widths, np.frombuffer("".join(sorted(letters)).encode(), np.uint8)


def _gc_names(edges: Sequence[float]) -> tuple[str, ...]:
    texts = [f"{100 * edge:g}" for edge in edges]
    between = [f"{low}-{high} %" for low, high in itertools.pairwise(texts)]
    return (f"< {texts[0]} %", *between, f">= {texts[-1]} %")


def _annotations(files: dict[str, RegionFileConfig], shards: Sequence[Shard]) -> Annotations:
    contigs = list(
        dict.fromkeys(pair for shard in shards for pair in zip(shard.coordinates.assembly, shard.coordinates.contig, strict=True))
    )
    read = {name: read_regions(name, config.path) for name, config in files.items()}
    found = list(dict.fromkeys(kind for file in read.values() for kind in file.classes))
    classes = (*found, INTERGENIC, UNANNOTATED)
    layers: dict[Contig, list[tuple[int, NDArray[np.int64]]]] = {}
    annotated: set[Contig] = set()
    report = []
    for name, file in read.items():
        places, left_out = _places(name, files[name], file, contigs)
        if file.is_annotation:
            annotated.update(contig for of_name in places.values() for contig, _ in of_name)
        for kind, of_name in file.classes.items():
            for sequence, intervals in of_name.items():
                for contig, offset in places.get(sequence, ()):
                    layers.setdefault(contig, []).append((found.index(kind), np.maximum(intervals - offset, 0)))
        matched = [sequence for sequence in file.names if places.get(sequence)]
        report.append({"name": name, **file.entry, "names": len(matched), "names_left_out": left_out})
    rest = {True: len(found), False: len(found) + 1}
    everywhere = {contig: _painted(layers.get(contig, []), rest[contig in annotated]) for contig in {*layers, *annotated}}
    return Annotations(classes, everywhere, report)


def _places(
    name: str, config: RegionFileConfig, file: RegionFile, contigs: Sequence[Contig]
) -> tuple[dict[str, list[tuple[Contig, int]]], list[str]]:
    """Contigs, and where they begin, of each sequence of a file; and the sequences that are left out."""
    key = f"data.regions.files.{name}"
    assemblies = list(dict.fromkeys(assembly for assembly, _ in contigs))
    if config.assembly is not None and config.assembly not in assemblies:
        raise ConfigError(f"{key}.assembly = {config.assembly} is no assembly of the held-out sets. Known: {', '.join(assemblies[:5])}")
    of_label: dict[str, list[Contig]] = {}
    for assembly, contig in contigs:
        if config.assembly in (None, assembly):
            of_label.setdefault(contig, []).append((assembly, contig))
    bare = list(of_label)
    for assembly, contig in contigs:
        if config.assembly in (None, assembly) and f"{assembly}:{contig}" in file.names:
            of_label.setdefault(f"{assembly}:{contig}", []).append((assembly, contig))
    known = bare + [label for label in of_label if label not in bare]
    asked = file.names + [sequence for sequence in file.silent if sequence in of_label]
    options = (f"{key}.contig_names", f"{key}.skip_missing_contigs=true")
    found = match_contigs(asked, known, config.contig_names, config.skip_missing_contigs, config.path, options)
    places: dict[str, list[tuple[Contig, int]]] = {}
    for sequence, of_sequence in found.items():
        for place in of_sequence:
            owners = of_label[place.contig]
            if len(owners) > 1:
                some = ", ".join(assembly for assembly, _ in owners[:5])
                raise ConfigError(f"{config.path}: '{place.contig}' is a contig of {len(owners)} assemblies: {some}. Set {key}.assembly")
            places.setdefault(sequence, []).append((owners[0], place.offset or 0))
    return places, [sequence for sequence in file.names if sequence not in places]


def _painted(layers: Sequence[tuple[int, NDArray[np.int64]]], rest: int) -> ContigClasses:
    """One contig: each base has the class of the first layer that covers it, else `rest`."""
    bounds = np.unique(np.concatenate([np.zeros(0, np.int64), *(intervals.ravel() for _, intervals in layers)]))
    codes = np.full(len(bounds) + 1, rest, np.int64)
    for number, intervals in reversed(layers):
        edges = np.zeros(len(bounds) + 2, np.int64)
        np.add.at(edges, np.searchsorted(bounds, intervals[:, 0]) + 1, 1)
        np.add.at(edges, np.searchsorted(bounds, intervals[:, 1]) + 1, -1)
        codes[np.cumsum(edges)[:-1] > 0] = number
    return ContigClasses(bounds, codes)
