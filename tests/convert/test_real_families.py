"""Published families from checkpoints that real layouts wrote: logits and gradients against Megatron's own, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training
from families import MERGES, SMALL
from test_real_encoders import megatron_logits, train_randomised

from dnapretrain.data.tokens.bpe import vocabulary_of_merges

SIZES = {"num_layers": 4, "hidden_size": 48, "num_attention_heads": 12, "num_query_groups": 12, "ffn_hidden_size": 96}
"""Twelve heads, as DNABERT-2 has: six on each of two ranks."""
TEXTS = ["ACGTTGCANNACGTACGGTTAACCGGACGTAC", "tatagcatcgac", "ACCGTAC", "ACGTRYACGTTTGGGGTTCACACA" * 3]


def family_tree(tiny_config, tmp_path, name, run="run", **changes):
    kind, section = SMALL[name]
    model = {**section, **SIZES, "hidden_dropout": 0.0, "ffn_dropout": "output", "max_position_embeddings": 64}
    settings = {f"model.{key}": value for key, value in model.items()}
    tokenizer = {"tokenizer.kind": kind}
    if kind == "bpe":
        vocabulary_of_merges([tuple(merge.split("+")) for merge in MERGES.split()]).save(tmp_path / "bpe.json")
        tokenizer["tokenizer.file"] = str(tmp_path / "bpe.json")
    return tiny_config(run, **settings, **tokenizer, **{"data.masking": {"mlm_probability": 0.15}}, **changes)


def load(directory):
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(directory, trust_remote_code=True).eval()


def batch_of(directory, texts):
    """Tokens [B, S] and which are real, by the folder's own tokenizer; every ninth real token but the first reads <mask>."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    tokens, real = batch["input_ids"], batch["attention_mask"].bool()
    tokens[:, 4::9] = torch.where(real[:, 4::9], tokenizer.mask_token_id, tokens[:, 4::9])
    return tokens, real


def assert_logits_agree(ranks, checkpoint, directory, texts, seed=None):
    tokens, real = batch_of(directory, texts)
    if seed is not None:  # longer than the texts: any tokens
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(5, 20, (2, 700), generator=generator)
        real = torch.ones_like(tokens).bool()
    with torch.no_grad():
        theirs = load(directory)(tokens, attention_mask=real.long()).logits.numpy()
    ours = ranks.run(1, megatron_logits, checkpoint=str(checkpoint), tokens=tokens.numpy().astype(np.int64))[0]
    real = real.numpy()
    assert ours.shape == theirs.shape
    biggest = np.abs(ours[real]).max()
    assert biggest > 0.5
    assert np.abs(ours[real] - theirs[real]).max() <= 1e-5 * biggest
    return ours


@pytest.mark.parametrize("name", SMALL)
def test_tp2_pp2_to_hf_to_native_to_hf(name, ranks, tiny_config, tmp_path):
    from dnapretrain.convert.hf import from_hf, to_hf
    from dnapretrain.convert.native import find_checkpoint, open_weights

    ranks.run(4, train_randomised, tree=family_tree(tiny_config, tmp_path, name, **{"parallel.tp": 2, "parallel.pp": 2}))
    checkpoint = find_checkpoint(tmp_path / "run")
    to_hf(checkpoint, tmp_path / "hf")
    ours = assert_logits_agree(ranks, checkpoint, tmp_path / "hf", TEXTS)
    if name == "dnabert2":
        assert_logits_agree(ranks, checkpoint, tmp_path / "hf", TEXTS, seed=3)
    from_hf(tmp_path / "hf", tmp_path / "back")
    assert np.array_equal(assert_logits_agree(ranks, tmp_path / "back", tmp_path / "hf", TEXTS), ours)
    first, second = open_weights(checkpoint), open_weights(tmp_path / "back")
    assert second.names() == first.model_names()
    assert all(torch.equal(first.read(item), second.read(item)) for item in second.names())
    to_hf(tmp_path / "back", tmp_path / "hf2")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "hf2" / file).read_bytes()


def test_an_embedding_norm_and_a_tied_head_of_nt_v2(ranks, tiny_config, tmp_path):
    """What no published NT-v2 has and its class can express."""
    from dnapretrain.convert.hf import to_hf
    from dnapretrain.convert.native import find_checkpoint

    changes = {"model.embedding_norm": True, "model.untie_embeddings_and_output_weights": False, "model.token_dropout": 0.12}
    ranks.run(1, train_randomised, tree=family_tree(tiny_config, tmp_path, "nt-v2", **changes))
    to_hf(tmp_path / "run", tmp_path / "hf")
    assert_logits_agree(ranks, find_checkpoint(tmp_path / "run"), tmp_path / "hf", TEXTS)


def gradients_of_one_step(env, store, tree):
    """(tokens, labels, which are predicted, which are real, mean loss, gradients by Hugging Face name) of Megatron's model on the first
    micro-batch of a run."""
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.convert.families import family_of
    from dnapretrain.convert.table import native_to_hf
    from dnapretrain.model.build import named_weights

    trainer, data, _ = training.begin(env, store, tree)
    batch = next(trainer.next_batches()[0])
    wrapped = trainer.chunks[0]
    wrapped.train()
    wrapped.zero_grad_buffer()
    losses_BS, _ = wrapped(batch.tokens_BS, batch.positions_BS, batch.attention_mask, labels=batch.labels_BS)
    chosen_BS = batch.loss_mask_BS > 0
    loss = losses_BS[chosen_BS].mean()
    loss.backward()
    gradients = {name: weight.main_grad.clone() for name, weight in named_weights([wrapped.module])}
    config = config_from_dict(tree)
    table = family_of(config.model).entries(config.model, config.max_positions, data.tokenizer)
    real_BS = torch.ones_like(chosen_BS) if batch.attention_mask is None else ~batch.attention_mask[:, 0, 0]
    found = {name: gradient.detach().numpy() for name, gradient in native_to_hf(table, gradients.__getitem__)}
    tensors = (batch.tokens_BS, batch.labels_BS, chosen_BS, real_BS)
    return *(tensor.numpy() for tensor in tensors), float(loss.detach()), found


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_has_the_same_gradients(name, ranks, tiny_config, tmp_path):
    from dnapretrain.convert.hf import to_hf
    from dnapretrain.convert.native import find_checkpoint

    ranks.run(1, train_randomised, tree=family_tree(tiny_config, tmp_path, name))
    to_hf(tmp_path / "run", tmp_path / "hf")
    tree = family_tree(tiny_config, tmp_path, name, run="more")
    tree["checkpoint"] = {"load": str(find_checkpoint(tmp_path / "run"))}
    tokens, labels, chosen, real, loss, expected = ranks.run(1, gradients_of_one_step, tree=tree)[0]
    model = load(tmp_path / "hf").train()
    targets = torch.from_numpy(labels).masked_fill(~torch.from_numpy(chosen), -100)
    theirs = model(torch.from_numpy(tokens), attention_mask=torch.from_numpy(real).long(), labels=targets).loss
    theirs.backward()
    assert chosen.sum() > 3
    assert abs(theirs.item() - loss) <= 1e-5 * loss
    found = {item: weight.grad.numpy() for item, weight in model.named_parameters()}
    assert found.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for item, gradient in expected.items():
        assert np.abs(gradient - found[item]).max() <= 1e-5 * largest, item
