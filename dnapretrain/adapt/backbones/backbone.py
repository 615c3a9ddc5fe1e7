"""A pretrained model of ours or a Hugging Face folder of the five families as one object: tokens in, hidden states or logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnapretrain.adapt.backbones.encoding import OnLong, SequenceEncoder, TokenBatch
from dnapretrain.adapt.backbones.folder import as_hf_folder, check_device, is_encoder, load_model
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import model_of, read_hf_config, tokenizer_of
from dnapretrain.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Backbone:
    """A loaded model; `open_backbone` makes one."""

    model: Any
    """transformers' AutoModelForMaskedLM or AutoModelForCausalLM, in evaluation mode."""
    encoder: SequenceEncoder
    """Makes its tokens and batches; counts what was cut."""
    family: str
    """Llama, ESM, NT-v2, DNABERT-2 or AIDO.DNA."""
    num_layers: int
    hidden_size: int
    device: str
    dtype: torch.dtype

    @property
    def is_encoder(self) -> bool:
        """Whether it is a masked language model; else it is a causal one."""
        return self.encoder.is_encoder

    def layer_numbers(self, layers: Sequence[int]) -> list[int]:
        """The layers as numbers from 0 to `num_layers`: 0 is the embeddings, i what block i gives, -1 the last.

        The last is behind the final norm where the model has one (what Nucleotide Transformer calls its last embedding). Raises
        ConfigError for one that is not there, or is named twice.
        """
        numbers = [layer + self.num_layers + 1 if layer < 0 else layer for layer in layers]
        for layer, number in zip(layers, numbers, strict=True):
            if not 0 <= number <= self.num_layers:
                raise ConfigError(f"layer {layer} is not there: the model has layers 0 (embeddings) to {self.num_layers}, -1 is the last.")
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"layers {', '.join(map(str, layers))} name a layer twice. Name each once.")
        if not numbers:
            raise ConfigError("no layer was named. Name one at least, for example -1.")
        return numbers

    @torch.no_grad()
    def hidden_states(self, batch: TokenBatch, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """[B, S, H] of each of `layers`, in this order, on the model's device and in its dtype. Padding holds anything.

        Raises ConfigError for a layer that is not there.
        """
        numbers = self.layer_numbers(layers)
        batch = batch.to(self.device)
        body = self.model.base_model  # without the head: its logits would be the largest tensor
        output = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        states = getattr(output, "hidden_states", None)
        if states is None or len(states) != self.num_layers + 1:
            raise ConfigError(
                f"the model code of the folder gives no hidden states of {self.num_layers} layers. `convert from-hf` and `convert to-hf` "
                "write the same weights with code that does."
            )
        return [states[number] for number in numbers]

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """[B, S, V] of the tokens of the vocabulary, in fp32. Padding holds anything."""
        batch = batch.to(self.device)
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        found: Tensor = logits[..., : self.encoder.tokenizer.vocab_size]
        return found


def open_backbone(
    model: str | Path,
    device: str = "cpu",
    dtype: str = "auto",
    on_long: OnLong = "error",
    max_tokens: int | None = None,
    random_weights: int | None = None,
) -> Backbone:
    """A Hugging Face folder, run or checkpoint, loaded.

    dtype: fp32, bf16, or auto (bf16 on a GPU, fp32 on the CPU); buffers, such as rotary frequencies, stay fp32. max_tokens: read
    sequences of at most so many tokens; above the model's context only where its positions can go on (rope, alibi).
    random_weights: a seed; the same architecture with fresh weights, to compare with. Raises ConfigError, CheckpointError.
    """
    with as_hf_folder(model) as folder:
        return load_backbone(folder, device, dtype, on_long, max_tokens, random_weights)


def load_backbone(
    folder: Path,
    device: str = "cpu",
    dtype: str = "auto",
    on_long: OnLong = "error",
    max_tokens: int | None = None,
    random_weights: int | None = None,
) -> Backbone:
    """The same of a Hugging Face folder."""
    check_device(device)
    encoder = folder_encoder(folder, on_long, max_tokens)
    hf_config = read_hf_config(folder)
    family = family_of_folder(hf_config)
    settings = model_of(folder, family, hf_config)
    precision = resolve_dtype(dtype, device)
    model = load_model(folder, device, encoder.is_encoder)
    if random_weights is not None:
        model = _fresh(model, random_weights, device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)
        parameter.requires_grad_(False)
    return Backbone(model, encoder, family.name, settings.num_layers, settings.hidden_size, device, precision)


def folder_encoder(folder: Path, on_long: OnLong = "error", max_tokens: int | None = None) -> SequenceEncoder:
    """What makes tokens for the model of a folder, which is not loaded. Raises ConfigError, CheckpointError."""
    hf_config = read_hf_config(folder)
    family = family_of_folder(hf_config)
    settings = model_of(folder, family, hf_config)
    tokenizer, _ = tokenizer_of(folder, family, hf_config)
    context = settings.max_position_embeddings or 0
    if max_tokens is not None and max_tokens > context and settings.position_embedding_type == "learned_absolute":
        raise ConfigError(f"max_tokens = {max_tokens} exceeds the model's {context} positions, which are learned. Lower it.")
    return SequenceEncoder(tokenizer, is_encoder(folder), max_tokens or context, on_long)


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """fp32, bf16, or for auto the one of the device. Raises ConfigError for another name."""
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype} is none of auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _fresh(model: Any, seed: int, device: str) -> Any:
    """A model of the same class and configuration, as its code initialises one."""
    torch.manual_seed(seed)
    return type(model)(model.config).float().eval().to(device)
