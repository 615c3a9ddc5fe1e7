"""A model as features: hidden states of its frozen layers, for the linear models of baselines.py.

The cheap way to ask what pretraining has taught: the same features of random weights, k-mer counts and tokens go through the same
regression on the same rows, so only the features differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.backbones.backbone import load_backbone
from dnapretrain.adapt.backbones.encoding import OnLong
from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_sequences
from dnapretrain.adapt.sequences.tables import SequenceTable


def frozen_features(
    folder: Path,
    tables: Sequence[SequenceTable],
    layers: Sequence[int],
    random_weights: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    on_long: OnLong = "error",
) -> list[NDArray[np.float32]]:
    """[rows, L * H] of each table: the means over the tokens that stand for bases, of each of the layers, side by side.

    random_weights: a seed; of the same architecture with weights drawn from it. Raises ConfigError for a layer that is not there,
    DataError for a sequence that is too long.
    """
    backbone = load_backbone(folder, device, dtype, on_long, random_weights=random_weights)
    settings = EmbedSettings(tuple(layers))
    return [embed_sequences(backbone, table.sequences, settings, table.names).reshape(len(table), -1) for table in tables]
