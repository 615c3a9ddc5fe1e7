"""NCBI's genetic codes: start and stop codons, amino acids, and whether coding sequences have such ends (does an annotation fit?)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dnapretrain.errors import ConfigError

LISTED = 20
"""Exceptions that are named; all are counted."""
STOPS = {
    "TAA TAG TGA": (1, 11, 12, 26, 28),
    "TAA TAG": (3, 4, 5, 9, 10, 13, 21, 24, 25, 31),
    "TAA TAG AGA AGG": (2,),
    "TGA": (6, 27, 29, 30),
    "TAG": (14, 33),
    "TAA TGA": (15, 16, 32),
    "TAA TGA TCA": (22,),
    "TAA TAG TGA TTA": (23,),
}
STARTS = {
    "ATG": (6, 10, 14, 15, 16, 22, 27, 28, 29, 30, 31),
    "ATG CTG": (12, 26),
    "ATG GTG": (9, 21),
    "ATG CTG TTG": (1,),
    "ATG ATA GTG": (3,),
    "ATG ATT GTG": (23,),
    "ATG GTG TTG": (25,),
    "ATG ATA GTG TTG": (13,),
    "ATG CTG GTG TTG": (24, 33),
    "ATG ATA ATC ATT GTG": (2,),
    "ATG ATA ATC ATT GTG TTG": (5,),
    "ATG ATA ATC ATT CTG GTG TTG": (11, 32),
    "ATG ATA ATC ATT CTG GTG TTA TTG": (4,),
}
STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""Amino acids of the standard code, codons in NCBI's order: T, C, A, G, the last base fastest."""
CHANGES = {
    "": (1, 11),
    "TGA=W ATA=M AGA=* AGG=*": (2,),
    "TGA=W CTT=T CTC=T CTA=T CTG=T ATA=M": (3,),
    "TGA=W": (4,),
    "TGA=W ATA=M AGA=S AGG=S": (5,),
    "TAA=Q TAG=Q": (6,),
    "TGA=W AAA=N AGA=S AGG=S": (9,),
    "TGA=C": (10,),
    "CTG=S": (12,),
    "TGA=W ATA=M AGA=G AGG=G": (13,),
    "TAA=Y TGA=W AAA=N AGA=S AGG=S": (14,),
    "TAG=Q": (15,),
    "TAG=L": (16,),
    "TGA=W ATA=M AAA=N AGA=S AGG=S": (21,),
    "TCA=* TAG=L": (22,),
    "TTA=*": (23,),
    "TGA=W AGA=S AGG=K": (24,),
    "TGA=G": (25,),
    "CTG=A": (26,),
    "TAA=Q TAG=Q TGA=W": (27, 28),
    "TAA=Y TAG=Y": (29,),
    "TAA=E TAG=E": (30,),
    "TAA=E TAG=E TGA=W": (31,),
    "TAG=W": (32,),
    "TAA=Y TGA=W AGA=S AGG=K": (33,),
}
"""What differs from it, by code. Codes 27, 28 and 31 have stop codons that are read as an amino acid within a sequence."""
START_CODONS = {code: frozenset(codons.split()) for codons, codes in STARTS.items() for code in codes}
STOP_CODONS = {code: frozenset(codons.split()) for codons, codes in STOPS.items() for code in codes}


@cache
def amino_acids(code: int) -> dict[str, str]:
    """The amino acid of each of the 64 codons, `*` for those that only stop. Raises ConfigError for an unknown code."""
    if code not in START_CODONS:
        raise ConfigError(f"genetic code {code} is none of NCBI's: {', '.join(map(str, sorted(START_CODONS)))}.")
    table = dict(zip(map("".join, itertools.product("TCAG", repeat=3)), STANDARD, strict=True))
    changes = next(changes for changes, codes in CHANGES.items() if code in codes)
    return table | dict(change.split("=") for change in changes.split())


def translate(bases: str, code: int) -> str:
    """The protein of whole codons from the first base on: `*` for a stop, X for a codon with other letters than A, C, G, T; bases of no
    whole codon at the end are not read. Start codons have their ordinary amino acid."""
    table = amino_acids(code)
    return "".join(table.get(bases[at : at + 3], "X") for at in range(0, len(bases) // 3 * 3, 3))


@dataclass
class CodonCheck:
    """Counts of complete coding sequences."""

    complete: int = 0
    starts: int = 0
    stops: int = 0
    valid: int = 0
    """With both."""
    not_whole: int = 0
    """Whose length is not a multiple of three."""
    incomplete: int = 0
    """Marked as partial, or of a pseudogene: not judged."""
    exceptions: list[dict[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """Of the complete ones, those that begin with a start and end with a stop codon."""
        return self.valid / self.complete if self.complete else None

    def add(self, bases: bytes, code: int, name: str, locus: str, note: str) -> None:
        """Judge one complete coding sequence."""
        first, last = bases[:3].decode().upper(), bases[-3:].decode().upper()
        start, stop = first in START_CODONS[code], last in STOP_CODONS[code]
        self.complete += 1
        self.starts += start
        self.stops += stop
        self.valid += start and stop
        self.not_whole += len(bases) % 3 != 0
        if not (start and stop) and len(self.exceptions) < LISTED:
            self.exceptions.append({"name": name, "locus": locus, "first": first, "last": last, "note": note})

    def summary(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        keys = ("complete", "valid", "starts", "stops", "not_whole", "incomplete")
        return {key: getattr(self, key) for key in keys} | {"share": self.share, "exceptions": self.exceptions}
