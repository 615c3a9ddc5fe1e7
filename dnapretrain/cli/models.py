"""Verbs of trained models: convert, generate."""

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
    from dnapretrain.adapt.parity import compare_logits

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


def add_generate(verbs: Any) -> None:
    verb = verbs.add_parser("generate", help="DNA from a decoder, as FASTA")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a Hugging Face folder; or a run or checkpoint, exported on the way")
    verb.add_argument("--prompt", action="append", default=[], metavar="BASES", help="sequence to continue (repeatable); default: none")
    verb.add_argument("--prompts", type=Path, metavar="FASTA", help="sequences to continue, under their names")
    verb.add_argument("--num-bases", type=int, default=200, help="bases to add to each prompt (default 200)")
    verb.add_argument("--num-samples", type=int, default=1, help="sequences per prompt (default 1)")
    verb.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token every time (default 1)")
    verb.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: among all")
    verb.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens that have this probability together")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--batch-size", type=int, default=8, help="sequences at a time (default 8); what is drawn does not depend on it")
    verb.add_argument("--device", default="cpu", help="cpu or cuda")
    verb.add_argument("--output", type=Path, metavar="FASTA", help="write there instead of printing")
    verb.set_defaults(verb=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.generate import generate, to_fasta
    from dnapretrain.adapt.prompts import make_prompts, read_prompts

    prompts = make_prompts(arguments.prompt) + (read_prompts(arguments.prompts) if arguments.prompts else [])
    records = generate(
        arguments.model,
        prompts or make_prompts([""]),
        num_bases=arguments.num_bases,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        num_samples=arguments.num_samples,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    fasta = to_fasta(records)
    if arguments.output:
        arguments.output.write_text(fasta)
    else:
        print(fasta, end="")
    return 0
