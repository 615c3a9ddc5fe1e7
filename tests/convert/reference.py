"""A decoder written out slowly from native tensors, and small random checkpoints to feed it with."""

import math
from pathlib import Path

import torch
from torch import Tensor

from dnapretrain.config import ModelConfig, RunConfig, config_from_dict, padded_vocab_size
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokenizers import build_tokenizer


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


def random_tensors(config: RunConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every native tensor random, norm gains and padding rows too."""
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in native_shapes(config.model, vocab_size).items():
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


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * gain


def attention(model: ModelConfig, part: dict[str, Tensor], x: Tensor) -> Tensor:
    weight, width = part["self_attention.linear_qkv.weight"], model.head_dim
    per_group = model.num_attention_heads // model.query_groups
    outputs, row = [], 0

    def next_head() -> Tensor:
        nonlocal row
        row += width
        return x @ weight[row - width : row].T

    for _ in range(model.query_groups):
        queries = [rotate(next_head(), model.rotary_base) for _ in range(per_group)]
        key, value = rotate(next_head(), model.rotary_base), next_head()
        for query in queries:
            scores = query @ key.T / math.sqrt(width)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            outputs.append(torch.softmax(scores, dim=-1) @ value)
    return torch.cat(outputs, dim=-1) @ part["self_attention.linear_proj.weight"].T


def rotate(x: Tensor, base: int) -> Tensor:
    """Rotary embedding that turns element j with element j + width/2."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (torch.arange(x.shape[0], dtype=torch.float64)[:, None] * frequency).to(x.dtype)
    first, second = x[:, :half], x[:, half:]
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)
