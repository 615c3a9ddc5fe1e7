"""Metrics against scikit-learn and SciPy, by hand, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as theirs

from dnapretrain.adapt import metrics
from dnapretrain.errors import ConfigError


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_classification_equals_scikit_learn(num_classes, ties):
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(num_classes, size=157)
    logits = rng.normal(size=(157, num_classes)) + 1.5 * np.eye(num_classes)[truth]
    if ties:
        logits = logits.round(0)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = scores.round(6)
    predicted = scores.argmax(axis=1)
    found = metrics.classification_scores(truth, scores)
    ranked = scores[:, 1] if num_classes == 2 else scores
    assert found == pytest.approx(
        {
            "mcc": theirs.matthews_corrcoef(truth, predicted),
            "f1": theirs.f1_score(truth, predicted, average="macro"),
            "f1_weighted": theirs.f1_score(truth, predicted, average="weighted"),
            "accuracy": theirs.accuracy_score(truth, predicted),
            "auroc": np.mean(
                [theirs.roc_auc_score(truth == number, scores[:, number]) for number in range(num_classes)]
                if num_classes > 2
                else theirs.roc_auc_score(truth, ranked)
            ),
            "auprc": np.mean(
                [theirs.average_precision_score(truth == number, scores[:, number]) for number in range(num_classes)]
                if num_classes > 2
                else theirs.average_precision_score(truth, ranked)
            ),
        }
    )


def test_binary_by_hand():
    """Truth 0 0 1 1, positives' scores .1 .4 .35 .8: three of four pairs are in order; precision 1 at recall 1/2, 2/3 at 1."""
    truth, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    found = metrics.classification_scores(truth, np.stack([1 - scores, scores], axis=1))
    assert found["auroc"] == 0.75 and found["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["accuracy"] == 0.75 and found["mcc"] == pytest.approx((2 * 1 - 0 * 1) / math.sqrt(1 * 2 * 2 * 3))
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_one_class_only():
    found = metrics.classification_scores(np.zeros(4, int), np.eye(2)[[0, 0, 1, 0]])
    assert found["mcc"] == 0 and found["accuracy"] == 0.75 and math.isnan(found["auroc"]) and math.isnan(found["auprc"])


def test_regression_equals_scipy():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=80).round(1)  # with ties
    predicted = truth + rng.normal(size=80)
    assert metrics.regression_scores(truth, predicted) == pytest.approx(
        {
            "pearson": stats.pearsonr(truth, predicted)[0],
            "spearman": stats.spearmanr(truth, predicted)[0],
            "r2": theirs.r2_score(truth, predicted),
        }
    )
    assert math.isnan(metrics.regression_scores(truth, np.ones(80))["pearson"])


def test_multilabel_equals_scikit_learn():
    rng = np.random.default_rng(2)
    truth = rng.integers(2, size=(60, 4))
    truth[:, 3] = 0  # no positive: AUROC is not defined there
    scores = (rng.random((60, 4)) + truth) / 2
    found = metrics.multilabel_scores(truth, scores)
    assert found["f1"] == pytest.approx(theirs.f1_score(truth, scores >= 0.5, average="macro", zero_division=0))
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(truth[:, :3], scores[:, :3], average="macro"))
    assert found["auprc"] == pytest.approx(theirs.average_precision_score(truth[:, :3], scores[:, :3], average="macro"))
    assert found["accuracy"] == pytest.approx(1 - theirs.hamming_loss(truth, scores >= 0.5))


def test_intervals_cover_and_shrink():
    """Accuracy of 0.7 on n rows: the interval is near 0.7 +- 1.96 sqrt(0.21 / n)."""
    for count in (400, 1600):
        right = np.arange(count) % 10 < 7
        found = metrics.with_intervals(lambda one: {"accuracy": float(one.mean())}, right)["accuracy"]
        assert found.value == pytest.approx(0.7)
        half = 1.96 * math.sqrt(0.21 / count)
        assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.3 * half)
    again = metrics.with_intervals(lambda one: {"accuracy": float(one.mean())}, right)["accuracy"]
    assert again == found and str(again).startswith("0.7000 [0.6")


def test_intervals_of_what_is_rarely_defined():
    """One positive of three rows: most resamples of AUROC have both classes; of one class none has."""
    scores = np.eye(2)[[0, 1, 0]]
    assert metrics.with_intervals(metrics.classification_scores, np.array([0, 1, 0]), scores)["auroc"].low == 1.0
    assert math.isnan(metrics.with_intervals(metrics.classification_scores, np.zeros(3, int), scores, num_bootstrap=20)["auroc"].low)
    with pytest.raises(ConfigError):
        metrics.with_intervals(metrics.classification_scores, np.zeros(0, int), scores[:0])
