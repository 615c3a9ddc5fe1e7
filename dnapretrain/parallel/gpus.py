"""What GPUs can do, from NVIDIA's data sheets: memory and its bandwidth, dense tensor-core peaks (without sparsity) in bf16 and FP8, links.

Sources: the product data sheets and briefs of A100, A10, H100, H200, HGX B200, L4 and L40S, and the RTX A6000 and
Ada (RTX 4090) architecture papers. Where a sheet gives only the rate with sparsity, dense is half of it (H100 and H200: 3,958 TFLOP/s
in FP8, HGX B200: 72,000 of eight GPUs). FP8 is that with sums in fp32, which Transformer Engine takes. Memory is
the sheet's GB read as 10^9 bytes: a driver shows a few per cent more. Links are NVLink within a node where the usual
servers have it, else PCIe, in one direction: half of what the sheets add up. The network is not on a GPU's sheet: it is that
of NVIDIA's own servers (DGX A100: a 200 Gbit/s adapter per GPU; DGX H100, H200, B200: 400), else one of 100 Gbit/s for four.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnapretrain.errors import ConfigError

GPUS_PER_NODE = 8
"""Of the usual servers; tensor parallelism stays within a node."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    kind: str
    memory_bytes: int
    bf16_tflops: float
    """Dense peak in TFLOP/s."""
    device_names: tuple[str, ...]
    """As torch.cuda.get_device_name gives them, without a leading 'NVIDIA '."""
    memory_bandwidth: float
    """Bytes per second."""
    multiprocessors: int
    link_bandwidth: float
    """Bytes per second and direction to the other GPUs of a node."""
    network_bandwidth: float
    """Bytes per second and direction to other nodes, for each GPU."""
    fp8_tflops: float | None = None
    """Dense peak of FP8 in TFLOP/s; None where there is no FP8."""
    fp8_recipes: tuple[str, ...] = ()
    """Of train.fp8_recipe, what Transformer Engine 2.11 runs on it."""


ADA = ("tensorwise", "delayed")
HOPPER = (*ADA, "blockwise")
BLACKWELL = (*HOPPER, "mxfp8")

GPUS = (
    Gpu("a10", 24 * 10**9, 125.0, ("A10",), 0.600e12, 72, 32e9, 3.1e9),
    Gpu("a100-40", 40 * 10**9, 312.0, ("A100-SXM4-40GB", "A100-PCIE-40GB"), 1.555e12, 108, 300e9, 25e9),
    Gpu("a100-80", 80 * 10**9, 312.0, ("A100-SXM4-80GB", "A100 80GB PCIe"), 2.039e12, 108, 300e9, 25e9),
    Gpu("a6000", 48 * 10**9, 154.8, ("RTX A6000",), 0.768e12, 84, 32e9, 3.1e9),
    Gpu("b200", 180 * 10**9, 2250.0, ("B200",), 7.7e12, 148, 900e9, 50e9, 4500.0, BLACKWELL),
    Gpu("h100", 80 * 10**9, 989.0, ("H100 80GB HBM3",), 3.35e12, 132, 450e9, 50e9, 1979.0, HOPPER),
    Gpu("h100-nvl", 94 * 10**9, 835.0, ("H100 NVL",), 3.9e12, 132, 64e9, 25e9, 1671.0, HOPPER),
    Gpu("h100-pcie", 80 * 10**9, 756.0, ("H100 PCIe",), 2.0e12, 114, 64e9, 25e9, 1513.0, HOPPER),
    Gpu("h200", 141 * 10**9, 989.0, ("H200",), 4.8e12, 132, 450e9, 50e9, 1979.0, HOPPER),
    Gpu("h200-nvl", 141 * 10**9, 835.0, ("H200 NVL",), 4.8e12, 132, 450e9, 25e9, 1671.0, HOPPER),
    Gpu("l4", 24 * 10**9, 121.0, ("L4",), 0.300e12, 58, 32e9, 3.1e9, 242.5, ADA),
    Gpu("l40s", 48 * 10**9, 362.0, ("L40S",), 0.864e12, 142, 32e9, 3.1e9, 733.0, ADA),
    Gpu("rtx-4090", 24 * 10**9, 165.0, ("GeForce RTX 4090",), 1.008e12, 128, 32e9, 3.1e9, 330.3, ADA),
)


def gpu_by_kind(kind: str) -> Gpu:
    """The GPU called `kind`, in any case, memory with or without its g (a100-80g). Raises ConfigError for one that is not in the list."""
    for gpu in GPUS:
        if kind.lower() in (gpu.kind, f"{gpu.kind}g"):
            return gpu
    raise ConfigError(f"no data sheet for GPU '{kind}'. Known: {', '.join(gpu.kind for gpu in GPUS)}.")


def check_fp8(gpu: Gpu, recipe: str) -> None:
    """Raise ConfigError where `gpu` has no matrix products in FP8, or not with scales of `recipe` (train.fp8_recipe)."""
    if recipe in gpu.fp8_recipes:
        return
    able = ", ".join(other.kind for other in GPUS if recipe in other.fp8_recipes)
    lacks = f"fp8_recipe={recipe}" if gpu.fp8_tflops else "FP8"
    way_out = f"train.fp8_recipe={' or '.join(gpu.fp8_recipes)}" if gpu.fp8_tflops else "train.fp8=none"
    raise ConfigError(f"train.fp8: {gpu.kind} has no {lacks}. Plan for a GPU that has it ({able}), or set {way_out}.")


def mfu_peak(gpu: Gpu, has_fp8: bool) -> tuple[float, str]:
    """(TFLOP/s, what they are) that MFU is a share of: the dense peak of the layers' products, FP8 where `has_fp8` and `gpu` has it."""
    if has_fp8 and gpu.fp8_tflops:
        return gpu.fp8_tflops, "dense FP8"
    return gpu.bf16_tflops, "dense bf16"


def with_network(gpu: Gpu, gbps: float | None) -> Gpu:
    """`gpu` with a network of `gbps` Gbit/s of its own, where that is given. Raises ConfigError unless it is positive."""
    if gbps is None:
        return gpu
    if not 0 < gbps < float("inf"):
        raise ConfigError(f"--network-gbps = {gbps} is no speed. Give Gbit/s per GPU, e.g. 400.")
    return replace(gpu, network_bandwidth=gbps * 1e9 / 8)


def gpu_by_device_name(name: str) -> Gpu | None:
    """The GPU that torch calls `name`; None for one not in the list.

    The whole name must agree: 'GH200', 'L40', 'RTX 4090 Laptop GPU' and slices ('H200 MIG 1g.18gb') hold the name of another GPU.
    """
    plain = name.removeprefix("NVIDIA ").strip()
    return next((gpu for gpu in GPUS if plain in gpu.device_names), None)
