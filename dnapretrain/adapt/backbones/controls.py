"""Control prompts: conditions that a decoder was fine-tuned with, under their names, as tokens between <bos> and the sequence.

A condition is written with the tokenizer's <mask> (0) and <unk> (1), its number in binary, as many digits as the largest needs. Both
have embeddings already, neither stands for bases, and <mask> is nowhere in what a decoder was pretrained on: so the vocabulary, and
with it every tool that reads the folder, stays as it is, and no DNA can be taken for a condition.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.adapt.sequences.targets import natural_order
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import CheckpointError, ConfigError, DataError

CONTROLS = "controls.json"
"""In the folder of a model, beside config.json."""
FORMAT = 1
MAX_CONDITIONS = 4096


@dataclass(frozen=True)
class Controls:
    """What a decoder was told of each sequence."""

    column: str = ""
    """Of the training table. "": nothing."""
    names: tuple[str, ...] = ()
    """Conditions in their order; that of bins is from low to high."""
    edges: tuple[float, ...] = ()
    """Of bins of numbers: bin i holds those from edge i - 1 (none below the first) up to, not with, edge i."""
    learned_end: bool = True
    """Sequences were followed by the tokenizer's end token."""

    @classmethod
    def of(cls, column: str, values: Sequence[str], num_bins: int = 0, where: str = "the table") -> Controls:
        """Of the training rows: each value a condition, or `num_bins` bins of numbers with about as many rows in each.

        Raises DataError where all rows have one value, values are no numbers, or there are too many.
        """
        if not num_bins:
            names = tuple(sorted(set(values), key=natural_order))
            if len(names) < 2:
                raise DataError(f"{where}: all rows have '{names[0]}' in column '{column}': no condition to learn. Leave it out.")
            if len(names) > MAX_CONDITIONS:
                raise DataError(f"{where}: column '{column}' has {len(names):,} values, above {MAX_CONDITIONS:,}. Numbers need bins.")
            return cls(column, names)
        if num_bins < 2:
            raise ConfigError(f"condition_bins = {num_bins} makes no bins. Use 2 or more, or 0.")
        numbers = np.array([_number(value, column, row, where) for row, value in enumerate(values, 1)])
        edges = np.quantile(numbers, np.arange(1, num_bins) / num_bins)
        if len(np.unique(edges)) < len(edges) or edges[0] <= numbers.min():
            raise DataError(f"{where}: the numbers of column '{column}' repeat too often for {num_bins} bins of like size. Use fewer.")
        return cls(column, tuple(f"bin{number}" for number in range(1, num_bins + 1)), tuple(edges.tolist()))

    def number(self, value: str, row: int, where: str) -> int:
        """Which condition a cell of the column is. Raises DataError for one that the training rows lack."""
        if self.edges:
            return int(np.searchsorted(self.edges, _number(value, self.column, row, where), side="right"))
        if value not in self.names:
            raise DataError(f"{where}: row {row} has condition '{value}', which the training table lacks: {', '.join(self.names)[:200]}.")
        return self.names.index(value)

    @property
    def width(self) -> int:
        """Tokens of a control prompt."""
        return max(1, (len(self.names) - 1).bit_length()) if self.names else 0

    def tokens(self, number: int, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The control prompt of a condition."""
        digits = (number >> place & 1 for place in reversed(range(self.width)))
        return tuple(tokenizer.unk_id if digit else tokenizer.mask_id for digit in digits)

    def prompt_of(self, name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The same by name. Raises ConfigError for one that is not known."""
        if name not in self.names:
            known = f"this model knows {', '.join(self.names)[:300]}" if self.names else "this model was fine-tuned without conditions"
            raise ConfigError(f"condition '{name}' is unknown: {known}.")
        return self.tokens(self.names.index(name), tokenizer)

    def write(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Into the folder of the model; `prompts` is for readers without this package."""
        prompts = {name: [tokenizer.tokens[value] for value in self.prompt_of(name, tokenizer)] for name in self.names}
        content = {**vars(self), "format": FORMAT, "prompts": prompts}
        (folder / CONTROLS).write_text(json.dumps(content, indent=1) + "\n")


def read_controls(folder: Path) -> Controls | None:
    """Of the folder of a model; None where it has none. Raises CheckpointError for a file that is not ours."""
    path = folder / CONTROLS
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, not {FORMAT}")
        return Controls(found["column"], tuple(found["names"]), tuple(found["edges"]), bool(found["learned_end"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}. Fine-tune again.") from None


def _number(value: str, column: str, row: int, where: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"{where}: row {row} has '{value}' in column '{column}', which is no finite number to put into a bin.")
    return number
