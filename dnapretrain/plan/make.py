"""The whole plan as plain values: what `dnapretrain plan --json` prints and `page` lays out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.data.tokens.tokenizers import Tokenizer, countable_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.counts import FLOPS_FORMULA, stored_parameters, total_parameters
from dnapretrain.model.memory import MEMORY_FORMULA
from dnapretrain.parallel.gpus import GPUS_PER_NODE, Gpu, check_fp8, mfu_peak
from dnapretrain.plan.layouts import (
    BUBBLE_FORMULA,
    FP32_RANKING,
    RANKING,
    Layout,
    brief,
    layout_of,
    layout_overrides,
    layout_time,
    legal_layouts,
    plain,
    rank_layouts,
    with_layout,
)
from dnapretrain.plan.run_length import compute_of_run, run_length
from dnapretrain.plan.step_time import TIME_FORMULA
from dnapretrain.plan.storage import STORAGE_FORMULA, storage


def make_plan(config: RunConfig, num_gpus: int, gpu: Gpu, mfu: float | None = None) -> dict[str, Any]:
    """The plan of `config` on `num_gpus` of `gpu`; `mfu`: a share of the peak to say a time for as well.

    Raises ConfigError for a number of GPUs or an MFU out of range, and for train.fp8 on a GPU that has none.
    """
    if num_gpus < 1:
        raise ConfigError(f"--gpus = {num_gpus} is below 1. Give the number of GPUs.")
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"--mfu = {mfu} is not a share of the peak. Give a number above 0 and at most 1, e.g. 0.4.")
    if config.train.fp8 != "none":
        check_fp8(gpu, config.train.fp8_recipe)
    tokenizer = countable_tokenizer(config.tokenizer)
    compute = compute_of_run(config, tokenizer.vocab_size)
    length = max(stage["sequence_length"] for stage in compute["stages"])
    legal, refused = legal_layouts(config, tokenizer, num_gpus, gpu, length)

    def described(layout: Layout) -> dict[str, Any]:
        settings = plain(layout)
        return {
            **settings,
            **_whole_run(config, settings, tokenizer, num_gpus, gpu, compute["stages"]),
            "overrides": layout_overrides(settings, config),
        }

    try:
        own, own_problem = described(layout_of(config, tokenizer, num_gpus, gpu, length)), None
    except ConfigError as problem:
        own, own_problem = None, str(problem)
    best = [described(layout) for layout in rank_layouts(legal)]
    stored = stored_parameters(config, tokenizer.vocab_size, tokenizer.pad_id)
    rate = best[0]["tokens_per_second"] if best else None
    peak, of_what = mfu_peak(gpu, config.train.fp8 != "none")
    return {
        "gpu": {**asdict(gpu), "count": num_gpus, "per_node": GPUS_PER_NODE, "mfu_tflops": peak},
        "model": {**config.model.model_dump(), "head_dim": config.model.head_dim, "query_groups": config.model.query_groups},
        "sequence_length": length,
        "precision": config.train.precision,
        "fp8": None if config.train.fp8 == "none" else config.train.fp8_recipe,
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": padded_vocab_size(tokenizer.vocab_size),
        "parameters": {"total": total_parameters(config, tokenizer.vocab_size, tokenizer.pad_id), "stored": stored},
        "run": run_length(config, tokenizer.bases_per_token),
        "compute": compute,
        "assumed": None if mfu is None else _assumed(config, compute, num_gpus, gpu, mfu),
        "storage": storage(config, stored, num_gpus, tokenizer.bases_per_token, rate),
        "own_layout": own,
        "own_layout_problem": own_problem,
        "best_layouts": best,
        "legal_layouts": [brief(layout) for layout in legal],
        "refused": refused,
        "formulas": {
            "memory": MEMORY_FORMULA,
            "FLOPs": FLOPS_FORMULA,
            "MFU": f"these FLOPs per second over GPUs x {peak:,g} TFLOP/s, the {of_what} peak, whatever part is done in it",
            "time": TIME_FORMULA,
            "order": RANKING if config.train.precision == "bf16" else FP32_RANKING,
            "bubble": BUBBLE_FORMULA,
            "storage": STORAGE_FORMULA,
        },
    }


def _whole_run(
    config: RunConfig, layout: dict[str, Any], tokenizer: Tokenizer, num_gpus: int, gpu: Gpu, stages: list[dict[str, Any]]
) -> dict[str, float | None]:
    """Days and GPU-hours of all samples; smaller first batches are reckoned like full ones."""
    laid_out, seconds = with_layout(config, layout), 0.0
    for stage in stages:
        step = layout_time(laid_out, tokenizer, layout["dp"], gpu, stage["sequence_length"])
        if step is None:
            return {"days": None, "gpu_hours": None}
        seconds += step.total * stage["samples"] / config.train.global_batch_size
    return {"days": seconds / 86_400, "gpu_hours": seconds / 3600 * num_gpus}


def _assumed(config: RunConfig, compute: dict[str, Any], num_gpus: int, gpu: Gpu, mfu: float) -> dict[str, float | None]:
    """Times at an assumed share of the peak that MFU is measured against, whatever the layout."""
    rate = num_gpus * mfu_peak(gpu, config.train.fp8 != "none")[0] * 1e12 * mfu if config.train.precision == "bf16" else None
    return {
        "mfu": mfu,
        "seconds_per_step": rate and compute["flops_per_step"] / rate,
        "tokens_per_second": rate and rate / compute["flops_per_token"],
        "days": rate and compute["flops_of_run"] / rate / 86_400,
    }
