"""Values that attention over context-parallel ranks keeps, by the formula and by Transformer Engine's own Python on CPU ranks."""

from __future__ import annotations

import pytest
import te_context_on_cpu

from dnapretrain.config_file import config_from_dict
from dnapretrain.model.context_memory import kept_values, moment_values
from dnapretrain.model.memory import layer_activations, rank_memory

WAYS = [(way, is_causal) for way in ("p2p", "all_gather", "a2a") for is_causal in (True, False)]
QUERY, KEY_VALUE = (heads * te_context_on_cpu.WIDTH for heads in (te_context_on_cpu.HEADS, te_context_on_cpu.GROUPS))


TOLERANCE = 0.12
"""Softmax statistics; and with four ranks that gather for a causal model, one tensor of a whole sample more than is said."""


@pytest.mark.parametrize("cp", [2, 4])
def test_transformer_engine_holds_what_is_said(te_ranks, tiny_config, cp):
    tree = tiny_config(**{"parallel.cp": cp, "data.sequence_length": 64})
    of_ranks = te_ranks.run(cp, te_context_on_cpu.held, tree=tree, ways=WAYS)
    for number, (way, is_causal) in enumerate(WAYS):
        kept, forward, backward = (max(found[number][part] for found in of_ranks) for part in range(3))
        assert kept == kept_values(way, QUERY, KEY_VALUE)
        assert moment_values(way, QUERY, KEY_VALUE, cp, is_causal) == pytest.approx(max(forward, backward), rel=TOLERANCE)


def long_config(tiny_config, way, **settings):
    """A decoder of 4 heads and 2 key/value heads of 16: queries 64 wide, keys 32."""
    settings = {"model.transformer_impl": "auto", "train.precision": "bf16", "parallel.cp": 2, "parallel.cp_comm_type": way, **settings}
    return config_from_dict(tiny_config(**settings))


def test_a_layer_keeps_what_its_way_does(tiny_config):
    """Per token, 32 of a micro-batch of 2 samples on each of two ranks: torch has the projection's result 128 and rotated ones 96 wide, and
    results of both halves and of the whole."""
    torch_path = layer_activations(
        long_config(tiny_config, "p2p", **{"model.transformer_impl": "torch", "train.bias_activation_fusion": True})
    )
    for way, width in (("p2p", 2 * 64 + 2 * 32), ("all_gather", 3 * 64 + 2 * 32), ("a2a", 3 * 64 + 2 * 32)):
        te = layer_activations(long_config(tiny_config, way, **{"train.bias_activation_fusion": True}))
        assert torch_path - te == 32 * 2 * (128 + 96 + 2 * 64 - width)
    with_full = [layer_activations(long_config(tiny_config, way, **{"train.recompute": "full"})) for way in ("p2p", "a2a", "all_gather")]
    assert len(set(with_full)) == 1


def test_only_gathering_needs_whole_samples_for_a_moment(tiny_config):
    """With all recomputed, on 256 tokens of each of eight ranks: 16 heads and 8 key/value heads of 8."""
    heads = {"model.num_attention_heads": 16, "model.num_query_groups": 8, "model.kv_channels": 8}

    def working(way, **settings):
        settings = {"train.recompute": "full", "data.sequence_length": 1024, "parallel.cp": 8, "parallel.pp": 2, **heads, **settings}
        return rank_memory(long_config(tiny_config, way, **settings), 10, 0, 1, 0).working

    exchanged, ring, gathered = (working(way) for way in ("a2a", "p2p", "all_gather"))
    assert gathered - exchanged == 256 * 2 * ((5 * 8 + 2 * 8 + 1) * 64 + 3 * 128 - 3 * (128 + 2 * 64) - 4 * 128)
    assert ring - exchanged == 256 * 2 * (8 * (128 + 2 * 64) - 3 * (128 + 2 * 64) - 4 * 128 - 128)  # and one result less that is kept
    assert exchanged < ring < gathered
    assert gathered == pytest.approx(working("p2p", **{"model.transformer_impl": "torch"}), rel=0.2)
