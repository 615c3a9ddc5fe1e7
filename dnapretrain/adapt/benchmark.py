"""A suite's tasks that are on disk, each fine-tuned over seeds, beside baselines without pretraining and published numbers.

Every contestant, task and seed has a result.json of its own under the output folder; what is there with the same settings, data and
weights is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain import __version__
from dnapretrain.adapt.benchmark_runs import BenchmarkSettings, Say, TaskTables, baseline_seed, combine, model_seed
from dnapretrain.adapt.embedding_cache import folder_digest
from dnapretrain.adapt.folder import as_hf_folder
from dnapretrain.adapt.metrics import plain
from dnapretrain.adapt.splits import leakage, overlapping_rows, window_hashes
from dnapretrain.adapt.suites import Suite, SuiteTask, find_split, task_settings
from dnapretrain.adapt.tables import SequenceTable, TableOptions, read_table
from dnapretrain.adapt.targets import Target
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
) -> dict[str, Any]:
    """Run what is on disk, write `output`/benchmark.json, and return what it holds. Raises ConfigError where nothing is."""
    settings = settings or BenchmarkSettings()
    settings.check()
    names = model_names(models)
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
    cells = _cells(names, found, output, settings, say)
    result = {
        "dnapretrain": __version__,
        "suite": suite.title,
        "reference": suite.reference,
        "models": {name: str(model) for name, model in names.items()},
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
    models: Mapping[str, Path], tasks: Sequence[TaskTables], output: Path, settings: BenchmarkSettings, say: Say
) -> dict[str, dict[str, Any]]:
    """Task -> contestant -> what `combine` gives."""
    cells: dict[str, dict[str, Any]] = {one.task.name: {} for one in tasks}

    def put(one: TaskTables, label: str, seeds: Sequence[Mapping[str, Any]]) -> None:
        cells[one.task.name][label] = combine(seeds, one.task.metric)

    for name, model in models.items():
        with as_hf_folder(model, say) as folder:
            digest = folder_digest(folder)
            kinds = [(name, False), *([(f"{name} (random weights)", True)] if settings.from_scratch else [])]
            for one in tasks:
                for label, scratch in kinds:
                    put(
                        one,
                        label,
                        [model_seed(folder, digest, one, label, seed, scratch, output, settings, say) for seed in settings.seeds],
                    )
                if "tokens" in settings.baselines:
                    label = f"tokens of {name}"
                    put(one, label, [baseline_seed("tokens", label, one, 0, folder, digest, output, settings, say)])
    for baseline in [baseline for baseline in settings.baselines if baseline != "tokens"]:
        for one in tasks:
            seeds = settings.seeds if baseline == "cnn" else (0,)
            put(one, baseline, [baseline_seed(baseline, baseline, one, seed, None, "", output, settings, say) for seed in seeds])
    return cells


def model_names(models: Sequence[str | Path]) -> dict[str, Path]:
    """A short name of each: that of the folder; with its parent's where two are alike. Raises ConfigError for one named twice."""
    paths = [Path(model).resolve() for model in models]
    if len(set(paths)) < len(paths):
        raise ConfigError("a model is named twice.")
    names = [path.name for path in paths]
    names = [name if names.count(name) == 1 else f"{path.parent.name}-{name}" for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(names):
        raise ConfigError(f"models {', '.join(names)} have names that are alike. Rename a folder.")
    return dict(zip(names, (Path(model) for model in models), strict=True))


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
