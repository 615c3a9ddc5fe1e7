"""The training samples of a run, of one length after another: sample id -> stage -> the stream of its length.

There is one SampleStream per length, over the same shards. A stage reads on in the stream of its length where the last stage of that
length stopped, so n samples of a length are the first n of its stream, wherever they stand in the run. The length of the first
stage has the key data.seed, any other a hash of data.seed and the length: its strands, phases, masks and order have nothing to do
with those before, and no stage changes what was read before it.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain.config import DataConfig
from dnapretrain.data.sampling.sample_loci import SampleLocus
from dnapretrain.data.sampling.samples import MAX_SAMPLES, Batch, SampleStream
from dnapretrain.data.sampling.sources import Source, train_sources
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class LengthStage:
    """From sample id `start` on, samples have `length` tokens: those of the length's own stream from its sample `first` on."""

    start: int
    length: int
    first: int


@dataclass(frozen=True, eq=False)
class LengthPart:
    """What the beginning of a run reads of one length: the first `num_samples` of its stream."""

    stream: SampleStream
    num_samples: int
    stages: tuple[LengthStage, ...]
    """The stages of this length, in order."""

    def run_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids of the run, for ids in [0, num_samples) of this length's stream."""
        number = np.searchsorted([stage.first for stage in self.stages], ids, side="right") - 1
        return ids + np.array([stage.start - stage.first for stage in self.stages], np.int64)[number]


def train_stream(data: DataConfig, tokenizer: Tokenizer) -> TrainStream:
    """The blended, shuffled training samples. Raises ConfigError or DataError where the shards cannot be read that way."""
    return TrainStream(train_sources(data), data, tokenizer)


def length_stages(data: DataConfig) -> list[LengthStage]:
    """Where lengths begin; stages that follow each other with one length are one. Raises ConfigError for stages in steps."""
    stages: list[LengthStage] = []
    read: dict[int, int] = {}
    start = 0
    for number, length in enumerate(data.training_lengths):
        if not stages or stages[-1].length != length:
            if stages:
                before = stages[-1]
                read[before.length] = before.first + start - before.start
            stages.append(LengthStage(start, length, read.get(length, 0)))
        if data.stages and data.stages[number].until_step is not None:
            raise ConfigError("data.stages has until_step, which needs train.* to be counted in samples. Use until_samples")
        start = (data.stages[number].until_samples or 0) if data.stages else 0
    return stages


class TrainStream:
    """Training samples by id, endless. All samples of a batch have one length."""

    def __init__(self, sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer) -> None:
        self.name = "train"
        self.tokenizer = tokenizer
        self.sources = tuple(sources)
        """In the order of data.train."""
        self._stages = length_stages(data)
        self._starts = [stage.start for stage in self._stages]
        self._streams = {
            length: SampleStream("train", sources, _data_of_length(data, length, self._stages), tokenizer)
            for length in dict.fromkeys(stage.length for stage in self._stages)
        }
        self.num_samples = self._count_samples()
        """Samples until those of the last length have read every source at least once; of one length, one epoch."""
        self.digest = self.digest_at(MAX_SAMPLES)
        """XXH3-128 over all that samples depend on; of one length, that of its SampleStream."""

    def length_at(self, sample_id: int) -> int:
        """Tokens of a sample. Raises DataError for an id below 0."""
        return self._stage(sample_id).length

    def batch(self, sample_ids: NDArray[np.int64]) -> Batch:
        """The samples of these ids, in this order. Raises DataError for ids that are none or whose samples differ in length."""
        ids = np.ascontiguousarray(sample_ids, dtype=np.int64)
        stage = self._stage(int(ids[0]) if ids.size else 0)
        if len(self._stages) == 1:
            return self._streams[stage.length].batch(ids)
        number = np.searchsorted(self._starts, ids, side="right") - 1
        if ids.size and ids.min() < 0:
            raise DataError(f"sample id {ids.min()} is below 0. Give the number of a sample of the run")
        lengths = np.unique([self._stages[of].length for of in np.unique(number).tolist()])
        if len(lengths) > 1:
            raise DataError(f"the samples of a batch have {lengths.tolist()} tokens. Read those of each length by themselves")
        by = np.array([self._stages[of].first - self._stages[of].start for of in range(len(self._stages))], np.int64)
        return self._streams[stage.length].batch(ids + by[number])

    def locate(self, sample_id: int) -> list[SampleLocus]:
        """What a sample reads, as SampleStream.locate; `epoch` is that of the sample's length. Raises DataError for an id outside."""
        stage = self._stage(sample_id)
        return self._streams[stage.length].locate(sample_id - stage.start + stage.first)

    def read(self, sample_id: int) -> list[tuple[SampleLocus, NDArray[np.uint8]]]:
        """Each locus of a sample with its bases (ASCII, case kept) as the sample reads them, on its strand."""
        stage = self._stage(sample_id)
        return self._streams[stage.length].read(sample_id - stage.start + stage.first)

    def parts(self, num_samples: int) -> list[LengthPart]:
        """What the first `num_samples` read of each length, in order of first use."""
        parts = []
        for length, stream in self._streams.items():
            stages = tuple(stage for stage in self._stages if stage.length == length and (stage.start < num_samples or not stage.start))
            if stages:
                end = next((start for start in self._starts if start > stages[-1].start), MAX_SAMPLES)
                read = stages[-1].first + min(num_samples, end) - stages[-1].start
                parts.append(LengthPart(stream, read, stages))
        return parts

    def cut(self) -> tuple[int, int]:
        """Bases that the batches so far left out, and in how many samples, as SampleStream.cut."""
        bases, samples = zip(*(stream.cut() for stream in self._streams.values()), strict=True)
        return sum(bases), sum(samples)

    def report(self) -> dict[str, Any]:
        """Counts as of SampleStream.report; of several lengths those of the last one, and `lengths` with those of each in order of use."""
        reports = {length: stream.report() for length, stream in self._streams.items()}
        last = reports[self._stages[-1].length]
        if len(reports) == 1:
            return last
        starts = [{"start": stage.start, "sequence_length": stage.length} for stage in self._stages]
        of_lengths = [{"sequence_length": length, **report} for length, report in reports.items()]
        return {**last, "samples": self.num_samples, "length_stages": starts, "lengths": of_lengths}

    def segments(self) -> Iterator[NDArray[np.uint8]]:
        """Bases (ASCII, case kept) of each segment that samples of the last length are cut from."""
        return self._streams[self._stages[-1].length].segments()

    def digest_at(self, num_samples: int) -> str:
        """The digest of what the first `num_samples` depend on: stages that begin later are left out, so they may be changed.

        As long as samples have one length, it is the digest of that length's stream: longer stages may be added to a run that had none.
        """
        parts = self.parts(num_samples)
        digests = [part.stream.digest_at(part.num_samples) for part in parts]
        if len(parts) == 1:
            return digests[0]
        begun = [[stage.start, stage.length] for stage in self._stages if stage.start < num_samples]
        return xxhash.xxh3_128_hexdigest(json.dumps({"length_stages": begun, "streams": digests}, sort_keys=True).encode())

    def _stage(self, sample_id: int) -> LengthStage:
        if sample_id < 0:
            raise DataError(f"sample id {sample_id} is not in [0, 2^62). Give the number of a sample of the run")
        return self._stages[bisect.bisect_right(self._starts, sample_id) - 1]

    def _count_samples(self) -> int:
        last = self._stages[-1]
        epoch = self._streams[last.length].num_samples
        [part] = [part for part in self.parts(MAX_SAMPLES) if part.stream is self._streams[last.length]]
        return int(part.run_ids(np.array([epoch - 1]))[0]) + 1


def _data_of_length(data: DataConfig, length: int, stages: Sequence[LengthStage]) -> DataConfig:
    """The settings of one length's stream: its key, and its stages alone, counted in its own samples."""
    own, read, start = [], 0, 0
    for stage in data.stages:
        if (stage.sequence_length or data.sequence_length) == length:
            read += (stage.until_samples or 0) - start
            own.append(stage.model_copy(update={"sequence_length": None, "until_samples": read}))
        start = stage.until_samples or 0
    if own:
        own[-1] = own[-1].model_copy(update={"until_samples": None})
    seed = data.seed if length == stages[0].length else xxhash.xxh3_64_intdigest(f"{data.seed} {length}".encode())
    return data.model_copy(update={"sequence_length": length, "stages": tuple(own), "seed": seed})
