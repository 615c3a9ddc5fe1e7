"""Work that the pool's ranks do: train a few steps, evaluate, give back tensors. Imported by name in each rank."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trained:
    """What one rank reports of a few steps."""

    losses: list[float]
    grad_norms: list[float]
    learning_rates: list[float]
    accuracies: list[float]
    valid: Any
    """HeldOutLoss of the set 'valid'."""
    batch_sizes: list[int]
    consumed_samples: int
    log: str


def begin(env: Any, store: Any, tree: dict[str, Any]) -> tuple[Any, Any, str]:
    """(trainer, data, what was logged) of a run begun or resumed on this rank of the pool."""
    warnings.simplefilter("ignore")
    from dnapretrain.config_file import config_from_dict
    from dnapretrain.config_rules import check_world
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups
    from dnapretrain.train.run import build_trainer, open_data

    config = config_from_dict(tree)
    check_world(config, env.world_size)
    platform = platforms.start(config.train.device, env)
    data = open_data(config, probes=True)
    start_groups(platform, config.parallel, config.train.seed, store)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer = build_trainer(config, platform, data)
    return trainer, data, printed.getvalue()


def train(env: Any, store: Any, tree: dict[str, Any], until: int, save: bool = False) -> Trained:
    """Train (or resume) to step `until`, evaluate the held-out set, perhaps save."""
    trainer, _, log = begin(env, store, tree)
    reports = []
    with contextlib.redirect_stdout(io.StringIO()):
        while trainer.position.step < until:
            reports.append(trainer.train_step(trainer.next_batches()))
        valid = trainer.evaluate()["valid"]
        if save:
            trainer.save(trainer.position)
        trainer.log.close()
    return Trained(
        losses=[report.loss for report in reports],
        grad_norms=[report.grad_norm for report in reports],
        learning_rates=[report.lr for report in reports],
        accuracies=[report.accuracy for report in reports],
        valid=valid,
        batch_sizes=[report.batch_size for report in reports],
        consumed_samples=trainer.position.consumed_samples,
        log=log,
    )


def stored_tensors(run_dir: str | Path) -> dict[str, Any]:
    """Every tensor of a run's newest checkpoint, weights and moments, in full."""
    from dnapretrain.convert.native import find_checkpoint

    return stored_tensors_of(find_checkpoint(Path(run_dir)))


def stored_tensors_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of one checkpoint."""
    from dnapretrain.convert.native import open_weights

    reader = open_weights(checkpoint)
    return {name: reader.read(name) for name in reader.names()}
