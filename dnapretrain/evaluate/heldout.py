"""Loss on a held-out set, in nats and in bits per base, under any layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.errors import DataError
from dnapretrain.evaluate.counted import token_bases
from dnapretrain.evaluate.regions import Regions, num_region_sums, region_sums, summarise_regions
from dnapretrain.model.batches import BatchPlace, DeviceBatch, HeldOutSamples, held_out_batches
from dnapretrain.model.loss import NUM_TOTALS, LossFunction, forward_step
from dnapretrain.parallel.groups import sum_over_data_parallel

MICROBATCHES_PER_PASS = 16
"""Micro-batches given to the pipeline schedule at a time."""


class EvaluationStoppedError(Exception):
    """The caller's `should_stop` said so: there is no result."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss over one held-out set."""

    loss: float
    """Nats per target token; with train.loss=nucleotide per base."""
    bits_per_base: float
    """Bits of the targets over the bases of the same targets (`counted.py`), weighted as the loss. With train.loss=token the bases of a
    token are one event, and share its cost; with train.loss=nucleotide this is the loss in bits."""
    accuracy: float
    """Share of targets whose likeliest token is the right one, weighted as the loss."""
    num_targets: int
    """Tokens predicted: those with a loss weight above 0."""
    num_bases: int
    """Bases of these tokens."""
    num_samples: int
    marginal_bits_per_base: float | None
    """Of k-mer models, whatever they were trained with: each base of a word by its marginal probability (`base_bits`), over the targets
    that are words; None where there is none. Uniform over bases reads exactly 2. Leaves out what the bases of a token tell of each
    other, so it is usually above the `bits_per_base` of train.loss=token."""
    regions: Regions | None = None
    """`bits_per_base` by class of bases (`regions.py`); None where data.regions asks for no classes."""


@torch.no_grad()
def held_out_loss(
    chunks: list[Any],
    stream: SampleStream,
    place: BatchPlace,
    sequence_length: int,
    loss: str,
    max_samples: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOutLoss:
    """Mean loss over `max_samples` samples spread evenly over `stream` (default: all), each scored once; equal on every rank.

    `should_stop` is asked before each pass, and must answer the same on every rank: then EvaluationStoppedError is raised.
    `loss` is train.loss. Raises DataError where no target weighs anything.
    """
    num_samples = min(stream.num_samples, max_samples or stream.num_samples)
    totals = torch.zeros(NUM_TOTALS + 2 + num_region_sums(stream.regions), dtype=torch.float64, device=place.device)
    step = partial(_counting_step, torch.from_numpy(token_bases(stream.tokenizer)).to(place.device), stream.regions, loss)
    for report in held_out_passes(chunks, step, stream, place, sequence_length, num_samples, should_stop):
        totals += report
    return summarise(sum_over_data_parallel(totals), stream, loss, num_samples)


def held_out_passes(
    chunks: list[Any],
    step: Callable[..., Any],
    stream: HeldOutSamples,
    place: BatchPlace,
    sequence_length: int,
    num_samples: int,
    should_stop: Callable[[], bool],
) -> Iterator[Any]:
    """What `step`, in place of `forward_step`, reports of each micro-batch on the last stage, over `num_samples` samples of `stream`.

    The model is in evaluation mode meanwhile. Raises EvaluationStoppedError where `should_stop` said so before a pass.
    """
    per_round = place.micro_batch_size * place.data_parallel_size
    for chunk in chunks:
        chunk.eval()
    stopped = False
    for first_round in range(0, math.ceil(num_samples / per_round), MICROBATCHES_PER_PASS):
        if stopped := should_stop():
            break
        # Always whole passes: rounds beyond the end hold only samples of weight 0, and the interleaved
        # schedule needs a multiple of the pipeline size.
        first_sample = first_round * per_round
        yield from get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=held_out_batches(stream, place, first_sample, MICROBATCHES_PER_PASS, num_samples),
            model=chunks,
            num_microbatches=MICROBATCHES_PER_PASS,
            seq_length=sequence_length,
            micro_batch_size=place.micro_batch_size,
            forward_only=True,
        )
    for chunk in chunks:
        chunk.train()
    if stopped:
        raise EvaluationStoppedError


def summarise(totals: torch.Tensor, stream: SampleStream, loss: str, num_samples: int) -> HeldOutLoss:
    """The figures of one set from the sums of `weighted_loss`, of `count_bases` and of `region_sums`, behind each other."""
    loss_sum, weight_sum, num_targets, correct_sum, _, bits_sum, words_sum, bases_sum, num_bases, *by_region = totals.tolist()
    if weight_sum == 0:
        raise DataError(
            f"held-out set '{stream.name}' has no base with a loss weight above 0. Raise data.lowercase_weight, or hold out others."
        )
    return HeldOutLoss(
        loss=loss_sum / weight_sum,
        bits_per_base=loss_sum / (weight_sum if loss == "nucleotide" else bases_sum) * math.log2(math.e),
        accuracy=correct_sum / weight_sum,
        num_targets=int(num_targets),
        num_bases=int(num_bases),
        num_samples=num_samples,
        marginal_bits_per_base=bits_sum / words_sum if words_sum else None,
        regions=summarise_regions(stream.regions, by_region),
    )


def count_bases(bases_V: torch.Tensor, labels_BS: torch.Tensor, loss_mask_BS: torch.Tensor) -> torch.Tensor:
    """(bases of targets by weight, bases of targets), float64 [2]; bases_V: bases of each token id."""
    bases_BS = bases_V[labels_BS].double()
    return torch.stack([(bases_BS * loss_mask_BS).sum(), bases_BS[loss_mask_BS > 0].sum()])


def _counting_step(
    bases_V: torch.Tensor, regions: Any, loss: str, batches: Iterator[DeviceBatch | None], model: Any
) -> tuple[torch.Tensor, LossFunction]:
    """`forward_step`, which on the last stage also counts the bases of the targets, and what each class of bases has."""
    batch = next(batches)
    output, loss_function = forward_step(iter((batch,)), model)
    if batch is None:
        return output, loss_function
    bases = count_bases(bases_V, batch.labels_BS, batch.loss_mask_BS)
    assert batch.whole is not None, "held-out batches have it"
    whole = batch.whole

    def with_bases(output: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loss_sum, num_targets, report = loss_function(output)
        by_region = region_sums(
            regions, whole.sample_ids, whole.first_tokens_B, whole.labels_BK, output[0], batch.loss_mask_BS, loss, whole.places_S
        )
        return loss_sum, num_targets, torch.cat([report, bases, by_region])

    return output, with_bases
