"""One contestant on one task with one seed: its result.json, computed or as it is there already, and what several seeds give."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dnapretrain import __version__
from dnapretrain.adapt.baselines import BASELINES, Parts, run_baseline
from dnapretrain.adapt.finetune import (
    RESULT,
    FinetuneSettings,
    classifier_encoder,
    mean_interval,
    run_finetune,
    scores_with_intervals,
)
from dnapretrain.adapt.metrics import plain
from dnapretrain.adapt.splits import make_splits, table_digest
from dnapretrain.adapt.suites import SuiteTask, task_settings
from dnapretrain.adapt.tables import SequenceTable
from dnapretrain.adapt.targets import Target
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.errors import ConfigError

DONE = "done.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is run of a suite."""

    seeds: tuple[int, ...] = (1, 2, 3)
    from_scratch: bool = False
    """Beside each model, the same architecture from random weights, all of them learning."""
    baselines: tuple[str, ...] = BASELINES
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Over the suite's hyperparameters."""
    max_rows: int | None = None
    """Of each split, drawn at random: for a quick look."""
    on_long: str = "error"
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


def _folder(output: Path, contestant: str, task: TaskTables, seed: int) -> Path:
    return output / contestant.replace(" ", "_") / task.task.name / f"seed_{seed}"


def model_seed(
    folder: Path,
    digest: str,
    task: TaskTables,
    label: str,
    seed: int,
    from_scratch: bool,
    output: Path,
    settings: BenchmarkSettings,
    say: Say,
) -> dict[str, Any]:
    """Metrics of the test rows of each fold, by the model in `folder`, whose weights have that digest."""
    place, own = _folder(output, label, task, seed), settings.of_task(task.task, seed, from_scratch)
    wanted = {"model_digest": digest, "settings": plain(asdict(own)), "digests": task.digests, "dnapretrain": __version__}
    if (there := _there(place, wanted)) is not None:
        return there
    valid = None if own.num_folds else task.valid
    found = run_finetune(folder, task.train, valid, task.test, place, own, shared=task.shared)
    metric = task.task.metric
    say(f"{task.task.name}: {label}, seed {seed}: {metric} {found['summary']['test'][metric]['mean']:.4f}")
    return _keep(place, wanted, {run["name"]: run["test"] for run in found["runs"]})


def baseline_seed(
    baseline: str,
    label: str,
    task: TaskTables,
    seed: int,
    folder: Path | None,
    digest: str,
    output: Path,
    settings: BenchmarkSettings,
    say: Say,
) -> dict[str, Any]:
    """The same of a baseline; `folder` is that of the model whose tokenizer it uses, where it uses one."""
    place = _folder(output, label, task, seed)
    own = task_settings(task.task, settings.changes)
    wanted = {"baseline": baseline, "seed": seed, "tokenizer": digest, "digests": task.digests, "dnapretrain": __version__}
    if (there := _there(place, wanted)) is not None:
        return there
    target = Target.of(task.train, own.task)
    train, valid = task.train, task.valid
    if valid is None:
        classes = target.classes_for_folds(target.truth(train))
        [split] = make_splits(train, False, False, 0, own.valid_fraction, own.split_seed, classes)
        assert split.valid is not None
        train, valid = task.train.select(split.train.tolist()), task.train.select(split.valid.tolist())
    encoder = classifier_encoder(folder) if folder else None
    predicted, about = run_baseline(baseline, Parts(train, valid, task.test), target, encoder, seed)
    scores = scores_with_intervals(target, target.truth(task.test), list(predicted), own.num_bootstrap)
    say(f"{task.task.name}: {label}, seed {seed}: {task.task.metric} {scores[task.task.metric]['value']:.4f}")
    place.mkdir(parents=True, exist_ok=True)
    (place / RESULT).write_text(json.dumps(plain({"about": about, "test": scores}), indent=1) + "\n")
    return _keep(place, wanted, {f"seed_{seed}": scores})


def _there(place: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What was computed there, if of the same settings, data and weights. Else its results make room."""
    try:
        found = json.loads((place / DONE).read_text())
    except (OSError, ValueError):
        found = {}
    if found.get("of") == json.loads(json.dumps(wanted)):
        return dict(found["test"])
    shutil.rmtree(place, ignore_errors=True)  # of other settings, or not finished
    return None


def _keep(place: Path, wanted: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Mark the folder as done, in one step."""
    write_whole(place / DONE, json.dumps({"of": wanted, "test": plain(test)}))
    return dict(plain(test))


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
