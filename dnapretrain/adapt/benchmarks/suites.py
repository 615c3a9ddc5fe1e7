"""Benchmark suites as data: tasks, files of their splits, metric, hyperparameters, and published numbers with where they are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from dnapretrain.adapt.sequences.targets import METRICS
from dnapretrain.adapt.training.classifier_loop import LoopSettings
from dnapretrain.adapt.training.finetune import FinetuneSettings, learning_rate
from dnapretrain.adapt.training.heads import Adapter
from dnapretrain.errors import ConfigError

SUITES = Path(__file__).resolve().parents[2] / "suites"
SPLITS = ("train", "valid", "test")
SUFFIXES = (".csv", ".tsv", ".parquet", ".fa", ".fasta", ".fna")
PACKED = ("", ".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite."""

    name: str
    """And its folder."""
    metric: str
    settings: Mapping[str, Any]
    """Of FinetuneSettings, LoopSettings and Adapter, by name."""
    published: Mapping[str, float]
    """Model -> value of the metric."""


@dataclass(frozen=True)
class Suite:
    """A data file of suites/, or one like it."""

    title: str
    reference: str
    splits: Mapping[str, str]
    """train, valid, test -> name of the file without its ending."""
    sources: Mapping[str, str]
    """Model -> where its published numbers are from."""
    tasks: tuple[SuiteTask, ...]

    def choose(self, names: Sequence[str] | None) -> tuple[SuiteTask, ...]:
        """Tasks by name, or those in a folder (`tf`); None: all. Raises ConfigError for one that is not there."""
        if names is None:
            return self.tasks
        found: list[SuiteTask] = []
        for name in names:
            own = [task for task in self.tasks if task.name == name or task.name.startswith(f"{name}/")]
            if not own:
                raise ConfigError(f"{self.title} has no task {name}; it has {', '.join(task.name for task in self.tasks)}.")
            found += [task for task in own if task not in found]
        return tuple(found)


def suite_names() -> list[str]:
    """Those that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """A suite of the package, or a YAML file. Raises ConfigError for unknown names, keys and metrics, and numbers without a source."""
    path = SUITES / f"{name}.yaml"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise ConfigError(f"--suite {name} is neither a suite ({', '.join(suite_names())}) nor a file.")
    try:
        given = yaml.safe_load(path.read_text())
        known = {"title", "reference", "splits", "metric", "metrics", "settings", "sources", "tasks"}
        if unknown := set(given) - known:
            raise ConfigError(f"{path}: unknown key '{min(unknown)}'; keys are {', '.join(sorted(known))}.")
        common, metrics = given.get("settings") or {}, given.get("metrics") or {}
        tasks = []
        for task, about in given["tasks"].items():
            about = about or {}
            if unknown := set(about) - {"settings", "published"}:
                raise ConfigError(f"{path}: unknown key '{min(unknown)}' of task {task}; keys are settings, published.")
            settings = {**common, **(about.get("settings") or {})}
            published = about.get("published") or {}
            tasks.append(SuiteTask(str(task), metrics.get(task, given["metric"]), settings, published))
        suite = Suite(given["title"], given["reference"], given["splits"], given.get("sources") or {}, tuple(tasks))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no suite: {' '.join(str(error).split())}. See docs/benchmark.md.") from None
    _check(path, suite)
    return suite


def _check(path: Path, suite: Suite) -> None:
    if "train" not in suite.splits or "test" not in suite.splits or set(suite.splits) - set(SPLITS):
        raise ConfigError(f"{path}: splits must name train and test, may name valid, and nothing else.")
    for task in suite.tasks:
        settings = task_settings(task)
        settings.check()
        if settings.task == "causal":
            raise ConfigError(f"{path}: task {task.name} is causal; a suite compares predictions of labels. Use `dnapretrain finetune`.")
        if task.metric not in METRICS[settings.task]:
            raise ConfigError(f"{path}: task {task.name} has metric {task.metric}, which is none of {', '.join(METRICS[settings.task])}.")
        for model, value in task.published.items():
            if model not in suite.sources:
                raise ConfigError(f"{path}: task {task.name} has a number of {model}, and sources does not say where it is from.")
            if not isinstance(value, float | int) or not -1 <= value <= 1:
                raise ConfigError(f"{path}: task {task.name}: {model} has {value}; numbers are shares, from -1 to 1.")


def task_settings(task: SuiteTask, changes: Mapping[str, Any] | None = None) -> FinetuneSettings:
    """The task's hyperparameters with `changes` over them. Raises ConfigError for a name that is no setting.

    A learning rate is of its method: where `changes` name another method and no rate, it is that method's default.
    """
    values = {**task.settings, **(changes or {})}
    if changes and "method" in changes and changes["method"] != task.settings.get("method", "full") and "lr" not in changes:
        values["lr"] = learning_rate(str(changes["method"]))
    values.setdefault("lr", learning_rate(str(values.get("method", "full"))))
    loop, adapter, own = LoopSettings(), Adapter(), FinetuneSettings()
    names = {kind: {field.name for field in fields(kind)} for kind in (LoopSettings, Adapter, FinetuneSettings)}
    for name, value in values.items():
        if name == "betas":
            value = tuple(value)
        if name in names[LoopSettings]:
            loop = replace(loop, **{name: value})
        elif name in names[Adapter]:
            adapter = replace(adapter, **{name: value})
        elif name in names[FinetuneSettings] - {"loop", "adapter", "seeds"}:
            own = replace(own, **{name: value})
        else:
            allowed = sorted((names[LoopSettings] | names[Adapter] | names[FinetuneSettings]) - {"loop", "adapter", "seeds"})
            raise ConfigError(f"{name} is no setting of fine-tuning; they are {', '.join(allowed)}.")
    return replace(own, loop=loop, adapter=adapter)


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` of --set, values as in YAML. Raises ConfigError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {text} is not NAME=VALUE.")
        number = yaml.safe_load(value)
        if isinstance(number, str):  # YAML reads 3e-5 as text
            try:
                number = float(number)
            except ValueError:
                pass
        found[name] = number
    return found


def find_split(folder: Path, stem: str) -> Path | None:
    """The file of a split, whatever its kind. Raises ConfigError where there are two."""
    found = [folder / f"{stem}{suffix}{packed}" for suffix in SUFFIXES for packed in PACKED]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise ConfigError(f"{found[0]} and {found[1].name}: which is the {stem} split? Remove one.")
    return found[0] if found else None
