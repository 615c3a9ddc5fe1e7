"""What the model of step time assumes beyond the data sheets of `parallel.gpus`: few constants, each with its reason.

Calibrated on published runs (`published`); nothing here was fitted to a run of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnapretrain.parallel.gpus import GPUS_PER_NODE, Gpu

MEMORY_SHARE = 0.8
"""Of the memory bandwidth, in kernels that read and write long tensors once; a plain copy reaches 0.9 on an H200."""
LINK_SHARE = 0.8
"""Of a link's bandwidth, in collectives of megabytes: what NCCL's bus bandwidth is of NVLink and of 200 and 400 Gbit/s adapters."""
LINK_LATENCY, NETWORK_LATENCY = 3e-6, 10e-6
"""Seconds per hop of a ring, within a node and between nodes."""
TILE = 128
"""Rows and columns of the result that a multiprocessor works on at a time: the last wave of tiles leaves multiprocessors idle."""
RAMP = 128
"""A tile's start and end take as long as so many more terms of its sums; they take as long in FP8, and so as long as twice as many."""
LAUNCH_SECONDS = 5e-6
"""Of the host, per kernel: PyTorch's overhead of one operation. Short kernels wait for it."""
STEP_SECONDS = 0.01
"""Per step: the trainer reads loss and norm back, and reports."""
BUCKET_PARAMETERS = 40_000_000
"""Megatron reduces gradients and gathers weights in buckets of at least so many: the last bucket overlaps with nothing."""


@dataclass(frozen=True)
class Shares:
    """What long kernels reach of the dense peak."""

    matmul: float
    """Of bf16."""
    attention: float
    """Of bf16, fused attention at heads of infinite width: width / (width + HEAD_RAMP) of it."""
    fp8_matmul: float = 0.0
    """Of FP8, the product alone: scaling and casting its operands is counted apart (Quantization)."""


OTHER_SHARES = Shares(0.60, 0.55, 0.60)
SHARES = {"a100": Shares(0.79, 0.78), "h100": OTHER_SHARES, "h200": OTHER_SHARES, "b200": OTHER_SHARES}
"""By the beginning of a kind's name: those with the least error over the runs in `published`. H200 has the H100's processor
and power limit (a single product of 8,192^3 reaches 0.79 on it, before it grows warm). B200: assumed, no bf16 run of a dense model
was found. FP8: assumed to reach the share of its peak that bf16 does, not fitted: 12 published runs lie between, those of 2023 with
0.5, those of 2025 with 0.7; so a product in FP8 is never over twice as fast as in bf16, and with its casts always less."""
HEAD_RAMP = 32
BACKWARD_ATTENTION = 0.8
"""Attention's backward kernels reach so much of what its forward kernels do."""
MASKED_ATTENTION = 0.5
"""torch's memory-efficient kernel, which takes a mask of documents, beside the fused ones."""


@dataclass(frozen=True)
class Quantization:
    """What it takes to make FP8 values and scales of a bf16 tensor, once row by row and once transposed, as both directions need them."""

    value_bytes: int
    """Read and written per value."""
    kernels: int
    """Launches per tensor."""


QUANTIZATION = {
    "tensorwise": Quantization(2 + 2 + 1 + 1, 3),  # its largest value first (read), then the cast (read, written twice); the scale between
    "delayed": Quantization(2 + 1 + 1, 1),  # the scale is known before; the norm kernels that cast at once are not told apart
    "blockwise": Quantization(2 + 1 + 1, 1),
    "mxfp8": Quantization(2 + 1 + 1, 2),  # scales are put into the order of the product's tiles
}
"""By train.fp8_recipe: counted in Transformer Engine 2.11."""


@dataclass(frozen=True)
class Engine:
    """What a training program leaves in the way of the matrix products."""

    fused_elementwise: bool
    """One kernel each for the activation and the rotation, instead of several that pass over memory."""
    fused_accumulation: bool
    """Weight gradients are added to the fp32 sum by the matrix product itself."""
    overlaps_tensor_parallel: bool = False
    """Collectives of tensor parallelism run beside the matrix product they belong to, in tp pieces."""
    attention: float = 1.0
    """Speed of its attention kernels beside the best."""
    fused_attention: bool = True
    """False: scores go through memory, heads x sequence^2 of them, and causality saves nothing."""


OURS = Engine(fused_elementwise=False, fused_accumulation=False)
"""As `model.build` sets Megatron-core up, with Transformer Engine."""
MEGATRON_2021 = Engine(fused_elementwise=True, fused_accumulation=True, fused_attention=False)
MEGATRON = Engine(fused_elementwise=True, fused_accumulation=True)
MEGATRON_OVERLAPPED = Engine(fused_elementwise=True, fused_accumulation=True, overlaps_tensor_parallel=True)
PLAIN_2023 = Engine(fused_elementwise=False, fused_accumulation=False, attention=0.5)
"""Plain PyTorch modules and Triton's attention with a bias."""


def shares(gpu: Gpu) -> Shares:
    """What `gpu` reaches of its peak."""
    return SHARES.get(gpu.kind.partition("-")[0], OTHER_SHARES)


def matmul_rate(gpu: Gpu, is_fp8: bool = False) -> float:
    """Operations per second of long matrix products, in bf16 or in FP8."""
    if is_fp8:
        assert gpu.fp8_tflops is not None, "the plan refuses GPUs without FP8"
        return gpu.fp8_tflops * 1e12 * shares(gpu).fp8_matmul
    return gpu.bf16_tflops * 1e12 * shares(gpu).matmul


def gather_seconds(gpu: Gpu, num_bytes: float, ranks: int, stride: int) -> float:
    """A ring all-gather, or reduce-scatter, of a tensor of `num_bytes` in all; an all-reduce takes twice as long.

    (ranks - 1) / ranks of the tensor pass each link. The ranks are `stride` apart: those of one node share its adapters with the
    stride - 1 rings beside theirs, so a ring has as many adapters as it has ranks in a node.
    """
    if ranks == 1:
        return 0.0
    in_node = ranks * stride <= GPUS_PER_NODE
    adapters = max(1, GPUS_PER_NODE // stride)
    bandwidth = gpu.link_bandwidth if in_node else min(gpu.link_bandwidth, adapters * gpu.network_bandwidth)
    latency = LINK_LATENCY if in_node else NETWORK_LATENCY
    return (ranks - 1) / ranks * num_bytes / (LINK_SHARE * bandwidth) + (ranks - 1) * latency


def ring_step_seconds(gpu: Gpu, num_bytes: float, ranks: int, stride: int) -> float:
    """`num_bytes` from each of `ranks` ranks, `stride` apart, to the next at once; across nodes each rank has its own adapter."""
    in_node = ranks * stride <= GPUS_PER_NODE
    bandwidth, latency = (gpu.link_bandwidth, LINK_LATENCY) if in_node else (gpu.network_bandwidth, NETWORK_LATENCY)
    return num_bytes / (LINK_SHARE * bandwidth) + latency


def exchange_seconds(gpu: Gpu, num_bytes: float, ranks: int, stride: int) -> float:
    """An all-to-all: each of `ranks` ranks, `stride` apart, has `num_bytes` and keeps the part for itself; what leaves the node passes the
    rank's own adapter."""
    near = min(ranks, max(1, GPUS_PER_NODE // stride))
    within = (near - 1) / ranks * num_bytes / (LINK_SHARE * gpu.link_bandwidth)
    beyond = (ranks - near) / ranks * num_bytes / (LINK_SHARE * min(gpu.link_bandwidth, gpu.network_bandwidth))
    return max(within, beyond) + (LINK_LATENCY if near == ranks else NETWORK_LATENCY)


def send_seconds(gpu: Gpu, num_bytes: float, stride: int) -> float:
    """A message to the rank `stride` further on."""
    in_node = 2 * stride <= GPUS_PER_NODE
    bandwidth, latency = (gpu.link_bandwidth, LINK_LATENCY) if in_node else (gpu.network_bandwidth, NETWORK_LATENCY)
    return num_bytes / (LINK_SHARE * bandwidth) + latency
