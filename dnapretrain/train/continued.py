"""A new run from old weights (checkpoint.load): in full precision, and into a longer context or a larger vocabulary.

What may differ from the checkpoint is said in lines for the log, never taken in silence; all else must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.convert.native import WEIGHTS_DIR, WeightsReader, read_config, read_state, read_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError
from dnapretrain.parallel.groups import on_every_rank
from dnapretrain.parallel.platform import Platform
from dnapretrain.train.checkpoint import (
    ROTARY,
    check_same,
    fill_chunks,
    in_fp32,
    load_tensors,
    sharded_model,
    unwrapped,
    verify_files,
)
from dnapretrain.train.optimizer import set_main_weights

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
"""Tensors with a row for each token."""
POSITIONS = "model.max_position_embeddings"


def start_from(
    checkpoint: Path, config: RunConfig, tokenizer: Tokenizer, platform: Platform, chunks: list[Any], optimizer: Any
) -> list[str]:
    """Fill the weights of the wrapped `chunks`, and the fp32 main weights of `optimizer` where the run has such; return what to say of it.

    Weights come from the checkpoint's fp32 main weights where it has any, so that nothing is rounded twice. The context may be longer,
    the rotary embedding another, and the vocabulary larger: rows of new tokens are the mean of the old ones (Hewitt 2021), in each
    tensor of the vocabulary. Raises CheckpointError for a checkpoint that is damaged, or of another model or vocabulary.
    """
    stored, known = read_config(checkpoint), read_tokenizer(checkpoint)
    _check_positions(checkpoint, stored, config)
    check_same(checkpoint, stored, config, may_differ=(*ROTARY, POSITIONS))
    check_extends(checkpoint, known, tokenizer)
    verify_files(checkpoint, read_state(checkpoint), platform)
    sharded = in_fp32(sharded_model(chunks), checkpoint)
    rows = _vocabulary_rows(checkpoint, sharded, known, tokenizer) if tokenizer.vocab_size > known.vocab_size else {}
    without = {part: {name: item for name, item in items.items() if name not in rows} for part, items in sharded.items()}
    loaded = load_tensors(without, checkpoint)
    for part, items in sharded.items():
        loaded[part].update({name: rows[name] for name in items if name in rows})
    fill_chunks(chunks, loaded)
    for index, chunk in enumerate(chunks):
        for name, weight in unwrapped(chunk).named_parameters():
            if name in loaded[f"model{index}"]:
                set_main_weights(optimizer, weight, loaded[f"model{index}"][name])
    return [f"weights from {checkpoint}", *_changes(stored, config, known, tokenizer)]


def check_extends(checkpoint: Path, known: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raise CheckpointError unless the tokens (and merges) of `tokenizer` begin with those that `checkpoint` knows."""
    if known.digest == tokenizer.digest:
        return
    old, new = known.tokens[: known.vocab_size], tokenizer.tokens[: tokenizer.vocab_size]
    merges = tuple(tuple(side.bpe.merges if side.bpe else ()) for side in (known, tokenizer))
    for what, before, now in (("token", old, new), ("merge", *merges)):
        if now[: len(before)] == before:
            continue
        number = next((place for place, (was, has) in enumerate(zip(before, now, strict=False)) if was != has), len(now))
        has = f"{now[number]!r}" if number < len(now) else f"only {len(now):,} {what}s"
        raise CheckpointError(
            f"checkpoint {checkpoint} has the {what} {before[number]!r} at {number} (from 0), the run has {has}. A vocabulary can "
            "only grow: keep tokens and merges of the checkpoint's tokenizer.json in their order, and add new ones behind them."
        )


def _check_positions(checkpoint: Path, stored: RunConfig, config: RunConfig) -> None:
    if config.model.position_embedding_type != "learned_absolute" or stored.max_positions == config.max_positions:
        return
    raise CheckpointError(
        f"checkpoint {checkpoint} has learned positions for {stored.max_positions} tokens, the run asks for {config.max_positions}. "
        f"Nothing was learned of others. Set {POSITIONS}={stored.max_positions} and data.sequence_length to as much at most, or train "
        "on longer samples anew, with model.position_embedding_type=rope, which can be stretched later."
    )


def _vocabulary_rows(checkpoint: Path, sharded: dict[str, Any], known: Tokenizer, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """This rank's rows of each vocabulary tensor that it has, by the name of the weight: old ones, their mean for new tokens, zeros.

    Every rank reads the whole tensor, so that the mean is the same under every layout.
    """
    tp, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    rows = {}
    with on_every_rank(CheckpointError, f"cannot read checkpoint {checkpoint}"):
        reader = WeightsReader(checkpoint / WEIGHTS_DIR)
        for items in sharded.values():
            for name in items.keys() & set(VOCABULARY):
                old = reader.read(items[name].key)[: known.vocab_size].float()
                new = old.new_zeros((padded_vocab_size(tokenizer.vocab_size), *old.shape[1:]))
                new[: len(old)] = old
                new[len(old) : tokenizer.vocab_size] = old.double().mean(dim=0).float()
                rows[name] = new.chunk(tp)[rank].to(items[name].data.device)
    return rows


def _changes(stored: RunConfig, config: RunConfig, known: Tokenizer, tokenizer: Tokenizer) -> list[str]:
    lines = []
    if stored.max_positions != config.max_positions:
        lines.append(f"context {stored.max_positions:,} tokens -> {config.max_positions:,} tokens{_unstretched(stored, config)}")
    for name in ("rotary_base", "rope_scaling"):
        was, now = getattr(stored.model, name), getattr(config.model, name)
        if was != now:
            lines.append(f"{name} {_said(was)} -> {_said(now)}")
    if tokenizer.vocab_size > known.vocab_size:
        added = tokenizer.vocab_size - known.vocab_size
        lines.append(
            f"vocabulary {known.vocab_size:,} tokens -> {tokenizer.vocab_size:,}: {added:,} new rows begin as the mean of the old ones"
        )
    return lines


def _unstretched(stored: RunConfig, config: RunConfig) -> str:
    same = all(getattr(stored.model, name) == getattr(config.model, name) for name in ("rotary_base", "rope_scaling"))
    longer = config.max_positions > stored.max_positions
    return ", rotary embedding as it was (model.rope_scaling, model.rotary_base)" if same and longer and _is_rotary(config) else ""


def _is_rotary(config: RunConfig) -> bool:
    return config.model.position_embedding_type == "rope"


def _said(value: Any) -> str:
    return f"{value.rope_type} x {value.factor:g}" if hasattr(value, "rope_type") else str(value).lower()
