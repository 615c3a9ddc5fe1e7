"""Start and stop codons of NCBI's genetic codes, and whether coding sequences have them: does an annotation fit its assembly?"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

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
START_CODONS = {code: frozenset(codons.split()) for codons, codes in STARTS.items() for code in codes}
STOP_CODONS = {code: frozenset(codons.split()) for codons, codes in STOPS.items() for code in codes}


STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""Amino acids of the standard code, codons in the order TTT, TTC, TTA, TTG, TCT, ... GGG."""
REASSIGNED = {
    1: "", 2: "ATA M TGA W", 3: "ATA M CTT T CTC T CTA T CTG T TGA W", 4: "TGA W", 5: "AGA S AGG S ATA M TGA W", 6: "TAA Q TAG Q",
    9: "AAA N AGA S AGG S TGA W", 10: "TGA C", 11: "", 12: "CTG S", 13: "AGA G AGG G ATA M TGA W", 14: "AAA N AGA S AGG S TAA Y TGA W",
    15: "TAG Q", 16: "TAG L", 21: "TGA W ATA M AGA S AGG S AAA N", 22: "TAG L", 23: "", 24: "AGA S AGG K TGA W", 25: "TGA G", 26: "CTG A",
    27: "TAG Q TAA Q", 28: "", 29: "TAA Y TAG Y", 30: "TAA E TAG E", 31: "TGA W", 32: "TAG W", 33: "TAA Y AGA S AGG K TGA W",
}  # fmt: skip
"""Codons of other codes that stand for another amino acid than in the standard code; what may be a stop is one."""


@cache
def amino_acids(code: int) -> dict[str, str]:
    """The amino acid, or * for a stop, of each codon of one of NCBI's genetic codes."""
    table = {"".join(codon): letter for codon, letter in zip(product("TCAG", repeat=3), STANDARD, strict=True)}
    words = REASSIGNED[code].split()
    return table | dict(zip(words[::2], words[1::2], strict=True)) | dict.fromkeys(STOP_CODONS[code], "*")


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
