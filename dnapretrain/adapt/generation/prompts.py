"""Prompts of any length as tokens, none of their bases lost.

Bases at the end of a prompt that fill no whole token (up to k - 1 of k-mers; of byte-pair encoding the last token, which might have
been a longer one had the sequence gone on) are not read as a token of their own, which the model has not seen there. They are healed:
the first new token is one of those that begin with them, by its probability among these. So the first base of the prompt begins the
first token, and k-mers keep their phase.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dnapretrain.adapt.sequences.records import LETTERS, read_records
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import DataError

BASES = frozenset("ACGT")


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    name: str
    bases: str
    """Upper case, T for U."""
    control: tuple[int, ...] = ()
    """Token ids between <bos> and the bases: of a condition that the model was fine-tuned with (controls.py)."""
    condition: str = ""
    """Its name."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it."""

    ids: tuple[int, ...]
    """Whole tokens, <bos> first where the model was trained so."""
    healed: str
    """Bases at the end that the first new token begins with."""


def make_prompts(texts: Iterable[str]) -> list[Prompt]:
    """Prompts as given on the command line, named by their number. Raises DataError for letters that are no bases."""
    return [_prompt(f"prompt{number}", text) for number, text in enumerate(texts, start=1)]


def read_prompts(path: str | Path) -> list[Prompt]:
    """The records of a sequence file (FASTA, or what `preprocess` reads), under their names. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file of prompts: {path}. Give a FASTA file.")
    records = list(read_records(path))
    if not records:
        raise DataError(f"{path} holds no record. Give a FASTA file with one prompt per record.")
    return [_prompt(name, text) for name, _, text in records]


def _prompt(name: str, text: str) -> Prompt:
    bases = text.upper().replace("U", "T")
    for position, letter in enumerate(bases, start=1):
        if letter not in LETTERS:
            raise DataError(f"{name} has {text[position - 1]!r} at position {position}, which is no base. Remove or replace it.")
    return Prompt(name, bases)


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> EncodedPrompt:
    """The tokens of a prompt and the bases to be healed. Raises DataError where there is nothing to continue, or N among these."""
    ids = tokenizer.encode(prompt.bases).tolist()
    texts = [tokenizer.tokens[value] for value in ids]
    healed = ""
    if tokenizer.bpe:
        healed = texts[-1] if texts and set(texts[-1]) <= BASES else ""
    elif tokenizer.is_variable and tokenizer.k > 1:
        while len(texts) > len(healed) and texts[-1 - len(healed)] in BASES:
            healed = texts[-1 - len(healed)] + healed
    elif spare := len(prompt.bases) % tokenizer.k:
        healed = prompt.bases[-spare:]
    if healed:  # one token of fixed k-mers and of BPE; as many as bases where those are tokens
        ids = ids[: -len(healed)] if tokenizer.is_variable and not tokenizer.bpe else ids[:-1]
    for position, letter in enumerate(healed, start=len(prompt.bases) - len(healed) + 1):
        if letter not in BASES:
            raise DataError(
                f"{prompt.name} has {letter!r} at position {position}, among its last {len(healed)} base(s), with which the first new "
                f"token of {tokenizer.k} has to begin: only A, C, G and T can. Cut the prompt before it, or replace it."
            )
    ids = [*([tokenizer.bos_id] if tokenizer.add_bos else []), *prompt.control, *ids]
    if not ids:
        least = f"a prompt of {tokenizer.k} base(s)" if tokenizer.k > 1 else "a prompt"
        raise DataError(f"{prompt.name}: this model does not begin with <bos>, so it needs {least} at least. Give one.")
    return EncodedPrompt(tuple(ids), healed)
