import json

import pytest
import torch
from reference import small_config, write_random

from dnapretrain.config_file import dump_config
from dnapretrain.convert.native import find_checkpoint, open_weights, read_config, read_state, read_tokenizer
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "run" / "checkpoints" / "step_00000003"
    write_random(directory, small_config(), step=3)
    (directory.parent / "latest").write_text("step_00000003\n")
    return directory


def test_a_run_folder_leads_to_its_newest_checkpoint(checkpoint):
    assert find_checkpoint(checkpoint.parent.parent) == checkpoint
    assert find_checkpoint(checkpoint) == checkpoint
    (checkpoint.parent / "latest").write_text("step_00000009")
    with pytest.raises(CheckpointError, match="step_00000009, which is not there"):
        find_checkpoint(checkpoint.parent.parent)
    (checkpoint.parent / "latest").unlink()
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        find_checkpoint(checkpoint.parent.parent)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(checkpoint / "nowhere")


def test_what_lies_beside_the_weights_is_read_back(checkpoint):
    config = small_config()
    assert dump_config(read_config(checkpoint)) == dump_config(config)
    assert read_tokenizer(checkpoint) == build_tokenizer(config.tokenizer)
    assert read_state(checkpoint)["step"] == 3


@pytest.mark.parametrize(("name", "read"), [("run.yaml", read_config), ("tokenizer.json", read_tokenizer), ("state.json", read_state)])
def test_missing_or_broken_side_files_are_checkpoint_errors(checkpoint, name, read):
    (checkpoint / name).write_text('{"half": ')
    with pytest.raises(CheckpointError, match=name):
        read(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read(checkpoint)


def read_all(checkpoint):
    reader = open_weights(checkpoint)
    return [reader.read(name) for name in reader.names()]


def weight_files(checkpoint):
    return sorted((checkpoint / "weights").glob("*.distcp"))


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "a tensor file"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_missing_and_cut_files_are_checkpoint_errors(checkpoint, name, damage):
    path = weight_files(checkpoint)[5] if name == "a tensor file" else checkpoint / "weights" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
        read_all(checkpoint)


def test_an_index_cut_anywhere_is_a_checkpoint_error_without_a_recorded_digest(checkpoint):
    (checkpoint / "state.json").write_text(json.dumps({"format": 1, "step": 3, "consumed_samples": 0, "files": {}}))
    path = checkpoint / "weights" / ".metadata"
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 23)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_all(checkpoint)


def test_one_flipped_bit_in_the_values_is_found(checkpoint):
    path = max(weight_files(checkpoint), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        read_all(checkpoint)


def test_one_changed_byte_in_the_index_is_found(checkpoint):
    path = checkpoint / "weights" / ".metadata"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest differs"):
        open_weights(checkpoint)


def test_pieces_written_by_several_ranks_are_put_together(tmp_path):
    """A tensor in pieces, as tensor- and data-parallel ranks write it, with optimizer state beside it."""
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    whole = torch.randn(6, 4)
    corners = [(0, 0), (0, 2), (3, 0), (3, 2)]
    items = [
        WriteItem(
            index=MetadataIndex("optimizer.state.fp32_param.w", torch.Size(corner)),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=torch.Size(corner), sizes=torch.Size((3, 2))),
                properties=TensorProperties.create_from_tensor(whole),
                size=whole.shape,
            ),
        )
        for corner in corners
    ]

    class Planner(DefaultSavePlanner):
        def resolve_data(self, write_item):
            row, column = write_item.index.offset
            return whole[row : row + 3, column : column + 2].clone()

    folder = tmp_path / "weights"
    planner, writer = Planner(flatten_state_dict=False), FileSystemWriter(folder)
    planner.set_up_planner({}, is_coordinator=True)
    plans, metadata = planner.create_global_plan([SavePlan(items[:2]), SavePlan(items[2:])])
    writer.set_up_storage_writer(True)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    writer.finish(metadata, [writer.write_data(plan, planner).wait() for plan in plans])
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "step": 0, "consumed_samples": 0, "files": {}}))

    reader = open_weights(tmp_path)
    assert reader.best_key("w") == "optimizer.state.fp32_param.w"
    assert reader.best_key("other") == "other"
    assert reader.model_names() == []
    assert torch.equal(reader.read("optimizer.state.fp32_param.w"), whole)
    reader._tensors["optimizer.state.fp32_param.w"].chunks.pop()
    with pytest.raises(CheckpointError, match="18 of the 24 values"):
        reader.read("optimizer.state.fp32_param.w")
    with pytest.raises(CheckpointError, match="holds no tensor w"):
        reader.read("w")


@pytest.mark.parametrize(
    ("state", "named"), [({}, "lacks format"), ({"format": 2, "step": 0, "consumed_samples": 0, "files": {}}, "has format 2")], ids=str
)
def test_a_state_of_another_kind_is_refused(checkpoint, state, named):
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=named):
        read_state(checkpoint)
