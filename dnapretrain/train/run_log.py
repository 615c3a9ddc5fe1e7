"""What a run says when it starts: paths chosen, layout, data used and left out, where it goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dnapretrain.config import RunConfig
from dnapretrain.data.sampling.lengths import length_stages
from dnapretrain.data.sampling.probe_windows import probe_lines
from dnapretrain.data.sampling.run_data import RunData
from dnapretrain.model.counts import FLOPS_FORMULA
from dnapretrain.model.kernels import kernel_paths
from dnapretrain.model.paths import active_paths
from dnapretrain.parallel.determinism import determinism
from dnapretrain.parallel.platform import Platform
from dnapretrain.train.metrics import peak_of_rank
from dnapretrain.train.trainer import Trainer


def log_start(
    trainer: Trainer,
    config: RunConfig,
    platform: Platform,
    data: RunData,
    resume_from: Path | None,
    started_from: list[str],
    remarks: list[str],
) -> None:
    """Write the run's `start` record and the lines of its console; `remarks` come first."""
    cp, way = config.parallel.context_parallel_size, config.parallel.cp_comm_type
    paths = active_paths(config.model, config.train.precision, platform, config.torch_only, config.data.document_attention, cp, way)
    paths |= kernel_paths(config, platform)
    part = trainer.optimizer.chained_optimizers[0]
    inner = type(part.optimizer)
    fused = ", fused" if part.optimizer.param_groups[0].get("fused") else ""
    paths["optimizer"] = f"{type(part).__name__} over {inner.__module__}.{inner.__name__}{fused}"
    paths["determinism"] = determinism(config.train.deterministic, platform.is_cuda)
    parallel, log = config.parallel, trainer.log
    peak, region_files = peak_of_rank(config, platform.name)[1], _region_files(data)
    tp, pp, dp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, trainer.place.data_parallel_size
    log.write(
        "start",
        step=trainer.position.step,
        config=json.loads(config.model_dump_json()),
        paths=paths,
        data=data.train.report(),
        data_digest=data.train.digest,
        regions=region_files,
        probes={probe.name: probe.report for probe in data.probes.probes} if data.probes else None,
        flops_formula=FLOPS_FORMULA,
        peak=peak,
        resumed_from=str(resume_from) if resume_from else None,
        started_from=started_from,
        remarks=remarks,
    )
    for remark in remarks:
        log.say(remark)
    for name, value in paths.items():
        log.say(f"{name:>14}: {value}")
    log.say(
        f"{'layout':>14}: {platform.world_size} rank(s) = tensor {tp} x pipeline {pp}{f' x context {cp}' if cp > 1 else ''} x data {dp}, "
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
    for line in probe_lines(data.probes.probes if data.probes else ()):
        log.say(f"{'probes':>14}: {line}")
    for file in region_files:
        left_out = f", {len(file['names_left_out'])} left out: no such contig" if file["names_left_out"] else ""
        log.say(f"{'regions':>14}: {file['name']}: {file['path']}, {file['names']} contigs{left_out}")
    log.say(f"{'data digest':>14}: {data.train.digest}")
    log.say(f"{'TFLOP/s':>14}: {FLOPS_FORMULA}")
    log.say(f"{'peak':>14}: {peak}")
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
