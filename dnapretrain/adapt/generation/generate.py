"""DNA from a decoder: exactly as many bases as asked for, A, C, G and T only.

What is drawn for a sequence depends on its prompt, the settings and (seed, number of the prompt, number of the sample) alone: not on
the batch it is in, nor on what else is asked for. (Logits of other batch sizes differ in their last bits; a draw on the very edge
between two tokens can fall on the other side.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dnapretrain.adapt.backbones.controls import Controls, read_controls
from dnapretrain.adapt.backbones.folder import as_hf_folder, check_decoder, check_device, load_model
from dnapretrain.adapt.generation.prompts import EncodedPrompt, Prompt, encode_prompt, make_prompts
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import read_hf_config, tokenizer_of
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

LINE_WIDTH = 60
"""Bases per line of FASTA."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0: the likeliest token each time."""
    top_k: int = 0
    """Draw among the k likeliest tokens of bases; 0: among all."""
    top_p: float = 1.0
    """Then among the fewest likeliest tokens that have this probability together (nucleus sampling, arXiv:1904.09751)."""
    seed: int = 0

    def __str__(self) -> str:
        return f"temperature={self.temperature:g} top_k={self.top_k} top_p={self.top_p:g} seed={self.seed}"


@dataclass(frozen=True)
class GeneratedSequence:
    """One sequence: the prompt (upper case, T for U) and the bases the model added."""

    name: str
    prompt: str
    generated: str
    settings: str
    """How it was drawn, for the FASTA description."""
    cut_bases: int = 0
    """Bases of the last token beyond those asked for, left out."""
    condition: str = ""
    """That of its prompt."""
    ended: bool | None = None
    """Whether the model ended it; None: it was not asked to."""

    @property
    def bases(self) -> str:
        """Prompt and continuation."""
        return self.prompt + self.generated

    @property
    def description(self) -> str:
        """For FASTA: where the continuation begins (1-based), how it was drawn, how many bases of the last token were cut off."""
        parts = [f"condition={self.condition.replace(' ', '_')}"] if self.condition else []
        parts += [f"generated_from={len(self.prompt) + 1}", self.settings]
        parts += [f"cut_bases={self.cut_bases}"] if self.cut_bases else []
        parts += [f"ended={'yes' if self.ended else 'no'}"] if self.ended is not None else []
        return " ".join(parts)


class Written(Protocol):
    """What FASTA is made of."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def bases(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102


def generate(
    model: str | Path,
    prompts: Sequence[str] | Sequence[Prompt],
    num_bases: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 8,
    device: str = "cpu",
    until_end: bool = False,
    conditions: Sequence[str] = (),
) -> list[GeneratedSequence]:
    """Continue each prompt `num_samples` times by `num_bases` bases; `until_end`: by at most so many, until the model draws the token that
    ends a sequence (one that was trained so, as by `finetune --task causal`).

    model: a Hugging Face folder of a decoder, or a run or checkpoint, which is exported on the way. A prompt may have any length
    (`prompts.py`); together with the new bases it must fit the model's context. `batch_size` sequences are drawn at a time.
    conditions: each prompt under each of those that the model was fine-tuned with (controls.py); "all" stands for all.
    Raises ConfigError for settings and models that cannot be used, DataError for prompts that cannot be continued.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    check_settings(sampling, num_bases, num_samples, batch_size, device)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    known = make_prompts(texts) if texts else [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    check_decoder(Path(model))
    with as_hf_folder(model) as directory:
        generator = Generator(directory, device)
        known = generator.conditioned(known, conditions)
        return generator.continue_all(known, num_bases, sampling, num_samples, batch_size, until_end)


class Generator:
    """The decoder of a Hugging Face folder, loaded once."""

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        hf_config = read_hf_config(directory)
        self.tokenizer: Tokenizer = tokenizer_of(directory, family_of_folder(hf_config), hf_config)[0]
        self.context: int = hf_config["max_position_embeddings"]
        """Tokens."""
        self._model = load_model(directory, device, is_masked=False)
        self._device = device
        self._words = np.array(self.tokenizer.tokens[self.tokenizer.vocabulary.words.start : self.tokenizer.vocabulary.words.stop])
        self._first_word = self.tokenizer.vocabulary.words.start
        self.controls: Controls | None = read_controls(directory)
        """Conditions that it was fine-tuned with; None of other models."""

    def conditioned(self, prompts: Sequence[Prompt], conditions: Sequence[str]) -> list[Prompt]:
        """Each prompt under each condition, named by it too; "all" stands for all. Raises ConfigError for unknown ones, and where the
        model was fine-tuned with conditions and none is named: it has never seen a sequence without."""
        controls = self.controls or Controls()
        if not conditions and controls.names:
            raise ConfigError(f"the model was fine-tuned with conditions: name {', '.join(controls.names)[:300]}, or all.")
        if not conditions:
            return list(prompts)
        names = controls.names if tuple(conditions) == ("all",) and controls.names else conditions
        return [
            replace(
                prompt, name=f"{name.replace(' ', '_')}_{prompt.name}", control=controls.prompt_of(name, self.tokenizer), condition=name
            )
            for name in names
            for prompt in prompts
        ]

    @torch.no_grad()
    def continue_all(
        self,
        prompts: Sequence[Prompt],
        num_bases: int,
        sampling: Sampling,
        num_samples: int = 1,
        batch_size: int = 8,
        until_end: bool = False,
    ) -> list[GeneratedSequence]:
        """`num_samples` continuations of each prompt, in order. Raises DataError as `generate` does."""
        if until_end and self.tokenizer.eos_id is None:
            raise ConfigError("until_end: the model's tokenizer has no token that ends a sequence. Ask for a number of bases.")
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        for prompt, read in zip(prompts, encoded, strict=True):
            self._check_room(prompt, read, num_bases)
        rows = [
            _Row(prompt, read, sample, np.random.default_rng((sampling.seed, number, sample)))
            for number, (prompt, read) in enumerate(zip(prompts, encoded, strict=True))
            for sample in range(num_samples)
        ]
        for start in range(0, len(rows), batch_size):
            self._draw(rows[start : start + batch_size], num_bases, sampling, until_end)
        return [
            GeneratedSequence(
                f"{row.prompt.name}_sample{row.sample + 1}",
                row.prompt.bases,
                row.generated[:num_bases],
                str(sampling),
                max(0, len(row.generated) - num_bases),
                row.prompt.condition,
                row.ended if until_end else None,
            )
            for row in rows
        ]

    def _check_room(self, prompt: Prompt, read: EncodedPrompt, num_bases: int) -> None:
        longest = max(map(len, self._words.tolist()))
        least = math.ceil((num_bases + len(read.healed)) / longest)
        if len(read.ids) + least > self.context:
            room = max(0, (self.context - len(read.ids)) * longest - len(read.healed))
            raise DataError(
                f"{prompt.name}: a prompt of {len(read.ids)} tokens and {least} new ones exceed the model's context of {self.context} "
                f"tokens; there is room for {room} new bases. Shorten the prompt at its start or ask for fewer bases."
            )

    def _draw(self, rows: list[_Row], num_bases: int, sampling: Sampling, until_end: bool) -> None:
        """Fill `generated` of the rows: prompts padded on their left, which attention does not see and positions do not count.

        The columns of W are the words, and behind them, where sequences may end, the end token; no sequence ends before its first word.
        """
        width = max(len(row.read.ids) for row in rows)
        inputs_BS = torch.full((len(rows), width), self.tokenizer.pad_id)
        seen_BS = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            inputs_BS[number, width - len(row.read.ids) :] = torch.tensor(row.read.ids)
            seen_BS[number, width - len(row.read.ids) :] = 1
        columns_W = torch.arange(self._first_word, self._first_word + len(self._words))
        past, allowed_BW = None, self._healing(rows)
        if until_end:
            columns_W = torch.cat([columns_W, torch.tensor([self.tokenizer.eos_id])])
            allowed_BW = torch.cat([allowed_BW, torch.zeros(len(rows), 1, dtype=torch.bool)], dim=1)
        while any(row.goes_on(num_bases) for row in rows):
            self._check_context(rows, num_bases)
            positions_BS = (seen_BS.cumsum(1) - 1).clamp(min=0)[:, -inputs_BS.shape[1] :]
            output = self._model(
                input_ids=inputs_BS.to(self._device),
                attention_mask=seen_BS.to(self._device),
                position_ids=positions_BS.to(self._device),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = output.past_key_values
            logits_BW = output.logits[:, -1, columns_W].double().cpu().masked_fill(~allowed_BW, -torch.inf)
            chosen_B = choose(logits_BW, np.array([row.random.random() for row in rows]), sampling)
            for row, word in zip(rows, chosen_B.tolist(), strict=True):
                if row.goes_on(num_bases):  # else others of the batch are not done yet
                    row.add(self._words[word]) if word < len(self._words) else row.end()
            inputs_BS = columns_W[chosen_B][:, None]
            seen_BS = torch.cat([seen_BS, torch.ones_like(inputs_BS)], dim=1)
            allowed_BW = torch.ones_like(allowed_BW)

    def _healing(self, rows: list[_Row]) -> Tensor:
        """bool [B, words]: which words the first new token of each row can be."""
        return torch.from_numpy(np.stack([np.char.startswith(self._words, row.read.healed) for row in rows]))

    def _check_context(self, rows: list[_Row], num_bases: int) -> None:
        for row in rows:
            if row.goes_on(num_bases) and len(row.read.ids) + row.tokens >= self.context:
                raise DataError(
                    f"{row.prompt.name}: the model's context of {self.context} tokens was full after {len(row.generated)} of {num_bases} "
                    "new bases (tokens stand for different numbers of bases). Shorten the prompt at its start or ask for fewer bases."
                )


@dataclass
class _Row:
    """One sequence while it is drawn."""

    prompt: Prompt
    read: EncodedPrompt
    sample: int
    random: np.random.Generator
    generated: str = ""
    """Bases beyond the prompt."""
    tokens: int = field(default=0)
    ended: bool = False

    def goes_on(self, num_bases: int) -> bool:
        """Whether it needs more."""
        return len(self.generated) < num_bases and not self.ended

    def end(self) -> None:
        """The end token was drawn."""
        self.ended = True

    def add(self, word: str) -> None:
        """One more token; the first one repeats the bases that were healed."""
        self.generated += word[len(self.read.healed) :] if not self.tokens else word
        self.tokens += 1


def choose(logits_BW: Tensor, uniforms_B: np.ndarray, sampling: Sampling) -> Tensor:
    """A column for each row, int64 [B]: `uniforms_B`, in [0, 1), is looked up in the summed probabilities, likeliest first."""
    if sampling.temperature == 0:
        return logits_BW.argmax(dim=1)
    scaled_BW = (logits_BW - logits_BW.amax(dim=1, keepdim=True)) / sampling.temperature
    ordered_BW, columns_BW = torch.softmax(scaled_BW, dim=1).sort(dim=1, descending=True, stable=True)
    if sampling.top_k:
        ordered_BW[:, sampling.top_k :] = 0
    before_BW = ordered_BW.cumsum(dim=1) - ordered_BW
    ordered_BW[before_BW >= sampling.top_p * ordered_BW.sum(dim=1, keepdim=True)] = 0
    sums_BW = ordered_BW.cumsum(dim=1)
    places_B1 = torch.searchsorted(sums_BW, torch.from_numpy(uniforms_B)[:, None] * sums_BW[:, -1:], right=True)
    last_B1 = (ordered_BW > 0).sum(dim=1, keepdim=True) - 1  # rounding never leads to a token of probability 0
    return columns_BW.gather(1, places_B1.minimum(last_B1))[:, 0]


def to_fasta(sequences: Iterable[Written]) -> str:
    """FASTA text."""
    lines = []
    for sequence in sequences:
        lines.append(f">{sequence.name} {sequence.description}")
        lines += [sequence.bases[start : start + LINE_WIDTH] for start in range(0, len(sequence.bases), LINE_WIDTH)]
    return "\n".join(lines) + "\n"


def check_settings(sampling: Sampling, num_bases: int, num_samples: int, batch_size: int, device: str) -> None:
    """Raise ConfigError for what cannot be."""
    least = {
        "num_bases": (num_bases, 1),
        "num_samples": (num_samples, 1),
        "batch_size": (batch_size, 1),
        "temperature": (sampling.temperature, 0),
        "top_k": (sampling.top_k, 0),
        "seed": (sampling.seed, 0),
    }
    for name, (value, lowest) in least.items():
        if not lowest <= value < math.inf:
            raise ConfigError(f"{name} = {value} is below {lowest}." if value < lowest else f"{name} = {value} is no number to use.")
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(f"top_p = {sampling.top_p} is not above 0 and at most 1. 1 draws among all.")
    check_device(device)
