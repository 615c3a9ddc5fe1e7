"""Verbs of models that write: generate, recovery, design, check-cds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.cli.adapt import MODEL, TABLE, add_device, add_table_options, device_of, table_options
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    from dnapretrain.adapt.generation.generate import Sampling


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def add_sampling(verb: Any) -> None:
    """How tokens are drawn."""
    verb.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token every time (default 1)")
    verb.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: among all")
    verb.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens that have this probability together")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--batch-size", type=int, default=8, help="sequences at a time (default 8); what is drawn does not depend on it")
    add_device(verb)


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """The options that `add_sampling` added, but for batch size and device."""
    from dnapretrain.adapt.generation.generate import Sampling

    return Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)


def add_generate(verbs: Any) -> None:
    verb = verbs.add_parser(
        "generate",
        help="DNA as FASTA: a decoder continues prompts, an encoder fills templates",
        description="A decoder adds bases to prompts. An encoder draws the open bases of templates over rounds, those first that it is "
        "surest of.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL + "; or what finetune --task causal wrote")
    verb.add_argument("--prompt", action="append", default=[], metavar="BASES", help="sequence to continue (repeatable); default: none")
    verb.add_argument("--prompts", type=Path, metavar="FASTA", help="sequences to continue, under their names")
    verb.add_argument(
        "--num-bases", type=int, default=200, help="bases to add to each prompt; of an encoder without templates, in all (200)"
    )
    verb.add_argument("--num-samples", type=int, default=1, help="sequences per prompt, condition and template (default 1)")
    verb.add_argument("--until-end", action="store_true", help="decoders: stop where the model ends the sequence, at most --num-bases")
    verb.add_argument(
        "--condition", action="append", default=[], metavar="NAME", help="that the model was fine-tuned with (repeatable), or all"
    )
    verb.add_argument(
        "--template", action="append", default=[], metavar="CODES", help="encoders: A, C, G, T stay, N is drawn, R is an A or a G, ..."
    )
    verb.add_argument("--templates", type=Path, metavar="FASTA", help="templates under their names")
    verb.add_argument("--rounds", type=int, default=0, metavar="N", help="encoders: draw all in N rounds (default 0: one token in each)")
    verb.add_argument("--order", default="confident", metavar="confident|random", help="encoders: which tokens stay first")
    add_sampling(verb)
    verb.add_argument("--output", type=Path, metavar="FASTA", help="write there instead of printing")
    verb.set_defaults(verb=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.backbones.folder import finetuned_model, holds_encoder
    from dnapretrain.adapt.generation.generate import to_fasta

    model = finetuned_model(arguments.model)
    sampling = sampling_of(arguments)
    fasta = to_fasta(_filled(arguments, model, sampling) if holds_encoder(model) else _continued(arguments, model, sampling))
    if arguments.output:
        arguments.output.write_text(fasta)
    else:
        print(fasta, end="")
    return 0


def _continued(arguments: argparse.Namespace, model: Path, sampling: Sampling) -> Any:
    from dnapretrain.adapt.generation.generate import generate
    from dnapretrain.adapt.generation.prompts import make_prompts, read_prompts

    if arguments.template or arguments.templates or arguments.rounds or arguments.order != "confident":
        raise ConfigError(f"{model} holds a decoder, which continues prompts. Templates, --rounds and --order are for encoders.")
    prompts = make_prompts(arguments.prompt) + (read_prompts(arguments.prompts) if arguments.prompts else [])
    return generate(
        model,
        prompts or make_prompts([""]),
        num_bases=arguments.num_bases,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        num_samples=arguments.num_samples,
        batch_size=arguments.batch_size,
        device=device_of(arguments),
        until_end=arguments.until_end,
        conditions=arguments.condition,
    )


def _filled(arguments: argparse.Namespace, model: Path, sampling: Sampling) -> Any:
    from dnapretrain.adapt.generation.prompts import make_prompts, read_prompts
    from dnapretrain.adapt.generation.unmask import Unmasking, unmask

    if arguments.prompt or arguments.prompts or arguments.until_end or arguments.condition:
        raise ConfigError(f"{model} holds an encoder, which reads both sides and continues nothing. Give --template, or --num-bases alone.")
    if arguments.num_bases < 1:
        raise ConfigError(f"num_bases = {arguments.num_bases} is below 1.")
    templates = [replace(one, name=one.name.replace("prompt", "template")) for one in make_prompts(arguments.template)]
    templates += read_prompts(arguments.templates) if arguments.templates else []
    if not templates:
        templates = [replace(one, name="design") for one in make_prompts(["N" * arguments.num_bases])]
    unmasking = Unmasking(sampling, arguments.rounds, arguments.order)
    return unmask(model, templates, unmasking, arguments.num_samples, arguments.batch_size, device_of(arguments))


def add_recovery(verbs: Any) -> None:
    verb = verbs.add_parser(
        "recovery",
        help="how much of the next bases a decoder recovers, by taxon, with intervals",
        description="GENERator's protocol: the last bases of each sequence are to be recovered from up to 6,144 before them, the likeliest "
        "token each time. Each file is a taxon, or a column says which each row is of.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    verb.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=TABLE)
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="recovery.json, recovery.tsv, recovery.png")
    verb.add_argument(
        "--num-prompts", type=int, metavar="N", help="windows spread over each taxon's sequences, as for genomes; default: ends"
    )
    verb.add_argument("--prompt-bases", type=int, default=6144, metavar="N", help="of the longest prompt (default 6144)")
    verb.add_argument("--num-bases", type=int, default=30, metavar="N", help="bases to recover (default 30)")
    verb.add_argument("--batch-size", type=int, default=8, help="prompts at a time (default 8)")
    add_device(verb)
    verb.add_argument("--json", action="store_true", help="print what recovery.json holds")
    add_table_options(verb)
    verb.set_defaults(verb=_recovery)


def _recovery(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.generation.generation_pictures import draw_recovery
    from dnapretrain.adapt.generation.recovery_taxa import RESULT, RecoverySettings, format_recovery, read_taxa, run_recovery

    settings = RecoverySettings(arguments.prompt_bases, arguments.num_bases, arguments.num_prompts, arguments.batch_size)
    settings.check()
    options = table_options(arguments, needs_labels=bool(arguments.label_column))
    if not arguments.label_column:
        options = replace(options, label_columns=())
    taxa = read_taxa(arguments.inputs, options)
    found = run_recovery(arguments.model, taxa, arguments.output, settings, device_of(arguments), _say)
    draw_recovery(arguments.output / "recovery.png", found)
    print((arguments.output / RESULT).read_text() if arguments.json else format_recovery(found))
    return 0


def add_design(verbs: Any) -> None:
    verb = verbs.add_parser(
        "design",
        help="sequences written under each condition, and what a predictor makes of them",
        description="Conditions are those of finetune --task causal, or prefixes of DNA. The predictor is a folder of finetune.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL + "; or what finetune --task causal wrote")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="designs.fa, design.tsv, design.json, design.png")
    verb.add_argument("--condition", action="append", default=[], metavar="NAME", help="repeatable, in their order (default: all)")
    verb.add_argument(
        "--prefix", action="append", default=[], metavar="NAME=BASES", help="a condition written in DNA, no part of the design"
    )
    verb.add_argument("--num-samples", type=int, default=100, metavar="N", help="of each condition (default 100)")
    verb.add_argument("--num-bases", type=int, default=200, metavar="N", help="of each sequence (default 200)")
    verb.add_argument("--until-end", action="store_true", help="stop where the model ends the sequence, at most --num-bases")
    verb.add_argument("--predictor", type=Path, metavar="DIR", help="that finetune wrote: scores each sequence")
    verb.add_argument("--natural", type=Path, metavar="TABLE", help="sequences with conditions as labels, scored beside them: " + TABLE)
    verb.add_argument("--json", action="store_true", help="print what design.json holds")
    add_sampling(verb)
    add_table_options(verb)
    verb.set_defaults(verb=_design)


def _design(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.generation.design import RESULT, DesignSettings, format_design, read_columns, run_design
    from dnapretrain.adapt.generation.generation_pictures import draw_design
    from dnapretrain.adapt.generation.prompts import make_prompts
    from dnapretrain.adapt.sequences.tables import read_table

    prefixes = []
    for text in arguments.prefix:
        name, equals, bases = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--prefix {text} is not NAME=BASES.")
        prefixes.append(replace(make_prompts([bases])[0], name=name))
    settings = DesignSettings(
        num_samples=arguments.num_samples,
        num_bases=arguments.num_bases,
        until_end=arguments.until_end,
        sampling=sampling_of(arguments),
        batch_size=arguments.batch_size,
        device=device_of(arguments),
    )
    natural = read_table(arguments.natural, table_options(arguments, needs_labels=True)) if arguments.natural else None
    found = run_design(arguments.model, arguments.condition, prefixes, arguments.output, settings, arguments.predictor, natural, _say)
    draw_design(arguments.output / "design.png", found, *read_columns(arguments.output))
    print((arguments.output / RESULT).read_text() if arguments.json else format_design(found))
    return 0


def add_check_cds(verbs: Any) -> None:
    verb = verbs.add_parser(
        "check-cds",
        help="are generated sequences coding sequences, and like natural ones? with their proteins as FASTA",
        description="Start, stop, frame and inner stops of each sequence; lengths, k-mers, codons and amino acids beside natural ones; "
        "copies of training sequences. proteins.fa is for outside tools.",
    )
    verb.add_argument("generated", type=Path, metavar="GENERATED", help=TABLE)
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="check_cds.json, check_cds.tsv, check_cds.png, proteins.fa")
    verb.add_argument("--natural", type=Path, metavar="TABLE", help="coding sequences to compare with")
    verb.add_argument("--train", type=Path, metavar="TABLE", help="what the model learned from: copies are counted")
    verb.add_argument("--genetic-code", type=int, default=1, metavar="N", help="NCBI's number (default 1; 11: bacteria and archaea)")
    verb.add_argument("--trim-to-stop", action="store_true", help="cut each generated sequence behind its first stop in frame")
    verb.add_argument("--kmers", default="3,6", metavar="LIST", help="lengths that are compared (default 3,6)")
    verb.add_argument(
        "--proteins", default="valid", metavar="valid|all", help="which are written; all: up to the first stop (default valid)"
    )
    verb.add_argument("--json", action="store_true", help="print what check_cds.json holds")
    add_table_options(verb)
    verb.set_defaults(verb=_check_cds)


def _check_cds(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.generation.coding_report import RESULT, CodingSettings, format_check_cds, run_check_cds
    from dnapretrain.adapt.generation.generation_pictures import draw_check_cds
    from dnapretrain.adapt.sequences.tables import read_table
    from dnapretrain.cli.finetune import parse_numbers

    kmers = parse_numbers(arguments.kmers, "--kmers")
    settings = CodingSettings(arguments.genetic_code, arguments.trim_to_stop, kmers, arguments.proteins)
    settings.check()
    options = replace(table_options(arguments), label_columns=())
    paths = (arguments.generated, arguments.natural, arguments.train)
    generated, natural, training = (read_table(path, options) if path else None for path in paths)
    assert generated is not None
    found = run_check_cds(generated, natural, training, arguments.output, settings)
    draw_check_cds(arguments.output / "check_cds.png", found)
    print((arguments.output / RESULT).read_text() if arguments.json else format_check_cds(found))
    return 0
