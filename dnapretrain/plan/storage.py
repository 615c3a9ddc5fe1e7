"""What a run asks of disks: bases read from shards, and checkpoints. STORAGE_FORMULA says it in words."""

from __future__ import annotations

from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.parallel.gpus import GPUS_PER_NODE

NODE_WRITES = 2e9
"""Bytes per second that a node writes to a shared file system: assumed."""
HOST_COPY = 20e9
"""Bytes per second from a GPU to pinned host memory: assumed, of PCIe's 25 to 50."""
STORAGE_FORMULA = (
    "read: a byte per base of every sample, by all copies of the model together (shards of 2 bits a base: a quarter). Checkpoint: per "
    "stored parameter 14 bytes in bf16 (weight, main weight, two moments), 12 in fp32; written by all nodes together at 2 GB/s each "
    "(assumed), while training waits for the copy to host memory only (20 GB/s per GPU, assumed) unless checkpoint.async_save=false"
)


def storage(
    config: RunConfig, stored_parameters: int, num_gpus: int, bases_per_token: int, tokens_per_second: float | None
) -> dict[str, Any]:
    """Bytes per second that the samples are read at, and size and seconds of a checkpoint."""
    per_parameter = 14 if config.train.precision == "bf16" else 12
    size = per_parameter * stored_parameters
    nodes = -(-num_gpus // GPUS_PER_NODE)
    writers = num_gpus if config.parallel.use_distributed_optimizer else config.parallel.model_parallel_size
    return {
        "bytes_read_per_second": tokens_per_second and tokens_per_second * bases_per_token,
        "checkpoint_bytes": size,
        "checkpoint_seconds": size / (min(nodes, -(-writers // GPUS_PER_NODE)) * NODE_WRITES),
        "checkpoint_pause_seconds": size / (writers * HOST_COPY),
    }
