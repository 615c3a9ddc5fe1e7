"""One contestant on one task with one seed and fold: its result.json, computed or as it is there already, and what several seeds give."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dnapretrain import __version__
from dnapretrain.adapt.backbones.encoding import OnLong
from dnapretrain.adapt.benchmarks.baselines import BASELINES, Parts, linear_model, run_baseline
from dnapretrain.adapt.benchmarks.frozen import frozen_features
from dnapretrain.adapt.benchmarks.suites import SuiteTask, task_settings
from dnapretrain.adapt.metrics import plain
from dnapretrain.adapt.sequences.splits import make_splits, table_digest
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.finetune import (
    RESULT,
    FinetuneSettings,
    classifier_encoder,
    mean_interval,
    run_finetune,
    scores_with_intervals,
)
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.errors import ConfigError

DONE = "done.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is run of a suite."""

    seeds: tuple[int, ...] = (1, 2, 3)
    from_scratch: bool = False
    """Beside each model, the same architecture from random weights, all of them learning (unless frozen)."""
    frozen: tuple[int, ...] = ()
    """Layers: instead of fine-tuning, a linear model on the means of their hidden states, see frozen.py."""
    baselines: tuple[str, ...] = BASELINES
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Over the suite's hyperparameters."""
    max_rows: int | None = None
    """Of each split, drawn at random: for a quick look."""
    on_long: OnLong = "error"
    device: str = "cpu"
    dtype: str = "auto"

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        if unknown := set(self.baselines) - set(BASELINES):
            raise ConfigError(f"baseline = {min(unknown)} is none of {', '.join(BASELINES)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: name each once, and one at least.")
        if self.max_rows is not None and self.max_rows < 20:
            raise ConfigError(f"max_rows = {self.max_rows} is too few: 20 is the least.")

    def of_task(self, task: SuiteTask, seed: int, from_scratch: bool) -> FinetuneSettings:
        """Settings of one seed."""
        changes = {**self.changes, "on_long": self.on_long, "device": self.device, "dtype": self.dtype, "keep": "none"}
        if from_scratch:
            changes |= {"from_scratch": True, "method": "full"}
        return replace(task_settings(task, changes), seeds=(seed,))


@dataclass(frozen=True)
class TaskTables:
    """What is on disk of a task."""

    task: SuiteTask
    train: SequenceTable
    valid: SequenceTable | None
    test: SequenceTable
    notes: tuple[str, ...]
    """Why its numbers are not those of the suite."""
    shared: dict[str, dict[str, int]]

    @property
    def digests(self) -> dict[str, str]:
        """Of each table."""
        named = (("train", self.train), ("valid", self.valid), ("test", self.test))
        return {name: table_digest(table) for name, table in named if table is not None}


@dataclass(frozen=True)
class Unit:
    """One contestant on one task with one seed and fold: what a process computes by itself, and keeps in a folder of its own."""

    task: TaskTables
    label: str
    """Of the contestant."""
    seed: int
    fold: int | None = None
    """Where the suite has folds; None: there are none."""
    baseline: str = ""
    """One of BASELINES; "": the model is fine-tuned."""
    from_scratch: bool = False
    folder: Path | None = None
    """Of the model; of a baseline, where it takes the model's tokenizer."""
    digest: str = ""
    """Of the folder's weights; of random weights and tokens that of its other files alone."""

    def place(self, output: Path) -> Path:
        """Its folder."""
        place = output / self.label.replace(" ", "_") / self.task.task.name / f"seed_{self.seed}"
        return place if self.fold is None else place / f"fold_{self.fold}"

    def wanted(self, settings: BenchmarkSettings) -> dict[str, Any]:
        """All that its result depends on."""
        common = {"digests": self.task.digests, "dnapretrain": __version__}
        if self.baseline:
            return {"baseline": self.baseline, "seed": self.seed, "tokenizer": self.digest, **common}
        own = settings.of_task(self.task.task, self.seed, self.from_scratch)
        if settings.frozen:
            how = {"layers": list(settings.frozen), "device": own.device, "dtype": own.loop.dtype, "on_long": own.on_long}
            seed = {"random_weights": self.seed} if self.from_scratch else {}
            splits = {name: getattr(own, name) for name in ("valid_fraction", "split_seed", "num_bootstrap")}
            return {"model_digest": self.digest, "frozen": how, **seed, **splits, **common}
        fold = {} if self.fold is None else {"fold": self.fold}
        return {"model_digest": self.digest, "settings": plain(asdict(own)), **fold, **common}

    def kept(self, output: Path, settings: BenchmarkSettings) -> dict[str, Any] | None:
        """What was computed there, if of the same settings, data and weights."""
        try:
            found = json.loads((self.place(output) / DONE).read_text())
        except (OSError, ValueError):
            return None
        return dict(found["test"]) if found.get("of") == json.loads(json.dumps(self.wanted(settings))) else None


def run_unit(unit: Unit, output: Path, settings: BenchmarkSettings, say: Say) -> dict[str, Any]:
    """Run name -> metrics of the test rows. What is in the unit's folder, of other settings or not finished, makes room."""
    place = unit.place(output)
    shutil.rmtree(place, ignore_errors=True)
    is_linear = unit.baseline or settings.frozen
    test = _without_finetuning(unit, place, settings) if is_linear else _model(unit, place, settings)
    metric = unit.task.task.metric
    fold = "" if unit.fold is None else f", fold {unit.fold}"
    values = [run[metric]["value"] for run in test.values()]
    say(f"{unit.task.task.name}: {unit.label}, seed {unit.seed}{fold}: {metric} {sum(values) / len(values):.4f}")
    write_whole(place / DONE, json.dumps({"of": unit.wanted(settings), "test": plain(test)}))  # in one step: now it is done
    return dict(plain(test))


def _model(unit: Unit, place: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    task, own = unit.task, settings.of_task(unit.task.task, unit.seed, unit.from_scratch)
    assert unit.folder is not None
    valid = None if own.num_folds else task.valid
    folds = None if unit.fold is None else (unit.fold,)
    found = run_finetune(unit.folder, task.train, valid, task.test, place, own, shared=task.shared, folds=folds)
    return {run["name"]: run["test"] for run in found["runs"]}


def _without_finetuning(unit: Unit, place: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    """A baseline, or a linear model on frozen hidden states."""
    task, own = unit.task, task_settings(unit.task.task, settings.changes)
    target = Target.of(task.train, own.task)
    train, valid = task.train, task.valid
    if valid is None:
        classes = target.classes_for_folds(target.truth(train))
        [split] = make_splits(train, False, False, 0, own.valid_fraction, own.split_seed, classes)
        assert split.valid is not None
        train, valid = task.train.select(split.train.tolist()), task.train.select(split.valid.tolist())
    parts = Parts(train, valid, task.test)
    if unit.baseline:
        encoder = classifier_encoder(unit.folder) if unit.folder else None
        predicted, about = run_baseline(unit.baseline, parts, target, encoder, unit.seed)
    else:
        assert unit.folder is not None
        random_weights = unit.seed if unit.from_scratch else None
        tables = (parts.train, parts.valid, parts.test)
        features = frozen_features(unit.folder, tables, settings.frozen, random_weights, settings.device, settings.dtype, settings.on_long)
        predicted, about = linear_model(features, parts, target)
    scores = scores_with_intervals(target, target.truth(task.test), list(predicted), own.num_bootstrap)
    place.mkdir(parents=True, exist_ok=True)
    (place / RESULT).write_text(json.dumps(plain({"about": about, "test": scores}), indent=1) + "\n")
    return {f"seed_{unit.seed}": scores}


def combine(seeds: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """The metric over seeds and folds: `value`, `low`, `high`, and what the interval is over.

    One run: its bootstrap interval over the test rows; several: that of the mean over the runs.
    """
    runs = [run[metric] for seed in seeds for run in seed.values()]
    values = [math.nan if run["value"] is None else float(run["value"]) for run in runs]
    if len(runs) == 1:
        low, high = (math.nan if runs[0][name] is None else runs[0][name] for name in ("low", "high"))
        return {"value": values[0], "low": low, "high": high, "values": values, "interval": "test rows"}
    mean = mean_interval(values)
    return {"value": mean["mean"], "low": mean["low"], "high": mean["high"], "values": values, "interval": "runs"}
