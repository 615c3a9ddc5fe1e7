"""The probes and their searches: a linear model or a small MLP on frozen vectors, tuned by a tree-structured Parzen estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.extras import need
from dnapretrain.adapt.metrics import classification_scores, regression_scores

PROBES = ("logistic", "mlp")
"""For regression `logistic` is ridge regression."""
WHY = "probing"
MLP_STEPS, MLP_PATIENCE = 300, 10
LEAST_TO_STOP_EARLY = 200
"""Rows of which a tenth is a usable sign to stop an MLP at."""


@dataclass(frozen=True)
class ProbeTask:
    """What is learned, on the vectors of one layer."""

    vectors_NH: NDArray[np.float32]
    truth_N: NDArray[Any]
    """Classes from 0, or numbers."""
    num_classes: int
    """0: regression."""
    folds_N: NDArray[np.int64]
    metric: str
    seed: int

    @property
    def num_folds(self) -> int:
        """Folds."""
        return int(self.folds_N.max()) + 1

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
        """All metrics."""
        return classification_scores(truth, predicted) if self.num_classes else regression_scores(truth, predicted)


@dataclass
class ProbeResult:
    """The best settings of one probe on one layer."""

    parameters: dict[str, Any]
    validation: list[dict[str, float]]
    """All metrics of each fold, by the model that was fitted on the others."""
    models: list[Any] = field(repr=False)
    """These models."""
    trials: list[dict[str, Any]] = field(repr=False)
    """Settings and mean metric of each trial."""
    unconverged: int = 0
    """Fits that ended at their limit of steps."""


def search(task: ProbeTask, probe: str, num_trials: int) -> ProbeResult:
    """The settings with the best mean metric over the folds, of `num_trials`: scikit-learn's defaults, then what TPE proposes.

    A fold's model sees the rows of the other folds alone, its scaler too. Raises ConfigError without optuna or scikit-learn.
    """
    optuna = need("optuna", WHY)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=task.seed))
    study.enqueue_trial(_defaults(probe, task.num_classes))
    unconverged = 0

    def objective(trial: Any) -> float:
        nonlocal unconverged
        _, rows, failed = _over_folds(task, probe, _suggest(trial, probe, task.num_classes))
        unconverged += failed
        return _mean_metric(rows, task.metric)

    study.optimize(objective, n_trials=num_trials)
    models, rows, _ = _over_folds(task, probe, study.best_params)
    trials = [{"value": trial.value, **trial.params} for trial in study.trials]
    return ProbeResult(dict(study.best_params), rows, models, trials, unconverged)


def _mean_metric(rows: list[dict[str, float]], metric: str) -> float:
    """An undefined metric (a constant prediction, a fold of one class) counts as the worst there is."""
    return float(np.mean([-1.0 if np.isnan(row[metric]) else row[metric] for row in rows]))


def _over_folds(task: ProbeTask, probe: str, parameters: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, float]], int]:
    models, rows, failed = [], [], 0
    for fold in range(task.num_folds):
        out = task.folds_N == fold
        model, unconverged = fit(task, probe, parameters, ~out)
        models.append(model)
        failed += unconverged
        rows.append(task.scores(task.truth_N[out], predict(model, task.vectors_NH[out], task.num_classes)))
    return models, rows, failed


def fit(task: ProbeTask, probe: str, parameters: Mapping[str, Any], chosen_N: NDArray[np.bool_]) -> tuple[Any, bool]:
    """A scaler and the probe, fitted on the chosen rows; and whether it ended at its limit of steps."""
    exceptions = need("sklearn.exceptions", WHY)
    model = _estimator(probe, parameters, task.num_classes, task.seed, int(chosen_N.sum()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        model.fit(task.vectors_NH[chosen_N], task.truth_N[chosen_N])
    return model, any(issubclass(one.category, exceptions.ConvergenceWarning) for one in said)


def predict(model: Any, vectors_NH: NDArray[np.float32], num_classes: int) -> NDArray[np.float64]:
    """Probabilities [N, C], 0 of a class that the model did not see; of regression numbers [N]."""
    if not num_classes:
        return np.asarray(model.predict(vectors_NH), np.float64)
    found = np.zeros((len(vectors_NH), num_classes))
    found[:, model.classes_.astype(int)] = model.predict_proba(vectors_NH)
    return found


def _defaults(probe: str, num_classes: int) -> dict[str, Any]:
    """Those of scikit-learn; an MLP of 64."""
    if probe == "mlp":
        return {"hidden": 64, "alpha": 1e-4, "learning_rate": 1e-3}
    return {"C": 1.0} if num_classes else {"alpha": 1.0}


def _suggest(trial: Any, probe: str, num_classes: int) -> dict[str, Any]:
    if probe == "mlp":
        return {
            "hidden": trial.suggest_categorical("hidden", [32, 64, 128, 256]),
            "alpha": trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        }
    return (
        {"C": trial.suggest_float("C", 1e-4, 1e2, log=True)}
        if num_classes
        else {"alpha": trial.suggest_float("alpha", 1e-3, 1e4, log=True)}
    )


def _estimator(probe: str, parameters: Mapping[str, Any], num_classes: int, seed: int, num_rows: int) -> Any:
    linear, network = need("sklearn.linear_model", WHY), need("sklearn.neural_network", WHY)
    pipeline, scaling = need("sklearn.pipeline", WHY), need("sklearn.preprocessing", WHY)
    builders: dict[tuple[str, bool], Callable[[], Any]] = {
        ("logistic", True): lambda: linear.LogisticRegression(C=parameters["C"], max_iter=1000, random_state=seed),
        ("logistic", False): lambda: linear.Ridge(alpha=parameters["alpha"]),
        ("mlp", True): lambda: network.MLPClassifier(**settings),
        ("mlp", False): lambda: need("sklearn.compose", WHY).TransformedTargetRegressor(
            network.MLPRegressor(**settings), transformer=scaling.StandardScaler()
        ),
    }
    settings = {
        "hidden_layer_sizes": (parameters.get("hidden", 0),),
        "alpha": parameters.get("alpha", 0),
        "learning_rate_init": parameters.get("learning_rate", 0),
        "max_iter": MLP_STEPS,
        "n_iter_no_change": MLP_PATIENCE,
        "early_stopping": num_rows >= LEAST_TO_STOP_EARLY,
        "random_state": seed,
    }
    return pipeline.make_pipeline(scaling.StandardScaler(), builders[probe, bool(num_classes)]())
