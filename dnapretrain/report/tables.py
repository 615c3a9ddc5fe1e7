"""Numbers for people, and results as a table of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIFORM_BITS = 2.0
"""Bits per base of a model that gives each base 1/4."""


def short_count(value: float) -> str:
    """A count for people: 950, 12.5 k, 3.4 M, 1.2 B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def short_duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 5 s, 7 h 12 min, 3 d 4 h."""
    for size, name, next_size, next_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // next_size)} {next_name}"
    return f"{seconds:.0f} s"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; numbers to the right, floats with four decimals."""
    if not rows:
        return ""
    keys = list(rows[0])
    cells = [[_cell(row[key]) for key in keys] for row in rows]
    numeric = [all(isinstance(row[key], (int, float)) for row in rows) for key in keys]
    widths = [max(len(key), 3, *(len(row[column]) for row in cells)) for column, key in enumerate(keys)]
    lines = [
        _line(keys, widths, numeric),
        "|" + "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)) + "|",
        *(_line(row, widths, numeric) for row in cells),
    ]
    return "\n".join(lines) + "\n"


def summary_rows(model: Mapping[str, float], ladder: Mapping[int, float], name: str = "count model, order {}") -> list[dict[str, Any]]:
    """Rows for `markdown_table`: every model by name and every count model of the ladder, best first, with the uniform one.

    `name` has {} where the number of the ladder goes: "count model, {} flanks each side" for one that sees both sides.
    """
    named = list(model.items())
    named += [(name.format(number), bits) for number, bits in ladder.items()]
    named.append(("uniform", UNIFORM_BITS))
    return [{"model": name, "bits per base": float(bits)} for name, bits in sorted(named, key=lambda item: item[1])]


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    return (
        "| "
        + " | ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(cells, widths, numeric, strict=True))
        + " |"
    )
