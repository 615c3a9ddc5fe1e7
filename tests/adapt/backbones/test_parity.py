"""`convert ... --verify`: logits of checkpoint and folder side by side."""

from __future__ import annotations

import json

import pytest
import torch
from families import SMALL, write_small
from reference import small_config, write_random
from safetensors.torch import load_file, save_file

from dnapretrain.cli import main


def folder_of(name, tmp_path):
    if name == "decoder":
        write_random(tmp_path / "native", small_config())
    else:
        write_small(tmp_path / "native", name, tmp_path)
    return [str(tmp_path / "native"), str(tmp_path / "hf")]


def printed(capsys):
    """What `--verify` printed, behind the report."""
    text = capsys.readouterr().out
    return json.loads(text[text.index('{\n "verify"') :])["verify"]


@pytest.mark.parametrize("name", ["decoder", *SMALL])
def test_both_directions_print_numbers_and_agree(name, tmp_path, capsys):
    native, hf = folder_of(name, tmp_path)
    assert main(["convert", "to-hf", native, hf, "--verify"]) == 0
    found = printed(capsys)
    assert found["agree"] and found["ratio"] <= 1e-5 and found["max_logit"] > 0.5 and found["tokens_compared"] > 60
    assert main(["convert", "from-hf", hf, str(tmp_path / "back"), "--verify"]) == 0
    assert printed(capsys)["agree"]


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_that_was_changed_fails(name, tmp_path, capsys):
    from dnapretrain.adapt.backbones.parity import compare_logits

    native, hf = folder_of(name, tmp_path)
    assert main(["convert", "to-hf", native, hf]) == 0
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    item = next(item for item in tensors if item.endswith("layer.1.attention.output.dense.bias"))
    tensors[item] = tensors[item] + 0.01 * torch.arange(len(tensors[item]))
    save_file(tensors, path)
    found = compare_logits(native, hf)
    assert not found["agree"] and found["ratio"] > 1e-3
