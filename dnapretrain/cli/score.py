"""The verb score: zero-shot effects of variants, and saturation mutagenesis."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.cli.adapt import MODEL, add_device, device_of, parse_layers
from dnapretrain.errors import ConfigError

if TYPE_CHECKING:
    from dnapretrain.adapt.backbones.backbone import Backbone
    from dnapretrain.adapt.variants.score import ScoreSettings
    from dnapretrain.adapt.variants.score_files import Scored


def add_score(verbs: Any) -> None:
    verb = verbs.add_parser(
        "score",
        help="zero-shot effects of variants (VCF + FASTA), or of every substitution of a region",
        description="Log-likelihood ratios log P(ALT) - log P(REF) in nats, by base marginals (GENERator's protocol; of encoders under a "
        "mask) or of the whole sequence, and distances between the embeddings of the two windows (Nucleotide Transformer's). One row for "
        "each ALT allele, in the order of the VCF; each row says how its score came about, or why it has none.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    verb.add_argument("--vcf", type=Path, metavar="FILE", help="variants, plain or packed; genotypes are not needed")
    verb.add_argument("--saturate", metavar="CHR:START-END", help="every substitution of these bases (1-based, the end included)")
    verb.add_argument("--fasta", required=True, type=Path, metavar="FILE", help="the reference; each REF is checked against it")
    verb.add_argument("--output", required=True, type=Path, metavar="FILE", help=".tsv or .tsv.gz; FILE.json says how it came about")
    verb.add_argument("--picture", type=Path, metavar="PNG", help="with --saturate: a heat map of the first score")
    verb.add_argument("--scores", default="llr,distance", metavar="LIST", help="of llr, likelihood, distance (default llr,distance)")
    verb.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="bases around the variant; of decoders' base marginals before it (default 1024, or the context)",
    )
    verb.add_argument("--layers", default="-1", metavar="LIST", help="of distances; 0: embeddings, -1: the last (default -1)")
    verb.add_argument("--both-strands", action="store_true", help="the mean of the scores on both strands")
    verb.add_argument("--all-phases", action="store_true", help="encoders of k-mers: the mean over the places of the variant in its word")
    verb.add_argument(
        "--pseudo-bases", type=int, default=64, metavar="N", help="encoders, indels: mask each token within N bases (default 64)"
    )
    _add_input_options(verb)
    add_device(verb)
    verb.add_argument("--dtype", default="auto", metavar="auto|fp32|bf16", help="of the weights; auto: bf16 on a GPU, fp32 on the CPU")
    verb.add_argument("--max-tokens", type=int, metavar="N", help="longest window, specials included (default: the model's context)")
    verb.add_argument("--tokens-per-batch", type=int, default=16_384, metavar="N", help="with padding (default 16384)")
    verb.add_argument("--random-weights", type=int, metavar="SEED", help="the same architecture with fresh weights, to compare with")
    verb.set_defaults(verb=_score)


def _add_input_options(verb: Any) -> None:
    verb.add_argument(
        "--contig-names", metavar="chr|MAP.tsv", help="chr1 and 1 are one name; or a table name<tab>contig. Nothing is guessed without"
    )
    verb.add_argument("--skip-missing-contigs", action="store_true", help="rows on contigs that the reference lacks get no score")
    verb.add_argument("--on-ref-mismatch", default="error", metavar="error|skip", help="skip: such rows get no score (default error)")
    verb.add_argument("--positive", metavar="RULE", help="labels from INFO: 'CLNSIG=Pathogenic|Likely_pathogenic', 'AF<0.001'")
    verb.add_argument("--negative", metavar="RULE", help="(default: what has that key and is not positive); rows of neither have no label")
    verb.add_argument(
        "--labels", type=Path, metavar="TABLE", help="or from a CSV or TSV with the columns chrom, pos, ref, alt, label (0, 1)"
    )


def _score(arguments: argparse.Namespace) -> int:
    from dnapretrain.adapt.backbones.backbone import open_backbone
    from dnapretrain.adapt.variants.score import ScoreSettings
    from dnapretrain.adapt.variants.variant_pictures import check_heat_map

    if (arguments.vcf is None) == (arguments.saturate is None):
        raise ConfigError("score reads --vcf FILE or --saturate CHR:START-END: give one of them.")
    if arguments.picture:
        check_heat_map(arguments.picture, arguments.saturate)
    settings = ScoreSettings(
        scores=tuple(arguments.scores.split(",")),
        window=arguments.window,
        layers=parse_layers(arguments.layers),
        both_strands=arguments.both_strands,
        all_phases=arguments.all_phases,
        pseudo_bases=arguments.pseudo_bases,
        tokens_per_batch=arguments.tokens_per_batch,
    )
    backbone = open_backbone(
        arguments.model,
        device=device_of(arguments),
        dtype=arguments.dtype,
        max_tokens=arguments.max_tokens,
        random_weights=arguments.random_weights,
    )
    settings.check(backbone)
    begun = time.monotonic()
    done = _score_input(arguments, backbone, settings)
    print(f"{arguments.output}: {done.num_alleles:,} alleles, window {settings.size(backbone):,}, scores {', '.join(done.columns)}")
    for line in done.lines():
        print(line)
    if arguments.picture:
        print(f"{arguments.picture}: heat map of {done.columns[0]}")
    seconds = time.monotonic() - begun
    sys.stderr.write(f"{seconds:.1f} s, {done.num_alleles / seconds:,.1f} alleles/s on {backbone.device}\n")
    return 0


def _score_input(arguments: argparse.Namespace, backbone: Backbone, settings: ScoreSettings) -> Scored:
    from dnapretrain.adapt.variants.score_files import score_variants
    from dnapretrain.adapt.variants.variant_labels import labeller
    from dnapretrain.adapt.variants.variant_pictures import draw_heat_map
    from dnapretrain.adapt.variants.variant_sites import Region, open_reference, region_variants, vcf_contigs, vcf_variants

    labels = labeller(arguments.positive, arguments.negative, arguments.labels)
    region = Region.parse(arguments.saturate) if arguments.saturate else None
    source = str(arguments.vcf) if arguments.vcf else "--saturate"
    names = [region.contig] if region else vcf_contigs(arguments.vcf)
    reference = open_reference(
        arguments.fasta, names, source, arguments.contig_names, arguments.skip_missing_contigs, arguments.on_ref_mismatch
    )
    variants = region_variants(region, reference) if region else vcf_variants(arguments.vcf)
    about = {"model": str(arguments.model), "input": arguments.saturate or source, "fasta": str(arguments.fasta)}
    about["random_weights"] = arguments.random_weights
    keep = arguments.picture is not None
    done = score_variants(backbone, variants, reference, arguments.output, settings, source, labels, keep, about)
    if region and keep:
        draw_heat_map(arguments.picture, region, done, str(arguments.model))
    return done
