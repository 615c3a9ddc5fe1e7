"""Samples: which bases each sample id reads, and batches of them.

Causal objective: a sample is a stream T of sequence_length + 1 tokens, <bos> if the tokenizer adds it, then the tokens
of its bases; tokens = T[:-1], labels = T[1:]. Windows touch so that every base is a target once.

Masked objective (data.masking.mlm_probability > 0; BERT, arXiv:1810.04805): a sample is a stream T of sequence_length
tokens, <bos> first and <eos> last if the tokenizer adds them; labels = T, tokens = T with the chosen places changed. Windows touch so that
every base is in one sample of an epoch, and packed samples follow each other in the token stream without a gap. Only
tokens that weigh something are chosen (no ambiguous bases, no specials), each by itself with mlm_probability; of the
chosen, mask_replace_prob read <mask>, random_replace_prob a base or k-mer drawn evenly (the same one by chance, too), and
the rest stays; loss_mask is 0 at every other place. Choices are a hash of (seed, source, n-th draw from it, place): other
ones in each epoch. Held-out sets have the same ones at every evaluation, whatever data.seed is.

With span_length n > 1 (SpanBERT, arXiv:1907.10529; whole k-mers of single bases), spans are chosen instead of tokens. Spans of n
tokens tile the sample from a keyed offset of 0 to n - 1 on; at every token that weighs nothing (specials, separators, <pad>,
ambiguous bases) a span ends and behind it another begins, so no span holds tokens of two documents. Each span, short or not, is
chosen with mlm_probability p: so P(a token is predicted) = P(its span is chosen) = p, at every place. Whether it reads <mask>,
random tokens or itself is decided once for the span; each random token is drawn by itself.

Packed samples with data.document_attention: a token sees, and is predicted from, tokens of its own document only. A separator belongs
to the document it begins: as a token it is what the first base of that document is predicted from, as a label (of the last
token of the document before) it weighs nothing. So every base is a target once, as without, and no target crosses a document.

Everything is a pure function of (settings, sample id): no state, no files, the same on any number of ranks and for any
length of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain._core import BatchFiller, Masking, SampleIndex, reverse_complement
from dnapretrain.config import DataConfig
from dnapretrain.data.sampling.blending import Stage, blend_stages, one_epoch
from dnapretrain.data.sampling.cutting import contig_groups, cut_rules
from dnapretrain.data.sampling.sample_loci import SampleLocus, locus_of_run
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import SIDES, split_documents, whole_documents
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError


class RegionClasses(Protocol):
    """Tells the classes of the bases of a held-out set apart (`region_groups.RegionGroups`)."""

    @property
    def groupings(self) -> Mapping[str, Sequence[str]]:
        """The classes of each grouping."""

    @property
    def num_classes(self) -> int:
        """Of all groupings."""

    @property
    def report(self) -> list[dict[str, Any]]:
        """What was read of each region file."""

    def counts(self, sample_ids: Iterable[int], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Bases of each class in each token [samples, tokens, classes]."""


FORMAT = 1
"""Changes when the same settings begin to give other samples: part of every stream's digest."""
UINT64 = (1 << 64) - 1
MAX_SAMPLES = 1 << 62


@dataclass(frozen=True)
class Batch:
    """B samples of S tokens."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_mask: NDArray[np.float32]
    """Weight of each label: 1 for bases, lowercase_weight if soft-masked (k-mer: the mean); 0 for ambiguous bases, <bos>, <eos> and
    <pad>, and in the masked objective for every token that is not chosen."""
    documents: NDArray[np.int32] | None = None
    """With data.document_attention, the number of each token's document within its sample, from 0; -1: padding."""


def held_out_streams(data: DataConfig, tokenizer: Tokenizer) -> dict[str, SampleStream]:
    """Held-out samples by name: 'valid' and 'test' of the split, then the shards of data.valid.

    In order, each window once, forward strand, phase 0, windows touching; a last window may be short. Raises ConfigError
    where a name of data.valid is also a side of the split.
    """
    streams: dict[str, SampleStream] = {}
    if data.split.by != "none":
        shards = [open_shard(source.prefix) for source in data.train]
        splits = split_documents(shards, data.split)
        for side in SIDES[1:]:
            sources = [Source(shard, split[side]) for shard, split in zip(shards, splits, strict=True) if split[side].bases]
            if sources:
                streams[side] = SampleStream(side, sources, data, tokenizer)
    for name, prefix in data.valid.items():
        if name in streams or name == "train":
            raise ConfigError(f"data.valid names a set '{name}', which is also a side of data.split. Choose another name")
        shard = open_shard(prefix)
        streams[name] = SampleStream(name, [Source(shard, whole_documents(shard))], data, tokenizer)
    return streams


class SampleStream:
    """Samples of one set and one length, by id. 'train' is blended, shuffled and endless; any other set is read once, in order."""

    def __init__(self, name: str, sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.sequence_length = data.sequence_length
        self.regions: RegionClasses | None = None
        """Of a held-out set: the classes its loss is told apart by (`open_regions`); None: no such classes."""
        self._sources = list(sources)
        self._data = data
        self._training = name == "train"
        self._masked = data.masking.mlm_probability > 0
        self._seed = data.seed & UINT64 if self._training else 0  # of a held-out set only the masks are keyed: one yardstick for all runs
        self._rules = cut_rules(data, tokenizer, self._training)
        by_contig = self._training and data.pack_order == "contig"
        self._groups = [contig_groups(source) if by_contig else None for source in self._sources]
        self._indexes = [
            SampleIndex(np.ascontiguousarray(source.segments.length), seed=self._seed, source=number, groups=groups, **self._rules)
            for number, (source, groups) in enumerate(zip(self._sources, self._groups, strict=True))
        ]
        self._check_samples()
        self._stages: list[Stage] = []
        if self._training:
            weights = [source.weight for source in self._sources]
            self._stages = blend_stages(data, weights, [source.segments.bases for source in self._sources])
        starts = [source.shard.offsets[source.segments.document] + source.segments.start for source in self._sources]
        self._filler = BatchFiller(
            tokenizer.core_encoder(data.lowercase_weight),
            [(index, start, source.shard.bases) for index, start, source in zip(self._indexes, starts, self._sources, strict=True)],
            self._stages[0].shares if self._stages else [],
            self._seed,
            self._core_masking() if self._masked else None,
            [(stage.start, stage.shares) for stage in self._stages[1:]],
        )
        self.num_samples = self._count_samples()
        """One epoch. Of a blend: the fewest samples whose proportional shares read every source at least once."""
        self.digest = self.digest_at(MAX_SAMPLES)
        """XXH3-128 over the bases, the split, weights in all stages, cutting rules, masking, tokenizer and seed."""

    def batch(self, sample_ids: NDArray[np.int64]) -> Batch:
        """The samples of these ids, in this order. Raises DataError for an id that the set does not have."""
        ids = np.ascontiguousarray(sample_ids, dtype=np.int64)
        if ids.size:
            self._check_id(int(ids.min()))
            self._check_id(int(ids.max()))
        return Batch(*self._filler.fill(ids, self._data.document_attention))

    def locate(self, sample_id: int) -> list[SampleLocus]:
        """What a sample reads, in reading order: one locus for windows, one or more when packed. Raises DataError for an id outside."""
        self._check_id(sample_id)
        number, epoch, runs = self._filler.locate(sample_id)
        source = self._sources[number]
        return [
            locus_of_run(source, segment, start, length, phase, reverse, epoch)
            for segment, start, length, phase, reverse, _ in runs
            if length
        ]

    def read(self, sample_id: int) -> list[tuple[SampleLocus, NDArray[np.uint8]]]:
        """Each locus of a sample with its bases (ASCII, case kept) as the sample reads them, on its strand."""
        number, _, runs = self._filler.locate(sample_id)
        source = self._sources[number]
        pieces = []
        for segment, start, length, _, reverse, _ in runs:
            if length:
                at = int(source.shard.offsets[source.segments.document[segment]] + source.segments.start[segment]) + start
                bases = source.shard.bases[at : at + length]
                pieces.append(reverse_complement(np.ascontiguousarray(bases)) if reverse else bases)
        return list(zip(self.locate(sample_id), pieces, strict=True))

    def runs(self, sample_id: int) -> tuple[int, list[tuple[int, int, int, bool]]]:
        """What a sample reads, in reading order: number of the source; document, first base and end in it, whether on the other strand."""
        self._check_id(sample_id)
        number, _, runs = self._filler.locate(sample_id)
        segments = self._sources[number].segments
        found = []
        for segment, start, length, _, reverse, _ in runs:
            if length:
                first = int(segments.start[segment]) + start
                found.append((int(segments.document[segment]), first, first + length, reverse))
        return number, found

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources, in the order of data.train."""
        return tuple(self._sources)

    def draws_per_epoch(self, source: int) -> int:
        """Samples of one epoch of a source."""
        return self._indexes[source].num_samples

    def draws_read(self, source: int, num_samples: int) -> tuple[int, NDArray[np.int64]]:
        """What the first `num_samples` of a training set read of a source: all draws below a number, but these (in order)."""
        return self._filler.progress(source, num_samples)

    def sample_ids(self, source: int, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample that is the n-th draw from a source, for each n; -1 where no sample ever is."""
        return self._filler.samples(source, draws)

    def readers(
        self, source: int, segments: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], epochs: range
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Who reads the bases [starts, ends) of segments in these epochs of a source, in no order.

        Arrays with one entry per run: number of the query, draw, first base in the segment, bases, and whether it reads the
        other strand of the shard. No sample is looked at that does not read near these bases.
        """
        return self._filler.readers(source, segments, starts, ends, epochs.start, epochs.stop)

    @property
    def reads_alike(self) -> bool:
        """True where every epoch reads the same bases equally often: they depend on neither strand, phase, jitter nor neighbours."""
        rules = self._rules
        fixed = not rules["random_phase"] and not self.tokenizer.is_variable and not rules["packed"] and "jitter" not in rules
        return fixed and (rules["k"] == 1 or not rules["reverse_complement"])

    def cut(self) -> tuple[int, int]:
        """Bases that the batches so far left out because tokens ran out, and in how many samples: windows are cut in bases, and where
        tokens stand for different numbers of bases (N is a token) the bases of a window can take more tokens than it has."""
        return self._filler.cut()

    def report(self) -> dict[str, Any]:
        """Counts: samples of one epoch, and where the bases of each source went.

        bases == bases_used + bases_other_sides + sum of bases_left_out. Left out means read by no sample of any epoch:
        short_segments (no sample fits, or under min_length), short_tails (ends of segments), gaps (between windows, where the
        stride is longer), remainders (fewer than k bases at an end, read at phase 0 of the forward strand). For the
        training set, the bases on other sides of the split are those held out.
        """
        per_source = [self._source_report(number) for number in range(len(self._sources))]
        keys = ("bases", "bases_used", "bases_other_sides")
        left_out = [report["bases_left_out"] for report in per_source]
        return {
            "name": self.name,
            "samples": self.num_samples,
            **{key: sum(report[key] for report in per_source) for key in keys},
            "bases_left_out": {reason: sum(counts[reason] for counts in left_out) for reason in left_out[0]},
            "sources": per_source,
            **({"stages": [vars(stage) for stage in self._stages]} if len(self._stages) > 1 else {}),
        }

    def segments(self) -> Iterator[NDArray[np.uint8]]:
        """Bases (ASCII, case kept) of each segment that samples are cut from: what a count model is to be fitted on, or scored on."""
        for source, index in zip(self._sources, self._indexes, strict=True):
            for segment in index.used_segments():
                start = int(source.shard.offsets[source.segments.document[segment]] + source.segments.start[segment])
                yield source.shard.bases[start : start + int(source.segments.length[segment])]

    def _core_masking(self) -> Masking:
        standard = self.tokenizer.standard_ids
        return Masking(
            **self._data.masking.model_dump(),
            mask_id=self.tokenizer.mask_id,
            first_standard=standard.start,
            num_standard=len(standard),
        )

    def _check_samples(self) -> None:
        """Every training source gives samples; a held-out source may give none, but not all of them (the report counts its bases)."""
        empty = [source for source, index in zip(self._sources, self._indexes, strict=True) if not index.num_samples]
        if not empty or (not self._training and len(empty) < len(self._sources)):
            return
        rules, k = self._rules, self.tokenizer.bases_per_token
        context = 0 if rules["packed"] or rules["add_bos"] or self._masked else k
        targets = (1 if self.tokenizer.is_variable else k) + context
        needed = max(rules["min_length"], targets + (k - 1 if rules["random_phase"] else 0))
        longest = int(empty[0].segments.length.max(initial=0))
        raise ConfigError(
            f"shard {empty[0].shard.prefix} gives no sample for '{self.name}': its longest segment there has {longest} bases and "
            f"{needed} are needed. Lower data.min_length, change data.split, or leave the shard out"
        )

    def _check_id(self, sample_id: int) -> None:
        if sample_id < 0 or sample_id >= MAX_SAMPLES:
            raise DataError(f"sample id {sample_id} is not in [0, 2^62). Give the number of a sample of the run")
        if not self._training and sample_id >= self.num_samples:
            raise DataError(f"sample id {sample_id} is not below the {self.num_samples} samples of '{self.name}', which is read once")

    def _count_samples(self) -> int:
        counts = [index.num_samples for index in self._indexes]
        if not self._training:
            return sum(counts)
        return one_epoch(self._stages, counts) if len(counts) > 1 else counts[0]

    def digest_at(self, num_samples: int) -> str:
        """The digest of what the first `num_samples` depend on: stages that begin later are left out, so they may be changed.

        Checkpoints refuse other data by it.
        """
        sources = [
            [
                source.shard.digest,
                *(_array_digest(array) for array in (source.segments.document, source.segments.start, source.segments.length)),
            ]
            for source in self._sources
        ]
        any_groups = any(groups is not None for groups in self._groups)
        masking = self._data.masking.model_dump()
        if masking["span_length"] == 1:
            del masking["span_length"]  # as in digests that are older than it
        begun = [[stage.start, stage.shares] for stage in self._stages[1:] if stage.start < num_samples]
        content = {
            "format": FORMAT,
            "sources": sources,
            "shares": self._stages[0].shares if self._stages else [],
            **({"stages": begun} if begun else {}),
            "rules": self._rules,
            "lowercase_weight": self._data.lowercase_weight,
            "tokenizer": self.tokenizer.digest,
            "seed": self._seed if self._training else None,
            **({"groups": [_array_digest(groups) for groups in self._groups if groups is not None]} if any_groups else {}),
            **({"masking": masking} if self._masked else {}),
            **({"document_attention": True} if self._data.document_attention else {}),
        }
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def _source_report(self, number: int) -> dict[str, Any]:
        source, index = self._sources[number], self._indexes[number]
        coverage = index.coverage()
        used = coverage.pop("used")
        bases = int(source.shard.lengths.sum())
        return {
            "prefix": str(source.shard.prefix),
            "share": self._stages[0].shares[number] / self._stages[0].block if self._stages else None,
            "samples": index.num_samples,
            "segments": len(source.segments.length),
            "bases": bases,
            "bases_used": used,
            "bases_other_sides": bases - source.segments.bases,
            "bases_left_out": coverage,
        }


def _array_digest(array: NDArray[np.int64]) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array, dtype="<i8").data)
