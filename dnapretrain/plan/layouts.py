"""All legal layouts of a configuration on a number of GPUs, what each needs and how fast it is, and the best as settings.

A layout is legal exactly if the settings' own rules accept it: each is tried as a whole configuration.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dnapretrain.config import ParallelConfig, RunConfig
from dnapretrain.config_rules import check_rules, check_world
from dnapretrain.config_rules.kernels import check_kernel_rules
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.counts import flops_per_token, pipeline_ends
from dnapretrain.model.memory import RankMemory, busiest_rank
from dnapretrain.parallel.gpus import GPUS_PER_NODE, Gpu, mfu_peak
from dnapretrain.plan.hardware import OURS
from dnapretrain.plan.step_time import StepTime, step_time

RECOMPUTE = ("none", "selective", "full")
TENSOR_PARALLEL = (1, 2, 4, 8, 16)
CONTEXT_PARALLEL = (1, 2, 4, 8, 16, 32)
CONTEXT_WAYS = ("all_gather", "a2a")
"""Besides p2p, which is legal wherever one of them is."""
UNEVEN_PIPELINES = (2, 4, 8, 16, 32)
"""Pipeline sizes that are tried where they do not divide the layers."""
RANKING = (
    "of each tp x cp x pp the fastest that fits, the fastest first; of those that are equal in three digits that of the least model "
    "parallelism, then of less memory; where cp > 1, Transformer Engine is used and the file has no cp_comm_type, p2p, all_gather and a2a "
    "are tried (the row names it)"
)
FP32_RANKING = (
    "of each tp x cp x pp the best that fits: no recompute, then the smallest bubble, then the largest micro-batch; "
    "the least model parallelism first (no time is said of fp32)"
)
BUBBLE_FORMULA = "(pp - 1) / (micro-batches x vpp), idle time relative to busy time; uneven ranks wait for the longest besides"
SETTINGS = {
    "tensor_model_parallel_size": "tp",
    "context_parallel_size": "cp",
    "cp_comm_type": "cp_comm_type",
    "pipeline_model_parallel_size": "pp",
    "virtual_pipeline_model_parallel_size": "vpp",
    "sequence_parallel": "sequence_parallel",
    "use_distributed_optimizer": "use_distributed_optimizer",
    "overlap_grad_reduce": "overlap_grad_reduce",
    "overlap_param_gather": "overlap_param_gather",
}
"""Keys of section `parallel`, and what they are called in a layout."""


@dataclass(frozen=True)
class Layout:
    """One way to spread a run over the GPUs, the memory of its busiest rank, and its speed."""

    tp: int
    cp: int
    cp_comm_type: str
    pp: int
    vpp: int | None
    layers: tuple[int, ...]
    """On each pipeline rank."""
    dp: int
    micro_batch_size: int
    num_microbatches: int
    recompute: str
    sequence_parallel: bool
    use_distributed_optimizer: bool
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    bubble: float
    memory: RankMemory
    total_bytes: int
    free_bytes: int
    """Of the GPU's memory; negative where the layout does not fit."""
    time: StepTime | None
    """Of a step with samples of the run's longest length; None in fp32."""
    seconds_per_step: float | None
    tokens_per_second: float | None
    mfu: float | None
    """Share of the GPUs' dense bf16 peak, with train.fp8 of the dense FP8 peak, by FLOPS_FORMULA."""

    @property
    def fits(self) -> bool:
        """Whether the GPU's memory holds it."""
        return self.free_bytes >= 0


def legal_layouts(config: RunConfig, tokenizer: Tokenizer, num_gpus: int, gpu: Gpu, length: int) -> tuple[list[Layout], dict[str, int]]:
    """All layouts that the rules accept, and how many combinations of tp, cp, pp, vpp and micro-batch each rule refused.

    Sequence parallelism wherever it can be, the distributed optimizer and overlapped communication wherever there is somebody to share
    with. Where the file leaves open how context-parallel ranks exchange, each layout has the way that ranks first. `length`: tokens per
    sample that the speed is said for.
    """
    legal, refused = [], Counter[str]()
    for parallel in _tried(config, num_gpus):
        copies = max(1, num_gpus // parallel.model_parallel_size)
        for size in _micro_batch_sizes(config, copies):
            train = config.train.model_copy(update={"micro_batch_size": size})
            tried = config.model_copy(update={"parallel": parallel, "train": train})
            try:
                check_rules(tried)
                check_world(tried, num_gpus)
            except ConfigError as problem:
                refused[_rule(str(problem))] += 1
                continue
            ways = [tried, *_other_ways(config, tried)]
            for recompute in RECOMPUTE:
                settled = {"train": train.model_copy(update={"recompute": recompute})}
                found = [layout_of(way.model_copy(update=settled), tokenizer, num_gpus, gpu, length) for way in ways]
                legal.append(min(found, key=lambda layout: (not layout.fits, _place(layout))))
    return legal, dict(refused.most_common())


def _other_ways(config: RunConfig, tried: RunConfig) -> Iterator[RunConfig]:
    """`tried` with each other cp_comm_type that the rules accept, where its attention is Transformer Engine's and `config` names none."""
    is_torch = tried.torch_only or tried.model.transformer_impl == "torch"
    if tried.parallel.context_parallel_size == 1 or is_torch or "cp_comm_type" in config.parallel.model_fields_set:
        return
    for way in CONTEXT_WAYS:
        other = tried.model_copy(update={"parallel": tried.parallel.model_copy(update={"cp_comm_type": way})})
        try:
            check_kernel_rules(other)  # the others do not look at it
        except ConfigError:
            continue
        yield other


def layout_of(config: RunConfig, tokenizer: Tokenizer, num_gpus: int, gpu: Gpu, length: int) -> Layout:
    """The layout of `config` on `num_gpus` GPUs. Raises ConfigError when it does not fit that number."""
    dp = check_world(config, num_gpus)
    parallel, tokens = config.parallel, config.train.global_batch_size * length
    memory = busiest_rank(config, tokenizer.vocab_size, tokenizer.pad_id, dp)
    num_microbatches = config.num_microbatches(dp)
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    time = layout_time(config, tokenizer, dp, gpu, length)
    seconds = None if time is None else time.total
    flops = tokens * flops_per_token(config.model, length, tokenizer.vocab_size)
    return Layout(
        **{name: getattr(parallel, key) for key, name in SETTINGS.items()},
        layers=tuple(parallel.layers_on_ranks(config.model.num_layers) or ()),
        dp=dp,
        micro_batch_size=config.train.micro_batch_size,
        num_microbatches=num_microbatches,
        recompute=config.train.recompute,
        bubble=(pp - 1) / (num_microbatches * (vpp or 1)),
        memory=memory,
        total_bytes=memory.total,
        free_bytes=gpu.memory_bytes - memory.total,
        time=time,
        seconds_per_step=seconds,
        tokens_per_second=seconds and tokens / seconds,
        mfu=seconds and flops / seconds / (num_gpus * mfu_peak(gpu, config.train.fp8 != "none")[0] * 1e12),
    )


def layout_time(config: RunConfig, tokenizer: Tokenizer, data_parallel: int, gpu: Gpu, length: int) -> StepTime | None:
    """A step of this program at the layout of `config`; None in fp32, which the data sheet's peak is not for."""
    if config.train.precision != "bf16":
        return None
    return step_time(config, length, tokenizer.vocab_size, tokenizer.pad_id, data_parallel, gpu, OURS)


def rank_layouts(layouts: list[Layout]) -> list[Layout]:
    """The best of each tp x cp x pp that fits, by RANKING; by FP32_RANKING where there are no times."""

    best: dict[tuple[int, int, int], Layout] = {}
    for layout in sorted((layout for layout in layouts if layout.fits), key=_place):
        best.setdefault((layout.tp, layout.cp, layout.pp), layout)
    return list(best.values())


def _place(layout: Layout) -> tuple[Any, ...]:
    """Before what other layouts this one ranks."""
    model_parallel = layout.tp * layout.cp * layout.pp
    if layout.seconds_per_step is None:
        return model_parallel, layout.pp, layout.cp, RECOMPUTE.index(layout.recompute), layout.bubble, -layout.micro_batch_size
    return float(f"{layout.seconds_per_step:.3g}"), model_parallel, layout.total_bytes


def layout_overrides(layout: dict[str, Any], config: RunConfig) -> list[str]:
    """The settings of a layout of the plan, which replace those of `config`, as `key=value`."""
    # What is at its default, and is not in the file either, needs no word.
    default, aliases = ParallelConfig(), {"tp", "cp", "pp", "vpp"}
    overrides = [
        f"parallel.{name if name in aliases else key}={json.dumps(value)}"
        for key, (name, value) in _settings(layout).items()
        if value != getattr(default, key) or getattr(config.parallel, key) != value or name in ("tp", "pp")
    ]
    return [*overrides, f"train.micro_batch_size={layout['micro_batch_size']}", f"train.recompute={layout['recompute']}"]


def layout_tree(layout: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same as sections of a settings file, every key of the layout named."""
    parallel = {key: value for key, (_, value) in _settings(layout).items()}
    return {"parallel": parallel, "train": {name: layout[name] for name in ("micro_batch_size", "recompute")}}


def with_layout(config: RunConfig, layout: dict[str, Any]) -> RunConfig:
    """`config` at a layout of its plan."""
    tree = layout_tree(layout)
    parallel, train = config.parallel.model_copy(update=tree["parallel"]), config.train.model_copy(update=tree["train"])
    return config.model_copy(update={"parallel": parallel, "train": train})


def _settings(layout: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Key of section `parallel` -> (name in a layout, value)."""
    layers = layout["layers"]
    uneven = len(set(layers)) > 1
    ends = {"num_layers_in_first_pipeline_stage": layers[0], "num_layers_in_last_pipeline_stage": layers[-1]}
    keys = {key: (name, layout[name]) for key, name in SETTINGS.items()}
    return {**keys, **{key: (key, count if uneven else None) for key, count in ends.items()}}


def _tried(config: RunConfig, num_gpus: int) -> Iterator[ParallelConfig]:
    """Section `parallel` of every combination of tp, cp, pp and vpp that is worth asking the rules about."""
    layers, lengths = config.model.num_layers, {config.data.sequence_length, *config.data.training_lengths}
    for tp in (tp for tp in TENSOR_PARALLEL if tp <= min(num_gpus, GPUS_PER_NODE)):
        for cp in CONTEXT_PARALLEL:
            if tp * cp > num_gpus or (cp > 1 and any(length % (2 * cp) for length in lengths)):
                continue  # a rank takes two equal parts of every sample
            for pp in range(1, layers + 1):
                ends = pipeline_ends(layers, pp)
                if layers % pp and not (pp in UNEVEN_PIPELINES and ends):
                    continue
                shared = num_gpus > tp * pp  # weights are those of several ranks: data- and context-parallel ones
                update = {
                    "tensor_model_parallel_size": tp,
                    "context_parallel_size": cp,
                    "cp_comm_type": config.parallel.cp_comm_type if cp > 1 else "p2p",
                    "pipeline_model_parallel_size": pp,
                    "num_layers_in_first_pipeline_stage": ends and ends[0],
                    "num_layers_in_last_pipeline_stage": ends and ends[1],
                    "sequence_parallel": tp > 1 and not any(length % (tp if cp == 1 else 2 * cp * tp) for length in lengths),
                    "use_distributed_optimizer": shared or config.parallel.use_distributed_optimizer,
                    "overlap_grad_reduce": shared,
                    "overlap_param_gather": shared,
                }
                per_rank = layers // pp if pp > 1 and not ends else 1
                for vpp in (None, *(chunks for chunks in range(2, per_rank + 1) if per_rank % chunks == 0)):
                    yield config.parallel.model_copy(update={**update, "virtual_pipeline_model_parallel_size": vpp})


def _micro_batch_sizes(config: RunConfig, copies: int) -> list[int]:
    """Powers of two, and the file's, that leave a micro-batch to each copy; the smallest is always asked about."""
    most = max(1, config.train.global_batch_size // copies)
    sizes = {config.train.micro_batch_size} | {2**power for power in range(config.train.global_batch_size.bit_length())}
    return sorted(size for size in sizes if size <= most)


def _rule(message: str) -> str:
    """The rule that a message is about: its first sentence, numbers left out."""
    return re.sub(r"\d+", "#", message.split(". ")[0])


def plain(layout: Layout) -> dict[str, Any]:
    """A layout as plain values."""
    return {**asdict(layout), "fits": layout.fits}


def brief(layout: Layout) -> dict[str, Any]:
    """A layout in a few numbers, for lists of thousands."""
    names = ("tp", "cp", "pp", "vpp", "dp", "micro_batch_size", "num_microbatches", "recompute", "total_bytes", "fits", "seconds_per_step")
    return {name: getattr(layout, name) for name in names}
