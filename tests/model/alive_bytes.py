"""How many bytes operations have alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):
    """The most bytes of storages made by operations under it that are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def gone(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.now -= num_bytes

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        given = {id(value.untyped_storage()) for value in tree_iter((arguments, options)) if isinstance(value, torch.Tensor)}
        result = function(*arguments, **(options or {}))
        for value in tree_iter(result):
            storage = value.untyped_storage() if isinstance(value, torch.Tensor) else None
            if storage is not None and id(storage) not in self.known | given:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        return result
