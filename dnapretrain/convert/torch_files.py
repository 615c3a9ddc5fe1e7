"""`pytorch_model.bin` files, read one tensor at a time, and the reader that fits a folder.

The archives are pickles: torch's restricted reader (weights_only) runs no code of theirs. Values are mapped, not read, until
a tensor is asked for; archives of before torch 1.6 are held in memory one file at a time.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dnapretrain.convert.safetensors_files import INDEX_FILE, SINGLE_FILE, SafetensorsReader, files_of
from dnapretrain.convert.table import Shape
from dnapretrain.errors import CheckpointError

TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"


class FolderReader(Protocol):
    """The tensors of a Hugging Face folder."""

    dtypes: dict[str, torch.dtype]
    shapes: dict[str, Shape]

    def names(self) -> list[str]:
        """All tensors, sorted."""

    def read(self, name: str) -> Tensor:
        """One tensor, contiguous."""


def open_folder(directory: Path) -> FolderReader:
    """A reader of the folder's safetensors files, or where there are none of its `pytorch_model.bin`; raises CheckpointError."""
    if any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return SafetensorsReader(directory)
    if any((directory / name).is_file() for name in (TORCH_FILE, TORCH_INDEX_FILE)):
        return TorchFilesReader(directory)
    known = ", ".join((SINGLE_FILE, INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE))
    raise CheckpointError(f"{directory} holds neither of {known}: there are no weights in it.")


class TorchFilesReader:
    """The tensors of `pytorch_model.bin`, or of the files that its index lists; raises CheckpointError for missing or damaged files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file_of: dict[str, str] = {}
        self._held: tuple[str, dict[str, Tensor]] | None = None
        self.dtypes: dict[str, torch.dtype] = {}
        self.shapes: dict[str, Shape] = {}
        for file in files_of(directory, TORCH_FILE, TORCH_INDEX_FILE):
            for name, tensor in self._load(file).items():
                if name in self._file_of:
                    raise CheckpointError(f"tensor {name} is both in {self._file_of[name]} and in {file}.")
                self._file_of[name] = file
                self.dtypes[name] = tensor.dtype
                self.shapes[name] = tuple(tensor.shape)

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._file_of)

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own; published ones may be stored column by column."""
        return self._load(self._file_of[name])[name].clone(memory_format=torch.contiguous_format)

    def _load(self, file: str) -> dict[str, Tensor]:
        if self._held and self._held[0] == file:
            return self._held[1]
        path = self._directory / file
        try:
            mapped = zipfile.is_zipfile(path)
            # A mapped file is opened anew for each tensor: pages that stay mapped would count as memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path} cannot be read: damaged, cut short, or more than tensors ({text}).") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds {type(content).__name__}, not tensors by name.")
        for name, value in content.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {name} is {type(value).__name__}, not a tensor.")
        if not mapped:
            self._held = (file, content)
        return content
