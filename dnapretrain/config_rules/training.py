"""Rules between batches, schedule, checkpoints and what watches a run."""

from __future__ import annotations

from dnapretrain.config import RunConfig
from dnapretrain.config_rules.shared import divides
from dnapretrain.errors import ConfigError


def check_training(config: RunConfig) -> None:
    """Raise ConfigError for steps, schedules and saves that do not fit each other."""
    train = config.train
    divides("train.global_batch_size", train.global_batch_size, "train.micro_batch_size", train.micro_batch_size, "Change one of the two.")
    _check_schedule(config)
    _check_rampup(config)
    _check_keeping(config)
    _check_watching(config)


def _check_schedule(config: RunConfig) -> None:
    if config.optim.min_lr > config.optim.lr:
        raise ConfigError(f"optim.min_lr = {config.optim.min_lr} exceeds optim.lr = {config.optim.lr}. Lower it.")
    if config.optim.lr_warmup_steps >= config.lr_decay_steps:
        raise ConfigError(
            f"optim.lr_warmup_steps = {config.optim.lr_warmup_steps} leaves nothing of the {config.lr_decay_steps} decay steps. Lower it."
        )
    if config.optim.lr_wsd_decay_steps and config.optim.lr_decay_style != "WSD":
        raise ConfigError(f"optim.lr_wsd_decay_steps is for optim.lr_decay_style=WSD, not {config.optim.lr_decay_style}. Remove it.")
    if (config.optim.lr_wsd_decay_steps or 0) > config.lr_decay_steps:
        raise ConfigError(
            f"optim.lr_wsd_decay_steps = {config.optim.lr_wsd_decay_steps} exceeds the {config.lr_decay_steps} decay steps. Lower it."
        )


def _check_rampup(config: RunConfig) -> None:
    if config.train.rampup_batch_size is None:
        return
    start, increment, samples = config.train.rampup_batch_size
    full = config.train.global_batch_size
    if not (0 < start < full and increment > 0 and samples > 0):
        raise ConfigError(
            f"train.rampup_batch_size = {[start, increment, samples]}: [start, increment, samples] must be positive and start below "
            f"train.global_batch_size = {full}."
        )
    divides(f"train.global_batch_size - start = {full} - {start}", full - start, "increment", increment, "Change train.rampup_batch_size.")
    for name, size in (("start", start), ("increment", increment)):
        micro = config.train.micro_batch_size
        divides(f"train.rampup_batch_size {name}", size, "train.micro_batch_size", micro, "Change one of the two.")


def _check_keeping(config: RunConfig) -> None:
    keep, train = config.checkpoint, config.train
    for name in ("keep_every", "keep_best"):
        if getattr(keep, name) and not keep.keep_last:
            raise ConfigError(
                f"checkpoint.{name} = {getattr(keep, name)} says what is kept beside checkpoint.keep_last, which keeps all. Set it."
            )
    if keep.keep_every and keep.save_interval and keep.keep_every % keep.save_interval:
        raise ConfigError(
            f"checkpoint.keep_every = {keep.keep_every} is no multiple of checkpoint.save_interval = {keep.save_interval}: "
            "few or no checkpoints are written at such steps. Change one."
        )
    if not keep.keep_best:
        return
    if not train.eval_interval or not keep.save_interval or keep.save_interval % train.eval_interval:
        raise ConfigError(
            f"checkpoint.keep_best = {keep.keep_best} compares checkpoints by the evaluation at their step, but checkpoint.save_interval = "
            f"{keep.save_interval} is no multiple of train.eval_interval = {train.eval_interval}. Change one of the two."
        )
    if config.data.split.by == "none" and not config.data.valid:
        raise ConfigError(f"checkpoint.keep_best = {keep.keep_best}, but nothing is held out. Set data.split or data.valid.")


def _check_watching(config: RunConfig) -> None:
    train, checkpoint = config.train, config.checkpoint
    if train.on_bad_step == "rewind" and not checkpoint.save_interval:
        raise ConfigError(
            "train.on_bad_step=rewind goes back to the newest checkpoint, but checkpoint.save_interval = 0 writes one only at the end. "
            "Set it."
        )
    minutes = config.parallel.distributed_timeout_minutes
    if minutes * 60 <= checkpoint.timeout_seconds:
        raise ConfigError(
            f"parallel.distributed_timeout_minutes = {minutes:g} is no longer than checkpoint.timeout_seconds = "
            f"{checkpoint.timeout_seconds:g}: ranks that wait for a slow save would end the run. Raise the one or lower the other."
        )
