"""Run in a process of its own: converts a model with large matrices in every direction and prints the memory that each took.

python peak_memory.py FOLDER      one JSON object: bytes of the largest tensor and of all, and for each conversion the peak above
                                  what the process had before it
"""

import json
import sys
from pathlib import Path

import torch
from reference import native_shapes, small_config, write_random
from safetensors.torch import load_file
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from dnapretrain.config_file import dump_config
from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.data.tokens.tokenizers import build_tokenizer

LARGE = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 4, "ffn_hidden_size": 16_384}
TOKENIZER = {"kind": "kmer", "k": 8}
"""65,541 tokens."""


def status(field):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def peak_above_start(convert, *arguments):
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = status("VmRSS")
    convert(*arguments)
    return status("VmHWM") - before


def pieces(name, shape):
    """(offsets, sizes, rank) of a tensor under tensor 2 x pipeline 2."""
    stage = int((".layers." in name and int(name.split(".")[2]) >= 2) or name.startswith(("output_layer", "decoder.final")))
    if len(shape) == 1:
        return [((0,), shape, 2 * stage)]
    axis = 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
    half = tuple(size // 2 if number == axis else size for number, size in enumerate(shape))
    second = tuple(half[number] if number == axis else 0 for number in range(2))
    return [((0, 0), half, 2 * stage), (second, half, 2 * stage + 1)]


class RandomPieces(DefaultSavePlanner):
    """Makes each piece at the moment that it is written."""

    def resolve_data(self, write_item):
        return torch.rand(write_item.tensor_data.chunk.sizes)


def write_by_four_ranks(folder, config):
    """A checkpoint as ranks of tensor 2 x pipeline 2 write it; bytes of each tensor."""
    shapes = native_shapes(config.model, build_tokenizer(config.tokenizer).vocab_size)
    plans = [SavePlan([]) for _ in range(4)]
    for name, shape in shapes.items():
        properties = TensorProperties.create_from_tensor(torch.empty(0))
        for offsets, sizes, rank in pieces(name, shape):
            chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            data = TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(shape))
            plans[rank].items.append(WriteItem(index=MetadataIndex(name, chunk.offsets), type=WriteItemType.SHARD, tensor_data=data))
    weights = folder / "weights"
    planner, writer = RandomPieces(flatten_state_dict=False), FileSystemWriter(weights)
    planner.set_up_planner({}, is_coordinator=True)
    plans, metadata = planner.create_global_plan(plans)
    writer.set_up_storage_writer(True)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    writer.finish(metadata, [writer.write_data(plan, planner).wait() for plan in plans])
    (weights / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (folder / "run.yaml").write_text(dump_config(config))
    (folder / "tokenizer.json").write_text(json.dumps(build_tokenizer(config.tokenizer).to_dict()))
    (folder / "state.json").write_text(json.dumps({"format": 1, "step": 0, "consumed_samples": 0, "files": {}}))
    return [4 * torch.Size(shape).numel() for shape in shapes.values()]


def as_torch_file(source, target):
    """The folder with pytorch_model.bin in place of safetensors."""
    target.mkdir()
    torch.save(load_file(source / "model.safetensors"), target / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((source / name).read_bytes())


def main(folder):
    write_random(folder / "first", small_config(TOKENIZER))  # what a first conversion loads is not counted
    to_hf(folder / "first", folder / "first-hf")
    as_torch_file(folder / "first-hf", folder / "first-bin")
    for source in ("first-hf", "first-bin"):
        from_hf(folder / source, folder / f"{source}-back")
    sizes = write_by_four_ranks(folder / "native", small_config(TOKENIZER, **LARGE))
    peaks = {"to_hf": peak_above_start(to_hf, folder / "native", folder / "hf")}
    peaks["from_safetensors"] = peak_above_start(from_hf, folder / "hf", folder / "back")
    as_torch_file(folder / "hf", folder / "bin")
    peaks["from_bin"] = peak_above_start(from_hf, folder / "bin", folder / "back-bin")
    return {"largest": max(sizes), "total": sum(sizes), "peaks": peaks}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
