"""A checkpoint read in shares: the same state as where every rank reads all, and each byte read once."""

from __future__ import annotations

import pytest
import training


def state_after_resume(env, store, tree, shared):
    """(digest of every tensor that this rank then holds, bytes that it read)."""
    import xxhash
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

    from dnapretrain.train import checkpoint
    from dnapretrain.train.save_shares import tensor_bytes

    strategy, load, read = checkpoint.SharedLoad, TorchDistLoadShardedStrategy.load, []

    def counted(self, wanted, folder):
        read.extend(tensor_bytes(item) for item in nested_values(wanted) if isinstance(item, ShardedTensor))
        return load(self, wanted, folder)

    TorchDistLoadShardedStrategy.load = counted  # what SharedLoad has read for it, too
    if not shared:
        checkpoint.SharedLoad = TorchDistLoadShardedStrategy
    try:
        trainer, _, _ = training.begin(env, store, tree)
    finally:
        checkpoint.SharedLoad, TorchDistLoadShardedStrategy.load = strategy, load
    state = checkpoint.sharded_state(trainer.chunks, trainer.optimizer, is_loading=False)
    tensors = [item for item in nested_values(state) if isinstance(item, ShardedTensor)]
    digests = {
        (item.key, item.global_offset): xxhash.xxh3_64_hexdigest(item.data.detach().float().contiguous().numpy().tobytes())
        for item in tensors
    }
    trainer.close()
    return digests, sum(read)


@pytest.mark.parametrize(
    ("world_size", "parallel", "precision"),
    [
        (2, {}, "fp32"),
        (2, {"use_distributed_optimizer": True}, "bf16"),
        (4, {"tp": 2, "use_distributed_optimizer": True, "sequence_parallel": True}, "bf16"),
        (4, {"pp": 2, "cp": 2}, "fp32"),
    ],
    ids=["DP2", "DP2+distributed optimizer", "TP2xDP2", "PP2xCP2"],
)
def test_each_byte_is_read_once_and_the_state_is_the_same(ranks, tiny_config, world_size, parallel, precision):
    tree = tiny_config(**{"train.precision": precision, **{f"parallel.{name}": value for name, value in parallel.items()}})
    ranks.run(world_size, training.train, tree=tree, until=2, save=True)
    plain = ranks.run(world_size, state_after_resume, tree=tree, shared=False)
    shared = ranks.run(world_size, state_after_resume, tree=tree, shared=True)
    assert [digests for digests, _ in shared] == [digests for digests, _ in plain]
    assert len(plain[0][0]) > 20
    replicas = 2
    for (_, read), (_, all_of_it) in zip(shared, plain, strict=True):
        assert read == pytest.approx(all_of_it / replicas, rel=0.1)
    assert sum(read for _, read in shared) * replicas == sum(read for _, read in plain)


def test_a_rank_that_cannot_read_leaves_no_other_waiting(ranks, tiny_config):
    tree = tiny_config()
    ranks.run(2, training.train, tree=tree, until=1, save=True)
    assert ranks.run(2, reads_badly, tree=tree) == [True, True]


def reads_badly(env, store, tree):
    """Whether the load of a rank whose disk fails on rank 1 ends in an error here."""
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

    from dnapretrain.errors import CheckpointError

    load = TorchDistLoadShardedStrategy.load

    def fails(self, wanted, folder):
        found = load(self, wanted, folder)
        if env.rank == 1:
            raise OSError("input/output error")
        return found

    TorchDistLoadShardedStrategy.load = fails
    try:
        training.begin(env, store, tree)
    except CheckpointError as error:
        return "input/output error" in str(error)
    finally:
        TorchDistLoadShardedStrategy.load = load
    return False
