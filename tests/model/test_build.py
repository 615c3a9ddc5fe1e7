"""The model from its parts: initial weights by name, padding out of the softmax, attention and norm against plain torch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dnapretrain.config_file import config_from_dict


def _chunks(env, store, tree):
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.build import build_chunks
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    config = config_from_dict(tree)
    platform = platforms.start("cpu", env)
    start_groups(platform, config.parallel, config.train.seed, store)
    return config, build_chunks(config, build_tokenizer(config.tokenizer), platform)


def named_shapes(env, store, tree):
    from dnapretrain.model.build import named_weights

    _, chunks = _chunks(env, store, tree)
    return {name: parameter.detach().clone() for name, parameter in named_weights(chunks)}


def test_initial_weights_do_not_depend_on_the_layout(ranks, tiny_config):
    alone = ranks.run(1, named_shapes, tree=tiny_config())[0]
    by_stage = ranks.run(2, named_shapes, tree=tiny_config(**{"parallel.pp": 2, "parallel.vpp": 2}))
    together = {name: tensor for part in by_stage for name, tensor in part.items()}
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    halves = ranks.run(2, named_shapes, tree=tiny_config(**{"parallel.tp": 2}))
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    gate, up = alone[name].chunk(2)
    for rank, part in enumerate(halves):
        assert torch.equal(part[name], torch.cat([gate.chunk(2)[rank], up.chunk(2)[rank]]))
        assert torch.equal(
            part["decoder.layers.0.self_attention.linear_proj.weight"],
            alone["decoder.layers.0.self_attention.linear_proj.weight"].chunk(2, 1)[rank],
        )
        assert torch.equal(part["embedding.word_embeddings.weight"], alone["embedding.word_embeddings.weight"].chunk(2)[rank])


def test_initial_weights_have_the_right_spread(ranks, tiny_config):
    weights = ranks.run(1, named_shapes, tree=tiny_config())[0]
    std, layers = 0.08, 4
    assert abs(weights["decoder.layers.1.mlp.linear_fc1.weight"].std() - std) < 0.05 * std
    assert abs(weights["decoder.layers.1.mlp.linear_fc2.weight"].std() - std / math.sqrt(2 * layers)) < 0.05 * std
    assert torch.equal(weights["decoder.final_layernorm.weight"], torch.ones(64))
    assert weights["embedding.word_embeddings.weight"][10:].abs().sum() == 0
    other_seed = ranks.run(1, named_shapes, tree=tiny_config(**{"train.seed": 5}))[0]
    assert not torch.equal(other_seed["output_layer.weight"], weights["output_layer.weight"])


def losses_and_logits(env, store, tree, tokens, labels):
    config, chunks = _chunks(env, store, tree)
    del config
    model = chunks[0]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    logits_BSV = model(tokens, positions, None)
    losses, correct = model(tokens, positions, None, labels=labels)
    losses.sum().backward()
    gradient = model.output_layer.weight.grad if model.output_layer.weight.grad is not None else model.output_layer.weight.main_grad
    return logits_BSV.detach(), losses.detach(), gradient, correct


@pytest.mark.parametrize("world_size", [1, 2])
def test_padding_rows_never_enter_the_softmax(ranks, tiny_config, world_size):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 10, (2, 32), generator=generator)
    labels = torch.randint(0, 10, (2, 32), generator=generator)
    tree = tiny_config(**{"parallel.tp": world_size})
    results = ranks.run(world_size, losses_and_logits, tree=tree, tokens=tokens, labels=labels)
    logits = torch.cat([result[0] for result in results], dim=-1)
    assert logits.shape == (2, 32, 128)
    expected = F.cross_entropy(logits[..., :10].reshape(-1, 10), labels.reshape(-1), reduction="none").reshape(2, 32)
    over_everything = F.cross_entropy(logits.reshape(-1, 128), labels.reshape(-1), reduction="none").reshape(2, 32)
    torch.testing.assert_close(results[0][1], expected, rtol=1e-5, atol=1e-5)
    assert (results[0][1] - over_everything).abs().min() > 1.0  # 118 rows of logit 0 would cost about ln(128/10)
    assert all(torch.equal(result[3], logits[..., :10].argmax(-1) == labels) for result in results)
    gradient = torch.cat([result[2] for result in results])
    assert gradient[10:].abs().sum() == 0
    assert gradient[:10].abs().min() > 0


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_a_plain_softmax(groups, causal):
    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.model.layers import SdpaAttention

    S, B, N, D = 7, 2, 4, 8
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(S, B, heads, D, generator=generator) for heads in (N, groups, groups))
    config = SimpleNamespace(attention_dropout=0.0, context_parallel_size=1)
    attention = SdpaAttention(config, 1, AttnMaskType.causal if causal else AttnMaskType.no_mask, "self")
    context = attention(query, key, value)
    for batch in range(B):
        for head in range(N):
            shared = head // (N // groups)
            scores = query[:, batch, head] @ key[:, batch, shared].T / math.sqrt(D)
            if causal:
                scores = scores.masked_fill(torch.ones(S, S).triu(1).bool(), float("-inf"))
            expected = scores.softmax(-1) @ value[:, batch, shared]
            torch.testing.assert_close(context[:, batch, head * D : (head + 1) * D], expected, rtol=1e-5, atol=1e-5)


def test_transformer_engine_asked_for_but_missing_is_an_error():
    from dnapretrain.config import ModelConfig
    from dnapretrain.errors import ConfigError
    from dnapretrain.model.paths import active_paths, use_transformer_engine
    from dnapretrain.parallel.platform import Platform

    def model(impl):
        return ModelConfig(num_layers=1, hidden_size=2, num_attention_heads=1, ffn_hidden_size=2, transformer_impl=impl)

    cpu = Platform(torch.device("cpu"), "gloo", 0, 1)
    with pytest.raises(ConfigError, match="CUDA device"):
        use_transformer_engine(model("transformer_engine"), cpu)
    assert not use_transformer_engine(model("auto"), cpu)
    assert "scaled_dot_product_attention" in active_paths(model("auto"), "fp32", cpu)["attention"]


def test_the_chosen_path_is_told_with_its_reason(monkeypatch):
    from dnapretrain.config import ModelConfig
    from dnapretrain.model import paths

    def told(is_cuda, documents=False, cp=1, **settings):
        size = {"num_layers": 1, "hidden_size": 2, "num_attention_heads": 1, "ffn_hidden_size": 2}
        platform = SimpleNamespace(is_cuda=is_cuda, name="any", backend="any", bf16_support="")
        reason = "only they mask by documents" if documents else ""
        return paths.active_paths(ModelConfig(**size, kind="encoder", **settings), "bf16", platform, reason, documents, cp)

    monkeypatch.setattr(paths, "HAVE_TE", True)
    assert told(False)["layers"] == "Megatron-core parallel layers (Transformer Engine needs a CUDA device)"
    assert "(model.transformer_impl=torch)" in told(True, transformer_impl="torch")["layers"]
    assert "documents" in told(True, documents=True)["layers"]
    assert told(False, cp=4)["attention"].endswith("keys and values gathered of 4 context-parallel ranks")
    ring = told(True, cp=4)["attention"]
    assert "Transformer Engine's ring, where a sample is padded torch" in ring and ring.endswith("of 4 context-parallel ranks")
    assert told(True)["layers"] == "Transformer Engine (fused norm and linear)" and "ALiBi" not in told(True)["attention"]
    post = told(True, norm_position="post", position_embedding_type="alibi")
    assert "norm and linear apart" in post["layers"] and "ALiBi from slopes" in post["attention"]
    monkeypatch.setattr(paths, "HAVE_TE", False)
    assert "an installed Transformer Engine" in told(True)["layers"]
