"""Verbs that use a pretrained model on sequences of one's own: embed, probe."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    from dnapretrain.adapt.backbones.backbone import Backbone
    from dnapretrain.adapt.sequences.tables import TableOptions

MODEL = "a Hugging Face folder; or a run or checkpoint, exported on the way"
TABLE = (
    "sequences: FASTA (and what preprocess reads), CSV or TSV (plain or packed), Parquet, a folder of datasets.save_to_disk, "
    "or BED with --fasta"
)


def add_table_options(verb: Any) -> None:
    """What columns are called."""
    verb.add_argument("--sequence-column", default="sequence", metavar="NAME", help="of CSV, TSV, Parquet, datasets (default sequence)")
    verb.add_argument(
        "--label-column",
        action="append",
        metavar="NAME",
        help="column of labels (default: label, where there is one); of FASTA NAME=VALUE in the description; of BED name, score or columnN",
    )
    verb.add_argument("--name-column", metavar="NAME", help="names of rows (default: name, where there is one)")
    verb.add_argument(
        "--fasta", type=Path, metavar="FILE", help="the contigs that a BED file is on; minus strands are reverse-complemented"
    )
    verb.add_argument(
        "--from-kmers", action="store_true", help="sequences are written as overlapping k-mers with spaces between: join them"
    )


def table_options(arguments: argparse.Namespace, needs_labels: bool = False) -> TableOptions:
    """The options that `add_table_options` added."""
    from dnapretrain.adapt.sequences.tables import TableOptions

    return TableOptions(
        sequence_column=arguments.sequence_column,
        label_columns=tuple(arguments.label_column) if arguments.label_column else None,
        name_column=arguments.name_column,
        needs_labels=needs_labels,
        fasta=arguments.fasta,
        from_kmers=arguments.from_kmers,
    )


def add_device(verb: Any) -> None:
    """Where the model computes."""
    verb.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one (default)")


def device_of(arguments: argparse.Namespace) -> str:
    """The option that `add_device` added: auto as what it stands for here, anything else as it was given."""
    from dnapretrain.parallel.platform import choose_device

    return choose_device("auto") if arguments.device == "auto" else str(arguments.device)


def add_backbone_options(verb: Any) -> None:
    """How the model is loaded and what it does with long sequences."""
    add_device(verb)
    verb.add_argument("--dtype", default="auto", metavar="auto|fp32|bf16", help="of the weights; auto: bf16 on a GPU, fp32 on the CPU")
    verb.add_argument(
        "--on-long",
        default="error",
        metavar="error|truncate|window",
        help="a sequence longer than the model: an error, its first tokens (counted), or the mean of its windows (default error)",
    )
    verb.add_argument("--max-tokens", type=int, metavar="N", help="longest sequence, specials included (default: the model's context)")
    verb.add_argument("--tokens-per-batch", type=int, default=16_384, metavar="N", help="with padding (default 16384)")
    verb.add_argument("--both-strands", action="store_true", help="average the vectors of a sequence and of its reverse complement")
    verb.add_argument("--random-weights", type=int, metavar="SEED", help="the same architecture with fresh weights, to compare with")


def backbone_of(arguments: argparse.Namespace) -> Backbone:
    """The model that the options name."""
    from dnapretrain.adapt.backbones.backbone import open_backbone

    return open_backbone(
        arguments.model,
        device=device_of(arguments),
        dtype=arguments.dtype,
        on_long=arguments.on_long,
        max_tokens=arguments.max_tokens,
        random_weights=arguments.random_weights,
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """`0,3,-1` as numbers. Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--layers {text} is no list of numbers such as 0,6,-1.") from None


def add_embed(verbs: Any) -> None:
    verb = verbs.add_parser("embed", help="sequences -> embeddings of chosen layers, and a picture of them")
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    verb.add_argument("input", type=Path, metavar="INPUT", help=TABLE)
    verb.add_argument("--output", required=True, type=Path, metavar="FILE", help=".parquet, .npz or .h5; rows in the order of the input")
    verb.add_argument("--layers", default="-1", metavar="LIST", help="0: embeddings, i: what block i gives, -1: the last (default -1)")
    verb.add_argument(
        "--pooling",
        default="mean",
        metavar="mean|cls|last|max|none",
        help="over tokens that stand for bases, no specials and no padding; none: every token (default mean)",
    )
    verb.add_argument("--picture", type=Path, metavar="PNG", help="a dot per sequence, of the last of the layers, coloured by label")
    verb.add_argument("--projection", default="pca", metavar="pca|umap", help="of the picture (default pca)")
    add_table_options(verb)
    add_backbone_options(verb)
    verb.set_defaults(verb=_embed)


PICTURE_ROWS = 5000


def _embed(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.embedding.embed import EmbedSettings, embed_file
    from dnapretrain.adapt.pictures import check_picture, draw_scatter

    layers = parse_layers(arguments.layers)
    if arguments.picture:
        check_picture(arguments.picture, arguments.projection)
        if arguments.pooling == "none":
            raise ConfigError("--picture has a dot per sequence, --pooling none a vector per token. Leave one out.")
    backbone = backbone_of(arguments)
    settings = EmbedSettings(layers, arguments.pooling, arguments.both_strands, arguments.tokens_per_batch)
    begun = time.monotonic()
    about = {"model": str(arguments.model), "input": str(arguments.input), "random_weights": arguments.random_weights}
    done = embed_file(
        backbone, arguments.input, arguments.output, settings, table_options(arguments), about, PICTURE_ROWS if arguments.picture else 0
    )
    for note in done.notes:
        sys.stderr.write(f"note: {note}\n")
    what = f"{done.num_tokens:,} tokens of {done.num_rows:,} sequences" if arguments.pooling == "none" else f"{done.num_rows:,} sequences"
    shown = ", ".join(map(str, backbone.layer_numbers(layers)))
    size = f"{backbone.hidden_size} numbers each, pooling {arguments.pooling}"
    print(f"{arguments.output}: {what}, layer {shown} of {backbone.num_layers}, {size}")
    if arguments.picture and done.sample:
        labels = next(iter(done.sample.labels.values()), None)
        title = f"{arguments.model}: layer {backbone.layer_numbers(layers)[-1]}, {len(done.sample.names):,} of {done.num_rows:,} sequences"
        draw_scatter(arguments.picture, done.sample.vectors[:, -1], labels, title, arguments.projection)
        print(f"{arguments.picture}: {arguments.projection.upper()}")
    sys.stderr.write(f"{time.monotonic() - begun:.1f} s on {backbone.device}\n")
    return 0


def add_probe(verbs: Any) -> None:
    verb = verbs.add_parser(
        "probe",
        help="what a frozen model's layers know of a task: linear probes and small MLPs on embeddings",
        description="Nucleotide Transformer's protocol: embeddings of up to ten layers, logistic regression and a small MLP on each, ten "
        "folds, settings by a tree-structured Parzen search. Equal sequences and reverse complements stay in one fold. Settings, layer and "
        "probe are chosen by the folds; the test table takes no part in that.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    verb.add_argument("--train", required=True, type=Path, metavar="TABLE", help=TABLE)
    verb.add_argument("--test", type=Path, metavar="TABLE", help="scored with bootstrap intervals")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="probe.json, probe.png, embeddings/")
    verb.add_argument("--layers", metavar="LIST", help="for example 0,6,-1; default: ten at most, evenly")
    verb.add_argument("--probes", default="logistic,mlp", metavar="LIST", help="of logistic (ridge for regression), mlp (default both)")
    verb.add_argument("--task", default="classification", metavar="classification|regression")
    verb.add_argument(
        "--metric", default="", metavar="NAME", help="searched for: mcc, f1, f1_weighted, accuracy, auroc, auprc; pearson, spearman, r2"
    )
    verb.add_argument("--folds", type=int, default=10, metavar="N", help="default 10")
    verb.add_argument(
        "--trials", type=int, default=20, metavar="N", help="of each probe and layer; the first has the defaults (default 20)"
    )
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes; the result does not depend on it (default 1)")
    verb.add_argument("--pooling", default="mean", metavar="mean|cls|last|max", help="see embed (default mean)")
    verb.add_argument("--cache", type=Path, metavar="DIR", help="of embeddings, by content (default: DIR/embeddings of --output)")
    verb.add_argument("--json", action="store_true", help="print what probe.json holds")
    add_table_options(verb)
    add_backbone_options(verb)
    verb.set_defaults(verb=_probe)


def _probe(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.embedding.probe import ProbeSettings, format_probe, run_probe
    from dnapretrain.adapt.sequences.tables import read_table

    settings = ProbeSettings(
        layers=parse_layers(arguments.layers) if arguments.layers else None,
        probes=tuple(arguments.probes.split(",")),
        task=arguments.task,
        metric=arguments.metric,
        num_folds=arguments.folds,
        num_trials=arguments.trials,
        seed=arguments.seed,
        workers=arguments.workers,
        pooling=arguments.pooling,
        both_strands=arguments.both_strands,
        tokens_per_batch=arguments.tokens_per_batch,
        device=device_of(arguments),
        dtype=arguments.dtype,
        on_long=arguments.on_long,
        max_tokens=arguments.max_tokens,
        random_weights=arguments.random_weights,
    )
    settings.check()
    options = table_options(arguments, needs_labels=True)
    train = read_table(arguments.train, options)
    test = read_table(arguments.test, options) if arguments.test else None
    found = run_probe(
        arguments.model, train, test, arguments.output, settings, arguments.cache, lambda line: print(line, file=sys.stderr, flush=True)
    )
    print((arguments.output / "probe.json").read_text() if arguments.json else format_probe(found))
    return 0
