"""Tokenizers: nucleotides and k-mers, and their Hugging Face folders.

Vocabulary: <pad> <bos> <eos> <unk> <mask>, then the four bases and N (nucleotide), or the 4^k k-mers
in Cartesian order, the rightmost base fastest (kmer). Sequence is upper-cased. A k-mer that holds
anything but A, C, G, T is one <unk>, and so are the bases left over at the end.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from dnapretrain._core import Encoder
from dnapretrain.config import TokenizerConfig
from dnapretrain.errors import CheckpointError, DataError

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>")


@dataclass(frozen=True)
class Tokenizer:
    """A fixed vocabulary over DNA; `build_tokenizer` makes one."""

    kind: Literal["nucleotide", "kmer"]
    k: int
    """Bases per token: 1 for nucleotides."""
    base_order: str
    add_bos: bool
    """Samples begin with <bos>; `encode` never adds it."""

    pad_id = 0
    bos_id = 1
    eos_id = 2
    unk_id = 3
    mask_id = 4

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Text of each id."""
        words = itertools.product(self.base_order, repeat=self.k)
        return (*SPECIAL_TOKENS, *map("".join, words), *(["N"] if self.kind == "nucleotide" else []))

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included, without padding."""
        return len(self.tokens)

    @property
    def bases_per_token(self) -> int:
        """Bases that one token stands for."""
        return self.k

    @property
    def standard_ids(self) -> range:
        """Ids of the four bases, or of the 4^k k-mers: no specials, no N."""
        return range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 4**self.k)

    @cached_property
    def digest(self) -> str:
        """XXH3-128 of kind, settings and vocabulary, as 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest(json.dumps([self.to_dict(), self.tokens], sort_keys=True).encode())

    def encode(self, sequence: str | bytes | NDArray[np.uint8]) -> NDArray[np.int64]:
        """Ids of a sequence, no specials added. Raises DataError for text that is not ASCII."""
        if isinstance(sequence, str):
            try:
                sequence = sequence.encode("ascii")
            except UnicodeEncodeError as error:
                found = f"{sequence[error.start]!r} at position {error.start}"
                raise DataError(f"sequence holds {found}, which is not ASCII. Remove it") from None
        bases = np.frombuffer(sequence, np.uint8) if isinstance(sequence, bytes) else np.ascontiguousarray(sequence, np.uint8)
        return self._encoder.encode(bases)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, nothing between tokens, specials as `<name>`. Raises DataError for an id outside the vocabulary."""
        ids = list(ids)
        for value in ids:
            if not 0 <= value < self.vocab_size:
                raise DataError(f"token id {value} is outside the vocabulary of {self.vocab_size}. Decode with the tokenizer of the model")
        return "".join(self.tokens[value] for value in ids)

    def core_encoder(self, lowercase_weight: float) -> Encoder:
        """The native encoder that fills batches, giving lower-case bases this loss weight."""
        return Encoder(
            k=self.k,
            base_order=self.base_order,
            first_id=self.standard_ids.start,
            pad=self.pad_id,
            bos=self.bos_id,
            eos=self.eos_id,
            unk=self.unk_id,
            n=self.vocab_size - 1 if self.kind == "nucleotide" else self.unk_id,
            lowercase_weight=lowercase_weight,
        )

    @cached_property
    def _encoder(self) -> Encoder:
        return self.core_encoder(1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tokenizer:
        """The tokenizer `to_dict` described. Raises CheckpointError where the values are not those of a tokenizer."""
        try:
            tokenizer = build_tokenizer(TokenizerConfig.model_validate(values))
        except ValueError as error:
            raise CheckpointError(f"not a tokenizer of ours: {values} ({' '.join(str(error).split())})") from None
        if tokenizer.to_dict() != values:
            raise CheckpointError(f"not a tokenizer of ours: {values}. Expected keys and values like {tokenizer.to_dict()}")
        return tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a configuration."""
    return Tokenizer(config.kind, config.k if config.kind == "kmer" else 1, config.base_order, config.add_bos)


def save_hf_tokenizer(tokenizer: Tokenizer, directory: str | Path, max_length: int) -> None:
    """Write the files that `transformers.AutoTokenizer.from_pretrained(directory)` loads; it gives the same ids, plus <bos> if add_bos."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        **named,
    }
    _fast_tokenizer(tokenizer).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(named, indent=2) + "\n")


def _fast_tokenizer(tokenizer: Tokenizer) -> Any:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer(models.WordLevel({text: i for i, text in enumerate(tokenizer.tokens)}, unk_token="<unk>"))
    # The library has no upper-casing normalizer; other letters are <unk> in either case.
    fast.normalizer = normalizers.Sequence([normalizers.Replace(base, base.upper()) for base in "acgtn"])
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{tokenizer.k}}}"), behavior="isolated")
    fast.decoder = decoders.Fuse()
    if tokenizer.add_bos:
        fast.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", tokenizer.bos_id)]
        )
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return fast


def load_hf_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a folder that `save_hf_tokenizer` wrote, or transformers saved again. Raises CheckpointError for others."""
    path = Path(directory) / "tokenizer.json"
    try:
        content = json.loads(path.read_text())
        vocab = content["model"]["vocab"]
        texts = sorted(vocab, key=vocab.__getitem__)
        kind: Literal["nucleotide", "kmer"] = "nucleotide" if texts[-1] == "N" else "kmer"
        first = texts[len(SPECIAL_TOKENS) : len(SPECIAL_TOKENS) + 4]
        add_bos = "<bos>" in json.dumps(content["post_processor"])
        tokenizer = Tokenizer(kind, len(first[0]), "".join(text[-1] for text in first), add_bos)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise CheckpointError(f"{path}: not a tokenizer that dnapretrain wrote. Give a folder made by dnapretrain convert to-hf") from None
    if tokenizer.k > 8 or len(texts) > 4**8 + 8 or vocab != {text: i for i, text in enumerate(tokenizer.tokens)}:
        raise CheckpointError(f"{path}: not the vocabulary of a nucleotide or k-mer tokenizer of dnapretrain ({len(texts)} tokens)")
    return tokenizer
