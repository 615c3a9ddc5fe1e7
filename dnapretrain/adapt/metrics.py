"""How good predictions are: MCC, F1, accuracy, AUROC, AUPRC; Pearson, Spearman, R2; with bootstrap intervals.

Checked against scikit-learn and SciPy by the tests. A metric that is not defined (AUROC of one class, a correlation with a constant)
is NaN. Several classes: F1, AUROC and AUPRC are means over classes, each against the rest; MCC is that of Gorodkin (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.errors import ConfigError

CLASSIFICATION = ("mcc", "f1", "f1_weighted", "accuracy", "auroc", "auprc")
REGRESSION = ("pearson", "spearman", "r2")
MULTILABEL = ("f1", "accuracy", "auroc", "auprc")
NUM_BOOTSTRAP = 1000

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Interval:
    """A metric and its bootstrap percentile interval."""

    value: float
    low: float
    high: float
    """NaN, as `low`, where the metric is defined in fewer than half of the resamples."""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def classification_scores(truth_N: Ints, scores_NC: Floats) -> dict[str, float]:
    """The metrics of CLASSIFICATION.

    truth_N: classes from 0. scores_NC: probabilities or logits of each class; the prediction is the largest, AUROC and AUPRC rank by
    them, for two classes by the difference of the second to the first. Classes that are absent from `truth_N` take no part in means.
    """
    predicted_N = scores_NC.argmax(axis=1)
    confusion = confusion_matrix(truth_N, predicted_N, scores_NC.shape[1])
    present = np.flatnonzero(confusion.sum(axis=1))
    if scores_NC.shape[1] == 2:
        classes = [1]
        ranking: dict[int, Floats] = {1: scores_NC[:, 1] - scores_NC[:, 0]}
    else:
        classes = present.tolist()
        ranking = {number: scores_NC[:, number] for number in classes}
    return {
        "mcc": mcc(confusion),
        "f1": f1(confusion),
        "f1_weighted": f1(confusion, weighted=True),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "auroc": _mean([auroc(truth_N == number, ranking[number]) for number in classes]),
        "auprc": _mean([average_precision(truth_N == number, ranking[number]) for number in classes]),
    }


def regression_scores(truth_N: Floats, predicted_N: Floats) -> dict[str, float]:
    """The metrics of REGRESSION."""
    return {
        "pearson": pearson(truth_N, predicted_N),
        "spearman": pearson(ranks(truth_N), ranks(predicted_N)),
        "r2": r2(truth_N, predicted_N),
    }


def multilabel_scores(truth_NL: Ints, probabilities_NL: Floats, threshold: float = 0.5) -> dict[str, float]:
    """Means over labels of F1, AUROC and AUPRC, each label alone; accuracy is the share of right cells. Labels without both classes
    take no part in AUROC and AUPRC."""
    predicted_NL = probabilities_NL >= threshold
    labels = range(truth_NL.shape[1])
    matrices = [confusion_matrix(truth_NL[:, label], predicted_NL[:, label].astype(int), 2) for label in labels]
    return {
        "f1": _mean([_f1_of_class(matrix, 1) for matrix in matrices]),
        "accuracy": float((predicted_NL == truth_NL.astype(bool)).mean()),
        "auroc": _mean([auroc(truth_NL[:, label] == 1, probabilities_NL[:, label]) for label in labels]),
        "auprc": _mean([average_precision(truth_NL[:, label] == 1, probabilities_NL[:, label]) for label in labels]),
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def confusion_matrix(truth_N: Ints, predicted_N: Ints, num_classes: int) -> NDArray[np.int64]:
    """[truth, prediction] counts."""
    cells = np.bincount(np.asarray(truth_N, np.int64) * num_classes + predicted_N, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def mcc(confusion: NDArray[np.int64]) -> float:
    """Matthews correlation; 0 where all is of one class, in truth or prediction, as scikit-learn has it."""
    confusion = confusion.astype(np.float64)
    truth, predicted, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - truth @ truth)
    return float((np.trace(confusion) * total - truth @ predicted) / np.sqrt(spread)) if spread else 0.0


def f1(confusion: NDArray[np.int64], weighted: bool = False) -> float:
    """Mean over the classes that occur in truth or prediction; weighted: by their rows in truth."""
    classes = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    values = [_f1_of_class(confusion, int(number)) for number in classes]
    return float(np.average(values, weights=confusion.sum(axis=1)[classes] if weighted else None))


def _f1_of_class(confusion: NDArray[np.int64], number: int) -> float:
    both = confusion[number].sum() + confusion[:, number].sum()
    return float(2 * confusion[number, number] / both) if both else 0.0


def ranks(values_N: Floats) -> NDArray[np.float64]:
    """From 1; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means


def auroc(is_positive_N: NDArray[np.bool_], scores_N: Floats) -> float:
    """Chance that a positive scores above a negative, ties half: from the sum of ranks (Mann-Whitney)."""
    positive, negative = int(is_positive_N.sum()), int((~is_positive_N).sum())
    if not positive or not negative:
        return float("nan")
    return float((ranks(scores_N)[is_positive_N].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(is_positive_N: NDArray[np.bool_], scores_N: Floats) -> float:
    """Area under precision over recall as a sum of steps, one per distinct score."""
    positive = int(is_positive_N.sum())
    if not positive or positive == len(is_positive_N):
        return float("nan")
    order = np.argsort(-scores_N, kind="stable")
    last = np.append(np.diff(scores_N[order]) != 0, True)  # of its score
    hits = np.cumsum(is_positive_N[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.diff(hits, prepend=0) @ precision / positive)


def pearson(one_N: Floats, other_N: Floats) -> float:
    """Correlation; NaN where one side is constant."""
    one, other = (np.asarray(values, np.float64) - np.mean(values, dtype=np.float64) for values in (one_N, other_N))
    size = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / size) if size > 0 else float("nan")


def r2(truth_N: Floats, predicted_N: Floats) -> float:
    """Share of the variance that is explained; below 0 where the mean would do better."""
    total = float(((truth_N - np.mean(truth_N)) ** 2).sum())
    return float(1 - ((truth_N - predicted_N) ** 2).sum() / total) if total else float("nan")


def with_intervals(
    score: Callable[..., Mapping[str, float]], *rows: NDArray[Any], num_bootstrap: int = NUM_BOOTSTRAP, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """`score(*rows)` and, of each metric, the interval over resamples of rows with replacement.

    rows: arrays of one length. Resamples in which a metric is not defined do not count for it. Raises ConfigError without rows.
    """
    count = len(rows[0])
    if not count or num_bootstrap < 1:
        raise ConfigError(f"{count} rows and {num_bootstrap} resamples give no interval. Give one at least.")
    values = score(*rows)
    random = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(num_bootstrap):
        picked = random.integers(count, size=count)
        for name, value in score(*(array[picked] for array in rows)).items():
            drawn[name].append(value)
    return {name: _interval(values[name], np.array(drawn[name]), level) for name in values}


def _interval(value: float, drawn: NDArray[np.float64], level: float) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if 2 * len(known) < len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def plain(value: Any) -> Any:
    """For JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
