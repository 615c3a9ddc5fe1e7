"""Models of Transformer Engine's modules against those of torch: names, weights, marks, logits, gradients, runs, checkpoints exchanged.

On the CPU: see `te_on_cpu` for what is Transformer Engine's there and what is not.
"""

from __future__ import annotations

import pytest
import te_on_cpu
import torch
from train.test_layouts import ENCODER, MODELS

from dnapretrain.errors import ConfigError

SHAPES = {
    "NT v1": {**MODELS["learned-position encoder"], "model.norm_epsilon": 1e-12},
    "NT v2": {**MODELS["rotary encoder"], "model.num_query_groups": None, "model.norm_epsilon": 1e-12},
    "AIDO.DNA": {
        **ENCODER,
        "model.num_query_groups": None,
        "model.hidden_size": 272,
        "model.num_attention_heads": 2,
        "model.attention_bias": True,
        "model.ffn_in_bias": True,
        "model.ffn_out_bias": True,
    },
    # 12 heads: slopes that do not fall from head to head.
    "DNABERT-2": {
        **MODELS["post-norm ALiBi encoder"],
        "model.norm_epsilon": 1e-12,
        "model.hidden_size": 96,
        "model.num_attention_heads": 12,
        "model.ffn_dropout": "inner",
        "model.hidden_dropout": 0.1,
    },
    "RMSNorm encoder": {**MODELS["rotary encoder"], "model.normalization": "RMSNorm"},
    "decoder": MODELS["decoder"],
}
LAYOUTS = {"one rank": (1, {}), "TP2": (2, {"tp": 2}), "TP2+SP": (2, {"tp": 2, "sequence_parallel": True})}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_model_by_other_modules(te_ranks, tiny_config, shape, layout):
    world_size, parallel = LAYOUTS[layout]
    tree = {**tiny_config(**SHAPES[shape]), "parallel": parallel}
    tokens = torch.randint(5, 9, (3, 32), generator=torch.Generator().manual_seed(1))
    both = [te_ranks.run(world_size, te_on_cpu.look, tree=tree, impl=impl, tokens=tokens) for impl in ("auto", "torch")]
    for te, plain in zip(*both, strict=True):
        assert te.paths["layers"].startswith("Transformer Engine") and "(model.transformer_impl=torch)" in plain.paths["layers"]
        fused = "TELayerNormColumnParallelLinear" in te.classes
        assert fused is (shape != "DNABERT-2") and not any(name.startswith("TE") for name in plain.classes)
        assert te.stored == plain.stored
        assert te.marks == plain.marks
        assert te.initial.keys() == plain.initial.keys()
        assert all(torch.equal(te.initial[name], plain.initial[name]) for name in plain.initial)
        for (logits, gradients), (expected, expected_gradients) in zip(te.results, plain.results, strict=True):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            for name, gradient in expected_gradients.items():
                scale = float(gradient.abs().max()) or 1.0
                torch.testing.assert_close(
                    gradients[name] / scale, gradient / scale, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
                )


@pytest.mark.parametrize("shape", ["NT v2", "DNABERT-2"])
@pytest.mark.parametrize(
    ("world_size", "parallel", "recompute"),
    [(2, {"pp": 2}, "none"), (4, {"tp": 2, "pp": 2, "sequence_parallel": True}, "selective")],
    ids=["PP2", "TP2xPP2+SP, recompute selective"],
)
def test_a_run_has_the_losses_of_torch(te_ranks, tiny_config, shape, world_size, parallel, recompute):
    settings = {name: value for name, value in SHAPES[shape].items() if "dropout" not in name}
    alone = te_ranks.run(1, te_on_cpu.train, tree=tiny_config("alone", **settings), impl="torch", until=3)[0]
    tree = {**tiny_config("te", **settings, **{"train.recompute": recompute}), "parallel": parallel}
    found = te_ranks.run(world_size, te_on_cpu.train, tree=tree, impl="te", until=3)[0]
    assert found.losses == pytest.approx(alone.losses, rel=1e-5)
    assert found.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4)
    assert found.valid.loss == pytest.approx(alone.valid.loss, rel=1e-5)


@pytest.mark.parametrize("first", ["te", "torch"])
@pytest.mark.parametrize("shape", ["AIDO.DNA", "DNABERT-2"])
def test_a_checkpoint_goes_on_with_the_other_modules(te_ranks, tiny_config, shape, first):
    settings = {name: value for name, value in SHAPES[shape].items() if "dropout" not in name}
    whole = te_ranks.run(1, te_on_cpu.train, tree=tiny_config("whole", **settings), impl="torch", until=4)[0]
    tree = {**tiny_config("parted", **settings), "parallel": {"tp": 2}}
    te_ranks.run(2, te_on_cpu.train, tree=tree, impl=first, until=2, save=True)
    second = te_ranks.run(1, te_on_cpu.train, tree={**tree, "parallel": {}}, impl={"te": "torch", "torch": "te"}[first], until=4)[0]
    assert second.losses == pytest.approx(whole.losses[2:], rel=1e-5)
    assert second.grad_norms == pytest.approx(whole.grad_norms[2:], rel=1e-4)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_dropout_of_attention_differs_between_ranks_and_calls(te_ranks, tiny_config, sequence_parallel):
    settings = {**SHAPES["NT v2"], "model.attention_dropout": 0.3}
    tree = {**tiny_config(**settings), "parallel": {"tp": 2, "sequence_parallel": sequence_parallel}}
    drawn = [context for rank in te_ranks.run(2, te_on_cpu.dropped, tree=tree) for context in rank]
    assert all(not torch.equal(one, other) for index, one in enumerate(drawn) for other in drawn[:index])


FP8 = {"train.precision": "bf16", "train.fp8": "hybrid", "model.ffn_hidden_size": 96, "model.transformer_impl": "auto"}


@pytest.mark.parametrize("shape", ["decoder", "NT v2"])
def test_fp8_trains_as_bf16_within_its_roundings(te_ranks, tiny_config, shape):
    settings = {**SHAPES[shape], "train.precision": "bf16"}
    plain = te_ranks.run(1, te_on_cpu.train, tree=tiny_config("plain", **settings), impl="te", until=3)[0]
    found, recipes, products = te_ranks.run(1, te_on_cpu.train_fp8, tree=tiny_config("fp8", **{**settings, **FP8}), until=3)[0]
    assert set(recipes) == {("Float8CurrentScaling", "HYBRID", None, None)}
    assert products >= 3 * 4 * 4 * 4  # steps, micro-batches, layers, linear layers: forward alone
    assert found.losses == pytest.approx(plain.losses, rel=3e-2)
    assert found.losses != plain.losses
    assert found.grad_norms == pytest.approx(plain.grad_norms, rel=0.2)
    assert "E5M2 gradients, tensorwise scaling" in found.log


def test_the_first_and_the_last_layer_stay_in_bf16(te_ranks, tiny_config):
    settings = {**SHAPES["decoder"], **FP8, "train.first_last_layers_bf16": True, "train.num_layers_at_end_in_bf16": 2}
    _, recipes, products = te_ranks.run(1, te_on_cpu.train_fp8, tree=tiny_config("ends", **settings), until=1)[0]
    per_layer = [recipe is not None for recipe in recipes[:8]]  # two fused norms and linear layers in each of four layers
    assert per_layer == [False, False, True, True, False, False, False, False]
    assert products


def test_delayed_scaling_has_the_history_of_the_settings(te_ranks, tiny_config):
    settings = {**SHAPES["decoder"], **FP8, "train.fp8_recipe": "delayed", "train.fp8_amax_history_len": 7}
    tree = tiny_config("delayed", **settings)
    begun, recipes, _ = te_ranks.run(1, te_on_cpu.train_fp8, tree=tree, until=1, save=True)[0]
    assert set(recipes) == {("TEDelayedScaling", "HYBRID", 7, "max")}
    resumed, _, _ = te_ranks.run(1, te_on_cpu.train_fp8, tree=tree, until=2)[0]
    assert len(resumed.losses) == 1
    assert "holds no FP8 scales" not in begun.log + resumed.log


@pytest.mark.parametrize("impl", ["te", "torch"])
def test_weight_gradients_added_within_the_product_are_the_same(te_ranks, tiny_config, impl):
    settings = SHAPES["decoder"]
    fused = {**settings, "train.gradient_accumulation_fusion": True, "model.transformer_impl": "auto"}
    plain = te_ranks.run(1, te_on_cpu.train, tree=tiny_config("plain", **settings), impl="te", until=3)[0]
    if impl == "torch":  # without Apex there is nothing to fuse with
        with pytest.raises(ConfigError, match="fused_weight_gradient_mlp_cuda"):
            te_ranks.run(1, te_on_cpu.train, tree=tiny_config("torch", **fused), impl="torch", until=1)
        return
    found, _, _ = te_ranks.run(1, te_on_cpu.train_fp8, tree=tiny_config("fused", **fused), until=3)[0]
    assert found.losses == pytest.approx(plain.losses, rel=1e-5)
    assert found.grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)


def test_padded_samples_of_context_parallel_ranks_go_to_our_attention(te_ranks, tiny_config):
    from dnapretrain.model.context_parallel import in_order

    tree = tiny_config(**SHAPES["NT v2"], **{"train.precision": "bf16", "parallel.cp": 2})
    query, key, value = torch.randn(3, 16, 2, 4, 16, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(16) >= torch.tensor([[16], [9]]))[:, None, None]
    of_ranks = te_ranks.run(2, te_on_cpu.over_ranks, tree=tree, tensors=[query, key, value], mask=mask)
    assert [told for told, _ in of_ranks] == [(2, [0, 1], "p2p")] * 2
    scores = torch.einsum("sbnd,tbnd->bnst", query, key) / 4
    expected = torch.einsum("bnst,tbnd->sbnd", scores.masked_fill(mask, float("-inf")).softmax(-1), value).flatten(2)
    torch.testing.assert_close(in_order(torch.stack([context for _, context in of_ranks])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["p2p", "all_gather", "a2a"])
@pytest.mark.parametrize("shape", ["decoder", "NT v2"])
def test_every_layer_is_told_how_context_parallel_ranks_exchange(te_ranks, tiny_config, shape, way):
    settings = {"model.transformer_impl": "auto", "train.precision": "bf16", "parallel.cp": 2, "parallel.cp_comm_type": way}
    tree = tiny_config(**{**SHAPES[shape], **settings})
    told = te_ranks.run(2, te_on_cpu.told_of_context, tree=tree)[0]
    assert len(told) >= 4 and set(told) == {way}
