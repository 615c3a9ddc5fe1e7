"""Loss and metric of k-mers by their bases, over a vocabulary that is spread over tensor-parallel ranks and padded at its end.

Factorised nucleotide supervision (train.loss=nucleotide; GENERator v2, and Carbon's report has the same formula): with p the softmax
over all real rows and P_j(b) the sum of p over the words whose j-th base is b, the loss of a k-mer b_1 ... b_k is the mean over j of
-log P_j(b_j), P_j at least 1e-8: nats per base. What a prediction gets right of a k-mer counts, base by base.

Targets that are special tokens cost cross-entropy divided by k, the unknown token and padding cost nothing. Batches of ours give
no special token a weight, so this matters to other callers only.

As published, GENERator's special tokens count as words of A alone: their probability raises P_j(A) at every j. Its tokenizer keeps
this, so that losses are those of the published code; with our own k-mers no base gets it, and a model loses what it gives to specials.

No rank sees the logits of another. All sums over the vocabulary are one product of exp(logits) with a constant matrix of ones and
zeros, [V, 4 k + 1]; ranks exchange the maximum and 4 k + 2 numbers per token. Everything is fp32 inside, whatever the model computes
in: 1e-8 is far below the resolution of bf16. Memory: exp(logits) is kept for the backward pass as cross-entropy keeps its softmax
(4 bytes per token and row; fp32 logits are overwritten by it), besides 16 k + 13 bytes per token, and a slice of at most 64 MiB
while the backward pass works.

Shape suffixes: S sequence, B batch, T tokens (S x B), V this rank's share of the padded vocabulary, K bases per token, C 4 k columns
of sums by base (4 j + base), one for each place and base.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from dnapretrain.data.tokens.tokenizers import Tokenizer

SMALLEST_PROBABILITY = 1e-8
"""P_j is not taken below this, as published; a base costs 18.4 nats at most, and at that gives no gradient."""
SLICE_VALUES = 2**24
"""fp32 values that are made at a time beside what is kept: 64 MiB."""


@dataclass(frozen=True)
class KmerRows:
    """Which rows of a vocabulary are words, and what they stand for: word w has the bases that w's k digits to the base 4 name."""

    k: int
    first: int
    """Row of the first of the 4^k words."""
    vocab_size: int
    """Real rows: those behind are padding."""
    ignored: tuple[int, ...]
    """Rows that cost nothing as targets."""
    specials_as: int | None
    """Base that special tokens count as at every place; None: none."""

    def is_word(self, ids: torch.Tensor) -> torch.Tensor:
        """bool, True where an id is a word."""
        return (ids >= self.first) & (ids < self.first + 4**self.k)

    def is_ignored(self, ids: torch.Tensor) -> torch.Tensor:
        """bool, True where an id costs nothing as a target."""
        return torch.stack([ids == ignored for ignored in self.ignored]).any(dim=0)

    def columns(self, ids_T: torch.Tensor) -> torch.Tensor:
        """Columns of the bases of words [T, K]; any valid ones for other ids."""
        words_T = (ids_T - self.first).clamp(0, 4**self.k - 1)
        places_K = torch.arange(self.k, device=ids_T.device)
        return 4 * places_K + (words_T[:, None] >> 2 * (self.k - 1 - places_K) & 3)


def kmer_rows(tokenizer: Tokenizer) -> KmerRows | None:
    """The words of a tokenizer of k-mers; None where tokens are single bases, or where words have different lengths (bpe)."""
    if tokenizer.bpe or tokenizer.k == 1:
        return None
    return KmerRows(
        k=tokenizer.k,
        first=tokenizer.vocabulary.words.start,
        vocab_size=tokenizer.vocab_size,
        ignored=(tokenizer.unk_id, tokenizer.pad_id),
        specials_as=tokenizer.base_order.index("A") if tokenizer.kind == "generator" else None,
    )


@lru_cache(maxsize=8)
def indicator(rows: KmerRows, start: int, width: int, device: torch.device) -> torch.Tensor:
    """fp32 [width, C + 1] for the rows from `start` on: 1 where a row counts as a base at a place; last, 1 where it is real."""
    ids_V = torch.arange(start, start + width, device=device)
    is_word_V1, is_real_V1 = rows.is_word(ids_V)[:, None], (ids_V < rows.vocab_size)[:, None]
    ones_VC = torch.zeros(width, 4 * rows.k, device=device)
    ones_VC.scatter_(1, rows.columns(ids_V), is_word_V1.float().expand(-1, rows.k))
    if rows.specials_as is not None:
        ones_VC[:, rows.specials_as :: 4] += (is_real_V1 & ~is_word_V1).float()
    return torch.cat([ones_VC, is_real_V1.float()], dim=1)


def nucleotide_losses(logits_SBV: torch.Tensor, labels_SB: torch.Tensor, rows: KmerRows, tp_group: dist.ProcessGroup) -> torch.Tensor:
    """The loss in nats per base [S, B]. Logits of padding rows must be too small to count; fp32 logits are overwritten."""
    losses_T: torch.Tensor = _NucleotideLoss.apply(logits_SBV.flatten(0, 1), labels_SB.flatten(), rows, tp_group)
    return losses_T.view_as(labels_SB)


class _NucleotideLoss(torch.autograd.Function):
    """With e = exp(logit - max), Z its sum and S_j the sums behind P_j = S_j / Z, the gradient of row v is
    e_v (n / (k Z) - sum of 1 / (k S_j) over the places j where v has the base of the target), n and the sum over places above the clamp."""

    @staticmethod
    def forward(ctx: Any, logits_TV: torch.Tensor, labels_T: torch.Tensor, rows: KmerRows, tp_group: dist.ProcessGroup) -> torch.Tensor:
        width, k = logits_TV.shape[1], rows.k
        start = tp_group.rank() * width
        exp_TV = logits_TV.float()
        largest_T = _reduced(exp_TV.amax(dim=1), dist.ReduceOp.MAX, tp_group)
        exp_TV.sub_(largest_T[:, None])
        local_T = labels_T - start
        is_here_T = (local_T >= 0) & (local_T < width)
        local_T = local_T.clamp(0, width - 1)
        target_T = exp_TV.gather(1, local_T[:, None])[:, 0] * is_here_T
        sums_TC = exp_TV.exp_() @ indicator(rows, start, width, logits_TV.device)
        sums_TC = _reduced(torch.cat([sums_TC, target_T[:, None]], dim=1), dist.ReduceOp.SUM, tp_group)
        total_T, target_T = sums_TC[:, -2], sums_TC[:, -1]

        columns_TK = rows.columns(labels_T)
        sums_TK = sums_TC.gather(1, columns_TK)
        probabilities_TK = sums_TK / total_T[:, None]
        is_word_T, is_ignored_T = rows.is_word(labels_T), rows.is_ignored(labels_T)
        by_base_T = -probabilities_TK.clamp(min=SMALLEST_PROBABILITY).log().mean(dim=1)
        losses_T = torch.where(is_word_T, by_base_T, (total_T.log() - target_T) / k).masked_fill(is_ignored_T, 0.0)

        has_gradient_TK = (probabilities_TK >= SMALLEST_PROBABILITY) & is_word_T[:, None]
        factors_TC = torch.zeros_like(sums_TC[:, :-1])
        factors_TC.scatter_(1, columns_TK, torch.where(has_gradient_TK, -1 / (k * sums_TK), 0.0))
        factors_TC[:, -1] = torch.where(is_word_T, has_gradient_TK.sum(dim=1) / k, 1 / k) / total_T
        factors_TC.masked_fill_(is_ignored_T[:, None], 0.0)
        ctx.save_for_backward(exp_TV, factors_TC, local_T, is_here_T & ~is_word_T & ~is_ignored_T)
        ctx.rows, ctx.start = rows, start
        return losses_T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_T,) = gradients
        exp_TV, factors_TC, local_T, is_special_here_T = ctx.saved_tensors
        width = exp_TV.shape[1]
        ones_CV = indicator(ctx.rows, ctx.start, width, exp_TV.device).T
        size = max(1, SLICE_VALUES // width)
        for part_TV, part_TC in zip(exp_TV.split(size), (factors_TC * gradient_T[:, None]).split(size), strict=True):
            part_TV.mul_(part_TC @ ones_CV)
        of_special_T = -gradient_T / ctx.rows.k * is_special_here_T
        exp_TV.scatter_add_(1, local_T[:, None], of_special_T[:, None])
        return exp_TV, None, None, None


@torch.no_grad()
def base_bits(
    logits_SBV: torch.Tensor, labels_SB: torch.Tensor, rows: KmerRows, tp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """(bits per base of words [S, B], whether the label is a word [S, B]): the mean over places of -log2 P_j(b_j).

    The metric of every k-mer model: probabilities of bases given that the token is a word, so specials and single letters count as
    no base, and what gives all words the same logit reads exactly 2. A base costs 26.6 bits at most. Logits stay as they are.
    """
    logits_TV, labels_T = logits_SBV.flatten(0, 1), labels_SB.flatten()
    rows, width = dataclasses.replace(rows, specials_as=None), logits_TV.shape[1]
    start = tp_group.rank() * width
    low, high = (min(max(row - start, 0), width) for row in (rows.first, rows.first + 4**rows.k))
    words_TV = logits_TV[:, low:high]
    if low < high:
        largest_T = words_TV.amax(dim=1).float()
    else:
        largest_T = torch.full_like(labels_T, torch.finfo(torch.float32).min, dtype=torch.float32)
    largest_T = _reduced(largest_T, dist.ReduceOp.MAX, tp_group)
    ones_VC = indicator(rows, start, width, logits_TV.device)[low:high, :-1]
    size = max(1, SLICE_VALUES // width)
    parts = zip(words_TV.split(size), largest_T.split(size), strict=True)
    sums_TC = torch.cat([(part_TV.float() - largest_T[:, None]).exp_() @ ones_VC for part_TV, largest_T in parts])
    sums_TC = _reduced(sums_TC, dist.ReduceOp.SUM, tp_group)
    probabilities_TK = sums_TC.gather(1, rows.columns(labels_T)) / sums_TC[:, :4].sum(dim=1, keepdim=True)
    bits_T = -probabilities_TK.clamp(min=SMALLEST_PROBABILITY).log2().mean(dim=1)
    return bits_T.view_as(labels_SB), rows.is_word(labels_SB)


def _reduced(values: torch.Tensor, operation: Any, group: dist.ProcessGroup) -> torch.Tensor:
    """`values` of all ranks together, in place."""
    if group.size() > 1:
        dist.all_reduce(values, op=operation, group=group)
    return values
