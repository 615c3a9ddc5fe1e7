"""Predictions of fine-tuned models for new sequences: the mean over the seeds and folds of a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.adapt.sequences.targets import Target
from dnapretrain.adapt.training.classifier_loop import ClassifierLoop, LoopSettings, Scale
from dnapretrain.adapt.training.finetune import RESULT, classifier_encoder
from dnapretrain.adapt.training.heads import open_classifier
from dnapretrain.adapt.training.task_data import encode_rows
from dnapretrain.errors import CheckpointError, ConfigError


def read_result(directory: Path) -> dict[str, Any]:
    """What `finetune` wrote. Raises ConfigError where it is not there, CheckpointError where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((directory / RESULT).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{directory} has no {RESULT}: it is no folder of `dnapretrain finetune`, or that did not end.") from None
    except ValueError as error:
        raise CheckpointError(f"{directory / RESULT} cannot be read: {error}. Fine-tune again.") from None
    return found


def predict_table(
    directory: Path, table: SequenceTable, device: str = "cpu", dtype: str = "auto", batch_size: int = 32
) -> tuple[Target, list[NDArray[np.float64]], list[str]]:
    """What was learned; of each row the mean over runs of probabilities or numbers; and notes on what was cut.

    Raises ConfigError and CheckpointError for a folder without models, DataError for sequences that are too long.
    """
    result = read_result(directory)
    target, settings = Target.from_dict(result["target"]), result["settings"]
    if target.task == "causal":
        raise ConfigError(f"{directory} holds models that write sequences (causal), and predict nothing of them. Use generate or design.")
    sums: list[NDArray[np.float64]] = []
    notes: list[str] = []
    for run in result["runs"]:
        model, folder = open_classifier(directory / run["name"], target, settings["method"], device)
        encoder = classifier_encoder(folder, settings["on_long"], settings["max_tokens"])
        if model.config.pad_token_id is None:
            model.config.pad_token_id = encoder.tokenizer.pad_id
        rows = encode_rows(table, target, encoder, labelled=False)
        loop = ClassifierLoop(model, encoder, target, LoopSettings(batch_size=batch_size, dtype=dtype), device, 0)
        if "scale" in run:
            loop.scale = Scale(np.array(run["scale"]["mean"]), np.array(run["scale"]["deviation"]))
        outputs = loop.predict(rows)
        sums = [one + other for one, other in zip(sums, outputs, strict=True)] if sums else outputs
        notes = encoder.counts.lines()
    return target, [one / len(result["runs"]) for one in sums], notes


def write_predictions(path: Path, table: SequenceTable, target: Target, predicted: Sequence[NDArray[np.float64]]) -> None:
    """CSV: name, then the class and the probability of each; the probability of each label; each number; or a letter per base."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if target.task == "classification":
            writer.writerow(["name", "class", *(f"p_{name}" for name in target.classes)])
        else:
            writer.writerow(["name", *(("classes",) if target.task == "tokens" else target.columns)])
        for name, outputs in zip(table.names, predicted, strict=True):
            if target.task == "tokens":
                writer.writerow([name, "".join(target.classes[number] for number in outputs.argmax(axis=-1))])
                continue
            best = [target.classes[int(outputs.argmax())]] if target.task == "classification" else []
            writer.writerow([name, *best, *(f"{value:.6g}" for value in outputs)])
