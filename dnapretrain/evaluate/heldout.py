"""Loss on a held-out set, in nats and in bits per base, under any layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.errors import DataError
from dnapretrain.model.batches import BatchPlace, held_out_batches
from dnapretrain.model.loss import NUM_TOTALS, forward_step
from dnapretrain.parallel.groups import sum_over_data_parallel

MICROBATCHES_PER_PASS = 16
"""Micro-batches given to the pipeline schedule at a time."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss over one held-out set."""

    loss: float
    """Nats per target token; with train.loss=nucleotide per base."""
    bits_per_base: float
    """The loss in bits. With train.loss=token the bases of a k-mer are one event, and share its cost."""
    accuracy: float
    """Share of targets whose likeliest token is the right one, weighted as the loss."""
    num_targets: int
    """Tokens predicted: those with a loss weight above 0."""
    num_samples: int
    marginal_bits_per_base: float | None
    """Of k-mer models, whatever they were trained with: each base of a word by its marginal probability (`base_bits`), over the targets
    that are words; None where there is none. Uniform over bases reads exactly 2. Leaves out what the bases of a token tell of each
    other, so it is usually above the `bits_per_base` of train.loss=token."""


@torch.no_grad()
def held_out_loss(
    chunks: list[Any], stream: SampleStream, place: BatchPlace, sequence_length: int, bases_per_loss: int, max_samples: int | None = None
) -> HeldOutLoss:
    """Mean loss over `max_samples` samples spread evenly over `stream` (default: all), each scored once; equal on every rank."""
    num_samples = min(stream.num_samples, max_samples or stream.num_samples)
    per_round = place.micro_batch_size * place.data_parallel_size
    rounds = math.ceil(num_samples / per_round)
    totals = torch.zeros(NUM_TOTALS, dtype=torch.float64, device=place.device)
    for chunk in chunks:
        chunk.eval()
    for first_round in range(0, rounds, MICROBATCHES_PER_PASS):
        # Always whole passes: rounds beyond the end hold only samples of weight 0, and the interleaved
        # schedule needs a multiple of the pipeline size.
        first_sample = first_round * per_round
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=held_out_batches(stream, place, first_sample, MICROBATCHES_PER_PASS, num_samples),
            model=chunks,
            num_microbatches=MICROBATCHES_PER_PASS,
            seq_length=sequence_length,
            micro_batch_size=place.micro_batch_size,
            forward_only=True,
        )
        for report in reports:
            totals += report
    for chunk in chunks:
        chunk.train()
    loss_sum, weight_sum, num_targets, correct_sum, _, bits_sum, words_sum = sum_over_data_parallel(totals).tolist()
    if weight_sum == 0:
        raise DataError(
            f"held-out set '{stream.name}' has no base with a loss weight above 0. Raise data.lowercase_weight, or hold out others."
        )
    loss = loss_sum / weight_sum
    return HeldOutLoss(
        loss=loss,
        bits_per_base=loss * math.log2(math.e) / bases_per_loss,
        accuracy=correct_sum / weight_sum,
        num_targets=int(num_targets),
        num_samples=num_samples,
        marginal_bits_per_base=bits_sum / words_sum if words_sum else None,
    )
