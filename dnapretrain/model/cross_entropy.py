"""The loss of each token, over a vocabulary that is spread over tensor-parallel ranks and padded at its end.

Shape suffixes: S sequence, B batch, V this rank's share of the padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

from dnapretrain.config import RunConfig
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.model.nucleotide_loss import KmerRows, base_bits, kmer_rows, nucleotide_losses


@dataclass(frozen=True)
class TokenLoss:
    """What the last stage makes of its logits."""

    real_vocab_size: int
    kmers: KmerRows | None
    """The words of a k-mer vocabulary."""
    by_base: bool
    """train.loss=nucleotide: the loss of k-mers counts their bases; else it is the cross-entropy of tokens."""
    fusion: Literal["none", "native", "te"] = "none"
    """Kernels of the cross-entropy of tokens: ours, Megatron-core's compiled function, or Transformer Engine's Triton kernel."""

    def __call__(
        self, logits_SBV: torch.Tensor, labels_BS: torch.Tensor, tp_group: dist.ProcessGroup, training: bool
    ) -> tuple[torch.Tensor, ...]:
        """(loss in nats [B, S], whether the likeliest token is the label [B, S]); padding rows never enter the softmax.

        Of a k-mer model that is not training also what `base_bits` gives: bits per base, and whether the label is a word, both [B, S].
        Changes the logits in place.
        """
        width = logits_SBV.shape[-1]
        first_padding = self.real_vocab_size - tp_group.rank() * width
        if first_padding < width:
            logits_SBV[..., max(first_padding, 0) :] = torch.finfo(logits_SBV.dtype).min
        labels_SB = labels_BS.transpose(0, 1).contiguous()
        largest_SB, ids_SB = _likeliest(logits_SBV.detach(), tp_group)
        correct_SB = ids_SB == labels_SB
        metric = base_bits(logits_SBV, labels_SB, self.kmers, tp_group) if self.kmers and not training else ()
        if self.by_base and self.kmers:
            losses_SB = nucleotide_losses(logits_SBV, labels_SB, self.kmers, tp_group)
        else:
            losses_SB = self._cross_entropy(logits_SBV, labels_SB, largest_SB, ids_SB, tp_group)
        return losses_SB.transpose(0, 1).contiguous(), *(values_SB.transpose(0, 1) for values_SB in (correct_SB, *metric))

    def _cross_entropy(
        self,
        logits_SBV: torch.Tensor,
        labels_SB: torch.Tensor,
        largest_SB: torch.Tensor,
        likeliest_SB: torch.Tensor,
        tp_group: dist.ProcessGroup,
    ) -> torch.Tensor:
        """Loss in nats [S, B]; the logits become something else."""
        if self.fusion == "te":
            from megatron.core.extensions.transformer_engine import te_parallel_cross_entropy  # needs Transformer Engine

            # True: it does not ask the GPU whether every weight is 1, which would wait for it in each micro-batch.
            losses_SB: torch.Tensor = te_parallel_cross_entropy(logits_SBV, labels_SB, tp_group, True)
            return losses_SB
        if self.fusion == "native":
            losses_SB = fused_vocab_parallel_cross_entropy(logits_SBV, labels_SB, tp_group)
            return losses_SB
        losses_SB = _CrossEntropy.apply(logits_SBV, labels_SB, largest_SB, likeliest_SB, tp_group)
        return losses_SB


def token_loss(config: RunConfig, tokenizer: Tokenizer) -> TokenLoss:
    """The loss that `train.loss` asks for, by the kernels that `train.cross_entropy_loss_fusion` asks for."""
    train = config.train
    fusion = train.cross_entropy_fusion_impl if train.cross_entropy_loss_fusion else "none"
    return TokenLoss(tokenizer.vocab_size, kmer_rows(tokenizer), train.loss == "nucleotide", fusion)


class _CrossEntropy(torch.autograd.Function):
    """-log softmax of the label. What is kept is the softmax: in fp32, in the logits' own memory where they are fp32.

    Without tensor parallelism torch's softmax makes it in one pass, and the sum behind it is read off its largest value.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_SBV: torch.Tensor,
        labels_SB: torch.Tensor,
        largest_SB: torch.Tensor,
        likeliest_SB: torch.Tensor,
        tp_group: dist.ProcessGroup,
    ) -> torch.Tensor:
        exp_SBV, largest_SB1 = logits_SBV.float(), largest_SB.float()[..., None]
        width = exp_SBV.shape[-1]
        local_SB1 = (labels_SB - tp_group.rank() * width)[..., None]
        is_here_SB1 = (local_SB1 >= 0) & (local_SB1 < width)
        local_SB1 = local_SB1.clamp(0, width - 1)
        target_SB1 = (exp_SBV.gather(-1, local_SB1) - largest_SB1) * is_here_SB1
        if tp_group.size() == 1:
            torch.softmax(exp_SBV, dim=-1, out=exp_SBV)
            log_sum_SB1 = -exp_SBV.gather(-1, likeliest_SB[..., None]).log()
        else:
            sums = torch.stack([exp_SBV.sub_(largest_SB1).exp_().sum(dim=-1, keepdim=True), target_SB1])
            dist.all_reduce(sums, group=tp_group)
            sum_SB1, target_SB1 = sums
            exp_SBV.div_(sum_SB1)
            log_sum_SB1 = sum_SB1.log()
        ctx.save_for_backward(exp_SBV, local_SB1, is_here_SB1)
        ctx.dtype = logits_SBV.dtype
        losses_SB: torch.Tensor = (log_sum_SB1 - target_SB1)[..., 0]
        return losses_SB

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        softmax_SBV, local_SB1, is_here_SB1 = ctx.saved_tensors
        gradient_SB1 = gradients[0][..., None].float()
        softmax_SBV.mul_(gradient_SB1).scatter_add_(-1, local_SB1, -gradient_SB1 * is_here_SB1)
        return softmax_SBV.to(ctx.dtype), None, None, None, None


def _likeliest(logits_SBV: torch.Tensor, tp_group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """(the largest logit of all ranks, its id) [S, B], the lowest id of equals."""
    largest_SB, ids_SB = logits_SBV.max(dim=-1)
    if tp_group.size() > 1:
        ids_SB = ids_SB + tp_group.rank() * logits_SBV.shape[-1]
        # Its own memory, else every rank's own largest would look like the largest of all.
        of_all_SB = largest_SB.to(torch.float32, copy=True)
        dist.all_reduce(of_all_SB, op=dist.ReduceOp.MAX, group=tp_group)
        ids_SB = ids_SB.masked_fill(largest_SB.float() < of_all_SB, torch.iinfo(ids_SB.dtype).max)
        dist.all_reduce(ids_SB, op=dist.ReduceOp.MIN, group=tp_group)
        largest_SB = of_all_SB
    return largest_SB, ids_SB
