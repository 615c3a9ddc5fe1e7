import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dnapretrain.convert.safetensors_files import SafetensorsReader, Stored, write_sharded
from dnapretrain.errors import CheckpointError

TENSORS = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.randn(40, 2), "d": torch.randn(1)}


def write(directory, tensors, dtype, limit):
    outline = [Stored(name, tuple(tensor.shape), dtype) for name, tensor in tensors.items()]
    return write_sharded(directory, outline, iter(tensors.items()), limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_we_write(tmp_path, dtype):
    assert write(tmp_path, TENSORS, dtype, 10**9) == 103 * dtype.itemsize
    loaded = load_file(tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]
    assert all(torch.equal(loaded[name], tensor.to(dtype)) for name, tensor in TENSORS.items())
    length = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert (length + 8) % 64 == 0


def test_shards_stay_below_the_limit_and_are_indexed(tmp_path):
    write(tmp_path, TENSORS, torch.float32, 100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second, third = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"
    assert index["weight_map"] == {"a": first, "b": first, "c": second, "d": third}
    assert index["metadata"]["total_size"] == 412
    reader = SafetensorsReader(tmp_path)
    assert reader.names() == ["a", "b", "c", "d"]
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in TENSORS.items())


def test_each_tensor_keeps_its_own_type(tmp_path):
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float32]
    outline = [Stored(name, tuple(tensor.shape), dtype) for (name, tensor), dtype in zip(TENSORS.items(), dtypes, strict=True)]
    assert write_sharded(tmp_path, outline, iter(TENSORS.items()), 10**9) == 2 * 15 + 4 * 7 + 2 * 80 + 4
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[stored.name], TENSORS[stored.name].to(stored.dtype)) for stored in outline)


def test_a_stream_out_of_order_is_an_error(tmp_path):
    outline = [Stored(name, tuple(tensor.shape), torch.float32) for name, tensor in TENSORS.items()]
    with pytest.raises(CheckpointError, match=r"tensor b \(7,\) came where a \(3, 5\) belongs"):
        write_sharded(tmp_path, outline, iter([("b", TENSORS["b"])]), 10**9)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        SafetensorsReader(tmp_path)
    write(tmp_path, TENSORS, torch.float32, 100)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        SafetensorsReader(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        SafetensorsReader(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        SafetensorsReader(tmp_path)


def test_integer_weights_are_refused(tmp_path):
    save_file({"a": torch.ones(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a is stored as I8"):
        SafetensorsReader(tmp_path)
