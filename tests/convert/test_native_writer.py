import weakref

import pytest
import torch
from reference import native_shapes, random_tensors, small_config, write_random

from dnapretrain.convert.native import open_weights, read_state
from dnapretrain.convert.native_writer import write_native
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError


def test_every_tensor_is_read_back_bit_for_bit(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = write_random(tmp_path / str(dtype), small_config(), dtype=dtype)
        reader = open_weights(tmp_path / str(dtype))
        assert reader.names() == reader.model_names() == sorted(tensors)
        for name, tensor in tensors.items():
            assert reader.shape(name) == tuple(tensor.shape)
            assert reader.dtype(name) == dtype
            assert torch.equal(reader.read(name), tensor)


def test_megatron_loads_what_was_written(tmp_path):
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    tensors = write_random(tmp_path / "checkpoint", small_config())
    weights = str(tmp_path / "checkpoint" / "weights")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = dist_checkpointing.load_plain_tensors(weights)
        assert sorted(plain) == sorted(tensors)
        assert all(torch.equal(plain[name], tensor) for name, tensor in tensors.items())
        # The second of two tensor-parallel ranks reads its half, in bf16.
        name = "decoder.layers.1.self_attention.linear_proj.weight"
        half = torch.zeros(24, 12, dtype=torch.bfloat16)
        loaded = dist_checkpointing.load(
            {"x": ShardedTensor.from_rank_offsets(name, half, (1, 1, 2))}, weights, validate_access_integrity=False
        )
        assert torch.equal(loaded["x"], tensors[name][:, 12:].to(torch.bfloat16))
        assert dist_checkpointing.check_is_distributed_checkpoint(weights)
        assert dist_checkpointing.load_common_state_dict(weights) == {}
    finally:
        torch.distributed.destroy_process_group()


def test_any_order_of_the_tensors_will_do(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    write_native(tmp_path / "c", config, build_tokenizer(config.tokenizer), reversed(tensors.items()))
    reader = open_weights(tmp_path / "c")
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in tensors.items())


def changed(tensors, change):
    items = list(tensors.items())
    if change == "missing":
        return items[:5] + items[6:]
    if change == "extra":
        return [*items, ("decoder.layers.2.mlp.linear_fc2.weight", torch.zeros(24, 40))]
    if change == "twice":
        return [*items, items[3]]
    name, tensor = items[4]
    return [*items[:4], (name, tensor[:-1]), *items[5:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing: decoder.layers.0.mlp.linear_fc1.weight|1 missing: decoder.layers.0"),
        ("extra", "1 unexpected: decoder.layers.2.mlp.linear_fc2.weight"),
        ("twice", "1 named twice"),
        ("shape", "has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_leave_nothing_behind(tmp_path, change, message):
    config = small_config()
    with pytest.raises(CheckpointError, match=message):
        write_native(tmp_path / "c", config, build_tokenizer(config.tokenizer), changed(random_tensors(config), change))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing_that_looks_finished(tmp_path):
    config = small_config()

    def stream():
        yield from list(random_tensors(config).items())[:6]
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_native(tmp_path / "c", config, build_tokenizer(config.tokenizer), stream())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    config = small_config()
    write_random(tmp_path / "c", config, step=5)
    with pytest.raises(CheckpointError, match="exists already"):
        write_random(tmp_path / "c", config)
    assert read_state(tmp_path / "c")["step"] == 5


def test_tensors_are_taken_one_at_a_time(tmp_path):
    config = small_config(num_layers=8)
    tokenizer = build_tokenizer(config.tokenizer)
    alive: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        for name, shape in native_shapes(config.model, tokenizer.vocab_size).items():
            tensor = torch.zeros(shape)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            yield name, tensor

    write_native(tmp_path / "c", config, tokenizer, stream())
    assert len(alive) == 51
    assert most <= 3
