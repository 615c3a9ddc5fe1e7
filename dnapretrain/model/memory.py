"""How many bytes a rank of a layout needs in training, part by part: closed formulas, no torch.

What a part costs is said in MEMORY_FORMULA. Activations are the tensors that autograd keeps from the forward to the
backward pass of the torch path (a test counts them on real models, another the most bytes of a real step); Transformer Engine's
kernels keep much the same, but for fp32, which its unfused attention alone takes and keeps heads x sequence^2 for. On CUDA its layers
are taken for granted where the settings allow them: model.transformer_impl=torch for a machine without.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.model.context_memory import kept_values, moment_values
from dnapretrain.model.counts import attention_widths, layer_weights, layers_on_rank, rank_weights

MEMORY_FORMULA = {
    "weights": "per parameter 2 bytes in bf16, 4 in fp32; with train.fp8 2 more per layer weight: its FP8 copy, and that transposed",
    "gradients": "per parameter 4 bytes: summed in fp32",
    "optimizer": "per parameter 8 bytes of Adam moments, in bf16 4 more of main weights, over dp x cp with the distributed optimizer",
    "activations": "what autograd keeps per token of a rank (micro-batch x sequence / cp) and layer, e bytes each value: "
    "norms 4 x hidden (inputs, outputs; over tp with sequence parallelism), queries, keys and values, rotated once more, and attention's "
    "output (over tp; nothing of sequence^2; where cp > 1 torch's layers keep the output of a causal model twice, Transformer Engine's "
    "2 x queries and once keys and values with p2p, 3 x queries with all_gather and a2a: read in its source), "
    "feed-forward 3 x ffn if gated (5 in Transformer Engine's layers without bias_activation_fusion), else 2 x ffn (over tp; what FP8 "
    "keeps smaller is not taken off), 1 byte per dropped-out value; on the last stage 4 bytes of softmax per "
    "vocabulary row over tp (train.loss=nucleotide: 16 k + 4 per token besides), and the head. Transformer Engine in fp32: 4 bytes per "
    "head and pair of tokens. recompute=selective keeps all but what attention keeps for itself; full keeps each layer's input. "
    "Times the micro-batches in flight: min(pp - stage, micro-batches), interleaved 2 (pp - stage - 1) + (vpp - 1) pp + 1 of one chunk",
    "doc. mask": "part of the activations: with data.document_attention e x micro-batch x sequence^2 / cp, once per chunk and micro-batch "
    "in flight, not per layer, where samples hold several documents; each query of a group has a key and value of its own then. "
    "ALiBi's bias, e x heads / tp x sequence^2 / cp, is there once per chunk and, where a sample is padded or holds several documents, "
    "again for each sample of a micro-batch. FlexAttention needs none of these: counted all the same",
    "working": "what lives for a moment: copies of the logits; or, with the head's activations gone, gradients of hidden states and of the "
    "feed-forward's inner ones, one matrix's gradient before it is added, the scores of attention that is computed again, with "
    "recompute=full one layer. Where cp > 1 what attention exchanges: torch's layers and all_gather gather whole samples' keys and values "
    "(gathered, in order, their gradients: four times), p2p has each once and the results of all steps of its ring, a2a none",
    "allowance": "assumed: 2 GiB for CUDA, NCCL and workspaces, and 5 % of the rest for the allocator's fragments",
}
ALLOWANCE_BYTES = 2 * 2**30
ALLOWANCE_SHARE = 0.05


@dataclass(frozen=True)
class RankMemory:
    """Bytes on each rank of one pipeline rank."""

    pp_rank: int
    parameters: int
    layers: int
    chunks_in_flight: int
    """Forward passes of a model chunk whose activations are held."""
    layer_activations: int
    """Of one layer and one micro-batch: part of `activations`, as many times as there are layers in flight."""
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
    """The pipeline rank that needs most memory. Between the ends it is the second: later ones have fewer micro-batches in flight."""
    pp = config.parallel.pipeline_model_parallel_size
    stages = sorted({0, min(1, pp - 1), pp - 1})
    return max((rank_memory(config, vocab_size, pad_id, data_parallel_size, stage) for stage in stages), key=lambda rank: rank.total)


def rank_memory(config: RunConfig, vocab_size: int, pad_id: int, data_parallel_size: int, pp_rank: int) -> RankMemory:
    """Memory of the ranks of pipeline rank `pp_rank` on CUDA, by MEMORY_FORMULA."""
    parallel, is_bf16 = config.parallel, config.train.precision == "bf16"
    parameters = rank_weights(config, vocab_size, pad_id, pp_rank).on_rank(parallel.tensor_model_parallel_size)
    sharded_over = data_parallel_size * parallel.context_parallel_size if parallel.use_distributed_optimizer else 1
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    parts = {
        "weights": _value_bytes(config) * parameters + _fp8_copies(config, pp_rank),
        "gradients": 4 * parameters,
        "optimizer": (12 if is_bf16 else 8) * parameters // sharded_over,
        "activations": stage_activations(config, vocab_size, data_parallel_size, pp_rank),
        "working": _working(config, vocab_size, pp_rank),
    }
    allowance = ALLOWANCE_BYTES + int(ALLOWANCE_SHARE * sum(parts.values()))
    return RankMemory(
        pp_rank=pp_rank,
        parameters=parameters,
        layers=layers_on_rank(config, pp_rank),
        chunks_in_flight=chunks_in_flight(pp, vpp, pp_rank, config.num_microbatches(data_parallel_size)),
        layer_activations=layer_activations(config),
        **parts,
        allowance=allowance,
    )


def stage_activations(config: RunConfig, vocab_size: int, data_parallel_size: int, pp_rank: int, is_cuda: bool = True) -> int:
    """Bytes that the micro-batches in flight keep on pipeline rank `pp_rank` when it has most of them."""
    parallel = config.parallel
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    layers = layers_on_rank(config, pp_rank)
    in_flight = chunks_in_flight(pp, parallel.virtual_pipeline_model_parallel_size, pp_rank, config.num_microbatches(data_parallel_size))
    kept = in_flight * (layers // vpp * layer_activations(config, is_cuda) + _document_mask(config))
    if pp_rank == 0:
        kept += -(-in_flight // vpp) * _embedding_activations(config, is_cuda)
    if pp_rank == pp - 1:  # runs the backward pass of a micro-batch right after its forward pass: one in flight
        kept += _head_activations(config, vocab_size)
    if config.train.recompute == "full" and config.model.position_embedding_type == "rope":
        kept += 4 * config.data.longest_length // config.parallel.context_parallel_size * config.model.head_dim  # one tensor of angles
    return kept + _alibi_biases(config, is_cuda, in_flight)


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
    feed_forward = (2 if not model.is_gated else 3 if _is_gated_at_once(config, is_cuda) else 5) * model.ffn_hidden_size
    kept = 2 * residual_tokens * (_norm_input(config) + size * model.hidden_size)
    kept += tokens * size * (_attention_values(config, is_cuda, recompute) + feed_forward) // tp
    if recompute == "none":
        kept += _attention_keeps(config, is_cuda)
    if model.position_embedding_type == "rope":
        length = config.data.longest_length // config.parallel.context_parallel_size
        kept += 4 * length * model.head_dim * size  # sines and cosines, for queries and for keys
    return kept + _dropout_masks(config, is_cuda)


def _attention_values(config: RunConfig, is_cuda: bool, recompute: str) -> int:
    """Queries, keys, values and results per token that autograd keeps of attention, over all tensor-parallel ranks."""
    model, cp = config.model, config.parallel.context_parallel_size
    query, key_value = attention_widths(model)
    of_te = cp > 1 and _is_transformer_engine(config, is_cuda)
    attention = 2 * query + 2 * key_value  # the projection's result, of which the values are a part, and attention's result
    if cp > 1 and model.kind == "decoder" and not of_te:
        attention += query  # the results of both halves of the sequence, and these behind each other
    if cp == 1 and config.data.document_attention and model.query_groups < model.num_attention_heads:
        # Keys and values repeated; the projection's result goes, unless queries that are not rotated are a part of it.
        copied = model.position_embedding_type == "rope" or model.query_groups > 1
        attention = 4 * query + (0 if copied else 2 * key_value)
    elif model.position_embedding_type == "rope":
        attention += query + key_value
    elif 1 < model.query_groups < model.num_attention_heads:
        attention += query  # the queries of a group lie between keys and values of others: they are copied out
    if not of_te or recompute == "selective":  # then attention is given these, and keeps nothing itself
        return attention
    kept = kept_values(config.parallel.cp_comm_type, query, key_value)
    return kept if model.kind == "decoder" else max(kept, attention)  # an encoder's padded samples are torch's


def _context_moment(config: RunConfig, is_cuda: bool) -> int:
    """Bytes that attention over context-parallel ranks has for a moment beside what is kept, in the backward pass at the latest."""
    model, parallel, size = config.model, config.parallel, _value_bytes(config)
    cp, tp = parallel.context_parallel_size, parallel.tensor_model_parallel_size
    query, key_value = attention_widths(model)
    if cp == 1:
        return 0
    # Gathered keys and values of whole samples, in order, and their gradients; each query of a group has its own with a mask.
    of_torch = 4 * 2 * cp * (query if config.data.document_attention else key_value)
    if not _is_transformer_engine(config, is_cuda):
        return _tokens(config) * size * of_torch // tp
    values = moment_values(parallel.cp_comm_type, query, key_value, cp, model.kind == "decoder")
    if config.train.recompute == "selective":
        values += kept_values(parallel.cp_comm_type, query, key_value)
    if model.kind == "encoder":
        values = max(values, of_torch)
    return _tokens(config) * size * values // tp


def _is_gated_at_once(config: RunConfig, is_cuda: bool) -> bool:
    """Whether a gated activation keeps its input alone, and its gradients are made at once."""
    return config.model.is_gated and (config.train.bias_activation_fusion or not _is_transformer_engine(config, is_cuda))


def _fp8_copies(config: RunConfig, pp_rank: int) -> int:
    """Bytes of what the layers of FP8 keep of their weights from the first micro-batch of a step to its last."""
    if config.train.fp8 == "none":
        return 0
    return 2 * layer_weights(config.model).split // config.parallel.tensor_model_parallel_size * layers_on_rank(config, pp_rank)


def _attention_keeps(config: RunConfig, is_cuda: bool) -> int:
    """Bytes that attention itself keeps of a micro-batch, which selective recomputation lets go."""
    model, heads = config.model, config.model.num_attention_heads // config.parallel.tensor_model_parallel_size
    if not _is_transformer_engine(config, is_cuda):
        return _tokens(config) * 4 * heads  # the softmax's statistics
    if config.train.precision == "bf16":
        return _tokens(config) * 4 * heads  # the softmax's statistics
    pairs = _tokens(config) * config.data.longest_length * heads
    return pairs * (9 if model.attention_dropout else 4)  # probabilities; with dropout what is left of them, and which were dropped


def _is_transformer_engine(config: RunConfig, is_cuda: bool) -> bool:
    return is_cuda and config.model.transformer_impl != "torch" and not config.torch_only


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


def _working(config: RunConfig, vocab_size: int, pp_rank: int, is_cuda: bool = True) -> int:
    """Bytes above the activations at the worst moment: when the loss is computed, or in the backward pass of the first layer that it
    reaches, when the head's activations are gone."""
    model, tp, size, tokens = config.model, config.parallel.tensor_model_parallel_size, _value_bytes(config), _tokens(config)
    query, key_value = attention_widths(model)
    rows = [(2 if model.is_gated else 1) * model.ffn_hidden_size, query + 2 * key_value, model.hidden_size * (model.kind == "encoder")]
    inner = (2 if _is_gated_at_once(config, is_cuda) else 1) * model.ffn_hidden_size
    in_layer = tokens * size * (2 * model.hidden_size + inner // tp) + max(rows[:2]) * model.hidden_size // tp * size
    if config.train.recompute == "full":
        input_of_layer = size * tokens // _sequence_parts(config) * model.hidden_size
        in_layer += layer_activations(config, is_cuda, recompute="none") - input_of_layer
    elif config.train.recompute == "selective":
        in_layer += _attention_keeps(config, is_cuda)
    in_layer += _context_moment(config, is_cuda)
    if pp_rank < config.parallel.pipeline_model_parallel_size - 1:
        return in_layer
    # Logits in the model's type and, in fp32, once more beside those that are kept; the metric's numbers of each token.
    width = padded_vocab_size(vocab_size) // tp
    of_loss = tokens * (width * (2 * size if size == 4 else size) + 160) + max(width, rows[2]) * model.hidden_size * size
    return max(of_loss, in_layer - _head_activations(config, vocab_size))


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
    """Bytes of the bias over all pairs of positions, for this rank's heads and queries."""
    if config.model.position_embedding_type != "alibi":
        return 0
    heads = config.model.num_attention_heads // config.parallel.tensor_model_parallel_size
    return heads * config.data.longest_length**2 // config.parallel.context_parallel_size * _value_bytes(config)


def _alibi_biases(config: RunConfig, is_cuda: bool, in_flight: int) -> int:
    """Bytes of all biases that are there at once, for `in_flight` forward passes of chunks."""
    bias, chunks = _alibi_bias(config), config.parallel.virtual_pipeline_model_parallel_size or 1
    if _is_transformer_engine(config, is_cuda):
        return bias
    # Where a sample is padded, every sample of a micro-batch has a bias of its own; a chunk holds the last ones in any case.
    with_mask = config.train.micro_batch_size * (in_flight if config.train.recompute == "none" else chunks)
    return (chunks + with_mask) * bias


def _document_mask(config: RunConfig) -> int:
    """Bytes of the mask that all layers of a chunk share; ALiBi adds it to its bias, which is what a layer then keeps."""
    added = config.model.position_embedding_type == "alibi" and config.train.recompute == "none"
    if not config.data.document_attention or added:
        return 0
    return _tokens(config) * config.data.longest_length * _value_bytes(config)


def _sequence_parts(config: RunConfig) -> int:
    return config.parallel.tensor_model_parallel_size if config.parallel.sequence_parallel else 1


def _tokens(config: RunConfig) -> int:
    """Of a micro-batch on this rank."""
    return config.train.micro_batch_size * config.data.longest_length // config.parallel.context_parallel_size


def _value_bytes(config: RunConfig) -> int:
    return 2 if config.train.precision == "bf16" else 4
