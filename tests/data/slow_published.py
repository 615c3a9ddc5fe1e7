"""Slow, plain Python versions of the published tokenizers, written from the description of what they do, letter by letter."""

from __future__ import annotations

import itertools

NT_FIRST = {"nt_v1": ["<unk>", "<pad>", "<mask>", "<cls>"], "nt_v2": ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"]}
SIXMERS = ["".join(word) for word in itertools.product("ATCG", repeat=6)]
GENERATOR_FIRST = 32
AIDO = {"A": 5, "G": 6, "C": 7, "T": 8, "U": 9, "N": 10}


def nt_ids(kind: str) -> dict[str, int]:
    return {text: number for number, text in enumerate([*NT_FIRST[kind], *SIXMERS, *"ATCGN"])}


def nt(kind: str, text: str) -> list[int]:
    """6-mers from the left; N alone; short rests letter by letter; one 0 for a run of anything else."""
    ids, found, at = nt_ids(kind), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif len(text[at : at + 6]) == 6 and set(text[at : at + 6]) <= set("ACGT"):
            found.append(ids[text[at : at + 6]])
            at += 6
        elif text[at] in "ACGTN":
            found.append(ids[text[at]])
            at += 1
        else:
            found.append(0)
            while at < len(text) and text[at] not in "ACGTN" and not text[at].isspace():
                at += 1
    return found


def aido(text: str) -> list[int]:
    """Letter by letter; one 4 for a run of unknown ones."""
    found, in_run = [], False
    for letter in text:
        known = letter in AIDO
        if known or (not in_run and not letter.isspace()):
            found.append(AIDO.get(letter, 4))
        in_run = not known and not letter.isspace()
    return found


def generator(text: str) -> list[int]:
    """Up to six capitals at a time: a 6-mer, or one 0; any other character is a 0 of its own."""
    found, at = [], 0
    while at < len(text):
        size = 0
        while size < 6 and at + size < len(text) and "A" <= text[at + size] <= "Z":
            size += 1
        word = text[at : at + size]
        value = 0
        if len(word) == 6 and set(word) <= set("ACGT"):
            for letter in word:
                value = 4 * value + "ATCG".index(letter)
            value += GENERATOR_FIRST
        found.append(value)
        at += max(size, 1)
    return found


def published(kind: str, text: str) -> list[int]:
    if kind == "generator":
        return generator(text)
    return aido(text) if kind == "aido_dna" else nt(kind, text)
