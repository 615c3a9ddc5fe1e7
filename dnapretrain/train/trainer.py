"""The training loop. `train_step` reads in the order it runs; `fit` is a while loop with plain ifs after the step."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.sampling.probe_windows import ProbeWindows
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.evaluate.heldout import EvaluationStoppedError, HeldOutLoss, held_out_loss
from dnapretrain.evaluate.probes import probe_results
from dnapretrain.model.batches import BatchPlace, DeviceBatch, direct_readers, step_batches
from dnapretrain.model.counts import flops_per_token
from dnapretrain.model.loss import NUM_TOTALS, forward_step
from dnapretrain.model.prefetch import Prefetch
from dnapretrain.parallel.groups import max_of_ranks, seed_dropout, sum_over_data_parallel
from dnapretrain.train.bad_steps import Bad, StepHistory, after_bad_step, after_good_step, describe, judge, spike_limits
from dnapretrain.train.checkpoint import RunPosition
from dnapretrain.train.metrics import RunLog, StepReport, bits_per_base
from dnapretrain.train.recovery import Recovery
from dnapretrain.train.replicas import check_replicas
from dnapretrain.train.saver import CheckpointSaver
from dnapretrain.train.startup import StartUp
from dnapretrain.train.step_kernels import StepKernels
from dnapretrain.train.stopping import StopRequest
from dnapretrain.train.stragglers import StepTimer
from dnapretrain.train.watch import Watch


@dataclass
class Trainer:
    """A run in progress on this rank: the model chunks, what updates them, and where the run stands."""

    config: RunConfig
    chunks: list[Any]
    optimizer: Any
    schedule: OptimizerParamScheduler
    stream: TrainStream
    held_out: dict[str, SampleStream]
    probes: ProbeWindows | None
    place: BatchPlace
    vocab_size: int
    bases_per_token: int
    peak_tflops: float | None
    """Of one rank, for MFU."""
    log: RunLog
    saver: CheckpointSaver
    stop: StopRequest
    watch: Watch
    position: RunPosition
    start_up: StartUp | None = None
    """Until it is logged, after the first step."""

    def __post_init__(self) -> None:
        self._stand_at(self.position)
        self.forward_backward = get_forward_backward_func()
        self.timer = StepTimer(self.place.device.type == "cuda")
        self.kernels = StepKernels(self.config, self.chunks, self.optimizer, self.place.data_parallel_size, self._rest)
        self.recovery = Recovery(self.config, self.chunks, self.stream, self.place, self.log, self.saver, self.forward_backward)
        train = self.config.train
        self._end_sample = self.config.samples_after(min(train.train_steps, train.stop_at_step or train.train_steps))
        reads = direct_readers(self.stream, self.place)
        self.prefetch = [Prefetch(read, self.place.device, self._micro_batches) if read else None for read in reads]
        self._stage_ends = [stage.until_samples or 0 for stage in self.config.data_by_samples().stages[:-1]]
        megatron = self.chunks[0].config
        megatron.finalize_model_grads_func = self._reduce_gradients
        if self.config.parallel.overlap_grad_reduce:
            hooks = [chunk.no_sync for chunk in self.chunks]
            megatron.no_sync_func = hooks if len(hooks) > 1 else hooks[0]

    def train_step(self, batches: list[Iterator[DeviceBatch | None]]) -> StepReport:
        """One optimizer step on one global batch (one iterator per model chunk over this rank's micro-batches)."""
        started = time.perf_counter()
        self.timer.begin_step()
        self.watch.enter("forward-backward", self.position.step + 1)
        batch_size = self.config.global_batch_size(self.position.consumed_samples)
        sequence_length = self.stream.length_at(self.position.consumed_samples)
        if self.config.model.has_dropout:
            seed_dropout(self.config.train.seed, self.position.step)
        self.kernels.begin_step()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

        reports = self.forward_backward(
            forward_step_func=forward_step,
            data_iterator=batches,
            model=self.chunks,
            num_microbatches=self.config.num_microbatches(self.place.data_parallel_size, batch_size),
            seq_length=sequence_length,
            micro_batch_size=self.config.train.micro_batch_size,
            forward_only=False,
        )

        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        loss_sum, weight_sum, num_targets, correct_sum, num_tokens, *_ = self._sums(reports)
        loss = loss_sum / max(weight_sum, 1e-30)
        bad_step, history = self._judge(loss, grad_norm, batch_size)
        updated = not bad_step and grad_norm > 0  # 0: no base of the batch had a weight
        lr = self.schedule.get_lr(self.optimizer.param_groups[0])
        self.watch.enter("update")
        if updated:
            self._clip(grad_norm)
            self.optimizer.step_with_ready_grads()
            self.schedule.step(batch_size)

        self.timer.end_step()
        self.position = RunPosition(
            step=self.position.step + 1,
            consumed_samples=self.position.consumed_samples + batch_size,
            consumed_tokens=self.position.consumed_tokens + int(num_tokens),
            schedule_samples=self.schedule.num_steps,
            history=history,
        )
        return StepReport(
            step=self.position.step,
            loss=loss,
            bits_per_base=bits_per_base(loss, self.config.bases_per_loss),
            accuracy=correct_sum / max(weight_sum, 1e-30),
            grad_norm=grad_norm,
            lr=lr,
            num_targets=int(num_targets),
            num_tokens=int(num_tokens),
            batch_size=batch_size,
            sequence_length=sequence_length,
            updated=updated,
            bad_step=bad_step,
            seconds=time.perf_counter() - started,
        )

    def next_batches(self) -> list[Iterator[DeviceBatch | None]]:
        """This rank's part of the global batch that the run's position asks for, one iterator per model chunk."""
        consumed = self.position.consumed_samples
        count = self.config.num_microbatches(self.place.data_parallel_size, self.config.global_batch_size(consumed))
        return step_batches([prefetch.take if prefetch else None for prefetch in self.prefetch], self.place, consumed, count)

    def fit(self) -> None:
        """Train to `train.train_steps` (or `train.stop_at_step`, or until asked to stop), logging, evaluating and saving on the way."""
        train, log = self.config.train, self.config.log
        last_step = min(train.train_steps, train.stop_at_step or train.train_steps)
        if self.position.step >= last_step:
            self._nothing_to_do(last_step)
        if self.start_up:
            self.start_up.end_of("run folder")
        while self.position.step < last_step and not self.stop.agreed():
            before = self.position
            report = self.train_step(self.next_batches())
            step = report.step
            if self.start_up:
                self.start_up.end_of("first step")
                self.start_up.log(self.log, step)
                self.start_up = None
            self.watch.enter("after the step")
            show = step % log.log_interval == 0 or step in (1, last_step) or not report.updated
            slow = self._straggler(step) if step % log.log_interval == 0 else ""
            self.log.step(report, self.position.consumed_samples, self._rates(report), show, train.train_steps, slow)
            if attention := self.kernels.attention():
                self.log.write("attention", step=step, kernels=attention)
                self.log.say(attention)
            if report.bad_step:
                self._stand_at(self.recovery.handle(report, before, self.position))
            interval = train.check_weight_hash_across_dp_replicas_interval
            if interval and step % interval == 0:
                check_replicas(self.chunks, step, self.config.parallel.overlap_param_gather)
            self.watch.enter("saving")
            self.saver.advance()
            if self.saver.due(step) or step == last_step:
                self.saver.begin(self.position)
            if (train.eval_interval and step % train.eval_interval == 0) or step == train.train_steps:
                self.watch.enter("evaluation")
                self.evaluate()
        self.watch.enter("saving")
        self.saver.save(self.position)
        self.saver.finish(completed=self.position.step == train.train_steps)
        bases, samples = self.stream.cut()
        if bases:  # only where tokens stand for different numbers of bases
            self.log.write("cut", step=self.position.step, bases=bases, samples=samples)
            self.log.say(f"{bases:,} bases of {samples:,} samples on this rank did not fit their tokens (lower tokenizer.k or data.stride)")
        if self.stop.reason:
            self.log.write("stop", step=self.position.step, reason=self.stop.reason)
            self.log.say(f"stopped after step {self.position.step} by {self.stop.reason}; the same command goes on from there")
        self.watch.enter("end")

    def _micro_batches(self, first_sample: int) -> tuple[int, int]:
        """The plan of `Prefetch`, to the end of the run."""
        if first_sample >= self._end_sample:
            return 0, first_sample
        batch_size = self.config.global_batch_size(first_sample)
        return self.config.num_microbatches(self.place.data_parallel_size, batch_size), first_sample + batch_size

    def _rest(self) -> None:
        for prefetch in self.prefetch:
            if prefetch:
                prefetch.rest()

    def _waited(self) -> float:
        """Seconds of the last step in which this rank waited for its batches."""
        waiting = [prefetch for prefetch in self.prefetch if prefetch]
        seconds = sum(prefetch.seconds_waited for prefetch in waiting)
        for prefetch in waiting:
            prefetch.seconds_waited = 0.0
        return seconds

    def close(self) -> None:
        """End the threads that read ahead."""
        for prefetch in self.prefetch:
            if prefetch:
                prefetch.stop()

    def save(self, position: RunPosition) -> None:
        """Save this state and wait for it."""
        self.saver.save(position)

    def evaluate(self) -> dict[str, HeldOutLoss]:
        """Loss on every held-out set, logged: on train.eval_samples of each on the way, on all at the end; fewer sets if stopped."""
        train, step = self.config.train, self.position.step
        max_samples = None if step == train.train_steps else train.eval_samples
        results: dict[str, HeldOutLoss] = {}
        for name, stream in self.held_out.items():
            started = time.perf_counter()
            try:
                result = held_out_loss(
                    self.chunks,
                    stream,
                    self.place,
                    self.config.data.sequence_length,
                    train.loss,
                    max_samples,
                    should_stop=lambda: bool(self.stop.agreed()),
                )
            except EvaluationStoppedError:
                self.log.say(f"evaluation at step {step} broken off")
                return results
            seconds = time.perf_counter() - started
            results[name] = result
            self.saver.note_loss(name, step, result.loss)
            self.log.evaluation(name, step, self.position.consumed_tokens, result.__dict__, seconds)
        self._probe(self.probes)
        return results

    def _probe(self, probes: ProbeWindows | None) -> None:
        if probes is None:
            return
        started = time.perf_counter()
        length, loss = self.config.data.sequence_length, self.config.train.loss
        try:
            results = probe_results(self.chunks, probes, self.place, length, loss, should_stop=lambda: bool(self.stop.agreed()))
        except EvaluationStoppedError:
            self.log.say(f"probes at step {self.position.step} broken off")
            return
        seconds = time.perf_counter() - started
        self.log.probes(self.position.step, self.position.consumed_tokens, results, probes.num_samples, probes.num_tokens, seconds)

    def _nothing_to_do(self, last_step: int) -> None:
        self.log.say(f"nothing to do: step {self.position.step} of {last_step} is reached (train.train_steps, train.stop_at_step)")
        if self.position.step == self.config.train.train_steps and self.held_out and not self.saver.was_evaluated(self.position.step):
            self.evaluate()  # a stop has broken off the one at the end

    def _stand_at(self, position: RunPosition) -> None:
        """Go on from `position`: the schedule stands where the samples that updated the weights have brought it."""
        self.position = position
        self.schedule.num_steps = 0
        self.schedule.step(position.schedule_samples)

    def _reduce_gradients(self, *arguments: Any, **options: Any) -> None:
        self.timer.ready_to_reduce()
        self.watch.enter("gradient reduction")
        finalize_model_grads(*arguments, **options)
        self.kernels.passes_done()

    def _sums(self, reports: list[torch.Tensor]) -> list[float]:
        """The NUM_TOTALS sums of the global batch, on every rank."""
        totals = torch.zeros(NUM_TOTALS, dtype=torch.float64, device=self.place.device)
        for report in reports:
            totals += report
        sums: list[float] = sum_over_data_parallel(totals).tolist()
        return sums

    def _judge(self, loss: float, grad_norm: float, batch_size: int) -> tuple[str, StepHistory]:
        """(why the step is bad or '', the history with it), decided by all ranks together."""
        train, position = self.config.train, self.position
        stage = bisect.bisect_right(self._stage_ends, position.consumed_samples)
        limits = spike_limits(train, position.history, stage)
        bad = Bad(max_of_ranks(judge(limits, loss, grad_norm)))
        if not bad:
            learned = grad_norm > 0
            return "", after_good_step(train, position.history, stage, loss, grad_norm) if learned else position.history
        span = max(train.spike_window, self.config.checkpoint.save_interval if train.on_bad_step == "rewind" else 0)
        samples = (position.consumed_samples, position.consumed_samples + batch_size)
        return describe(bad, limits, loss, grad_norm), after_bad_step(position.history, position.step + 1, samples, span)

    def _straggler(self, step: int) -> str:
        """The slowest rank of the last steps in words, where it is slow; '' where none is."""
        factor = self.config.log.straggler_factor
        slow = self.timer.slowest(factor) if factor else None
        if slow is None:
            return ""
        self.log.write("straggler", step=step, **asdict(slow))
        return f" | SLOW: rank {slow.rank} on {slow.host}, {slow.seconds * 1e3:,.0f} ms alone, median {slow.median_seconds * 1e3:,.0f}"

    def _clip(self, grad_norm: float) -> None:
        if self.config.optim.clip_grad > 0:
            for part in self.optimizer.chained_optimizers:
                if parameters := part.get_parameters():
                    clip_grad_by_total_norm_fp32(parameters, self.config.optim.clip_grad, grad_norm)

    def _rates(self, report: StepReport) -> dict[str, Any]:
        tokens = report.batch_size * report.sequence_length
        flops = tokens * flops_per_token(self.config.model, report.sequence_length, self.vocab_size)
        ranks = self.place.data_parallel_size * self.config.parallel.model_parallel_size
        tflops = flops / report.seconds / ranks / 1e12
        return {
            "consumed_tokens": self.position.consumed_tokens,
            "consumed_bases": self.position.consumed_tokens * self.bases_per_token,
            "tokens_per_second": tokens / report.seconds,
            "data_wait": self._waited() / report.seconds,
            "tflops": tflops,
            "mfu": tflops / self.peak_tflops if self.peak_tflops else None,
        }
