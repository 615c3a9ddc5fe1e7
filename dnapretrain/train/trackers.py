"""The run's log for TensorBoard and Weights & Biases too, where the settings ask for it. `log.jsonl` is written always."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dnapretrain.config import LogConfig
from dnapretrain.errors import ConfigError

TENSORBOARD_DIR = "tensorboard"
WANDB_ID_FILE = "wandb_id"
"""In the run folder, so that a resumed run goes on under its id."""
TRAIN_KEYS = (
    *("loss", "bits_per_base", "accuracy", "grad_norm", "lr", "batch_size", "sequence_length", "seconds"),
    *("consumed_samples", "consumed_tokens", "consumed_bases", "tokens_per_second", "data_wait", "tflops", "mfu"),
)
EVAL_KEYS = ("loss", "bits_per_base", "marginal_bits_per_base", "accuracy")


def check_trackers(log: LogConfig) -> None:
    """Raise ConfigError where a package is asked for that is not installed."""
    for wanted, setting, package in (
        (log.tensorboard, "log.tensorboard=true", "tensorboard"),
        (log.wandb_project, "log.wandb_project", "wandb"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{setting} needs the package {package}, which is not installed. pip install 'dnapretrain[{package}]', or remove it."
            )


def scalars(kind: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What of a record is shown as a curve: name and value. Held-out sets are `SET/bits_per_base`, classes `SET/GROUPING/CLASS`, probes
    `probes/PROBE/share`."""
    if kind == "probes":
        for name, figures in fields["results"].items():
            yield from ((f"probes/{name}/{key}", float(value)) for key, value in figures.items() if isinstance(value, float))
        return
    prefix, keys = ("train", TRAIN_KEYS) if kind == "train" else (str(fields.get("set")), EVAL_KEYS)
    for key in keys:
        if isinstance(value := fields.get(key), (int, float)):
            yield f"{prefix}/{key}", float(value)
    for grouping, classes in (fields.get("regions") or {}).items() if kind == "eval" else ():
        for name, values in classes.items():
            yield f"{prefix}/{grouping}/{name}", float(values["bits_per_base"])


class Trackers:
    """What the records of a run are sent to besides its log. On the main rank only."""

    def __init__(self, log: LogConfig, run_dir: Path) -> None:
        check_trackers(log)
        self._log, self._run_dir = log, run_dir
        self._open: dict[str, Any] = {}

    def record(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Send one record on. What went wrong ('' for nothing): a tracker that fails gets no more, and training goes on."""
        problems = []
        if kind == "start":
            self._open = {
                name: None for name, wanted in (("TensorBoard", self._log.tensorboard), ("W&B", self._log.wandb_project)) if wanted
            }
        for name in list(self._open):
            try:
                if kind == "start":
                    self._open[name] = self._tensorboard(fields) if name == "TensorBoard" else self._wandb(fields)
                elif kind in ("train", "eval", "probes"):
                    self._send(name, int(fields["step"]), dict(scalars(kind, fields)))
            except Exception as error:  # whatever a tracker does, the run goes on
                del self._open[name]
                problems.append(f"WARNING: {name} gets no more of this run: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}")
        return "; ".join(problems)

    def close(self) -> str:
        """Flush and close all. What went wrong ('' for nothing)."""
        problems = []
        for name, tracker in self._open.items():
            try:
                tracker.close() if name == "TensorBoard" else tracker.finish()
            except Exception as error:  # the run has ended well, whatever a tracker does
                problems.append(
                    f"WARNING: {name} may lack the end of this run: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
                )
        self._open = {}
        return "; ".join(problems)

    def _send(self, name: str, step: int, values: dict[str, float]) -> None:
        if name == "TensorBoard":
            for key, value in values.items():
                self._open[name].add_scalar(key, value, step)
        else:
            self._open[name].log({"step": step, **values})

    def _tensorboard(self, start: Mapping[str, Any]) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # Steps of an abandoned start beyond this one disappear from the curves.
        return SummaryWriter(str(self._run_dir / TENSORBOARD_DIR), purge_step=int(start["step"]) + 1)

    def _wandb(self, start: Mapping[str, Any]) -> Any:
        import wandb

        file = self._run_dir / WANDB_ID_FILE
        if not file.is_file():
            file.write_text(secrets.token_hex(4) + "\n")
        run = wandb.init(
            project=self._log.wandb_project,
            name=self._run_dir.resolve().name,
            id=file.read_text().strip(),
            resume="allow",
            mode=self._log.wandb_mode,
            dir=str(self._run_dir),
            config=dict(start["config"]),
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="step")  # W&B's own counter cannot go back to the step of a checkpoint
        return run
