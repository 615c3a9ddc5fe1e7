"""Tokenizers: bases to ids of a fixed vocabulary, ours or a published one.

Sequence is upper-cased. Our own vocabularies: <pad> <bos> <eos> <unk> <mask>, then the four bases and N (nucleotide), or the
4^k k-mers (kmer), where a k-mer that holds anything but A, C, G, T is one <unk>, and so are the bases left over at the end.

Published ones give the ids of their tokenizers, id for id, on upper-case sequence of letters:
  nt_v1, nt_v2  6-mers; N is a token, fewer than 6 bases before an N or the end are single-base tokens, 6-mers begin anew behind
                each of these; a run of other letters is one <unk>. Samples begin with <cls>.
  generator     6-mers; 6 letters with anything but A, C, G, T among them are one <oov>, and so is the rest at the end.
                Samples begin with <s>.
  aido_dna      A, G, C, T, U and N are tokens; a run of other letters is one [UNK]. Samples are [CLS] ... [SEP].

bpe: byte-pair encoding with the merges of a file, DNABERT-2's or any that was trained (data/tokens/bpe.py): runs of A, C, G, T are merged,
any other letter is one [UNK]. A window is encoded on its own. Samples are [CLS] ... [SEP], of the causal objective without [SEP].
Its `k` is nominal, 5 bases per token if not set: windows have k bases for each token they have room for (bases that the tokens do
not reach are cut and counted), and bits per base of training steps and consumed bases, which multiply by `bases_per_token`, are
nominal as well. Held-out bits per base are exact: they count the bases of the tokens (evaluate/counted.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain._core import BpeEncoder, Encoder, SplitEncoder
from dnapretrain.config import PUBLISHED_TOKENIZERS, TokenizerConfig
from dnapretrain.data.tokens.bpe import BASES, SPECIALS, BpeVocabulary, bpe_of_json, load_bpe
from dnapretrain.data.tokens.published import exact_bpe_ids, published_ids
from dnapretrain.data.tokens.vocabularies import Vocabulary, bpe_vocabulary, vocabulary_of
from dnapretrain.errors import CheckpointError, ConfigError, DataError

NO_ID = -1
"""What the native encoder has for a special token that the vocabulary lacks: never written."""


@dataclass(frozen=True)
class Tokenizer:
    """A fixed vocabulary over DNA; `build_tokenizer` makes one."""

    kind: str
    k: int
    """Bases per token: 1 for nucleotides; nominal for bpe."""
    base_order: str
    add_bos: bool
    """Samples begin with bos_id; `encode` never adds it."""
    add_eos: bool = False
    """Samples of the masked objective end with eos_id; `encode` never adds it."""
    bpe: BpeVocabulary | None = field(default=None, repr=False)
    """kind bpe only: tokens and merges."""
    file: Path | None = field(default=None, repr=False, compare=False)
    """Where `bpe` was read from."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Texts, ids and roles of the tokens."""
        if self.bpe:
            return bpe_vocabulary(self.bpe.tokens)
        return vocabulary_of(self.kind, self.k, self.base_order)

    @cached_property
    def pad_id(self) -> int:
        """Fills samples up."""
        return self._required("pad_token")

    @cached_property
    def bos_id(self) -> int:
        """Begins a sample: <bos>, <cls>, <s> or [CLS]."""
        return self._required("bos_token", "cls_token")

    @cached_property
    def eos_id(self) -> int | None:
        """Ends a sample, separates documents: <eos>, </s> or [SEP]; Nucleotide Transformer has none."""
        return self.vocabulary.role("eos_token", "sep_token")

    @cached_property
    def unk_id(self) -> int:
        """What is outside the vocabulary."""
        return self._required("unk_token")

    @cached_property
    def mask_id(self) -> int:
        """Read in place of a token that is to be predicted."""
        return self._required("mask_token")

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of each id; of NT-v1, two more than the model has."""
        return self.vocabulary.tokens

    @property
    def vocab_size(self) -> int:
        """Ids that the model has, specials included, without padding."""
        return self.vocabulary.rows

    @property
    def bases_per_token(self) -> int:
        """Bases that one token stands for; where that varies, those of a word; of bpe, those that windows reckon with."""
        return self.k

    @property
    def is_variable(self) -> bool:
        """True where tokens stand for different numbers of bases."""
        return self.bpe is not None or bool(self.vocabulary.singles)

    @property
    def standard_ids(self) -> range:
        """Ids that random replacement draws from: bases or k-mers, no specials; N only for Nucleotide Transformer, as published."""
        return self.vocabulary.standard

    @cached_property
    def digest(self) -> str:
        """XXH3-128 of kind, settings, vocabulary and merges, as 32 hexadecimal digits."""
        merges = [self.bpe.merges] if self.bpe else []
        return xxhash.xxh3_128_hexdigest(json.dumps([self._settings(), self.tokens, *merges], sort_keys=True).encode())

    def encode(self, sequence: str | bytes | NDArray[np.uint8], *, exact_case: bool = False) -> NDArray[np.int64]:
        """Ids of a sequence, no specials added. Raises DataError for text that is not ASCII.

        exact_case=True, for published tokenizers and bpe: what theirs give for the text as it stands, lower case unknown to them, names of
        special tokens recognised, whitespace between words. Slow, to compare; raises DataError for tokenizers of our own.
        """
        if isinstance(sequence, str):
            try:
                sequence = sequence.encode("ascii")
            except UnicodeEncodeError as error:
                found = f"{sequence[error.start]!r} at position {error.start}"
                raise DataError(f"sequence holds {found}, which is not ASCII. Remove it") from None
        bases = np.frombuffer(sequence, np.uint8) if isinstance(sequence, bytes) else np.ascontiguousarray(sequence, np.uint8)
        if exact_case:
            text = bases.tobytes().decode("latin-1")
            return np.array(exact_bpe_ids(self.bpe, text) if self.bpe else published_ids(self.kind, self.vocabulary, text), np.int64)
        if isinstance(self._encoder, BpeEncoder):
            return self._encoder.encode(bases)[0]
        return self._encoder.encode(bases)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, nothing between tokens, specials as `<name>`. Raises DataError for an id outside the vocabulary."""
        ids = list(ids)
        for value in ids:
            if not 0 <= value < len(self.tokens):
                raise DataError(f"token id {value} is outside the vocabulary of {len(self.tokens)}. Decode with the tokenizer of the model")
        return "".join(self.tokens[value] for value in ids)

    def core_encoder(self, lowercase_weight: float) -> Encoder | SplitEncoder | BpeEncoder:
        """The native encoder that fills batches, giving lower-case bases this loss weight."""
        if self.bpe:
            return self.bpe.encoder(k=self.k, lowercase_weight=lowercase_weight)
        words = self.vocabulary.words
        shared: dict[str, Any] = {
            "k": self.k,
            "base_order": self.base_order,
            "first_id": words.start,
            "pad": self.pad_id,
            "bos": self.bos_id,
            "eos": NO_ID if self.eos_id is None else self.eos_id,
            "unk": self.unk_id,
            "lowercase_weight": lowercase_weight,
        }
        if singles := self.vocabulary.singles:
            return SplitEncoder(**shared, singles=singles, first_single=self.tokens.index(singles[0]))
        return Encoder(**shared, n=words.stop if self.kind == "nucleotide" else self.unk_id)

    @cached_property
    def _encoder(self) -> Encoder | SplitEncoder | BpeEncoder:
        return self.core_encoder(1.0)

    def _required(self, *roles: str) -> int:
        value = self.vocabulary.role(*roles)
        if value is None:
            raise DataError(f"tokenizer {self.kind} has no {roles[0]}. Use another one")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back; `bpe` holds the contents of a tokenizer.json with the merges."""
        return self._settings() | ({"bpe": self.bpe.to_json()} if self.bpe else {})

    def _settings(self) -> dict[str, Any]:
        values: dict[str, Any] = {"kind": self.kind, "k": self.k, "base_order": self.base_order, "add_bos": self.add_bos}
        # Left out where it is as it always was: digests of older streams hold.
        return values | ({"add_eos": self.add_eos} if self.add_eos or self.kind in (*PUBLISHED_TOKENIZERS, "bpe") else {})

    def to_config(self) -> dict[str, Any]:
        """Settings of the section `tokenizer` that give this tokenizer."""
        settings = {name: value for name, value in self._settings().items() if name != "k" or self.kind in ("kmer", "bpe")}
        return settings | ({"file": str(self.file)} if self.file else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tokenizer:
        """The tokenizer `to_dict` described. Raises CheckpointError where the values are not those of a tokenizer."""
        settings = {name: value for name, value in values.items() if name != "bpe"}
        try:
            config = TokenizerConfig.model_validate(settings)
            bpe = bpe_of_json(values.get("bpe"), "bpe") if config.kind == "bpe" else None
            tokenizer = _tokenizer(config, bpe)
        except (ValueError, DataError) as error:
            raise CheckpointError(f"not a tokenizer of ours: {settings} ({' '.join(str(error).split())})") from None
        if tokenizer.to_dict() != values:
            expected = f"Expected keys and values like {tokenizer._settings()}" + (" and the contents of a tokenizer.json" if bpe else "")
            raise CheckpointError(f"not a tokenizer of ours: {settings}. {expected}")
        return tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a configuration. Raises ConfigError where a file of BPE merges is not there, DataError where it is damaged."""
    if config.kind != "bpe":
        return _tokenizer(config, None)
    if config.file is None or not config.file.is_file():
        raise ConfigError(
            f"tokenizer.file = {config.file}: no such file, and tokenizer.kind=bpe reads its merges there. Set tokenizer.file=PATH; "
            "the tokenizer.json of a checkpoint or of an exported folder holds them too"
        )
    bpe = load_bpe(config.file)
    if config.vocab_size not in (None, len(bpe.tokens)):
        raise ConfigError(
            f"tokenizer.file = {config.file} has {len(bpe.tokens)} tokens, tokenizer.vocab_size = {config.vocab_size}. Change one of them"
        )
    return _tokenizer(config, bpe)


def countable_tokenizer(settings: TokenizerConfig) -> Tokenizer:
    """The tokenizer; where BPE has no file yet but tokenizer.vocab_size, one of as many tokens that only counts."""
    if settings.kind != "bpe" or settings.vocab_size is None or (settings.file and settings.file.is_file()):
        return build_tokenizer(settings)
    known = (*SPECIALS, *BASES)
    others = (f"#{number}" for number in range(len(known), settings.vocab_size))
    return Tokenizer("bpe", settings.k, settings.base_order, settings.add_bos, settings.add_eos, BpeVocabulary((*known, *others), ()))


def _tokenizer(config: TokenizerConfig, bpe: BpeVocabulary | None) -> Tokenizer:
    tokenizer = Tokenizer(config.kind, config.bases_per_token, config.base_order, config.add_bos, config.add_eos, bpe, config.file)
    _ = tokenizer.vocabulary  # of BPE it is data: what is wrong with it is said now
    return tokenizer
