"""What a language model says of a site without training: log-likelihood ratios of its alleles, in nats, above 0 where ALT is likelier.

Base marginals (GENERator's protocol; for encoders in the same way): a token's probability counts for the base that it has at the
variant's place, whatever its other bases are. Of a decoder, the tokens predicted behind the left flank, by their first base; of an
encoder, the masked tokens over the variant. The sequence's own log-likelihood: of a decoder, that of all its tokens; of an encoder
the pseudo-log-likelihood, each token masked by itself, over the tokens around the variant.

A scorer gives a `Plan`: rows of tokens to be read, and what to make of the answers. Plans of many sites are answered in common batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.backbones.encoding import Encoded, SequenceEncoder
from dnapretrain.adapt.variants.variant_sites import Site
from dnapretrain.adapt.variants.variant_windows import Window, all_phases, token_starts, tokens_over, windows, word_bases
from dnapretrain.data.tokens.tokenizers import Tokenizer
from dnapretrain.errors import DataError
from dnapretrain.evaluate.counted import token_bases

ALPHABET = "ACGT"
Answer = NDArray[np.float64]


@dataclass(frozen=True)
class Query:
    """One row of tokens, and which predictions of it are read."""

    ids: tuple[int, ...]
    specials: tuple[int, int]
    at: tuple[int, ...]
    """Whose logits."""
    targets: tuple[int, ...] = ()
    """The log-probability of these tokens, one for each of `at`."""
    offsets: tuple[int, ...] = ()
    """Or the log-probabilities of A, C, G, T at these places of the token, one for each of `at`."""


@dataclass(frozen=True)
class Plan:
    """How one number comes about."""

    method: str
    """marginal, likelihood, pseudo; or empty, and `reason` says why there is none."""
    queries: tuple[Query, ...] = ()
    combine: Callable[[Sequence[Answer]], float] = lambda answers: float("nan")
    reason: str = ""


def ask(backbone: Backbone, queries: Sequence[Query], tokens_per_batch: int) -> list[Answer]:
    """[A] or [A, 4] of each query in nats, in order; equal queries are read once."""
    number_of = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    asked = list(number_of)
    answers: dict[int, Answer] = {}
    encoded = [Encoded(number, np.array(query.ids, np.int64), query.specials) for number, query in enumerate(asked)]
    for batch in backbone.encoder.batches(encoded, tokens_per_batch):
        logits_BSV = backbone.logits(batch)
        for row, number in enumerate(batch.rows.tolist()):
            answers[number] = _read(backbone.encoder.tokenizer, asked[number], logits_BSV[row])
    return [answers[number_of[query]] for query in queries]


def _read(tokenizer: Tokenizer, query: Query, logits_SV: Tensor) -> Answer:
    logits_AV = logits_SV[torch.tensor(query.at, device=logits_SV.device)].double()
    if query.offsets:
        return base_marginals(tokenizer, logits_AV, query.offsets).cpu().numpy()
    targets_A1 = torch.tensor(query.targets, device=logits_AV.device)[:, None]
    return logits_AV.log_softmax(dim=-1).gather(1, targets_A1)[:, 0].cpu().numpy()


def base_marginals(tokenizer: Tokenizer, logits_AV: Tensor, offsets: Sequence[int]) -> Tensor:
    """[A, 4] log-probabilities of A, C, G, T at place `offsets[a]` of the token, given that it has a base there.

    They sum the softmax over the vocabulary's words; specials and, of k-mer vocabularies, tokens of single letters count as no base.
    """
    columns_AV = torch.from_numpy(_base_at(tokenizer))[list(offsets)].to(logits_AV.device)
    sums = [logits_AV.masked_fill(columns_AV != base, -torch.inf).logsumexp(dim=-1) for base in range(4)]
    return torch.stack(sums, dim=-1).log_softmax(dim=-1)


@lru_cache(maxsize=4)
def _base_at(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """[K, V] which of A, C, G, T a word has at each place; -1: none, and for what is no word."""
    words = tokenizer.vocabulary.words
    found = np.full((max(map(len, tokenizer.tokens[words.start : words.stop])), tokenizer.vocab_size), -1)
    for value in words:
        for place, letter in enumerate(tokenizer.tokens[value]):
            found[place, value] = ALPHABET.find(letter)
    return found


def ratio(backbone: Backbone, site: Site, size: int, phase: int | None = None, pseudo_bases: int = 64) -> Plan:
    """The log-likelihood ratio by base marginals, where they apply: of decoders to one base, of encoders of bases or k-mers to any
    substitution. Elsewhere that of the sequence.

    size: bases that are read. phase: of k-mer encoders, bases of its word before the variant (None: half of them).
    """
    found = _next_marginal(backbone, site, size) if not backbone.is_encoder else _masked_marginal(backbone, site, size, phase)
    return found or sequence_ratio(backbone, site, size, pseudo_bases)


def sequence_ratio(backbone: Backbone, site: Site, size: int, pseudo_bases: int = 64) -> Plan:
    """log P(window with ALT) - log P(window with REF): by all tokens of a decoder; by pseudo-likelihood of an encoder, over the tokens
    within `pseudo_bases` of the variant."""
    tokenizer = backbone.encoder.tokenizer
    word = word_bases(tokenizer)
    # A decoder's word begins with the variant, as for base marginals.
    found = windows(site, size, word, all_phases(word, word // 2 if backbone.is_encoder else 0))
    if found is None:
        return _no_room(site, size)
    ref, alt = (_words(backbone.encoder, window) for window in (found.ref, found.alt))
    if not backbone.is_encoder:
        one, other = _likelihood_query(backbone.encoder, ref), _likelihood_query(backbone.encoder, alt)
        if not one.at or not other.at:
            return Plan("", reason="no token to predict")
        return Plan("likelihood", (one, other), lambda answers: float(answers[1].sum() - answers[0].sum()))
    spans = [token_starts(tokenizer, ids) for ids in (ref, alt)]
    regions = _pseudo_regions(found.ref, found.alt, spans, pseudo_bases, word)
    one_by_one = [_masked_one_by_one(backbone.encoder, ids, region) for ids, region in zip((ref, alt), regions, strict=True)]
    num_ref = len(one_by_one[0])
    if not all(one_by_one):
        return Plan("", reason="no token to predict")
    return Plan(
        "pseudo",
        (*one_by_one[0], *one_by_one[1]),
        lambda answers: float(sum(answer[0] for answer in answers[num_ref:]) - sum(answer[0] for answer in answers[:num_ref])),
    )


def _no_room(site: Site, size: int) -> Plan:
    longest = max(len(site.ref), len(site.alt))
    return Plan("", reason="longer than the window" if longest > size else "no whole token at the end of the contig")


def _next_marginal(backbone: Backbone, site: Site, size: int) -> Plan | None:
    """The next token's first base behind the left flank: at most `size` bases, whole words that end at the variant, no leading N."""
    if len(site.ref) != 1 or len(site.alt) != 1:
        return None
    encoder = backbone.encoder
    word = word_bases(encoder.tokenizer)
    left = site.left[max(0, len(site.left) - size) :].lstrip("N")
    left = left[len(left) % word :]
    if not left and not encoder.specials[0]:
        return Plan("", reason="nothing before the variant")
    ids, specials = _framed(encoder, _words(encoder, Window(left, len(left), len(left))))
    query = Query(ids, specials, (len(ids) - 1,), offsets=(0,))
    return Plan("marginal", (query,), lambda answers: _difference(answers[0], site))


def _masked_marginal(backbone: Backbone, site: Site, size: int, phase: int | None) -> Plan | None:
    """The masked tokens over the variant; None where it is no substitution, tokens are byte pairs, or one of them is no word."""
    encoder = backbone.encoder
    tokenizer = encoder.tokenizer
    if not site.is_substitution or tokenizer.bpe:
        return None
    word = word_bases(tokenizer)
    found = windows(site, size, word, all_phases(word, word // 2) if phase is None else (phase,))
    if found is None:
        return _no_room(site, size)
    ids = _words(encoder, found.ref)
    starts = token_starts(tokenizer, ids)
    over = tokens_over(starts, found.ref.start, found.ref.end)
    if not all(int(ids[number]) in tokenizer.vocabulary.words for number in over):
        return None
    places = [(number, at - int(starts[number])) for number in over for at in range(starts[number], starts[number + 1])]
    places = [(number, offset) for number, offset in places if found.ref.start <= starts[number] + offset < found.ref.end]
    masked = ids.copy()
    masked[over.start : over.stop] = tokenizer.mask_id
    tokens, specials = _framed(encoder, masked)
    at = tuple(number + specials[0] for number, _ in places)
    query = Query(tokens, specials, at, offsets=tuple(offset for _, offset in places))
    return Plan("marginal", (query,), lambda answers: _difference(answers[0], site))


def _difference(marginals_A4: Answer, site: Site) -> float:
    pairs = zip(marginals_A4, site.ref, site.alt, strict=True)
    return float(sum(row[ALPHABET.index(alt)] - row[ALPHABET.index(ref)] for row, ref, alt in pairs))


def _words(encoder: SequenceEncoder, window: Window) -> NDArray[np.int64]:
    """Tokens of a window, no specials; DataError where they are more than the model reads, which only byte pairs may be."""
    ids = encoder.tokenizer.encode(window.text)
    length = len(ids) + sum(encoder.specials)
    if length > encoder.max_tokens:
        raise DataError(
            f"a window of {len(window.text):,} bases has {length:,} tokens; the model reads {encoder.max_tokens:,}. Lower --window."
        )
    if token_starts(encoder.tokenizer, ids)[-1] != len(window.text):
        raise DataError(
            f"the tokens of '{window.text[:20]}...' do not stand for its {len(window.text)} bases. Is it the model's tokenizer?"
        )
    return ids


def _framed(encoder: SequenceEncoder, ids: NDArray[np.int64]) -> tuple[tuple[int, ...], tuple[int, int]]:
    before, behind = encoder.specials
    first = [encoder.tokenizer.bos_id] if before else []
    last = [encoder.tokenizer.eos_id or 0] if behind else []
    return (*first, *ids.tolist(), *last), encoder.specials


def _likelihood_query(encoder: SequenceEncoder, ids: NDArray[np.int64]) -> Query:
    """Every token that stands for known bases, given those before it; without a special token in front, not the first."""
    tokens, specials = _framed(encoder, ids)
    counted = token_bases(encoder.tokenizer)
    at = tuple(number for number in range(len(tokens) - 1) if counted[tokens[number + 1]])
    return Query(tokens, specials, at, targets=tuple(tokens[number + 1] for number in at))


def _pseudo_regions(ref: Window, alt: Window, spans: Sequence[NDArray[np.int64]], bases: int, word: int) -> list[range]:
    """Tokens to mask in each window; both cover the same flanks (words of fixed length: the same places)."""
    longest = max(ref.end, alt.end)
    ends = [longest if word > 1 else window.end for window in (ref, alt)]
    start = max(0, ref.start - bases)
    common = np.intersect1d(spans[0], spans[1])
    start = int(common[common <= start][-1])
    behind = bases
    if word == 1:  # the next bases behind the allele at which both have a token's end
        rests = [set((starts - end).tolist()) for starts, end in zip(spans, ends, strict=True)]
        shared = sorted(rest for rest in rests[0] & rests[1] if rest >= 0)
        behind = next((rest for rest in shared if rest >= bases), shared[-1])
    return [tokens_over(starts, start, end + behind) for starts, end in zip(spans, ends, strict=True)]


def _masked_one_by_one(encoder: SequenceEncoder, ids: NDArray[np.int64], region: range) -> list[Query]:
    tokens, specials = _framed(encoder, ids)
    counted = token_bases(encoder.tokenizer)
    found = []
    for number in region:
        at = number + specials[0]
        if counted[tokens[at]]:
            masked = (*tokens[:at], encoder.tokenizer.mask_id, *tokens[at + 1 :])
            found.append(Query(masked, specials, (at,), targets=(tokens[at],)))
    return found
