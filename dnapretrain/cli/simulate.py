"""The verb that plays the ranks of a job too large for this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dnapretrain.errors import ConfigError


def add_simulate(verbs: Any) -> None:
    verb = verbs.add_parser(
        "simulate",
        help="play any rank of a job of any size: groups, model chunks, pipeline schedule, samples, checkpoint; needs no GPU",
        description="One process stands as ranks of a job of N GPUs, one after the other, and does all that they would do but arithmetic. "
        "Exit code 1 where something would go wrong. Nothing is allocated for weights, nothing is sent: no speeds come of it.",
    )
    verb.add_argument("config", type=Path, metavar="RECIPE_OR_FILE", help="as for pretrain; its data are read where they are there")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, or a YAML file that does")
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs, one rank each")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="play this rank")
    which.add_argument(
        "--ranks", choices=("sample", "all"), default="sample", help="the first and last of every pipeline stage (default), or every rank"
    )
    verb.add_argument(
        "--steps", default="1:4", metavar="N:M", help="steps whose samples are looked at, counted from 1 (default %(default)s)"
    )
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import load_config
    from dnapretrain.simulate import format_simulation, sample_of_ranks, simulate

    config = load_config(arguments.config, arguments.overrides)
    first, last = _steps(arguments.steps, config.train.train_steps)
    if arguments.rank is not None:
        ranks = [arguments.rank]
    else:
        ranks = sample_of_ranks(config, arguments.gpus) if arguments.ranks == "sample" else list(range(arguments.gpus))
    found = simulate(config, arguments.gpus, ranks, first, last)
    print(json.dumps(found, indent=1) if arguments.json else format_simulation(found))
    return 1 if found["problems"] else 0


def _steps(text: str | None, train_steps: int) -> tuple[int, int]:
    if text is None:
        return 1, min(4, train_steps)
    first, _, last = text.partition(":")
    if not first.isdecimal() or not last.isdecimal():
        raise ConfigError(f"--steps {text} is not N:M. Give the first and the last step, e.g. 1:4.")
    return int(first), int(last)
