"""`dnapretrain doctor`: what is installed here, and which path each part of a run would take."""

from __future__ import annotations

import importlib.metadata
import platform as machine
import shutil
import sys
from typing import Any

PACKAGES = ("torch", "megatron-core", "numpy", "transformers", "safetensors", "tokenizers", "isal", "psutil", "pydantic")
OPTIONAL = {
    "transformer-engine": "fused layers, attention and FP8 on GPU",
    "flash-attn": "attention kernels that Transformer Engine can use",
    "nvidia-resiliency-ext": "hang detection and fast restart",
}


def diagnose() -> dict[str, Any]:
    """Versions, processors and chosen paths; `ok` is False when something needed is missing."""
    problems = []
    packages = {name: _version(name) for name in PACKAGES}
    problems += [f"{name} is not installed: pip install {name}" for name, version in packages.items() if version is None]
    try:
        from dnapretrain import _core

        core = f"built, {_core.__name__}"
    except ImportError as error:
        core = "missing"
        problems.append(f"the native core does not load ({error}): run `pip install -e .` in the clone")
    paths: dict[str, str] = {}
    processors = f"{machine.machine()}, {_cores()} core(s)"
    gpus: list[str] = []
    if packages["torch"] and packages["megatron-core"]:
        try:
            paths, gpus = _paths()
        except Exception as error:  # whatever is wrong with an installation, doctor must say it and go on
            problems.append(f"the engine does not start: {' '.join(str(error).split())}")
    return {
        "ok": not problems,
        "python": sys.version.split()[0],
        "processors": processors,
        "gpus": gpus,
        "packages": packages,
        "optional": {name: _version(name) for name in OPTIONAL},
        "native core": core,
        "commands": {name: shutil.which(name) for name in ("srun", "torchrun", "nvidia-smi")},
        "paths": paths,
        "problems": problems,
    }


def format_diagnosis(diagnosis: dict[str, Any]) -> str:
    """The diagnosis as aligned text, problems last."""
    lines = [f"{'python':>22}: {diagnosis['python']}", f"{'processors':>22}: {diagnosis['processors']}"]
    lines.append(f"{'gpus':>22}: {', '.join(diagnosis['gpus']) or 'none: runs use CPU ranks'}")
    lines += [f"{name:>22}: {version or 'MISSING'}" for name, version in diagnosis["packages"].items()]
    lines += [f"{name:>22}: {version or f'not installed ({OPTIONAL[name]})'}" for name, version in diagnosis["optional"].items()]
    lines.append(f"{'native core':>22}: {diagnosis['native core']}")
    lines += [f"{name:>22}: {path or 'not found'}" for name, path in diagnosis["commands"].items()]
    lines.append("a run with transformer_impl=auto would use")
    lines += [f"{name:>22}: {path}" for name, path in diagnosis["paths"].items()]
    lines += [f"PROBLEM: {problem}" for problem in diagnosis["problems"]] or ["no problems found"]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    from dnapretrain.parallel.platform import available_cores

    return available_cores()


def _paths() -> tuple[dict[str, str], list[str]]:
    import torch

    from dnapretrain.config import ModelConfig
    from dnapretrain.model.paths import active_paths
    from dnapretrain.parallel import platform as platforms

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    smallest = ModelConfig(num_layers=1, hidden_size=2, num_attention_heads=1, ffn_hidden_size=2)
    return active_paths(smallest, "bf16", platforms.start("auto")), gpus
