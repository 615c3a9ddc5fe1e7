"""Frequencies of the rotary embedding, stretched where the settings say so: the formulas of transformers, value for value."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dnapretrain.config import ModelConfig, RopeScalingConfig


def inverse_frequencies(model: ModelConfig) -> Tensor:
    """Turns per position (radians) of each pair of channels, fp32 [head width / 2]."""
    # On CPU whatever the default device is: the models that are only counted have that of no memory.
    dims = torch.arange(0, model.head_dim, 2, dtype=torch.float32, device="cpu") / model.head_dim
    powers, scaling = model.rotary_base**dims, model.rope_scaling
    frequencies = 1.0 / powers
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(powers, model.rotary_base, scaling)


def attention_factor(scaling: RopeScalingConfig | None) -> float:
    """What rotated queries and keys are multiplied by: 1 for all but YaRN."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


def stretch(rotary: Any, transformer_config: Any, model: ModelConfig) -> None:
    """Give Megatron's plain `rotary` embedding the frequencies of `model`, and its attention YaRN's factor.

    Megatron's own llama3 variant has fixed bounds, and its YaRN another shape of output: one module for all types is simpler.
    """
    if model.rope_scaling is None:
        return
    rotary.inv_freq = inverse_frequencies(model).to(rotary.inv_freq.device)
    if (factor := attention_factor(model.rope_scaling)) != 1.0:
        # Megatron's attention multiplies by 0.1 x mscale x ln(scaling factor) + 1 where its config has these: this gives `factor`.
        transformer_config.yarn_rotary_scaling_factor = math.e
        transformer_config.yarn_mscale = 10.0 * (factor - 1.0)
        transformer_config.yarn_mscale_all_dim = 0.0


def _llama3(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert original and low and high  # the settings have them for this type
    wavelengths = 2 * math.pi / frequencies
    share = (original / wavelengths - low) / (high - low)
    mixed = (1 - share) * frequencies / scaling.factor + share * frequencies
    slow = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, mixed, slow)


def _yarn(powers: Tensor, base: int, scaling: RopeScalingConfig) -> Tensor:
    original, fast, slow = scaling.original_max_position_embeddings, scaling.beta_fast, scaling.beta_slow
    assert original and fast and slow  # the settings have them for this type
    width = 2 * len(powers)

    def channel(turns: float) -> float:
        """The channel that turns so often in the original context."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(fast), channel(slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    stays = 1 - ((torch.arange(len(powers), dtype=torch.float32, device=powers.device) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - stays) + 1.0 / powers * stays
