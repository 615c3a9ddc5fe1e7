"""Cross-entropy over a vocabulary that is spread over tensor-parallel ranks and padded at its end.

Shape suffixes: S sequence, B batch, V this rank's share of the padded vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy


def token_losses(
    logits_SBV: torch.Tensor, labels_BS: torch.Tensor, real_vocab_size: int, tp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss in nats [B, S], whether the likeliest token is the label [B, S]); padding rows never enter the softmax.

    Changes the logits in place.
    """
    width = logits_SBV.shape[-1]
    first_padding = real_vocab_size - tp_group.rank() * width
    if first_padding < width:
        logits_SBV[..., max(first_padding, 0) :] = torch.finfo(logits_SBV.dtype).min
    labels_SB = labels_BS.transpose(0, 1).contiguous()
    correct_SB = _likeliest(logits_SBV.detach(), tp_group) == labels_SB
    losses_SB = vocab_parallel_cross_entropy(logits_SBV, labels_SB)
    return losses_SB.transpose(0, 1).contiguous(), correct_SB.transpose(0, 1)


def _likeliest(logits_SBV: torch.Tensor, tp_group: dist.ProcessGroup) -> torch.Tensor:
    """Id of the largest logit [S, B], the lowest one of equals."""
    largest_SB, ids_SB = logits_SBV.max(dim=-1)
    if tp_group.size() > 1:
        ids_SB = ids_SB + tp_group.rank() * logits_SBV.shape[-1]
        of_all_SB = largest_SB.float()
        dist.all_reduce(of_all_SB, op=dist.ReduceOp.MAX, group=tp_group)
        ids_SB = ids_SB.masked_fill(largest_SB.float() < of_all_SB, torch.iinfo(ids_SB.dtype).max)
        dist.all_reduce(ids_SB, op=dist.ReduceOp.MIN, group=tp_group)
    return ids_SB
