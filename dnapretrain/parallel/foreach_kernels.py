"""Gradient norm and scaling over all weights at once, where Megatron-core has neither Transformer Engine's kernels nor Apex's.

Its own way asks the GPU for the norm of each weight in turn and waits for each answer: hundreds of waits in a step.
"""

from __future__ import annotations

from typing import Any

import torch


def use() -> None:
    """Take these kernels in Megatron-core's clipping, whatever it has found."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    module: Any
    for module in (clip_grads, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = scale
    module = clip_grads
    module.l2_norm_impl = l2_norm


def use_where_megatron_has_none() -> None:
    """Take them where it has fallen back to its own."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    if clip_grads.multi_tensor_applier is utils.local_multi_tensor_applier:
        use()


def l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """The norm of all tensors together [1], fp32, on their device. In the form in which Megatron-core calls Apex's kernel."""
    del chunk_size, noop_flag, per_tensor
    return torch.nn.utils.get_total_norm(tensor_lists[0]).reshape(1).float(), None


def scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], factor: float) -> None:
    """Each tensor of the second list becomes `factor` times its partner in the first, often itself."""
    del chunk_size, noop_flag
    sources, targets = tensor_lists
    if any(source is not target for source, target in zip(sources, targets, strict=True)):
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, factor)
