"""Verbs that fit a pretrained model to a task, and judge it: finetune, predict, benchmark."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.cli.adapt import MODEL, TABLE, add_device, add_table_options, device_of, table_options
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    from dnapretrain.adapt.sequences.tables import TableOptions
    from dnapretrain.adapt.training.finetune import FinetuneSettings


def add_finetune(verbs: Any) -> None:
    verb = verbs.add_parser(
        "finetune",
        help="fit a pretrained model to labelled sequences: all weights, LoRA, IA3 or a new head alone",
        description="The best epoch by the validation rows is kept; the test table takes no part in that. Equal sequences and reverse "
        "complements are on one side of folds and of validation rows made here; what given tables share is counted.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    verb.add_argument("--train", required=True, type=Path, metavar="TABLE", help=TABLE)
    verb.add_argument("--valid", type=Path, metavar="TABLE", help="default: --valid-fraction of the training rows")
    verb.add_argument("--test", type=Path, metavar="TABLE", help="scored with bootstrap intervals")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="result.json, and a folder per seed and fold")
    verb.add_argument(
        "--task",
        default="classification",
        metavar="NAME",
        help="classification; multilabel (--label-column for each, 0 or 1); regression (one number or several); tokens (a letter per "
        "base); causal (decoders: the sequences themselves, told --condition-column)",
    )
    verb.add_argument("--condition-column", metavar="NAME", help="of causal: what the model is told of each sequence; default: nothing")
    verb.add_argument("--condition-bins", type=int, default=0, metavar="N", help="of causal: cut its numbers into bins of like size")
    verb.add_argument("--method", default="full", metavar="full|lora|ia3|head", help="what learns beside the head (default full: all)")
    verb.add_argument("--lr", type=float, metavar="RATE", help="default 3e-5 (full), 1e-4 (lora), 3e-3 (ia3), 1e-3 (head)")
    verb.add_argument("--epochs", type=int, default=10, metavar="N", help="at most (default 10)")
    verb.add_argument("--patience", type=int, default=3, metavar="N", help="epochs without a better validation; 0: never stop (default 3)")
    verb.add_argument("--batch-size", type=int, default=32, metavar="N", help="default 32")
    verb.add_argument("--micro-batch-size", type=int, metavar="N", help="sequences at once, where memory is short; same gradient")
    verb.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help="that the best epoch is chosen by, or loss (mcc, auprc, pearson; of causal bits_per_base)",
    )
    verb.add_argument("--schedule", default="linear", metavar="linear|cosine|constant|plateau")
    verb.add_argument("--warmup", type=float, default=0.1, metavar="N", help="below 1 a share of the steps, else steps (default 0.1)")
    verb.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="of matrices (default 0.01)")
    verb.add_argument("--class-weights", action="store_true", help="rare classes count as much as common ones")
    verb.add_argument("--lora-rank", type=int, default=8, metavar="N")
    verb.add_argument("--lora-alpha", type=int, default=16, metavar="N")
    verb.add_argument("--lora-dropout", type=float, default=0.05, metavar="X")
    verb.add_argument("--seeds", default="1", metavar="LIST", help="for example 1,2,3: mean and interval over them (default 1)")
    verb.add_argument("--folds", type=int, default=0, metavar="N", help="each the test set once; with --test, the validation set")
    verb.add_argument("--valid-fraction", type=float, default=0.1, metavar="SHARE", help="default 0.1")
    verb.add_argument("--from-scratch", action="store_true", help="the same architecture from random weights, to compare with")
    verb.add_argument("--on-long", default="error", metavar="error|truncate", help="a sequence longer than the model (default error)")
    verb.add_argument("--max-tokens", type=int, metavar="N", help="longest sequence, specials included (default: the model's context)")
    add_device(verb)
    verb.add_argument("--dtype", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on a GPU (weights stay fp32), fp32 on the CPU")
    verb.add_argument("--keep", default="all", metavar="all|none", help="models of all seeds and folds, or results alone (default all)")
    verb.add_argument("--json", action="store_true", help="print what result.json holds")
    add_table_options(verb)
    verb.set_defaults(verb=_finetune)


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,2,3`. Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text} is no list of numbers such as 1,2,3.") from None


def finetune_settings(arguments: argparse.Namespace) -> FinetuneSettings:
    """The options of finetune."""
    from dnapretrain.adapt.training.classifier_loop import LoopSettings
    from dnapretrain.adapt.training.finetune import FinetuneSettings, learning_rate
    from dnapretrain.adapt.training.heads import Adapter

    loop = LoopSettings(
        lr=learning_rate(arguments.method) if arguments.lr is None else arguments.lr,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.micro_batch_size,
        epochs=arguments.epochs,
        patience=arguments.patience,
        select_by=arguments.metric,
        schedule=arguments.schedule,
        warmup=arguments.warmup,
        weight_decay=arguments.weight_decay,
        class_weights=arguments.class_weights,
        dtype=arguments.dtype,
    )
    return FinetuneSettings(
        task=arguments.task,
        method=arguments.method,
        loop=loop,
        adapter=Adapter(arguments.lora_rank, arguments.lora_alpha, arguments.lora_dropout),
        seeds=parse_numbers(arguments.seeds, "--seeds"),
        num_folds=arguments.folds,
        valid_fraction=arguments.valid_fraction,
        from_scratch=arguments.from_scratch,
        on_long=arguments.on_long,
        max_tokens=arguments.max_tokens,
        device=device_of(arguments),
        keep=arguments.keep,
        condition_bins=arguments.condition_bins,
    )


def _causal_options(arguments: argparse.Namespace, options: TableOptions) -> TableOptions:
    """`options`; of causal fine-tuning the one label is the condition. Raises ConfigError where the options are of another task."""
    condition = arguments.condition_column
    if arguments.task != "causal" and condition:
        raise ConfigError(f"--condition-column {condition} is for --task causal, not {arguments.task}. Use --label-column.")
    if arguments.task == "causal" and arguments.label_column:
        raise ConfigError("--task causal learns the sequences themselves. Name conditions with --condition-column.")
    if arguments.condition_bins and not condition:
        raise ConfigError(f"--condition-bins {arguments.condition_bins} needs --condition-column.")
    if arguments.task != "causal":
        return options
    return replace(options, label_columns=(condition,) if condition else (), needs_labels=bool(condition))


def _finetune(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.sequences.tables import read_table
    from dnapretrain.adapt.training.finetune import RESULT, format_finetune, run_finetune

    settings = finetune_settings(arguments)
    settings.check()
    options = _causal_options(arguments, table_options(arguments, needs_labels=True))
    train, valid, test = (read_table(path, options) if path else None for path in (arguments.train, arguments.valid, arguments.test))
    assert train is not None
    found = run_finetune(arguments.model, train, valid, test, arguments.output, settings, _say)
    print((arguments.output / RESULT).read_text() if arguments.json else format_finetune(found))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def add_predict(verbs: Any) -> None:
    verb = verbs.add_parser("predict", help="classes or numbers of new sequences, by models that finetune made")
    verb.add_argument("directory", type=Path, metavar="DIR", help="that finetune wrote; several seeds or folds: the mean of all")
    verb.add_argument("input", type=Path, metavar="INPUT", help=TABLE)
    verb.add_argument("--output", required=True, type=Path, metavar="CSV", help="rows in the order of the input")
    verb.add_argument("--batch-size", type=int, default=32, metavar="N", help="default 32")
    add_device(verb)
    verb.add_argument("--dtype", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on a GPU, fp32 on the CPU")
    add_table_options(verb)
    verb.set_defaults(verb=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.sequences.tables import read_table
    from dnapretrain.adapt.training.predict import predict_table, read_result, write_predictions

    num_runs = len(read_result(arguments.directory)["runs"])
    table = read_table(arguments.input, table_options(arguments))
    target, predicted, notes = predict_table(arguments.directory, table, device_of(arguments), arguments.dtype, arguments.batch_size)
    for note in notes:
        _say(f"note: {note}")
    write_predictions(arguments.output, table, target, predicted)
    print(f"{arguments.output}: {len(table):,} sequences, {target.task}, mean of {num_runs} models")
    return 0


def add_benchmark(verbs: Any) -> None:
    verb = verbs.add_parser(
        "benchmark",
        help="a suite's tasks that are on disk, fine-tuned over seeds, beside baselines and published numbers",
        description="DATA/TASK/ holds train and test tables (CSV, TSV, Parquet or FASTA, plain or packed), of GUE dev too. What is not "
        "there is skipped and named. Results of each contestant, task and seed are kept: the same command goes on where it stopped.",
    )
    verb.add_argument("models", type=Path, nargs="*", metavar="MODEL", help=MODEL + "; none: baselines alone")
    verb.add_argument(
        "--suite", required=True, metavar="NAME|YAML", help="gue, nt, nt-revised, genomic-benchmarks, gener, or a file like those"
    )
    verb.add_argument("--data", required=True, type=Path, metavar="DIR", help="the suite's tables")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="benchmark.json, benchmark.png, a folder per contestant")
    verb.add_argument("--tasks", metavar="LIST", help="for example tf,mouse/2 (default: all)")
    verb.add_argument("--seeds", default="1,2,3", metavar="LIST", help="default 1,2,3")
    verb.add_argument("--from-scratch", action="store_true", help="beside each model the same architecture from random weights")
    verb.add_argument(
        "--frozen",
        nargs="?",
        const="-1",
        metavar="LAYERS",
        help="instead of fine-tuning, logistic (ridge) regression on the mean hidden states of these layers, side by side (default -1)",
    )
    verb.add_argument("--baselines", default="kmer,tokens,cnn", metavar="LIST", help="of kmer, tokens, cnn, or none (default all)")
    verb.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="over the suite's hyperparameters: method=lora, lr=1e-4"
    )
    verb.add_argument(
        "--checkpoints", metavar="all|LIST", help="of each MODEL, a run, these steps: the metric over consumed tokens, benchmark-curve.png"
    )
    verb.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds and folds at the same time, in N processes (default 1)")
    verb.add_argument("--max-rows", type=int, metavar="N", help="of each table, drawn at random: a quick look, and marked as such")
    verb.add_argument("--on-long", default="error", metavar="error|truncate", help="a sequence longer than the model (default error)")
    add_device(verb)
    verb.add_argument("--dtype", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on a GPU (weights stay fp32), fp32 on the CPU")
    verb.add_argument("--json", action="store_true", help="print what benchmark.json holds")
    verb.set_defaults(verb=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.benchmarks.benchmark import BENCHMARK, BenchmarkSettings, run_benchmark
    from dnapretrain.adapt.benchmarks.benchmark_curve import draw_series
    from dnapretrain.adapt.benchmarks.benchmark_report import draw_benchmark, format_benchmark
    from dnapretrain.adapt.benchmarks.suites import parse_changes, read_suite

    suite = read_suite(arguments.suite)
    settings = BenchmarkSettings(
        seeds=parse_numbers(arguments.seeds, "--seeds"),
        from_scratch=arguments.from_scratch,
        frozen=() if arguments.frozen is None else parse_numbers(arguments.frozen, "--frozen"),
        baselines=() if arguments.baselines == "none" else tuple(arguments.baselines.split(",")),
        changes=parse_changes(arguments.set),
        max_rows=arguments.max_rows,
        on_long=arguments.on_long,
        device=device_of(arguments),
        dtype=arguments.dtype,
    )
    tasks = suite.choose(arguments.tasks.split(",") if arguments.tasks else None)
    found = run_benchmark(
        arguments.models, suite, tasks, arguments.data, arguments.output, settings, _say, arguments.checkpoints, arguments.jobs
    )
    draw_benchmark(arguments.output / "benchmark.png", found)
    if found["series"]:
        draw_series(arguments.output / "benchmark-curve.png", found)
    print((arguments.output / BENCHMARK).read_text() if arguments.json else format_benchmark(found))
    return 0
