"""The configuration of a run: one frozen tree of settings, each explained where it stands, one file for each section.

`config_file` loads it, `config_rules` holds what must fit between settings. Each part of the program receives
only its own sections. Numbers that follow from others are properties and cannot be set.
"""

from __future__ import annotations

from dnapretrain.config.checkpoint import CheckpointConfig
from dnapretrain.config.data import DataConfig, MaskingConfig, SourceConfig, SplitConfig, StageConfig
from dnapretrain.config.log import LogConfig
from dnapretrain.config.model import ROPE_SCALING, ModelConfig, RopeScalingConfig
from dnapretrain.config.optim import OptimConfig
from dnapretrain.config.parallel import ParallelConfig
from dnapretrain.config.probes import ProbesConfig
from dnapretrain.config.regions import RegionFileConfig, RegionsConfig
from dnapretrain.config.run import RunConfig
from dnapretrain.config.section import Section
from dnapretrain.config.tokenizer import BPE_BASES_PER_TOKEN, PUBLISHED_TOKENIZERS, VOCAB_MULTIPLE, TokenizerConfig, padded_vocab_size
from dnapretrain.config.train import TrainConfig, parse_seconds

__all__ = [
    "BPE_BASES_PER_TOKEN",
    "PUBLISHED_TOKENIZERS",
    "ROPE_SCALING",
    "VOCAB_MULTIPLE",
    "CheckpointConfig",
    "DataConfig",
    "LogConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "ProbesConfig",
    "RegionFileConfig",
    "RegionsConfig",
    "RopeScalingConfig",
    "RunConfig",
    "Section",
    "SourceConfig",
    "SplitConfig",
    "StageConfig",
    "TokenizerConfig",
    "TrainConfig",
    "padded_vocab_size",
    "parse_seconds",
]
