"""Verbs that make and show shards: corpus, lint, preprocess, merge, haplotypes, extract, inspect; and train-bpe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

KEPT_BYTES = 1 << 26
"""Freed memory that preprocess keeps for its next blocks."""


def add_corpus(verbs: Any) -> None:
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


def add_preprocess(verbs: Any) -> None:
    verb = verbs.add_parser(
        "preprocess",
        help="sequence files -> base shards (.bin, .idx, .bed, .json)",
        description="The bytes written depend on the inputs and the cleaning alone. A run that is stopped, by kill -9 too, leaves the "
        "inputs it has finished in the folder .NAME.dnapretrain-tmp beside PREFIX. The same command then takes them over where size, time "
        "and settings are the same and the staged bytes are whole, and reads the others again; a run with other inputs or settings "
        "removes what it cannot use. --restart begins anew; to give a run up, remove the folder. One run at a time may write a PREFIX.",
    )
    what = "FASTA, FASTQ, .2bit, GenBank, EMBL or GFF3 with ##FASTA; plain, gzip, bgzf, zstd, xz or bzip2, told by content. "
    where = (
        "A file, a folder (its FASTA, FASTQ and .2bit files, no sub-folders), a quoted pattern ('genomes/**/*.fna'), or @LIST, one per line"
    )
    verb.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=what + where)
    verb.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx, PREFIX.bed, PREFIX.json")
    verb.add_argument(
        "--workers",
        type=int,
        default=1,
        help="threads (default 1): files at the same time, and the steps within a file; the output does not depend on it",
    )
    verb.add_argument("--min-n-run", type=int, default=10, help="cut where at least so many N stand in a row (default 10)")
    verb.add_argument("--min-length", type=int, default=1, help="leave out segments shorter than so many bases, counted (default 1)")
    verb.add_argument("--max-n-fraction", type=float, metavar="F", help="leave out documents with a larger share of N, counted")
    verb.add_argument(
        "--include-bed",
        type=Path,
        metavar="FILE",
        help="keep only what lies in these intervals, of contig or assembly:contig; documents end at their edges",
    )
    verb.add_argument("--exclude-bed", type=Path, metavar="FILE", help="leave out what lies in these intervals")
    verb.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave out inputs that cannot be used, and list them"
    )
    _add_encoding(verb)
    verb.add_argument("--assembly", help="name of the assembly in loci (one input); default: the file name")
    verb.add_argument("--sha256", action="store_true", help="record SHA-256 of the inputs beside XXH3-128")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing shard (what a stopped run has finished is taken over)")
    verb.add_argument("--restart", action="store_true", help="take over nothing of a run that was stopped")
    verb.set_defaults(verb=_preprocess)


def _add_encoding(verb: Any) -> None:
    verb.add_argument(
        "--encoding",
        choices=("ascii", "2bit"),
        default="ascii",
        help="2bit: a quarter of the disk and page cache, the same samples; for dnapretrain only (default ascii)",
    )


def _preprocess(arguments: argparse.Namespace) -> int:
    from dnapretrain import _core
    from dnapretrain.data.look.inspect import format_inspection, inspect_shard
    from dnapretrain.data.shards.preprocess import preprocess

    _core.keep_freed_memory(KEPT_BYTES)
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
        encoding=arguments.encoding,
        restart=arguments.restart,
    )
    print(format_inspection(inspect_shard(arguments.output)))
    return 0


def add_merge(verbs: Any) -> None:
    verb = verbs.add_parser(
        "merge",
        help="several shards -> one, as if made in one run",
        description="Joins shards, for example those of an array of jobs, in the order given: byte for byte what one preprocess of all "
        "their inputs writes. They must be of one kind and have the same cleaning, and no assembly may be in two of them. Digests are "
        "checked on the way.",
    )
    verb.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX", help="a finished shard")
    verb.add_argument(
        "--output", required=True, type=Path, metavar="PREFIX", help="writes PREFIX.bin, .idx, .bed, .json (.edits, .labels.tsv)"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace an existing shard")
    _add_encoding(verb)
    verb.add_argument("--move", action="store_true", help="remove the shards once the result is complete (both need space until then)")
    verb.set_defaults(verb=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.look.inspect import format_inspection, inspect_shard
    from dnapretrain.data.shards.merge import merge

    merge(arguments.prefixes, arguments.output, overwrite=arguments.overwrite, move=arguments.move, encoding=arguments.encoding)
    print(format_inspection(inspect_shard(arguments.output)))
    return 0


def add_haplotypes(verbs: Any) -> None:
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


def add_extract(verbs: Any) -> None:
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


def add_lint(verbs: Any) -> None:
    verb = verbs.add_parser(
        "lint",
        help="what sequence files hold, what is wrong with them, and what preprocess would make of them; writes nothing",
        description="Reads each file once and goes on after errors. Exit status: 0 clean; 1 something would stop preprocess; "
        "2 wrong arguments.",
    )
    verb.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="as preprocess takes them: files, folders, patterns, @LIST")
    verb.add_argument("--json", action="store_true", help="print JSON, with every error")
    verb.add_argument("--workers", type=int, default=1, help="files read at the same time; the report does not depend on it")
    verb.add_argument("--min-n-run", type=int, default=10, help="as for preprocess (default 10)")
    verb.add_argument("--min-length", type=int, default=1, help="as for preprocess (default 1)")
    verb.add_argument("--max-n-fraction", type=float, metavar="F", help="as for preprocess")
    verb.add_argument("--include-bed", type=Path, metavar="FILE", help="as for preprocess")
    verb.add_argument("--exclude-bed", type=Path, metavar="FILE", help="as for preprocess")
    verb.add_argument("--assembly", help="as for preprocess")
    verb.set_defaults(verb=_lint)


def _lint(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.look.lint import LintSettings, lint
    from dnapretrain.data.look.lint_text import format_lint

    settings = LintSettings(
        workers=arguments.workers,
        min_n_run=arguments.min_n_run,
        min_length=arguments.min_length,
        max_n_fraction=arguments.max_n_fraction,
        include_bed=arguments.include_bed,
        exclude_bed=arguments.exclude_bed,
        assembly=arguments.assembly,
    )
    report = lint(arguments.inputs, settings)
    print(json.dumps(report, indent=1) if arguments.json else format_lint(report))
    return 0 if report["verdict"] == "clean" else 1


def add_inspect(verbs: Any) -> None:
    verb = verbs.add_parser("inspect", help="what a shard holds")
    verb.add_argument("prefix", type=Path, metavar="PREFIX")
    verb.add_argument("--check", action="store_true", help="read every base and compare with the recorded digest")
    verb.add_argument("--documents", type=int, default=3, metavar="N", help="show the beginning of the first N documents (default 3)")
    verb.add_argument(
        "--locus",
        metavar="LOCUS",
        help="print the bases of assembly:contig:start-end (1-based, end included) as FASTA, on the contig's plus strand, and nothing else",
    )
    verb.add_argument("--picture", type=Path, metavar="PNG", help="also draw lengths, contigs and GC")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.look.inspect import format_inspection, inspect_shard

    if arguments.picture is not None:
        from dnapretrain.data.look.inspect_picture import draw_shard

        draw_shard(arguments.prefix, arguments.picture)
    if arguments.locus is not None:
        return _inspect_locus(arguments)
    inspection = inspect_shard(arguments.prefix, check=arguments.check, documents=arguments.documents)
    print(json.dumps(inspection, indent=1) if arguments.json else format_inspection(inspection))
    return 0


def _inspect_locus(arguments: argparse.Namespace) -> int:
    from dnapretrain.data.look.inspect_locus import format_locus, read_locus
    from dnapretrain.data.shards.shard import open_shard, verify_shard

    if arguments.check:
        verify_shard(arguments.prefix)
    found = read_locus(open_shard(arguments.prefix), arguments.locus)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        if found["pieces"]:
            print(format_locus(found))
        for stretch in found["missing"]:
            print(f"dnapretrain: not in the shard: {stretch}", file=sys.stderr)
    return 0 if found["pieces"] else 1


def add_train_bpe(verbs: Any) -> None:
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
