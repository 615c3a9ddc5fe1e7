"""`dnapretrain simulate`: any rank of a job of any size, played by one process: what would go wrong at scale goes wrong here first.

Real are the groups' construction, the model chunks, the pipeline schedule, the sample ids and the shares of a checkpoint: the code
that a job runs, over a fake backend and on tensors without memory. Nothing is computed and nothing is sent: no speeds come of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from dnapretrain.config import RunConfig
from dnapretrain.config_rules import check_world
from dnapretrain.data.audit.runs import Steps, open_train
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.tokens.tokenizers import Tokenizer, countable_tokenizer
from dnapretrain.errors import ConfigError, DataError
from dnapretrain.model.batches import BatchPlace
from dnapretrain.model.counts import checkpoint_bytes, rank_parameters
from dnapretrain.model.rank_player import built_chunks, count_parameters, rank_at
from dnapretrain.model.schedule_player import pipeline_traces
from dnapretrain.parallel.group_census import census, count_groups
from dnapretrain.parallel.groups import place_in_layout, pretend_rank
from dnapretrain.parallel.pipeline_trace import Run, check_pipeline, phases
from dnapretrain.train.save_plan import save_plan

SHOWN_PASSES = 24
"""Of a rank's schedule."""
GROWS = {
    "groups": "every rank calls for every group of the job: with the number of ranks; connections are made when first used",
    "model": "with the layers of the rank, not with the job",
    "data": "with documents, each rank by itself: not with the job, but all ranks read the same files at once",
    "checkpoint": "shares of the first save, by each rank alone: with tensors x log(data-parallel ranks)",
}


def simulate(config: RunConfig, world_size: int, ranks: Sequence[int], first_step: int, last_step: int) -> dict[str, Any]:
    """What the named ranks of a job of `world_size` ranks would do, as plain values; `problems` is what is wrong.

    Raises ConfigError for a layout that does not fit, ranks or steps that are none.
    """
    check_world(config, world_size)
    for rank in ranks:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is none of --gpus {world_size}. Give one from 0 to {world_size - 1}.")
    if not 1 <= first_step <= last_step <= config.train.train_steps:
        raise ConfigError(
            f"--steps {first_step}:{last_step} is not within the run's steps 1 to {config.train.train_steps} (train.train_steps)."
        )
    tokenizer = countable_tokenizer(config.tokenizer)
    seconds: dict[str, float] = {}
    with _timed(seconds, "data"):
        stream, no_data = _opened(config)
    played = [_play(config, tokenizer, rank, world_size, seconds) for rank in ranks]
    pipeline = _pipeline(config, world_size, first_step)
    samples = _samples(config, world_size, first_step, last_step, stream, sorted({row["dp_rank"] for row in played}))
    checkpoint = _checkpoint(config, tokenizer, world_size, ranks)
    seconds["checkpoint"] = checkpoint.pop("share_seconds")
    problems = [*(text for row in played for text in row.pop("problems")), *pipeline["problems"], *samples["problems"]]
    if checkpoint["bytes"] != checkpoint["formula"]:
        problems.append(f"a checkpoint has {checkpoint['bytes']:,} bytes of tensors, by the formula {checkpoint['formula']:,}")
    if len({row.pop("calls") for row in played}) > 1:
        problems.append("ranks do not build the same groups in the same order: they would wait for each other for ever")
    return {
        "world_size": world_size,
        "layout": _layout(config, world_size),
        "ranks": played,
        "pipeline": pipeline,
        "samples": {**samples, "no_data": no_data},
        "checkpoint": checkpoint,
        "seconds": seconds,
        "grows": GROWS,
        "problems": problems,
    }


def sample_of_ranks(config: RunConfig, world_size: int) -> list[int]:
    """The first and the last data-parallel rank of every pipeline stage: between them ranks differ in numbers alone."""
    check_world(config, world_size)
    parallel = config.parallel
    stages = [rank_at(parallel, world_size, pp_rank) for pp_rank in range(parallel.pipeline_model_parallel_size)]
    return sorted({rank for first, end in zip(stages, [*stages[1:], world_size], strict=True) for rank in (first, end - 1)})


def _layout(config: RunConfig, world_size: int) -> dict[str, int]:
    parallel = config.parallel
    return {
        "tp": parallel.tensor_model_parallel_size,
        "pp": parallel.pipeline_model_parallel_size,
        "vpp": parallel.virtual_pipeline_model_parallel_size or 1,
        "cp": parallel.context_parallel_size,
        "dp": check_world(config, world_size),
    }


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Note the longest time that a part took."""
    started = time.perf_counter()
    yield
    seconds[part] = max(seconds.get(part, 0.0), time.perf_counter() - started)


def _opened(config: RunConfig) -> tuple[TrainStream | None, str]:
    """The training stream, or why there is none: a recipe's data may be yet to come."""
    try:
        return open_train(config), ""
    except (ConfigError, DataError) as error:
        return None, str(error)


def _play(config: RunConfig, tokenizer: Tokenizer, rank: int, world_size: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Stand as `rank`: build its groups and its model chunks."""
    started = time.perf_counter()
    with count_groups() as built, pretend_rank(rank, world_size, config.parallel):
        seconds["groups"] = max(seconds.get("groups", 0.0), time.perf_counter() - started)
        with _timed(seconds, "model"):
            counted = count_parameters(built_chunks(config, tokenizer, rank, world_size))
        tp_rank, pp_rank, dp_rank = place_in_layout()
    groups = census(built, rank)
    formula = rank_parameters(config, tokenizer.vocab_size, tokenizer.pad_id, pp_rank)
    return {
        "rank": rank,
        "tp_rank": tp_rank,
        "pp_rank": pp_rank,
        "dp_rank": dp_rank,
        "parameters": counted,
        "formula": formula,
        "groups": [{"name": row["name"], "ranks": row["ranks"]} for row in groups if len(row["ranks"]) > 1],
        "num_groups": len(built),
        "calls": hash(tuple((group.name, group.ranks) for group in built)),
        "problems": [] if counted == formula else [f"rank {rank} has {counted:,} parameters, by the formula {formula:,}"],
    }


def _pipeline(config: RunConfig, world_size: int, step: int) -> dict[str, Any]:
    """The schedule of all ranks of a pipeline in one step, and whether it ends."""
    layout = _layout(config, world_size)
    samples = Steps(config).samples(step)
    count = config.num_microbatches(layout["dp"], len(samples))
    stage_length = max(config.data.training_lengths)
    traces = pipeline_traces(config, count, stage_length)
    passes = [[event.what for event in trace if isinstance(event, Run)] for trace in traces]
    return {
        "num_microbatches": count,
        "phases": [asdict(phases(trace)) for trace in traces],
        "order": [[("F" if what.kind == "forward" else "B") + f"{what.micro_batch}.{what.chunk}" for what in rank] for rank in passes],
        "problems": check_pipeline(traces, count, layout["vpp"]),
    }


def _samples(
    config: RunConfig, world_size: int, first_step: int, last_step: int, stream: TrainStream | None, dp_ranks: Sequence[int]
) -> dict[str, Any]:
    """The sample ids of all data-parallel ranks, held against the global batches; those of `dp_ranks` are read from the shards."""
    dp, micro = _layout(config, world_size)["dp"], config.train.micro_batch_size
    problems, read = [], list[dict[str, Any]]()
    for step in range(first_step, last_step + 1):
        batch = Steps(config).samples(step)
        count = config.num_microbatches(dp, len(batch))
        ids = np.stack([[_place(config, rank, dp).micro_batch_ids(batch.start, index) for index in range(count)] for rank in range(dp)])
        if not np.array_equal(np.sort(ids.ravel()), np.arange(batch.start, batch.stop)):
            problems.append(f"step {step}: its data-parallel ranks do not read samples {batch.start} to {batch.stop - 1} once each")
        if stream is None or step > first_step:
            continue
        for rank in dp_ranks:
            started = time.perf_counter()
            tokens = sum(int(stream.batch(part).tokens.size) for part in ids[rank])
            loci = [str(locus) for locus in stream.locate(int(ids[rank, 0, 0]))[:1]]
            read.append(
                {
                    "dp_rank": rank,
                    "samples": ids[rank].ravel().tolist(),
                    "tokens": tokens,
                    "first_locus": loci[0],
                    "seconds": time.perf_counter() - started,
                }
            )
    return {"first_step": first_step, "last_step": last_step, "dp": dp, "micro_batch_size": micro, "read": read, "problems": problems}


def _place(config: RunConfig, dp_rank: int, dp: int) -> BatchPlace:
    return BatchPlace(config.train.micro_batch_size, dp_rank, dp, torch.device("meta"), (True,), 0, config.is_masked)


def _checkpoint(config: RunConfig, tokenizer: Tokenizer, world_size: int, ranks: Sequence[int]) -> dict[str, Any]:
    plan = save_plan(config, tokenizer, world_size)
    written = plan.bytes_of_ranks()
    return {
        "bytes": plan.total_bytes,
        "formula": checkpoint_bytes(config, tokenizer.vocab_size, tokenizer.pad_id),
        "files": len(plan.files),
        "writers": len(written),
        "most_bytes": max(written.values()),
        "least_bytes": min(written.values()),
        "gathered_bytes": plan.gathered_bytes,
        "share_seconds": plan.share_seconds,
        "of_ranks": [
            {"rank": rank, "bytes": written.get(rank, 0), "files": [file.name for file in plan.files if file.rank == rank]}
            for rank in ranks
        ],
    }


def format_simulation(found: dict[str, Any]) -> str:
    """The simulation as one page of text."""
    layout, pipeline, samples, checkpoint = (found[name] for name in ("layout", "pipeline", "samples", "checkpoint"))
    virtual = f" x {layout['vpp']} chunks each" if layout["vpp"] > 1 else ""
    context = f" x context {layout['cp']}" if layout["cp"] > 1 else ""
    lines = [
        f"{found['world_size']:,} ranks = tensor {layout['tp']} x pipeline {layout['pp']}{virtual}{context} x data {layout['dp']:,}; "
        f"played here: {', '.join(str(row['rank']) for row in found['ranks'][:16])}{', ...' if len(found['ranks']) > 16 else ''}",
        "",
        f"{'rank':>6} {'tp':>3} {'pp':>3} {'dp':>5} {'parameters':>15} {'warm-up':>8} {'steady':>7} {'cool-down':>9} {'in flight':>9} "
        f"{'checkpoint MB':>14} {'files':>5}",
    ]
    for row, share in zip(found["ranks"], checkpoint["of_ranks"], strict=True):
        phase = pipeline["phases"][row["pp_rank"]]
        lines.append(
            f"{row['rank']:>6} {row['tp_rank']:>3} {row['pp_rank']:>3} {row['dp_rank']:>5} {row['parameters']:>15,} {phase['warm_up']:>8} "
            f"{phase['steady']:>7} {phase['cool_down']:>9} {phase['in_flight']:>9} {share['bytes'] / 1e6:>14,.1f} {len(share['files']):>5}"
        )
    first = found["ranks"][0]
    groups = ", ".join(f"{group['name'].removesuffix('_GROUP').lower()} {len(group['ranks'])}" for group in first["groups"])
    lines += [
        "",
        f"groups       {first['num_groups']:,} built by every rank; those of rank {first['rank']} with others in them: {groups or 'none'}",
        f"pipeline     {pipeline['num_microbatches']:,} micro-batches per step, "
        + _verdict(pipeline, "every message is received, no rank waits for ever"),
    ]
    for pp_rank, order in enumerate(pipeline["order"]):
        if pp_rank in {row["pp_rank"] for row in found["ranks"]}:
            more = " ..." if len(order) > SHOWN_PASSES else ""
            lines.append(f"{'':>12} stage {pp_rank}: {' '.join(order[:SHOWN_PASSES])}{more}")
    lines.append(
        f"samples      steps {samples['first_step']:,} to {samples['last_step']:,}, {samples['dp']:,} data-parallel ranks: "
        + _verdict(samples, "each sample of each global batch on one of them")
    )
    for row in samples["read"]:
        lines.append(
            f"{'':>12} data-parallel rank {row['dp_rank']}: samples {', '.join(map(str, row['samples'][:6]))}"
            f"{', ...' if len(row['samples']) > 6 else ''}; {row['tokens']:,} tokens in {row['seconds']:.3f} s, first {row['first_locus']}"
        )
    if samples["no_data"]:
        lines.append(f"{'':>12} not read: {samples['no_data']}")
    lines += [
        f"checkpoint   {checkpoint['bytes'] / 1e9:,.3f} GB of tensors in {checkpoint['files']:,} files by {checkpoint['writers']:,} ranks, "
        f"{checkpoint['least_bytes'] / 1e6:,.1f} to {checkpoint['most_bytes'] / 1e6:,.1f} MB each; "
        f"{'equal to the formula' if checkpoint['bytes'] == checkpoint['formula'] else 'NOT as the formula says'}",
    ]
    if checkpoint["gathered_bytes"]:
        lines.append(
            f"{'':>12} before it, each rank holds up to {checkpoint['gathered_bytes'] / 1e9:,.3f} GB of optimizer state in host memory"
        )
    lines.append("start        seconds in this process, longest of the ranks played, and what they grow with:")
    lines += [f"{'':>12} {part:<10} {seconds:7.3f}  {found['grows'][part]}" for part, seconds in found["seconds"].items()]
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _verdict(part: dict[str, Any], good: str) -> str:
    return f"WRONG: {len(part['problems'])} problem(s)" if part["problems"] else good
