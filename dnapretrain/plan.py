"""`dnapretrain plan`: what a run needs before it is started - parameters, memory of each layout, arithmetic, time. Needs no torch.

A layout is legal exactly if the settings' own rules accept it: each is tried as a whole configuration.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict
from dnapretrain.config_rules import check_world
from dnapretrain.data.sampling.lengths import length_stages
from dnapretrain.data.tokens.tokenizers import Tokenizer, countable_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.counts import (
    FLOPS_FORMULA,
    flops_per_token,
    layers_on_rank,
    pipeline_ends,
    stored_parameters,
    total_parameters,
)
from dnapretrain.model.memory import MEMORY_FORMULA, RankMemory, busiest_rank
from dnapretrain.parallel.gpus import GPUS_PER_NODE, Gpu

RECOMPUTE = ("none", "selective", "full")
TENSOR_PARALLEL = (1, 2, 4, 8, 16)
UNEVEN_PIPELINES = (2, 4, 8, 16, 32)
"""Pipeline sizes that are tried where they do not divide the layers."""
TIME_FORMULA = "tokens x FLOPs per token / (GPUs x peak x MFU), the same for every layout: MFU is an assumption, not a prediction"
RANKING = (
    "of each tp x pp the best that fits: no recompute, then the smallest bubble, then the largest micro-batch; "
    "the least model parallelism first"
)
BUBBLE_FORMULA = "(pp - 1) / (micro-batches x vpp), idle time relative to busy time; uneven ranks wait for the longest besides"


@dataclass(frozen=True)
class Layout:
    """One way to spread a run over the GPUs, and the memory of its busiest rank."""

    tp: int
    pp: int
    vpp: int | None
    layers: tuple[int, ...]
    """On each pipeline rank."""
    cp: int
    dp: int
    micro_batch_size: int
    num_microbatches: int
    recompute: str
    sequence_parallel: bool
    use_distributed_optimizer: bool
    bubble: float
    memory: RankMemory
    total_bytes: int
    free_bytes: int
    """Of the GPU's memory; negative where the layout does not fit."""

    @property
    def fits(self) -> bool:
        """Whether the GPU's memory holds it."""
        return self.free_bytes >= 0


def make_plan(config: RunConfig, num_gpus: int, gpu: Gpu, mfu: float) -> dict[str, Any]:
    """The whole plan as plain values; `format_plan` makes a page of it.

    Raises ConfigError for a number of GPUs or an MFU out of range.
    """
    if num_gpus < 1:
        raise ConfigError(f"--gpus = {num_gpus} is below 1. Give the number of GPUs.")
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu = {mfu} is not a share of the peak. Give a number above 0 and at most 1, e.g. 0.4.")
    tokenizer = countable_tokenizer(config.tokenizer)
    vocab_size, pad_id = tokenizer.vocab_size, tokenizer.pad_id
    legal, refused = legal_layouts(config, tokenizer, num_gpus, gpu)
    try:
        own, own_problem = _layout(config, tokenizer, num_gpus, gpu), None
    except ConfigError as problem:
        own, own_problem = None, str(problem)
    return {
        "gpu": {**asdict(gpu), "count": num_gpus, "per_node": GPUS_PER_NODE},
        "model": {**config.model.model_dump(), "head_dim": config.model.head_dim, "query_groups": config.model.query_groups},
        "sequence_length": max(stage["sequence_length"] for stage in _stages_of_run(config)),
        "context_parallel_size": config.parallel.context_parallel_size,
        "precision": config.train.precision,
        "vocab_size": vocab_size,
        "padded_vocab_size": padded_vocab_size(vocab_size),
        "parameters": {"total": total_parameters(config, vocab_size, pad_id), "stored": stored_parameters(config, vocab_size, pad_id)},
        "run": _run_length(config, tokenizer.bases_per_token),
        "compute": _compute(config, vocab_size, num_gpus, gpu, mfu),
        "own_layout": None if own is None else _plain(own),
        "own_layout_problem": own_problem,
        "best_layouts": [_plain(layout) for layout in rank_layouts(legal)],
        "legal_layouts": [_plain(layout) for layout in legal],
        "refused": refused,
        "formulas": {"memory": MEMORY_FORMULA, "FLOPs": FLOPS_FORMULA, "time": TIME_FORMULA, "order": RANKING, "bubble": BUBBLE_FORMULA},
    }


def legal_layouts(config: RunConfig, tokenizer: Tokenizer, num_gpus: int, gpu: Gpu) -> tuple[list[Layout], dict[str, int]]:
    """All layouts that the rules accept (vpp none, cp as set), and how many combinations of tp, pp and micro-batch each rule refused.

    Sequence parallelism wherever it can be, the distributed optimizer wherever there are data-parallel ranks.
    """
    sizes = {config.train.micro_batch_size} | {2**power for power in range(config.train.global_batch_size.bit_length())}
    layers = config.model.num_layers
    stages = [pp for pp in range(1, layers + 1) if layers % pp == 0 or (pp in UNEVEN_PIPELINES and pipeline_ends(layers, pp))]
    legal, refused = [], Counter[str]()
    for tp in (tp for tp in TENSOR_PARALLEL if tp <= min(num_gpus, GPUS_PER_NODE)):
        for pp in stages:
            for size in sorted(sizes):
                try:
                    tried = _with_layout(config, num_gpus, tp, pp, size)
                    check_world(tried, num_gpus)
                except ConfigError as problem:
                    refused[_rule(str(problem))] += 1
                    continue
                for recompute in RECOMPUTE:
                    train = tried.train.model_copy(update={"recompute": recompute})
                    legal.append(_layout(tried.model_copy(update={"train": train}), tokenizer, num_gpus, gpu))
    return legal, dict(refused.most_common())


def rank_layouts(layouts: list[Layout]) -> list[Layout]:
    """The best of each tp x pp that fits, by RANKING."""
    ranked = sorted(
        (layout for layout in layouts if layout.fits),
        key=lambda layout: (layout.tp * layout.pp, layout.pp, RECOMPUTE.index(layout.recompute), layout.bubble, -layout.micro_batch_size),
    )
    best: dict[tuple[int, int], Layout] = {}
    for layout in ranked:
        best.setdefault((layout.tp, layout.pp), layout)
    return list(best.values())


def check_counts(config: RunConfig, world_size: int) -> list[dict[str, int]]:
    """Parameters of every pipeline and tensor-parallel rank: by the closed formula, and counted on the real model chunks.

    The chunks are built without memory, as each rank of `world_size` would build them.
    Raises ConfigError when the layout does not fit `world_size` ranks.
    """
    from dnapretrain.model.rank_player import counted_ranks

    return counted_ranks(config, countable_tokenizer(config.tokenizer), world_size)


def _with_layout(config: RunConfig, num_gpus: int, tp: int, pp: int, micro_batch_size: int) -> RunConfig:
    tree = config.model_dump(mode="json")
    tree["train"]["micro_batch_size"] = micro_batch_size
    layers = config.model.num_layers
    first, last = pipeline_ends(layers, pp) or (None, None)
    cp = config.parallel.context_parallel_size
    parts = tp * (2 * cp if cp > 1 else 1)
    sequence_parallel = tp > 1 and not any(length % parts for length in (config.data.sequence_length, *config.data.training_lengths))
    tree["parallel"].update(
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=None,
        sequence_parallel=sequence_parallel,
        tp_comm_overlap=config.parallel.tp_comm_overlap and sequence_parallel,
        batch_p2p_comm=config.parallel.batch_p2p_comm if pp > 1 else None,
        overlap_p2p_comm_warmup_flush=False,
        use_distributed_optimizer=num_gpus > tp * pp or config.parallel.use_distributed_optimizer,
    )
    return config_from_dict(tree)


def _layout(config: RunConfig, tokenizer: Tokenizer, num_gpus: int, gpu: Gpu) -> Layout:
    """The layout of `config` on `num_gpus` GPUs. Raises ConfigError when it does not fit that number."""
    dp = check_world(config, num_gpus)
    parallel = config.parallel
    memory = busiest_rank(config, tokenizer.vocab_size, tokenizer.pad_id, dp)
    num_microbatches = config.num_microbatches(dp)
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    return Layout(
        tp=parallel.tensor_model_parallel_size,
        pp=pp,
        vpp=vpp,
        layers=tuple(layers_on_rank(config, rank) for rank in range(pp)),
        cp=parallel.context_parallel_size,
        dp=dp,
        micro_batch_size=config.train.micro_batch_size,
        num_microbatches=num_microbatches,
        recompute=config.train.recompute,
        sequence_parallel=parallel.sequence_parallel,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        bubble=(pp - 1) / (num_microbatches * (vpp or 1)),
        memory=memory,
        total_bytes=memory.total,
        free_bytes=gpu.memory_bytes - memory.total,
    )


def _plain(layout: Layout) -> dict[str, Any]:
    return {**asdict(layout), "fits": layout.fits}


def _rule(message: str) -> str:
    """The rule that a message is about: its first sentence, numbers left out."""
    return re.sub(r"\d+", "#", message.split(". ")[0])


def _stages_of_run(config: RunConfig) -> list[dict[str, int]]:
    """The lengths of samples in their order, each with its first step and its samples up to the end of the run."""
    samples = config.samples_after(config.train.train_steps)
    stages = [stage for stage in length_stages(config.data_by_samples()) if stage.start < samples]
    ends = [*(stage.start for stage in stages[1:]), samples]
    return [
        {"from_step": config.steps_before(stage.start)[0] + 1, "sequence_length": stage.length, "samples": end - stage.start}
        for stage, end in zip(stages, ends, strict=True)
    ]


def _run_length(config: RunConfig, bases_per_token: int) -> dict[str, int]:
    steps = config.train.train_steps
    samples = config.samples_after(steps)
    tokens = sum(stage["samples"] * stage["sequence_length"] for stage in _stages_of_run(config))
    tokenizer = config.tokenizer  # of the masked objective both ends of a sample are tokens without bases
    ends = tokenizer.add_bos + tokenizer.add_eos if config.is_masked else 0
    return {"steps": steps, "samples": samples, "tokens": tokens, "bases_at_most": (tokens - samples * ends) * bases_per_token}


def _compute(config: RunConfig, vocab_size: int, num_gpus: int, gpu: Gpu, mfu: float) -> dict[str, Any]:
    """FLOPs, and the time they take at the assumed share of the bf16 peak; no time in fp32, which the data sheet's peak is not for.

    Of several lengths, a token and a step are those of the longest; `stages` has those of each, and the run is the sum over them.
    """
    rate = num_gpus * gpu.bf16_tflops * 1e12 * mfu if config.train.precision == "bf16" else None
    stages: list[dict[str, Any]] = []
    for stage in _stages_of_run(config):
        per_token = flops_per_token(config.model, stage["sequence_length"], vocab_size)
        tokens_per_step = config.train.global_batch_size * stage["sequence_length"]
        costs = {
            "flops_per_token": per_token,
            "tokens_per_step": tokens_per_step,
            "seconds_per_step": rate and per_token * tokens_per_step / rate,
        }
        stages.append({**stage, **costs})
    longest = max(stages, key=lambda stage: int(stage["sequence_length"]))
    per_token, tokens_per_step = longest["flops_per_token"], longest["tokens_per_step"]
    flops_of_run = sum(stage["flops_per_token"] * (stage["samples"] * stage["sequence_length"]) for stage in stages)
    return {
        "flops_per_token": per_token,
        "tokens_per_step": tokens_per_step,
        "flops_per_step": per_token * tokens_per_step,
        "flops_of_run": flops_of_run,
        "assumed_mfu": mfu,
        "seconds_per_step": longest["seconds_per_step"],
        "tokens_per_second": rate and rate / per_token,
        "days": rate and flops_of_run / rate / 86_400,
        "stages": stages,
    }


MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "activations", "working", "allowance")
SHOWN_LAYOUTS = 8


def format_plan(plan: dict[str, Any]) -> str:
    """The plan as one page of text."""
    gpu, model, run, compute = (plan[key] for key in ("gpu", "model", "run", "compute"))
    parameters = plan["parameters"]
    lines = [
        f"{gpu['count']:,} x {gpu['kind']}, {gpu['memory_bytes'] / 2**30:.1f} GiB and {gpu['bf16_tflops']:,.0f} TFLOP/s (dense bf16) each, "
        f"{gpu['per_node']} per node",
        "",
        f"model        {model['kind']}, {model['num_layers']} layers, hidden {model['hidden_size']:,}, ffn {model['ffn_hidden_size']:,}, "
        f"{model['num_attention_heads']} heads of {model['head_dim']} ({model['query_groups']} key/value), {plan['precision']}",
        f"tokens       vocabulary {plan['vocab_size']:,} ({plan['padded_vocab_size']:,} with padding), "
        f"sequence {plan['sequence_length']:,}, {compute['tokens_per_step']:,} tokens per step",
        f"parameters   {parameters['total']:,} ({parameters['stored']:,} with the vocabulary's padding)",
        f"run          {run['steps']:,} steps, {run['samples']:,} samples, {run['tokens']:,} tokens, "
        f"at most {run['bases_at_most']:,} bases",
        f"FLOPs        {compute['flops_per_token']:.4g} per token, {compute['flops_per_step']:.4g} per step, "
        f"{compute['flops_of_run']:.4g} for the run",
        f"time         {_time(compute, gpu['count'])}",
        *_stage_lines(compute["stages"]),
        "",
    ]
    lines += _layout_table(plan)
    lines += _wrapped("fits", "GPU memory less what the busiest rank needs; (SP) sequence parallel, (DO) distributed optimizer")
    lines += [line for name in ("order", "bubble", "FLOPs", "time") for line in _wrapped(name, plan["formulas"][name])]
    lines += ["memory"]
    lines += [line for name, text in plan["formulas"]["memory"].items() for line in _wrapped(f"  {name}", text)]
    return "\n".join(lines)


def format_check(rows: list[dict[str, int]]) -> str:
    """What `check_counts` found, one line per pipeline rank."""
    lines = ["parameters per rank: closed formula against the real model chunks"]
    for pp_rank in sorted({row["pp_rank"] for row in rows}):
        of_stage = [row for row in rows if row["pp_rank"] == pp_rank]
        different = [row for row in of_stage if row["formula"] != row["model"]]
        verdict = f"DIFFERENT on rank {different[0]['rank']}: {different[0]['model']:,}" if different else "equal"
        lines.append(
            f"pipeline rank {pp_rank:>3}: {of_stage[0]['formula']:>14,} on each of {len(of_stage)} tensor-parallel rank(s): {verdict}"
        )
    return "\n".join(lines)


def _layout_table(plan: dict[str, Any]) -> list[str]:
    best, own = plan["best_layouts"], plan["own_layout"]
    fitting, num_legal = sum(layout["fits"] for layout in plan["legal_layouts"]), len(plan["legal_layouts"])
    context = f", context parallel {plan['context_parallel_size']} as set" if plan["context_parallel_size"] > 1 else ""
    lines = [f"{num_legal:,} legal layouts (tp x pp x micro-batch x recompute), {fitting:,} fit{context}; GiB of the busiest rank:"]
    lines.append(
        f"{'tp':>6} {'pp':>3} {'dp':>5} {'mbs':>4} {'micro-batches':>14}  {'recompute':<9} {'bubble':>6} | {'weights':>8} {'grads':>6} "
        f"{'main+moments':>13} {'activations':>12} {'working':>8} {'allowance':>10} {'total':>6} | fits"
    )
    if own is None:
        lines.append(f"the file's layout is not legal here: {plan['own_layout_problem']}")
    shown = best[:SHOWN_LAYOUTS]
    if own is not None and own not in shown:
        shown = [own, *shown]
    lines += [_table_row(layout) + ("  <- the file's" if layout == own else "") for layout in shown]
    if len(best) > SHOWN_LAYOUTS:
        lines.append(f"    and {len(best) - SHOWN_LAYOUTS} more tp x pp that fit (--json has all)")
    if not best:
        lines.append(
            "    no legal layout fits: use more GPUs, GPUs with more memory, a larger parallel.context_parallel_size, or a shorter "
            "data.sequence_length"
        )
    if plan["refused"]:
        lines += ["", f"{sum(plan['refused'].values()):,} combinations of tp, pp and micro-batch are not legal:"]
        lines += [f"{count:>6,}  {rule}" for rule, count in plan["refused"].items()]
    return [*lines, ""]


def _table_row(layout: dict[str, Any]) -> str:
    weights, gradients, optimizer, activations, working, allowance = (layout["memory"][part] / 2**30 for part in MEMORY_COLUMNS)
    free = layout["free_bytes"] / 2**30
    verdict = f"yes, {free:.1f} free" if layout["fits"] else f"NO, {-free:.1f} too much"
    vpp = f", vpp {layout['vpp']}" if layout["vpp"] else ""
    layers = layout["layers"]
    uneven = f", layers {'+'.join(map(str, layers))}" if len(set(layers)) > 1 else ""
    marks = (" (SP)" if layout["sequence_parallel"] else "") + (" (DO)" if layout["use_distributed_optimizer"] else "")
    return (
        f"{layout['tp']:>6} {layout['pp']:>3} {layout['dp']:>5} {layout['micro_batch_size']:>4} {layout['num_microbatches']:>14}  "
        f"{layout['recompute']:<9} {layout['bubble']:>6.1%} | {weights:>8.2f} {gradients:>6.2f} {optimizer:>13.2f} {activations:>12.2f} "
        f"{working:>8.2f} {allowance:>10.2f} {layout['total_bytes'] / 2**30:>6.1f} | {verdict}{marks}{vpp}{uneven}"
    )


def _time(compute: dict[str, Any], num_gpus: int) -> str:
    if compute["days"] is None:
        return "not said for fp32: the data sheet's peak is that of bf16"
    return (
        f"{compute['seconds_per_step']:,.3g} s per step, {compute['tokens_per_second']:,.0f} tokens/s, {compute['days']:,.3g} days, "
        f"{compute['days'] * 24 * num_gpus:,.0f} GPU-hours, if MFU is {compute['assumed_mfu']:.0%} (assumed: --mfu)"
    )


def _stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    """The lengths of a run that has several."""
    if len(stages) == 1:
        return []
    lines = ["lengths      a step above is one of the longest samples, and memory is that of the longest stage"]
    for stage in stages:
        seconds = "" if stage["seconds_per_step"] is None else f", {stage['seconds_per_step']:,.3g} s per step"
        lines.append(
            f"             from step {stage['from_step']:,}: sequence {stage['sequence_length']:,}, {stage['samples']:,} samples, "
            f"{stage['tokens_per_step']:,} tokens per step, {stage['flops_per_token']:.4g} FLOPs per token{seconds}"
        )
    return lines


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name:<15}{text}", 138, subsequent_indent=" " * 15)
