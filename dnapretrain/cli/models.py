"""The verb convert."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_convert(verbs: Any) -> None:
    convert = verbs.add_parser("convert", help="native checkpoints <-> Hugging Face folders")
    directions = convert.add_subparsers(required=True, metavar="DIRECTION")
    to_hf = directions.add_parser("to-hf", help="a run or checkpoint -> a folder that transformers loads")
    to_hf.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT")
    to_hf.add_argument("target", type=Path, metavar="DIR")
    to_hf.add_argument("--verify", action="store_true", help="compare the logits of both, and fail where they differ (holds both models)")
    to_hf.set_defaults(verb=_to_hf)
    from_hf = directions.add_parser("from-hf", help="a Hugging Face folder -> a checkpoint for checkpoint.load")
    from_hf.add_argument("source", type=Path, metavar="DIR")
    from_hf.add_argument("target", type=Path, metavar="CHECKPOINT")
    from_hf.add_argument("--verify", action="store_true", help="compare the logits of both, and fail where they differ (holds both models)")
    from_hf.set_defaults(verb=_from_hf)
    megatron = directions.add_parser("from-megatron", help="a torch_dist checkpoint of Megatron-LM or Megatron-Bridge -> a checkpoint")
    megatron.add_argument("source", type=Path, metavar="CKPT_DIR", help="iter_NNNNNNN, or the folder above")
    megatron.add_argument("target", type=Path, metavar="CHECKPOINT")
    megatron.add_argument("overrides", nargs="*", metavar="section.key=value", help="what neither says, such as tokenizer.kind=generator")
    megatron.add_argument("--recipe", metavar="RECIPE_OR_FILE", help="the tokenizer, and the model where the checkpoint does not say it")
    megatron.set_defaults(verb=_from_megatron)


def _from_megatron(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.megatron import from_megatron

    report = from_megatron(arguments.source, arguments.target, arguments.recipe, arguments.overrides, on_progress=_progress())
    print(json.dumps(report, indent=1))
    return 0


def _to_hf(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.hf import to_hf

    print(json.dumps(to_hf(arguments.source, arguments.target, on_progress=_progress()), indent=1))
    return _verify(arguments.source, arguments.target) if arguments.verify else 0


def _from_hf(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.hf import from_hf

    print(json.dumps(from_hf(arguments.source, arguments.target, on_progress=_progress()), indent=1))
    return _verify(arguments.target, arguments.source) if arguments.verify else 0


def _verify(checkpoint: Path, directory: Path) -> int:
    """Print how far the logits of the two are apart; 1 where that is too far."""
    from dnapretrain.adapt.backbones.parity import compare_logits

    found = compare_logits(checkpoint, directory)
    print(json.dumps({"verify": found}, indent=1))
    return 0 if found["agree"] else 1


def _progress() -> Callable[[int, int], None]:
    """Draws one line on a terminal; elsewhere writes a line for each tenth of a model of more than 1 GB."""
    tenths = 0

    def draw(done: int, total: int) -> None:
        nonlocal tenths
        text = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
        if sys.stderr.isatty():
            print(f"\r{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif total > 10**9 and done * 10 // total > tenths:
            tenths = done * 10 // total
            print(text, file=sys.stderr, flush=True)

    return draw
