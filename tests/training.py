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
    valid_loss: float
    consumed_samples: int
    log: str


def train(env: Any, store: Any, tree: dict[str, Any], until: int, save: bool = False) -> Trained:
    """Train (or resume) to step `until`, evaluate the held-out set, perhaps save."""
    warnings.simplefilter("ignore")
    from dnapretrain.config import check_world, config_from_dict
    from dnapretrain.model.batches import step_batches
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups
    from dnapretrain.train.run import build_trainer, open_data

    config = config_from_dict(tree)
    check_world(config, env.world_size)
    platform = platforms.start(config.train.device, env)
    data = open_data(config)
    start_groups(platform, config.parallel, config.train.seed, store)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer = build_trainer(config, platform, data)
        reports = []
        while trainer.position.step < until:
            first = trainer.position.consumed_samples
            reports.append(trainer.train_step(step_batches(trainer.stream, trainer.place, first, trainer.num_microbatches)))
        valid = trainer.evaluate()["valid"]
        if save:
            trainer.save(trainer.position)
        trainer.log.close()
    return Trained(
        losses=[report.loss for report in reports],
        grad_norms=[report.grad_norm for report in reports],
        learning_rates=[report.lr for report in reports],
        valid_loss=valid.loss,
        consumed_samples=trainer.position.consumed_samples,
        log=printed.getvalue(),
    )


def stored_tensors(run_dir: str | Path) -> dict[str, Any]:
    """Every tensor of a run's newest checkpoint, weights and moments, in full."""
    from dnapretrain.convert.native import find_checkpoint, open_weights

    reader = open_weights(find_checkpoint(Path(run_dir)))
    return {name: reader.read(name) for name in reader.names()}
