"""Seconds of real work on every processor of this machine: a matrix product and a sum over all ranks, checked and timed.

It is for the start of a job: a GPU that computes wrongly, or much slower than its neighbours, costs a whole run.
"""

from __future__ import annotations

import datetime
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnapretrain.parallel.launch import launch_local

MATMUL_SECONDS = 3.0
ALL_REDUCE_SECONDS = 3.0
HANG_SECONDS = 60
"""After so long in one collective a rank gives up."""
SLOW = 0.7
"""A rank below this share of the median rate is named."""


@dataclass(frozen=True)
class RankCheck:
    """What one rank measured."""

    rank: int
    device: str
    matmul_tflops: float
    matmul_right: bool
    """The same product, computed again, has the same bits, and agrees with one in float64."""
    all_reduce_gbytes_per_second: float
    """Bus bandwidth as NCCL's tests define it: bytes / seconds x 2 (n - 1) / n; 0 with one rank."""
    all_reduce_right: bool


def check_node(ranks: int) -> list[RankCheck]:
    """The check on `ranks` new local ranks; fewer than `ranks` results, or none, when ranks end or hang."""
    with tempfile.TemporaryDirectory() as folder:
        if ranks > 1:
            launch_local(["doctor", "--as-rank", folder], ranks)
        else:
            check_rank(Path(folder))
        found = sorted(Path(folder).glob("*.json"))
        return sorted((RankCheck(**json.loads(path.read_text())) for path in found), key=lambda check: check.rank)


def check_rank(folder: Path) -> None:
    """The part of this rank, among those that the launcher started; writes its RankCheck to `folder`."""
    import torch
    import torch.distributed as dist

    from dnapretrain.parallel import platform as platforms

    # srun may have started this process as one of several, one per node: the check is of this node alone.
    env = platforms.launch_environment()
    platform = platforms.start("auto", env if env.launcher == "torchrun" else platforms.LaunchEnvironment())
    tflops, right = _matmul(platform.device)
    speed, summed = 0.0, True
    if platform.world_size > 1:
        dist.init_process_group(platform.backend, timeout=datetime.timedelta(seconds=HANG_SECONDS))
        speed, summed = _all_reduce(platform.device)
        dist.destroy_process_group()
    name = torch.cuda.get_device_name(platform.device) if platform.is_cuda else "CPU"
    (folder / f"{platform.rank}.json").write_text(json.dumps(asdict(RankCheck(platform.rank, name, tflops, right, speed, summed))))


def problems_of_checks(checks: list[RankCheck], ranks: int) -> list[str]:
    """What is wrong, in words, by rank."""
    problems = []
    if missing := sorted(set(range(ranks)) - {check.rank for check in checks}):
        problems.append(f"the check of rank(s) {', '.join(map(str, missing))} did not end: see the messages above")
    for check in checks:
        where = f"rank {check.rank} ({check.device})"
        if not check.matmul_right:
            problems.append(f"{where} multiplies matrices wrongly: leave this node out and have it repaired")
        if not check.all_reduce_right:
            problems.append(f"{where} gets a wrong sum over the ranks: leave this node out and have its links repaired")
    for name in ("matmul_tflops", "all_reduce_gbytes_per_second"):
        rates = [getattr(check, name) for check in checks]
        median = statistics.median(rates) if rates else 0.0
        # CPU ranks share the cores and differ by chance.
        slow = [check for check, rate in zip(checks, rates, strict=True) if check.device != "CPU" and rate < SLOW * median]
        problems += [
            f"rank {check.rank} ({check.device}) is slow: {name} {getattr(check, name):.4g}, median {median:.4g}" for check in slow
        ]
    return problems


def _matmul(device: Any) -> tuple[float, bool]:
    """TFLOP/s of a bf16 (CPU: fp32) product, and whether it is right."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(size, size, generator=generator).to(device, dtype)
    right = torch.randn(size, size, generator=generator).to(device, dtype)
    first = left @ right
    rows = slice(0, size, max(1, size // 16))
    exact = left[rows].double() @ right.double()
    agrees = bool(((first[rows].double() - exact).abs().max() / exact.abs().max()).item() < (1e-2 if device.type == "cuda" else 1e-4))
    _wait(device)
    started, count, product = time.perf_counter(), 0, first
    while time.perf_counter() - started < MATMUL_SECONDS:
        for _ in range(10):
            product = left @ right
        _wait(device)
        count += 10
    seconds = time.perf_counter() - started
    return 2 * size**3 * count / seconds / 1e12, agrees and bool(torch.equal(product, first))


def _all_reduce(device: Any) -> tuple[float, bool]:
    """Bus bandwidth in GB/s of sums over all ranks, and whether every sum was right."""
    import torch
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    count = 2**26 if device.type == "cuda" else 2**18
    values = torch.full((count,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == world * (world + 1) / 2).all())
    values.zero_()
    _wait(device)
    started, rounds, go_on = time.perf_counter(), 0, torch.ones(1, device=device)
    while go_on.item():
        for _ in range(5):
            dist.all_reduce(values)
        rounds += 5
        go_on.fill_(float(rank == 0 and time.perf_counter() - started < ALL_REDUCE_SECONDS))
        dist.all_reduce(go_on)  # rank 0's clock decides, so that all do the same number
    seconds = time.perf_counter() - started
    return count * 4 * rounds / seconds * 2 * (world - 1) / world / 1e9, right


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
