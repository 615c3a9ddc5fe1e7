"""Published tokenizers on text as it stands: lower case, names of special tokens, whitespace.

Training reads sequence, which the native encoders upper-case; this is what the tokenizers that were published with the models
give for any text, so that the two can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from dnapretrain.data.tokens.bpe import BpeVocabulary
from dnapretrain.data.tokens.vocabularies import BPE_SPECIALS, Vocabulary
from dnapretrain.errors import DataError

PIECES = {
    "nt_v1": r"[ACGT]{6}|[ACGTN]|\s+",
    "nt_v2": r"[ACGT]{6}|[ACGTN]|\s+",
    "aido_dna": r"[ACGTUN]|\s+",
    "generator": r"[A-Z]{1,6}|[\s\S]",
}
"""What a published tokenizer cuts text into, left to right; what lies between pieces is one unknown token."""


def published_ids(kind: str, vocabulary: Vocabulary, text: str) -> list[int]:
    """Ids of `text`, no special token added in front or behind. Raises DataError where the kind is no published one."""
    if kind not in PIECES:
        raise DataError(f"exact_case is for published tokenizers, not {kind}. Leave it out")
    ids = {token: value for value, token in enumerate(vocabulary.tokens)}
    unknown = ids[vocabulary.roles["unk_token"]]
    return [ids.get(piece, unknown) for piece in _pieces(kind, vocabulary.specials, text) if not (piece.isspace() and kind != "generator")]


def exact_bpe_ids(vocabulary: BpeVocabulary, text: str) -> list[int]:
    """Ids that the `tokenizers` library gives for `text` with these merges, no special token added in front or behind."""
    encoder = vocabulary.encoder(upper_case=False)
    names = "|".join(map(re.escape, BPE_SPECIALS))
    ids: list[int] = []
    for piece in re.split(rf"({names})|(?a:\s+)", text):
        if piece in BPE_SPECIALS:
            ids.append(vocabulary.ids[piece])
        elif piece:
            ids += encoder.encode(np.frombuffer(piece.encode("latin-1"), np.uint8))[0].tolist()
    return ids


def _pieces(kind: str, specials: tuple[str, ...], text: str) -> Iterator[str]:
    """Pieces and the stretches between them, in order: together they are the text."""
    names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    at = 0
    for match in re.finditer(f"{names}|{PIECES[kind]}", text):
        if match.start() > at:
            yield text[at : match.start()]
        yield match.group()
        at = match.end()
    if at < len(text):
        yield text[at:]
