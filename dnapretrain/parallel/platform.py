"""Where this process runs: its rank, its device, its backend. The only reader of the launch environment.

torchrun, srun (one task per rank) and our own launcher are understood; without any of them the process
is a world of one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dnapretrain.errors import ConfigError


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process's place among the launched ones."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "none"


@dataclass(frozen=True)
class Platform:
    """The device and collective backend of this rank."""

    device: torch.device
    backend: str
    rank: int
    world_size: int

    @property
    def is_cuda(self) -> bool:
        """True on a GPU."""
        return self.device.type == "cuda"

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """The processor's name as a person would say it."""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.device)
        return f"CPU ({torch.get_num_threads()} thread(s) per rank)"

    @property
    def bf16_support(self) -> str:
        """Which instructions for bf16 a CPU has, as a remark; '' on a GPU."""
        if self.is_cuda:
            return ""
        names = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX512-BF16": torch.cpu._is_avx512_bf16_supported()}
        found = " and ".join(name for name, there in names.items() if there)
        return f"; this processor has {found}" if found else "; this processor has no instructions for bf16: fp32 is faster"


def launch_environment() -> LaunchEnvironment:
    """Read RANK/WORLD_SIZE/LOCAL_RANK (torchrun) or SLURM_PROCID/SLURM_NTASKS/SLURM_LOCALID (srun).

    Raises ConfigError when only some of them are set.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world, local = int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", env["RANK"]))
        return LaunchEnvironment(int(env["RANK"]), world, local, int(env.get("LOCAL_WORLD_SIZE", world)), "torchrun")
    if "RANK" in env or "WORLD_SIZE" in env:
        raise ConfigError("only one of RANK and WORLD_SIZE is set. Start the ranks with torchrun or srun, or unset both.")
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        world, local = int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"])
        per_node = int(env.get("SLURM_NTASKS_PER_NODE", torch.cuda.device_count() or world))
        return LaunchEnvironment(int(env["SLURM_PROCID"]), world, local, per_node, "srun")
    return LaunchEnvironment()


def machine_id() -> str:
    """What tells this machine from others, containers on it from none; '' where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def available_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str) -> str:
    """'cuda' or 'cpu' for `wanted` in auto, cuda, cpu. Raises ConfigError for cuda without a GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda, but torch finds no CUDA device here. Set train.device=cpu or auto.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def start(wanted: str = "auto", env: LaunchEnvironment | None = None) -> Platform:
    """Set the device, the thread count and (on CPU ranks) the CPU engine; return the platform."""
    env = env or launch_environment()
    if choose_device(wanted) == "cuda":
        count = torch.cuda.device_count()
        if env.local_rank >= count and count != 1:
            raise ConfigError(f"local rank {env.local_rank} has no GPU: this node shows {count}. Start at most {count} ranks per node.")
        # A launcher that gives each task one visible GPU numbers it 0 in every task.
        device = torch.device("cuda", env.local_rank if count > 1 else 0)
        # One hardware queue keeps communication and computation in the order Megatron issues them (tensor parallel overlap).
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        torch.cuda.set_device(device)
        return Platform(device, "nccl", env.rank, env.world_size)
    from dnapretrain.parallel import cpu_engine

    cpu_engine.activate()
    # torchrun sets it to 1 where it starts several ranks; for one it is the user's, and threads too many for the machine only spin.
    if "OMP_NUM_THREADS" not in os.environ or (env.launcher != "none" and env.local_world_size > 1):
        torch.set_num_threads(max(1, available_cores() // env.local_world_size))
    return Platform(torch.device("cpu"), "gloo", env.rank, env.world_size)
