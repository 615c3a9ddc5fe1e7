"""Section tokenizer, and the size of the vocabulary that models have rows for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dnapretrain.config.section import Section

VOCAB_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this, whatever the tensor-parallel size."""
PUBLISHED_TOKENIZERS: dict[str, dict[str, Any]] = {
    "nt_v1": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "nt_v2": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "generator": {"k": 6, "base_order": "ATCG", "add_bos": True, "add_eos": False},
    "aido_dna": {"k": 1, "base_order": "AGCT", "add_bos": True, "add_eos": True},
}
"""What each published tokenizer has. k and base_order belong to its vocabulary; the other two are defaults."""
BPE_BASES_PER_TOKEN = 5
"""What 4,096 BPE tokens stand for on average, rounded: 4.7 to 5.0 on genomes."""


class TokenizerConfig(Section):
    """How bases become tokens."""

    kind: Literal["nucleotide", "kmer", "nt_v1", "nt_v2", "generator", "aido_dna", "bpe"] = "nucleotide"
    """nucleotide, kmer: our own vocabularies. bpe: byte-pair encoding, the merges in `file`. The others have the ids and rules of
    published models: Nucleotide Transformer v1 and v2, GENERator, AIDO.DNA."""
    file: Path | None = None
    """bpe only: a tokenizer.json with the merges, as `dnapretrain train-bpe` writes it, DNABERT-2's, or that of a checkpoint."""
    vocab_size: int | None = Field(None, gt=0)
    """bpe only: tokens that the file must have. `plan` and `--dry-run` take its word where there is no file yet."""
    k: int = Field(6, ge=1, le=8)
    """Bases per token (kmer; published ones have their own). bpe: bases per token that windows and bits per base reckon with,
    whatever the tokens are; default 5, what 4,096 tokens have on average."""
    base_order: Literal["ACGT", "ATCG", "AGCT"] = "ACGT"
    """Order of the bases in the vocabulary; published ones have their own."""
    add_bos: bool = True
    """Begin each sample with <bos> (NT: <cls>, GENERator: <s>, AIDO.DNA, bpe: [CLS]), so that its first base is predicted too."""
    add_eos: bool = False
    """Masked objective: end each sample with <eos> (AIDO.DNA, bpe: [SEP], there the default of masked runs)."""

    @model_validator(mode="before")
    @classmethod
    def _published(cls, value: Any) -> Any:
        defaults: dict[str, dict[str, Any]] = {**PUBLISHED_TOKENIZERS, "bpe": {"k": BPE_BASES_PER_TOKEN}}
        published = defaults.get(str(value.get("kind"))) if isinstance(value, dict) else None
        return {**published, **value} if published else value

    @model_validator(mode="after")
    def _as_published(self) -> TokenizerConfig:
        for name in ("k", "base_order"):
            has = PUBLISHED_TOKENIZERS.get(self.kind, {}).get(name, getattr(self, name))
            if getattr(self, name) != has:
                raise ValueError(f"{name} = {getattr(self, name)}, but kind={self.kind} has {has}: remove {name}")
        if self.kind == "bpe" and self.base_order != "ACGT":
            raise ValueError(f"base_order = {self.base_order}, but kind=bpe has the order of its file: remove base_order")
        return self

    @property
    def bases_per_token(self) -> int:
        """Bases of one word; bpe: those that windows reckon with."""
        return 1 if self.kind == "nucleotide" else self.k

    @property
    def is_variable(self) -> bool:
        """True where tokens stand for different numbers of bases, so that only the bases tell how many there are."""
        return self.kind in ("nt_v1", "nt_v2", "aido_dna", "bpe")


def padded_vocab_size(vocab_size: int) -> int:
    """`vocab_size` rounded up to a multiple of VOCAB_MULTIPLE."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
