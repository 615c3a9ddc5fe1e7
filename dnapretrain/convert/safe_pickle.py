"""Pickles of others, read without running anything of theirs: classes that are not known become empty shells that hold their values."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import _utils
from torch.distributed.checkpoint import filesystem, metadata

KNOWN: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): Namespace,
    ("types", "SimpleNamespace"): SimpleNamespace,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided if name == "torch.strided" else None,
    ("torch._utils", "_rebuild_tensor_v2"): _utils._rebuild_tensor_v2,
    **{
        (module.__name__, name): value
        for module in (metadata, filesystem)
        for name, value in vars(module).items()
        if isinstance(value, type)
    },
}
"""What a stored object may be made of. None of it does more than hold values."""


class Shell:
    """An object of a class that is not known."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values, self.named = values, named

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """As of a list: nothing is kept."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """As of a dict: nothing is kept."""


class Unpickler(pickle.Unpickler):
    """`pickle.Unpickler` that imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """A known class, a type or memory format of torch, or a Shell."""
        if module == "torch" and isinstance(value := getattr(torch, name, None), (torch.dtype, torch.memory_format)):
            return value
        return KNOWN.get((module, name), Shell)


def load(file: IO[bytes], **arguments: Any) -> Any:
    """As pickle.load."""
    return Unpickler(file, **arguments).load()


def load_torch(path: Path) -> Any:
    """What torch.save wrote; raises pickle.UnpicklingError, RuntimeError, ValueError and their like for a damaged file."""
    import sys

    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=sys.modules[__name__])
