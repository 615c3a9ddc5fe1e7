"""Checkpoints of stock Megatron-LM and Megatron-Bridge (torch_dist, any layout of ranks) -> native ones, for checkpoint.load.

GPT in Llama's style, and encoders: both names of the norms (fused by Transformer Engine, or modules of their own), layers stored one by
one or stacked, and the head of AIDO.DNA's fork. Read tensor by tensor, each layer on its own; nothing of the checkpoint is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnapretrain.config import ModelConfig, RunConfig
from dnapretrain.config_file import config_from_dict, read_settings_tree
from dnapretrain.convert.families import family_of
from dnapretrain.convert.hf import MLM_PROBABILITY, OnProgress, followed, settings_to_override
from dnapretrain.convert.megatron_settings import merged, model_settings, read_settings
from dnapretrain.convert.native import WeightsReader
from dnapretrain.convert.native_writer import write_native
from dnapretrain.convert.safetensors_files import DTYPES
from dnapretrain.convert.table import Entry, NamedTensor
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

TRACKER_FILES = ("latest_checkpointed_iteration.txt", "latest_wandb_artifact_path.txt")
RENAMED = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"),
    ("lm_head.layernorm.", "lm_head.layer_norm."),
    ("lm_head.output_layer.", "output_layer."),
    ("embedding.tokentype_embeddings.", "embedding.token_type_embeddings."),
)
"""(part of a stored name, part of ours): modules of the local spec, AIDO.DNA's fork, Megatron's BERT."""
ROOTS = ("embedding.", "decoder.", "encoder.", "output_layer.", "lm_head.")
UNREAD = r"(binary_head|pooler)\..*|.*_extra_state.*|.*rotary_pos_emb\.inv_freq"
"""What no network of ours reads: the next-sentence head of BERT, scales of FP8."""
DROPOUT = ("hidden_dropout", "attention_dropout")
"""Decoders of ours have none."""
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")


def from_megatron(
    checkpoint: str | Path,
    checkpoint_dir: str | Path,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write a native checkpoint from an iteration folder, or from the folder above (then its latest iteration); return a report.

    The model is what the checkpoint says of itself and what `recipe` says, which must agree. No checkpoint of Megatron knows its
    vocabulary: the tokenizer comes from the recipe, or from overrides (`tokenizer.kind=generator`). fp32 main weights are taken where they
    are stored under the names of the weights. Raises ConfigError for settings that our models have not, CheckpointError for tensors that
    are missing, left over or of another shape; nothing is written then.
    """
    folder, target = find_iteration(Path(checkpoint)), Path(checkpoint_dir)
    reader = WeightsReader(folder)
    names = stored_names(reader)
    kind = "encoder" if any(name.startswith("encoder.") for name in names) else "decoder"
    settings = read_settings(folder)
    config = _config(target, recipe, overrides, model_settings(settings, kind))
    tokenizer = build_tokenizer(config.tokenizer)
    entries = family_of(config.model).entries(config.model, config.max_positions, tokenizer)
    source = Source(reader, names, tokenizer.vocab_size)
    source.check(folder, entries)
    dtype = source.dtype(entries)
    sizes = [math.prod(entry.native_shape) * dtype.itemsize for entry in entries]
    tensors = followed(source.tensors(entries), sizes, on_progress)
    write_native(target, config, tokenizer, tensors, dtype, {"imported_from": str(folder)})
    keys = {source.key(entry.native) for entry in entries}
    return {
        "checkpoint": str(target),
        "imported_from": str(folder),
        "model_from": [*(["the checkpoint"] if settings else []), *([f"recipe {recipe}"] if recipe else [])],
        "native_tensors": len(entries),
        "stored_tensors": len(keys),
        "from_main_weights": sum(key.startswith("optimizer.") for key in keys),
        "left_out_tensors": sorted(set(names.values()) - {source.stored(entry.native) for entry in entries}),
        "settings_left_out": {name: settings[name] for name in DROPOUT if kind == "decoder" and settings.get(name)},
        "vocabulary_rows_stored": reader.shape(names[VOCABULARY[0]])[0],
        "tokens": tokenizer.vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "settings_to_override": settings_to_override(config),
    }


def find_iteration(path: Path) -> Path:
    """The folder itself where it holds tensors, else the one that its tracker file names; raises CheckpointError."""
    if (path / ".metadata").is_file():
        return path
    tracker = next((path / name for name in TRACKER_FILES if (path / name).is_file()), None)
    if tracker is None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder. Give the folder of an iteration, such as iter_0001000.")
        raise CheckpointError(
            f"{path} holds neither a torch_dist checkpoint (.metadata) nor {TRACKER_FILES[0]}. Give the folder of an iteration, such as "
            "iter_0001000; other formats (torch, fsdp_dtensor) must be saved as torch_dist by Megatron first."
        )
    iteration = tracker.read_text().strip()
    name = f"iter_{int(iteration):07d}" if iteration.isdigit() else iteration
    if not (path / name / ".metadata").is_file():
        raise CheckpointError(f"{tracker} names {iteration}, but {path / name} is no torch_dist checkpoint.")
    return path / name


def stored_names(reader: WeightsReader) -> dict[str, str]:
    """Our name -> stored name of each tensor of the model; our names of stacked layers have no number."""
    found = {}
    for stored in reader.names():
        name = re.sub(r"^(module\.|model\.)+", "", stored)
        if not name.startswith(ROOTS) or re.fullmatch(UNREAD, name):
            if name.startswith(("optimizer", "chained_", "rng_state", "rerun_state")) or re.fullmatch(UNREAD, name):
                continue
            raise CheckpointError(f"{reader.folder} holds {stored}, which belongs to no model that is imported (GPT, BERT).")
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        found[name] = stored
    if VOCABULARY[0] not in found:
        raise CheckpointError(f"{reader.folder} holds no {VOCABULARY[0]}: not a checkpoint of a GPT or BERT of Megatron-core.")
    return found


class Source:
    """The stored tensors as entries of a table."""

    def __init__(self, reader: WeightsReader, names: dict[str, str], vocab_size: int) -> None:
        self.reader, self.names, self.vocab_size = reader, names, vocab_size

    def stored(self, native: str) -> str | None:
        """The stored tensor that holds `native`, of its own or with those of other layers."""
        return self.names.get(native) or self.names.get(_stacked(native))

    def key(self, native: str) -> str:
        """The most precise stored copy of it: the distributed optimizer's may be cut into pieces, which are left."""
        stored = str(self.stored(native))
        best = self.reader.best_key(stored)
        return best if self.reader.shape(best) == self.reader.shape(stored) else stored

    def shape(self, native: str) -> tuple[int, ...]:
        """Of `native` as it is stored, one layer of a stack."""
        shape = self.reader.shape(self.key(native))
        return shape if native in self.names else shape[1:]

    def check(self, folder: Path, entries: list[Entry]) -> None:
        """Raise CheckpointError unless the checkpoint holds these tensors in these shapes, and no others."""
        if missing := [entry.native for entry in entries if self.stored(entry.native) is None]:
            raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the model: {', '.join(missing[:4])}. Is it another model?")
        wanted = {self.stored(entry.native) for entry in entries}
        tied = {VOCABULARY[1]} if VOCABULARY[1] not in {entry.native for entry in entries} else set()
        if left := sorted(name for name, stored in self.names.items() if stored not in wanted and name not in tied):
            raise CheckpointError(f"{folder} holds {len(left)} tensors that the model has not: {', '.join(left[:4])}. Is it another model?")
        for entry in entries:
            found, asked = self.shape(entry.native), entry.native_shape
            if entry.native in VOCABULARY:
                if found[0] < self.vocab_size:
                    raise CheckpointError(f"{folder}: {entry.native} has {found[0]} rows, the tokenizer {self.vocab_size} tokens.")
                found = (asked[0], *found[1:])
            if found != asked:
                raise CheckpointError(f"{folder}: {entry.native} has shape {found}; the model section asks for {asked}.")
        layers = {int(entry.native.split(".")[2]) for entry in entries if ".layers." in entry.native}
        depths = {self.reader.shape(stored)[0] for name, stored in self.names.items() if re.match(r"(en|de)coder\.layers\.\D", name)}
        if depths - {len(layers)}:
            raise CheckpointError(f"{folder} has {max(depths)} layers, the model section {len(layers)}.")

    def dtype(self, entries: list[Entry]) -> torch.dtype:
        """The narrowest type that holds all tensors exactly."""
        dtype = self.reader.dtype(self.key(entries[0].native))
        for entry in entries:
            dtype = torch.promote_types(dtype, self.reader.dtype(self.key(entry.native)))
        if dtype not in DTYPES.values():
            raise CheckpointError(f"{self.reader.folder}: weights of type {dtype}; only {', '.join(DTYPES)} can be imported.")
        return dtype

    def tensors(self, entries: list[Entry]) -> Iterator[NamedTensor]:
        """(our name, tensor) one after the other; rows beyond the tokens are zero."""
        for entry in entries:
            key = self.key(entry.native)
            value = self.reader.read(key) if entry.native in self.names else self.reader.read_layer(key, int(entry.native.split(".")[2]))
            yield entry.native, self._rows(value, entry.native_shape[0]) if entry.native in VOCABULARY else value

    def _rows(self, value: Tensor, rows: int) -> Tensor:
        padded = value.new_zeros((rows, *value.shape[1:]))
        padded[: self.vocab_size] = value[: self.vocab_size]
        return padded


def _stacked(native: str) -> str:
    return re.sub(r"^((?:en|de)coder\.layers)\.\d+\.", r"\1.", native)


def _config(target: Path, recipe: str | None, overrides: Sequence[str], found: dict[str, Any]) -> RunConfig:
    """The settings of the native checkpoint: those of the recipe, the model also from the checkpoint, placeholders for the rest."""
    tree = read_settings_tree(recipe, overrides)
    if "tokenizer" not in tree:
        raise ConfigError(
            "checkpoints of Megatron do not know their vocabulary. Give --recipe, or the tokenizer: tokenizer.kind=generator, for example."
        )
    model = merged(tree.get("model", {}), found)
    if missing := [name for name, field in ModelConfig.model_fields.items() if field.is_required() and name not in model]:
        raise ConfigError(f"the checkpoint does not say its {', '.join(missing)}. Give --recipe, or model.{missing[0]}=...")
    length = model.get("max_position_embeddings") or 1024
    placeholders = {
        "data": {
            "train": ["to-be-set"],
            "sequence_length": length,
            "masking": {"mlm_probability": MLM_PROBABILITY if model["kind"] == "encoder" else 0.0},
        },
        "optim": {"lr": 1e-4},
        "train": {"run_dir": str(target), "train_steps": 1, "micro_batch_size": 1, "global_batch_size": 1},
    }
    return config_from_dict({**placeholders, "tokenizer": tree["tokenizer"], "model": model})
