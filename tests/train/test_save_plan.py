"""The planned files of a checkpoint are those that a run writes, and each data-parallel rank writes its share."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
import training
from torch.distributed.checkpoint import FileSystemReader

from dnapretrain.config_file import config_from_dict
from dnapretrain.convert.native import find_checkpoint
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.model.counts import checkpoint_bytes
from dnapretrain.train.save_plan import save_plan
from dnapretrain.train.save_shares import assigned

BF16 = {"train.precision": "bf16"}
LAYOUTS = {
    "dp2": (2, {}),
    "dp2-bf16": (2, BF16),
    "dp4-distributed": (4, {"parallel.use_distributed_optimizer": True}),
    "tp2-dp2-distributed-bf16": (4, {"parallel.tp": 2, "parallel.use_distributed_optimizer": True, **BF16}),
    "pp2-vpp2-tied": (2, {"parallel.pp": 2, "parallel.vpp": 2, "model.untie_embeddings_and_output_weights": False}),
}


def bytes_per_file(checkpoint):
    """(bytes of tensors, names) by file, from the checkpoint's index."""
    metadata = FileSystemReader(checkpoint / "weights").read_metadata()
    sizes, names = defaultdict(int), defaultdict(list)
    for place, stored in metadata.storage_data.items():
        tensor = metadata.state_dict_metadata[place.fqn]
        chunk = next(chunk for chunk in tensor.chunks if place.offset in (None, chunk.offsets))
        sizes[stored.relative_path] += chunk.sizes.numel() * tensor.properties.dtype.itemsize
        names[stored.relative_path].append(place.fqn)
    return dict(sizes), names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_is_what_a_run_writes(ranks, tiny_config, layout):
    world_size, overrides = LAYOUTS[layout]
    tree = tiny_config("run", **overrides)
    ranks.run(world_size, training.train, tree=tree, until=1, save=True)
    config = config_from_dict(tree)
    tokenizer = build_tokenizer(config.tokenizer)
    plan = save_plan(config, tokenizer, world_size)
    checkpoint = find_checkpoint(Path(tree["train"]["run_dir"]))
    sizes, names = bytes_per_file(checkpoint)
    assert {file.name: file.bytes for file in plan.files} == sizes
    for rank in range(world_size):
        planned = sorted(name for file in plan.files if file.rank == rank for name in file.tensors)
        assert planned == sorted(name for file, some in names.items() if file.startswith(f"__{rank}_") for name in some)
    saved = [json.loads(line) for line in (checkpoint.parents[1] / "log.jsonl").read_text().splitlines()]
    assert [record["bytes"] for record in saved if record["kind"] == "checkpoint"] == [plan.total_bytes]
    assert plan.total_bytes == checkpoint_bytes(config, tokenizer.vocab_size, tokenizer.pad_id)
    for name, size in sizes.items():  # a frame of some hundred bytes around each tensor
        frame = (checkpoint / "weights" / name).stat().st_size - size
        assert 0 < frame < 3000 * len(names[name])


def test_every_data_parallel_rank_writes_about_as_much(tiny_config):
    config = config_from_dict(tiny_config("run", **{"train.global_batch_size": 16, **BF16}))
    of_ranks = save_plan(config, build_tokenizer(config.tokenizer), 8).bytes_of_ranks()
    assert sorted(of_ranks) == list(range(8))
    largest = max(tensor for tensor in (128 * 64 * 4, 2 * 96 * 64 * 4))
    assert max(of_ranks.values()) - min(of_ranks.values()) <= largest


def test_assigned_is_the_greedy_rule():
    rng = random.Random(3)
    for _ in range(50):
        sizes = [rng.choice((0, 1, 5, 8, 8, 100)) for _ in range(rng.randint(0, 40))]
        count = rng.randint(1, 7)
        load, wanted = [0] * count, {}
        for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
            wanted[place] = load.index(min(load))
            load[wanted[place]] += sizes[place]
        assert assigned(sizes, count) == [wanted[place] for place in range(len(sizes))]


def write_twice(env, store, tree):
    """What a save says in which two ranks write one tensor."""
    from dnapretrain.train import checkpoint_writer

    trainer, _, _ = training.begin(env, store, tree)
    trainer.train_step(trainer.next_batches())
    share_out = checkpoint_writer.share_out
    checkpoint_writer.share_out = lambda sharded, *place: [
        setattr(item, "replica_id", (0, 0, 0)) for item in checkpoint_writer.nested_values(sharded)
    ]
    try:
        trainer.saver.begin(trainer.position)
    finally:
        checkpoint_writer.share_out = share_out
    return trainer.saver.failures, trainer.saver._reason


def test_a_tensor_that_two_ranks_write_ends_the_save(ranks, tiny_config):
    for failures, reason in ranks.run(2, write_twice, tree=tiny_config("run")):
        assert failures == 1 and "cannot prepare the save" in reason
