"""What is learned of sequences: classes, several yes-or-no labels, numbers, or a class of each base; from label columns to arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.metrics import CLASSIFICATION, MULTILABEL, REGRESSION, classification_scores, multilabel_scores, regression_scores
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.errors import ConfigError, DataError

METRICS = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "regression": REGRESSION,
    "tokens": CLASSIFICATION,
    "causal": ("bits_per_base",),
}
"""By task."""
DEFAULT_METRIC = {"classification": "mcc", "multilabel": "auprc", "regression": "pearson", "tokens": "mcc", "causal": "bits_per_base"}
LOW_IS_GOOD = ("loss", "bits_per_base")


@dataclass(frozen=True)
class Target:
    """What the label columns of a table hold; learned from the training table, then used for all."""

    task: str
    """classification, multilabel, regression, tokens or causal (the sequence itself)."""
    columns: tuple[str, ...]
    """Several for multilabel (0 or 1 each) and regression; of causal the condition, or none."""
    classes: tuple[str, ...]
    """Of classification and tokens (a letter per base); empty for others."""

    @classmethod
    def of(cls, table: SequenceTable, task: str) -> Target:
        """Raises ConfigError for an unknown task or too many columns, DataError where all labels are one."""
        if task not in METRICS:
            raise ConfigError(f"task = {task} is none of {', '.join(METRICS)}.")
        columns = tuple(table.labels)
        if task == "causal":
            if len(columns) > 1:
                raise ConfigError(f"causal reads one column of conditions at most; {table.source} gives {', '.join(columns)}.")
            return cls(task, columns, ())
        if not columns or (len(columns) > 1 and task in ("classification", "tokens")):
            raise ConfigError(
                f"{task} learns one label column; {table.source} gives {', '.join(columns) or 'none'}. Name one with --label-column."
            )
        if task in ("multilabel", "regression"):
            return cls(task, columns, ())
        values = table.labels[columns[0]]
        classes = sorted(set("".join(values)) if task == "tokens" else set(values), key=natural_order)
        if len(classes) < 2:
            raise DataError(f"{table.source}: all labels of column '{columns[0]}' are '{classes[0]}'. There is nothing to learn.")
        return cls(task, columns, tuple(classes))

    @property
    def num_outputs(self) -> int:
        """Width of the model's last layer."""
        return len(self.classes) or len(self.columns)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of each output."""
        return self.classes or self.columns

    def truth(self, table: SequenceTable) -> list[NDArray[Any]]:
        """Of each row: [] the class number, [L] zeros and ones, [L] numbers, or [bases] class numbers; of causal nothing.

        Raises DataError with the row for a label that is unknown, no number, not finite, or not as long as the sequence.
        """
        for column in self.columns:
            if column not in table.labels:
                raise DataError(f"{table.source} has no label column '{column}', which was learned.")
        if self.task == "causal":
            return []
        read = {"classification": self._class, "tokens": self._bases}.get(self.task, self._numbers)
        return [read(table, row) for row in range(len(table))]

    def _where(self, table: SequenceTable, row: int) -> str:
        return f"{table.source}: row {row + 1} ({table.names[row]})"

    def _class(self, table: SequenceTable, row: int) -> NDArray[Any]:
        value = table.labels[self.columns[0]][row]
        if value not in self.classes:
            known = ", ".join(self.classes)[:200]
            raise DataError(f"{self._where(table, row)} has label '{value}', which the training table lacks: {known}.")
        return np.array(self.classes.index(value))

    def _bases(self, table: SequenceTable, row: int) -> NDArray[Any]:
        value, bases = table.labels[self.columns[0]][row], table.sequences[row]
        if len(value) != len(bases):
            raise DataError(f"{self._where(table, row)} has {len(bases)} bases and {len(value)} labels. Give one letter per base.")
        if unknown := set(value) - set(self.classes):
            raise DataError(f"{self._where(table, row)} has label '{min(unknown)}', which the training table lacks.")
        return np.array([self.classes.index(letter) for letter in value])

    def _numbers(self, table: SequenceTable, row: int) -> NDArray[Any]:
        found = []
        for column in self.columns:
            value = table.labels[column][row]
            if self.task == "multilabel" and value not in ("0", "1"):
                raise DataError(f"{self._where(table, row)} has '{value}' in column '{column}'; labels of multilabel are 0 or 1.")
            try:
                found.append(float(value))
            except ValueError:
                raise DataError(f"{self._where(table, row)} has label '{value}', which is no number. Is it a classification?") from None
            if not math.isfinite(found[-1]):
                raise DataError(f"{self._where(table, row)} has label '{value}', which is not finite. Remove the row.")
        return np.array(found, np.int64 if self.task == "multilabel" else np.float64)

    def scores(self, truth: Sequence[NDArray[Any]], predicted: Sequence[NDArray[Any]]) -> dict[str, float]:
        """All metrics of the task. predicted: of each row [outputs], of tokens [bases, outputs]; logits, or probabilities of multilabel.

        tokens: over bases. causal: truth [] bases, predicted [] nats of each row. Several numbers: the mean of each metric over the
        columns, and `metric:column`.
        """
        if self.task == "tokens":
            return classification_scores(np.concatenate(truth), np.concatenate(predicted))
        if self.task == "causal":
            return {"bits_per_base": float(np.sum(predicted) / math.log(2) / np.sum(truth))}
        truths, outputs = np.stack(truth), np.stack(predicted)
        if self.task == "classification":
            return classification_scores(truths, outputs)
        if self.task == "multilabel":
            return multilabel_scores(truths, outputs)
        columns = [regression_scores(truths[:, at], outputs[:, at]) for at in range(len(self.columns))]
        means = {name: float(np.mean([one[name] for one in columns])) for name in REGRESSION}
        if len(columns) == 1:
            return means
        pairs = zip(self.columns, columns, strict=True)
        return means | {f"{name}:{column}": value for column, one in pairs for name, value in one.items()}

    def classes_for_folds(self, truth: Sequence[NDArray[Any]]) -> NDArray[np.int64] | None:
        """What folds are to be even in; None: nothing."""
        return np.array(truth, np.int64) if self.task == "classification" else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Target:
        """Of what `to_dict` gave."""
        return cls(values["task"], tuple(values["columns"]), tuple(values["classes"]))


def class_weights(target: Target, truth: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """[outputs] weights of the loss. Classes: rows / (classes * rows of the class), as scikit-learn's `balanced`; labels of
    multilabel: zeros per one. Raises ConfigError for numbers, DataError for a class or label that never occurs."""
    if target.task == "regression":
        raise ConfigError("class weights have no meaning for numbers. Leave --class-weights out.")
    if target.task == "multilabel":
        ones = np.stack(truth).sum(axis=0)
        counts, weights = ones, (len(truth) - ones) / np.maximum(ones, 1)
    else:
        counts = np.bincount(np.concatenate([np.atleast_1d(one) for one in truth]), minlength=len(target.classes))
        weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    if not counts.all():
        raise DataError(f"'{target.output_names[int(counts.argmin())]}' never occurs in the rows to train on: it has no weight.")
    return np.asarray(weights, np.float64)


def natural_order(text: str) -> tuple[int, float, str]:
    """Key of labels in their order: numbers by value, then texts."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
