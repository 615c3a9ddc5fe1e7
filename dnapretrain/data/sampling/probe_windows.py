"""The windows of zero-shot probes as samples: what `held_out_batches` reads, one window each, and which of them are compared.

A decoder predicts every token of a window; its log-likelihood is that of the whole. Of an encoder all tokens are masked that hold a
base of the site, at once, and they alone are predicted. Where the two windows of a pair have other borders of tokens (byte pairs), it is
the tokens between the nearest borders that both have: the same bases.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.config import ProbesConfig, RunConfig
from dnapretrain.data.genes.gene_models import read_genes
from dnapretrain.data.genes.gene_regions import Extraction, ExtractSettings
from dnapretrain.data.genes.probe_pairs import KIND_OF, OF_CODONS, Pair, PairBuilder, Probe
from dnapretrain.data.genes.probe_places import GenePlaces
from dnapretrain.data.sampling.samples import Batch
from dnapretrain.data.shards.contigs import Assembly
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.selection import read_bed
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

LENGTHS = 16
"""Samples have a multiple of so many tokens, as FP8 wants it."""
CODONS = (*(name for name, kind in KIND_OF.items() if kind in ("start", "stop")), *OF_CODONS)
OPTIONS = ("assembly", "contig-names", "skip-missing-contigs", "genetic-code", "force")
SETTING_OF = {f"--{name}": f"data.probes.{name.replace('-', '_')}" for name in OPTIONS}
"""What the options that messages of `extract` name are called here."""

Ids = NDArray[np.int64]
Row = tuple[Ids, NDArray[np.bool_]]
"""Tokens of a window with its specials, and which of them are predicted."""


@dataclass(frozen=True)
class ComparedWindows:
    """One probe: numbers of windows, pair by pair."""

    name: str
    true: Ids
    other: Ids
    control_true: Ids
    control_other: Ids
    report: dict[str, Any]
    """candidates, pairs, controls, left_out."""


class ProbeWindows:
    """All windows, each once, and what is compared."""

    def __init__(self, probes: list[Probe], tokenizer: Tokenizer, is_masked: bool, room: int, divisor: int, fixed: bool = False) -> None:
        """`room`: tokens of a sample at most. `divisor`: samples have a multiple of so many tokens, or `room`; `fixed`: `room` always."""
        self.tokenizer, self._is_masked, self._room = tokenizer, is_masked, room
        self._rows: list[Row] = []
        self._number_of: dict[bytes, int] = {}
        self.probes = [self._compared(probe) for probe in probes]
        if not self._rows:
            raise DataError(
                f"data.probes: no pair of windows is left: {'; '.join(probe_lines(self.probes))}. Give another annotation, or genome"
            )
        longest = max(len(ids) for ids, _ in self._rows) - (not is_masked)
        self.sequence_length = room if fixed else min(room, math.ceil(longest / divisor) * divisor)
        """Tokens of a sample."""
        self.num_samples = len(self._rows)
        """Windows."""
        self.num_tokens = sum(len(ids) for ids, _ in self._rows)
        """Of all windows, specials too."""
        lengths_V = np.array([len(text) for text in tokenizer.tokens])
        self.bases = np.array([lengths_V[ids[is_target]].sum() for ids, is_target in self._rows], np.int64)
        """Bases that are predicted of each window."""

    def batch(self, sample_ids: NDArray[np.int64]) -> Batch:
        """The windows of these numbers, in this order."""
        pad, shape = self.tokenizer.pad_id, (len(sample_ids), self.sequence_length)
        tokens, labels, weights = np.full(shape, pad, np.int64), np.full(shape, pad, np.int64), np.zeros(shape, np.float32)
        for place, number in enumerate(sample_ids.tolist()):
            ids, is_target = self._rows[number]
            size = len(ids) - (not self._is_masked)
            if self._is_masked:
                tokens[place, :size] = np.where(is_target, self.tokenizer.mask_id, ids)
                labels[place, :size], weights[place, :size] = ids, is_target
            else:
                tokens[place, :size], labels[place, :size], weights[place, :size] = ids[:-1], ids[1:], is_target[1:]
        return Batch(tokens, labels, weights)

    def _compared(self, probe: Probe) -> ComparedWindows:
        true, other = self._numbers(probe, probe.pairs)
        controls = self._numbers(probe, probe.controls)
        report = {"candidates": probe.candidates, "pairs": len(true), "controls": len(controls[0]), "left_out": dict(probe.left_out)}
        return ComparedWindows(probe.name, true, other, *controls, report)

    def _numbers(self, probe: Probe, pairs: Iterable[Pair]) -> tuple[Ids, Ids]:
        found = []
        for pair in pairs:
            rows = self._tokens(pair)
            if max(len(ids) for ids, _ in rows) - (not self._is_masked) > self._room:
                probe.left_out["more tokens than a sample has"] += 1
                continue
            found.append([self._number(row) for row in rows])
        table = np.array(found, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _number(self, row: Row) -> int:
        """The number of a window; equal ones are read once."""
        key = row[0].tobytes() + row[1].tobytes()
        if key not in self._number_of:
            self._number_of[key] = len(self._rows)
            self._rows.append(row)
        return self._number_of[key]

    def _tokens(self, pair: Pair) -> list[Row]:
        tokenizer = self.tokenizer
        words = [tokenizer.encode(window.text) for window in (pair.true, pair.other)]
        before = [tokenizer.bos_id] if tokenizer.add_bos else []
        behind = [tokenizer.eos_id or 0] if tokenizer.add_eos and self._is_masked else []
        if not self._is_masked:
            rows = [np.concatenate([before, ids]).astype(np.int64) for ids in words]
            return [(ids, np.arange(len(ids)) > 0) for ids in rows]  # the first token, a special or not, is only read
        borders = [np.concatenate([[0], np.cumsum([len(tokenizer.tokens[value]) for value in ids])]) for ids in words]
        common = [np.intersect1d(borders[0], borders[1])] * 2 if pair.true.spans == pair.other.spans else borders
        framed = []
        for ids, starts, shared, window in zip(words, borders, common, (pair.true, pair.other), strict=True):
            is_target = np.zeros(len(ids), np.bool_)
            for start, end in window.spans:
                low, high = shared[shared <= start][-1], shared[shared >= end][0]
                is_target |= (starts[:-1] >= low) & (starts[1:] <= high)
            of_specials = (np.zeros(len(some), np.bool_) for some in (before, behind))
            whole = np.concatenate([next(of_specials), is_target, next(of_specials)])
            framed.append((np.concatenate([before, ids, behind]).astype(np.int64), whole))
        return framed


def open_probes(config: RunConfig, tokenizer: Tokenizer) -> ProbeWindows | None:
    """The windows that data.probes asks for; None where it asks for nothing. Raises ConfigError and DataError."""
    probes, parallel = config.data.probes, config.parallel
    if not probes.is_active:
        return None
    with _genes(probes) as extraction:
        places = GenePlaces(extraction, read_bed(probes.within) if probes.within else None)
        builder = PairBuilder(places, config.probe_window, config.probe_word, probes.sites, probes.controls)
        found = [builder.build(name) for name in dict.fromkeys(probes.names)]
    divisor = math.lcm(LENGTHS, 2 * parallel.context_parallel_size * parallel.tensor_model_parallel_size)
    fixed = config.train.cuda_graph_impl != "none"  # layers are recorded at one length
    return ProbeWindows(found, tokenizer, config.is_masked, config.data.sequence_length, divisor, fixed)


def probe_lines(probes: Iterable[ComparedWindows]) -> Iterator[str]:
    """What was found, for people: a line for each probe."""
    for probe in probes:
        found = probe.report
        passed = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items())
        controls = f", {found['controls']:,} controls" if found["controls"] else ""
        of = "" if probe.name == "reverse_complement" else f" of {found['candidates']:,} candidates"
        yield f"{probe.name}: {found['pairs']:,} pairs{of}{controls}{f'; passed over: {passed}' if passed else ''}"


@contextmanager
def _genes(settings: ProbesConfig) -> Iterator[Extraction]:
    """The genes on their assembly, checked against it. Messages name settings where those of `extract` name options."""
    assert settings.genome is not None and settings.annotation is not None
    with tempfile.TemporaryDirectory(prefix="dnapretrain-") as scratch:
        prefix = settings.genome
        try:
            if not Path(f"{prefix}.idx").is_file():
                prefix = Path(scratch) / "genome"
                preprocess([settings.genome], prefix, assembly=settings.assembly, progress=lambda *_: None)
            codes = ExtractSettings(
                genetic_code=settings.genetic_code, skip_missing_contigs=settings.skip_missing_contigs, force=settings.force
            )
            genome = Assembly(open_shard(prefix), settings.assembly)
            extraction = Extraction(genome, read_genes(settings.annotation), codes, settings.contig_names)
            if not extraction.models.counts["coding_sequences"] and (about := [name for name in settings.names if name in CODONS]):
                raise DataError(
                    f"{settings.annotation} has no coding sequence (CDS), and {', '.join(about)} of data.probes.names ask about them. "
                    "Give an annotation that has, or other names"
                )
            extraction.check_codons()
        except (ConfigError, DataError) as error:
            text = str(error).replace(str(prefix), str(settings.genome))
            for option, setting in SETTING_OF.items():
                text = text.replace(option, setting)
            raise type(error)(text if "data.probes" in text else f"data.probes: {text}") from None
        yield extraction
