"""Hugging Face folders from checkpoints that real layouts wrote, against Megatron's own logits."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import training


def train_randomised(env, store, tree):
    """Set the gains at random too (matrices are), take one tiny step, save: nothing keeps a value that hides a swap."""
    from dnapretrain.model.build import named_weights

    trainer, _, _ = training.begin(env, store, tree)
    inner = [chunk.module.module if tree["train"]["precision"] == "bf16" else chunk.module for chunk in trainer.chunks]
    with torch.no_grad():
        for name, weight in named_weights(inner):
            # Gains are whole on every tensor-parallel rank: the same values there, keyed by name.
            generator = torch.Generator().manual_seed(sum(name.encode()))
            if weight.dim() == 1:
                weight.copy_(1.0 + 0.5 * torch.rand(weight.shape, generator=generator))
    trainer.optimizer.reload_model_params()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train_step(trainer.next_batches())
        trainer.save(trainer.position)


def megatron_logits(env, store, checkpoint, tokens):
    """Logits of the checkpoint on one rank, by Megatron's own model."""
    del store
    from dnapretrain.train.run import native_logits

    assert env.world_size == 1
    return native_logits(Path(checkpoint), tokens)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (4, {"parallel.tp": 2, "parallel.pp": 2}),
        (2, {"parallel.pp": 2, "parallel.vpp": 2}),
        (2, {"parallel.use_distributed_optimizer": True}),
        (1, {"model.untie_embeddings_and_output_weights": False, "model.num_query_groups": 4}),
        (2, {"parallel.tp": 2, "tokenizer.kind": "kmer", "tokenizer.k": 3, "data.random_phase": True}),
    ],
    ids=str,
)
def test_logits_agree_and_the_way_back_is_the_identity(ranks, tiny_config, tmp_path, world_size, layout):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dnapretrain.convert.hf import from_hf, to_hf
    from dnapretrain.convert.native import find_checkpoint, open_weights

    ranks.run(world_size, train_randomised, tree=tiny_config("run", **layout))
    report = to_hf(tmp_path / "run", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    sequence = "ACGTTGCANNACGTACGGTTAACCGGTATAGCATCGAC"
    tokens = np.array([tokenizer(sequence)["input_ids"], tokenizer(sequence[::-1])["input_ids"]], dtype=np.int64)[:, :32]
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = ranks.run(1, megatron_logits, checkpoint=str(find_checkpoint(tmp_path / "run")), tokens=tokens)[0]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()
    assert np.abs(ours).max() > 0.5
    assert report["native_tensors"] == 4 * 6 + (2 if "model.untie_embeddings_and_output_weights" in layout else 3)

    from_hf(tmp_path / "hf", tmp_path / "back")
    again = ranks.run(1, megatron_logits, checkpoint=str(tmp_path / "back"), tokens=tokens)[0]
    assert np.array_equal(again, ours)
    first, second = open_weights(find_checkpoint(tmp_path / "run")), open_weights(tmp_path / "back")
    assert second.names() == first.model_names()
    assert all(torch.equal(first.read(name), second.read(name)) for name in second.names())


def test_bf16_runs_export_their_fp32_main_weights(ranks, tiny_config, tmp_path):
    from safetensors.torch import load_file

    from dnapretrain.convert.hf import to_hf

    ranks.run(2, train_randomised, tree=tiny_config("run", **{"parallel.tp": 2, "train.precision": "bf16", "optim.lr_warmup_steps": 0}))
    report = to_hf(tmp_path / "run", tmp_path / "hf")
    assert report["from_model_weights"] == 0 and report["dtype"] == "float32"
    weight = load_file(tmp_path / "hf" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
