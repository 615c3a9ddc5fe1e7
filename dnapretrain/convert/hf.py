"""Hugging Face folders: export a checkpoint (`to_hf`) and import one for continued pretraining (`from_hf`)."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dnapretrain import __version__
from dnapretrain.config import ModelConfig, RunConfig, config_from_dict
from dnapretrain.convert.card import model_card
from dnapretrain.convert.families import FAMILIES, family_of
from dnapretrain.convert.native import WeightsReader, find_checkpoint, open_weights, read_config, read_state, read_tokenizer
from dnapretrain.convert.native_writer import write_native
from dnapretrain.convert.safetensors_files import DTYPES, SafetensorsReader, Stored, write_sharded
from dnapretrain.convert.table import Entry, Family, NamedTensor, check_names, hf_to_native, native_to_hf
from dnapretrain.data.tokens.files import load_hf_tokenizer, save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

REPORT_FILE = "dnapretrain.json"
"""Report of the export, kept in the folder: where the weights came from. It also marks the folder as ours to replace."""
TO_OVERRIDE = ("data.train", "data.sequence_length", "optim.lr", "train.run_dir", "train.train_steps", "train.global_batch_size")
"""Settings an imported checkpoint cannot know; its run.yaml holds placeholders."""
MLM_PROBABILITY = 0.15
"""`data.masking.mlm_probability` of an imported encoder: the field's usual value, a placeholder too."""


def to_hf(checkpoint_or_run: str | Path, directory: str | Path, max_shard_bytes: int = 5 * 10**9) -> dict[str, Any]:
    """Write a folder that `transformers` loads without code of ours; return a report (counts, step, digest, weights used).

    The fp32 main weights are written where the checkpoint has them, else the weights themselves. Raises
    CheckpointError for a damaged checkpoint, ConfigError for a model that no Hugging Face class can express and for a
    folder that is not ours to replace.
    """
    checkpoint, directory = find_checkpoint(checkpoint_or_run), Path(directory)
    config, tokenizer, state, reader = read_config(checkpoint), read_tokenizer(checkpoint), read_state(checkpoint), open_weights(checkpoint)
    family = family_of(config.model)
    entries = family.entries(config.model, config.max_positions, tokenizer)
    check_names(f"checkpoint {checkpoint}", reader.model_names(), (entry.native for entry in entries))
    keys = {entry.native: reader.best_key(entry.native) for entry in entries}
    dtype = _common_dtype(str(checkpoint), (reader.dtype(key) for key in keys.values()))
    extra = family.extra(config.model, dtype)
    _check_replaceable(directory)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        num_bytes = _write_weights(unfinished, entries, keys, reader, dtype, extra, max_shard_bytes)
        report = {**_export_report(checkpoint, state, entries, keys, dtype, num_bytes), "extra_tensors": len(extra)}
        hf_config = family.hf_config(config.model, config.max_positions, tokenizer)
        _write_json(unfinished / "config.json", {**hf_config, "torch_dtype": str(dtype).removeprefix("torch.")})
        if family.task == "text-generation":
            special = {key: hf_config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            _write_json(unfinished / "generation_config.json", special)
        save_hf_tokenizer(tokenizer, unfinished, config.max_positions)
        (unfinished / "README.md").write_text(model_card(config, tokenizer, family.task, report))
        _write_json(unfinished / REPORT_FILE, report)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return report


def from_hf(directory: str | Path, checkpoint_dir: str | Path) -> dict[str, Any]:
    """Write a native checkpoint from a Hugging Face folder, to be used as `checkpoint.load`; return a report.

    Its run.yaml has placeholders where the folder says nothing (`settings_to_override` of the report).
    Raises ConfigError naming the field that our models cannot express, CheckpointError for tensors that do not fit.
    """
    directory, checkpoint_dir = Path(directory), Path(checkpoint_dir)
    hf_config = read_hf_config(directory)
    family = FAMILIES.get(str(hf_config.get("model_type")))
    if family is None:
        raise ConfigError(f"{directory}: model_type = {hf_config.get('model_type')!r}; known: {', '.join(FAMILIES)}.")
    model, tokenizer = _model_config(directory, family, hf_config), load_hf_tokenizer(directory)
    _check_tokenizer(directory, family, hf_config, tokenizer)
    config = _run_config(model, tokenizer, checkpoint_dir)
    entries = family.entries(model, config.max_positions, tokenizer)
    reader, wanted = SafetensorsReader(directory), {name for entry in entries for name, _ in entry.hf}
    stored = [(family.table_name(name), name) for name in reader.names()]
    read = [(name, key) for name, key in stored if name in wanted or not re.fullmatch(family.unread, name)]
    check_names(f"{directory}", (name for name, _ in read), wanted)
    keys = dict(read)
    dtype = _common_dtype(str(directory), (reader.dtypes[key] for key in keys.values()))
    tensors = hf_to_native(entries, lambda name: reader.read(keys[name]))
    write_native(checkpoint_dir, config, tokenizer, tensors, dtype, {"imported_from": str(directory)})
    return {
        "checkpoint": str(checkpoint_dir),
        "imported_from": str(directory),
        "native_tensors": len(entries),
        "hf_tensors": len(wanted),
        "left_out_tensors": len(stored) - len(read),
        "parameters": _num_parameters(entries),
        "dtype": str(dtype).removeprefix("torch."),
        "settings_to_override": [*TO_OVERRIDE, *(["data.masking"] if config.is_masked else [])],
    }


def _write_weights(
    directory: Path,
    entries: list[Entry],
    keys: dict[str, str],
    reader: WeightsReader,
    dtype: torch.dtype,
    extra: list[NamedTensor],
    max_shard_bytes: int,
) -> int:
    outline = [Stored(name, shape, dtype) for entry in entries for name, shape in entry.hf]
    outline += [Stored(name, tuple(tensor.shape), tensor.dtype) for name, tensor in extra]
    check_names("the conversion table", (stored.name for stored in outline), {stored.name for stored in outline})
    tensors = itertools.chain(native_to_hf(entries, lambda name: reader.read(keys[name])), extra)
    return write_sharded(directory, outline, tensors, max_shard_bytes)


def _export_report(
    checkpoint: Path, state: dict[str, Any], entries: list[Entry], keys: dict[str, str], dtype: torch.dtype, num_bytes: int
) -> dict[str, Any]:
    main = sum(key != name for name, key in keys.items())
    return {
        "checkpoint": str(checkpoint),
        "step": state.get("step"),
        "consumed_samples": state.get("consumed_samples"),
        "consumed_tokens": state.get("consumed_tokens"),
        "data_digest": state.get("data_digest"),
        "native_tensors": len(entries),
        "hf_tensors": sum(len(entry.hf) for entry in entries),
        "parameters": _num_parameters(entries),
        "from_main_weights": main,
        "from_model_weights": len(keys) - main,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": num_bytes,
        "dnapretrain": __version__,
    }


def _num_parameters(entries: list[Entry]) -> int:
    return sum(math.prod(shape) for entry in entries for _, shape in entry.hf)


def _common_dtype(what: str, dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest type that holds all of them exactly."""
    dtype = functools.reduce(torch.promote_types, dtypes)
    if dtype not in DTYPES.values():
        raise CheckpointError(f"{what}: weights of type {dtype}; only {', '.join(DTYPES)} can be converted.")
    return dtype


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and not (directory / REPORT_FILE).is_file() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an earlier export ({REPORT_FILE} is not in it). Give another folder.")


def read_hf_config(directory: Path) -> dict[str, Any]:
    """Content of the folder's config.json; raises ConfigError for one that is missing or malformed."""
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: not a Hugging Face model folder.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not an object.")
    return content


def _model_config(directory: Path, family: Family, hf_config: dict[str, Any]) -> ModelConfig:
    try:
        return family.model_config(hf_config)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"{directory}/config.json gives a model section that does not hold: {problems}.") from None


def _check_tokenizer(directory: Path, family: Family, hf_config: dict[str, Any], tokenizer: Tokenizer) -> None:
    has = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id, "mask_token_id": tokenizer.mask_id}
    for field in ("vocab_size", *family.token_ids):
        if hf_config.get(field) != has[field]:
            raise ConfigError(f"{directory}: {field} = {hf_config.get(field)} in config.json, but the tokenizer has {has[field]}.")


def _run_config(model: ModelConfig, tokenizer: Tokenizer, checkpoint_dir: Path) -> RunConfig:
    """The imported model and tokenizer, and the least that the other sections need."""
    return config_from_dict(
        {
            "data": {
                "train": ["to-be-set"],
                "sequence_length": model.max_position_embeddings,
                "masking": {"mlm_probability": MLM_PROBABILITY if model.kind == "encoder" else 0.0},
            },
            "tokenizer": tokenizer.to_config(),
            "model": model.model_dump(),
            "optim": {"lr": 1e-4},
            "train": {"run_dir": str(checkpoint_dir), "train_steps": 1, "micro_batch_size": 1, "global_batch_size": 1},
        }
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
