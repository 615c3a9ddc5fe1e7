"""Everything a run reads, opened and checked before any rank starts: tokenizer, training stream, held-out sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.lengths import TrainStream, train_stream
from dnapretrain.data.sampling.probe_windows import ProbeWindows, open_probes
from dnapretrain.data.sampling.region_groups import open_regions
from dnapretrain.data.sampling.samples import SampleStream, held_out_streams
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer
from dnapretrain.errors import ConfigError

LOOKED_AT = 64
"""Samples of each set that are looked at before a run starts."""


@dataclass(frozen=True)
class RunData:
    """Tokenizer and streams of a run: no ranks, no torch."""

    tokenizer: Tokenizer
    train: TrainStream
    held_out: dict[str, SampleStream]
    probes: ProbeWindows | None = None
    """Only where they were asked for, and data.probes asks for any."""

    def held_out_sets(self, names: Sequence[str]) -> dict[str, SampleStream]:
        """The held-out sets of these names, or all. Raises ConfigError for a name that is not there."""
        unknown = [name for name in names if name not in self.held_out]
        if unknown or not self.held_out:
            known = ", ".join(self.held_out) or "none: set data.split or data.valid, or give --data"
            raise ConfigError(f"no held-out set '{unknown[0] if unknown else 'valid'}'. Known sets: {known}.")
        return {name: self.held_out[name] for name in names or tuple(self.held_out)}


def open_data(config: RunConfig, probes: bool = False) -> RunData:
    """Open the shards and check that they yield samples, and the genes of data.probes where they are to be asked. Raises DataError and
    ConfigError."""
    tokenizer = build_tokenizer(config.tokenizer)
    streams = train_stream(config.data_by_samples(), tokenizer), held_out_streams(config.data, tokenizer)
    data = RunData(tokenizer, *streams, open_probes(config, tokenizer) if probes else None)
    open_regions(config.data.regions, data.held_out)
    every: list[TrainStream | SampleStream] = [data.train, *data.held_out.values()]
    for stream in every:
        ids = np.linspace(0, stream.num_samples - 1, num=min(LOOKED_AT, stream.num_samples)).astype(np.int64)
        if not any(stream.batch(one).loss_mask.any() for one in ids[:, None]):  # each by itself: lengths may differ
            raise ConfigError(
                f"none of {len(ids)} samples of set '{stream.name}' has a base with a loss weight above 0 "
                f"(data.lowercase_weight = {config.data.lowercase_weight:g}). Is it all in lower case? Raise data.lowercase_weight."
            )
    if config.train.eval_interval and not data.held_out and not config.data.probes.is_active:
        raise ConfigError(f"train.eval_interval = {config.train.eval_interval}, but nothing is held out. Set data.split or data.valid.")
    return data
