"""Whether an exported folder is the checkpoint it came from: logits of both on the same tokens, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnapretrain.adapt.backbones.folder import load_model
from dnapretrain.convert.native import find_checkpoint, read_config, read_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError

LIMIT = 1e-4
"""Largest difference that passes, as a share of the largest logit: fp32 sums in another order, over the deepest published models."""
LENGTHS = (203, 96)
"""Tokens of the two samples compared, at most; the shorter one is padded."""


def compare_logits(checkpoint_or_run: str | Path, directory: str | Path) -> dict[str, Any]:
    """Logits in fp32 of Megatron's model and of the class that transformers loads, on random bases with N, masks and padding.

    Both models are held in memory, one after the other. The folder's code is run where it has any. Returns max_difference, max_logit,
    their ratio, the limit and whether it holds. Raises ConfigError for a folder that does not load.
    """
    from dnapretrain.train.run import native_logits

    checkpoint = find_checkpoint(checkpoint_or_run)
    config, tokenizer = read_config(checkpoint), read_tokenizer(checkpoint)
    tokens, real = _tokens(tokenizer, config.is_masked, config.max_positions)
    # First theirs: transformers must be imported before the CPU engine puts its own functions in place of torch's.
    theirs = _hf_logits(Path(directory), config.is_masked, tokens, real)
    ours = native_logits(checkpoint, tokens)
    if ours.shape != theirs.shape:
        raise CheckpointError(f"{directory} gives logits of shape {theirs.shape}, {checkpoint} of {ours.shape}: not the same model.")
    difference, largest = float(np.abs(ours - theirs)[real].max()), float(np.abs(ours)[real].max())
    ratio = difference / max(largest, 1e-30)
    return {
        "tokens_compared": int(real.sum()),
        "max_difference": difference,
        "max_logit": largest,
        "ratio": ratio,
        "limit": LIMIT,
        "agree": bool(ratio <= LIMIT),  # false for NaN too
    }


def _tokens(tokenizer: Tokenizer, is_masked: bool, max_positions: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens [2, S] of random bases and which of them are not padding; of an encoder every seventh reads <mask>."""
    generator = np.random.default_rng(20)
    rows = []
    for length in LENGTHS:
        bases = generator.choice(list("ACGT"), length * max(8, tokenizer.bases_per_token))
        bases[generator.random(len(bases)) < 0.01] = "N"
        row = np.concatenate(([tokenizer.bos_id], tokenizer.encode("".join(bases))))[: min(length, max_positions)]
        if is_masked:
            row[3::7] = tokenizer.mask_id
        rows.append(row)
    real = np.arange(len(rows[0])) < np.array([[len(row)] for row in rows])
    tokens = np.full(real.shape, tokenizer.pad_id, np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, real


def _hf_logits(directory: Path, is_masked: bool, tokens: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.float32]:
    model = load_model(directory, "cpu", is_masked)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(real).long()).logits
    found: NDArray[np.float32] = logits.float().numpy()
    return found
