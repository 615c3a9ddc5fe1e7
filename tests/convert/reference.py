"""A decoder and an encoder written out slowly from native tensors, and small random checkpoints to feed them with."""

import math
from pathlib import Path

import torch
from torch import Tensor

from dnapretrain.config import ModelConfig, RunConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import build_tokenizer


def small_config(tokenizer: dict | None = None, **model) -> RunConfig:
    settings = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 40, **model}
    return config_from_dict(
        {
            "data": {"train": ["shards/coli"], "sequence_length": 64},
            "tokenizer": tokenizer or {"kind": "nucleotide"},
            "model": settings,
            "optim": {"lr": 1e-3},
            "train": {"run_dir": "runs/small", "train_steps": 7, "micro_batch_size": 1, "global_batch_size": 1},
        }
    )


def small_encoder(tokenizer: dict | None = None, **model) -> RunConfig:
    """An encoder that EsmForMaskedLM can express."""
    settings = {
        "kind": "encoder",
        "num_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "ffn_hidden_size": 40,
        "normalization": "LayerNorm",
        "activation": "gelu",
        "attention_bias": True,
        "ffn_in_bias": True,
        "ffn_out_bias": True,
        **model,
    }
    return config_from_dict(
        {
            "data": {"train": ["shards/coli"], "sequence_length": 64, "masking": {"mlm_probability": 0.15}},
            "tokenizer": tokenizer or {"kind": "nucleotide"},
            "model": settings,
            "optim": {"lr": 1e-3},
            "train": {"run_dir": "runs/small", "train_steps": 7, "micro_batch_size": 1, "global_batch_size": 1},
        }
    )


def native_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Written down from Megatron-core's naming, not from the table under test."""
    hidden, ffn, padded = model.hidden_size, model.ffn_hidden_size, padded_vocab_size(vocab_size)
    heads, groups, width = model.num_attention_heads, model.query_groups, model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (padded, hidden)}
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}"
        shapes[f"{layer}.self_attention.linear_qkv.layer_norm_weight"] = (hidden,)
        shapes[f"{layer}.self_attention.linear_qkv.weight"] = ((heads + 2 * groups) * width, hidden)
        shapes[f"{layer}.self_attention.linear_proj.weight"] = (hidden, heads * width)
        shapes[f"{layer}.mlp.linear_fc1.layer_norm_weight"] = (hidden,)
        shapes[f"{layer}.mlp.linear_fc1.weight"] = (2 * ffn, hidden)
        shapes[f"{layer}.mlp.linear_fc2.weight"] = (hidden, ffn)
    shapes["decoder.final_layernorm.weight"] = (hidden,)
    if model.untie_embeddings_and_output_weights:
        shapes["output_layer.weight"] = (padded, hidden)
    return shapes


def encoder_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Written down from Megatron-core's naming and FORMAT.md, for the encoders of `small_encoder`."""
    model, tokenizer = config.model, build_tokenizer(config.tokenizer)
    hidden, ffn, padded = model.hidden_size, model.ffn_hidden_size, padded_vocab_size(tokenizer.vocab_size)
    linear = {
        "self_attention.linear_qkv.": (3 * hidden, hidden),
        "self_attention.linear_proj.": (hidden, hidden),
        "mlp.linear_fc1.": (ffn, hidden),
        "mlp.linear_fc2.": (hidden, ffn),
    }
    modules = {"embedding.norm.": (hidden,)} if model.embedding_norm else {}
    for i in range(model.num_layers):
        modules |= {f"encoder.layers.{i}.{name}layer_norm_": (hidden,) for name in ("self_attention.linear_qkv.", "mlp.linear_fc1.")}
        modules |= {f"encoder.layers.{i}.{name}": shape for name, shape in linear.items()}
    modules |= {"encoder.final_layernorm.": (hidden,), "lm_head.dense.": (hidden, hidden), "lm_head.layer_norm.": (hidden,)}
    shapes = {f"{name}weight": shape for name, shape in modules.items()} | {f"{name}bias": shape[:1] for name, shape in modules.items()}
    shapes["embedding.word_embeddings.weight"] = (padded, hidden)
    if model.position_embedding_type == "learned_absolute":
        shapes["embedding.position_embeddings.weight"] = (config.max_positions + 1 + tokenizer.pad_id, hidden)
    if model.untie_embeddings_and_output_weights:
        shapes["output_layer.weight"] = (padded, hidden)
    shapes["output_layer.bias"] = (padded,)
    return shapes


def random_tensors(config: RunConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every native tensor random, norms, biases and padding rows too."""
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in (encoder_shapes(config) if config.is_masked else native_shapes(config.model, vocab_size)).items():
        values = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.3 * values if "norm" in name else 0.3 * values).to(dtype)
    return tensors


def write_random(directory: Path, config: RunConfig, seed: int = 0, dtype: torch.dtype = torch.float32, **state) -> dict[str, Tensor]:
    tensors = random_tensors(config, seed, dtype)
    write_native(directory, config, build_tokenizer(config.tokenizer), tensors.items(), dtype, state)
    return tensors


def reference_logits(config: RunConfig, tensors: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    """Logits [S, V] of one sample, real vocabulary only, head by head and position by position where it matters."""
    model = config.model
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    hidden = tensors["embedding.word_embeddings.weight"][tokens_S]
    for i in range(model.num_layers):
        part = {
            name.removeprefix(f"decoder.layers.{i}."): value for name, value in tensors.items() if name.startswith(f"decoder.layers.{i}.")
        }
        normed = rms_norm(hidden, part["self_attention.linear_qkv.layer_norm_weight"], model.norm_epsilon)
        hidden = hidden + attention(model, part, normed)
        normed = rms_norm(hidden, part["mlp.linear_fc1.layer_norm_weight"], model.norm_epsilon)
        gate, up = (
            normed @ part["mlp.linear_fc1.weight"][: model.ffn_hidden_size].T,
            normed @ part["mlp.linear_fc1.weight"][model.ffn_hidden_size :].T,
        )
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ part["mlp.linear_fc2.weight"].T
    hidden = rms_norm(hidden, tensors["decoder.final_layernorm.weight"], model.norm_epsilon)
    return hidden @ tensors.get("output_layer.weight", tensors["embedding.word_embeddings.weight"])[:vocab_size].T


def encoder_logits(config: RunConfig, tensors: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    """Logits [S, V] of one sample without padding, real vocabulary only; pre-norm, LayerNorm, GELU."""
    model, tokenizer = config.model, build_tokenizer(config.tokenizer)
    words = tensors["embedding.word_embeddings.weight"]
    hidden = words[tokens_S]
    if model.token_dropout:
        masked = tokens_S == tokenizer.mask_id
        hidden[masked] = 0.0
        hidden = hidden * (1 - model.token_dropout) / (1 - masked.sum().item() / len(tokens_S))
    if model.position_embedding_type == "learned_absolute":
        first = tokenizer.pad_id + 1
        hidden = hidden + tensors["embedding.position_embeddings.weight"][first : first + len(tokens_S)]
    if model.embedding_norm:
        hidden = layer_norm(hidden, tensors, "embedding.norm.", model.norm_epsilon)
    for i in range(model.num_layers):
        part = {
            name.removeprefix(f"encoder.layers.{i}."): value for name, value in tensors.items() if name.startswith(f"encoder.layers.{i}.")
        }
        normed = layer_norm(hidden, part, "self_attention.linear_qkv.layer_norm_", model.norm_epsilon)
        hidden = hidden + attention(model, part, normed)
        normed = layer_norm(hidden, part, "mlp.linear_fc1.layer_norm_", model.norm_epsilon)
        hidden = hidden + linear(gelu(linear(normed, part, "mlp.linear_fc1.")), part, "mlp.linear_fc2.")
    hidden = layer_norm(hidden, tensors, "encoder.final_layernorm.", model.norm_epsilon)
    hidden = layer_norm(gelu(linear(hidden, tensors, "lm_head.dense.")), tensors, "lm_head.layer_norm.", model.norm_epsilon)
    return (hidden @ tensors.get("output_layer.weight", words).T + tensors["output_layer.bias"])[:, : tokenizer.vocab_size]


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return x @ tensors[f"{name}weight"].T + tensors[f"{name}bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def layer_norm(x: Tensor, tensors: dict[str, Tensor], name: str, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + epsilon)
    return normed * tensors[f"{name}weight"] + tensors[f"{name}bias"]


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * gain


def attention(model: ModelConfig, part: dict[str, Tensor], x: Tensor) -> Tensor:
    """Causal in a decoder; biases and rotation where the model has them."""
    weight, width = part["self_attention.linear_qkv.weight"], model.head_dim
    bias = part.get("self_attention.linear_qkv.bias", torch.zeros(len(weight)))
    per_group = model.num_attention_heads // model.query_groups
    outputs, row = [], 0

    def next_head(turns: bool) -> Tensor:
        nonlocal row
        row += width
        head = x @ weight[row - width : row].T + bias[row - width : row]
        return rotate(head, model.rotary_base) if turns and model.position_embedding_type == "rope" else head

    for _ in range(model.query_groups):
        queries = [next_head(turns=True) for _ in range(per_group)]
        key, value = next_head(turns=True), next_head(turns=False)
        for query in queries:
            scores = query @ key.T / math.sqrt(width)
            if model.kind == "decoder":
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            outputs.append(torch.softmax(scores, dim=-1) @ value)
    projected = torch.cat(outputs, dim=-1) @ part["self_attention.linear_proj.weight"].T
    return projected + part.get("self_attention.linear_proj.bias", torch.zeros(model.hidden_size))


def rotate(x: Tensor, base: int) -> Tensor:
    """Rotary embedding that turns element j with element j + width/2."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (torch.arange(x.shape[0], dtype=torch.float64)[:, None] * frequency).to(x.dtype)
    first, second = x[:, :half], x[:, half:]
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)
