"""Encoders as EsmForMaskedLM, from checkpoints that real layouts wrote, against Megatron's own logits."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import training

ESM = {
    "data.masking": {"mlm_probability": 0.15},
    "model.kind": "encoder",
    "model.num_query_groups": 4,
    "model.normalization": "LayerNorm",
    "model.activation": "gelu",
    "model.attention_bias": True,
    "model.ffn_in_bias": True,
    "model.ffn_out_bias": True,
}
POSITIONS = {
    "model.position_embedding_type": "learned_absolute",
    "model.token_dropout": 0.12,
    "model.embedding_norm": True,
    "model.untie_embeddings_and_output_weights": False,
}


def train_randomised(env, store, tree):
    """Norms and biases at random too (matrices are), one tiny step, save: nothing keeps a value that hides a swap."""
    from dnapretrain.model.build import named_weights

    trainer, data, _ = training.begin(env, store, tree)
    inner = [chunk.module.module if tree["train"]["precision"] == "bf16" else chunk.module for chunk in trainer.chunks]
    tp_size = tree["parallel"].get("tp", 1)
    with torch.no_grad():
        for name, weight in named_weights(inner):
            if weight.dim() > 1:
                continue
            # The whole tensor from its name on every rank; a sharded one then gives this rank's part.
            pieces = tp_size if getattr(weight, "tensor_model_parallel", False) else 1
            whole = 0.5 * torch.rand(pieces * len(weight), generator=torch.Generator().manual_seed(sum(name.encode())))
            if name == "output_layer.bias":
                whole[data.tokenizer.vocab_size :] = 0.0
            weight.copy_(whole.chunk(pieces)[env.rank % tp_size if pieces > 1 else 0])
            if name.endswith("weight"):
                weight += 1.0
    trainer.optimizer.reload_model_params()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train_step(trainer.next_batches())
        trainer.save(trainer.position)


def megatron_logits(env, store, checkpoint, tokens):
    """Logits of the checkpoint on one rank, by our encoder on Megatron's layers."""
    del store
    from dnapretrain.train.run import native_logits

    assert env.world_size == 1
    return native_logits(Path(checkpoint), tokens)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (4, {"parallel.tp": 2, "parallel.pp": 2}),
        (4, {"parallel.tp": 2, "parallel.pp": 2, **POSITIONS}),
        (2, {"parallel.pp": 2, "parallel.vpp": 2, "parallel.use_distributed_optimizer": True, **POSITIONS}),
        (1, {"tokenizer.kind": "kmer", "tokenizer.k": 3, "model.token_dropout": 0.12}),
    ],
    ids=["tp 2, pp 2", "tp 2, pp 2, positions", "pp 2, vpp 2, positions", "3-mers"],
)
def test_logits_agree_and_the_way_back_is_the_identity(ranks, tiny_config, tmp_path, world_size, layout):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from dnapretrain.convert.hf import from_hf, to_hf
    from dnapretrain.convert.native import find_checkpoint, open_weights

    ranks.run(world_size, train_randomised, tree=tiny_config("run", **ESM, **layout))
    to_hf(tmp_path / "run", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    sequences = ["ACGTTGCAN<mask>NACGTAC<mask>GGTTAACCGG", "TATAGCATCGAC", "<mask>ACCGTA"]
    batch = tokenizer(sequences, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**batch).logits.numpy()
    tokens, real = batch["input_ids"].numpy().astype(np.int64), batch["attention_mask"].numpy().astype(bool)
    ours = ranks.run(1, megatron_logits, checkpoint=str(find_checkpoint(tmp_path / "run")), tokens=tokens)[0]
    assert not real.all() and (tokens == 4).sum() == 3
    assert np.abs(ours[real] - theirs[real]).max() < 1e-5
    assert np.abs(ours[real]).max() > 0.5

    from_hf(tmp_path / "hf", tmp_path / "back")
    again = ranks.run(1, megatron_logits, checkpoint=str(tmp_path / "back"), tokens=tokens)[0]
    assert np.array_equal(again, ours)
    first, second = open_weights(find_checkpoint(tmp_path / "run")), open_weights(tmp_path / "back")
    assert second.names() == first.model_names()
    assert all(torch.equal(first.read(name), second.read(name)) for name in second.names())


def test_an_imported_encoder_trains(ranks, tiny_config, tmp_path):
    from dnapretrain.convert.hf import from_hf, to_hf

    start = tiny_config("run", **ESM, **POSITIONS)
    ranks.run(1, train_randomised, tree=start)
    to_hf(tmp_path / "run", tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "back")
    go_on = tiny_config("more", **ESM, **POSITIONS)
    go_on["checkpoint"] = {"load": str(tmp_path / "back")}
    [trained] = ranks.run(1, training.train, tree=go_on, until=1)
    [scratch] = ranks.run(1, training.train, tree=tiny_config("scratch", **ESM, **POSITIONS), until=1)
    assert np.isfinite(trained.losses[0]) and trained.losses[0] != scratch.losses[0]
