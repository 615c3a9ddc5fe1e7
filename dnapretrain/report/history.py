"""What a run did, read from its log: steps, evaluations, and all that happened in between."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnapretrain.errors import DataError

LOG_FILE = "log.jsonl"


@dataclass
class RunHistory:
    """The records of a run, one per step, in order of steps."""

    train: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Evaluations by name of the set."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """What the zero-shot probes found, evaluation by evaluation."""
    start: dict[str, Any] = field(default_factory=dict)
    """The last start record: resolved config, paths taken, data digest."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """All start records; each has `lost_steps`: what the start before it had logged beyond its `step`."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Records of other kinds, in the order of the log: checkpoints, bad steps, stops and whatever else there is."""
    damaged_lines: int = 0
    """Lines that are not JSON objects, as a killed process leaves them."""


def read_log(run_dir: Path, until_step: int | None = None) -> RunHistory:
    """The history of a run from `<run_dir>/log.jsonl`, up to a step where one is given.

    A resumed run takes up again at the step of its start record: what an abandoned run logged beyond that is
    left out, and the last record of a step counts. Raises DataError if there is no log or no training step in it.
    """
    path = run_dir / LOG_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: no run has started in {run_dir}.")
    history = RunHistory()
    train: dict[int, dict[str, Any]] = {}
    held_out: dict[str, dict[int, dict[str, Any]]] = {}
    probes: dict[int, dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        record = _parse(line)
        if record is None:
            history.damaged_lines += 1
        elif until_step is not None and record.get("step", 0) > until_step:
            continue
        elif record["kind"] == "start":
            history.start = record
            taken_up = record.get("step", 0)
            history.starts.append({**record, "lost_steps": sum(step > taken_up for step in train)})
            for steps in (train, probes, *held_out.values()):
                for step in [step for step in steps if step > taken_up]:
                    del steps[step]
        elif record["kind"] == "train":
            train[record["step"]] = record
        elif record["kind"] == "probes":
            probes[record["step"]] = record
        elif record["kind"] == "eval":
            held_out.setdefault(record["set"], {})[record["step"]] = record
        else:
            history.events.append(record)
    if not train:
        raise DataError(f"{path} holds no training step.")
    history.train, history.probes = ([records[step] for step in sorted(records)] for records in (train, probes))
    history.held_out = {name: [steps[step] for step in sorted(steps)] for name, steps in held_out.items() if steps}
    return history


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def is_masked(history: RunHistory) -> bool:
    """True when the start record says that the run predicts masked bases from both sides."""
    model = history.start.get("config", {}).get("model", {})
    return bool(model.get("kind") == "encoder")
