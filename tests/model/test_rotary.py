"""Rotary frequencies are those of transformers, bit for bit, and Megatron's attention turns by them."""

from __future__ import annotations

import math

import pytest
import torch

from dnapretrain.config import ModelConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError
from dnapretrain.model.rotary import attention_factor, inverse_frequencies

SCALINGS = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
    "llama3, own bounds": {
        "rope_type": "llama3",
        "factor": 3.0,
        "original_max_position_embeddings": 100,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, own bounds": {
        "rope_type": "yarn",
        "factor": 2.5,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
        "truncate": False,
    },
}


def model_of(scaling, **changes):
    sizes = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "rotary_base": 500_000}
    return ModelConfig.model_validate({**sizes, "rope_scaling": scaling, **changes})


@pytest.mark.parametrize("width", [6, 16, 96])
@pytest.mark.parametrize("name", SCALINGS)
def test_equals_transformers_bit_for_bit(name, width):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = model_of(SCALINGS[name], kv_channels=width)
    if name == "none":
        expected, factor = 1.0 / 500_000.0 ** (torch.arange(0, width, 2).float() / width), 1.0
    else:
        theirs = {"rope_theta": 500_000.0, **model.rope_scaling.model_dump(exclude_none=True)}
        config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=width, max_position_embeddings=256, rope_parameters=theirs)
        expected, factor = ROPE_INIT_FUNCTIONS[model.rope_scaling.rope_type](config, "cpu")
    assert torch.equal(inverse_frequencies(model), expected)
    assert attention_factor(model.rope_scaling) == factor


def test_what_each_type_does():
    plain, linear = inverse_frequencies(model_of(None)), inverse_frequencies(model_of(SCALINGS["linear"]))
    assert torch.equal(plain, 4 * linear)
    for name in ("llama3", "yarn"):
        stretched = inverse_frequencies(model_of(SCALINGS[name]))
        assert stretched[0] == plain[0]  # the fastest turns as before
        assert stretched[-1] == pytest.approx(float(plain[-1]) / SCALINGS[name]["factor"])
    assert attention_factor(model_of(SCALINGS["yarn"]).rope_scaling) == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2}, "linear"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0.5}, "greater than or equal to 1"),
        ({"rope_type": "linear", "factor": 2, "beta_fast": 3}, "beta_fast is not for rope_type=linear"),
        ({"rope_type": "yarn", "factor": 2}, "needs original_max_position_embeddings"),
        ({"rope_type": "llama3", "factor": 2, "original_max_position_embeddings": 8, "low_freq_factor": 4}, "not below high_freq_factor"),
        ({"rope_type": "linear", "factor": 2, "scale": 1}, "unknown config key"),
    ],
    ids=str,
)
def test_settings_that_do_not_hold_are_named(tiny_config, scaling, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(tiny_config(**{"model.rope_scaling": scaling}))


def test_only_rotary_embeddings_are_stretched(tiny_config):
    tree = tiny_config(**{"model.kind": "encoder", "data.masking": {"mlm_probability": 0.15}, "model.rope_scaling": SCALINGS["linear"]})
    config_from_dict(tree)
    tree["model"]["position_embedding_type"] = "learned_absolute"
    with pytest.raises(ConfigError, match="rope_scaling is for position_embedding_type=rope"):
        config_from_dict(tree)
