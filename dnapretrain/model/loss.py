"""The forward step that Megatron's schedules call, and the loss it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from dnapretrain.model.batches import DeviceBatch

LossFunction = Callable[[Any], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
NUM_TOTALS = 7
"""Sums that `weighted_loss` reports."""


def forward_step(batches: Iterator[DeviceBatch | None], model: Any) -> tuple[torch.Tensor, LossFunction]:
    """Run this stage on the next micro-batch; a decoder's middle stages take their input from the stage before and get None, unless
    attention needs a mask."""
    batch = next(batches)
    if batch is None:
        return model(None, None, None), _no_loss
    output = model(batch.tokens_BS, batch.positions_BS, batch.attention_mask, labels=batch.labels_BS)
    return output, partial(weighted_loss, batch.loss_mask_BS, batch.num_tokens)


def weighted_loss(
    loss_mask_BS: torch.Tensor, num_tokens: int, output: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of weighted losses, number of targets, the NUM_TOTALS sums to report).

    They are: losses, weights, targets, weights of targets predicted right, tokens read; of a k-mer model that is evaluated also the
    bits per base of words and the weights of words, else 0.

    Gradients are divided once by the number of targets (weight above 0) in the global batch, the reported
    loss by the sum of weights; the two are equal unless soft-masked bases are weighted down.
    """
    losses_BS, correct_BS, *metric = output
    loss_sum = (losses_BS.float() * loss_mask_BS).sum()
    num_targets = (loss_mask_BS > 0).sum().to(torch.int)
    weights_BS = loss_mask_BS.double()
    sums = (loss_sum.detach().double(), weights_BS.sum(), num_targets.double(), (weights_BS * correct_BS).sum())
    of_words = [torch.zeros_like(sums[0])] * 2
    if metric:
        bits_BS, is_word_BS = metric
        words_BS = weights_BS * is_word_BS
        of_words = [(bits_BS * words_BS).sum(), words_BS.sum()]
    report = torch.stack([*sums, torch.full_like(sums[1], num_tokens), *of_words])
    return loss_sum, num_targets, report


def _no_loss(output: torch.Tensor) -> Any:
    raise RuntimeError("a middle pipeline stage has no loss")
