"""A stretch of a contig, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dnapretrain.errors import ConfigError


@dataclass(frozen=True)
class Locus:
    """Bases [start, end) of a contig, 0-based."""

    assembly: str
    contig: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.assembly}:{self.contig}:{self.start + 1}-{self.end}"


def split_locus(text: str, option: str = "") -> tuple[str, int, int]:
    """What stands before the last colon of `name:start-end` (1-based, end included), and [start, end) 0-based. Raises ConfigError.

    `option` gave it, if any: messages begin with its name.
    """
    found = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if not found:
        said = f"{option} {text}" if option else f"'{text}'"
        raise ConfigError(f"{said} is not a locus. Give assembly:contig:start-end, 1-based, e.g. hg38:chr1:10,001-20,000")
    start, end = (int(number.replace(",", "") or 0) for number in found.groups()[1:])
    if not 1 <= start <= end:
        raise ConfigError(f"{option or 'locus'} {text} starts at {start} and ends at {end}; loci are 1-based, end included. Mend it")
    return found[1], start - 1, end
