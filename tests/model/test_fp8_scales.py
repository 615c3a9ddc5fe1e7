"""Scales of FP8's delayed scaling in checkpoints, by Transformer Engine's own Python on CPU ranks (`te_on_cpu`: what is its there)."""

from __future__ import annotations

import te_on_cpu
import torch
from test_te_encoder import FP8, SHAPES
from training import stored_tensors

from dnapretrain.convert.native import FP8_PREFIX, find_checkpoint, open_weights

DELAYED = {**FP8, "train.fp8_recipe": "delayed", "train.fp8_amax_history_len": 4}


def scales_of(run_dir):
    return {name: tensor for name, tensor in stored_tensors(run_dir).items() if name.startswith(FP8_PREFIX)}


def scaled(te_ranks, world_size, tree, **options):
    """(what the first rank's run was, the scales that each rank began with)."""
    of_ranks = te_ranks.run(world_size, te_on_cpu.train_scaled, tree=tree, **options)
    return of_ranks[0][0], [scales for _, scales in of_ranks]


def test_a_resumed_run_is_the_run_without_a_stop(te_ranks, tiny_config):
    """Bit for bit, with an evaluation before the save; and without the scales, as older versions stored it, not."""
    settings = {**SHAPES["decoder"], **DELAYED}
    whole, _ = scaled(te_ranks, 1, tiny_config("whole", **settings), until=4)
    stopped, forgetful = (tiny_config(name, **settings) for name in ("stopped", "forgetful"))
    scaled(te_ranks, 1, stopped, until=2, save=True)
    resumed, _ = scaled(te_ranks, 1, stopped, until=4)
    scaled(te_ranks, 1, forgetful, until=2, save=True, forget=True)
    poorer, _ = scaled(te_ranks, 1, forgetful, until=4)
    assert (resumed.losses, resumed.grad_norms) == (whole.losses[2:], whole.grad_norms[2:])
    assert "holds no FP8 scales" not in resumed.log
    assert poorer.losses != resumed.losses and "holds no FP8 scales" in poorer.log


def test_scales_go_to_their_layers_under_any_layout(te_ranks, tiny_config):
    """Written by two tensor-parallel ranks. Each module of four layers once; four linear modules of each."""
    settings = {**SHAPES["decoder"], **DELAYED}
    tree = tiny_config("run", **settings, **{"parallel.tp": 2})
    scaled(te_ranks, 2, tree, until=2, save=True)
    stored = scales_of(tree["train"]["run_dir"])
    assert len(stored) == 4 * 4 * 4 and {tuple(tensor.shape) for tensor in stored.values()} == {(3,), (4, 3), (2,), (4, 2)}
    assert any((tensor != 1).any() for name, tensor in stored.items() if name.endswith("scale"))
    for world_size, layout in ((1, {}), (2, {"parallel.tp": 2}), (2, {"parallel.pp": 2}), (2, {"parallel.dp": 2})):
        settings_here = {**settings, **{key: value for key, value in layout.items() if key != "parallel.dp"}}
        _, of_ranks = scaled(te_ranks, world_size, tiny_config("run", **settings_here))
        held = {name: tensor for found in of_ranks for name, tensor in found.items()}
        assert held.keys() == stored.keys()
        assert all(torch.equal(tensor, stored[name]) for found in of_ranks for name, tensor in found.items())


def test_who_does_not_ask_for_scales_reads_the_checkpoint_as_any_other(te_ranks, tiny_config):
    """Another recipe, a shorter history, the tools that read tensors of the model."""
    settings = {**SHAPES["decoder"], **DELAYED}
    tree = tiny_config("run", **settings)
    scaled(te_ranks, 1, tree, until=2, save=True)
    reader = open_weights(find_checkpoint(tree["train"]["run_dir"]))
    assert any(name.startswith(FP8_PREFIX) for name in reader.names())
    assert not any(name.startswith(FP8_PREFIX) for name in reader.model_names())
    _, (shorter,) = scaled(te_ranks, 1, tiny_config("run", **{**settings, "train.fp8_amax_history_len": 3}))
    stored = scales_of(tree["train"]["run_dir"])
    assert shorter.keys() == stored.keys() and all(torch.equal(shorter[name], tensor[:3]) for name, tensor in stored.items())
    went_on, scales = scaled(te_ranks, 1, tiny_config("run", **{**SHAPES["decoder"], **FP8}), until=3)
    assert len(went_on.losses) == 1 and scales == [{}]
