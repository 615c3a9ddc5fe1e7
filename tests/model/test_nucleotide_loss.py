"""Loss and metric of k-mers by their bases, against plain sums over the vocabulary's texts, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import training

from dnapretrain.config import TokenizerConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.model.nucleotide_loss import indicator, kmer_rows

OWN = {"kind": "kmer", "k": 2}
KINDS = {"kmer 2": OWN, "kmer 3, ATCG": {"kind": "kmer", "k": 3, "base_order": "ATCG"}, "generator": {"kind": "generator"}}


def plain_loss(logits, label, tokenizer, specials_are_a):
    """From the formula, float64, one token at a time: names of tokens, no numbering of words."""
    p = torch.softmax(logits.double(), dim=0)
    texts, k = tokenizer.tokens, tokenizer.k
    target = texts[label]
    if target in ("<oov>", "<unk>", "<pad>"):
        return logits.double().sum() * 0
    if target.startswith("<"):
        return -torch.log(p[label]) / k
    total = 0
    for place, base in enumerate(target):
        counts = [
            row for row, text in enumerate(texts) if (specials_are_a and base == "A" if text.startswith("<") else text[place] == base)
        ]
        total = total - torch.log(p[counts].sum().clamp(min=1e-8))
    return total / k


def plain_bits(logits, label, tokenizer):
    """The metric: probabilities of bases given that the token is a word."""
    words = [row for row, text in enumerate(tokenizer.tokens) if len(text) == tokenizer.k and not text.startswith("<")]
    p = torch.zeros(len(logits), dtype=torch.float64)
    p[words] = torch.softmax(logits.double()[words], dim=0)
    target = tokenizer.tokens[label]
    bits = [
        -math.log2(max(1e-8, sum(float(p[row]) for row in words if tokenizer.tokens[row][place] == base)))
        for place, base in enumerate(target)
    ]
    return sum(bits) / tokenizer.k


def example(tokenizer, tokens=12, dtype=torch.float32):
    """(logits of the padded vocabulary, labels): words and every kind of special, one confident and one near-impossible prediction."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(tokens, padded_vocab_size(tokenizer.vocab_size), generator=generator)
    words = tokenizer.vocabulary.words
    labels = torch.randint(words.start, words.stop, (tokens,), generator=generator)
    labels[1], labels[2], labels[3], labels[4] = tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id, tokenizer.bos_id
    logits[5, labels[5]] = 60.0
    logits[6, words.stop - 1] = 60.0
    labels[6] = words.start  # AA...: all other probabilities are under the clamp
    return logits.to(dtype), labels


def on_ranks(env, store, tokenizer, logits, labels, training=True, by_base=True):
    """What each rank computes from its share of the logits: (what the model returns, its gradient)."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from dnapretrain.config import ParallelConfig
    from dnapretrain.model.cross_entropy import TokenLoss
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    tokenizer = build_tokenizer(TokenizerConfig(**tokenizer))
    start_groups(platforms.start("cpu", env), ParallelConfig(tensor_model_parallel_size=env.world_size), 0, store)
    group = parallel_state.get_tensor_model_parallel_group()
    leaf = logits.chunk(env.world_size, dim=1)[dist.get_rank(group)].clone().requires_grad_()
    loss = TokenLoss(tokenizer.vocab_size, kmer_rows(tokenizer), by_base)
    output = loss((leaf * 1).view(-1, 2, leaf.shape[1]), labels.view(-1, 2).T, group, training)
    (output[0] * torch.arange(1.0, 1 + labels.numel()).view(-1, 2).T).sum().backward()
    return [part.detach().T.flatten() for part in output], leaf.grad


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_formula(ranks, name, world_size):
    tokenizer = build_tokenizer(TokenizerConfig(**KINDS[name]))
    logits, labels = example(tokenizer)
    results = ranks.run(world_size, on_ranks, tokenizer=KINDS[name], logits=logits, labels=labels)
    gradient = torch.cat([result[1] for result in results], dim=1)
    plain = logits[:, : tokenizer.vocab_size].double().requires_grad_()
    expected = torch.stack([plain_loss(row, label, tokenizer, name == "generator") for row, label in zip(plain, labels, strict=True)])
    (expected * torch.arange(1.0, 1 + len(labels))).sum().backward()
    for (losses, correct), _ in results:
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-6)
        assert torch.equal(correct, plain.argmax(dim=1) == labels)
    torch.testing.assert_close(gradient[:, : tokenizer.vocab_size].double(), plain.grad, rtol=1e-6, atol=1e-6)
    assert gradient[:, tokenizer.vocab_size :].abs().max() == 0
    assert expected[5] < 1e-3
    assert expected[2] == expected[3] == 0 and gradient[2:4].abs().max() == 0
    assert gradient[1].abs().max() > 0.1  # a special target
    assert float(expected[6]) == pytest.approx(-math.log(1e-8)) and gradient[6].abs().max() == 0


def test_slices_of_the_backward_pass_are_the_whole(ranks):
    tokenizer = build_tokenizer(TokenizerConfig(**OWN))
    logits, labels = example(tokenizer)
    whole = ranks.run(1, on_ranks, tokenizer=OWN, logits=logits, labels=labels, training=False)[0]
    sliced = ranks.run(1, sliced_small, tokenizer=OWN, logits=logits, labels=labels, training=False)[0]
    torch.testing.assert_close(sliced[1], whole[1], rtol=1e-6, atol=1e-7)
    for mine, theirs in zip(sliced[0], whole[0], strict=True):
        torch.testing.assert_close(mine, theirs)


def sliced_small(env, store, **arguments):
    from dnapretrain.model import nucleotide_loss

    usual = nucleotide_loss.SLICE_VALUES
    nucleotide_loss.SLICE_VALUES = 5 * 128  # 12 tokens of 128 rows: 5, 5 and 2
    try:
        return on_ranks(env, store, **arguments)
    finally:
        nucleotide_loss.SLICE_VALUES = usual


def test_specials_of_generator_count_as_a_by_hand(ranks):
    """All 4,128 logits equal: each base has 1,024 of the rows, and A the 32 specials besides, at every place."""
    tokenizer = build_tokenizer(TokenizerConfig(kind="generator"))
    labels = torch.tensor([tokenizer.tokens.index(word) for word in ("AAAAAA", "TTTTTT", "GATACA", "CCGGTT")])
    of_a, of_others = -math.log(1056 / 4128), -math.log(1024 / 4128)
    (losses, _), _ = ranks.run(1, on_ranks, tokenizer={"kind": "generator"}, logits=torch.zeros(4, 4224), labels=labels)[0]
    expected = [of_a, of_others, (3 * of_a + 3 * of_others) / 6, of_others]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)
    assert losses[0] < math.log(4) < losses[1]
    # Our own 2-mers: no base gets what 5 specials of 21 rows have.
    own = build_tokenizer(TokenizerConfig(**OWN))
    labels = torch.tensor([own.tokens.index(word) for word in ("AA", "TG")])
    (losses, _), _ = ranks.run(1, on_ranks, tokenizer=OWN, logits=torch.zeros(2, 128), labels=labels)[0]
    assert losses.tolist() == pytest.approx([math.log(21 / 4)] * 2, abs=1e-6)


def test_two_places_by_hand(ranks):
    """Half of the probability on AC, a quarter on AG, an eighth on TG and on <eos>: for the target AG that is 3/4 and 3/8."""
    tokenizer = build_tokenizer(TokenizerConfig(**OWN))
    logits = torch.full((2, 128), -1e4)
    for word, share in (("AC", 1 / 2), ("AG", 1 / 4), ("TG", 1 / 8), ("<eos>", 1 / 8)):
        logits[:, tokenizer.tokens.index(word)] = math.log(share)
    labels = torch.tensor([tokenizer.tokens.index("AG"), tokenizer.eos_id])
    (losses, _, bits, is_word), _ = ranks.run(1, on_ranks, tokenizer=OWN, logits=logits, labels=labels, training=False)[0]
    assert losses.tolist() == pytest.approx([-(math.log(3 / 4) + math.log(3 / 8)) / 2, math.log(8) / 2], abs=1e-6)
    assert is_word.tolist() == [True, False]
    assert bits[0] == pytest.approx(-(math.log2(6 / 7) + math.log2(3 / 7)) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", [OWN, {"kind": "kmer", "k": 3}, {"kind": "generator"}, {"kind": "nt_v1"}, {"kind": "nt_v2"}])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_metric(ranks, kind, world_size):
    """Against the plain one; equal logits of words read exactly 2, whatever specials and single letters have; logits are not changed."""
    tokenizer = build_tokenizer(TokenizerConfig(**kind))
    generator = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(6, padded_vocab_size(tokenizer.vocab_size), generator=generator)
    words = tokenizer.vocabulary.words
    labels = torch.randint(words.start, words.stop, (6,), generator=generator)
    labels[0] = tokenizer.pad_id
    logits[4:, words.start : words.stop] = -7.25
    logits[5, tokenizer.unk_id] = 300.0
    arguments = {"tokenizer": kind, "logits": logits, "labels": labels, "training": False, "by_base": False}
    for (losses, _, bits, is_word), _ in ranks.run(world_size, on_ranks, **arguments):
        assert is_word.tolist() == [False] + [True] * 5
        assert bits[4:].tolist() == [2.0, 2.0]
        expected = [plain_bits(logits[at, : tokenizer.vocab_size], int(labels[at]), tokenizer) for at in range(1, 6)]
        assert bits[1:].tolist() == pytest.approx(expected, abs=1e-5)
        entropy = torch.nn.functional.cross_entropy(logits[:, : tokenizer.vocab_size], labels, reduction="none")
        torch.testing.assert_close(losses, entropy, rtol=1e-5, atol=1e-5)  # the loss is computed after it, from the same logits


def test_bf16_logits_are_summed_in_fp32(ranks):
    tokenizer = build_tokenizer(TokenizerConfig(**OWN))
    logits, labels = example(tokenizer, dtype=torch.bfloat16)
    (losses, *_), gradient = ranks.run(1, on_ranks, tokenizer=OWN, logits=logits, labels=labels)[0]
    plain = logits[:, :21].double()
    expected = torch.stack([plain_loss(row, label, tokenizer, False) for row, label in zip(plain, labels, strict=True)])
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert losses.dtype == torch.float32 and gradient.dtype == torch.bfloat16


def test_which_rows_count():
    rows = kmer_rows(build_tokenizer(TokenizerConfig(**OWN)))
    ones = indicator(rows, 0, 128, torch.device("cpu"))
    assert ones.shape == (128, 9)
    assert ones[:, :8].sum(dim=0).tolist() == [4.0] * 8
    assert ones[:, 8].sum() == 21 and ones[21:].abs().sum() == 0
    assert kmer_rows(build_tokenizer(TokenizerConfig(kind="nucleotide"))) is None
    assert kmer_rows(build_tokenizer(TokenizerConfig(kind="kmer", k=1))) is None
    assert kmer_rows(build_tokenizer(TokenizerConfig(kind="aido_dna"))) is None


@pytest.mark.parametrize(
    ("tokenizer", "model", "has"),
    [
        ({"kind": "nucleotide"}, "decoder", "one base per token"),
        ({"kind": "kmer", "k": 1}, "decoder", "one base per token"),
        ({"kind": "aido_dna"}, "encoder", "one base per token"),
        ({"kind": "nt_v2"}, "encoder", "tokens of different lengths"),
        ({"kind": "bpe", "file": "tokenizer.json"}, "decoder", "tokens of different lengths"),
    ],
)
def test_what_has_no_kmers_is_refused(tiny_config, tokenizer, model, has):
    tree = tiny_config(**{"train.loss": "nucleotide", "model.kind": model})
    tree["tokenizer"] = tokenizer
    if model == "encoder":
        tree["data"]["masking"] = {"mlm_probability": 0.15}
    with pytest.raises(ConfigError, match=f"train.loss=nucleotide .* tokenizer.kind={tokenizer['kind']} has {has}"):
        config_from_dict(tree)


KMERS = {"tokenizer.kind": "kmer", "tokenizer.k": 3, "data.min_length": 12, "train.loss": "nucleotide"}
ENCODER = {"model.kind": "encoder", "data.masking": {"mlm_probability": 0.3}}
LAYOUTS = {
    "TP2+SP": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2 interleaved": (2, {"pp": 2, "vpp": 2}),
    "DP2+distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "TP2xPP2": (4, {"tp": 2, "pp": 2}),
}
STEPS = 12


@pytest.mark.parametrize("model", [{}, ENCODER], ids=["decoder", "encoder"])
def test_a_tiny_model_learns_under_every_layout(ranks, tiny_config, model):
    alone = ranks.run(1, training.train, tree=tiny_config("alone", **KMERS, **model), until=STEPS)[0]
    assert alone.losses[0] == pytest.approx(math.log(69 / 16), abs=0.3)  # 64 words and 5 specials
    assert alone.losses[-1] < alone.losses[0] - 0.05
    assert alone.valid.bits_per_base == pytest.approx(alone.valid.loss / math.log(2))
    assert alone.valid.marginal_bits_per_base <= alone.valid.bits_per_base + 1e-6  # beside what specials get
    assert alone.valid.marginal_bits_per_base == pytest.approx(alone.valid.bits_per_base, abs=0.1)
    for layout, (world_size, parallel) in LAYOUTS.items():
        tree = {**tiny_config(layout, **KMERS, **model), "parallel": parallel}
        result = ranks.run(world_size, training.train, tree=tree, until=STEPS)[0]
        assert result.losses == pytest.approx(alone.losses, abs=1e-5), layout
        assert result.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4), layout
        assert result.valid.marginal_bits_per_base == pytest.approx(alone.valid.marginal_bits_per_base, abs=1e-5), layout


def test_a_model_of_single_bases_has_no_such_metric(ranks, tiny_config):
    result = ranks.run(1, training.train, tree=tiny_config(), until=1)[0]
    assert result.valid.marginal_bits_per_base is None


def test_a_token_model_has_it_too(ranks, tiny_config):
    tree = tiny_config(**{**KMERS, "train.loss": "token"})
    result = ranks.run(1, training.train, tree=tree, until=4)[0]
    assert result.valid.bits_per_base == pytest.approx(result.valid.loss / math.log(2) / 3)
    assert 1.0 < result.valid.marginal_bits_per_base < 2.5
