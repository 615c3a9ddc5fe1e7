"""What is done about a bad step: the batch is looked at again, its samples are named with their loci, then stop, skip or rewind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.errors import BadStepError
from dnapretrain.model.batches import BatchPlace, DeviceBatch, direct_readers, step_batches
from dnapretrain.model.loss import LossFunction, forward_step
from dnapretrain.parallel.groups import max_of_ranks, sum_over_data_parallel
from dnapretrain.train.bad_steps import joined
from dnapretrain.train.checkpoint import RunPosition, load_newest
from dnapretrain.train.metrics import RunLog, StepReport
from dnapretrain.train.retention import resumable
from dnapretrain.train.saver import CheckpointSaver

NUM_NAMED = 3
"""Samples with the highest losses that lines and errors name; the record has all."""


@dataclass
class Recovery:
    """Knows what is needed to look at a batch again and to go back to a checkpoint."""

    config: RunConfig
    chunks: list[Any]
    stream: TrainStream
    place: BatchPlace
    log: RunLog
    saver: CheckpointSaver
    forward_backward: Callable[..., Any]

    def handle(self, report: StepReport, before: RunPosition, after: RunPosition) -> RunPosition:
        """Log the bad step between two positions and do what train.on_bad_step says; where the run stands then, on every rank.

        Raises BadStepError for stop, for too many bad steps, and where the weights themselves are not finite and nothing can be loaded.
        """
        losses, loss_again = self._look_again(report, before)
        samples = self._locate(before.consumed_samples, losses)
        broken = self._weights_are_broken()
        action = self._action(before, after, broken)
        self.log.write(
            "bad_step",
            step=report.step,
            reason=report.bad_step,
            action=action,
            loss=report.loss,
            grad_norm=report.grad_norm,
            loss_again=loss_again,
            first_sample=before.consumed_samples,
            end_sample=after.consumed_samples,
            weights_finite=not broken,
            samples=samples,
        )
        what = f"bad step {report.step}: {report.bad_step}; {_named(samples)}"
        if broken:
            what += "; the weights themselves are not finite"
        elif math.isfinite(loss_again) and not math.isfinite(report.loss):
            what += f"; read again the same samples have loss {loss_again:.4f}: the data are sound, memory or a processor may have failed"
        if action == "stop":
            self._stop(what, before, after, broken)
        self.log.say(f"{what} | {'update left out' if action == 'skip' else 'going back to the newest checkpoint'}")
        return self._rewind(before, after) if action == "rewind" else after

    def _action(self, before: RunPosition, after: RunPosition, broken: bool) -> str:
        train = self.config.train
        if train.on_bad_step == "stop" or len(after.history.bad_steps) > train.max_bad_steps:
            return "stop"
        newest = self.saver.newest_step() if train.on_bad_step == "rewind" else 0
        if broken:
            return "rewind" if newest else "stop"
        # A checkpoint of just these weights, or none yet: leaving the update out is the same, or all that can be done.
        return "rewind" if newest and newest != before.step else "skip"

    def _stop(self, what: str, before: RunPosition, after: RunPosition, broken: bool) -> None:
        """Save the run as it was before the step, unless its weights are broken, and raise BadStepError."""
        train = self.config.train
        number = len(after.history.bad_steps)
        why = f"that is bad step number {number}, more than train.max_bad_steps = {train.max_bad_steps} within a short time. " * (
            number > train.max_bad_steps and train.on_bad_step != "stop"
        )
        if broken:
            raise BadStepError(f"{what}. {why}Nothing was saved. Start again from the last checkpoint, with train.on_bad_step=rewind.")
        self.saver.save(before)
        raise BadStepError(
            f"{what}. {why}The run is saved as before this step. Leave these loci out of the data, or go on with "
            "train.on_bad_step=skip or rewind, a lower optim.lr, or higher limits (train.loss_spike_sigmas, train.grad_norm_spike_factor)."
        )

    def _rewind(self, before: RunPosition, after: RunPosition) -> RunPosition:
        """Load the newest checkpoint; the run goes on with its weights, behind the samples of the bad step."""
        saver = self.saver
        candidates = resumable(self.config.train.run_dir)
        loaded, checkpoint, remarks = load_newest(
            candidates, saver.config, saver.platform, saver.chunks, saver.optimizer, saver.data_digest_at, saver.copies
        )
        if saver.copies:
            saver.copies.log_reads(self.log, loaded.step)
        for remark in remarks:
            self.log.say(remark)
        skipped = joined([*after.history.skipped_samples, (loaded.consumed_samples, after.consumed_samples)])
        history = replace(loaded.history, bad_steps=after.history.bad_steps, skipped_samples=skipped)
        self.log.write("rewind", step=after.step, checkpoint=str(checkpoint), checkpoint_step=loaded.step, skipped_samples=skipped)
        self.log.say(
            f"rewound to the weights of step {loaded.step} ({checkpoint}); samples {loaded.consumed_samples:,} to "
            f"{after.consumed_samples - 1:,} are skipped, and step {after.step + 1} follows"
        )
        position = replace(after, schedule_samples=loaded.schedule_samples, history=history)
        saver.begin(position)  # a start from before the bad step would meet it again
        return position

    @torch.no_grad()
    def _look_again(self, report: StepReport, before: RunPosition) -> tuple[np.ndarray, float]:
        """(mean loss of each sample of the step, float64 [batch size], NaN where it has no target or is not finite; loss of the batch)."""
        place, first = self.place, before.consumed_samples
        count = self.config.num_microbatches(place.data_parallel_size, report.batch_size)
        for chunk in self.chunks:
            chunk.eval()
        reports = self.forward_backward(
            forward_step_func=_sample_step,
            data_iterator=step_batches(direct_readers(self.stream, place), place, first, count),
            model=self.chunks,
            num_microbatches=count,
            seq_length=report.sequence_length,
            micro_batch_size=place.micro_batch_size,
            forward_only=True,
        )
        for chunk in self.chunks:
            chunk.train()
        sums = torch.zeros((report.batch_size, 2), dtype=torch.float64, device=place.device)
        for index, of_samples in enumerate(reports):
            sums[torch.from_numpy(place.micro_batch_ids(0, index)).to(place.device)] = of_samples
        losses, weights = sum_over_data_parallel(sums).cpu().numpy().T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weights > 0, losses / weights, np.nan), float(losses.sum() / weights.sum())

    def _locate(self, first: int, losses: np.ndarray) -> list[dict[str, Any]]:
        """The samples of the step, worst first: those without a finite loss, then by falling loss."""
        order = np.argsort(-np.where(np.isfinite(losses), losses, np.inf), kind="stable")
        return [
            {
                "sample": first + int(index),
                "loss": float(losses[index]) if np.isfinite(losses[index]) else None,
                "loci": [str(locus) for locus in self.stream.locate(first + int(index))],
            }
            for index in order
        ]

    def _weights_are_broken(self) -> bool:
        finite = all(bool(torch.isfinite(weight).all()) for chunk in self.chunks for weight in chunk.parameters())
        return bool(max_of_ranks(int(not finite)))


def _named(samples: list[dict[str, Any]]) -> str:
    """The worst samples and how many others there are."""
    named = [
        f"sample {sample['sample']} {', '.join(sample['loci'][:2])}{' ...' * (len(sample['loci']) > 2)} "
        + (f"(loss {sample['loss']:.4f})" if sample["loss"] is not None else "(no finite loss)")
        for sample in samples[:NUM_NAMED]
    ]
    rest = len(samples) - len(named)
    return "highest losses: " + "; ".join(named) + (f"; {rest} others in log.jsonl" if rest else "")


def _sample_step(batches: Iterator[DeviceBatch | None], model: Any) -> tuple[torch.Tensor, LossFunction]:
    """`forward_step` that reports loss and weight of each sample, float64 [B, 2]."""
    batch = next(batches)
    output, loss_function = forward_step(iter((batch,)), model)
    return output, loss_function if batch is None else partial(_sample_sums, batch.loss_mask_BS, loss_function)


def _sample_sums(loss_mask_BS: torch.Tensor, loss_function: LossFunction, output: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss_sum, num_targets, _ = loss_function(output)
    losses_BS = output[0].float() * loss_mask_BS
    return loss_sum, num_targets, torch.stack([losses_BS.double().sum(dim=1), loss_mask_BS.double().sum(dim=1)], dim=1)
