"""How contestants of a benchmark look in its pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dnapretrain.adapt.pictures import MARK_COLORS

MARKERS = "osD^v<>ph"
TOKENS, RANDOM = "tokens of ", " (random weights)"
"""Names of what belongs to a model have them before or after its name."""


def styles(own: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, mark, and whether it is hollow, of each contestant, no two alike: what belongs to a model has its colour."""
    bases = {name: name.removeprefix(TOKENS).removesuffix(RANDOM) for name in own}
    number = {base: at for at, base in enumerate(dict.fromkeys(bases.values()))}
    found = {}
    for name, base in bases.items():
        at = number[base]
        mark = "x" if name.startswith(TOKENS) else MARKERS[at % len(MARKERS)]
        found[name] = (MARK_COLORS[at % len(MARK_COLORS)], mark, name.endswith(RANDOM))
    return found


def error_bars(cells: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Lengths of the intervals below and above the values; 0 where there is none."""
    below = [0 if math.isnan(cell["low"]) else max(0.0, cell["value"] - cell["low"]) for cell in cells]
    return [below, [0 if math.isnan(cell["high"]) else max(0.0, cell["high"] - cell["value"]) for cell in cells]]
