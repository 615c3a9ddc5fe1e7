"""Zero-shot scores of variants: likelihood ratios and distances between embeddings, for sites in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.backbones.encoding import TOKENS_PER_BATCH
from dnapretrain.adapt.variants.distances import METRICS, POOLINGS, distance_windows, embedding_distances
from dnapretrain.adapt.variants.variant_sites import Site
from dnapretrain.adapt.variants.variant_windows import word_bases
from dnapretrain.adapt.variants.zero_shot import Plan, ask, ratio, sequence_ratio
from dnapretrain.errors import ConfigError

KINDS = ("llr", "likelihood", "distance")
DEFAULT_WINDOW = 1024
PSEUDO_BASES = 64


@dataclass(frozen=True)
class ScoreSettings:
    """Which scores, and of how much sequence."""

    scores: tuple[str, ...] = ("llr", "distance")
    """llr: by base marginals where they apply, else as `likelihood`, which is always that of the sequence. distance: of embeddings."""
    window: int | None = None
    """Bases that are read: around the variant, or of a decoder's base marginals before it. None: 1,024, or what the model reads."""
    layers: tuple[int, ...] = (-1,)
    """Of distances."""
    both_strands: bool = False
    """The mean of the scores on both strands."""
    all_phases: bool = False
    """Of k-mer encoders: the mean of the base marginals with the variant at every place of its word."""
    pseudo_bases: int = PSEUDO_BASES
    """An encoder's pseudo-likelihood masks the tokens within so many bases of the variant."""
    tokens_per_batch: int = TOKENS_PER_BATCH

    def check(self, backbone: Backbone) -> None:
        """Raise ConfigError where they do not fit together or the model."""
        unknown = [kind for kind in self.scores if kind not in KINDS]
        if unknown or not self.scores or len(set(self.scores)) < len(self.scores):
            raise ConfigError(f"scores = {','.join(self.scores)}: name some of {', '.join(KINDS)}, each once.")
        if "distance" in self.scores:
            backbone.layer_numbers(self.layers)
        reach, word = reach_of(backbone), word_bases(backbone.encoder.tokenizer)
        if self.window is not None and not word <= self.window <= reach:
            raise ConfigError(
                f"window = {self.window} bases; the model reads {word} to {reach:,} (its context; --max-tokens may change it)."
            )
        if self.all_phases and (word == 1 or not backbone.is_encoder):
            raise ConfigError(
                "all phases: only encoders of k-mers have a choice where a variant stands in its word. Leave --all-phases out."
            )
        if self.pseudo_bases < 0:
            raise ConfigError(f"pseudo_bases = {self.pseudo_bases} is below 0.")

    def size(self, backbone: Backbone) -> int:
        """Bases of a window, in whole words."""
        word = word_bases(backbone.encoder.tokenizer)
        size = self.window or min(DEFAULT_WINDOW, reach_of(backbone))
        return size - size % word

    def columns(self, backbone: Backbone) -> list[str]:
        """Names of the numbers."""
        names = [kind for kind in KINDS[:2] if kind in self.scores]
        if "distance" in self.scores:
            numbers = backbone.layer_numbers(self.layers)
            ends = [f"_layer{number}" for number in numbers] if len(numbers) > 1 else [""]
            names += [f"{metric}_{pooling}{end}" for end in ends for pooling in POOLINGS for metric in METRICS]
        return names


def sign_of(column: str) -> int:
    """-1 where a low score speaks for an effect: likelihood ratios, and products of embeddings."""
    return -1 if column in KINDS[:2] or column.startswith("dot_") else 1


def reach_of(backbone: Backbone) -> int:
    """Bases that the model's context has room for; of byte pairs, reckoned with their nominal length."""
    encoder = backbone.encoder
    return (encoder.max_tokens - sum(encoder.specials)) * encoder.tokenizer.bases_per_token


@dataclass(frozen=True)
class SiteScores:
    """The scores of one site."""

    values: dict[str, float]
    """By column; one that could not be had is missing."""
    method: str
    """How llr (else likelihood) came about: marginal, likelihood or pseudo. Of distances alone: embedding. Empty: there is no score."""
    strands: int
    """That were read."""
    reason: str = ""
    """Why there is no score."""


def score_sites(backbone: Backbone, sites: Sequence[Site], settings: ScoreSettings) -> list[SiteScores]:
    """One for each site, in order. Raises ConfigError for settings that do not fit."""
    settings.check(backbone)
    size = settings.size(backbone)
    found = [SiteScores({}, "", 0) for _ in sites]
    for kind in ("likelihood", "llr"):
        if kind in settings.scores:
            _add_ratios(backbone, sites, settings, size, kind, found)
    if "distance" in settings.scores:
        _add_distances(backbone, sites, settings, size, found)
    return found


def _on_strands(site: Site, both: bool) -> list[Site]:
    return [site, site.reverse()] if both else [site]


def _add_ratios(backbone: Backbone, sites: Sequence[Site], settings: ScoreSettings, size: int, kind: str, found: list[SiteScores]) -> None:
    plans = [_plans(backbone, site, settings, size, kind) for site in sites]
    queries = [query for of_site in plans for _, plan in of_site for query in plan.queries]
    answers = iter(ask(backbone, queries, settings.tokens_per_batch))
    for number, of_site in enumerate(plans):
        by_strand: dict[int, list[float]] = {}
        for strand, plan in of_site:
            by_strand.setdefault(strand, []).append(plan.combine([next(answers) for _ in plan.queries]))
        method, reason = of_site[0][1].method, of_site[0][1].reason
        if method:
            value = float(np.mean([np.mean(values) for values in by_strand.values()]))
            found[number] = SiteScores(found[number].values | {kind: value}, method, len(by_strand))
        elif not found[number].method:
            found[number] = SiteScores({}, "", 0, reason)


def _plans(backbone: Backbone, site: Site, settings: ScoreSettings, size: int, kind: str) -> list[tuple[int, Plan]]:
    """Strand and plan, all of one method: base marginals where any strand and phase has them."""
    phases = range(word_bases(backbone.encoder.tokenizer)) if settings.all_phases else [None]
    plans = []
    for strand, one in enumerate(_on_strands(site, settings.both_strands)):
        if kind == "likelihood":
            plans.append((strand, sequence_ratio(backbone, one, size, settings.pseudo_bases)))
        else:
            plans += [(strand, ratio(backbone, one, size, phase, settings.pseudo_bases)) for phase in phases]
    for method in ("marginal", "likelihood", "pseudo"):
        of_method = [(strand, plan) for strand, plan in plans if plan.method == method]
        if of_method:
            # Without marginals the phases of a strand all fell back to the same.
            return of_method if method == "marginal" else list({strand: (strand, plan) for strand, plan in of_method}.values())
    return plans[:1]


def _add_distances(backbone: Backbone, sites: Sequence[Site], settings: ScoreSettings, size: int, found: list[SiteScores]) -> None:
    columns = [column for column in settings.columns(backbone) if column not in KINDS]
    pairs, owners = [], []
    for number, site in enumerate(sites):
        for one in _on_strands(site, settings.both_strands):
            if pair := distance_windows(backbone, one, size):
                pairs.append(pair)
                owners.append(number)
    distances = embedding_distances(backbone, pairs, settings.layers, settings.tokens_per_batch).reshape(len(pairs), len(columns))
    of_site: dict[int, list[int]] = {}
    for at, owner in enumerate(owners):
        of_site.setdefault(owner, []).append(at)
    for number, before in enumerate(found):
        if rows := of_site.get(number):
            values = dict(zip(columns, distances[rows].mean(axis=0).tolist(), strict=True))
            found[number] = SiteScores(before.values | values, before.method or "embedding", before.strands or len(rows))
        elif not before.method:
            found[number] = SiteScores({}, "", 0, before.reason or "no room for a window")
