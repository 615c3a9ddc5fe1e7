"""Hugging Face folders: export a checkpoint (`to_hf`) and import one for continued pretraining (`from_hf`)."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnapretrain import __version__
from dnapretrain.config import ModelConfig, RunConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.card import DATA_FILE, PICTURE_FILE, RUN_FILE, CardFacts, model_card
from dnapretrain.convert.card_run import run_record
from dnapretrain.convert.families import family_of, family_of_folder
from dnapretrain.convert.folders import model_of, open_tensors, read_hf_config, tokenizer_of
from dnapretrain.convert.native import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WeightsReader,
    file_digest,
    find_checkpoint,
    open_weights,
    read_config,
    read_state,
    read_tokenizer,
    read_unused,
)
from dnapretrain.convert.native_writer import write_native
from dnapretrain.convert.safetensors_files import DTYPES, Stored, write_sharded
from dnapretrain.convert.table import Entry, Family, NamedTensor, check_names, hf_to_native, native_to_hf
from dnapretrain.convert.torch_files import open_folder
from dnapretrain.convert.training_data import training_data
from dnapretrain.data.tokens.files import save_hf_tokenizer
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.report.curve import loss_curve

CARD_FILE = "README.md"
REPORT_FILE = "dnapretrain.json"
"""Report of the export, kept in the folder: where the weights came from. It also marks the folder as ours to replace."""
SHIPPED = Path(__file__).parent / "shipped"
OnProgress = Callable[[int, int], None]
TO_OVERRIDE = ("data.train", "data.sequence_length", "optim.lr", "train.run_dir", "train.train_steps", "train.global_batch_size")
"""Settings an imported checkpoint cannot know; its run.yaml holds placeholders."""
MLM_PROBABILITY = 0.15
"""`data.masking.mlm_probability` of an imported encoder: the field's usual value, a placeholder too."""


def to_hf(
    checkpoint_or_run: str | Path, directory: str | Path, max_shard_bytes: int = 5 * 10**9, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Write a folder that `transformers` loads, with the code of the model where transformers has none (trust_remote_code=True);
    return a report (counts, step, digest, weights used). on_progress is called with (bytes written, bytes in all).

    The fp32 main weights are written where the checkpoint has them, else the weights themselves. Raises
    CheckpointError for a damaged checkpoint, ConfigError for a model that no Hugging Face class can express and for a
    folder that is not ours to replace. Of an earlier export of ours what others put into the folder stays.
    """
    checkpoint, directory = find_checkpoint(checkpoint_or_run), Path(directory)
    config, tokenizer, state, reader = read_config(checkpoint), read_tokenizer(checkpoint), read_state(checkpoint), open_weights(checkpoint)
    family = family_of(config.model)
    entries = family.entries(config.model, config.max_positions, tokenizer)
    check_names(f"checkpoint {checkpoint}", reader.model_names(), (entry.native for entry in entries))
    keys = {entry.native: reader.best_key(entry.native) for entry in entries}
    dtype = _common_dtype(str(checkpoint), (reader.dtype(key) for key in keys.values()))
    extra, kept = _unread_tensors(checkpoint, config, family, tokenizer, dtype)
    copies = family.aliases(config.model) if family.writes_aliases else {}
    added = _check_replaceable(directory)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        read = functools.partial(_read_best, reader, keys)
        num_bytes = _write_weights(unfinished, entries, read, dtype, copies, extra, max_shard_bytes, on_progress)
        counts = {"second_copies": len(copies), "extra_tensors": len(extra), "extra_tensors_as_imported": kept}
        report = {"family": family.name, **_export_report(checkpoint, state, entries, keys, dtype, num_bytes), **counts}
        hf_config = family.hf_config(config.model, config.max_positions, tokenizer)
        _write_json(unfinished / "config.json", {**hf_config, "torch_dtype": str(dtype).removeprefix("torch.")})
        if family.task == "text-generation":
            special = {key: hf_config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            _write_json(unfinished / "generation_config.json", special)
        for name in family.shipped:
            shutil.copyfile(SHIPPED / name, unfinished / name)
        save_hf_tokenizer(tokenizer, unfinished, config.max_positions)
        _write_card(unfinished, checkpoint, config, tokenizer, family, state, report)
        report["card_xxh128"] = file_digest(unfinished / CARD_FILE)["xxh3_128"]
        report["files"] = sorted(path.name for path in unfinished.iterdir())
        _write_json(unfinished / REPORT_FILE, report)
        _replace(directory, unfinished, added)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return report


def from_hf(directory: str | Path, checkpoint_dir: str | Path, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Write a native checkpoint from a Hugging Face folder, to be used as `checkpoint.load`; return a report.

    Its run.yaml has placeholders where the folder says nothing (`settings_to_override` of the report). Tensors that the network never
    reads are kept beside the weights, and `to_hf` writes them back. on_progress is called with (bytes converted, bytes in all).
    Raises ConfigError naming the field that our models cannot express, CheckpointError for tensors that do not fit.
    """
    directory, checkpoint_dir = Path(directory), Path(checkpoint_dir)
    hf_config = read_hf_config(directory)
    family = family_of_folder(hf_config)
    model = model_of(directory, family, hf_config)
    tokenizer, found_in = tokenizer_of(directory, family, hf_config)
    config = _run_config(model, tokenizer, checkpoint_dir)
    entries = family.entries(model, config.max_positions, tokenizer)
    folder = open_tensors(directory, open_folder(directory), family, model, entries)
    dtype = _common_dtype(str(directory), folder.dtypes())
    sizes = [math.prod(entry.native_shape) * dtype.itemsize for entry in entries]
    tensors = followed(hf_to_native(entries, folder.read), sizes, on_progress)
    unused = {key: folder.reader.read(key) for key in folder.unread}
    write_native(checkpoint_dir, config, tokenizer, tensors, dtype, {"imported_from": str(directory)}, unused)
    return {
        "checkpoint": str(checkpoint_dir),
        "imported_from": str(directory),
        "family": family.name,
        "tokenizer": found_in,
        "native_tensors": len(entries),
        "hf_tensors": len(folder.keys),
        "left_out_tensors": len(folder.unread),
        "second_copies": folder.copies,
        "parameters": _num_parameters(entries),
        "dtype": str(dtype).removeprefix("torch."),
        "settings_to_override": settings_to_override(config),
    }


def settings_to_override(config: RunConfig) -> list[str]:
    """The settings of an imported checkpoint that are placeholders."""
    return [*TO_OVERRIDE, *(["data.masking"] if config.is_masked else [])]


def _read_best(reader: WeightsReader, keys: dict[str, str], name: str) -> Tensor:
    return reader.read(keys[name])


def followed(tensors: Iterable[NamedTensor], sizes: Sequence[int], on_progress: OnProgress | None) -> Iterator[NamedTensor]:
    """The tensors; progress is told as each is taken, `sizes` bytes long, and on stderr how many hold NaN or infinity."""
    done, total = 0, sum(sizes)
    odd: list[str] = []
    for (name, tensor), size in zip(tensors, sizes, strict=True):
        done += size
        if on_progress:
            on_progress(done, total)
        if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, map(float, torch.aminmax(tensor)))):
            odd.append(name)
        yield name, tensor
    if odd:
        sys.stderr.write(
            f"warning: {len(odd)} tensor(s) hold values that are not finite, the first {odd[0]}: this model predicts nothing\n"
        )


def _unread_tensors(
    checkpoint: Path, config: RunConfig, family: Family, tokenizer: Tokenizer, dtype: torch.dtype
) -> tuple[list[NamedTensor], int]:
    """What the folder holds and the network never reads: as it was imported, made anew where it was not; and how many were imported.

    A run that began from an imported checkpoint (checkpoint.load) has what lies there.
    """
    made = family.extra(config.model, config.max_positions, tokenizer, dtype)
    places = [checkpoint, *([Path(config.checkpoint.load)] if config.checkpoint.load else [])]
    kept = next(filter(None, map(read_unused, places)), {})
    shapes = {name: tensor.shape for name, tensor in made}
    kept = {name: tensor for name, tensor in kept.items() if shapes.get(name, tensor.shape) == tensor.shape}
    if config.model.rope_scaling:  # the folder's frequencies are those before
        kept = {name: tensor for name, tensor in kept.items() if not name.endswith(".inv_freq")}
    if any(name.endswith(".inv_freq") for name in kept):  # it goes by two names; a folder has one
        made = [(name, tensor) for name, tensor in made if not name.endswith(".inv_freq")]
    merged = {**dict(made), **kept}
    return list(merged.items()), len(kept)


def _write_weights(
    directory: Path,
    entries: list[Entry],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    copies: dict[str, str],
    extra: list[NamedTensor],
    max_shard_bytes: int,
    on_progress: OnProgress | None,
) -> int:
    shapes = {name: shape for entry in entries for name, shape in entry.hf}
    outline = [Stored(name, shape, dtype) for name, shape in shapes.items()]
    outline += [Stored(copy, shapes[name], dtype) for copy, name in copies.items()]
    outline += [Stored(name, tuple(tensor.shape), tensor.dtype) for name, tensor in extra]
    check_names("the conversion table", (stored.name for stored in outline), {stored.name for stored in outline})
    tensors = itertools.chain(native_to_hf(entries, read), _copies(entries, read, copies), extra)
    sizes = [stored.num_bytes for stored in outline]
    return write_sharded(directory, outline, followed(tensors, sizes, on_progress), max_shard_bytes)


def _copies(entries: list[Entry], read: Callable[[str], Tensor], copies: dict[str, str]) -> Iterator[NamedTensor]:
    for copy, name in copies.items():
        [entry] = [entry for entry in entries if name in dict(entry.hf)]
        yield copy, dict(native_to_hf([entry], read))[name]


def _write_card(
    directory: Path,
    checkpoint: Path,
    config: RunConfig,
    tokenizer: Tokenizer,
    family: Family,
    state: dict[str, Any],
    report: dict[str, Any],
) -> None:
    """README.md, and what it points to where there is something: settings, curve and data of the training."""
    record = run_record(checkpoint, state)
    trained = bool(state.get("step"))
    data = training_data(config, tokenizer, state, record.start) if trained else {}
    if trained:
        shutil.copyfile(checkpoint / CONFIG_FILE, directory / RUN_FILE)
        _write_json(directory / DATA_FILE, data)
    if record.run_dir:
        loss_curve(record.run_dir, directory / PICTURE_FILE, until_step=state["step"])
    facts = CardFacts(report, state, record, data, PICTURE_FILE if record.run_dir else None, RUN_FILE if trained else None)
    (directory / CARD_FILE).write_text(model_card(config, tokenizer, family, facts))


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


def _replace(directory: Path, by: Path, added: list[str]) -> None:
    """Put the folder `by` in the place of `directory`, with what others have added there. Whatever ends this in between, theirs is kept."""
    if both := [name for name in added if (by / name).exists()]:
        raise ConfigError(f"{directory} holds {', '.join(both)} of others, and the export writes files of that name. Move them away.")
    if not directory.exists():
        by.rename(directory)
        return
    aside = directory.with_name(f".{directory.name}.replaced")
    if aside.exists():
        raise ConfigError(f"{aside} is left of an export that was broken off. Take from it what is yours, and remove it.")
    directory.rename(aside)
    by.rename(directory)
    for name in added:
        (aside / name).rename(directory / name)
    shutil.rmtree(aside)


def _check_replaceable(directory: Path) -> list[str]:
    """What others have put beside an earlier export in `directory` (a licence, .git), to be kept. Raises ConfigError where something
    would be lost."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return []
    try:
        earlier = json.loads((directory / REPORT_FILE).read_text())
    except (OSError, ValueError):
        raise ConfigError(
            f"{directory} exists and is not an earlier export (no readable {REPORT_FILE} in it). Give another folder."
        ) from None
    card = directory / CARD_FILE
    if card.is_file() and "card_xxh128" in earlier and file_digest(card)["xxh3_128"] != earlier["card_xxh128"]:
        raise ConfigError(f"{card} was changed after it was exported, and would be replaced. Move it away, or give another folder.")
    written = {*earlier["files"], REPORT_FILE} if "files" in earlier else None  # older exports do not say
    return [path.name for path in directory.iterdir() if path.name not in written] if written else []


def _run_config(model: ModelConfig, tokenizer: Tokenizer, checkpoint_dir: Path) -> RunConfig:
    """The imported model and tokenizer, and the least that the other sections need. Merges of BPE are read in the checkpoint itself."""
    file = {"file": str((checkpoint_dir / TOKENIZER_FILE).absolute())} if tokenizer.bpe else {}
    return config_from_dict(
        {
            "data": {
                "train": ["to-be-set"],
                "sequence_length": model.max_position_embeddings,
                "masking": {"mlm_probability": MLM_PROBABILITY if model.kind == "encoder" else 0.0},
            },
            "tokenizer": {**tokenizer.to_config(), **file},
            "model": model.model_dump(),
            "optim": {"lr": 1e-4},
            "train": {"run_dir": str(checkpoint_dir), "train_steps": 1, "micro_batch_size": 1, "global_batch_size": 1},
        }
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
