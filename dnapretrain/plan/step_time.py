"""Seconds of a training step of a layout: the slowest stage, the pipeline's bubble, and what communication nothing hides.

Times of layers are `layer_time`'s; what is assumed of the machine is in `hardware`. TIME_FORMULA says it in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.model.counts import layer_weights, rank_parameters
from dnapretrain.parallel.gpus import Gpu
from dnapretrain.plan.hardware import (
    BUCKET_PARAMETERS,
    MEMORY_SHARE,
    STEP_SECONDS,
    Engine,
    gather_seconds,
    send_seconds,
)
from dnapretrain.plan.layer_time import Seconds, cast_seconds, embedding_seconds, head_seconds, layer_seconds, work_of

TIME_FORMULA = {
    "step": "micro-batches x the slowest stage's (forward + backward + recomputed) + bubble + what is seen of communication + optimizer",
    "matmul": "FLOPs over a share of the bf16 peak (A100 0.79, others 0.60) in whole waves of 128 x 128 tiles, or bytes over memory "
    "bandwidth if that takes longer; attention likewise, half of it where causal, its backward pass 2.5 times the operations",
    "FP8": "with train.fp8 the layers' products take 0.60 of the dense FP8 peak (assumed: the share of bf16); those of "
    "first_last_layers_bf16, attention, embeddings and head stay in bf16. Casts: every operand is read and written again, 6 bytes per "
    "value with tensorwise scales, 4 with others, weights once per step. Inputs gathered with sequence parallelism are FP8",
    "elementwise": "bytes that norms, residuals, rotation, activation and loss pass over, at 0.8 of memory bandwidth; no layer is faster "
    "than the host launches its kernels (5 us each); gradients are added to fp32 sums after each micro-batch (10 bytes per parameter)",
    "bubble": "(time of all stages - time of the slowest) / vpp; for even stages (pp - 1) / (micro-batches x vpp) of the busy time",
    "tensor p.": "forward two all-reduces of tokens x hidden per layer, or all-gather + reduce-scatter twice; backward the same, of which "
    "weight and input gradients hide two; rings at 0.8 of the link (NVLink within a node)",
    "context p.": "by parallel.cp_comm_type: p2p, the ring's steps (keys and values, backward with their gradients) where they take longer "
    "than attention's; all_gather (always so with torch's layers), keys and values gathered per layer, once more in the backward pass, "
    "and their gradients scattered; a2a, queries, keys, values and result exchanged, and their gradients",
    "pipeline p.": "tokens x hidden, twice per micro-batch and boundary; hidden behind a chunk's work when interleaved",
    "data p.": "reduce-scatter of fp32 gradients behind the last backward pass and all-gather of bf16 weights behind the first forward "
    "pass, where they overlap: at least one bucket of 40 M parameters of each is seen; without the distributed optimizer an all-reduce",
    "optimizer": "30 bytes per parameter of the rank's share, 8 per parameter of the rank, over memory bandwidth; 10 ms per step "
    "for the host",
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they are spent on; the first parts are those of the slowest stage."""

    matmul: float
    attention: float
    elementwise: float
    quantization: float
    """Scales and casts of what goes into products in FP8, weights once per step among them."""
    launches: float
    tensor_parallel: float
    context_parallel: float
    recomputed: float
    bubble: float
    """Idle for want of micro-batches, and waiting for a slower stage."""
    pipeline_parallel: float
    data_parallel: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(vars(self).values())


def step_time(config: RunConfig, length: int, vocab_size: int, pad_id: int, data_parallel: int, gpu: Gpu, engine: Engine) -> StepTime:
    """One step of full batches with samples of `length` tokens on `data_parallel` copies of the layout of `config`, in bf16 or FP8."""
    parallel, work = config.parallel, work_of(config, length)
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    num_microbatches, rows = config.num_microbatches(data_parallel), padded_vocab_size(vocab_size)
    layers = parallel.layers_on_ranks(config.model.num_layers) or []
    forward, backward = layer_seconds(gpu, work, engine)
    forward_bf16, backward_bf16 = layer_seconds(gpu, replace(work, fp8_recipe=None), engine)
    first, last = embedding_seconds(gpu, work), head_seconds(gpu, work, rows, config.is_masked)

    # Stages between the first and the last are alike: the second stands for all of them.
    stages = {}
    for stage in sorted({0, min(1, pp - 1), pp - 1}):
        parameters = rank_parameters(config, vocab_size, pad_id, stage)
        ends = [first] * (stage == 0) + [last] * (stage == pp - 1)
        in_bf16 = layers_in_bf16(config, stage)
        in_fp8 = layers[stage] - in_bf16
        there = sum((end[0] for end in ends), forward * in_fp8 + forward_bf16 * in_bf16)
        back = sum((end[1] for end in ends), backward * in_fp8 + backward_bf16 * in_bf16) + _accumulation(gpu, parameters, engine)
        stages[stage] = (there + back, there, back, parameters)
    fullest = max(stage[3] for stage in stages.values())
    slowest, there, back, _ = max(stages.values(), key=lambda stage: stage[0].total)
    of_all = sum(stage[0].total for stage in stages.values()) + max(0, pp - 3) * stages[min(1, pp - 1)][0].total
    return StepTime(
        **vars(slowest * num_microbatches + _weight_casts(config, gpu, max(layers))),
        bubble=(of_all - slowest.total) / (vpp or 1),
        pipeline_parallel=_pipeline(config, work.residual_tokens * work.hidden, data_parallel, num_microbatches, slowest.total, gpu),
        data_parallel=_data_parallel(config, data_parallel, fullest, there.total, back.total, gpu),
        optimizer=_optimizer(config, data_parallel, fullest, gpu),
    )


def exposed_seconds(seconds: float, window: float, parameters: int) -> float:
    """What is seen of bucketed communication that may hide behind `window` seconds: the rest, but at least the last bucket."""
    return max(seconds - window, seconds * min(1.0, BUCKET_PARAMETERS / parameters))


def layers_in_bf16(config: RunConfig, pp_rank: int) -> int:
    """Layers of pipeline rank `pp_rank` that train.first_last_layers_bf16 keeps in bf16; 0 without train.fp8."""
    train, pp = config.train, config.parallel.pipeline_model_parallel_size
    if train.fp8 == "none" or not train.first_last_layers_bf16:
        return 0
    return (pp_rank == 0) * train.num_layers_at_start_in_bf16 + (pp_rank == pp - 1) * train.num_layers_at_end_in_bf16


def _weight_casts(config: RunConfig, gpu: Gpu, layers: int) -> Seconds:
    """Weights of `layers` layers, cast to FP8 with the first micro-batch of a step and kept to its last."""
    if config.train.fp8 == "none":
        return Seconds()
    values = layers * layer_weights(config.model).split / config.parallel.tensor_model_parallel_size
    return Seconds(quantization=cast_seconds(gpu, values, config.train.fp8_recipe))


def _accumulation(gpu: Gpu, parameters: int, engine: Engine) -> Seconds:
    """A micro-batch's gradients, bf16, added to the fp32 sums."""
    moved = (6 if engine.fused_accumulation else 10) * parameters
    return Seconds(elementwise=moved / (gpu.memory_bandwidth * MEMORY_SHARE))


def _pipeline(config: RunConfig, values: int, data_parallel: int, num_microbatches: int, stage_seconds: float, gpu: Gpu) -> float:
    parallel = config.parallel
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if pp == 1:
        return 0.0
    send = send_seconds(gpu, 2 * values, parallel.tensor_model_parallel_size * parallel.context_parallel_size * data_parallel)
    if vpp is None:
        return 2 * (num_microbatches + pp - 1) * send
    of_chunk = stage_seconds / (2 * vpp)
    return 2 * num_microbatches * vpp * max(0.0, send - of_chunk) + 2 * (pp - 1) * send


def _data_parallel(config: RunConfig, data_parallel: int, parameters: int, forward: float, backward: float, gpu: Gpu) -> float:
    """Gradients and weights of the fullest stage, between ranks of the same weights: data- and context-parallel ones."""
    parallel = config.parallel
    ranks, stride = data_parallel * parallel.context_parallel_size, parallel.tensor_model_parallel_size
    reduce, gather = (gather_seconds(gpu, size * parameters, ranks, stride) for size in (4, 2))
    if not parallel.use_distributed_optimizer:
        reduce, gather = 2 * reduce, 0.0
    seen = exposed_seconds(reduce, backward, parameters) if parallel.overlap_grad_reduce else reduce
    return seen + (exposed_seconds(gather, forward, parameters) if parallel.overlap_param_gather else gather)


def _optimizer(config: RunConfig, data_parallel: int, parameters: int, gpu: Gpu) -> float:
    """Adam reads a gradient, two moments and the main weight, writes the last three and the bf16 weight; sums are zeroed and measured."""
    parallel = config.parallel
    parts = data_parallel * parallel.context_parallel_size if parallel.use_distributed_optimizer else 1
    return (30 * parameters / parts + 8 * parameters) / (gpu.memory_bandwidth * MEMORY_SHARE) + STEP_SECONDS
