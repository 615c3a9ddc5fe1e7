"""Any model of ours as a Hugging Face folder: as it is, or exported on the way."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from dnapretrain.convert.folders import read_hf_config
from dnapretrain.convert.hf import to_hf
from dnapretrain.convert.native import CHECKPOINTS_DIR, WEIGHTS_DIR, find_checkpoint, read_config
from dnapretrain.errors import ConfigError

LOAD_ERRORS = (OSError, ValueError, ImportError, RuntimeError, EOFError, UnpicklingError, SafetensorError)
"""What `from_pretrained` raises for a folder that is damaged, incomplete or of another kind."""


def is_hf_folder(model: str | Path) -> bool:
    """True where a Hugging Face folder lies there."""
    return (Path(model) / "config.json").is_file()


def is_native(model: str | Path) -> bool:
    """True where a run or a checkpoint of ours lies there."""
    return any((Path(model) / name).is_dir() for name in (WEIGHTS_DIR, CHECKPOINTS_DIR))


@contextmanager
def as_hf_folder(model: str | Path, say: Callable[[str], None] | None = None) -> Iterator[Path]:
    """The folder itself, or a temporary export of a run or checkpoint, which lasts as long as the context and is said in one line.

    Raises ConfigError where there is neither, CheckpointError for a checkpoint that is not whole.
    """
    model = Path(model)
    check_model(model)
    if is_hf_folder(model):
        yield model
        return
    checkpoint = find_checkpoint(model)
    with tempfile.TemporaryDirectory(prefix="dnapretrain-") as temporary:
        folder = Path(temporary) / "hf"
        to_hf(checkpoint, folder)
        (say or _say)(f"exported {checkpoint} to a temporary folder (`dnapretrain convert to-hf` makes one that stays)")
        yield folder


def check_model(model: Path) -> None:
    """Raise ConfigError where no model lies there."""
    if not is_hf_folder(model) and not is_native(model):
        raise ConfigError(
            f"{model} is no model: no Hugging Face folder (no config.json), no run ({CHECKPOINTS_DIR}/) and no checkpoint ({WEIGHTS_DIR}/)."
        )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def load_model(directory: Path, device: str, is_masked: bool) -> Any:
    """The model of a folder in fp32, ready to be asked; the folder's code is run where it has any. Raises ConfigError."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.utils import logging

    check_device(device)
    logging.disable_progress_bar()
    auto, options = (AutoModelForMaskedLM, {"trust_remote_code": True}) if is_masked else (AutoModelForCausalLM, {})
    try:
        model, info = auto.from_pretrained(str(directory), output_loading_info=True, **options)
    except LOAD_ERRORS as error:
        raise ConfigError(f"{directory} does not load: {' '.join(str(error).split())}. Give a folder made by `convert to-hf`.") from None
    check_whole(directory, info)
    return model.float().eval().to(device)


def check_whole(directory: Path, info: dict[str, Any]) -> None:
    """Raise ConfigError where `from_pretrained` found no tensor for a weight of the model: it warns, and starts it at random.

    `info`: what it returns for `output_loading_info=True`. The contact head takes no part in logits.
    """
    random = sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])})
    random = [name for name in random if "contact_head" not in name]
    if random:
        raise ConfigError(
            f"{directory} has no tensor for {len(random)} weights of its model, the first {random[0]}. Fetch or export it again."
        )


def check_device(device: str) -> None:
    """Raise ConfigError for a device that is not here."""
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device} is neither cpu nor cuda.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {device}, but torch sees no CUDA device here. Use device cpu.")


def finetuned_model(model: str | Path) -> Path:
    """`model`; of a folder of `finetune --task causal`, its only model. Raises ConfigError where there are several, or none was kept."""
    model = Path(model)
    result = model / "result.json"
    if is_hf_folder(model) or not result.is_file():
        return model
    try:
        found = [model / run["name"] / "model" for run in json.loads(result.read_text())["runs"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{result} is none of `dnapretrain finetune`. Give a Hugging Face folder, a run or a checkpoint.") from None
    kept = [folder for folder in found if is_hf_folder(folder)]
    if len(kept) != 1:
        raise ConfigError(f"{model} holds {len(kept)} models ({', '.join(map(str, kept)) or 'none was kept'}). Name one of them.")
    return kept[0]


def holds_encoder(model: Path) -> bool:
    """Whether a masked language model lies there, folder, run or checkpoint. Raises ConfigError where there is none of them."""
    check_model(model)
    return is_encoder(model) if is_hf_folder(model) else read_config(find_checkpoint(model)).is_masked


def check_decoder(model: Path) -> None:
    """Raise ConfigError for an encoder, before anything is exported."""
    if holds_encoder(model):
        raise ConfigError(f"{model} holds an encoder, which reads both sides and continues nothing. Give a decoder.")


def is_encoder(directory: Path) -> bool:
    """Whether the folder holds a masked language model, by its config.json."""
    hf_config = read_hf_config(directory)
    architecture = next(iter(hf_config.get("architectures") or []), "")
    return architecture.endswith("ForMaskedLM") or "AutoModelForMaskedLM" in (hf_config.get("auto_map") or {})
