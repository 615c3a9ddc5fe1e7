"""The parts of shards that samples are cut from."""

from __future__ import annotations

from dataclasses import dataclass

from dnapretrain.config import DataConfig
from dnapretrain.data.sampling.split import Segments, split_documents
from dnapretrain.data.shards.shard import Shard, open_shard


@dataclass(frozen=True)
class Source:
    """One shard, the part of it on this side of the split, and its weight in the blend."""

    shard: Shard
    segments: Segments
    weight: float = 1.0


def train_sources(data: DataConfig) -> list[Source]:
    """The training side of each source of data.train. Raises ConfigError or DataError where the shards cannot be read that way."""
    shards = [open_shard(source.prefix) for source in data.train]
    splits = split_documents(shards, data.split)
    return [Source(shard, split["train"], config.weight) for shard, split, config in zip(shards, splits, data.train, strict=True)]
