"""The command line: `dnapretrain VERB`. Each verb parses, calls one function and prints.

Implementations are imported when their verb runs, so that `--help`, `preprocess` and `inspect` start
without torch.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dnapretrain import __version__
from dnapretrain.errors import ConfigError, DnaPretrainError

if TYPE_CHECKING:
    from dnapretrain.config import RunConfig

Verb = Callable[[argparse.Namespace], int]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Failures of writing that name no file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code. Errors of the user are one line on stderr."""
    parsed = _parse(arguments)
    # Which path each part takes is logged once in our own words; the libraries' warnings say it again per rank.
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers)(\.|$)")
    verb: Verb = parsed.verb
    try:
        return verb(parsed)
    except DnaPretrainError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, `dnapretrain inspect | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        return 0
    except ImportError as error:
        if "_core" not in str(error):
            raise
        sys.stderr.write(
            "error: the native core is not built. Run `pip install -e .` or `python setup.py build_ext --inplace` in the clone.\n"
        )
        return DnaPretrainError.exit_code
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"error: {where}{error.strerror}. Check the path, its permissions and the free space.\n")
        return DnaPretrainError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped by the user\n")
        return 130


class _Parser(argparse.ArgumentParser):
    """Errors are one line, like all others; options are not guessed from their first letters."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(DnaPretrainError.exit_code, f"error: {message}. See {self.prog} --help.\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Settings may stand before and after options; argparse takes only those before."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(parsed, "overrides") or any(argument.startswith("-") for argument in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parsed.overrides += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dnapretrain", description="From FASTA files to a DNA language model, and out to Hugging Face.")
    parser.add_argument("--version", action="version", version=f"dnapretrain {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in (
        _add_corpus,
        _add_preprocess,
        _add_haplotypes,
        _add_extract,
        _add_inspect,
        _add_locate,
        _add_was_seen,
        _add_coverage,
        _add_dedup,
        _add_leakage,
        _add_train_bpe,
        _add_pretrain,
        _add_evaluate,
        _add_convert,
        _add_generate,
        _add_plan,
        _add_report,
        _add_verify,
        _add_doctor,
    ):
        add(verbs)
    return parser


def _add_corpus(verbs: Any) -> None:
    verb = verbs.add_parser("corpus", help="genomes by name or accession: download, check, split, preprocess, lock")
    verb.add_argument(
        "corpus",
        nargs="?",
        metavar="NAME_OR_FILE",
        help="a corpus that comes with the package (demo-viruses, human-ref, nt-multispecies, aido-dna, dnabert2, generator-eukaryote), "
        "a YAML manifest, or a list (.txt, .tsv, .csv) of accessions or addresses",
    )
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="downloads, shards, data.yaml, corpus.lock.json")
    verb.add_argument("--accessions", type=Path, metavar="FILE", help="list that supplies the entries of the manifest")
    verb.add_argument("--base-url", metavar="URL", help="a mirror of https://ftp.ncbi.nlm.nih.gov/genomes/all")
    verb.add_argument("--workers", type=int, default=4, help="genomes at the same time (default 4; NCBI asks for few)")
    verb.add_argument("--max-rate", type=float, metavar="MB/s", help="limit of all downloads together; default: none")
    verb.add_argument("--retries", type=int, default=6, help="attempts in a row that bring less than 1 MiB before a file fails (default 6)")
    verb.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="silence after which a connection is given up (default 60)"
    )
    verb.add_argument("--dry-run", action="store_true", help="look everything up, print sizes and sides, write nothing")
    verb.add_argument("--only-download", action="store_true", help="no shards; run again without it to make them")
    verb.add_argument(
        "--locked", type=Path, metavar="LOCK", help="reproduce the corpus of this corpus.lock.json; any difference in content is an error"
    )
    verb.set_defaults(verb=_corpus)


def _corpus(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.corpora.command import run_corpus

    return run_corpus(
        arguments.corpus,
        arguments.output,
        accessions=arguments.accessions,
        base_url=arguments.base_url,
        workers=arguments.workers,
        max_rate=arguments.max_rate,
        retries=arguments.retries,
        timeout=arguments.timeout,
        dry_run=arguments.dry_run,
        only_download=arguments.only_download,
        locked=arguments.locked,
    )


def _add_preprocess(verbs: Any) -> None:
    verb = verbs.add_parser("preprocess", help="sequence files -> base shards (.bin, .idx, .bed, .json)")
    what = "FASTA, FASTQ, .2bit, GenBank, EMBL or GFF3 with ##FASTA; plain, gzip, bgzf, zstd, xz or bzip2, told by content. "
    where = (
        "A file, a folder (its FASTA, FASTQ and .2bit files, no sub-folders), a quoted pattern ('genomes/**/*.fna'), or @LIST, one per line"
    )
    verb.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=what + where)
    verb.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx, PREFIX.bed, PREFIX.json")
    verb.add_argument("--workers", type=int, default=1, help="input files read at the same time; the output does not depend on it")
    verb.add_argument("--min-n-run", type=int, default=10, help="cut where at least so many N stand in a row (default 10)")
    verb.add_argument("--min-length", type=int, default=1, help="leave out segments shorter than so many bases, counted (default 1)")
    verb.add_argument("--max-n-fraction", type=float, metavar="F", help="leave out documents with a larger share of N, counted")
    verb.add_argument(
        "--include-bed", type=Path, metavar="FILE", help="keep only what lies in these intervals; documents end at their edges"
    )
    verb.add_argument("--exclude-bed", type=Path, metavar="FILE", help="leave out what lies in these intervals")
    verb.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave out inputs that cannot be used, and list them"
    )
    verb.add_argument("--assembly", help="name of the assembly in loci (one input); default: the file name")
    verb.add_argument("--sha256", action="store_true", help="record SHA-256 of the inputs beside XXH3-128")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing shard")
    verb.set_defaults(verb=_preprocess)


def _preprocess(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.shards.inspect import format_inspection, inspect_shard
    from dnapretrain.data.shards.preprocess import preprocess

    preprocess(
        arguments.inputs,
        arguments.output,
        workers=arguments.workers,
        min_n_run=arguments.min_n_run,
        min_length=arguments.min_length,
        assembly=arguments.assembly,
        sha256=arguments.sha256,
        overwrite=arguments.overwrite,
        max_n_fraction=arguments.max_n_fraction,
        include_bed=arguments.include_bed,
        exclude_bed=arguments.exclude_bed,
        on_error=arguments.on_error,
    )
    print(format_inspection(inspect_shard(arguments.output)))
    return 0


def _add_haplotypes(verbs: Any) -> None:
    verb = verbs.add_parser(
        "haplotypes",
        help="a reference shard and phased variants (VCF) -> a shard of haplotypes",
        description="Both haplotypes of each sample on the contigs of the VCF: SNVs, insertions, deletions and replacements are applied; "
        "of alleles that overlap on a haplotype the first; symbolic alleles (<DEL>) and missing calls keep the reference and are counted. "
        "FILTER is not read.",
    )
    verb.add_argument("shard", type=Path, metavar="SHARD", help="prefix of the reference: whole contigs, as preprocess writes them")
    verb.add_argument(
        "--vcf", nargs="+", required=True, type=Path, metavar="FILE", help="phased VCF, plain, gzip or BGZF; a contig in one file only"
    )
    verb.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="writes PREFIX.bin, .idx, .bed, .json and PREFIX.edits")
    verb.add_argument(
        "--samples", default="all", metavar="NAMES", help="names with commas between, @FILE with one on each line, or all (default)"
    )
    verb.add_argument("--contig-names", type=Path, metavar="TSV", help="table: name in the VCF, tab, name in the shard (default: the same)")
    verb.add_argument(
        "--on-unphased",
        default="error",
        metavar="error|skip",
        help="alleles that differ without a phase; skip keeps REF and counts (default error)",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace an existing shard")
    verb.set_defaults(verb=_haplotypes)


def _haplotypes(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.variants.haplotypes import format_haplotypes, make_haplotypes

    manifest = make_haplotypes(
        arguments.shard,
        arguments.vcf,
        arguments.output,
        samples=arguments.samples,
        contig_names=arguments.contig_names,
        on_unphased=arguments.on_unphased,
        overwrite=arguments.overwrite,
        say=lambda line: print(line, flush=True),
    )
    print(format_haplotypes(manifest))
    return 0


def _add_extract(verbs: Any) -> None:
    verb = verbs.add_parser("extract", help="base shard + GFF3 or GTF -> shard of genes, transcripts, CDS or promoter windows")
    verb.add_argument("prefix", type=Path, metavar="SHARD", help="prefix of a base shard")
    verb.add_argument("--annotation", required=True, type=Path, metavar="FILE", help="GFF3 or GTF, plain or gzip")
    verb.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="writes PREFIX.bin, .idx, .bed, .labels.tsv, .json")
    verb.add_argument("--features", default="gene", metavar="LIST", help="of gene, transcript, cds, promoter (default gene)")
    verb.add_argument("--types", metavar="LIST", help="types of genes: of cds, pseudo, tRNA, rRNA, ncRNA, miscRNA, other (default all)")
    verb.add_argument("--flank", type=int, default=0, metavar="N", help="bases added on both sides of genes and unspliced transcripts")
    verb.add_argument("--spliced", action="store_true", help="transcripts without introns (a CDS never has any)")
    verb.add_argument("--promoter", metavar="UP:DOWN", help="bases before and after the first base of a transcript, for feature promoter")
    verb.add_argument(
        "--isoforms",
        choices=("all", "distinct", "longest"),
        default="all",
        help="of each gene and feature: every document, those that differ, or the longest (default all; repeats are counted)",
    )
    verb.add_argument("--clade", metavar="NAME", help="recorded for each document: mam vrt inv pln fng prt arc bct mit plt plm vir")
    verb.add_argument("--min-length", type=int, default=1, metavar="N", help="leave out shorter documents, counted (default 1)")
    verb.add_argument("--max-length", type=int, metavar="N", help="leave out longer documents, counted (default: none)")
    verb.add_argument("--assembly", metavar="NAME", help="the one that the annotation is for, where the shard holds several")
    verb.add_argument(
        "--contig-names",
        metavar="MAP|chr",
        help="a file of name<tab>contig (contig '-': leave out; a third column: the contig is a window that begins at this 0-based "
        "position), or 'chr': names differ by a leading chr and in the name of the mitochondrion only. Default: names are equal",
    )
    verb.add_argument("--skip-missing-contigs", action="store_true", help="leave out genes on contigs that the shard lacks, counted")
    verb.add_argument("--genetic-code", type=int, default=1, metavar="N", help="NCBI number, for CDS without transl_table (default 1)")
    verb.add_argument("--force", action="store_true", help="go on where contig lengths or start and stop codons do not fit the annotation")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing shard")
    verb.set_defaults(verb=_extract)


def _extract(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.genes.extract import extract, format_extraction
    from dnapretrain.data.genes.gene_regions import settings_from_text

    settings = settings_from_text(
        arguments.features,
        arguments.types,
        arguments.promoter,
        flank=arguments.flank,
        spliced=arguments.spliced,
        isoforms=arguments.isoforms,
        clade=arguments.clade,
        min_length=arguments.min_length,
        **({"max_length": arguments.max_length} if arguments.max_length is not None else {}),
        genetic_code=arguments.genetic_code,
        skip_missing_contigs=arguments.skip_missing_contigs,
        force=arguments.force,
    )
    manifest = extract(
        arguments.prefix,
        arguments.annotation,
        arguments.output,
        settings,
        assembly=arguments.assembly,
        contig_names=arguments.contig_names,
        overwrite=arguments.overwrite,
    )
    print(format_extraction(manifest))
    return 0


def _add_inspect(verbs: Any) -> None:
    verb = verbs.add_parser("inspect", help="what a shard holds")
    verb.add_argument("prefix", type=Path, metavar="PREFIX")
    verb.add_argument("--check", action="store_true", help="read every base and compare with the recorded digest")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.shards.inspect import format_inspection, inspect_shard

    inspection = inspect_shard(arguments.prefix, check=arguments.check)
    print(json.dumps(inspection, indent=1) if arguments.json else format_inspection(inspection))
    return 0


def _add_locate(verbs: Any) -> None:
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
    from dnapretrain.data.audit.provenance import Wanted, format_fasta, format_located, locate, open_run, open_set, samples_of_step

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


def _add_was_seen(verbs: Any) -> None:
    verb = verbs.add_parser("was-seen", help="loci -> the side of the split they lie on, and the training samples that read them")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CONFIG", help="run folder, or YAML file as for pretrain")
    verb.add_argument("loci", nargs="*", metavar="LOCUS", help="assembly:contig:start-end or contig:start-end, 1-based, end included")
    verb.add_argument("--bed", type=Path, metavar="FILE", help="loci of a BED file; its contigs may be named assembly:contig")
    verb.add_argument("--up-to-step", type=int, metavar="N", help="default: the last step of the run; train.train_steps of a config file")
    verb.add_argument("--json", action="store_true", help="print JSON, one object per locus; coordinates there are 0-based half-open")
    verb.set_defaults(verb=_was_seen)


def _was_seen(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.provenance import format_seen, open_run, read_bed, was_seen

    loci = arguments.loci + (read_bed(arguments.bed) if arguments.bed else [])
    if not loci:
        raise ConfigError("no locus is given. Give assembly:contig:start-end, or --bed FILE.")
    config, last_step = open_run(arguments.run)
    step = last_step if arguments.up_to_step is None else arguments.up_to_step
    for item in was_seen(config, loci, step):
        print(json.dumps(item.to_dict(step)) if arguments.json else format_seen(item, step))
    return 0


def _add_coverage(verbs: Any) -> None:
    verb = verbs.add_parser("coverage", help="how often training has read each base, as bedGraph")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CONFIG", help="run folder, or YAML file as for pretrain")
    verb.add_argument("--up-to-step", type=int, metavar="N", help="default: the last step of the run; train.train_steps of a config file")
    verb.add_argument("--output", type=Path, metavar="FILE", help="write the bedGraph there instead of printing it")
    verb.set_defaults(verb=_coverage)


def _coverage(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.audit.coverage import write_coverage
    from dnapretrain.data.audit.provenance import open_run

    config, last_step = open_run(arguments.run)
    step = last_step if arguments.up_to_step is None else arguments.up_to_step
    if arguments.output is None:
        summary = write_coverage(config, step, sys.stdout)
        sys.stderr.write(f"{summary.format(step)}\n")
        return 0
    partial = arguments.output.with_name(f".{arguments.output.name}.partial")
    with partial.open("w") as file:
        summary = write_coverage(config, step, file)
    partial.replace(arguments.output)
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
    """Write a file that is either whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(lines)
    partial.replace(path)


def _add_dedup(verbs: Any) -> None:
    verb = verbs.add_parser(
        "dedup",
        help="exact and near duplicates in shards, and a BED file of what to leave out",
        description="The first shard given keeps its own; within a shard the longest document does. Exact: the same bases, on either "
        "strand, in either case. Near: a piece of which at least the share --near of its k-mers stands in pieces that stay (0.9 at k = 31: "
        "bases that differ at about 0.34 %% or less). The BED file fits `preprocess --exclude-bed` where each contig name belongs to one "
        "assembly; other contigs are named assembly:contig. Its names are the numbers of clusters.",
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


def _add_leakage(verbs: Any) -> None:
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
    from dnapretrain.data.audit.provenance import open_config

    settings = SketchSettings(arguments.k, arguments.scale, arguments.piece)
    leakage = Leakage(open_config(arguments.config, arguments.overrides), settings, arguments.threshold)
    if arguments.output is not None:
        _write_lines(arguments.output, leakage.bed())
    report = leakage.report()
    print(json.dumps(report, indent=1) if arguments.json else format_leakage(report))
    return 0


def _add_run_arguments(verb: Any) -> None:
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, e.g. optim.lr=3e-4 parallel.tp=2"
    )
    verb.add_argument("--ranks", type=int, help="ranks to start on this machine; default: one per GPU, or one model copy on CPU")


def _add_train_bpe(verbs: Any) -> None:
    verb = verbs.add_parser("train-bpe", help="base shards -> a BPE tokenizer.json")
    verb.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX", help="base shard, as preprocess wrote it")
    verb.add_argument("--output", required=True, type=Path, metavar="JSON", help="writes the tokenizer, and JSON.training.json beside it")
    verb.add_argument("--vocab-size", type=int, default=4096, help="tokens, 5 special ones and A, C, G, T included (default 4096)")
    verb.add_argument("--max-token-length", type=int, default=32, help="bases of the longest token; 0: no limit (default 32)")
    verb.add_argument("--min-count", type=int, default=2, help="leave pairs alone that stand in fewer places (default 2)")
    verb.add_argument("--both-strands", action="store_true", help="read every document on the other strand too (twice the memory and time)")
    verb.add_argument(
        "--max-bases", type=int, help="learn from so many bases at most, drawn in pieces of 2^20 (default: all, at 2 bytes of memory each)"
    )
    verb.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    verb.set_defaults(verb=_train_bpe)


def _train_bpe(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.tokens.bpe import format_training, train_bpe

    def draw(merges: int, wanted: int) -> None:
        sys.stderr.write(f"\r{merges:,} of {wanted:,} merges" + ("\n" if merges == wanted else ""))
        sys.stderr.flush()

    report = train_bpe(
        arguments.prefixes,
        arguments.output,
        vocab_size=arguments.vocab_size,
        max_token_length=arguments.max_token_length,
        min_count=arguments.min_count,
        both_strands=arguments.both_strands,
        max_bases=arguments.max_bases,
        seed=arguments.seed,
        on_progress=draw if sys.stderr.isatty() else None,
    )
    print(format_training(report, arguments.output))
    return 0


def _add_pretrain(verbs: Any) -> None:
    verb = verbs.add_parser("pretrain", help="train; resumes when the run folder has a checkpoint")
    verb.add_argument(
        "config", type=Path, metavar="FILE", help="YAML file with the sections data, tokenizer, model, parallel, optim, train, ..."
    )
    _add_run_arguments(verb)
    verb.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    verb.set_defaults(verb=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    from dnapretrain.config import dump_config, load_config
    from dnapretrain.parallel.launch import launch_local

    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        print(dump_config(config), end="")
        return 0
    ranks = _check_before_launch(config, arguments.ranks)
    if ranks > 1:
        return launch_local(["pretrain", str(arguments.config), *arguments.overrides], ranks)
    from dnapretrain.train.run import pretrain

    pretrain(config)
    return 0


def _check_before_launch(config: RunConfig, wanted_ranks: int | None) -> int:
    """Number of ranks to start (1: this process), after every check that needs no ranks: a mistake is then reported once."""
    from dnapretrain.config_rules import check_world
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.parallel.launch import default_ranks, is_launched

    if wanted_ranks is not None and wanted_ranks < 1:
        raise ConfigError(f"--ranks = {wanted_ranks} is below 1. Give the number of ranks to start.")
    if is_launched():
        if wanted_ranks is not None:
            raise ConfigError(f"--ranks = {wanted_ranks}, but torchrun or srun has started the ranks already. Remove --ranks.")
        return 1
    ranks = wanted_ranks or default_ranks(config.train.device, config.parallel.model_parallel_size)
    check_world(config, ranks)
    open_data(config)
    return ranks


def _add_evaluate(verbs: Any) -> None:
    verb = verbs.add_parser("evaluate", help="loss and bits per base of a checkpoint on its held-out sets")
    verb.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    _add_run_arguments(verb)
    verb.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME", help="a held-out set (repeatable); default: all")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.native import find_checkpoint, read_config
    from dnapretrain.parallel.launch import launch_local

    checkpoint = find_checkpoint(arguments.run)
    config = read_config(checkpoint, arguments.overrides)
    ranks = _check_before_launch(config, arguments.ranks)
    if ranks > 1:
        sets = [part for name in arguments.sets for part in ("--set", name)]
        flags = sets + (["--json"] if arguments.json else [])
        return launch_local(["evaluate", str(checkpoint), *arguments.overrides, *flags], ranks)
    from dnapretrain.parallel.platform import launch_environment
    from dnapretrain.train.run import evaluate

    results = evaluate(config, checkpoint, tuple(arguments.sets))
    if launch_environment().rank == 0:
        if arguments.json:
            print(json.dumps({name: vars(result) for name, result in results.items()}, indent=1))
        else:
            for name, result in results.items():
                print(f"{name}: loss {result.loss:.4f}, {result.bits_per_base:.4f} bits per base over {result.num_targets:,} tokens")
    return 0


def _add_convert(verbs: Any) -> None:
    convert = verbs.add_parser("convert", help="native checkpoints <-> Hugging Face folders")
    directions = convert.add_subparsers(required=True, metavar="DIRECTION")
    to_hf = directions.add_parser("to-hf", help="a run or checkpoint -> a folder that transformers loads")
    to_hf.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT")
    to_hf.add_argument("target", type=Path, metavar="DIR")
    to_hf.set_defaults(verb=_to_hf)
    from_hf = directions.add_parser("from-hf", help="a Hugging Face folder -> a checkpoint for checkpoint.load")
    from_hf.add_argument("source", type=Path, metavar="DIR")
    from_hf.add_argument("target", type=Path, metavar="CHECKPOINT")
    from_hf.set_defaults(verb=_from_hf)


def _to_hf(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.hf import to_hf

    print(json.dumps(to_hf(arguments.source, arguments.target), indent=1))
    return 0


def _from_hf(arguments: argparse.Namespace) -> int:
    from dnapretrain.convert.hf import from_hf

    print(json.dumps(from_hf(arguments.source, arguments.target), indent=1))
    return 0


def _add_generate(verbs: Any) -> None:
    verb = verbs.add_parser("generate", help="DNA from a Hugging Face folder, as FASTA")
    verb.add_argument("model", type=Path, metavar="DIR", help="folder made by `convert to-hf`")
    verb.add_argument("--prompt", action="append", default=None, metavar="BASES", help="sequence to continue (repeatable); default: none")
    verb.add_argument("--num-bases", type=int, default=200, help="bases to add to each prompt (default 200)")
    verb.add_argument("--num-samples", type=int, default=1, help="sequences per prompt (default 1)")
    verb.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest base every time (default 1)")
    verb.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: among all")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--device", default="cpu", help="cpu or cuda")
    verb.add_argument("--output", type=Path, metavar="FASTA", help="write there instead of printing")
    verb.set_defaults(verb=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.generate import generate, to_fasta

    records = generate(
        arguments.model,
        arguments.prompt or [""],
        num_bases=arguments.num_bases,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        num_samples=arguments.num_samples,
        device=arguments.device,
    )
    fasta = to_fasta(records)
    if arguments.output:
        arguments.output.write_text(fasta)
    else:
        print(fasta, end="")
    return 0


def _add_plan(verbs: Any) -> None:
    verb = verbs.add_parser("plan", help="before a run: parameters, memory of every layout, FLOPs, time")
    verb.add_argument("config", type=Path, metavar="FILE", help="YAML file as for pretrain; its data are not opened")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs")
    verb.add_argument("--gpu", required=True, metavar="KIND", help="kind of GPU, e.g. a100-80, h100, h200")
    verb.add_argument("--mfu", type=float, default=0.4, help="share of the peak to assume for the time (default 0.4)")
    verb.add_argument("--check", action="store_true", help="count the weights of every stage on the real model too (needs torch)")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from dnapretrain.config import load_config
    from dnapretrain.parallel.gpus import gpu_by_kind
    from dnapretrain.plan import check_counts, format_check, format_plan, make_plan

    config = load_config(arguments.config, arguments.overrides)
    plan = make_plan(config, arguments.gpus, gpu_by_kind(arguments.gpu), arguments.mfu)
    check = check_counts(config, arguments.gpus) if arguments.check else []
    if arguments.json:
        print(json.dumps({**plan, "check": check} if arguments.check else plan, indent=1))
    else:
        print(format_plan(plan))
        if check:
            print(f"\n{format_check(check)}")
    return 0 if all(row["formula"] == row["model"] for row in check) else 1


def _add_report(verbs: Any) -> None:
    verb = verbs.add_parser("report", help="the loss curve of a run as a picture")
    verb.add_argument("run", type=Path, metavar="RUN")
    verb.add_argument("--output", type=Path, metavar="PNG", help="default: RUN/loss.png")
    verb.set_defaults(verb=_report)


def _report(arguments: argparse.Namespace) -> int:
    from dnapretrain.report import loss_curve

    output = arguments.output or arguments.run / "loss.png"
    loss_curve(arguments.run, output)
    print(output)
    return 0


def _add_verify(verbs: Any) -> None:
    verify = verbs.add_parser("verify", help="proofs for your own configuration")
    proofs = verify.add_subparsers(required=True, metavar="PROOF")
    resume = proofs.add_parser("resume", help="train N steps; train k, stop, resume to N; compare every loss, weight and moment")
    resume.add_argument("config", type=Path, metavar="CONFIG")
    _add_run_arguments(resume)
    resume.add_argument("--steps", type=int, default=20, help="N (default 20)")
    resume.add_argument("--stop-at", type=int, help="k; default: N / 2")
    resume.add_argument(
        "--resume-with",
        action="append",
        default=[],
        metavar="key=value",
        help="settings of the resumed half only, e.g. parallel.tp=1: then losses must agree within a tolerance, not bit for bit",
    )
    resume.add_argument("--resume-ranks", type=int, help="ranks of the resumed half; default: as before")
    resume.add_argument(
        "--output", type=Path, default=Path("verify-resume"), metavar="DIR", help="runs and proof.json (default verify-resume)"
    )
    resume.set_defaults(verb=_verify_resume)
    layouts = proofs.add_parser(
        "layouts", help="train a few steps under every parallel layout; compare each loss and gradient norm with one rank"
    )
    layouts.add_argument("config", type=Path, metavar="CONFIG")
    layouts.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    layouts.add_argument("--ranks", type=int, metavar="MAX", help="leave out larger layouts; default: 8 on CPU, the number of GPUs on CUDA")
    layouts.add_argument("--steps", type=int, default=10, help="steps to compare (default 10)")
    layouts.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="these layouts only, as the table names them, e.g. TP2 PP2"
    )
    layouts.add_argument(
        "--output",
        type=Path,
        default=Path("verify-layouts"),
        metavar="DIR",
        help="settings, logs and layouts.json (default verify-layouts)",
    )
    layouts.set_defaults(verb=_verify_layouts)


def _verify_resume(arguments: argparse.Namespace) -> int:
    from dnapretrain.config import load_config
    from dnapretrain.verify import format_proof, verify_resume

    config = load_config(arguments.config, arguments.overrides)
    proof = verify_resume(
        config,
        ranks=_check_before_launch(config, arguments.ranks),
        steps=arguments.steps,
        stop_at=arguments.stop_at if arguments.stop_at is not None else arguments.steps // 2,
        resume_overrides=arguments.resume_with,
        resume_ranks=arguments.resume_ranks,
        output=arguments.output,
    )
    print(format_proof(proof))
    return 0 if proof["passed"] else 1


def _verify_layouts(arguments: argparse.Namespace) -> int:
    from dnapretrain.config import load_config
    from dnapretrain.verify_layouts import verify_layouts

    config = load_config(arguments.config, arguments.overrides)
    proof = verify_layouts(
        config, arguments.output, arguments.steps, arguments.ranks, arguments.only, say=lambda line: print(line, flush=True)
    )
    return 0 if proof["passed"] else 1


def _add_doctor(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="what is installed here, and which path each part would take")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from dnapretrain.doctor import diagnose, format_diagnosis

    diagnosis = diagnose()
    print(json.dumps(diagnosis, indent=1) if arguments.json else format_diagnosis(diagnosis))
    return 0 if diagnosis["ok"] else 1
