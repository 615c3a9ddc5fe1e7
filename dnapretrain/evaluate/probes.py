"""Zero-shot probes: how often, and by how much, a model finds the true window likelier than an altered one, under any layout.

A window's log-likelihood is that of its targets under train.loss: of tokens, or with train.loss=nucleotide of the bases of k-mers by
their marginals. All windows of all probes go through one pass over the model, as held-out samples do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnapretrain.data.sampling.probe_windows import ComparedWindows, ProbeWindows
from dnapretrain.evaluate.heldout import MICROBATCHES_PER_PASS, held_out_passes
from dnapretrain.model.batches import BatchPlace, DeviceBatch
from dnapretrain.model.loss import LossFunction, forward_step
from dnapretrain.parallel.groups import sum_over_data_parallel

REVERSE_COMPLEMENT = "reverse_complement"
Results = dict[str, dict[str, float | int | None]]
"""Probe -> its figures: `pair_figures` or `strand_figures`."""


@torch.no_grad()
def probe_results(
    chunks: list[Any],
    probes: ProbeWindows,
    place: BatchPlace,
    sequence_length: int,
    loss: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Results:
    """The figures of each probe that has pairs; equal on every rank.

    `sequence_length`: tokens of a sample of the run, so that no micro-batch has more tokens than those have. `loss` is train.loss.
    `should_stop`: see `held_out_loss`; raises EvaluationStoppedError.
    """
    nats = window_nats(chunks, probes, place, sequence_length, loss, should_stop)
    return summarise_probes(probes, nats)


def window_nats(
    chunks: list[Any],
    probes: ProbeWindows,
    place: BatchPlace,
    sequence_length: int,
    loss: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float64]:
    """-log P of each window in nats, float64 [windows]."""
    if probes.sequence_length < sequence_length:  # else as training has them: recorded layers know no other batches
        most = place.micro_batch_size * (sequence_length // probes.sequence_length)
        wanted = math.ceil(probes.num_samples / (place.data_parallel_size * MICROBATCHES_PER_PASS))
        place = replace(place, micro_batch_size=min(most, wanted))
    sums = torch.zeros(probes.num_samples, dtype=torch.float64, device=place.device)
    reports = held_out_passes(chunks, _window_step, probes, place, probes.sequence_length, probes.num_samples, should_stop)
    for sample_ids_B, nats_B in reports:
        sums.index_add_(0, sample_ids_B, nats_B)  # places beyond the end are window 0 at weight 0
    losses: NDArray[np.float64] = sum_over_data_parallel(sums).cpu().numpy()
    return losses * (probes.tokenizer.k if loss == "nucleotide" else 1)  # that is a mean over the bases of a k-mer


def _window_step(batches: Iterator[DeviceBatch | None], model: Any) -> tuple[torch.Tensor, LossFunction]:
    """`forward_step`, whose report on the last stage is the numbers of the windows and the sum of the losses of each."""
    batch = next(batches)
    output, loss_function = forward_step(iter((batch,)), model)
    if batch is None:
        return output, loss_function
    assert batch.whole is not None, "held-out batches have it"
    mask_BS, sample_ids_B = batch.loss_mask_BS, torch.from_numpy(batch.whole.sample_ids).to(batch.tokens_BS.device)

    def of_windows(output: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        loss_sum, num_targets, _ = loss_function(output)
        return loss_sum, num_targets, (sample_ids_B, (output[0].double() * mask_BS.double()).sum(dim=1))

    return output, of_windows


def summarise_probes(probes: ProbeWindows, nats: NDArray[np.float64]) -> Results:
    """The figures of each probe that has pairs, from -log P of each window."""
    bits = nats * math.log2(math.e)
    found: Results = {}
    for probe in probes.probes:
        if len(probe.true):
            is_strands = probe.name == REVERSE_COMPLEMENT
            found[probe.name] = strand_figures(probe, bits / probes.bases) if is_strands else pair_figures(probe, bits)
    return found


def pair_figures(probe: ComparedWindows, bits: NDArray[np.float64]) -> dict[str, float | int | None]:
    """share: of the pairs whose true window is likelier, half of those that are equal; 0.5 is chance. mean_bits: by how much it is.
    Of controls the same; None without any, and where a likelihood is not finite."""
    figures: dict[str, float | int | None] = {}
    for prefix, true, other in (("", probe.true, probe.other), ("control_", probe.control_true, probe.control_other)):
        more = bits[other] - bits[true]
        figures[f"{prefix}share"] = _mean((np.sign(more) + 1) / 2)
        figures[f"{prefix}mean_bits"] = _mean(more)
    return figures | {"num_pairs": len(probe.true), "num_controls": len(probe.control_true)}


def strand_figures(probe: ComparedWindows, bits_per_base: NDArray[np.float64]) -> dict[str, float | int | None]:
    """correlation (Pearson) and mean_abs_difference of the bits per base of windows and of their reverse complements, over all windows."""
    one, other = bits_per_base[probe.true], bits_per_base[probe.other]
    spreads = float(one.std() * other.std())
    together = _mean((one - one.mean()) * (other - other.mean()))
    return {
        "correlation": together / spreads if together is not None and spreads > 0 else None,
        "mean_abs_difference": _mean(np.abs(one - other)),
        "num_pairs": len(one),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None


def result_lines(results: Results) -> Iterator[str]:
    """A short table: a line for each probe."""
    width = max((len(name) for name in results), default=0)
    for name, figures in results.items():
        if name == REVERSE_COMPLEMENT:
            said = f"correlation {_shown(figures['correlation'])}, {_shown(figures['mean_abs_difference'])} bits per base apart"
        else:
            said = f"true one likelier in {_shown(figures['share'], '.1%')}, by {_shown(figures['mean_bits'], '+.3f')} bits"
            if figures["num_controls"]:
                said += f"; controls {_shown(figures['control_share'], '.1%')}, {_shown(figures['control_mean_bits'], '+.3f')} bits"
        yield f"  {name:>{width}} | {said} ({figures['num_pairs']:,} pairs)"


def _shown(value: float | int | None, form: str = ".4f") -> str:
    return "not known" if value is None else format(value, form)
