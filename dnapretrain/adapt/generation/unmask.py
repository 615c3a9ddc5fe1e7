"""DNA from an encoder by iterative unmasking: masked tokens are drawn over a number of rounds, in each those that the model is surest of.

Confidence-ordered decoding as of MaskGIT (arXiv:2202.04200), with as many tokens in each round; `order=random` is the order of masked
diffusion (arXiv:2406.07524). In every round a candidate is drawn for each masked token from what the model says of the sequence so far,
and those with the largest probability (or a random part of them) stay. Special tokens are never drawn.

A template says with IUPAC codes what a base may be: N anything, R an A or a G; A, C, G and T stay. Of k-mers whole tokens are masked,
and the words that agree with the template can be drawn. Byte pairs have no places to hold a base at: a run of N is written with one
token per `bases_per_token` bases, whose lengths add up to the run's; other codes than N are refused.

What is drawn depends on the template, the settings and (seed, number of the template, number of the sample) alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.backbone import Backbone, load_backbone
from dnapretrain.adapt.backbones.encoding import TokenBatch
from dnapretrain.adapt.backbones.folder import as_hf_folder, holds_encoder
from dnapretrain.adapt.generation.generate import Sampling, check_settings, choose
from dnapretrain.adapt.generation.prompts import Prompt
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import ConfigError, DataError

IUPAC = {
    **{base: base for base in "ACGT"},
    **{"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"},
}
ORDERS = ("confident", "random")


@dataclass(frozen=True)
class Unmasking:
    """How masked tokens are drawn."""

    sampling: Sampling = field(default_factory=Sampling)
    rounds: int = 0
    """0: as many as there are masked tokens, one in each."""
    order: str = "confident"

    def __str__(self) -> str:
        return f"rounds={self.rounds} order={self.order} {self.sampling}"

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.order not in ORDERS:
            raise ConfigError(f"order = {self.order} is none of {', '.join(ORDERS)}.")
        if self.rounds < 0:
            raise ConfigError(f"rounds = {self.rounds} is below 0. 0 draws one token in each.")


@dataclass(frozen=True)
class FilledSequence:
    """A template with its open places filled."""

    name: str
    bases: str
    num_filled: int
    """Open places of the template."""
    settings: str
    cut_bases: int = 0
    """Bases of the last token beyond the template's end, left out."""

    @property
    def description(self) -> str:
        """For FASTA."""
        return f"filled={self.num_filled} {self.settings}" + (f" cut_bases={self.cut_bases}" if self.cut_bases else "")


@dataclass
class Slot:
    """A token of a template: drawn, or still open."""

    allowed_W: NDArray[np.bool_]
    """Words that may stand here; of byte pairs all, and `region` says more."""
    region: int = -1
    """Of byte pairs: the run of N that it is in."""
    token: int = -1
    """Its id; -1: masked."""


@dataclass
class Region:
    """A run of N of byte pairs: what of it is not drawn yet."""

    bases: int
    tokens: int


class WordTable:
    """The words of a tokenizer, by length and by base."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        words = tokenizer.vocabulary.words
        self.first = words.start
        self.texts = tokenizer.tokens[words.start : words.stop]
        self.is_word_W = np.array([set(text) <= set("ACGT") for text in self.texts])  # a BPE file may hold others
        self.lengths_W = np.array([len(text) for text in self.texts])
        self.letters_Wk = np.array([list(text) for text in self.texts]) if tokenizer.bpe is None else None
        lengths = sorted({int(length) for length in self.lengths_W[self.is_word_W]})
        self._sums = [1]
        self._lengths = lengths

    def agreeing(self, codes: str) -> NDArray[np.bool_]:
        """[W] words of k bases that a stretch of as many IUPAC codes allows."""
        assert self.letters_Wk is not None
        allowed = np.ones(len(self.texts), bool)
        for place, code in enumerate(codes):
            allowed &= np.isin(self.letters_Wk[:, place], list(IUPAC[code]))
        return allowed

    def can_fill(self, num_tokens: int, num_bases: int) -> bool:
        """Whether so many words can have so many bases together."""
        while len(self._sums) <= num_tokens:  # bit b of entry t: t words can have b bases
            reached = 0
            for length in self._lengths:
                reached |= self._sums[-1] << length
            self._sums.append(reached)
        return num_bases >= 0 and bool(self._sums[num_tokens] >> num_bases & 1)

    def fitting(self, num_tokens: int, num_bases: int) -> NDArray[np.bool_]:
        """[W] words after which `num_tokens` - 1 others can fill up `num_bases`."""
        good = [length for length in self._lengths if self.can_fill(num_tokens - 1, num_bases - length)]
        return self.is_word_W & np.isin(self.lengths_W, good)


@dataclass
class _Row:
    """One sequence while it is drawn."""

    name: str
    num_bases: int
    slots: list[Slot]
    regions: list[Region]
    """Of byte pairs."""
    num_filled: int
    random: np.random.Generator
    rounds: int

    def masked(self) -> list[int]:
        """Numbers of the slots that are still open."""
        return [number for number, slot in enumerate(self.slots) if slot.token < 0]


def slots_of(table: WordTable, template: Prompt) -> tuple[list[Slot], list[Region]]:
    """The tokens of a template, and of byte pairs its runs of N. Raises DataError where nothing is open."""
    tokenizer, text = table.tokenizer, template.bases
    if not set(text) - set("ACGT"):
        raise DataError(f"{template.name} has no open base: all {len(text)} are A, C, G or T. Write N where the model is to draw.")
    if tokenizer.bpe:
        return _pair_slots(table, template)
    k = tokenizer.k
    text += "N" * (-len(text) % k)  # the last word reaches beyond the template, and is cut
    slots = []
    for at in range(0, len(text), k):
        allowed = table.agreeing(text[at : at + k])
        slots.append(Slot(allowed, token=table.first + int(allowed.argmax()) if allowed.sum() == 1 else -1))
    return slots, []


def _pair_slots(table: WordTable, template: Prompt) -> tuple[list[Slot], list[Region]]:
    if other := set(template.bases) - set("ACGTN"):
        raise DataError(f"{template.name} has the code {min(other)}: tokens of byte pairs have no places for it. Write N, or a base.")
    slots: list[Slot] = []
    regions: list[Region] = []
    for match in re.finditer("N+|[ACGT]+", template.bases):
        run = match.group()
        if run[0] != "N":
            slots += [Slot(table.is_word_W, token=int(value)) for value in table.tokenizer.encode(run)]
            continue
        count = max(1, round(len(run) / table.tokenizer.bases_per_token))
        while not table.can_fill(count, len(run)):
            count += 1  # n words of one base each fill any run
        slots += [Slot(table.is_word_W, region=len(regions)) for _ in range(count)]
        regions.append(Region(len(run), count))
    return slots, regions


class Unmasker:
    """The encoder of a Hugging Face folder, loaded once."""

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        self.backbone: Backbone = load_backbone(directory, device, "fp32")
        self.tokenizer = self.backbone.encoder.tokenizer
        self.words = WordTable(self.tokenizer)

    def fill(self, templates: Sequence[Prompt], unmasking: Unmasking, num_samples: int = 1, batch_size: int = 8) -> list[FilledSequence]:
        """Each template filled `num_samples` times, in order. Raises DataError for one that has nothing open or is too long."""
        unmasking.check()
        rows = []
        for number, template in enumerate(templates):
            for sample in range(num_samples):
                slots, regions = slots_of(self.words, template)
                self._check_room(template, len(slots))
                random = np.random.default_rng((unmasking.sampling.seed, number, sample))
                num_open = sum(letter not in "ACGT" for letter in template.bases)
                num_masked = sum(slot.token < 0 for slot in slots)
                rounds = min(unmasking.rounds or num_masked, num_masked)
                rows.append(_Row(f"{template.name}_sample{sample + 1}", len(template.bases), slots, regions, num_open, random, rounds))
        for start in range(0, len(rows), batch_size):
            self._draw(rows[start : start + batch_size], unmasking)
        return [self._finished(row, unmasking) for row in rows]

    def _check_room(self, template: Prompt, num_tokens: int) -> None:
        room = self.backbone.encoder.max_tokens - sum(self.backbone.encoder.specials)
        if num_tokens > room:
            raise DataError(f"{template.name}: {len(template.bases):,} bases are {num_tokens:,} tokens; the model reads {room:,}. Cut it.")

    def _finished(self, row: _Row, unmasking: Unmasking) -> FilledSequence:
        bases = self.tokenizer.decode(slot.token for slot in row.slots)
        return FilledSequence(row.name, bases[: row.num_bases], row.num_filled, str(unmasking), len(bases) - row.num_bases)

    def _draw(self, rows: list[_Row], unmasking: Unmasking) -> None:
        """Round by round; each row has rounds of its own, so that its batch does not matter."""
        for number in range(max(row.rounds for row in rows)):
            going = [row for row in rows if number < row.rounds]
            logits = self._logits(going)
            for row, logits_MW in zip(going, logits, strict=True):
                places = row.masked()
                keep = len(places) * (row.rounds - number - 1) // (row.rounds - number)  # stay masked: as many fewer each round
                self._settle(row, places, logits_MW, len(places) - keep, unmasking)

    def _logits(self, rows: list[_Row]) -> list[Tensor]:
        """Of each row, of each masked slot, the logits of words [M, W], float64."""
        tokenizer, (before, behind) = self.tokenizer, self.backbone.encoder.specials
        width = max(len(row.slots) for row in rows) + before + behind
        input_ids = torch.full((len(rows), width), tokenizer.pad_id)
        attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            words = [tokenizer.mask_id if slot.token < 0 else slot.token for slot in row.slots]
            end = [tokenizer.eos_id] if behind and tokenizer.eos_id is not None else []
            ids = torch.tensor([*([tokenizer.bos_id] if before else []), *words, *end])
            input_ids[number, : len(ids)] = ids
            attention_mask[number, : len(ids)] = 1
        batch = TokenBatch(np.arange(len(rows)), input_ids, attention_mask, attention_mask.bool())
        logits_BSV = self.backbone.logits(batch)[..., self.words.first : self.words.first + len(self.words.texts)]
        found = [logits_BSV[number, [before + place for place in row.masked()]].double().cpu() for number, row in enumerate(rows)]
        if any(not one.isfinite().all() for one in found):
            raise DataError("the model gives no finite numbers for a sequence with so many masks. Give a template with more known bases.")
        return found

    def _settle(self, row: _Row, places: list[int], logits_MW: Tensor, count: int, unmasking: Unmasking) -> None:
        """Draw a candidate for each place, and keep `count`."""
        of_regions = [self._fitting(region) for region in row.regions]
        slots = [row.slots[place] for place in places]
        allowed_MW = torch.from_numpy(np.stack([slot.allowed_W if slot.region < 0 else of_regions[slot.region] for slot in slots]))
        uniforms_M = row.random.random(len(places))
        logits_MW = logits_MW.masked_fill(~allowed_MW, -math.inf)
        drawn_M = choose(logits_MW, uniforms_M, unmasking.sampling)
        sure_M = logits_MW.log_softmax(dim=1).gather(1, drawn_M[:, None])[:, 0].numpy()
        order = np.argsort(-sure_M, kind="stable") if unmasking.order == "confident" else row.random.permutation(len(places))
        for at in order[:count].tolist():
            slot, word = slots[at], int(drawn_M[at])
            if slot.region >= 0:  # words drawn before this one have changed what fits
                region = row.regions[slot.region]
                fits = torch.from_numpy(self._fitting(region))
                if not fits[word]:
                    word = int(choose(logits_MW[at : at + 1].masked_fill(~fits, -math.inf), uniforms_M[at : at + 1], unmasking.sampling))
                region.bases -= int(self.words.lengths_W[word])
                region.tokens -= 1
            slot.token = self.words.first + word

    def _fitting(self, region: Region) -> NDArray[np.bool_]:
        """[W]; none where all is drawn."""
        return self.words.fitting(region.tokens, region.bases) if region.tokens else np.zeros(len(self.words.texts), bool)


def unmask(
    model: str | Path,
    templates: Sequence[Prompt],
    unmasking: Unmasking | None = None,
    num_samples: int = 1,
    batch_size: int = 8,
    device: str = "cpu",
) -> list[FilledSequence]:
    """Fill the open places of each template `num_samples` times.

    model: a Hugging Face folder of an encoder, or a run or checkpoint, which is exported on the way. Raises ConfigError for settings and
    models that cannot be used, DataError for templates that cannot be filled.
    """
    unmasking = unmasking or Unmasking()
    check_settings(unmasking.sampling, 1, num_samples, batch_size, device)
    unmasking.check()
    if not holds_encoder(Path(model)):
        raise ConfigError(f"{model} holds no encoder, and templates are filled by one. A decoder continues a prompt.")
    with as_hf_folder(model) as directory:
        return Unmasker(directory, device).fill(templates, unmasking, num_samples, batch_size)
