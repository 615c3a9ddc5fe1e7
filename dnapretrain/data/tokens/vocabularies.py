"""Vocabularies: our own over nucleotides and k-mers, those of published models, and those of BPE.

Published ones are rules, not files: the specials in their order, then words in Cartesian order of the base order (the
rightmost base fastest), then single letters where the system has them. Those of BPE come from a file.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

from dnapretrain.errors import DataError

OWN_SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>")
NT_SPECIALS = ("<unk>", "<pad>", "<mask>", "<cls>")
GENERATOR_SPECIALS = (
    *("<oov>", "<s>", "</s>", "<pad>", "<mask>", "<bog>", "<eog>", "<bok>", "<eok>", "<+>", "<->"),
    *("<cds>", "<pseudo>", "<tRNA>", "<rRNA>", "<ncRNA>", "<miscRNA>"),
    *("<mam>", "<vrt>", "<inv>", "<pln>", "<fng>", "<prt>", "<arc>", "<bct>", "<mit>", "<plt>", "<plm>", "<vir>"),
    *("<sp0>", "<sp1>", "<sp2>"),
)
BPE_SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
AIDO_SPECIALS = ("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]")
AIDO_UNUSED = ("[BOS]", "[EOS]", "[UNUSED1]", "[UNUSED2]", "[UNUSED3]")


@dataclass(frozen=True)
class Vocabulary:
    """Which text has which id."""

    tokens: tuple[str, ...]
    """Text of each id of the tokenizer."""
    specials: tuple[str, ...]
    rows: int
    """Ids that the model has: NT-v1's is without the last two of its tokenizer."""
    roles: dict[str, str]
    """The name that transformers has for a special token -> its text."""
    words: range
    """Ids of the 4^k words of A, C, G and T; of BPE, all tokens of bases."""
    standard: range
    """Ids that random replacement in the masked objective draws from, evenly: the words; for Nucleotide Transformer, as published,
    the single letters too (N among them)."""
    singles: str = ""
    """Letters that are a token where no word fits, their ids one after the other. Empty: what is no word is one unknown token
    for k bases."""

    def role(self, *names: str) -> int | None:
        """Id of the first of these roles that the vocabulary has."""
        return next((self.tokens.index(self.roles[name]) for name in names if name in self.roles), None)


@cache
def vocabulary_of(kind: str, k: int, base_order: str) -> Vocabulary:
    """The vocabulary of a TokenizerConfig's kind, k and base order."""
    words = tuple(map("".join, itertools.product(base_order, repeat=k)))
    if kind in ("nt_v1", "nt_v2"):
        roles = {"pad_token": "<pad>", "cls_token": "<cls>", "unk_token": "<unk>", "mask_token": "<mask>"}
        letters, unused = (*base_order, "N"), ("<eos>", "<bos>")
        if kind == "nt_v1":
            return _assemble(NT_SPECIALS, words, letters, unused, roles, singles=letters, rows=len(NT_SPECIALS + words + letters))
        return _assemble(NT_SPECIALS + unused, words, letters, (), roles, singles=letters)
    if kind == "aido_dna":
        roles = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        return _assemble(AIDO_SPECIALS, words, ("U", "N"), AIDO_UNUSED, roles, singles=(*words, "U", "N"))
    if kind == "generator":
        roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<oov>", "mask_token": "<mask>"}
        return _assemble(GENERATOR_SPECIALS, words, (), (), roles)
    roles = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), OWN_SPECIALS, strict=True))
    return _assemble(OWN_SPECIALS, words, ("N",) if kind == "nucleotide" else (), (), roles)


def bpe_vocabulary(tokens: tuple[str, ...]) -> Vocabulary:
    """The vocabulary of BPE with these texts by id. Raises DataError where special tokens stand between those of bases."""
    bases = [number for number, text in enumerate(tokens) if text not in BPE_SPECIALS]
    words = range(bases[0], bases[-1] + 1)
    if len(words) > len(bases):
        between = next(tokens[number] for number in words if tokens[number] in BPE_SPECIALS)
        raise DataError(f"BPE tokens {words.start} to {words[-1]} stand for bases, but {between} is among them. Number it before or behind")
    roles = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return Vocabulary(tokens, BPE_SPECIALS, len(tokens), roles, words, standard=words)


def _assemble(
    specials: tuple[str, ...],
    words: tuple[str, ...],
    letters: tuple[str, ...],
    unused: tuple[str, ...],
    roles: dict[str, str],
    singles: tuple[str, ...] = (),
    rows: int | None = None,
) -> Vocabulary:
    """Specials, words, letters and unused specials, in this order."""
    tokens = specials + words + letters + unused
    first = len(specials)
    standard = len(words) + (len(letters) if singles == letters else 0)
    return Vocabulary(
        tokens=tokens,
        specials=specials + unused,
        rows=rows or len(tokens),
        roles=roles,
        words=range(first, first + len(words)),
        standard=range(first, first + standard),
        singles="".join(singles),
    )
