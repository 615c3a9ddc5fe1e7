"""The writing side of native checkpoints: a folder that Megatron-core's `dist_checkpointing` loads at any layout.

Streamed: torch's own checkpoint writer asks for one tensor after the other, each goes to a file of
its own. The folder appears under its name when all of it is on disk, or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem

from dnapretrain.config import RunConfig
from dnapretrain.config_file import dump_config
from dnapretrain.convert.families import family_of
from dnapretrain.convert.native import (
    BACKEND_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    STATE_FILE,
    TOKENIZER_FILE,
    UNUSED_FILE,
    WEIGHTS_DIR,
    file_digest,
)
from dnapretrain.convert.table import NamedTensor, Shape, check_names
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError

BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}


def write_native(
    directory: Path,
    config: RunConfig,
    tokenizer: Tokenizer,
    tensors: Iterable[NamedTensor],
    dtype: torch.dtype = torch.float32,
    state: Mapping[str, Any] | None = None,
    unused: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder with the model tensors of `config`, all stored as `dtype`; `unused` is kept as it is, in a file beside.

    `tensors` is read once, in its own order; tensors that come before their turn in the table wait
    in memory. `state` goes into state.json beside step 0. Raises CheckpointError for a missing, extra or mis-shaped
    tensor and for a folder that exists already, ConfigError for a model without a table; nothing is left behind then.
    """
    if directory.exists():
        raise CheckpointError(f"{directory} exists already. Remove it or write elsewhere.")
    entries = family_of(config.model).entries(config.model, config.max_positions, tokenizer)
    shapes = {entry.native: entry.native_shape for entry in entries}
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        (unfinished / CONFIG_FILE).write_text(dump_config(config))
        (unfinished / TOKENIZER_FILE).write_text(json.dumps(tokenizer.to_dict(), indent=1) + "\n")
        if unused:
            save_file(dict(unused), unfinished / UNUSED_FILE)
        _write_weights(unfinished / WEIGHTS_DIR, shapes, tensors, dtype)
        files = {path.name: file_digest(path) for path in sorted((unfinished / WEIGHTS_DIR).iterdir())}
        content = {"format": FORMAT_VERSION, "step": 0, "consumed_samples": 0, **(state or {}), "files": files}
        (unfinished / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n")
        unfinished.rename(directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_weights(folder: Path, shapes: dict[str, Shape], tensors: Iterable[NamedTensor], dtype: torch.dtype) -> None:
    outline = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    # One file per tensor: the writer keeps every tensor of a file in memory until the file is closed.
    # No copy-ahead: with it the writer reorders the tensors where there is CUDA.
    writer = FileSystemWriter(folder, single_file_per_rank=False, per_thread_copy_ahead=0)
    planner = _StreamPlanner(shapes, iter(tensors), dtype)
    writer.set_up_storage_writer(True)
    planner.set_up_planner(outline, is_coordinator=True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    written = writer.write_data(plan, planner).wait()
    planner.check_exhausted()
    writer.finish(metadata, [written])
    torch.save({}, folder / "common.pt")
    (folder / BACKEND_FILE).write_text(json.dumps(BACKEND))


class _StreamPlanner(DefaultSavePlanner):
    """Takes each tensor from the stream at the moment it is written."""

    def __init__(self, shapes: dict[str, Shape], tensors: Iterator[NamedTensor], dtype: torch.dtype) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shapes = shapes
        self._tensors = tensors
        self._dtype = dtype
        self._waiting: dict[str, Tensor] = {}
        self._seen: list[str] = []

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor that `write_item` names."""
        name = write_item.index.fqn
        while name not in self._waiting:
            try:
                found, tensor = next(self._tensors)
            except StopIteration:
                check_names("native tensors", self._seen, self._shapes)
                raise CheckpointError(f"native tensor {name} came twice in place of once.") from None
            self._seen.append(found)
            shape = self._shapes.get(found, tuple(tensor.shape))
            if tuple(tensor.shape) != shape:
                raise CheckpointError(f"native tensor {found} has shape {tuple(tensor.shape)}; the model section asks for {shape}.")
            self._waiting[found] = tensor
        return self._waiting.pop(name).to(self._dtype).contiguous()

    def check_exhausted(self) -> None:
        """Raise CheckpointError if the stream held more than the model's tensors."""
        self._seen += [name for name, _ in self._tensors]
        check_names("native tensors", self._seen, self._shapes)
