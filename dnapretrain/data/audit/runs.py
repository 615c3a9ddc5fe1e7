"""A run as it can be asked about: its settings, its last step, the samples of its steps, its sets. Steps count from 1, as in the log."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.config_file import load_config
from dnapretrain.data.sampling.lengths import TrainStream, train_stream
from dnapretrain.data.sampling.samples import SampleStream, held_out_streams
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError

LOG_TAIL = 1 << 20
"""Bytes at the end of a log that are searched for its last step."""


@dataclass(frozen=True)
class Steps:
    """Which samples each step reads: sample ids follow each other, and the batch size may rise."""

    config: RunConfig

    def samples(self, step: int) -> range:
        """Sample ids of a step. Raises ConfigError below step 1."""
        if step < 1:
            raise ConfigError(f"step {step} does not exist: steps count from 1")
        first = self.config.samples_after(step - 1)
        return range(first, first + self.config.global_batch_size(first))

    def of_sample(self, sample: int) -> int:
        """The step that reads a sample."""
        return self.config.steps_before(sample)[0] + 1


def open_config(run_or_config: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a config file, or of a run folder (its run.yaml). Raises ConfigError where there are none."""
    if not run_or_config.is_dir():
        return load_config(run_or_config, overrides)
    if not (run_or_config / "run.yaml").is_file():
        raise ConfigError(f"{run_or_config} holds no run.yaml, so no run has started there. Give a run folder or a config file")
    return load_config(run_or_config / "run.yaml", overrides)


def open_run(run_or_config: str | Path) -> tuple[RunConfig, int]:
    """The settings of a run folder (its run.yaml) or of a config file, and the last step: what the run has reached, or train_steps.

    Raises ConfigError where there is neither.
    """
    path = Path(run_or_config)
    config = open_config(path)
    step = _last_step(path) if path.is_dir() else None
    return config, config.train.train_steps if step is None else step


def _last_step(run: Path) -> int | None:
    """Of the log, else of the newest checkpoint (of the folder itself, where it is one)."""
    log, checkpoints = run / "log.jsonl", run / "checkpoints"
    if log.is_file():
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = file.read().splitlines()
        for line in reversed(lines):
            record = _json(line)
            if record.get("kind") in ("train", "start") and isinstance(record.get("step"), int):
                return int(record["step"])
    latest = checkpoints / "latest"
    state = (checkpoints / latest.read_text(errors="replace").strip() if latest.is_file() else run) / "state.json"
    return int(_json(state.read_bytes())["step"]) if state.is_file() else None


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:  # as a killed process leaves a line
        return {}
    return value if isinstance(value, dict) else {}


def open_train(config: RunConfig) -> TrainStream:
    """The training stream of a run. Raises ConfigError and DataError."""
    return train_stream(config.data_by_samples(), build_tokenizer(config.tokenizer))


def open_set(config: RunConfig, name: str) -> TrainStream | SampleStream:
    """The stream of set `name`: 'train', or a held-out one. Raises ConfigError for a set that the run has not."""
    if name == "train":
        return open_train(config)
    held_out = held_out_streams(config.data, build_tokenizer(config.tokenizer))
    if name not in held_out:
        raise ConfigError(f"the run has no set '{name}'. It has: {', '.join(['train', *held_out])}")
    return held_out[name]
