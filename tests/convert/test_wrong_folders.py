"""Folders of every family that are wrong in one way: the tensor is named, and the shape it should have."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_folders import FAMILIES, write_folder

from dnapretrain.convert.hf import from_hf
from dnapretrain.data.tokens.files import load_hf_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError

MATRIX = {
    "generator": "model.layers.1.mlp.down_proj.weight",
    "nt-v1": "esm.encoder.layer.1.output.dense.weight",
    "nt-v2": "esm.encoder.layer.1.output.dense.weight",
    "dnabert2": "bert.encoder.layer.1.mlp.wo.weight",
    "aido-dna": "bert.encoder.layer.1.mlp.down_proj.weight",
}
WORDS = {"generator": "model.embed_tokens.weight", "nt-v1": "esm.embeddings.word_embeddings.weight"}
WORDS |= {
    "nt-v2": WORDS["nt-v1"],
    "dnabert2": "bert.embeddings.word_embeddings.weight",
    "aido-dna": "bert.embeddings.word_embeddings.weight",
}

OTHER = {"generator": "aido-dna", "nt-v1": "generator", "nt-v2": "generator", "dnabert2": "nt-v1", "aido-dna": "nt-v1"}
"""Whose config.json it gets in `other_family`."""
FIRST = {"aido-dna": "bert.", "generator": "lm_head.weight", "nt-v1": "esm."}
"""What is missing first, in the order of names."""


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    folder, _ = write_folder(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, folder


def tensors(folder, edit):
    content = load_file(folder / "model.safetensors")
    edit(content)
    save_file(content, folder / "model.safetensors")


def config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def missing(folder, name):
    shape = tuple(load_file(folder / "model.safetensors")[MATRIX[name]].shape)
    tensors(folder, lambda content: content.pop(MATRIX[name]))
    return CheckpointError, f"1 missing: {MATRIX[name]} {shape}"


def extra(folder, name):
    tensors(folder, lambda content: content.update({"adapter.lora_A.weight": torch.zeros(2, 3)}))
    return CheckpointError, "1 unexpected: adapter.lora_A.weight"


def wrong_shape(folder, name):
    shape = tuple(load_file(folder / "model.safetensors")[MATRIX[name]].shape)
    tensors(folder, lambda content: content.update({MATRIX[name]: torch.zeros(shape[0], 7)}))
    return CheckpointError, f"{MATRIX[name]} has shape {(shape[0], 7)}; the model section asks for {shape}"


def other_rows(folder, name):
    """As many words as another vocabulary has."""
    rows, width = load_file(folder / "model.safetensors")[WORDS[name]].shape
    tensors(folder, lambda content: content.update({WORDS[name]: torch.zeros(rows + 8, width)}))
    return CheckpointError, f"{WORDS[name]} has shape {(rows + 8, width)}; the model section asks for {(rows, width)}"


def other_vocabulary(folder, name):
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config(folder, vocab_size=size + 8)
    return ConfigError, f"vocab_size = {size + 8} in config.json, but the tokenizer has {size}"


def no_vocabulary(folder, name):
    config(folder, vocab_size=75)
    (folder / "tokenizer.json").unlink()
    return CheckpointError, "vocab_size = 75"


def unknown_family(folder, name):
    config(folder, model_type="hyena", alibi_starting_size=None)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if key != "alibi_starting_size"}))
    return ConfigError, "model_type = 'hyena' is none that is converted: llama"


def other_family(folder, name):
    """The config.json of another architecture beside the weights."""
    other = OTHER[name]
    content = json.loads((folder.parent / "configs" / f"{other}.json").read_text())
    tokenizer = load_hf_tokenizer(folder)
    ids = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id, "mask_token_id": tokenizer.mask_id}
    (folder / "config.json").write_text(json.dumps({**content, **ids}))
    return CheckpointError, f"missing: {FIRST[other]}"


def cut_short(folder, name):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return CheckpointError, "model.safetensors cannot be read"


def shard_missing(folder, name):
    content = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = {item: f"model-0000{1 + (item == MATRIX[name])}-of-00002.safetensors" for item in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return CheckpointError, "model-00002-of-00002.safetensors cannot be read"


WRONG = [missing, extra, wrong_shape, other_rows, other_vocabulary, no_vocabulary, unknown_family, other_family, cut_short, shard_missing]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_what_is_wrong_is_named_and_nothing_is_written(whole, wrong, tmp_path, tmp_path_factory):
    name, folder = whole
    shutil.copytree(folder, tmp_path / "hf")
    if wrong is other_family:
        (tmp_path / "configs").mkdir()
        other = OTHER[name]
        source, _ = write_folder(tmp_path_factory.mktemp(other), other)
        shutil.copyfile(source / "config.json", tmp_path / "configs" / f"{other}.json")
    error, message = wrong(tmp_path / "hf", name)
    with pytest.raises(error, match=re.escape(message)):
        from_hf(tmp_path / "hf", tmp_path / "back")
    assert not (tmp_path / "back").exists()
