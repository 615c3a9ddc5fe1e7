"""A run on this rank, from the resolved config to the last checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state

from dnapretrain.config import ParallelConfig, RunConfig
from dnapretrain.config_file import dump_config
from dnapretrain.config_rules import check_world
from dnapretrain.convert.native import find_checkpoint, read_config
from dnapretrain.data.sampling.lengths import length_stages
from dnapretrain.data.sampling.run_data import RunData, open_data
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.evaluate.heldout import HeldOutLoss, held_out_loss
from dnapretrain.model.batches import BatchPlace, padding_mask
from dnapretrain.model.build import build_chunks, wrap_for_precision, wrap_for_training
from dnapretrain.model.counts import FLOPS_FORMULA, stored_parameters
from dnapretrain.model.paths import active_paths
from dnapretrain.parallel import platform as platforms
from dnapretrain.parallel.determinism import determinism, make_deterministic
from dnapretrain.parallel.groups import main_rank_does, one_error_for_a_lost_rank, problems_of_ranks, start_groups, stop_groups
from dnapretrain.parallel.platform import Platform
from dnapretrain.parallel.signals import StopSignals
from dnapretrain.train.checkpoint import RunPosition, load_newest, load_weights
from dnapretrain.train.continued import start_from
from dnapretrain.train.metrics import RunLog, peak_of_rank
from dnapretrain.train.optimizer import build_optimizer, build_schedule
from dnapretrain.train.retention import resumable
from dnapretrain.train.run_lock import RunLock
from dnapretrain.train.saver import CheckpointSaver
from dnapretrain.train.stopping import StopRequest
from dnapretrain.train.trackers import check_trackers
from dnapretrain.train.trainer import Trainer
from dnapretrain.train.watch import Watch


def pretrain(config: RunConfig, signals: StopSignals | None = None) -> Trainer:
    """Train on the ranks this process was launched among; resumes when the run folder has a checkpoint.

    `signals`, watched by the caller, stop the run after a step with a checkpoint: then `stop.reason` of the trainer says so.
    """
    started = time.monotonic()
    if config.train.deterministic:
        make_deterministic(platforms.choose_device(config.train.device) == "cuda")
    platform = platforms.start(config.train.device)
    check_world(config, platform.world_size)
    check_trackers(config.log)
    data = open_data(config)
    lock = RunLock(config.train.run_dir)
    try:
        with one_error_for_a_lost_rank():
            start_groups(platform, config.parallel, config.train.seed)
            remark = _take(lock, platform)
            trainer = build_trainer(config, platform, data, signals, started, remark)
            trainer.watch.start()
            try:
                with trainer.watch.names_timeouts(config.parallel.distributed_timeout_minutes):
                    trainer.fit()
                trainer.log.close()
            finally:
                trainer.watch.stop()
                trainer.saver.stop()
    finally:
        lock.release()
        stop_groups()
    return trainer


def build_trainer(
    config: RunConfig,
    platform: Platform,
    data: RunData,
    signals: StopSignals | None = None,
    started: float | None = None,
    remark: str = "",
) -> Trainer:
    """The trainer of this rank, resumed or begun, with everything it will use logged once. Process groups must be up.

    `started`, on time.monotonic's clock, is where train.exit_duration counts from; `remark` is said at the start.
    """
    run_dir = config.train.run_dir
    candidates = resumable(run_dir)
    if candidates and not config.checkpoint.resume:
        raise CheckpointError(f"checkpoint.resume=false, but {run_dir} has checkpoints. Give another train.run_dir, or move them away.")

    chunks = build_chunks(config, data.tokenizer, platform)
    wrapped = wrap_for_training(chunks, config.parallel, config.train.precision)
    optimizer = build_optimizer(config, wrapped)
    schedule = build_schedule(config, optimizer)
    started_from = []
    if not candidates and config.checkpoint.load:
        started_from = start_from(find_checkpoint(config.checkpoint.load), config, data.tokenizer, platform, wrapped, optimizer)

    # Nothing is written before the checkpoint is read: a run that is refused leaves the folder as it was.
    position, resume_from, remarks = RunPosition(), None, [remark] if remark else []
    if candidates:
        position, resume_from, warnings = load_newest(candidates, config, platform, wrapped, optimizer, data.train.digest_at)
        remarks += warnings
    main_rank_does(lambda: _save_config(config), ConfigError, f"cannot write to train.run_dir = {run_dir}")
    log = RunLog(run_dir, platform.is_main, config.is_masked, config.log)
    best_set = "valid" if "valid" in data.held_out else next(iter(data.held_out), "")
    saver = CheckpointSaver(config, platform, wrapped, optimizer, data.tokenizer.to_dict(), data.train.digest_at, log, best_set, position)
    saver.check_target(stored_parameters(config, data.tokenizer.vocab_size, data.tokenizer.pad_id))

    trainer = Trainer(
        config=config,
        chunks=wrapped,
        optimizer=optimizer,
        schedule=schedule,
        stream=data.train,
        held_out=data.held_out,
        place=batch_place(config, platform, data.tokenizer.pad_id),
        vocab_size=data.tokenizer.vocab_size,
        bases_per_token=data.tokenizer.bases_per_token,
        peak_tflops=peak_of_rank(config.log, platform.name)[0],
        log=log,
        saver=saver,
        stop=StopRequest(config.train, platform.is_main, signals or StopSignals(), time.monotonic() if started is None else started),
        watch=Watch(run_dir, platform.rank, platform.world_size, config.log.heartbeat_seconds, config.log.hang_seconds),
        position=position,
    )
    if trainer.stop.forget_old_file():
        remarks.append(f"an old file {trainer.stop.file} was removed: it would have stopped this start at once")
    _log_start(trainer, config, platform, data, resume_from, started_from, remarks)
    return trainer


def evaluate(config: RunConfig, checkpoint: Path, names: tuple[str, ...] = (), max_samples: int | None = None) -> dict[str, HeldOutLoss]:
    """Loss of a checkpoint on its held-out sets (all, or those named), under the layout of `config`; on `max_samples` samples of each."""
    platform = platforms.start(config.train.device)
    check_world(config, platform.world_size)
    data = open_data(config)
    unknown = [name for name in names if name not in data.held_out]
    if unknown or not data.held_out:
        known = ", ".join(data.held_out) or "none: set data.split or data.valid"
        raise ConfigError(f"no held-out set '{unknown[0] if unknown else 'valid'}'. Known sets: {known}.")
    start_groups(platform, config.parallel, config.train.seed)
    try:
        chunks = build_chunks(config, data.tokenizer, platform, initialize_weights=False)
        load_weights(checkpoint, config, platform, chunks)
        return {
            name: held_out_loss(
                wrap_for_precision(chunks, config.train.precision),
                data.held_out[name],
                batch_place(config, platform, data.tokenizer.pad_id),
                config.data.sequence_length,
                config.train.loss,
                max_samples,
            )
            for name in names or tuple(data.held_out)
        }
    finally:
        stop_groups()


def native_logits(checkpoint: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, S, vocabulary] of a checkpoint for tokens int64 [B, S]: Megatron's model in fp32 on one rank, this process."""
    config = read_config(checkpoint)
    one_rank = config.model_copy(
        update={"parallel": ParallelConfig(), "train": config.train.model_copy(update={"precision": "fp32", "recompute": "none"})}
    )
    platform = platforms.start(config.train.device)
    tokenizer = build_tokenizer(config.tokenizer)
    start_groups(platform, one_rank.parallel, config.train.seed)
    try:
        chunks = build_chunks(one_rank, tokenizer, platform, initialize_weights=False)
        load_weights(checkpoint, config, platform, chunks)
        tokens_BS = torch.from_numpy(tokens).to(platform.device)
        positions_BS = torch.arange(tokens.shape[1], device=platform.device).expand_as(tokens_BS)
        with torch.no_grad():
            mask = padding_mask(tokens, tokenizer.pad_id, platform.device) if config.is_masked else None
            logits = chunks[0].eval()(tokens_BS, positions_BS, mask)
        return logits[..., : tokenizer.vocab_size].float().cpu().numpy()
    finally:
        stop_groups()


def batch_place(config: RunConfig, platform: Platform, pad_id: int) -> BatchPlace:
    """This rank's part of each global batch under the running layout."""
    virtual = config.parallel.virtual_pipeline_model_parallel_size
    stages: list[int | None] = list(range(virtual)) if virtual else [None]
    reads = tuple(
        config.is_masked
        or config.data.document_attention
        or parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage)
        or parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
        for stage in stages
    )
    return BatchPlace(
        micro_batch_size=config.train.micro_batch_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        device=platform.device,
        chunk_reads=reads,
        pad_id=pad_id,
        bidirectional=config.is_masked,
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
    )


def _take(lock: RunLock, platform: Platform) -> str:
    """Take the run folder's lock on the main rank; every rank raises ConfigError if another run has it."""
    remark, problem = "", ""
    if platform.is_main:
        try:
            remark = lock.take()
        except ConfigError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write to train.run_dir = {lock.path.parent}: {error}. Check the path, its permissions and the free space."
    if problems := problems_of_ranks(problem):
        raise ConfigError(problems[0])
    return remark


def _save_config(config: RunConfig) -> None:
    config.train.run_dir.mkdir(parents=True, exist_ok=True)
    (config.train.run_dir / "run.yaml").write_text(dump_config(config))


def _log_start(
    trainer: Trainer,
    config: RunConfig,
    platform: Platform,
    data: RunData,
    resume_from: Path | None,
    started_from: list[str],
    remarks: list[str],
) -> None:
    paths = active_paths(config.model, config.train.precision, platform, config.data.document_attention)
    part = trainer.optimizer.chained_optimizers[0]
    inner = type(part.optimizer)
    paths["optimizer"] = f"{type(part).__name__} over {inner.__module__}.{inner.__name__}"
    paths["determinism"] = determinism(config.train.deterministic, platform.is_cuda)
    parallel, log = config.parallel, trainer.log
    tp, pp, dp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, trainer.place.data_parallel_size
    log.write(
        "start",
        step=trainer.position.step,
        config=json.loads(config.model_dump_json()),
        paths=paths,
        data=data.train.report(),
        data_digest=data.train.digest,
        regions=_region_files(data),
        flops_formula=FLOPS_FORMULA,
        peak=peak_of_rank(config.log, platform.name)[1],
        resumed_from=str(resume_from) if resume_from else None,
        started_from=started_from,
        remarks=remarks,
    )
    for remark in remarks:
        log.say(remark)
    for name, value in paths.items():
        log.say(f"{name:>14}: {value}")
    log.say(
        f"{'layout':>14}: {platform.world_size} rank(s) = tensor {tp} x pipeline {pp} x data {dp}, "
        f"{config.num_microbatches(dp)} micro-batches per step"
    )
    if config.train.rampup_batch_size:
        start, increment, samples = config.train.rampup_batch_size
        log.say(
            f"{'batch size':>14}: {start} samples, {increment} more at a time, {config.train.global_batch_size} from sample {samples:,} on"
        )
    for line in _length_lines(config):
        log.say(f"{'length':>14}: {line}")
    for line in _data_lines(data):
        log.say(f"{'data':>14}: {line}")
    for file in _region_files(data):
        left_out = f", {len(file['names_left_out'])} left out: no such contig" if file["names_left_out"] else ""
        log.say(f"{'regions':>14}: {file['name']}: {file['path']}, {file['names']} contigs{left_out}")
    log.say(f"{'data digest':>14}: {data.train.digest}")
    log.say(f"{'TFLOP/s':>14}: {FLOPS_FORMULA}")
    log.say(f"{'peak':>14}: {peak_of_rank(config.log, platform.name)[1]}")
    if limits := trainer.stop.limits():
        log.say(f"{'time':>14}: {limits}")
    log.say(
        f"{'start':>14}: "
        + (f"resumed from {resume_from}" if resume_from else f"new run{', ' if started_from else ''}{'; '.join(started_from)}")
    )


def _length_lines(config: RunConfig) -> list[str]:
    """Where each length of samples begins; nothing where all have one."""
    stages = length_stages(config.data_by_samples())
    return [
        f"{stage.length:,} tokens per sample from sample {stage.start:,} (step {config.steps_before(stage.start)[0] + 1:,}) on"
        for stage in stages
        if len(stages) > 1
    ]


def _region_files(data: RunData) -> list[dict[str, Any]]:
    """Of each file of data.regions, what was found of it; the same for all held-out sets."""
    return next((stream.regions.report for stream in data.held_out.values() if stream.regions), [])


def _data_lines(data: RunData) -> list[str]:
    """What is trained on and what is left out, in bases, one line per set."""
    lines = []
    for whole in (data.train.report(), *(stream.report() for stream in data.held_out.values())):
        for report in whole.get("lengths", [whole]):
            left_out = ", ".join(f"{count:,} {reason}" for reason, count in report["bases_left_out"].items() if count) or "nothing"
            length = f" at {report['sequence_length']:,} tokens" if "lengths" in whole else ""
            lines.append(
                f"{report['name']}{length}: {report['samples']:,} samples of {report['bases_used']:,} bases, "
                f"{report['bases_other_sides']:,} on other sides of the split, left out: {left_out}"
            )
    return lines
