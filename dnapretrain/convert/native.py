"""The reading side of native checkpoints: one process, no process group, one tensor at a time.

A checkpoint is a folder with `run.yaml` (resolved config), `tokenizer.json`, `state.json` and
`weights/`, a torch.distributed.checkpoint folder as Megatron-core's `dist_checkpointing` writes it.
Every layout of ranks stores the same tensors under the same names.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from dnapretrain.config import RunConfig
from dnapretrain.config_file import load_config
from dnapretrain.convert import safe_pickle
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError, ConfigError, DamagedCheckpointError

CONFIG_FILE = "run.yaml"
TOKENIZER_FILE = "tokenizer.json"
STATE_FILE = "state.json"
WEIGHTS_DIR = "weights"
CHECKPOINTS_DIR = "checkpoints"
LATEST_FILE = "latest"
UNUSED_FILE = "unused.safetensors"
"""Tensors of the folder that a checkpoint was imported from which no network reads: kept to be written back."""
INDEX_FILE = ".metadata"
SMALL_FILES = (CONFIG_FILE, TOKENIZER_FILE)
FORMAT_VERSION = 1
"""Of the checkpoint folder, in state.json."""
FP8_PREFIX = "fp8."
"""Stored names of scales of FP8's delayed scaling begin with it: they belong to a run that goes on, not to the model."""
BACKEND_FILE = "metadata.json"
"""Written last by Megatron-core: a weights folder without it is not finished."""


def find_checkpoint(run_or_checkpoint: str | Path) -> Path:
    """The checkpoint folder itself, or the newest finished one of a run folder; raises CheckpointError."""
    path = Path(run_or_checkpoint)
    if not path.is_dir():
        raise CheckpointError(f"no such folder: {path}. Give a run folder or a checkpoint folder.")
    if (path / WEIGHTS_DIR).is_dir():
        return path
    latest = path / CHECKPOINTS_DIR / LATEST_FILE
    if not latest.is_file():
        raise CheckpointError(f"{path} holds neither {WEIGHTS_DIR}/ nor {CHECKPOINTS_DIR}/{LATEST_FILE}: no finished checkpoint there.")
    name = latest_name(latest.parent)
    if not name:
        raise CheckpointError(f"{latest} is damaged: it names no checkpoint. Write the name of a folder step_... beside it into it.")
    checkpoint = latest.parent / name
    if not (checkpoint / WEIGHTS_DIR).is_dir():
        raise CheckpointError(f"{latest} names {checkpoint.name}, which is not there. Write the name of a folder beside it into that file.")
    return checkpoint


def latest_name(checkpoints: Path) -> str | None:
    """The folder that `latest` of a run's checkpoints names; '' where it names none (cut short, other bytes), None without the file."""
    latest = checkpoints / LATEST_FILE
    if not latest.is_file():
        return None
    name = latest.read_bytes().decode(errors="replace").strip()
    return name if re.fullmatch(r"step_\d{8,}", name, re.ASCII) else ""


def read_config(checkpoint: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration the checkpoint was saved with, and dotted overrides of it; raises CheckpointError."""
    if not (checkpoint / CONFIG_FILE).is_file():
        raise DamagedCheckpointError(f"{checkpoint / CONFIG_FILE} is missing: the checkpoint is incomplete. Use another one.")
    try:
        return load_config(checkpoint / CONFIG_FILE, overrides)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {checkpoint}: {error}") from None


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer the checkpoint was trained with; raises CheckpointError."""
    path = checkpoint / TOKENIZER_FILE
    values = _read_json(path)
    try:
        return Tokenizer.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, consumed samples and digests of a checkpoint; raises CheckpointError, also where a small file of it is not as written."""
    path = checkpoint / STATE_FILE
    state = _read_json(path)
    _check_small_files(checkpoint, state)
    missing = [key for key in ("format", "step", "consumed_samples", "files") if key not in state]
    if missing:
        raise DamagedCheckpointError(f"{path} lacks {', '.join(missing)}: the checkpoint is incomplete. Use another one.")
    if state["format"] != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {state['format']}; this version reads {FORMAT_VERSION}. Use the version that wrote it.")
    return state


def state_text(checkpoint: Path, state: Mapping[str, Any]) -> str:
    """The text of state.json: `state`, the digests of the small files that `checkpoint` holds by now, and a digest of all of this."""
    sealed = json.loads(json.dumps({**state, "small_files": {name: file_digest(checkpoint / name) for name in SMALL_FILES}}))
    return json.dumps({**sealed, "state_digest": _state_digest(sealed)}, indent=1) + "\n"


def _state_digest(state: Mapping[str, Any]) -> str:
    values = {key: value for key, value in state.items() if key != "state_digest"}
    return xxhash.xxh3_128(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_small_files(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Raise DamagedCheckpointError where state.json or a small file is not as written; imports and old checkpoints have no such digests."""
    if "small_files" not in state and "state_digest" not in state:
        return
    way_out = "Use another checkpoint, or a copy."
    if "small_files" not in state or state.get("state_digest") != _state_digest(state):
        raise DamagedCheckpointError(f"{checkpoint / STATE_FILE} is not as it was written (its digest differs). {way_out}")
    for name, entry in state["small_files"].items():
        path = checkpoint / name
        if not path.is_file() or file_digest(path) != entry:
            raise DamagedCheckpointError(f"{path} is missing or not as it was written (size or digest differs). {way_out}")


def read_unused(checkpoint: Path) -> dict[str, Tensor]:
    """What `convert from-hf` kept beside the weights, by its Hugging Face name; empty where nothing was. Raises CheckpointError."""
    path = checkpoint / UNUSED_FILE
    if not path.is_file():
        return {}
    try:
        return dict(load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Remove it to export without these tensors.") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing: the checkpoint is incomplete. Use another one.") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}. Use another checkpoint.") from None
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path} holds {type(content).__name__}, not an object. Use another checkpoint.")
    return content


def file_digest(path: Path) -> dict[str, Any]:
    """Size and XXH3-128 of a file, as recorded under `files` in state.json."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def damaged_file(checkpoint: Path, state: Mapping[str, Any], place: int = 0, number: int = 1) -> str:
    """What is wrong with a file of the weights, '' for nothing: of every `number`-th file from `place` on, where several share the work."""
    files = state.get("files", {})
    for name in sorted(files)[place::number]:
        path = checkpoint / WEIGHTS_DIR / name
        try:
            if not path.exists():
                return f"{path} is missing"
            if file_digest(path) != files[name]:
                return f"{path} is not as it was written (size or digest differs)"
        except OSError as error:
            return f"{path} cannot be read: {error}"
    return ""


def main_weight_keys(name: str) -> tuple[str, ...]:
    """Where the optimizer stores the fp32 main weight of model tensor `name`: plain optimizer, distributed optimizer."""
    return (f"optimizer.state.fp32_param.{name}", f"optimizer.state.param.{name}")


class WeightsReader:
    """The tensors of a `weights` folder. Opening checks that every file is there in full; reading checks its CRC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        backend = _read_json(folder / BACKEND_FILE).get("sharded_backend")
        if backend != "torch_dist":
            raise CheckpointError(f"{folder / BACKEND_FILE}: sharded_backend is {backend!r}; only 'torch_dist' can be read.")
        try:
            with (folder / INDEX_FILE).open("rb") as file:
                metadata = safe_pickle.load(file)
        except (
            OSError,
            EOFError,
            pickle.UnpicklingError,
            AttributeError,
            ImportError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(f"{folder / INDEX_FILE} cannot be read: {error!r}. Use another checkpoint.") from None
        self._storage: dict[MetadataIndex, Any] = metadata.storage_data
        self._tensors = {name: item for name, item in metadata.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)}
        self._check_files()

    def _check_files(self) -> None:
        ends: dict[str, int] = {}
        for info in self._storage.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        for name, end in ends.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size is None or size < end:
                found = "missing" if size is None else f"{size} bytes long, not {end}"
                raise CheckpointError(f"{path} is {found}: the checkpoint is incomplete. Use another one.")

    def names(self) -> list[str]:
        """All stored tensors, sorted: model tensors, optimizer state, scales of FP8."""
        return sorted(self._tensors)

    def model_names(self) -> list[str]:
        """The stored tensors that belong to the model, sorted."""
        return [name for name in self.names() if not name.startswith(("optimizer.", "rng_state", FP8_PREFIX))]

    def shape(self, name: str) -> tuple[int, ...]:
        """Full shape of a tensor."""
        return tuple(self._tensor(name).size)

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor."""
        return self._tensor(name).properties.dtype

    def best_key(self, name: str) -> str:
        """The key with the most precise copy of model tensor `name`: its fp32 main weight, else the weight itself."""
        return next((key for key in main_weight_keys(name) if key in self._tensors), name)

    def read(self, name: str) -> Tensor:
        """The full tensor, put together from the pieces that the ranks wrote; raises CheckpointError."""
        item = self._tensor(name)
        tensor = torch.empty(item.size, dtype=item.properties.dtype)
        covered = 0
        for chunk in item.chunks:
            region = tensor[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))]
            piece = self._read_piece(name, chunk)
            if piece.shape != region.shape:
                raise CheckpointError(f"{self.folder}: a piece of {name} has shape {tuple(piece.shape)}, not {tuple(region.shape)}.")
            region.copy_(piece)
            covered += piece.numel()
        if covered != tensor.numel():
            raise CheckpointError(f"{self.folder}: {covered} of the {tensor.numel()} values of {name} are stored. Use another checkpoint.")
        return tensor

    def read_layer(self, name: str, index: int) -> Tensor:
        """Entry `index` of the first axis of a tensor in which layers are stacked; pieces of other layers are not read."""
        item = self._tensor(name)
        tensor, covered = torch.empty(item.size[1:], dtype=item.properties.dtype), 0
        for chunk in item.chunks:
            if not chunk.offsets[0] <= index < chunk.offsets[0] + chunk.sizes[0]:
                continue
            region = tensor[tuple(slice(start, start + size) for start, size in zip(chunk.offsets[1:], chunk.sizes[1:], strict=True))]
            piece = self._read_piece(name, chunk)[index - chunk.offsets[0]]
            region.copy_(piece)
            covered += piece.numel()
        if covered != tensor.numel():
            raise CheckpointError(f"{self.folder}: {covered} of the {tensor.numel()} values of layer {index} of {name} are stored.")
        return tensor

    def _tensor(self, name: str) -> TensorStorageMetadata:
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder} holds no tensor {name}.")
        return self._tensors[name]

    def _read_piece(self, name: str, chunk: ChunkStorageMetadata) -> Tensor:
        info = self._storage.get(MetadataIndex(name, chunk.offsets))
        if info is None:
            raise CheckpointError(f"{self.folder}: the piece of {name} at {tuple(chunk.offsets)} is not stored. Use another checkpoint.")
        path = self.folder / info.relative_path
        try:
            with path.open("rb") as file:
                file.seek(info.offset)
                piece = io.BytesIO(file.read(info.length))
            # torch.load does not look at the checksums of the zip archives it reads.
            with zipfile.ZipFile(piece) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"wrong CRC of {damaged}")
            piece.seek(0)
            return torch.load(piece, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged at {name}: {error}. Use another checkpoint.") from None


def open_weights(checkpoint: Path) -> WeightsReader:
    """A reader of the checkpoint's tensors; raises CheckpointError if a file is missing or cut short, or the index damaged."""
    folder = checkpoint / WEIGHTS_DIR
    # The tensors have checksums of their own; the index has only this one.
    recorded, index = read_state(checkpoint).get("files", {}).get(INDEX_FILE), folder / INDEX_FILE
    if recorded is not None and index.is_file() and file_digest(index) != recorded:
        raise CheckpointError(f"{index} is not as it was written (its digest differs). Use another checkpoint.")
    return WeightsReader(folder)
