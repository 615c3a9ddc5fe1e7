"""Safetensors files, written and read one tensor at a time.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, a JSON
header with dtype, shape and byte range of each tensor, the raw values). We write it ourselves because
the library's writer wants all tensors of a file in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dnapretrain.convert.table import NamedTensor, Shape
from dnapretrain.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Floating-point types of weights, by their name in the format."""
INTEGERS = {"I64": torch.int64}
"""Of what some published folders hold beside their weights: numbers of positions."""
ALIGNMENT = 64
"""The values start at a multiple of this many bytes."""


class Stored(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_sharded(directory: Path, outline: Sequence[Stored], tensors: Iterator[NamedTensor], limit: int) -> int:
    """Write `tensors`, which come in the order of `outline`, into files of at most `limit` bytes of values; return the bytes of values.

    One file is `model.safetensors`; several are numbered and listed in `model.safetensors.index.json`.
    A tensor larger than the limit gets a file of its own.
    """
    files = _plan(outline, limit)
    names = [SINGLE_FILE] if len(files) == 1 else [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for name, content in zip(names, files, strict=True):
        _write_file(directory / name, content, tensors)
    total = sum(stored.num_bytes for stored in outline)
    if len(files) > 1:
        weight_map = {stored.name: name for name, content in zip(names, files, strict=True) for stored in content}
        (directory / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n")
    return total


def _plan(outline: Sequence[Stored], limit: int) -> list[list[Stored]]:
    files: list[list[Stored]] = [[]]
    used = 0
    for stored in outline:
        if files[-1] and used + stored.num_bytes > limit:
            files.append([])
            used = 0
        files[-1].append(stored)
        used += stored.num_bytes
    return files


def _write_file(path: Path, content: Sequence[Stored], tensors: Iterator[NamedTensor]) -> None:
    type_names = {dtype: type_name for type_name, dtype in {**DTYPES, **INTEGERS}.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for stored in content:
        start, end = end, end + stored.num_bytes
        header[stored.name] = {"dtype": type_names[stored.dtype], "shape": list(stored.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype in content:
            found, tensor = next(tensors)
            if found != name or tuple(tensor.shape) != shape:
                raise CheckpointError(f"{path}: tensor {found} {tuple(tensor.shape)} came where {name} {shape} belongs.")
            file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().data)


def files_of(directory: Path, single: str, index_name: str) -> list[str]:
    """Names of the files that hold a folder's weights: the single one, or those that the index lists; raises CheckpointError."""
    if (directory / single).is_file():
        return [single]
    index = directory / index_name
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} holds neither {single} nor {index_name}. Save it as safetensors (save_pretrained).") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error!r}.") from None


class SafetensorsReader:
    """The tensors of a Hugging Face folder, read lazily; raises CheckpointError for missing or damaged files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files = self._files()
        self._file_of: dict[str, str] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.shapes: dict[str, Shape] = {}
        for name in files:
            self._open(name)

    def _files(self) -> list[str]:
        return files_of(self._directory, SINGLE_FILE, INDEX_FILE)

    def _open(self, name: str) -> None:
        path = self._directory / name
        try:
            with safe_open(str(path), framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118 (not a dict)
                    if tensor in self._file_of:
                        raise CheckpointError(f"tensor {tensor} is both in {self._file_of[tensor]} and in {name}.")
                    piece = file.get_slice(tensor)
                    type_name, known = piece.get_dtype(), {**DTYPES, **INTEGERS}
                    if type_name not in known:
                        raise CheckpointError(f"{path}: {tensor} is stored as {type_name}; weights must be one of {', '.join(DTYPES)}.")
                    self._file_of[tensor] = name
                    self.dtypes[tensor] = known[type_name]
                    self.shapes[tensor] = tuple(piece.get_shape())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._file_of)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        path = self._directory / self._file_of[name]
        try:
            with safe_open(str(path), framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read at {name}: {error}.") from None
