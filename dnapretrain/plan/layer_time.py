"""Seconds that a rank needs for one micro-batch: one transformer layer, and what lies before and behind the layers.

Operations over the rate of the unit that does them, bytes over bandwidth, launches over the host's rate. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from dnapretrain.config import RunConfig
from dnapretrain.model.counts import attention_widths
from dnapretrain.parallel.gpus import Gpu
from dnapretrain.plan.hardware import (
    BACKWARD_ATTENTION,
    HEAD_RAMP,
    LAUNCH_SECONDS,
    MASKED_ATTENTION,
    MEMORY_SHARE,
    QUANTIZATION,
    RAMP,
    TILE,
    Engine,
    exchange_seconds,
    gather_seconds,
    matmul_rate,
    ring_step_seconds,
    shares,
)

VALUE_BYTES = 2
"""Of bf16. No time is said of fp32, which the data sheet's peak is not for."""


@dataclass(frozen=True)
class Seconds:
    """Time by what it is spent on."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    launches: float = 0.0
    """What the host's launches take longer than the kernels."""
    tensor_parallel: float = 0.0
    """Collectives that nothing hides."""
    context_parallel: float = 0.0
    recomputed: float = 0.0
    quantization: float = 0.0
    """Scales and casts of what goes into products in FP8."""

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(mine + its for mine, its in zip(self.parts, other.parts, strict=True)))

    def __mul__(self, times: float) -> Seconds:
        return Seconds(*(part * times for part in self.parts))

    @property
    def parts(self) -> tuple[float, ...]:
        """All parts, in their order."""
        return (
            self.matmul,
            self.attention,
            self.elementwise,
            self.launches,
            self.tensor_parallel,
            self.context_parallel,
            self.recomputed,
            self.quantization,
        )

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(self.parts)


@dataclass(frozen=True)
class Work:
    """One micro-batch on one rank, in numbers: widths are those of the whole model."""

    tokens: int
    """Of this rank: its part of the sequence with context parallelism, all of it with sequence parallelism."""
    keys: int
    """Tokens that a query may look at, before causality."""
    hidden: int
    query: int
    key_value: int
    head_dim: int
    ffn: int
    is_gated: bool
    is_rotated: bool
    is_causal: bool
    has_mask: bool
    has_dropout: bool
    tp: int
    cp: int
    cp_comm_type: str
    sequence_parallel: bool
    recompute: str
    fp8_recipe: str | None
    """None: the layer is in bf16."""

    @property
    def residual_tokens(self) -> int:
        """Tokens between the tensor-parallel regions."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens


def work_of(config: RunConfig, length: int) -> Work:
    """What each rank does with a micro-batch of samples of `length` tokens."""
    model, parallel = config.model, config.parallel
    query, key_value = attention_widths(model)
    return Work(
        tokens=config.train.micro_batch_size * length // parallel.context_parallel_size,
        keys=length,
        hidden=model.hidden_size,
        query=query,
        key_value=key_value,
        head_dim=model.head_dim,
        ffn=model.ffn_hidden_size,
        is_gated=model.is_gated,
        is_rotated=model.position_embedding_type == "rope",
        is_causal=model.kind == "decoder",
        has_mask=config.data.document_attention,
        has_dropout=model.hidden_dropout > 0,
        tp=parallel.tensor_model_parallel_size,
        cp=parallel.context_parallel_size,
        cp_comm_type="all_gather" if config.torch_only or model.transformer_impl == "torch" else parallel.cp_comm_type,
        sequence_parallel=parallel.sequence_parallel,
        recompute=config.train.recompute,
        fp8_recipe=None if config.train.fp8 == "none" else config.train.fp8_recipe,
    )


def matmul_seconds(gpu: Gpu, rows: int, columns: int, terms: int, is_fp8: bool = False) -> float:
    """A product [rows, terms] x [terms, columns] of bf16 or FP8 values to bf16: by arithmetic in whole waves of tiles, or by memory if that
    takes longer."""
    tiles = math.ceil(rows / TILE) * math.ceil(columns / TILE)
    waves = math.ceil(tiles / gpu.multiprocessors)
    of_wave = 2.0 * TILE * TILE * gpu.multiprocessors * (terms + (2 if is_fp8 else 1) * RAMP)
    moved = (1 if is_fp8 else VALUE_BYTES) * (rows * terms + terms * columns) + VALUE_BYTES * rows * columns
    return max(waves * of_wave / matmul_rate(gpu, is_fp8), moved / (gpu.memory_bandwidth * MEMORY_SHARE))


def attention_seconds(gpu: Gpu, work: Work, engine: Engine) -> tuple[float, float]:
    """Attention, forward and backward. Fused: 4 and 10 x tokens x keys x width operations (the backward kernels compute the scores again),
    half of them where attention is causal; all of them with a mask of documents. Not fused: 4 and 8 x, and scores through memory."""
    pairs = work.tokens * work.keys / work.tp
    if not engine.fused_attention:
        heads, bandwidth = work.query // work.head_dim, gpu.memory_bandwidth * MEMORY_SHARE
        rate = matmul_rate(gpu) * work.head_dim / (work.head_dim + HEAD_RAMP)
        moved = VALUE_BYTES * heads * pairs / bandwidth
        return 4.0 * pairs * work.query / rate + 6.0 * moved, 8.0 * pairs * work.query / rate + 10.0 * moved
    scores = pairs * work.query * (0.5 if work.is_causal and not work.has_mask else 1.0)
    share = shares(gpu).attention * engine.attention * (MASKED_ATTENTION if work.has_mask else 1.0)
    rate = gpu.bf16_tflops * 1e12 * share * work.head_dim / (work.head_dim + HEAD_RAMP)
    return 4.0 * scores / rate, 10.0 * scores / (rate * BACKWARD_ATTENTION)


def elementwise_passes(work: Work, engine: Engine) -> tuple[float, float]:
    """Values read and written, forward and backward, by all that is no matrix product: norms, residuals, rotation, activation."""
    residual = work.residual_tokens * work.hidden
    rotated = work.tokens * (work.query + work.key_value) / work.tp if work.is_rotated else 0.0
    inner = work.tokens * work.ffn / work.tp
    around = (16.0, 18.0) if work.has_dropout else (10.0, 12.0)  # two norms (2; 3 backward), two additions (3), dropout's values and masks
    rotation = (2.0, 2.0) if engine.fused_elementwise else (10.0, 10.0)  # times cosine, half turned, times sine, sum
    if work.is_gated:
        activation = (3.0, 5.0) if engine.fused_elementwise else (5.0, 13.0)
    else:
        activation = (2.0, 3.0) if engine.fused_elementwise else (4.0, 3.0)  # the bias is added in a pass of its own
    forward, backward = (around[way] * residual + rotation[way] * rotated + activation[way] * inner for way in (0, 1))
    return forward, backward


def kernels(work: Work, engine: Engine) -> tuple[int, int]:
    """Launches of a layer, forward and backward: counted in Megatron-core's layer, to a few."""
    forward, backward = (16, 30) if engine.fused_elementwise else (28, 55)
    casts = 4 * QUANTIZATION[work.fp8_recipe].kernels if work.fp8_recipe else 0
    return forward + casts, backward + casts


def cast_seconds(gpu: Gpu, values: float, recipe: str) -> float:
    """Making FP8 values of so many bf16 ones, both ways round: passes over memory."""
    return QUANTIZATION[recipe].value_bytes * values / (gpu.memory_bandwidth * MEMORY_SHARE)


def cast_values(work: Work) -> tuple[float, float]:
    """bf16 values that become FP8 in a layer: forward what goes into its four products, backward the gradients of what came out."""
    residual = 2 * work.residual_tokens * work.hidden
    forward = work.tokens * (work.query + work.ffn) / work.tp
    backward = work.tokens * (work.query + 2 * work.key_value + (2 if work.is_gated else 1) * work.ffn) / work.tp
    return residual + forward, residual + backward


def context_seconds(gpu: Gpu, work: Work, attention: float, attention_backward: float) -> tuple[float, float]:
    """What is seen of context parallelism's communication, forward and backward, beside attention of so many seconds."""
    cp, tp, own = work.cp, work.tp, VALUE_BYTES * work.tokens / work.tp
    if cp == 1:
        return 0.0, 0.0
    if work.cp_comm_type == "a2a":  # queries, keys, values before attention and its result after it; their gradients the same way back
        once = exchange_seconds(gpu, own * (2 * work.query + 2 * work.key_value), cp, tp)
        return once, once
    if work.cp_comm_type == "all_gather":  # keys and values; backward once more, and their gradients scattered
        once = gather_seconds(gpu, cp * own * 2 * work.key_value, cp, tp)
        return once, 2 * once
    # While a rank works on one part of keys and values the next is on its way; backward with the gradients so far.
    step = ring_step_seconds(gpu, own * 2 * work.key_value, cp, tp)
    step_backward = ring_step_seconds(gpu, own * 4 * work.key_value, cp, tp)
    return (cp - 1) * max(0.0, step - attention / cp), (cp - 1) * max(0.0, step_backward - attention_backward / cp)


@lru_cache(maxsize=100_000)
def layer_seconds(gpu: Gpu, work: Work, engine: Engine) -> tuple[Seconds, Seconds]:
    """One layer, forward and backward (with what it recomputes)."""
    tp, size = work.tp, VALUE_BYTES
    column = ((work.query + 2 * work.key_value) // tp, work.hidden), ((2 if work.is_gated else 1) * work.ffn // tp, work.hidden)
    row = (work.hidden, work.query // tp), (work.hidden, work.ffn // tp)
    is_fp8 = work.fp8_recipe is not None
    forward_matmul = sum(matmul_seconds(gpu, work.tokens, rows, terms, is_fp8) for rows, terms in (*column, *row))
    input_gradients = [matmul_seconds(gpu, work.tokens, terms, rows, is_fp8) for rows, terms in (*column, *row)]
    weight_gradients = [matmul_seconds(gpu, rows, terms, work.tokens, is_fp8) for rows, terms in (*column, *row)]
    casts, casts_backward = (cast_seconds(gpu, values, work.fp8_recipe) if work.fp8_recipe else 0.0 for values in cast_values(work))
    attention, attention_backward = attention_seconds(gpu, work, engine)
    bandwidth = gpu.memory_bandwidth * MEMORY_SHARE
    passes, passes_backward = elementwise_passes(work, engine)
    launches, launches_backward = kernels(work, engine)

    gather = gather_seconds(gpu, work.tokens * work.hidden * size, tp, 1)
    gather_inputs = gather_seconds(gpu, work.tokens * work.hidden, tp, 1) if is_fp8 and work.sequence_parallel else gather
    seen = 1 / tp if engine.overlaps_tensor_parallel else 1.0
    forward_tp = (
        2 * (gather + gather_inputs) * seen
    )  # two all-reduces, or with sequence parallelism an all-gather and a reduce-scatter twice
    if work.sequence_parallel:  # gathering inputs anew hides behind input gradients, scattering these behind weight gradients
        behind = [gather_inputs - hidden for hidden in input_gradients[:2]] + [gather - hidden for hidden in weight_gradients[:2]]
        backward_tp = 2 * gather_inputs * seen + sum(max(0.0, rest) for rest in behind)
    else:
        backward_tp = sum(max(0.0, 2 * gather - hidden) for hidden in weight_gradients[:2])
    exchange, exchange_backward = context_seconds(gpu, work, attention, attention_backward)

    forward = Seconds(forward_matmul, attention, passes * size / bandwidth, 0.0, forward_tp, exchange, quantization=casts)
    forward = _with_launches(forward, launches)
    again = {"none": 0.0, "selective": attention + exchange, "full": forward.total}[work.recompute]
    backward = Seconds(
        sum(input_gradients) + sum(weight_gradients),
        attention_backward,
        passes_backward * size / bandwidth,
        0.0,
        backward_tp,
        exchange_backward,
        again,
        casts_backward,
    )
    return forward, _with_launches(backward, launches_backward)


@lru_cache(maxsize=100_000)
def head_seconds(gpu: Gpu, work: Work, rows: int, is_encoder: bool) -> tuple[Seconds, Seconds]:
    """What follows the layers, forward and backward: the encoder's dense layer, the projection to `rows` tokens, the loss in fp32."""
    columns = rows // work.tp
    dense = (work.residual_tokens, work.hidden, work.hidden)
    forward = matmul_seconds(gpu, work.tokens, columns, work.hidden) + (matmul_seconds(gpu, *dense) if is_encoder else 0.0)
    backward = matmul_seconds(gpu, work.tokens, work.hidden, columns) + matmul_seconds(gpu, columns, work.hidden, work.tokens)
    backward += 2 * matmul_seconds(gpu, *dense) if is_encoder else 0.0
    logits, bandwidth = work.tokens * columns, gpu.memory_bandwidth * MEMORY_SHARE
    gather = gather_seconds(gpu, work.tokens * work.hidden * VALUE_BYTES, work.tp, 1)
    loss = Seconds(
        forward, 0.0, 36.0 * logits / bandwidth, 0.0, gather if work.sequence_parallel else 0.0
    )  # bytes: softmax in several passes
    gradient = Seconds(backward, 0.0, 12.0 * logits / bandwidth, 0.0, gather if work.sequence_parallel else 2 * gather)
    return _with_launches(loss, 30), _with_launches(gradient, 20)


@lru_cache(maxsize=100_000)
def embedding_seconds(gpu: Gpu, work: Work) -> tuple[Seconds, Seconds]:
    """What comes before the layers, forward and backward: a look-up, summed over tensor-parallel ranks."""
    moved = work.tokens * work.hidden * VALUE_BYTES / (gpu.memory_bandwidth * MEMORY_SHARE)
    gather = gather_seconds(gpu, work.tokens * work.hidden * VALUE_BYTES, work.tp, 1)
    forward = Seconds(0.0, 0.0, 4 * moved, 0.0, gather if work.sequence_parallel else 2 * gather)
    return _with_launches(forward, 10), _with_launches(Seconds(0.0, 0.0, 6 * moved, 0.0, gather if work.sequence_parallel else 0.0), 10)


def _with_launches(seconds: Seconds, launches: int) -> Seconds:
    """`seconds`, and what the host takes longer to launch the kernels than they run."""
    return seconds + Seconds(launches=max(0.0, launches * LAUNCH_SECONDS - seconds.total))
