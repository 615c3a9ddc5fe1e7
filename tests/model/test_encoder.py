"""The encoder against one written out slowly from its weights, in every variant that the published models need."""

from __future__ import annotations

import math

import pytest
import torch
import training
from train.test_layouts import ENCODER, MODELS

from dnapretrain.config import ModelConfig
from dnapretrain.model.layers import alibi_slopes

PAD, MASK = 0, 4
VARIANTS = {
    **{name: overrides for name, overrides in MODELS.items() if "encoder" in name},
    "no positions, RMSNorm, all biases": {
        **ENCODER,
        "model.normalization": "RMSNorm",
        "model.position_embedding_type": "none",
        "model.attention_bias": True,
        "model.ffn_in_bias": True,
        "model.ffn_out_bias": True,
        "model.embedding_norm": True,
    },
}


def logits_and_weights(env, store, tree, tokens):
    """Logits of a model with every weight randomised, norms and biases too, and its weights by canonical name."""
    from dnapretrain.model.batches import padding_mask
    from dnapretrain.model.build import named_weights

    trainer, _, _ = training.begin(env, store, tree)
    chunk = trainer.chunks[0].module.eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in named_weights([chunk]):
            weight.add_(torch.empty_like(weight).normal_(0, 0.2, generator=generator))
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        logits = chunk(tokens, positions, padding_mask(tokens.numpy(), PAD, tokens.device))
    return logits, {name: weight.detach().clone() for name, weight in named_weights([chunk])}


def slow_encoder(model: ModelConfig, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits [S, padded vocabulary] of one sequence without padding, layer by layer and head by head, from the definitions."""
    w = weights
    sequence = len(tokens)

    def norm(x, name):
        if model.normalization == "RMSNorm":
            return x / torch.sqrt(x.square().mean(-1, keepdim=True) + model.norm_epsilon) * w[f"{name}weight"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + model.norm_epsilon) * w[f"{name}weight"] + w[f"{name}bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    x = w["embedding.word_embeddings.weight"][tokens].clone()
    if model.token_dropout:
        share = (tokens == MASK).sum() / sequence
        x[tokens == MASK] = 0
        x = x * (1 - model.token_dropout) / (1 - share)
    if model.position_embedding_type == "learned_absolute":
        x = x + w["embedding.position_embeddings.weight"][PAD + 1 : PAD + 1 + sequence]
    if model.type_vocab_size:
        x = x + w["embedding.token_type_embeddings.weight"][0]
    if model.embedding_norm:
        x = norm(x, "embedding.norm.")
    for number in range(model.num_layers):
        layer = f"encoder.layers.{number}"
        is_post = model.norm_position == "post"
        attended = slow_attention(
            model, linear(x if is_post else norm(x, f"{layer}.self_attention.linear_qkv.layer_norm_"), f"{layer}.self_attention.linear_qkv")
        )
        x = x + linear(attended, f"{layer}.self_attention.linear_proj")
        x = norm(x, f"{layer}.post_self_attn_layernorm.") if is_post else x
        inner = linear(x if is_post else norm(x, f"{layer}.mlp.linear_fc1.layer_norm_"), f"{layer}.mlp.linear_fc1")
        if model.activation == "gelu":
            inner = gelu(inner)
        else:
            first, second = inner.chunk(2, dim=-1)
            inner = (first * torch.sigmoid(first) if model.activation == "swiglu" else gelu(first)) * second
        x = x + linear(inner, f"{layer}.mlp.linear_fc2")
        x = norm(x, f"{layer}.post_mlp_layernorm.") if is_post else x
    x = x if model.norm_position == "post" else norm(x, "encoder.final_layernorm.")
    x = norm(gelu(linear(x, "lm_head.dense")), "lm_head.layer_norm.")
    table = w["output_layer.weight"] if model.untie_embeddings_and_output_weights else w["embedding.word_embeddings.weight"]
    return x @ table.T + w["output_layer.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def slow_attention(model: ModelConfig, qkv: torch.Tensor) -> torch.Tensor:
    """[S, heads x width] from the fused projection, whose rows are, group by group, the query heads, the key, the value."""
    width, heads, groups = model.head_dim, model.num_attention_heads, model.query_groups
    sequence, per_group = len(qkv), heads // groups
    by_group = qkv.view(sequence, groups, per_group + 2, width)
    out = torch.empty(sequence, heads, width)
    distance = (torch.arange(sequence)[:, None] - torch.arange(sequence)).abs()
    for head in range(heads):
        group, within = divmod(head, per_group)
        query, key, value = by_group[:, group, within], by_group[:, group, -2], by_group[:, group, -1]
        if model.position_embedding_type == "rope":
            query, key = rotate(query, model.rotary_base), rotate(key, model.rotary_base)
        scores = query @ key.T / math.sqrt(width)
        if model.position_embedding_type == "alibi":
            scores = scores - 2.0 ** (-8 * (head + 1) / heads) * distance  # heads: a power of two in these tests
        out[:, head] = scores.softmax(-1) @ value
    return out.flatten(1)


def rotate(x: torch.Tensor, base: float) -> torch.Tensor:
    sequence, width = x.shape
    angles = torch.arange(sequence)[:, None] * base ** (-2 * torch.arange(width // 2) / width)
    first, second = x[:, : width // 2], x[:, width // 2 :]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_slow_encoder_with_and_without_padding(ranks, tiny_config, variant):
    tree = tiny_config(**VARIANTS[variant])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 9, (3, 32), generator=generator)
    tokens[:, 0] = 1
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = MASK
    lengths = (32, 20, 3)
    for row, length in enumerate(lengths):
        tokens[row, length:] = PAD
    logits, weights = ranks.run(1, logits_and_weights, tree=tree, tokens=tokens)[0]
    model = ModelConfig(**tree["model"])
    for row, length in enumerate(lengths):
        expected = slow_encoder(model, weights, tokens[row, :length])
        torch.testing.assert_close(logits[row, :length], expected, rtol=2e-4, atol=2e-4)
    full = ranks.run(1, logits_and_weights, tree=tree, tokens=tokens[:1])[0][0]
    torch.testing.assert_close(full[0], logits[0], rtol=1e-4, atol=1e-4)  # no mask at all: another kernel, the same numbers


def test_alibi_slopes_of_any_number_of_heads():
    assert alibi_slopes(8).log2().tolist() == [-1, -2, -3, -4, -5, -6, -7, -8]
    assert alibi_slopes(12).log2().tolist() == pytest.approx([-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5])
    assert alibi_slopes(1).tolist() == [2.0**-8] and len(alibi_slopes(20)) == 20


def masks_given(env, store, tree, held_out):
    """Whether attention is given a mask, and the widths it sees, over one batch."""
    trainer, data, _ = training.begin(env, store, tree)
    from dnapretrain.model.batches import direct_readers, step_batches

    stream = data.held_out["valid"] if held_out else data.train
    batches = [batch for batch in step_batches(direct_readers(stream, trainer.place), trainer.place, 0, stream.num_samples // 2)[0]]
    return [(batch.attention_mask is not None, bool((batch.tokens_BS == PAD).any())) for batch in batches]


def test_a_mask_is_made_only_where_a_sample_is_padded(ranks, tiny_config):
    seen = ranks.run(1, masks_given, tree=tiny_config(**VARIANTS["rotary encoder"]), held_out=False)[0]
    assert all(given == padded for given, padded in seen)
    assert {given for given, _ in seen} == {True, False}


def losses_of_dropout(env, store, tree, steps):
    """Loss of each step, evaluation before and after; the weights never change (learning rate 0)."""
    trainer, _, _ = training.begin(env, store, tree)
    batches = trainer.next_batches
    first = trainer.position
    seen = []
    for _ in range(steps):
        trainer.train_step(batches())
        seen.append(float(next(iter(trainer.chunks[0].parameters())).main_grad.double().abs().sum()))
        trainer.position = first.__class__(step=trainer.position.step)  # the same batch again, another step
    return seen, [trainer.evaluate()["valid"].loss for _ in range(2)]


@pytest.mark.parametrize("where", ["model.hidden_dropout", "model.attention_dropout"])
def test_dropout_differs_from_step_to_step_and_is_off_in_evaluations(ranks, tiny_config, where):
    common = {**VARIANTS["rotary encoder"], "optim.lr": 1e-30, "optim.weight_decay": 0.0}
    without, (first, _) = ranks.run(1, losses_of_dropout, tree=tiny_config(**common), steps=3)[0]
    dropped, (again, twice) = ranks.run(1, losses_of_dropout, tree=tiny_config("dropped", **common, **{where: 0.2}), steps=3)[0]
    assert len(set(without)) == 1 and len(set(dropped)) == 3
    assert first == pytest.approx(again, abs=1e-6) and again == twice


def test_inner_dropout_falls_within_the_feed_forward(ranks, tiny_config):
    common = {**VARIANTS["post-norm ALiBi encoder"], "model.hidden_dropout": 0.2}
    inner = ranks.run(1, places_of_dropout, tree=tiny_config(**common, **{"model.ffn_dropout": "inner"}))[0]
    output = ranks.run(1, places_of_dropout, tree=tiny_config("output", **common))[0]
    assert inner == (0.2, 0.0, True, False) and output == (0.2, 0.2, False, False)


def places_of_dropout(env, store, tree):
    """(after attention, after the feed-forward, whether the feed-forward itself varies in training, and in evaluation)."""
    trainer, _, _ = training.begin(env, store, tree)
    layer = trainer.chunks[0].module.encoder.layers[0]
    hidden = torch.randn(8, 2, 64)

    def varies():
        return not torch.equal(layer.mlp(hidden)[0], layer.mlp(hidden)[0])

    in_training = varies()
    layer.eval()
    return layer.self_attn_bda.dropout, layer.mlp_bda.dropout, in_training, varies()
