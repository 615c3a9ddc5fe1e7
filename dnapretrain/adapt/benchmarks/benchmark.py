"""A suite's tasks that are on disk, each fine-tuned over seeds, beside baselines without pretraining and published numbers.

Every contestant, task and seed has a result.json of its own under the output folder; what is there with the same settings, data and
weights is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain import __version__
from dnapretrain.adapt.backbones.folder import as_hf_folder, is_encoder, load_model
from dnapretrain.adapt.benchmarks.benchmark_jobs import run_units
from dnapretrain.adapt.benchmarks.benchmark_marks import RANDOM, TOKENS
from dnapretrain.adapt.benchmarks.benchmark_runs import BenchmarkSettings, Say, TaskTables, Unit, combine
from dnapretrain.adapt.benchmarks.entrants import Entrant, entrants
from dnapretrain.adapt.benchmarks.suites import Suite, SuiteTask, find_split, task_settings
from dnapretrain.adapt.embedding.embedding_cache import folder_digest
from dnapretrain.adapt.metrics import plain
from dnapretrain.adapt.sequences.splits import leakage, overlapping_rows, window_hashes
from dnapretrain.adapt.sequences.tables import SequenceTable, TableOptions, read_table
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.errors import ConfigError

BENCHMARK, TASK_LEAKAGE = "benchmark.json", "leakage.json"


def load_task(task: SuiteTask, suite: Suite, data: Path, max_rows: int | None) -> TaskTables | str:
    """The tables of a task, or what is missing of it.

    No test table: the validation table is the test table, and validation rows come from the training rows; said in `notes`.
    """
    paths = {name: find_split(data / task.name, stem) for name, stem in suite.splits.items()}
    if paths["train"] is None:
        return f"no {suite.splits['train']} table in {data / task.name}"
    notes = []
    if paths["test"] is None:
        if paths.get("valid") is None:
            return f"no {suite.splits['test']} table in {data / task.name}"
        paths = {"train": paths["train"], "test": paths["valid"]}
        notes.append(f"judged on {suite.splits['valid']}, for there is no {suite.splits['test']}")
    options = TableOptions(needs_labels=True)
    tables = {name: read_table(path, options) for name, path in paths.items() if path is not None}
    if max_rows is not None and any(len(table) > max_rows for table in tables.values()):
        tables = {name: _thinned(table, max_rows) for name, table in tables.items()}
        notes.append(f"at most {max_rows:,} rows of each table")
    target = Target.of(tables["train"], task_settings(task).task)
    for table in tables.values():
        target.truth(table)  # labels that training rows lack are found before hours of training
    return TaskTables(task, tables["train"], tables.get("valid"), tables["test"], tuple(notes), leakage(tables))


def _thinned(table: SequenceTable, max_rows: int) -> SequenceTable:
    if len(table) <= max_rows:
        return table
    return table.select(sorted(np.random.default_rng(0).permutation(len(table))[:max_rows].tolist()))


def run_benchmark(
    models: Sequence[str | Path],
    suite: Suite,
    tasks: Sequence[SuiteTask],
    data: Path,
    output: Path,
    settings: BenchmarkSettings | None = None,
    say: Say = lambda line: None,
    checkpoints: str | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run what is on disk, write `output`/benchmark.json, and return what it holds. Raises ConfigError where nothing is.

    checkpoints: see `entrants`. jobs: seeds and folds at the same time, see `run_units`.
    """
    settings = settings or BenchmarkSettings()
    settings.check()
    taking_part = entrants(models, checkpoints)
    found: list[TaskTables] = []
    missing: dict[str, str] = {}
    for task in tasks:
        loaded = load_task(task, suite, data, settings.max_rows)
        if isinstance(loaded, str):
            missing[task.name] = loaded
            say(f"{task.name}: skipped, {loaded}")
        else:
            found.append(loaded)
    if not found:
        raise ConfigError(f"{data} has no table of {suite.title}: nothing to run. {next(iter(missing.values()), '')}.")
    output.mkdir(parents=True, exist_ok=True)
    between = shared_between(found, output / TASK_LEAKAGE)
    cells = _cells(taking_part, found, output, settings, jobs, say)
    result = {
        "dnapretrain": __version__,
        "suite": suite.title,
        "reference": suite.reference,
        "models": {one.name: str(one.path) for one in taking_part},
        "series": [
            {"name": one.name, "run": one.family, "step": one.step, "consumed_tokens": one.consumed_tokens}
            for one in taking_part
            if one.step is not None
        ],
        "settings": asdict(settings),
        "tasks": [
            {
                "name": one.task.name,
                "metric": one.task.metric,
                "notes": list(one.notes),
                "rows": {"train": len(one.train), "valid": len(one.valid) if one.valid else 0, "test": len(one.test)},
                "leakage": one.shared,
                "contestants": cells[one.task.name],
                "published": dict(one.task.published),
            }
            for one in found
        ],
        "missing": missing,
        "leakage_between_tasks": between,
        "sources": dict(suite.sources),
    }
    (output / BENCHMARK).write_text(json.dumps(plain(result), indent=1) + "\n")
    return result


def _cells(
    models: Sequence[Entrant], tasks: Sequence[TaskTables], output: Path, settings: BenchmarkSettings, jobs: int, say: Say
) -> dict[str, dict[str, Any]]:
    """Task -> contestant -> what `combine` gives."""
    with ExitStack() as exports:
        units: list[Unit] = []
        last = {model.family: model for model in models}
        for model in models:
            folder = exports.enter_context(as_hf_folder(model.path, say))
            if jobs > 1:
                load_model(folder, "cpu", is_encoder(folder))  # its code is in transformers' cache before processes look there
            is_last = last[model.family] is model
            units += [unit for one in tasks for unit in _units_of_model(one, model, folder, is_last, settings)]
        for baseline in [baseline for baseline in settings.baselines if baseline != "tokens"]:
            seeds = settings.seeds if baseline == "cnn" else (0,)
            units += [Unit(one, baseline, seed, baseline=baseline) for one in tasks for seed in seeds]
        found = run_units(units, output, settings, jobs, say)
    cells: dict[str, dict[str, Any]] = {one.task.name: {} for one in tasks}
    for unit, test in zip(units, found, strict=True):
        cells[unit.task.task.name].setdefault(unit.label, []).append(test)
    return {name: {label: combine(tests, _metric(tasks, name)) for label, tests in own.items()} for name, own in cells.items()}


def _metric(tasks: Sequence[TaskTables], name: str) -> str:
    return next(one.task.metric for one in tasks if one.task.name == name)


def _units_of_model(task: TaskTables, model: Entrant, folder: Path, is_last: bool, settings: BenchmarkSettings) -> list[Unit]:
    """The model fine-tuned, and once for each series (with its last checkpoint) random weights and its tokens."""
    digest = folder_digest(folder)
    num_folds = 0 if settings.frozen else settings.of_task(task.task, settings.seeds[0], False).num_folds
    rounds = [(seed, fold) for seed in settings.seeds for fold in (range(num_folds) if num_folds else (None,))]
    own_rounds = [(0, None)] if settings.frozen else rounds  # nothing of it is drawn
    units = [Unit(task, model.name, seed, fold, folder=folder, digest=digest) for seed, fold in own_rounds]
    untrained = folder_digest(folder, weights=False)
    if settings.from_scratch and is_last:
        label = model.family + RANDOM
        units += [Unit(task, label, seed, fold, from_scratch=True, folder=folder, digest=untrained) for seed, fold in rounds]
    if "tokens" in settings.baselines and is_last:
        units.append(Unit(task, TOKENS + model.family, 0, baseline="tokens", folder=folder, digest=untrained))
    return units


def shared_between(tasks: Sequence[TaskTables], cache: Path) -> list[dict[str, Any]]:
    """Test rows of one task with 50 bases in a row in the training rows of another; pairs that share something. Kept in `cache`."""
    digests = {task.task.name: task.digests for task in tasks}
    try:
        there = json.loads(cache.read_text())
        if there["digests"] == digests:
            return list(there["pairs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    pairs = []
    for learned in tasks:
        hashes = window_hashes(learned.train.sequences)
        for judged in tasks:
            if judged is not learned and (count := len(overlapping_rows(judged.test.sequences, hashes))):
                pairs.append({"test": judged.task.name, "train": learned.task.name, "rows": len(judged.test), "overlapping": count})
    cache.write_text(json.dumps({"digests": digests, "pairs": pairs}))
    return pairs
