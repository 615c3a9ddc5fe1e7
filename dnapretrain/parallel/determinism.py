"""train.deterministic: the same run gives the same bits again, on CUDA too."""

from __future__ import annotations

import os
from typing import Any

import torch

from dnapretrain.errors import ConfigError

VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", (":4096:8", ":16:8")),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0", ("0",)),
    "NCCL_ALGO": ("^NVLS", ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain")),
}
"""For cuBLAS, Transformer Engine and NCCL: what is set where nothing is, and what else will do."""


def make_deterministic(is_cuda: bool) -> None:
    """Refuse CUDA kernels whose results change from run to run; must come before the first of them. On CPU there are none: no change.

    Raises ConfigError where the environment asks for the contrary.
    """
    if not is_cuda:
        return
    for name, (value, allowed) in VARIABLES.items():
        if os.environ.setdefault(name, value) not in allowed:
            raise ConfigError(
                f"train.deterministic=true needs {name} to be one of {', '.join(allowed)}; it is {os.environ[name]}. Unset it."
            )
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # it finds reads of memory never written, and costs time
    torch.backends.cudnn.benchmark = False


def determinism(wanted: bool, is_cuda: bool) -> str:
    """What a run relies on, for its log."""
    if not is_cuda:
        return "CPU ranks repeat themselves bit for bit at one layout and thread count, whatever train.deterministic says"
    return "deterministic kernels only (train.deterministic)" if wanted else "kernels as they are: CUDA results may differ in the last bits"
