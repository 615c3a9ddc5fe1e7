"""CUDA graphs of both kinds against the same runs without: every loss and gradient norm, in bf16 and FP8.

On the CPU: see `graphs_on_cpu` for what a graph is there. Megatron-core 0.16.1 alone gave wrong gradients here (`_keep_graph_inputs`).
"""

from __future__ import annotations

import graphs_on_cpu
import pytest
from train.test_layouts import MODELS

FP8 = {"train.fp8": "hybrid", "model.ffn_hidden_size": 96}
SETTINGS = {
    "bf16": {},
    "FP8": FP8,
    # One micro-batch in a step: of several, graphs keep the first one's FP8 weights, others make them anew by newer scales.
    "FP8, delayed": {**FP8, "train.fp8_recipe": "delayed", "train.micro_batch_size": 8},
    "FP8, ends in bf16": {**FP8, "train.first_last_layers_bf16": True},
}


def runs(te_ranks, tiny_config, settings, impl, ways):
    """The same run without graphs, and with those of each way."""
    more = {"none": {}, **{way: {"train.cuda_graph_impl": way, "train.cuda_graph_warmup_steps": 2} for way in ways}}
    tree = {**MODELS["decoder"], "train.precision": "bf16", "model.transformer_impl": "auto", **settings}
    return [
        te_ranks.run(1, graphs_on_cpu.train, tree=tiny_config(way, **tree, **more[way]), impl=impl, until=4)[0] for way in ("none", *ways)
    ]


@pytest.mark.parametrize(
    ("impl", "settings", "ways"),
    [
        *(("te", settings, ("local", "transformer_engine")) for settings in SETTINGS),
        ("torch", "bf16", ("local",)),
    ],
)
def test_a_run_with_graphs_is_the_run_without(te_ranks, tiny_config, impl, settings, ways):
    plain, *others = runs(te_ranks, tiny_config, SETTINGS[settings], impl, ways)
    for found in others:
        assert found.losses == pytest.approx(plain.losses, rel=1e-6)
        assert found.grad_norms == pytest.approx(plain.grad_norms, rel=1e-6)
        assert found.valid.loss == pytest.approx(plain.valid.loss, rel=1e-6)
