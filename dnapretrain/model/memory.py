"""How many bytes a rank of a layout needs in training, part by part: closed formulas, no torch.

What a part costs is said in MEMORY_FORMULA. Activations are the tensors that autograd keeps from the forward to the
backward pass of the torch path (a test counts them on a real model); Transformer Engine's kernels keep much the same, but
for attention's unfused ones, which keep heads x sequence^2: those of fp32, and of what neither flash-attn nor cuDNN takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.model.counts import attention_widths, layers_on_rank, rank_weights

MEMORY_FORMULA = {
    "weights": "per parameter 2 bytes in bf16, 4 in fp32",
    "gradients": "per parameter 4 bytes: summed in fp32",
    "optimizer": "per parameter 8 bytes of Adam moments, in bf16 4 more of main weights; divided by dp with the distributed optimizer",
    "activations": "what autograd keeps per token and layer, e bytes each value: norms 4 x hidden (inputs, outputs; over tp with sequence "
    "parallelism), queries, keys, values and attention's output (over tp, nothing of sequence^2), "
    "feed-forward 3 x ffn if gated, else 2 x ffn (over tp), 1 byte per dropped-out value; on the last stage 4 bytes of softmax per "
    "vocabulary row over tp (train.loss=nucleotide: 16 k + 4 per token besides), and the head. recompute=selective keeps all but "
    "attention's statistics; full keeps each layer's input. "
    "Times the micro-batches in flight: min(pp - stage, micro-batches), interleaved 2 (pp - stage - 1) + (vpp - 1) pp + 1 of one chunk",
    "doc. mask": "part of the activations: with data.document_attention e x micro-batch x sequence^2, once per chunk and micro-batch "
    "in flight, not per layer, where samples hold several documents; each query of a group has a key and value of its own then. "
    "ALiBi's bias, heads / tp x sequence^2 (once per sample where a mask is added to it), is counted the same way. FlexAttention needs "
    "none of these",
    "working": "gradients of the largest layer or the logits, one matrix's gradient before it is added, with recompute=full one layer",
    "allowance": "assumed: 2 GiB for CUDA, NCCL and workspaces, and 3 % of the rest for the allocator",
}
ALLOWANCE_BYTES = 2 * 2**30
ALLOWANCE_SHARE = 0.03


@dataclass(frozen=True)
class RankMemory:
    """Bytes on each rank of one pipeline rank."""

    pp_rank: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    allowance: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working + self.allowance


def busiest_rank(config: RunConfig, vocab_size: int, pad_id: int, data_parallel_size: int) -> RankMemory:
    """The pipeline rank that needs most memory."""
    stages = range(config.parallel.pipeline_model_parallel_size)
    return max((rank_memory(config, vocab_size, pad_id, data_parallel_size, stage) for stage in stages), key=lambda rank: rank.total)


def rank_memory(config: RunConfig, vocab_size: int, pad_id: int, data_parallel_size: int, pp_rank: int) -> RankMemory:
    """Memory of the ranks of pipeline rank `pp_rank` on CUDA, by MEMORY_FORMULA."""
    parallel, is_bf16 = config.parallel, config.train.precision == "bf16"
    parameters = rank_weights(config, vocab_size, pad_id, pp_rank).on_rank(parallel.tensor_model_parallel_size)
    sharded_over = data_parallel_size if parallel.use_distributed_optimizer else 1
    parts = {
        "weights": _value_bytes(config) * parameters,
        "gradients": 4 * parameters,
        "optimizer": (12 if is_bf16 else 8) * parameters // sharded_over,
        "activations": stage_activations(config, vocab_size, data_parallel_size, pp_rank),
        "working": _working(config, vocab_size, pp_rank),
    }
    allowance = ALLOWANCE_BYTES + int(ALLOWANCE_SHARE * sum(parts.values()))
    return RankMemory(pp_rank=pp_rank, parameters=parameters, **parts, allowance=allowance)


def stage_activations(config: RunConfig, vocab_size: int, data_parallel_size: int, pp_rank: int, is_cuda: bool = True) -> int:
    """Bytes that the micro-batches in flight keep on pipeline rank `pp_rank` when it has most of them."""
    parallel = config.parallel
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    layers = layers_on_rank(config, pp_rank)
    in_flight = chunks_in_flight(pp, parallel.virtual_pipeline_model_parallel_size, pp_rank, config.num_microbatches(data_parallel_size))
    biases = config.train.micro_batch_size * _alibi_bias(config)  # where a sample is padded, every sample of the batch has one of its own
    kept = in_flight * (layers // vpp * layer_activations(config, is_cuda) + _document_mask(config))
    kept += (in_flight if config.train.recompute == "none" else vpp) * biases
    if pp_rank == 0:
        kept += -(-in_flight // vpp) * _embedding_activations(config, is_cuda)
    if pp_rank == pp - 1:  # runs the backward pass of a micro-batch right after its forward pass: one in flight
        kept += _head_activations(config, vocab_size)
    return kept + vpp * _alibi_bias(config) + _rotations(config)


def chunks_in_flight(pp: int, vpp: int | None, pp_rank: int, num_microbatches: int) -> int:
    """Forward passes of one model chunk whose backward pass is still to come, at most: Megatron's warm-up and one more."""
    if vpp is None:
        return min(pp - pp_rank, num_microbatches)
    return min(2 * (pp - pp_rank - 1) + (vpp - 1) * pp + 1, num_microbatches * vpp)


def layer_activations(config: RunConfig, is_cuda: bool = True, recompute: str | None = None) -> int:
    """Bytes that one layer keeps of one micro-batch, under `recompute` (default: that of the settings)."""
    model, recompute = config.model, recompute or config.train.recompute
    tp, size, tokens = config.parallel.tensor_model_parallel_size, _value_bytes(config), _tokens(config)
    residual_tokens = tokens // _sequence_parts(config)
    if recompute == "full":
        return size * residual_tokens * model.hidden_size
    query, key_value = attention_widths(model)
    if config.data.document_attention and recompute == "none":
        key_value = query  # those of groups are repeated for every query
    attention = 2 * query + 2 * key_value
    feed_forward = (3 if model.is_gated else 2) * model.ffn_hidden_size
    kept = 2 * residual_tokens * (_norm_input(config) + size * model.hidden_size)
    kept += tokens * size * (attention + feed_forward) // tp
    if recompute == "none":
        kept += tokens * 4 * model.num_attention_heads // tp  # the softmax's statistics
    return kept + _dropout_masks(config, is_cuda)


def _embedding_activations(config: RunConfig, is_cuda: bool) -> int:
    model, tokens = config.model, _tokens(config)
    kept = 8 * tokens
    if model.position_embedding_type == "learned_absolute":
        kept += 8 * tokens
    if model.token_dropout:
        kept += tokens
    if model.embedding_norm:
        kept += tokens * _norm_input(config)
    if model.hidden_dropout:
        kept += tokens // _sequence_parts(config) * model.hidden_size * _mask_bytes(config, is_cuda)
    return kept


def _head_activations(config: RunConfig, vocab_size: int) -> int:
    model, tokens, size = config.model, _tokens(config), _value_bytes(config)
    per_token = size * model.hidden_size  # what the head is given
    if model.norm_position == "pre":
        per_token += _norm_input(config)
    if model.kind == "encoder":
        per_token += 2 * size * model.hidden_size + _norm_input(config)
    softmax = 4 * padded_vocab_size(vocab_size) // config.parallel.tensor_model_parallel_size
    by_base = 16 * config.tokenizer.bases_per_token + 4 if config.train.loss == "nucleotide" else 0
    return tokens // _sequence_parts(config) * per_token + tokens * (softmax + 9 + by_base)


def _working(config: RunConfig, vocab_size: int, pp_rank: int) -> int:
    model, tp, size, tokens = config.model, config.parallel.tensor_model_parallel_size, _value_bytes(config), _tokens(config)
    rows = padded_vocab_size(vocab_size)
    query, key_value = attention_widths(model)
    widest_layer = max((4 if model.is_gated else 2) * model.ffn_hidden_size, 2 * query + 2 * key_value)
    is_end = pp_rank in (0, config.parallel.pipeline_model_parallel_size - 1)
    is_last = pp_rank == config.parallel.pipeline_model_parallel_size - 1
    gradients = tokens * size * max(widest_layer, rows if is_last else 0) // tp + 2 * tokens * size * model.hidden_size
    largest_rows = max((2 if model.is_gated else 1) * model.ffn_hidden_size, query + 2 * key_value, rows if is_end else 0)
    recomputed = layer_activations(config, recompute="none") if config.train.recompute == "full" else 0
    return gradients + largest_rows * model.hidden_size // tp * size + recomputed


def _norm_input(config: RunConfig) -> int:
    """Bytes per token that a norm keeps: its input and its statistics."""
    return _value_bytes(config) * config.model.hidden_size + (8 if config.model.normalization == "LayerNorm" else 4)


def _dropout_masks(config: RunConfig, is_cuda: bool) -> int:
    model, tokens = config.model, _tokens(config)
    if not model.hidden_dropout:
        return 0
    residual = tokens // _sequence_parts(config) * model.hidden_size
    feed_forward = (
        residual if model.ffn_dropout == "output" else tokens * model.ffn_hidden_size // config.parallel.tensor_model_parallel_size
    )
    return (residual + feed_forward) * _mask_bytes(config, is_cuda)


def _mask_bytes(config: RunConfig, is_cuda: bool) -> int:
    """Of one dropped-out value: a flag on CUDA, a factor on CPU."""
    return 1 if is_cuda else _value_bytes(config)


def _alibi_bias(config: RunConfig) -> int:
    """Bytes of the bias over all pairs of positions, for this rank's heads."""
    if config.model.position_embedding_type != "alibi":
        return 0
    heads = config.model.num_attention_heads // config.parallel.tensor_model_parallel_size
    return heads * config.data.longest_length**2 * _value_bytes(config)


def _rotations(config: RunConfig) -> int:
    """Bytes of the rotary embedding's sines and cosines, which all layers share."""
    if config.model.position_embedding_type != "rope":
        return 0
    return 2 * config.data.longest_length * config.model.head_dim * _value_bytes(config)


def _document_mask(config: RunConfig) -> int:
    """Bytes of the mask that all layers of a chunk share; ALiBi adds it to its bias, which is what a layer then keeps."""
    added = config.model.position_embedding_type == "alibi" and config.train.recompute == "none"
    if not config.data.document_attention or added:
        return 0
    return config.train.micro_batch_size * config.data.longest_length**2 * _value_bytes(config)


def _sequence_parts(config: RunConfig) -> int:
    return config.parallel.tensor_model_parallel_size if config.parallel.sequence_parallel else 1


def _tokens(config: RunConfig) -> int:
    return config.train.micro_batch_size * config.data.longest_length


def _value_bytes(config: RunConfig) -> int:
    return 2 if config.train.precision == "bf16" else 4
