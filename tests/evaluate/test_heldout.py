"""Held-out loss under any layout is the loss of the samples one by one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import training

from dnapretrain.data.shards.preprocess import preprocess


def evaluated(env, store, tree, max_samples):
    from dnapretrain.evaluate.heldout import held_out_loss

    trainer, data, _ = training.begin(env, store, tree)
    stream = data.held_out["valid"]
    result = held_out_loss(trainer.chunks, stream, trainer.place, 32, "token", max_samples)
    if env.world_size > 1:
        return result, None, None
    model, losses, right = trainer.chunks[0], [], []
    count = min(stream.num_samples, max_samples or stream.num_samples)
    for index in (place * stream.num_samples // count for place in range(count)):
        batch = stream.batch(np.array([index]))
        tokens, labels = torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels)
        with torch.no_grad():
            loss, correct = model(tokens, torch.arange(32)[None], None, labels=labels)
        targets = torch.from_numpy(batch.loss_mask) > 0
        right += correct[targets].tolist()
        losses += loss[targets].tolist()
    return result, losses, right


@pytest.mark.parametrize("max_samples", [None, 7])
def test_equals_sample_by_sample_under_every_layout(ranks, tiny_config, max_samples):
    alone, losses, right = ranks.run(1, evaluated, tree=tiny_config(), max_samples=max_samples)[0]
    assert alone.num_targets == alone.num_bases == len(losses)
    assert alone.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert alone.accuracy == pytest.approx(sum(right) / len(right))
    assert alone.bits_per_base == pytest.approx(alone.loss / math.log(2))
    for world_size, layout in ((2, {"parallel.tp": 2}), (2, {"parallel.pp": 2, "parallel.vpp": 2}), (4, {"parallel.pp": 2})):
        for result, *_ in ranks.run(world_size, evaluated, tree=tiny_config(f"{world_size}{layout}", **layout), max_samples=max_samples):
            assert result.num_targets == alone.num_targets and result.num_samples == alone.num_samples
            assert result.loss == pytest.approx(alone.loss, abs=1e-6)


def test_a_set_without_weighted_bases_is_refused_before_training(tiny_config):
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.errors import ConfigError
    from dnapretrain.train.run import open_data

    tree = tiny_config(**{"data.lowercase_weight": 0.0})
    open_data(config_from_dict(tree))  # half of each contig is upper case
    fasta = Path(tree["train"]["run_dir"]).with_suffix(".fa")
    fasta.write_text(">soft\n" + "acgt" * 500 + "NNNNN\n")  # all in lower case would be no mask
    preprocess([fasta], fasta.with_suffix(""))
    tree["data"]["valid"] = {"soft": str(fasta.with_suffix(""))}
    with pytest.raises(ConfigError, match="set 'soft' has a base with a loss weight"):
        open_data(config_from_dict(tree))
