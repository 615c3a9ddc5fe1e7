"""A run on this rank, from the resolved config to the last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state

from dnapretrain.config import ParallelConfig, RunConfig
from dnapretrain.config_file import dump_config
from dnapretrain.config_rules import check_world
from dnapretrain.convert.native import CONFIG_FILE, find_checkpoint, read_config
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.sampling.run_data import RunData, open_data
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError
from dnapretrain.evaluate.heldout import HeldOutLoss, held_out_loss
from dnapretrain.evaluate.probes import Results as ProbeResults
from dnapretrain.evaluate.probes import probe_results
from dnapretrain.model.batches import BatchPlace, padding_mask
from dnapretrain.model.build import build_chunks, wrap_for_precision, wrap_for_training
from dnapretrain.model.counts import checkpoint_bytes
from dnapretrain.model.kernels import forgotten_scales
from dnapretrain.model.paths import use_flex_attention
from dnapretrain.parallel import platform as platforms
from dnapretrain.parallel.determinism import make_deterministic
from dnapretrain.parallel.groups import main_rank_does, one_error_for_a_lost_rank, problems_of_ranks, start_groups, stop_groups
from dnapretrain.parallel.platform import Platform
from dnapretrain.parallel.signals import StopSignals
from dnapretrain.train.checkpoint import RunPosition, load_newest, load_weights
from dnapretrain.train.continued import start_from
from dnapretrain.train.fp8_scales import has_scales
from dnapretrain.train.metrics import RunLog, peak_of_rank
from dnapretrain.train.node_copies import open_copies
from dnapretrain.train.optimizer import build_optimizer, build_schedule
from dnapretrain.train.retention import latest_problem, resumable
from dnapretrain.train.run_lock import RunLock
from dnapretrain.train.run_log import log_start
from dnapretrain.train.saver import CheckpointSaver
from dnapretrain.train.startup import StartUp
from dnapretrain.train.stopping import StopRequest
from dnapretrain.train.trackers import check_trackers
from dnapretrain.train.trainer import Trainer
from dnapretrain.train.watch import Watch


def pretrain(config: RunConfig, signals: StopSignals | None = None) -> Trainer:
    """Train on the ranks this process was launched among; resumes when the run folder has a checkpoint.

    `signals`, watched by the caller, stop the run after a step with a checkpoint: then `stop.reason` of the trainer says so.
    """
    started, start_up = time.monotonic(), StartUp()
    if config.train.deterministic:
        make_deterministic(platforms.choose_device(config.train.device) == "cuda")
    platform = platforms.start(config.train.device)
    check_world(config, platform.world_size)
    check_trackers(config.log)
    start_up.end_of("device")
    data = open_data(config, probes=True)
    start_up.end_of("data")
    lock = RunLock(config.train.run_dir)
    try:
        with one_error_for_a_lost_rank():
            start_groups(platform, config.parallel, config.train.seed, cuda_graphs=config.train.cuda_graph_impl != "none")
            start_up.end_of("groups")
            remark = _take(lock, platform)
            trainer = build_trainer(config, platform, data, signals, started, remark, start_up)
            trainer.watch.start()
            try:
                with trainer.watch.names_timeouts(config.parallel.distributed_timeout_minutes):
                    trainer.fit()
                trainer.log.close()
            finally:
                trainer.watch.stop()
                trainer.close()
                trainer.saver.stop()
                trainer.kernels.end()
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
    start_up: StartUp | None = None,
) -> Trainer:
    """The trainer of this rank, resumed or begun, with everything it will use logged once. Process groups must be up.

    `started`, on time.monotonic's clock, is where train.exit_duration counts from; `remark` is said at the start. `start_up` is logged
    after the first step.
    """
    run_dir = config.train.run_dir
    start_up = start_up or StartUp()
    candidates = resumable(run_dir)
    if candidates and not config.checkpoint.resume:
        raise CheckpointError(f"checkpoint.resume=false, but {run_dir} has checkpoints. Give another train.run_dir, or move them away.")

    start_up.end_of("run folder")
    chunks = build_chunks(config, data.tokenizer, platform)
    wrapped = wrap_for_training(chunks, config.parallel, config.train.precision)
    start_up.end_of("model")
    optimizer = build_optimizer(config, wrapped)
    schedule = build_schedule(config, optimizer)
    start_up.end_of("optimizer")
    started_from = []
    if not candidates and config.checkpoint.load:
        started_from = start_from(find_checkpoint(config.checkpoint.load), config, data.tokenizer, platform, wrapped, optimizer)

    # Nothing is written before the checkpoint is read: a run that is refused leaves the folder as it was.
    position, resume_from = RunPosition(), None
    copies = open_copies(config, platform)
    remarks = [said for said in (remark, latest_problem(run_dir), *(copies.remarks if copies else ())) if said]
    if candidates:
        position, resume_from, warnings = load_newest(candidates, config, platform, wrapped, optimizer, data.train.digest_at, copies)
        remarks += warnings + forgotten_scales(config.train, has_scales(chunks))
    start_up.end_of("checkpoint")
    main_rank_does(lambda: _save_config(config), ConfigError, f"cannot write to train.run_dir = {run_dir}")
    log = RunLog(run_dir, platform.is_main, config.is_masked, config.log)
    best_set = "valid" if "valid" in data.held_out else next(iter(data.held_out), "")
    saver = CheckpointSaver(
        config, platform, wrapped, optimizer, data.tokenizer.to_dict(), data.train.digest_at, log, best_set, position, copies
    )
    saver.check_target(checkpoint_bytes(config, data.tokenizer.vocab_size, data.tokenizer.pad_id))

    trainer = Trainer(
        config=config,
        chunks=wrapped,
        optimizer=optimizer,
        schedule=schedule,
        stream=data.train,
        held_out=data.held_out,
        probes=data.probes,
        place=batch_place(config, platform, data.tokenizer.pad_id),
        vocab_size=data.tokenizer.vocab_size,
        bases_per_token=data.tokenizer.bases_per_token,
        peak_tflops=peak_of_rank(config, platform.name)[0],
        log=log,
        saver=saver,
        stop=StopRequest(config.train, platform.is_main, signals or StopSignals(), time.monotonic() if started is None else started),
        watch=Watch(run_dir, platform.rank, platform.world_size, config.log.heartbeat_seconds, config.log.hang_seconds),
        position=position,
        start_up=start_up,
    )
    if trainer.stop.forget_old_file():
        remarks.append(f"an old file {trainer.stop.file} was removed: it would have stopped this start at once")
    log_start(trainer, config, platform, data, resume_from, started_from, remarks)
    if copies:
        copies.log_reads(log, position.step)
        if copies.rewrite:
            saver.begin(position)
    return trainer


def evaluate(
    config: RunConfig, checkpoint: Path, names: tuple[str, ...] = (), max_samples: int | None = None, probes: bool = False
) -> tuple[dict[str, HeldOutLoss], ProbeResults]:
    """Loss of a checkpoint on its held-out sets (all, or those named), under the layout of `config`; on `max_samples` samples of each.

    With `probes` what data.probes asks, too; else nothing.
    """
    platform = platforms.start(config.train.device)
    check_world(config, platform.world_size)
    data = open_data(config, probes)
    held_out = data.held_out_sets(names)
    start_groups(platform, config.parallel, config.train.seed)
    try:
        chunks = build_chunks(config, data.tokenizer, platform, initialize_weights=False)
        load_weights(checkpoint, config, platform, chunks)
        wrapped = wrap_for_precision(chunks, config.train.precision)
        place = batch_place(config, platform, data.tokenizer.pad_id)
        length, loss = config.data.sequence_length, config.train.loss
        losses = {name: held_out_loss(wrapped, stream, place, length, loss, max_samples) for name, stream in held_out.items()}
        return losses, probe_results(wrapped, data.probes, place, length, loss) if data.probes else {}
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
        documents_by_number=use_flex_attention(config, platform),
        context_parallel_rank=parallel_state.get_context_parallel_rank(),
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
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
    write_whole(config.train.run_dir / CONFIG_FILE, dump_config(config))  # what the last start wrote survives a full disk
