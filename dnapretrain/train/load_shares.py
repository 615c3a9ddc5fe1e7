"""Each tensor of a checkpoint is read by one of the ranks that want it, and sent to the others.

Megatron-core has every data-parallel rank read all that its place in the model holds: as many times the checkpoint from the shared
disk as there are data-parallel ranks. Its own way out works on CUDA tensors only and has all ranks exchange what they want; here all
data-parallel ranks want the same, so each reckons by itself who reads what, as when they save (`save_shares`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

from dnapretrain.errors import CheckpointError
from dnapretrain.parallel.groups import on_every_rank, replicas
from dnapretrain.train.save_shares import assigned, tensor_bytes


class SharedLoad(TorchDistLoadShardedStrategy):
    """Megatron-core's way to load, of a share; then the exchange."""

    def load(self, sharded_state_dict: Any, checkpoint_dir: Path) -> Any:
        """The tensors that `sharded_state_dict` describes, in place of their descriptions. Raises CheckpointError on every rank."""
        wanted = [item for item in nested_values(sharded_state_dict) if isinstance(item, ShardedTensor)]
        others = [item for item in nested_values(sharded_state_dict) if not isinstance(item, ShardedTensor)]
        group = replicas()
        rank, readers = dist.get_rank(group), assigned([tensor_bytes(item) for item in wanted], dist.get_world_size(group))
        own = {str(place): item for place, (item, reader) in enumerate(zip(wanted, readers, strict=True)) if reader == rank}
        own |= {f"other {place}": item for place, item in enumerate(others)}
        with on_every_rank(CheckpointError, "cannot read"):  # before others wait for what this rank has not got
            read = super().load(own, checkpoint_dir)
        loaded: dict[int, Any] = {id(item): read[f"other {place}"] for place, item in enumerate(others)}
        for place, (item, reader) in enumerate(zip(wanted, readers, strict=True)):
            if reader != rank and item.data is None:
                item.init_data("cpu")
            tensor = read.pop(str(place)) if reader == rank else item.data
            loaded[id(item)] = _sent(tensor, dist.get_global_rank(group, reader), group)
        return dict_list_map_outplace(lambda item: loaded[id(item)], sharded_state_dict)


def _sent(tensor: torch.Tensor, source: int, group: dist.ProcessGroup) -> torch.Tensor:
    """`tensor` as rank `source` has it, in the memory that it has here."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    if tensor.device.type == device.type and tensor.is_contiguous():
        dist.broadcast(tensor.detach(), source, group=group)
        return tensor
    passing = tensor.detach().to(device).contiguous()
    dist.broadcast(passing, source, group=group)
    with torch.no_grad():
        tensor.copy_(passing)
    return tensor
