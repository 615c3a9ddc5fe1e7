"""DNA from an exported model: exactly as many bases as asked for, A, C, G and T only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnapretrain.convert.folders import read_hf_config
from dnapretrain.errors import ConfigError, DataError

BASES = frozenset("ACGT")
LINE_WIDTH = 60
"""Bases per line of FASTA."""


@dataclass(frozen=True)
class GeneratedSequence:
    """One sequence: the prompt (upper case) and the bases the model added."""

    name: str
    prompt: str
    generated: str
    settings: str
    """How it was drawn, for the FASTA description."""


@torch.no_grad()
def generate(
    model_dir: str | Path,
    prompts: Sequence[str],
    num_bases: int,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    num_samples: int = 1,
    device: str = "cpu",
) -> list[GeneratedSequence]:
    """Continue each prompt `num_samples` times by `num_bases` bases, with the model of a Hugging Face folder.

    temperature 0 takes the likeliest token each time; top_k > 0 samples among the k likeliest tokens of bases.
    Sample j of prompt i depends on (seed, i) and num_samples alone. Raises ConfigError for settings and folders that
    cannot be used, DataError for prompts that cannot be continued.
    """
    _check_settings(model_dir, num_bases, temperature, top_k, seed, num_samples, device)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(str(model_dir)).eval()
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_dir} does not load: {' '.join(str(error).split())}. Give a folder made by `convert to-hf`.") from None
    model.to(device)
    words = _base_words(tokenizer, model_dir)
    width = len(next(iter(words.values())))
    num_tokens = math.ceil(num_bases / width)
    encoded = [_encode(tokenizer, prompt, width, num_tokens, model.config.max_position_embeddings) for prompt in prompts]
    sequences = []
    for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)[0]))
        drawn = _draw(model, ids.repeat(num_samples, 1).to(device), num_tokens, torch.tensor(list(words)), temperature, top_k, generator)
        for sample, row in enumerate(drawn.tolist(), start=1):
            bases = "".join(words[token] for token in row)[:num_bases]
            settings = f"temperature={temperature:g} top_k={top_k} seed={seed}"
            sequences.append(GeneratedSequence(f"prompt{index + 1}_sample{sample}", prompt.upper(), bases, settings))
    return sequences


def to_fasta(sequences: Iterable[GeneratedSequence]) -> str:
    """FASTA text, prompt and continuation joined; the description says where the continuation begins (1-based)."""
    lines = []
    for sequence in sequences:
        lines.append(f">{sequence.name} generated_from={len(sequence.prompt) + 1} {sequence.settings}")
        bases = sequence.prompt + sequence.generated
        lines += [bases[start : start + LINE_WIDTH] for start in range(0, len(bases), LINE_WIDTH)]
    return "\n".join(lines) + "\n"


def _check_settings(
    model_dir: str | Path, num_bases: int, temperature: float, top_k: int, seed: int, num_samples: int, device: str
) -> None:
    if not (Path(model_dir) / "config.json").is_file():
        raise ConfigError(f"{model_dir} holds no config.json. Give a folder made by `dnapretrain convert to-hf`.")
    architecture = next(iter(read_hf_config(Path(model_dir)).get("architectures") or []), "")
    if architecture.endswith("ForMaskedLM"):
        raise ConfigError(
            f"{model_dir} holds an encoder ({architecture}), which reads both sides and continues nothing. Give the folder of a decoder."
        )
    least = {
        "num_bases": (num_bases, 1),
        "num_samples": (num_samples, 1),
        "temperature": (temperature, 0),
        "top_k": (top_k, 0),
        "seed": (seed, 0),
    }
    for name, (value, lowest) in least.items():
        if not value >= lowest:
            raise ConfigError(f"{name} = {value} is below {lowest}.")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device} is neither cpu nor cuda.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {device}, but torch sees no CUDA device here. Use device cpu.")


def _base_words(tokenizer: Any, model_dir: str | Path) -> dict[int, str]:
    """Id -> bases of the tokens made of A, C, G and T only, in order of ids; all are equally long."""
    words = {token: text for text, token in tokenizer.get_vocab().items() if text and set(text) <= BASES}
    if len({len(text) for text in words.values()}) != 1:
        raise ConfigError(f"{model_dir}: its tokens of bases are not all of one length; only nucleotide and k-mer models can be used.")
    return dict(sorted(words.items()))


def _encode(tokenizer: Any, prompt: str, width: int, num_tokens: int, context: int) -> Tensor:
    """Ids of the prompt, int64 [1, S], beginning with <bos> where the model was trained so."""
    for position, letter in enumerate(prompt, start=1):
        if letter.upper() not in BASES:
            raise DataError(f"prompt has {letter!r} at position {position}; only A, C, G and T can be continued. Remove or replace it.")
    spare = len(prompt) % width
    if spare:
        raise DataError(f"prompt has {len(prompt)} bases, but the model reads {width} at a time. Leave out its first {spare} base(s).")
    ids: Tensor = tokenizer(prompt.upper(), return_tensors="pt")["input_ids"].to(torch.int64)
    if ids.numel() == 0:
        raise DataError("this model does not begin with <bos>, so it needs a prompt. Give one.")
    if ids.shape[1] + num_tokens > context:
        room = max(0, context - ids.shape[1])
        raise DataError(
            f"prompt of {ids.shape[1]} tokens and {num_tokens} new ones exceed the model's context of {context} tokens; there is room for "
            f"{room * width} new bases. Shorten the prompt at its start or ask for fewer bases."
        )
    return ids


def _draw(
    model: Any, ids_BS: Tensor, num_tokens: int, allowed: Tensor, temperature: float, top_k: int, generator: torch.Generator
) -> Tensor:
    """New token ids, int64 [B, num_tokens] on CPU, each one of `allowed`."""
    drawn, past, inputs_BS = [], None, ids_BS
    for _ in range(num_tokens):
        output = model(input_ids=inputs_BS, past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits_BV = output.logits[:, -1].float().cpu()[:, allowed]
        choice = allowed[_choose(logits_BV, temperature, top_k, generator)]
        drawn.append(choice)
        inputs_BS = choice[:, None].to(ids_BS.device)
    return torch.stack(drawn, dim=1)


def _choose(logits_BV: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """A column for each row, int64 [B]."""
    if temperature == 0:
        return logits_BV.argmax(dim=1)
    if 0 < top_k < logits_BV.shape[1]:
        kth = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    return torch.multinomial(torch.softmax(logits_BV / temperature, dim=1), 1, generator=generator)[:, 0]
