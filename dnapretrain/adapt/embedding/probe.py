"""Probing, by the protocol of Nucleotide Transformer: what a frozen model's layers know of a task.

Vectors of up to ten layers, a linear probe and a small MLP on each, ten folds, settings by a tree-structured Parzen search. Settings,
layer and probe are chosen by the folds of the training table; the test table, where there is one, takes no part in that. The score of
the chosen settings on these same folds is therefore slightly optimistic, and that of the test table is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.adapt.backbones.backbone import Backbone, load_backbone, resolve_dtype
from dnapretrain.adapt.backbones.encoding import TOKENS_PER_BATCH
from dnapretrain.adapt.backbones.folder import as_hf_folder
from dnapretrain.adapt.embedding.embed import POOLINGS, EmbedSettings
from dnapretrain.adapt.embedding.embedding_cache import cached_embeddings, folder_digest
from dnapretrain.adapt.embedding.probe_models import PROBES, ProbeResult, ProbeTask, fit, predict, search
from dnapretrain.adapt.extras import need
from dnapretrain.adapt.metrics import CLASSIFICATION, REGRESSION, plain, with_intervals
from dnapretrain.adapt.pictures import draw_layers
from dnapretrain.adapt.sequences.folds import deal_folds, same_sequence_groups, shared_rows
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import natural_order
from dnapretrain.convert.families import family_of_folder
from dnapretrain.convert.folders import model_of, read_hf_config
from dnapretrain.errors import ConfigError, DataError

MAX_LAYERS = 10


@dataclass(frozen=True)
class ProbeSettings:
    """The protocol."""

    layers: tuple[int, ...] | None = None
    """None: ten at most, evenly from the embeddings to the last."""
    probes: tuple[str, ...] = PROBES
    task: str = "classification"
    metric: str = ""
    """What is searched for; "": mcc, or pearson of regression."""
    num_folds: int = 10
    num_trials: int = 20
    """Of each probe and layer; the paper has 100."""
    seed: int = 0
    workers: int = 1
    """Processes; the result does not depend on it."""
    pooling: str = "mean"
    both_strands: bool = False
    tokens_per_batch: int = TOKENS_PER_BATCH
    device: str = "cpu"
    dtype: str = "auto"
    on_long: str = "error"
    max_tokens: int | None = None
    random_weights: int | None = None

    @property
    def searched(self) -> str:
        """The metric that settings are chosen by."""
        return self.metric or ("mcc" if self.task == "classification" else "pearson")

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        known = {"classification": CLASSIFICATION, "regression": REGRESSION}
        if self.task not in known:
            raise ConfigError(f"task = {self.task} is none of {', '.join(known)}.")
        if self.searched not in known[self.task]:
            raise ConfigError(f"metric = {self.metric} is none of {', '.join(known[self.task])}.")
        if unknown := [probe for probe in self.probes if probe not in PROBES]:
            raise ConfigError(f"probe = {unknown[0]} is none of {', '.join(PROBES)}.")
        if self.pooling not in POOLINGS or self.pooling == "none":
            raise ConfigError(f"pooling = {self.pooling}: a probe needs one vector per sequence: mean, max, cls or last.")
        for name in ("num_folds", "num_trials", "workers"):
            if getattr(self, name) < (2 if name == "num_folds" else 1):
                raise ConfigError(f"{name} = {getattr(self, name)} is too few.")


def run_probe(
    model: str | Path,
    train: SequenceTable,
    test: SequenceTable | None,
    output: Path,
    settings: ProbeSettings | None = None,
    cache_folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Probe a model and write `output`/probe.json and probe.png. Returns what the JSON holds.

    cache_folder: of embeddings (default `output`/embeddings). Raises ConfigError and DataError.
    """
    settings = settings or ProbeSettings()
    settings.check()
    for module in ("sklearn", "optuna"):
        need(module, "probing")
    target = _Target.of(train, settings.task)
    truth = target.numbers(train)
    test_truth = target.numbers(test) if test else None
    groups = same_sequence_groups(train.sequences)
    folds = deal_folds(groups, settings.num_folds, settings.seed, truth if target.classes else None)
    counts = _counts(train, test, groups, truth, target)
    for line in counts["notes"]:
        say(line)
    output.mkdir(parents=True, exist_ok=True)
    layers, vectors, test_vectors = _vectors(model, train, test, settings, cache_folder or output / "embeddings", say)
    tasks = [
        ProbeTask(vectors[:, at], truth, len(target.classes), folds, settings.searched, _seed(settings.seed, layer, number))
        for at, layer in enumerate(layers)
        for number, _ in enumerate(settings.probes)
    ]
    jobs = [(layer, probe) for layer in layers for probe in settings.probes]
    results = _search_all(tasks, [probe for _, probe in jobs], settings)
    rows = [
        _row(layer, probe, task, result, test_truth, None if test_vectors is None else test_vectors[:, layers.index(layer)])
        for (layer, probe), task, result in zip(jobs, tasks, results, strict=True)
    ]
    best = max(range(len(rows)), key=lambda number: rows[number]["validation"][settings.searched]["mean"])
    found = {
        "dnapretrain": __version__,
        "model": str(model),
        "train": train.source,
        "test": test.source if test else None,
        "settings": {**asdict(settings), "metric": settings.searched},
        "classes": list(target.classes),
        **counts,
        "rows": rows,
        "best": {"layer": rows[best]["layer"], "probe": rows[best]["probe"]},
    }
    (output / "probe.json").write_text(json.dumps(plain(found), indent=1) + "\n")
    _draw(output / "probe.png", rows, settings, f"{model}: {len(train):,} sequences, {settings.num_folds} folds")
    return found


@dataclass(frozen=True)
class _Target:
    """What the label column holds."""

    column: str
    classes: tuple[str, ...]
    """Empty: numbers."""

    @classmethod
    def of(cls, table: SequenceTable, task: str) -> _Target:
        if len(table.labels) != 1:
            raise ConfigError(f"a probe learns one label column; {table.source} gives {', '.join(table.labels) or 'none'}. Name one.")
        [(column, values)] = table.labels.items()
        if task == "regression":
            return cls(column, ())
        classes = sorted(set(values), key=natural_order)
        if len(classes) < 2:
            raise DataError(f"{table.source}: all labels of column '{column}' are '{classes[0]}'. There is nothing to learn.")
        return cls(column, tuple(classes))

    def numbers(self, table: SequenceTable) -> NDArray[Any]:
        """Class numbers, or values. Raises DataError with the row."""
        if self.column not in table.labels:
            raise DataError(f"{table.source} has no label column '{self.column}', which was learned.")
        values = table.labels[self.column]
        known = {name: number for number, name in enumerate(self.classes)}
        found: list[float] = []
        for row, value in enumerate(values, 1):
            if self.classes and value not in known:
                raise DataError(
                    f"{table.source}: row {row} has label '{value}', which the training table lacks: {', '.join(self.classes)[:200]}."
                )
            try:
                found.append(known[value] if self.classes else float(value))
            except ValueError:
                raise DataError(f"{table.source}: row {row} has label '{value}', which is no number. Is it a classification?") from None
            if not math.isfinite(found[-1]):
                raise DataError(f"{table.source}: row {row} has label '{value}', which is not finite. Remove the row.")
        return np.array(found, np.int64 if self.classes else np.float64)


def _counts(
    train: SequenceTable, test: SequenceTable | None, groups: NDArray[np.int64], truth: NDArray[Any], target: _Target
) -> dict[str, Any]:
    """Sizes, and what should be known of copies among the rows."""
    notes = []
    num_groups = int(groups.max()) + 1
    if num_groups < len(train):
        notes.append(
            f"{len(train) - num_groups:,} of {len(train):,} training rows repeat another, on either strand: each stays in its fold"
        )
    conflicts = len(set(zip(groups.tolist(), truth.tolist(), strict=True))) - num_groups
    if conflicts and target.classes:
        notes.append(f"{conflicts:,} training rows have the sequence of another row and another label")
    shared = len(shared_rows(test.sequences, train.sequences)) if test else 0
    if test and shared:
        notes.append(
            f"leakage: {shared:,} of {len(test):,} test rows are also in the training table, on either strand; they are scored too"
        )
    sizes = {"num_train": len(train), "num_test": len(test) if test else 0, "num_different": num_groups}
    return {**sizes, "num_test_in_train": shared, "notes": notes}


def _vectors(
    model: str | Path, train: SequenceTable, test: SequenceTable | None, settings: ProbeSettings, folder: Path, say: Callable[[str], None]
) -> tuple[list[int], NDArray[np.float32], NDArray[np.float32] | None]:
    """Numbers of the layers, and the vectors [N, L, H] of both tables."""
    with as_hf_folder(model, say) as hf:
        options = (settings.device, settings.dtype, settings.on_long, settings.max_tokens, settings.random_weights)

        @cache
        def load() -> Backbone:
            return load_backbone(hf, *options)  # type: ignore[arg-type]

        hf_config = read_hf_config(hf)
        num_layers = model_of(hf, family_of_folder(hf_config), hf_config).num_layers
        layers = load().layer_numbers(settings.layers) if settings.layers else evenly(num_layers)
        embed = EmbedSettings(tuple(layers), settings.pooling, settings.both_strands, settings.tokens_per_batch)
        how: dict[str, Any] = {"dtype": str(resolve_dtype(settings.dtype, settings.device)), "on_long": settings.on_long}
        how |= {"max_tokens": settings.max_tokens, "random_weights": settings.random_weights}
        digest = folder_digest(hf)
        found = []
        for table in (train, test):
            if table is None:
                continue
            vectors, notes, was_there = cached_embeddings(folder, digest, load, table.sequences, embed, how)
            for note in notes:
                say(f"{table.source}: {note}")
            say(f"{table.source}: {len(table):,} sequences, {len(layers)} layers, {'from the cache' if was_there else 'embedded'}")
            found.append(vectors)
    return list(layers), found[0], found[1] if test else None


def evenly(num_layers: int) -> list[int]:
    """Layers 0 to num_layers, ten of them at most."""
    return sorted({round(layer) for layer in np.linspace(0, num_layers, min(MAX_LAYERS, num_layers + 1)).tolist()})


def _seed(seed: int, layer: int, probe: int) -> int:
    return int(np.random.SeedSequence([seed, layer, probe]).generate_state(1)[0])


def _search_all(tasks: Sequence[ProbeTask], probes: Sequence[str], settings: ProbeSettings) -> list[ProbeResult]:
    if settings.workers == 1:
        return [search(task, probe, settings.num_trials) for task, probe in zip(tasks, probes, strict=True)]
    joblib = need("joblib", "probing")
    jobs = (joblib.delayed(search)(task, probe, settings.num_trials) for task, probe in zip(tasks, probes, strict=True))
    results: list[ProbeResult] = joblib.Parallel(n_jobs=settings.workers)(jobs)
    return results


def _row(
    layer: int, probe: str, task: ProbeTask, result: ProbeResult, truth: NDArray[Any] | None, vectors: NDArray[np.float32] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": layer,
        "probe": probe,
        "parameters": result.parameters,
        "validation": _spread(result.validation),
        "unconverged_fits": result.unconverged,
        "trials": result.trials,
    }
    if truth is None or vectors is None:
        return row
    row["test_of_folds"] = _spread([task.scores(truth, predict(model, vectors, task.num_classes)) for model in result.models])
    whole, _ = fit(task, probe, result.parameters, np.ones(len(task.truth_N), bool))
    intervals = with_intervals(task.scores, truth, predict(whole, vectors, task.num_classes), seed=0)
    row["test"] = {name: asdict(interval) for name, interval in intervals.items()}
    return row


def _spread(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {name: {"mean": float(one.mean()), "sd": float(one.std(ddof=1)), "folds": one.tolist()} for name, one in values.items()}


def _draw(path: Path, rows: Sequence[dict[str, Any]], settings: ProbeSettings, title: str) -> None:
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        value = row["validation"][settings.searched]
        curves.setdefault(probe_name(row["probe"], settings.task), []).append((row["layer"], value["mean"], value["sd"]))
    draw_layers(path, curves, settings.searched.upper() if settings.searched == "mcc" else settings.searched, title)


def probe_name(probe: str, task: str) -> str:
    """For people."""
    linear = "logistic regression" if task == "classification" else "ridge regression"
    return linear if probe == "logistic" else "MLP"


def format_probe(found: dict[str, Any]) -> str:
    """The table per layer, for the terminal."""
    metric, folds = found["settings"]["metric"], found["settings"]["num_folds"]
    lines = [
        f"{'layer':>5}  {'probe':<20} {metric + f' of {folds} folds':<22} {metric + ' of test [95 %]' if found['test'] else ''}".rstrip()
    ]
    for row in found["rows"]:
        value = row["validation"][metric]
        best = "  <- best of the folds" if (row["layer"], row["probe"]) == (found["best"]["layer"], found["best"]["probe"]) else ""
        test = row.get("test", {}).get(metric)
        shown = f"{test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" if test else ""
        name = probe_name(row["probe"], found["settings"]["task"])
        mean = f"{value['mean']:.3f} +- {value['sd']:.3f}"
        lines.append(f"{row['layer']:>5}  {name:<20} {mean:<22} {shown}{best}".rstrip())
    if unconverged := sum(row["unconverged_fits"] for row in found["rows"]):
        lines.append(f"{unconverged:,} fits ended at their limit of steps")
    return "\n".join(lines)
