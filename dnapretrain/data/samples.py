"""Samples: which bases each sample id reads, and batches of them.

Causal objective: a sample is a stream T of sequence_length + 1 tokens, <bos> if the tokenizer adds it, then the tokens
of its bases; tokens = T[:-1], labels = T[1:]. Windows touch so that every base is a target once.

Masked objective (data.masking.mlm_probability > 0; BERT, arXiv:1810.04805): a sample is a stream T of sequence_length
tokens, <bos> first if the tokenizer adds it; labels = T, tokens = T with the chosen places changed. Windows touch so that
every base is in one sample of an epoch, and packed samples follow each other in the token stream without a gap. Only
tokens that weigh something are chosen (no ambiguous bases, no specials), each by itself with mlm_probability; of the
chosen, mask_replace_prob read <mask>, random_replace_prob a base or k-mer drawn evenly (the same one by chance, too), and
the rest stays; loss_mask is 0 at every other place. Choices are a hash of (seed, source, n-th draw from it, place): other
ones in each epoch. Held-out sets have the same ones at every evaluation, whatever data.seed is.

Everything is a pure function of (settings, sample id): no state, no files, the same on any number of ranks and for any
length of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain._core import BLEND_BLOCK, BatchFiller, Masking, SampleIndex
from dnapretrain.config import DataConfig
from dnapretrain.data.shards import Shard, open_shard
from dnapretrain.data.split import SIDES, Segments, split_documents, whole_documents
from dnapretrain.data.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

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


@dataclass(frozen=True)
class SampleLocus:
    """Bases that a sample reads, 0-based half-open on the contig: exactly those behind its tokens, so the phase is already applied."""

    prefix: str
    assembly: str
    contig: str
    start: int
    end: int
    strand: str
    """'-': the sample reads the reverse complement of contig[start:end]."""
    phase: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.assembly}:{self.contig}:{self.start + 1}-{self.end}({self.strand})"


@dataclass(frozen=True)
class Source:
    """One shard, the part of it on this side of the split, and its weight in the blend."""

    shard: Shard
    segments: Segments
    weight: float = 1.0


def train_stream(data: DataConfig, tokenizer: Tokenizer) -> SampleStream:
    """The blended, shuffled training samples. Raises ConfigError or DataError where the shards cannot be read that way."""
    shards = [open_shard(source.prefix) for source in data.train]
    splits = split_documents(shards, data.split)
    sources = [Source(shard, split["train"], config.weight) for shard, split, config in zip(shards, splits, data.train, strict=True)]
    return SampleStream("train", sources, data, tokenizer)


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
    """Samples of one set, by id. 'train' is blended, shuffled and endless; any other set is read once, in order."""

    def __init__(self, name: str, sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.sequence_length = data.sequence_length
        self._sources = list(sources)
        self._data = data
        self._training = name == "train"
        self._masked = data.masking.mlm_probability > 0
        self._seed = data.seed & UINT64 if self._training else 0  # of a held-out set only the masks are keyed: one yardstick for all runs
        self._rules = self._cut_rules()
        self._indexes = [
            SampleIndex(np.ascontiguousarray(source.segments.length), seed=self._seed, source=number, **self._rules)
            for number, source in enumerate(self._sources)
        ]
        self._check_samples()
        self._shares = blend_shares([source.weight for source in self._sources]) if self._training else []
        starts = [source.shard.offsets[source.segments.document] + source.segments.start for source in self._sources]
        self._filler = BatchFiller(
            tokenizer.core_encoder(data.lowercase_weight),
            [(index, start, source.shard.bases) for index, start, source in zip(self._indexes, starts, self._sources, strict=True)],
            self._shares,
            self._seed,
            self._core_masking() if self._masked else None,
        )
        self.num_samples = self._count_samples()
        """One epoch. Of a blend: the fewest samples whose proportional shares read every source at least once."""
        self.digest = self._compute_digest()
        """XXH3-128 over the bases, the split, weights, cutting rules, masking, tokenizer and seed; checkpoints refuse other data by it."""

    def batch(self, sample_ids: NDArray[np.int64]) -> Batch:
        """The samples of these ids, in this order. Raises DataError for an id that the set does not have."""
        ids = np.ascontiguousarray(sample_ids, dtype=np.int64)
        if ids.size:
            self._check_id(int(ids.min()))
            self._check_id(int(ids.max()))
        return Batch(*self._filler.fill(ids))

    def locate(self, sample_id: int) -> list[SampleLocus]:
        """What a sample reads, in reading order: one locus for windows, one or more when packed. Raises DataError for an id outside."""
        self._check_id(sample_id)
        number, draw = self._filler.draw(sample_id)
        source = self._sources[number]
        epoch, runs = self._indexes[number].resolve(draw)
        return [
            _locus(source, segment, start, length, phase, reverse, epoch) for segment, start, length, phase, reverse, _ in runs if length
        ]

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
        }

    def segments(self) -> Iterator[NDArray[np.uint8]]:
        """Bases (ASCII, case kept) of each segment that samples are cut from: what a count model is to be fitted on, or scored on."""
        for source, index in zip(self._sources, self._indexes, strict=True):
            for segment in index.used_segments():
                start = int(source.shard.offsets[source.segments.document[segment]] + source.segments.start[segment])
                yield source.shard.bases[start : start + int(source.segments.length[segment])]

    def _cut_rules(self) -> dict[str, Any]:
        data = self._data
        label_tokens = data.sequence_length - (self._masked and self.tokenizer.add_bos)
        return {
            "packed": data.sampling == "packed",
            "shuffle": self._training,
            "add_bos": self.tokenizer.add_bos,
            "random_phase": data.random_phase and self._training,
            "sequence_length": data.sequence_length,
            "k": self.tokenizer.bases_per_token,
            "stride": (data.stride if self._training else None) or label_tokens * self.tokenizer.bases_per_token,
            "min_length": data.min_length,
            "reverse_complement": data.reverse_complement if self._training else 0.0,
            **({"masked": True} if self._masked else {}),  # absent where causal: the digests of those streams are older than masking
        }

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
        targets = k if rules["packed"] or rules["add_bos"] or self._masked else 2 * k
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
        if len(counts) == 1:
            return counts[0]
        return max(-(-count * BLEND_BLOCK // share) for count, share in zip(counts, self._shares, strict=True))

    def _compute_digest(self) -> str:
        sources = [
            [
                source.shard.digest,
                *(_array_digest(array) for array in (source.segments.document, source.segments.start, source.segments.length)),
            ]
            for source in self._sources
        ]
        content = {
            "format": FORMAT,
            "sources": sources,
            "shares": self._shares,
            "rules": self._rules,
            "lowercase_weight": self._data.lowercase_weight,
            "tokenizer": self.tokenizer.digest,
            "seed": self._seed if self._training else None,
            **({"masking": self._data.masking.model_dump()} if self._masked else {}),
        }
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def _source_report(self, number: int) -> dict[str, Any]:
        source, index = self._sources[number], self._indexes[number]
        coverage = index.coverage()
        used = coverage.pop("used")
        bases = int(source.shard.lengths.sum())
        return {
            "prefix": str(source.shard.prefix),
            "share": self._shares[number] / BLEND_BLOCK if self._shares else None,
            "samples": index.num_samples,
            "segments": len(source.segments.length),
            "bases": bases,
            "bases_used": used,
            "bases_other_sides": bases - source.segments.bases,
            "bases_left_out": coverage,
        }


def blend_shares(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a block of BLEND_BLOCK: largest remainders, exactly adding up. Raises ConfigError for a share of 0."""
    total = sum(Fraction(weight) for weight in weights)
    exact = [Fraction(weight) * BLEND_BLOCK / total for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: shares[number] - exact[number])
    for number in by_remainder[: BLEND_BLOCK - sum(shares)]:
        shares[number] += 1
    for weight, share in zip(weights, shares, strict=True):
        if not share:
            raise ConfigError(
                f"a source of data.train has weight {weight} of {float(total)}: less than one sample in {BLEND_BLOCK}. Raise it"
            )
    return shares


def _array_digest(array: NDArray[np.int64]) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array, dtype="<i8").data)


def _locus(source: Source, segment: int, start: int, length: int, phase: int, reverse: bool, epoch: int) -> SampleLocus:
    document = int(source.segments.document[segment])
    coordinates = source.shard.coordinates
    start += int(source.segments.start[segment])
    minus = coordinates.strand[document] == "-"
    first = int(coordinates.end[document]) - start - length if minus else int(coordinates.start[document]) + start
    return SampleLocus(
        prefix=str(source.shard.prefix),
        assembly=coordinates.assembly[document],
        contig=coordinates.contig[document],
        start=first,
        end=first + length,
        strand="-" if minus != reverse else "+",
        phase=phase,
        epoch=epoch,
    )
