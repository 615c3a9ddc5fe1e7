"""Models of a longer context out to transformers and back: logits beyond the original context, and config.json in both dialects."""

from __future__ import annotations

import json

import pytest
import torch
from families import small, write_small
from reference import small_config, write_random

from dnapretrain.convert import aido_dna, llama, nt_v2
from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import read_config
from dnapretrain.errors import ConfigError

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SHARP = {**YARN, "attention_factor": 1.4, "beta_fast": 8.0}
SCALINGS = {"linear": LINEAR, "llama3": LLAMA3, "yarn": YARN, "yarn, own factor": SHARP}
STRETCHED = {"max_position_embeddings": 256, "rotary_base": 500, "kv_channels": 16}


def logits_of_both(tmp_path, auto, tokens):
    """(transformers', Megatron's) logits in fp32 of tmp_path/hf and tmp_path/native."""
    import transformers

    from dnapretrain.train.run import native_logits

    model = getattr(transformers, auto).from_pretrained(str(tmp_path / "hf"), trust_remote_code=True).eval()
    with torch.no_grad():
        theirs = model(tokens).logits
    return theirs, torch.from_numpy(native_logits(tmp_path / "native", tokens.numpy()))


def tokens_of(vocab_size, length=200):
    return torch.randint(5, vocab_size, (2, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SCALINGS)
def test_llama_gives_megatrons_logits_beyond_the_original_context(tmp_path, name):
    config = small_config(**STRETCHED, rope_scaling=SCALINGS[name])
    write_random(tmp_path / "native", config)
    to_hf(tmp_path / "native", tmp_path / "hf")
    theirs, ours = logits_of_both(tmp_path, "AutoModelForCausalLM", tokens_of(10))
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    write_random(tmp_path / "plain" / "native", small_config(**STRETCHED))
    to_hf(tmp_path / "plain" / "native", tmp_path / "plain" / "hf")
    plain, _ = logits_of_both(tmp_path / "plain", "AutoModelForCausalLM", tokens_of(10))
    assert (plain - theirs).abs().max() > 1e-2 * ours.abs().max()  # the stretching reaches the logits
    from_hf(tmp_path / "hf", tmp_path / "back")
    assert read_config(tmp_path / "back").model == config.model


@pytest.mark.parametrize("name", ["nt-v2", "aido-dna"])
def test_encoders_are_stretched_linearly(tmp_path, name):
    config, tokenizer, _ = write_small(tmp_path / "native", name, tmp_path, rope_scaling=LINEAR, max_position_embeddings=256)
    to_hf(tmp_path / "native", tmp_path / "hf")
    theirs, ours = logits_of_both(tmp_path, "AutoModelForMaskedLM", tokens_of(tokenizer.vocab_size))
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["seq_len_interpolation_factor"] == 4.0
    from_hf(tmp_path / "hf", tmp_path / "back")
    assert read_config(tmp_path / "back").model == config.model


@pytest.mark.parametrize(("name", "family"), [("nt-v2", nt_v2), ("aido-dna", aido_dna)])
def test_what_encoders_folders_cannot_say_is_refused(tmp_path, name, family):
    config, tokenizer = small(name, tmp_path, rope_scaling=LLAMA3, max_position_embeddings=256)
    with pytest.raises(ConfigError, match="rope_type = llama3 cannot be expressed"):
        family.entries(config.model, 256, tokenizer)


BASE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize("name", SCALINGS)
def test_both_dialects_are_read(name):
    scaling = SCALINGS[name]
    older = {**BASE, "rope_theta": 500.0, "rope_scaling": scaling}
    oldest = {
        **BASE,
        "rope_theta": 500.0,
        "rope_scaling": {"type": scaling["rope_type"], **{k: v for k, v in scaling.items() if k != "rope_type"}},
    }
    newer = {**BASE, "rope_parameters": {**scaling, "rope_theta": 500.0}}
    models = [llama.model_config(hf) for hf in (older, oldest, newer, {**older, **newer})]
    assert all(model == models[0] for model in models)
    assert models[0].rotary_base == 500 and models[0].rope_scaling.rope_type == scaling["rope_type"]


def test_what_transformers_fills_in():
    yarn = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5, "rope_theta": 500.0}
    scaling = llama.model_config({**BASE, "rope_parameters": yarn}).rope_scaling
    assert scaling.original_max_position_embeddings == 256
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=24, num_attention_heads=4, max_position_embeddings=256, rope_parameters=dict(yarn))
    assert scaling.attention_factor == pytest.approx(ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "has factor"),
        ({"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}, "whole heads"),
        ({"rope_parameters": {**LINEAR, "rope_theta": 1e4}, "rope_scaling": YARN}, "differ. Keep one"),
        ({"rope_parameters": {**LINEAR, "low": 2}}, "low = 2"),
        ({"rope_parameters": {**LINEAR, "rope_theta": 500.0}, "rope_theta": 10_000.0}, "differ"),
        ({"rope_scaling": "linear"}, "holds no settings"),
    ],
    ids=str,
)
def test_what_our_models_cannot_say_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        llama.model_config({**BASE, **fields})
