"""Conditional design: sequences written under each condition, and what a predictor makes of them.

The conditions are those that `finetune --task causal` taught a decoder, or of another decoder prefixes of DNA that stand for one. A
prefix is no part of what is designed. The predictor is a folder
of `finetune`: another model, best learned from other sequences than the writer's, whose prediction says whether a condition was obeyed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.adapt.backbones.folder import as_hf_folder, check_decoder, finetuned_model
from dnapretrain.adapt.embedding.embedding_cache import folder_digest
from dnapretrain.adapt.generation.compositions import gc_share
from dnapretrain.adapt.generation.generate import GeneratedSequence, Generator, Sampling, check_settings, to_fasta
from dnapretrain.adapt.generation.prompts import Prompt
from dnapretrain.adapt.metrics import pearson, plain, ranks, with_intervals
from dnapretrain.adapt.sequences.folds import same_sequence_groups
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.predict import predict_table, read_result
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.errors import ConfigError

RESULT, TABLE, FASTA = "design.json", "design.tsv", "designs.fa"
Say = Callable[[str], None]


@dataclass(frozen=True)
class DesignSettings:
    """What is written."""

    num_samples: int = 100
    """Under each condition."""
    num_bases: int = 200
    until_end: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "auto"
    """Of the predictor."""


def run_design(
    model: str | Path,
    conditions: Sequence[str],
    prefixes: Sequence[Prompt],
    output: Path,
    settings: DesignSettings | None = None,
    predictor: Path | None = None,
    natural: SequenceTable | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write sequences of each condition (none named: all that the model knows), or behind each prefix where the model knows none.

    natural: sequences with the same conditions as labels, predicted beside them. Writes `output`/designs.fa, design.tsv and design.json;
    returns what the JSON holds. Raises ConfigError and DataError.
    """
    settings = settings or DesignSettings()
    check_settings(settings.sampling, settings.num_bases, settings.num_samples, settings.batch_size, settings.device)
    model = finetuned_model(model)
    check_decoder(model)
    if predictor is not None:
        read_result(predictor)
    with as_hf_folder(model, say) as folder:
        generator = Generator(folder, settings.device)
        named = _prompts(generator, conditions, prefixes)
        made = generator.continue_all(
            named, settings.num_bases, settings.sampling, settings.num_samples, settings.batch_size, settings.until_end
        )
        digest = folder_digest(folder)
    groups = [prompt.condition for prompt in named for _ in range(settings.num_samples)]
    made = [replace(one, prompt="") for one in made]
    say(f"{len(made):,} sequences written")
    scores, target = _predict(predictor, made, settings, say)
    columns = {"gc": np.array([gc_share(one.bases) for one in made]), **scores}
    found: dict[str, Any] = {
        "dnapretrain": __version__,
        "model": str(model),
        "model_digest": digest,
        "predictor": str(predictor) if predictor else None,
        "target": target.to_dict() if target else None,
        "settings": asdict(settings),
        "conditions": _summaries(groups, columns),
        "trend": trends(groups, columns),
        "repeated": len(made) - len(set(same_sequence_groups([one.bases for one in made]).tolist())),
    }
    if natural is not None:
        found["natural"] = _natural(natural, list(dict.fromkeys(groups)), predictor, settings, say)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / FASTA, to_fasta(made))
    write_whole(output / TABLE, _table(made, groups, columns))
    write_whole(output / RESULT, json.dumps(plain(found), indent=1) + "\n")
    return found


def _prompts(generator: Generator, conditions: Sequence[str], prefixes: Sequence[Prompt]) -> list[Prompt]:
    knows = generator.controls is not None and bool(generator.controls.names)
    if knows == bool(prefixes):
        told = "knows conditions: name them instead of prefixes" if knows else "knows no conditions: give prefixes of DNA, NAME=BASES"
        raise ConfigError(f"the model {told}.")
    if prefixes and conditions:
        raise ConfigError(f"condition '{conditions[0]}' is unknown: the model was fine-tuned without. Prefixes have names of their own.")
    if prefixes:
        return [replace(prefix, condition=prefix.name) for prefix in prefixes]
    return generator.conditioned([Prompt("design", "")], conditions or ("all",))


def _predict(
    predictor: Path | None, made: Sequence[GeneratedSequence], settings: DesignSettings, say: Say
) -> tuple[dict[str, NDArray[np.float64]], Target | None]:
    """Columns of predictions."""
    if predictor is None:
        return {}, None
    table = SequenceTable("designs", tuple(one.name for one in made), tuple(one.bases for one in made), {})
    return prediction_columns(predictor, table, settings, say)


def prediction_columns(
    predictor: Path, table: SequenceTable, settings: DesignSettings, say: Say
) -> tuple[dict[str, NDArray[np.float64]], Target]:
    """`p_CLASS` of classes (of two, the second alone), `p_LABEL` of labels, numbers under their names. Raises ConfigError for tokens."""
    target, predicted, notes = predict_table(predictor, table, settings.device, settings.dtype)
    if target.task == "tokens":
        raise ConfigError(f"{predictor} predicts a letter per base, which scores no sequence. Give a classifier or a regression.")
    for note in notes:
        say(f"note: {note}")
    values = np.stack(predicted)
    names = target.output_names if target.task == "regression" else tuple(f"p_{name}" for name in target.output_names)
    kept = range(1, 2) if target.task == "classification" and len(names) == 2 else range(len(names))
    return {names[at]: values[:, at] for at in kept}, target


def _summaries(groups: Sequence[str], columns: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, dict[str, float]]]:
    """Condition -> column -> mean with its bootstrap interval, standard deviation, count."""
    labels = np.array(groups)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(groups):
        found[name] = {}
        for column, values in columns.items():
            own = values[labels == name]
            own = own[~np.isnan(own)]
            if not len(own):
                continue
            interval = with_intervals(lambda some: {"mean": float(some.mean())}, own)["mean"]
            about = {"mean": interval.value, "low": interval.low, "high": interval.high}
            found[name][column] = {**about, "sd": float(own.std()), "count": len(own)}
    return found


def trends(groups: Sequence[str], columns: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Of each column, Spearman's correlation with the number of the condition, in their order, and its bootstrap interval."""
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return {}
    numbers = np.array([names.index(group) for group in groups], np.float64)
    found = {}
    for column, values in columns.items():
        known = ~np.isnan(values)
        found[column] = asdict(with_intervals(_spearman, numbers[known], values[known])["spearman"])
    return found


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    return {"spearman": pearson(ranks(one), ranks(other))}


def _natural(
    natural: SequenceTable, names: Sequence[str], predictor: Path | None, settings: DesignSettings, say: Say
) -> dict[str, dict[str, dict[str, float]]]:
    labels = next(iter(natural.labels.values()), None)
    if labels is None:
        raise ConfigError(f"{natural.source} has no column of conditions to compare by. Name it with --label-column.")
    rows = [row for row, label in enumerate(labels) if label in names]
    if not rows:
        raise ConfigError(f"{natural.source}: no row has one of the conditions {', '.join(names)[:200]}.")
    some = natural.select(rows)
    columns = {"gc": np.array([gc_share(bases) for bases in some.sequences])}
    if predictor is not None:
        columns |= prediction_columns(predictor, some, settings, say)[0]
    return _summaries([labels[row] for row in rows], columns)


def _table(made: Sequence[GeneratedSequence], groups: Sequence[str], columns: dict[str, NDArray[np.float64]]) -> str:
    lines = ["\t".join(["name", "condition", "length", *columns])]
    for row, (one, group) in enumerate(zip(made, groups, strict=True)):
        cells = ["NA" if math.isnan(values[row]) else f"{values[row]:.6g}" for values in columns.values()]
        lines.append("\t".join([one.name, group, str(len(one.bases)), *cells]))
    return "\n".join(lines) + "\n"


def read_columns(output: Path) -> tuple[list[str], dict[str, list[float]]]:
    """Of design.tsv: the condition of each row, and its columns of numbers behind `length`."""
    header, *rows = [line.split("\t") for line in (output / TABLE).read_text().splitlines()]
    columns = {name: [float("nan") if row[at] == "NA" else float(row[at]) for row in rows] for at, name in enumerate(header[3:], 3)}
    return [row[1] for row in rows], columns


def format_design(found: dict[str, Any]) -> str:
    """The result for the terminal."""
    names = list(found["conditions"])
    columns = list(dict.fromkeys(column for row in found["conditions"].values() for column in row))
    width = max(len("condition"), *map(len, names))
    lines = [f"{'condition':<{width}} {'sequences':>9}  " + "  ".join(f"{column:<26}" for column in columns).rstrip()]
    for kind, rows in (("", found["conditions"]), ("natural ", found.get("natural", {}))):
        for name, row in rows.items():
            cells = [
                f"{row[column]['mean']:.4f} [{row[column]['low']:.4f}, {row[column]['high']:.4f}]" for column in columns if column in row
            ]
            count = row[columns[0]]["count"] if columns[0] in row else 0
            lines.append(f"{kind + name:<{width}} {count:>9,}  " + "  ".join(f"{cell:<26}" for cell in cells).rstrip())
    for column, one in found["trend"].items():
        lines.append(f"{column} with the order of the conditions: Spearman {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
    lines.append(f"{found['repeated']:,} sequences are copies of others")
    return "\n".join(lines)
