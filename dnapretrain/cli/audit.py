"""Verbs that say what a run reads: locate, was-seen, coverage, dedup, cluster, leakage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.data.formats.whole_file import whole_file
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    pass


def add_locate(verbs: Any) -> None:
    verb = verbs.add_parser("locate", help="a step or sample of a run -> the loci it reads")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CONFIG", help="run folder, or YAML file as for pretrain")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="N", help="all samples of a training step; steps count from 1, as in the log")
    what.add_argument("--sample", type=int, nargs="+", metavar="ID", help="samples by number, from 0")
    verb.add_argument("--rank", type=int, metavar="R", help="with --step: the part of this data-parallel rank, micro-batch by micro-batch")
    verb.add_argument("--world-size", type=int, metavar="W", help="with --rank: the number of data-parallel ranks")
    verb.add_argument("--set", default="train", metavar="NAME", help="with --sample: train, or a held-out set (default train)")
    verb.add_argument("--fasta", action="store_true", help="print the bases, on the strand they are read on, as FASTA")
    verb.add_argument("--json", action="store_true", help="print JSON, one object per sample; loci there are 0-based half-open")
    verb.set_defaults(verb=_locate)


def _locate(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.locate import Wanted, format_fasta, format_located, locate, samples_of_step
    from dnapretrain.data.audit.runs import open_run, open_set

    config, _ = open_run(arguments.run)
    if arguments.step is None:
        if arguments.rank is not None or arguments.world_size is not None:
            raise ConfigError("--rank and --world-size choose a part of a step. Give --step, or remove them.")
        wanted = [Wanted(sample) for sample in arguments.sample]
    else:
        if arguments.set != "train":
            raise ConfigError(f"--set = {arguments.set}: steps read the training set only. Give --sample, or remove --set.")
        wanted = samples_of_step(config, arguments.step, arguments.rank, arguments.world_size)
    for found in locate(open_set(config, arguments.set), wanted, with_bases=arguments.fasta):
        if arguments.json:
            print(json.dumps(found))
        else:
            print(format_fasta(found) if arguments.fasta else format_located(found), end="" if arguments.fasta else "\n")
    return 0


def add_was_seen(verbs: Any) -> None:
    verb = verbs.add_parser("was-seen", help="loci -> the side of the split they lie on, and the training samples that read them")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CONFIG", help="run folder, or YAML file as for pretrain")
    verb.add_argument("loci", nargs="*", metavar="LOCUS", help="assembly:contig:start-end or contig:start-end, 1-based, end included")
    verb.add_argument("--bed", type=Path, metavar="FILE", help="loci of a BED file; its contigs may be named assembly:contig")
    verb.add_argument("--up-to-step", type=int, metavar="N", help="default: the last step of the run; train.train_steps of a config file")
    verb.add_argument("--json", action="store_true", help="print JSON, one object per locus; coordinates there are 0-based half-open")
    verb.set_defaults(verb=_was_seen)


def _was_seen(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.runs import open_run
    from dnapretrain.data.audit.was_seen import format_seen, read_bed, was_seen

    loci = arguments.loci + (read_bed(arguments.bed) if arguments.bed else [])
    if not loci:
        raise ConfigError("no locus is given. Give assembly:contig:start-end, or --bed FILE.")
    config, last_step = open_run(arguments.run)
    step = last_step if arguments.up_to_step is None else arguments.up_to_step
    for item in was_seen(config, loci, step):
        print(json.dumps(item.to_dict(step)) if arguments.json else format_seen(item, step))
    return 0


def add_coverage(verbs: Any) -> None:
    verb = verbs.add_parser("coverage", help="how often training has read each base, as bedGraph")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CONFIG", help="run folder, or YAML file as for pretrain")
    verb.add_argument("--up-to-step", type=int, metavar="N", help="default: the last step of the run; train.train_steps of a config file")
    verb.add_argument("--output", type=Path, metavar="FILE", help="write the bedGraph there instead of printing it")
    verb.set_defaults(verb=_coverage)


def _coverage(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.coverage import write_coverage
    from dnapretrain.data.audit.runs import open_run

    config, last_step = open_run(arguments.run)
    step = last_step if arguments.up_to_step is None else arguments.up_to_step
    if arguments.output is None:
        summary = write_coverage(config, step, sys.stdout)
        sys.stderr.write(f"{summary.format(step)}\n")
        return 0
    with whole_file(arguments.output) as file:
        summary = write_coverage(config, step, file)
    print(summary.format(step))
    return 0


def _add_sketch_arguments(verb: Any) -> None:
    verb.add_argument("--k", type=int, default=31, help="length of the k-mers, 11 to 31 (default 31)")
    verb.add_argument(
        "--scale", type=int, default=50, metavar="N", help="keep one k-mer of N: less memory, and less sure of short pieces (default 50)"
    )
    verb.add_argument("--piece", type=int, default=10_000, metavar="BASES", help="documents are judged in pieces (default 10000)")
    verb.add_argument("--output", type=Path, metavar="BED", help="write them there: contig, start, end, name, share of 1000")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as file:
        file.writelines(lines)


def add_dedup(verbs: Any) -> None:
    verb = verbs.add_parser(
        "dedup",
        help="exact and near duplicates in shards, and a BED file of what to leave out",
        description="The first shard given keeps its own; within a shard the longest document does. Exact: the same bases, on either "
        "strand, in either case. Near: a piece of which at least the share --near of its k-mers stands in pieces that stay (0.9 at k = 31: "
        "bases that differ at about 0.34 % or less). The BED file fits `preprocess --exclude-bed`: contigs of a name that "
        "several assemblies have are written assembly:contig. Its names are the numbers of clusters.",
    )
    verb.add_argument("prefixes", nargs="+", type=Path, metavar="SHARD", help="prefix of a base shard")
    verb.add_argument("--near", type=float, default=0.9, metavar="SHARE", help="of the k-mers of a piece (default 0.9)")
    _add_sketch_arguments(verb)
    verb.set_defaults(verb=_dedup)


def _dedup(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.dedup import Duplicates, format_duplicates
    from dnapretrain.data.audit.homology import SketchSettings

    settings = SketchSettings(arguments.k, arguments.scale, arguments.piece)
    duplicates = Duplicates(arguments.prefixes, settings, arguments.near)
    if arguments.output is not None:
        _write_lines(arguments.output, duplicates.bed())
    report = duplicates.report()
    print(json.dumps(report, indent=1) if arguments.json else format_duplicates(report))
    return 0


def add_cluster(verbs: Any) -> None:
    verb = verbs.add_parser(
        "cluster",
        help="homologous pieces of shards in clusters, for a split that keeps each cluster on one side",
        description="Pieces of contigs, on either strand, are linked where the smaller one shares --link of its k-mers with the other; "
        "whatever links connect is one cluster. The file goes with data.split.by=cluster, data.split.clusters=FILE, valid_fraction and "
        "test_fraction; `leakage` shows what a split still leaks. Memory: about 60 bytes per kept k-mer and 150 per 5 x --scale bases.",
    )
    verb.add_argument("inputs", nargs="+", type=Path, metavar="SHARD_OR_CONFIG", help="prefixes of shards, or one YAML file or run folder")
    verb.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="write BED lines there: contig, start, end, cluster, assembly"
    )
    verb.add_argument("--k", type=int, default=31, help="length of the k-mers, 11 to 31 (default 31)")
    verb.add_argument("--scale", type=int, default=50, metavar="N", help="keep one k-mer of N (default 50)")
    verb.add_argument("--piece", type=int, default=20_000, metavar="BASES", help="of a piece, at most (default 20000)")
    verb.add_argument("--link", type=float, default=0.1, metavar="SHARE", help="of the k-mers of the smaller piece (default 0.1)")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_cluster)


def _cluster(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.cluster import ClusterSettings, HomologyClusters, format_clusters
    from dnapretrain.data.audit.runs import open_config

    settings = ClusterSettings(arguments.k, arguments.scale, arguments.piece, arguments.link)
    prefixes = arguments.inputs
    if len(prefixes) == 1 and (prefixes[0].is_dir() or prefixes[0].suffix in (".yaml", ".yml")):
        prefixes = [source.prefix for source in open_config(prefixes[0]).data.train]
    clusters = HomologyClusters(prefixes, settings)
    _write_lines(arguments.output, clusters.lines())
    report = clusters.report()
    print(json.dumps(report, indent=1) if arguments.json else format_clusters(report))
    return 0


def add_leakage(verbs: Any) -> None:
    verb = verbs.add_parser(
        "leakage",
        help="how much of the held-out sets stands in the training side too",
        description="For each held-out set: the share of its k-mers that stand in the training side, on either strand, and the share of "
        "its bases in pieces with at least --threshold of their k-mers there. The BED file names those pieces with their set; contigs "
        "as assembly:contig where several assemblies have one of that name.",
    )
    verb.add_argument("config", type=Path, metavar="CONFIG_OR_RUN", help="YAML file as for pretrain, or run folder")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    verb.add_argument("--threshold", type=float, default=0.5, metavar="SHARE", help="of the k-mers of a piece (default 0.5)")
    _add_sketch_arguments(verb)
    verb.set_defaults(verb=_leakage)


def _leakage(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.homology import Leakage, SketchSettings, format_leakage
    from dnapretrain.data.audit.runs import open_config

    settings = SketchSettings(arguments.k, arguments.scale, arguments.piece)
    leakage = Leakage(open_config(arguments.config, arguments.overrides), settings, arguments.threshold)
    if arguments.output is not None:
        _write_lines(arguments.output, leakage.bed())
    report = leakage.report()
    print(json.dumps(report, indent=1) if arguments.json else format_leakage(report))
    return 0
