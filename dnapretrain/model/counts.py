"""How many weights a model has, where they lie, and the arithmetic of a training step: closed formulas, no torch.

A weight is split over the tensor-parallel ranks or the same on each of them; layers are spread over the
pipeline ranks as the settings say, the first of which has the embeddings, the last the final norm, the head and the output layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnapretrain.config import ModelConfig, RunConfig, padded_vocab_size
from dnapretrain.errors import ConfigError

FLOPS_FORMULA = (
    "per token 3 x forward (backward costs twice the forward); forward = 2 x (matrix weights of layers, masked-LM head and output layer "
    "over the padded vocabulary, not embeddings and norms) + 4 x layers x sequence x heads x head width, of which a causal model needs "
    "half; recomputation not counted"
)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: in tensors split over tensor-parallel ranks, and in tensors that each of those ranks holds whole."""

    split: int = 0
    whole: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.split + other.split, self.whole + other.whole)

    def __mul__(self, times: int) -> Weights:
        return Weights(self.split * times, self.whole * times)

    @property
    def total(self) -> int:
        """Parameters of one whole copy."""
        return self.split + self.whole

    def on_rank(self, tensor_parallel: int) -> int:
        """Parameters that one of `tensor_parallel` ranks holds."""
        return self.split // tensor_parallel + self.whole


def total_parameters(config: RunConfig, vocab_size: int, pad_id: int) -> int:
    """Parameters of the model as Hugging Face counts them: the vocabulary without its padding rows, tied tensors once."""
    return _whole_model(config, vocab_size, pad_id).total


def stored_parameters(config: RunConfig, vocab_size: int, pad_id: int) -> int:
    """Parameters of the model as it is trained and saved: the vocabulary padded, tied tensors once."""
    return _whole_model(config, padded_vocab_size(vocab_size), pad_id).total


def checkpoint_bytes(config: RunConfig, vocab_size: int, pad_id: int) -> int:
    """Bytes of all tensors of a checkpoint: weights, Adam's two moments in fp32, and main weights in fp32 where there are any.

    The distributed optimizer stores main weights whatever the precision.
    """
    is_bf16, parts = config.train.precision == "bf16", config.parallel.use_distributed_optimizer
    return stored_parameters(config, vocab_size, pad_id) * ((2 if is_bf16 else 4) + 8 + (4 if is_bf16 or parts else 0))


def rank_parameters(config: RunConfig, vocab_size: int, pad_id: int, pp_rank: int) -> int:
    """Parameters on each rank of pipeline rank `pp_rank`, virtual stages included.

    A tied output layer is a copy on the last pipeline rank when that is not also the first.
    """
    return rank_weights(config, vocab_size, pad_id, pp_rank).on_rank(config.parallel.tensor_model_parallel_size)


def rank_weights(config: RunConfig, vocab_size: int, pad_id: int, pp_rank: int) -> Weights:
    """The weights of pipeline rank `pp_rank`, summed over its tensor-parallel ranks where they are split."""
    model, pp = config.model, config.parallel.pipeline_model_parallel_size
    rows = padded_vocab_size(vocab_size)
    weights = layer_weights(model) * layers_on_rank(config, pp_rank)
    if pp_rank == 0:
        weights += embedding_weights(model, rows, config.max_positions, pad_id)
    if pp_rank == pp - 1:
        weights += head_weights(model) + output_weights(model, rows)
        if pp > 1 and not model.untie_embeddings_and_output_weights:
            weights += Weights(split=rows * model.hidden_size)
    return weights


def layers_on_rank(config: RunConfig, pp_rank: int) -> int:
    """Transformer layers of pipeline rank `pp_rank`, those of all its model chunks. Raises ConfigError where they cannot be spread."""
    layers = config.parallel.layers_on_ranks(config.model.num_layers)
    if layers is None:
        pp = config.parallel.pipeline_model_parallel_size
        raise ConfigError(f"model.num_layers = {config.model.num_layers} cannot be spread over {pp} pipeline ranks. Change one.")
    return layers[pp_rank]


def pipeline_ends(num_layers: int, pp: int) -> tuple[int, int] | None:
    """Layers of the first and the last of `pp` ranks where `pp` does not divide them: a little less than the others have, for the
    ends have embeddings and head. None where it does, and where no layer would be left for the ends."""
    ends = num_layers - -(-num_layers // pp) * (pp - 2)
    return (ends - ends // 2, ends // 2) if num_layers % pp and ends >= 2 else None


def embedding_weights(model: ModelConfig, rows: int, max_positions: int, pad_id: int) -> Weights:
    """Word table of `rows` rows; position table (ESM's: rows up to the padding id are never read), token types and norm of encoders."""
    hidden = model.hidden_size
    position_rows = max_positions + pad_id + 1 if model.position_embedding_type == "learned_absolute" else 0
    whole = (position_rows + model.type_vocab_size) * hidden + (_norm(model) if model.embedding_norm else 0)
    return Weights(split=rows * hidden, whole=whole)


def layer_weights(model: ModelConfig) -> Weights:
    """One transformer layer: two norms, attention, feed-forward. Biases of what a matrix's rows give are split as its rows are."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    query, key_value = attention_widths(model)
    qkv_rows, fc1_rows = query + 2 * key_value, (2 if model.is_gated else 1) * ffn
    split = qkv_rows * (hidden + model.attention_bias) + query * hidden + fc1_rows * (hidden + model.ffn_in_bias) + ffn * hidden
    return Weights(split=split, whole=2 * _norm(model) + hidden * (model.attention_bias + model.ffn_out_bias))


def head_weights(model: ModelConfig) -> Weights:
    """What lies between the last layer and the output layer: the final norm of pre-norm models, the masked-LM head of encoders."""
    final_norm = _norm(model) if model.norm_position == "pre" else 0
    masked_lm_head = model.hidden_size * (model.hidden_size + 1) + _norm(model) if model.kind == "encoder" else 0
    return Weights(whole=final_norm + masked_lm_head)


def output_weights(model: ModelConfig, rows: int) -> Weights:
    """The projection to `rows` tokens: nothing but the encoder's bias where it is tied to the word table."""
    matrix = rows * model.hidden_size if model.untie_embeddings_and_output_weights else 0
    return Weights(split=matrix + (rows if model.kind == "encoder" else 0))


def attention_widths(model: ModelConfig) -> tuple[int, int]:
    """Width of all queries, and of all keys (values alike)."""
    return model.num_attention_heads * model.head_dim, model.query_groups * model.head_dim


def flops_per_token(model: ModelConfig, sequence_length: int, vocab_size: int) -> float:
    """Floating-point operations of training per token, by FLOPS_FORMULA."""
    hidden = model.hidden_size
    query, key_value = attention_widths(model)
    feed_forward = (3 if model.is_gated else 2) * hidden * model.ffn_hidden_size
    layer = 2 * hidden * (query + key_value) + feed_forward
    masked_lm_head = hidden * hidden if model.kind == "encoder" else 0
    matrices = model.num_layers * layer + masked_lm_head + hidden * padded_vocab_size(vocab_size)
    attention = (4 if model.kind == "encoder" else 2) * model.num_layers * sequence_length * query
    return 3.0 * (2.0 * matrices + attention)


def _whole_model(config: RunConfig, rows: int, pad_id: int) -> Weights:
    model = config.model
    ends = embedding_weights(model, rows, config.max_positions, pad_id) + head_weights(model) + output_weights(model, rows)
    return ends + layer_weights(model) * model.num_layers


def _norm(model: ModelConfig) -> int:
    return model.hidden_size * (2 if model.normalization == "LayerNorm" else 1)
