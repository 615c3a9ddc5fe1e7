"""The five published families: their sections at full size and small, and slow references written from their description.

A reference reads the tensors of a Hugging Face folder by their published names, one sample without padding at a time, head by head.
"""

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.bpe import vocabulary_of_merges
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer

ENCODER = {"kind": "encoder", "normalization": "LayerNorm", "attention_bias": True}
NT_V1 = {
    **ENCODER,
    "norm_epsilon": 1e-12,
    "activation": "gelu",
    "ffn_in_bias": True,
    "ffn_out_bias": True,
    "position_embedding_type": "learned_absolute",
    "token_dropout": 0.12,
    "max_position_embeddings": 1000,
}
NT_V2 = {**ENCODER, "norm_epsilon": 1e-12, "activation": "swiglu", "position_embedding_type": "rope", "max_position_embeddings": 2048}
DNABERT2 = {
    **ENCODER,
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "activation": "geglu",
    "ffn_out_bias": True,
    "position_embedding_type": "alibi",
    "embedding_norm": True,
    "type_vocab_size": 2,
    "hidden_dropout": 0.1,
    "ffn_dropout": "inner",
    "untie_embeddings_and_output_weights": False,
    "max_position_embeddings": 512,
}
AIDO = {
    **ENCODER,
    "norm_epsilon": 1e-5,
    "activation": "swiglu",
    "ffn_in_bias": True,
    "ffn_out_bias": True,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": False,
    "max_position_embeddings": 4002,
}
GENERATOR = {"num_query_groups": 4, "rotary_base": 500_000, "max_position_embeddings": 16_384}


def sizes(layers: int, hidden: int, heads: int, ffn: int) -> dict:
    return {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "ffn_hidden_size": ffn}


PUBLISHED = {
    "generator-1.2b": ("generator", {**GENERATOR, **sizes(26, 2048, 32, 5632)}),
    "generator-3b": ("generator", {**GENERATOR, **sizes(30, 3072, 32, 8448)}),
    "nt-v1-500m": ("nt_v1", {**NT_V1, **sizes(24, 1280, 20, 5120)}),
    "nt-v1-2.5b": ("nt_v1", {**NT_V1, **sizes(32, 2560, 20, 10240)}),
    "nt-v2-50m": ("nt_v2", {**NT_V2, **sizes(12, 512, 16, 2048)}),
    "nt-v2-100m": ("nt_v2", {**NT_V2, **sizes(22, 512, 16, 2048)}),
    "nt-v2-250m": ("nt_v2", {**NT_V2, **sizes(24, 768, 16, 3072)}),
    "nt-v2-500m": ("nt_v2", {**NT_V2, **sizes(29, 1024, 16, 4096)}),
    "dnabert2": ("bpe", {**DNABERT2, **sizes(12, 768, 12, 3072)}),
    "aido-dna-300m": ("aido_dna", {**AIDO, **sizes(24, 1024, 16, 2688)}),
    "aido-dna-7b": ("aido_dna", {**AIDO, **sizes(32, 4352, 32, 11584)}),
}
"""Tokenizer kind and model section."""
SMALL = {
    "nt-v2": ("nt_v2", {**NT_V2, **sizes(2, 24, 4, 40)}),
    "dnabert2": ("bpe", {**DNABERT2, **sizes(2, 36, 6, 40)}),
    "aido-dna": ("aido_dna", {**AIDO, **sizes(2, 24, 4, 40)}),
}
"""Six heads are no power of two: ALiBi's slopes are those of four, and two more."""
CLASSES = {"nt-v2": "EsmFor", "dnabert2": "BertFor", "aido-dna": "RNABertFor"}


MERGES = "A+A C+G AA+AA AAAA+AAAA T+G TG+T CG+CG C+A CGCG+TGT CA+TG G+G T+T GG+TT"


def bpe_of(num_tokens: int | None) -> Tokenizer:
    """A BPE tokenizer of 22 tokens; or one of so many, made up, to be counted only."""
    merges = [tuple(merge.split("+")) for merge in MERGES.split()]
    if num_tokens:
        pieces = itertools.product("ACGT", repeat=7)
        merges = [("".join(piece), "A") for piece in itertools.islice(pieces, num_tokens - 9)]
    return Tokenizer("bpe", 5, "ACGT", add_bos=True, add_eos=True, bpe=vocabulary_of_merges(merges))


def tokenizer_of(kind: str, num_tokens: int | None = 4096) -> Tokenizer:
    return bpe_of(num_tokens) if kind == "bpe" else build_tokenizer(tokenizer_config(kind))


def tokenizer_config(kind: str):
    from dnapretrain.config import TokenizerConfig

    return TokenizerConfig.model_validate({"kind": kind})


def run_config(tokenizer: dict, model: dict) -> RunConfig:
    masking = {"masking": {"mlm_probability": 0.15}} if model.get("kind") == "encoder" else {}
    return config_from_dict(
        {
            "data": {"train": ["shards/coli"], "sequence_length": 64, **masking},
            "tokenizer": tokenizer,
            "model": model,
            "optim": {"lr": 1e-3},
            "train": {"run_dir": "runs/small", "train_steps": 7, "micro_batch_size": 1, "global_batch_size": 1},
        }
    )


def native_shapes(config: RunConfig, tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """Every native tensor of an encoder, written down from FORMAT.md."""
    model = config.model
    hidden, ffn, padded = model.hidden_size, model.ffn_hidden_size, padded_vocab_size(tokenizer.vocab_size)
    inner = ffn if model.activation == "gelu" else 2 * ffn
    norms, linears = ["lm_head.layer_norm."], {"lm_head.dense.": (hidden, hidden)}
    without_bias = set()
    if model.embedding_norm:
        norms.append("embedding.norm.")
    if model.norm_position == "pre":
        norms.append("encoder.final_layernorm.")
    for i in range(model.num_layers):
        layer = f"encoder.layers.{i}."
        if model.norm_position == "pre":
            norms += [layer + "self_attention.linear_qkv.layer_norm_", layer + "mlp.linear_fc1.layer_norm_"]
        else:
            norms += [layer + "post_self_attn_layernorm.", layer + "post_mlp_layernorm."]
        linears |= {layer + "self_attention.linear_qkv.": (3 * hidden, hidden), layer + "self_attention.linear_proj.": (hidden, hidden)}
        linears |= {layer + "mlp.linear_fc1.": (inner, hidden), layer + "mlp.linear_fc2.": (hidden, ffn)}
        without_bias |= set() if model.ffn_in_bias else {layer + "mlp.linear_fc1."}
        without_bias |= set() if model.ffn_out_bias else {layer + "mlp.linear_fc2."}
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (padded, hidden), "output_layer.bias": (padded,)}
    for name in norms:
        shapes |= {name + "weight": (hidden,), name + "bias": (hidden,)}
    for name, shape in linears.items():
        shapes[name + "weight"] = shape
        if name not in without_bias:
            shapes[name + "bias"] = shape[:1]
    if model.position_embedding_type == "learned_absolute":
        shapes["embedding.position_embeddings.weight"] = (config.max_positions + tokenizer.pad_id + 1, hidden)
    if model.type_vocab_size:
        shapes["embedding.token_type_embeddings.weight"] = (model.type_vocab_size, hidden)
    if model.untie_embeddings_and_output_weights:
        shapes["output_layer.weight"] = (padded, hidden)
    return shapes


def small(name: str, tmp_path: Path, **changes) -> tuple[RunConfig, Tokenizer]:
    kind, model = SMALL[name]
    tokenizer = tokenizer_of(kind, None)
    settings = tokenizer.to_config()
    if tokenizer.bpe:
        tokenizer.bpe.save(tmp_path / "bpe.json")
        settings["file"] = str(tmp_path / "bpe.json")
    return run_config(settings, {**model, **changes}), tokenizer


def random_native(config: RunConfig, tokenizer: Tokenizer, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor random, norms and biases too; padding rows zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in native_shapes(config, tokenizer).items():
        values = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.3 * values if "norm" in name and name.endswith("weight") else 0.3 * values
        if name in ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias"):
            tensors[name][tokenizer.vocab_size :] = 0.0
    return tensors


def write_small(directory: Path, name: str, tmp_path: Path, dtype: torch.dtype = torch.float32, **changes):
    config, tokenizer = small(name, tmp_path, **changes)
    tensors = random_native(config, tokenizer)
    write_native(directory, config, tokenizer, tensors.items(), dtype)
    return config, tokenizer, tensors


# References: each from the description of its family, on the folder's tensors.


def norm(x: Tensor, weights: dict[str, Tensor], name: str, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + epsilon).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5))


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-x))


def turned(x: Tensor) -> Tensor:
    """[S, D]: pairs (j, j + D/2) turned by position x 10000^(-2j/D), as complex numbers."""
    length, width = x.shape
    angles = torch.arange(length)[:, None].double() * 10000.0 ** (-2.0 * torch.arange(width // 2).double() / width)
    pairs = torch.complex(x[:, : width // 2].double(), x[:, width // 2 :].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


def heads_of(query: Tensor, key: Tensor, value: Tensor, num_heads: int, rotary: bool, slopes=None) -> Tensor:
    """Attention of one sample, [S, H] each."""
    length, width = query.shape[0], query.shape[1] // num_heads
    outputs = []
    for head in range(num_heads):
        columns = slice(head * width, (head + 1) * width)
        q, k, v = query[:, columns], key[:, columns], value[:, columns]
        if rotary:
            q, k = turned(q), turned(k)
        scores = q @ k.T / math.sqrt(width)
        if slopes:
            distance = torch.tensor([[abs(i - j) for j in range(length)] for i in range(length)], dtype=scores.dtype)
            scores = scores - slopes[head] * distance
        outputs.append(torch.softmax(scores, dim=-1) @ v)
    return torch.cat(outputs, dim=-1)


def nt_v2_logits(config: RunConfig, weights: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    model, epsilon = config.model, config.model.norm_epsilon
    hidden = weights["esm.embeddings.word_embeddings.weight"][tokens_S]
    for i in range(model.num_layers):
        layer = f"esm.encoder.layer.{i}."
        x = norm(hidden, weights, layer + "attention.LayerNorm", epsilon)
        query, key, value = (linear(x, weights, f"{layer}attention.self.{part}") for part in ("query", "key", "value"))
        context = heads_of(query, key, value, model.num_attention_heads, rotary=True)
        hidden = hidden + linear(context, weights, layer + "attention.output.dense")
        z = linear(norm(hidden, weights, layer + "LayerNorm", epsilon), weights, layer + "intermediate.dense")
        f = model.ffn_hidden_size
        hidden = hidden + linear(silu(z[:, :f]) * z[:, f:], weights, layer + "output.dense")
    hidden = norm(hidden, weights, "esm.encoder.emb_layer_norm_after", epsilon)
    hidden = norm(erf_gelu(linear(hidden, weights, "lm_head.dense")), weights, "lm_head.layer_norm", epsilon)
    decoder = "lm_head.decoder.weight" if model.untie_embeddings_and_output_weights else "esm.embeddings.word_embeddings.weight"
    return hidden @ weights[decoder].T + weights["lm_head.bias"]


SIX_SLOPES = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


def dnabert2_logits(config: RunConfig, weights: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    model = config.model
    words = weights["bert.embeddings.word_embeddings.weight"]
    hidden = words[tokens_S] + weights["bert.embeddings.token_type_embeddings.weight"][0]
    hidden = norm(hidden, weights, "bert.embeddings.LayerNorm", 1e-12)
    h, f = model.hidden_size, model.ffn_hidden_size
    for i in range(model.num_layers):
        layer = f"bert.encoder.layer.{i}."
        qkv = linear(hidden, weights, layer + "attention.self.Wqkv")
        context = heads_of(qkv[:, :h], qkv[:, h : 2 * h], qkv[:, 2 * h :], model.num_attention_heads, rotary=False, slopes=SIX_SLOPES)
        hidden = hidden + linear(context, weights, layer + "attention.output.dense")
        hidden = norm(hidden, weights, layer + "attention.output.LayerNorm", 1e-12)
        z = linear(hidden, weights, layer + "mlp.gated_layers")
        hidden = hidden + linear(erf_gelu(z[:, :f]) * z[:, f:], weights, layer + "mlp.wo")
        hidden = norm(hidden, weights, layer + "mlp.layernorm", 1e-12)
    hidden = erf_gelu(linear(hidden, weights, "cls.predictions.transform.dense"))
    hidden = norm(hidden, weights, "cls.predictions.transform.LayerNorm", 1e-12)
    return hidden @ words.T + weights["cls.predictions.decoder.bias"]


def aido_logits(config: RunConfig, weights: dict[str, Tensor], tokens_S: Tensor) -> Tensor:
    model, epsilon = config.model, config.model.norm_epsilon
    hidden = weights["bert.embeddings.word_embeddings.weight"][tokens_S]
    for i in range(model.num_layers):
        layer = f"bert.encoder.layer.{i}."
        x = norm(hidden, weights, layer + "attention.ln", epsilon)
        query, key, value = (linear(x, weights, f"{layer}attention.self.{part}") for part in ("query", "key", "value"))
        context = heads_of(query, key, value, model.num_attention_heads, rotary=True)
        hidden = hidden + linear(context, weights, layer + "attention.output.dense")
        x = norm(hidden, weights, layer + "ln", epsilon)
        gated = silu(linear(x, weights, layer + "mlp.gate_proj")) * linear(x, weights, layer + "mlp.up_proj")
        hidden = hidden + linear(gated, weights, layer + "mlp.down_proj")
    hidden = norm(hidden, weights, "bert.encoder.ln", epsilon)
    hidden = erf_gelu(linear(hidden, weights, "cls.predictions.transform.dense"))
    hidden = norm(hidden, weights, "cls.predictions.transform.LayerNorm", epsilon)
    untied = model.untie_embeddings_and_output_weights
    decoder = "cls.predictions.decoder.weight" if untied else "bert.embeddings.word_embeddings.weight"
    return hidden @ weights[decoder].T + weights["cls.predictions.bias"]


REFERENCES = {"nt-v2": nt_v2_logits, "dnabert2": dnabert2_logits, "aido-dna": aido_logits}
