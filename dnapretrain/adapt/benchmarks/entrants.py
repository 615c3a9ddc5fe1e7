"""The models of a benchmark by short names: folders, or the checkpoints of runs, a series over what was consumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnapretrain.convert.native import CHECKPOINTS_DIR, read_state
from dnapretrain.errors import ConfigError
from dnapretrain.train.retention import finished_checkpoints, step_of


@dataclass(frozen=True)
class Entrant:
    """One model that takes part."""

    name: str
    path: Path
    family: str
    """Of a series the name of its run, else its own: what random weights and tokenizer are the same of."""
    step: int | None = None
    """Of a checkpoint of a series, with the tokens it has consumed."""
    consumed_tokens: int | None = None


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


def entrants(models: Sequence[str | Path], checkpoints: str | None = None) -> list[Entrant]:
    """The models; with `checkpoints` (`all`, or steps such as `500,1000`) those checkpoints of each, which must be a run, by step.

    Raises ConfigError for what is no run, has no such step, or is asked for no step.
    """
    named = model_names(models)
    if checkpoints is None:
        return [Entrant(name, path, name) for name, path in named.items()]
    return [one for name, path in named.items() for one in _series(name, path, checkpoints)]


def _series(name: str, run: Path, checkpoints: str) -> list[Entrant]:
    if not (run / CHECKPOINTS_DIR).is_dir():
        raise ConfigError(f"--checkpoints needs runs, and {run} has no {CHECKPOINTS_DIR}/. Give the run folder.")
    there = {step_of(path): path for path in finished_checkpoints(run)}
    try:
        steps = sorted(there) if checkpoints == "all" else sorted({int(step) for step in checkpoints.split(",")})
    except ValueError:
        raise ConfigError(f"--checkpoints {checkpoints} is neither 'all' nor steps such as 500,1000.") from None
    if missing := [step for step in steps if step not in there]:
        raise ConfigError(
            f"{run} has no finished checkpoint of step {missing[0]}; it has {', '.join(map(str, sorted(there))) or 'none'}. "
            "checkpoint.keep_last and keep_every say what a run keeps."
        )
    if not steps:
        raise ConfigError(f"{run} has no finished checkpoint.")
    return [Entrant(f"{name} step {step}", there[step], name, step, int(read_state(there[step])["consumed_tokens"])) for step in steps]
