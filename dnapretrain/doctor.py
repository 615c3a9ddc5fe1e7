"""`dnapretrain doctor`: what is installed here, which path each part of a run would take and why, and what is known to go wrong.

A problem is what no run survives, and makes the exit code 1; a warning is what some runs do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform as machine
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "megatron-core", "numpy", "transformers", "safetensors", "tokenizers", "isal", "psutil", "pydantic")
OPTIONAL = {
    "transformer-engine": "fused layers, attention and FP8 on GPU",
    "flash-attn": "attention kernels that Transformer Engine can use",
    "nvidia-resiliency-ext": "hang detection and fast restart",
}

LEAST_SHARED_MEMORY = 2**30
"""Of /dev/shm on a GPU machine: NCCL's ranks of one node talk through it, and containers get 64 MiB unless told otherwise."""
LEAST_DISK = 2**30
DRIVER = Path("/proc/driver/nvidia/version")


def diagnose(check: bool = False) -> dict[str, Any]:
    """Versions, processors, chosen paths, space; `ok` is False when something needed is missing.

    `check`: work on every processor too, about ten seconds, as `check_node` does.
    """
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
    space = _space()
    optional = {name: _version(name) for name in (*OPTIONAL, "apex")}
    problems += _space_problems(space)
    if DRIVER.exists() and packages["torch"] and not gpus:
        problems.append(f"an NVIDIA driver is here, but torch {packages['torch']} finds no GPU: {_torch_cuda()}")
    checks: list[dict[str, Any]] = []
    if check and not problems:
        checks, wrong = _check(max(1, len(gpus)) if gpus else min(2, _cores()))
        problems += wrong
    return {
        "ok": not problems,
        "python": sys.version.split()[0],
        "processors": processors,
        "gpus": gpus,
        "packages": packages,
        "optional": {name: optional[name] for name in OPTIONAL},
        "native core": core,
        "commands": {name: shutil.which(name) for name in ("srun", "torchrun", "nvidia-smi")},
        "links": _links(),
        "space": space,
        "paths": paths,
        "check": checks,
        "warnings": _warnings({**packages, **optional}, _is_nvidias_apex()),
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
    for path, part in diagnosis["space"].items():
        lines.append(f"{path:>22}: {part['free'] / 2**30:,.1f} GiB free of {part['total'] / 2**30:,.1f}")
    if diagnosis["links"]:
        lines += ["links between GPUs (nvidia-smi topo -m)", *diagnosis["links"]]
    lines.append("a run with transformer_impl=auto would use")
    lines += [f"{name:>22}: {path}" for name, path in diagnosis["paths"].items()]
    for rank in diagnosis["check"]:
        lines.append(
            f"{'check of rank ' + str(rank['rank']):>22}: {rank['device']}, matrix products at {rank['matmul_tflops']:.4g} TFLOP/s, "
            f"sums over ranks at {rank['all_reduce_gbytes_per_second']:.3g} GB/s"
        )
    lines += [f"warning: {warning}" for warning in diagnosis["warnings"]]
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
    # Of this machine, whatever started this process on it.
    paths = active_paths(smallest, "bf16", platforms.start("auto", platforms.LaunchEnvironment()))
    if gpus:
        paths["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        paths["CUDA"] = f"{torch.version.cuda}, driver {_driver()}"
    return paths, gpus


def _check(ranks: int) -> tuple[list[dict[str, Any]], list[str]]:
    from dnapretrain.parallel.node_check import check_node, problems_of_checks

    checks = check_node(ranks)
    return [vars(check) for check in checks], problems_of_checks(checks, ranks)


def _space() -> dict[str, dict[str, int]]:
    """Bytes in all and free, of this folder, of temporary files and of shared memory."""
    places = {"this folder": ".", "temporary files": os.environ.get("TMPDIR", "/tmp"), "/dev/shm": "/dev/shm"}
    found = {}
    for name, path in places.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        found[name] = {"total": usage.total, "free": usage.free}
    return found


def _space_problems(space: dict[str, dict[str, int]]) -> list[str]:
    problems = []
    if space.get("this folder", {"free": 0})["free"] < LEAST_DISK:
        problems.append("this folder has less than 1 GiB free: checkpoints will not fit")
    shared = space.get("/dev/shm", {"total": 0})["total"]
    if DRIVER.exists() and shared < LEAST_SHARED_MEMORY:
        problems.append(f"/dev/shm has {shared / 2**20:,.0f} MiB: start the container with --ipc=host or --shm-size=8g, or NCCL fails")
    return problems


def _warnings(versions: dict[str, str | None], nvidias_apex: bool) -> list[str]:
    """Combinations of versions that are known to go wrong, or to be other than they seem."""
    warnings = []
    engine, attention = versions["transformer-engine"], versions["flash-attn"]
    if engine and _numbers(engine) >= (2, 12):
        warnings.append(f"transformer-engine {engine}: megatron-core 0.16.1 names versions from 2.9 to 2.11; others are untried here")
    if attention and engine and _numbers(attention) > (2, 8, 3):
        warnings.append(f"flash-attn {attention}: transformer-engine 2.11 takes it up to 2.8.3, and uses other kernels beyond")
    if versions["apex"] and not nvidias_apex:
        warnings.append(
            f"apex {versions['apex']} is not NVIDIA's: `pip install apex` brings another package of that name. Uninstall it; "
            "NVIDIA's comes with its PyTorch images or is built from github.com/NVIDIA/apex, and nothing here needs it"
        )
    return warnings


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _is_nvidias_apex() -> bool:
    """Whether the package that `import apex` would find has NVIDIA's parts; it is not imported."""
    found = importlib.util.find_spec("apex")
    folders = found.submodule_search_locations if found else None
    return any((Path(folder) / "multi_tensor_apply").is_dir() for folder in folders or ())


def _torch_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "it is a build for the CPU. Install one for CUDA"
    return f"it is built for CUDA {torch.version.cuda}, the driver is {_driver()}. Update the driver, or install a torch for an older CUDA"


def _driver() -> str:
    try:
        match = re.search(r"Kernel Module\D*?([\d.]+)", DRIVER.read_text())
    except OSError:
        match = None
    return match[1] if match else "unknown"


def _links() -> list[str]:
    """The matrix of links between GPUs, as nvidia-smi draws it; nothing without it."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    try:
        run = subprocess.run([tool, "topo", "-m"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout) if run.returncode == 0 else ""
    return [line.rstrip() for line in plain.partition("\n\n")[0].splitlines() if line.strip()]
