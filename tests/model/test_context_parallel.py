"""Attention over context-parallel ranks against plain attention over whole sequences, in double precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnapretrain.model.batches import document_mask
from dnapretrain.model.context_parallel import by_ranks, in_order, own_part
from dnapretrain.model.layers import AlibiAttention, AlibiBias, SdpaAttention, alibi_slopes

KINDS = ["causal", "causal documents", "bidirectional", "padded", "documents", "alibi", "alibi padded", "alibi documents"]


def shapes(seed):
    """(batch, heads, groups, width, tokens) at random, the tokens a multiple of 8."""
    rng = np.random.default_rng(seed)
    groups, per_group = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    return int(rng.integers(1, 4)), groups * per_group, groups, int(rng.choice([4, 8, 12])), 8 * int(rng.integers(1, 9))


def inputs(seed, shape):
    """Queries, keys, values, gradients of the result [tokens, batch, heads, width], documents and padding [batch, tokens]."""
    batch, heads, groups, width, tokens = shape
    generator = torch.Generator().manual_seed(seed)
    query, key, value, gradient = (
        torch.randn(tokens, batch, number, width, generator=generator, dtype=torch.float64) for number in (heads, groups, groups, heads)
    )
    documents = (torch.rand(batch, tokens, generator=generator) < 0.15).long().cumsum(1)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    return query, key, value, gradient, documents, torch.arange(tokens) >= lengths


def plain(kind, query, key, value, documents, padding):
    """Softmax attention written out: [tokens, batch, heads x width]."""
    tokens, _, heads, width = query.shape
    key, value = (tensor.repeat_interleave(heads // key.shape[2], dim=2) for tensor in (key, value))
    scores = torch.einsum("sbnd,tbnd->bnst", query, key) / math.sqrt(width)
    places = torch.arange(tokens)
    if "alibi" in kind:
        scores = scores - alibi_slopes(heads).double()[:, None, None] * (places[:, None] - places).abs()
    hidden = torch.zeros(1, 1, tokens, tokens, dtype=torch.bool)
    if "causal" in kind:
        hidden = hidden | (places[:, None] < places)
    if "documents" in kind:
        hidden = hidden | (documents[:, None, :, None] != documents[:, None, None, :])
    if "padded" in kind:
        hidden = hidden | padding[:, None, None, :]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("bnst,tbnd->sbnd", weights, value).flatten(2)


def attention_of_rank(env, store, kind, seeds, cp, dropout=0.0):
    """For each seed: result and gradients of this rank's part, through our layer, the backward pass run twice."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.config import ParallelConfig
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    platforms.start("cpu", env)
    start_groups(platforms.start("cpu", env), ParallelConfig(context_parallel_size=cp), 1, store)
    assert get_cuda_rng_tracker().is_initialized()
    found = []
    for seed in seeds:
        shape = shapes(seed)
        query, key, value, gradient, documents, padding = inputs(seed, shape)
        config = SimpleNamespace(attention_dropout=dropout, context_parallel_size=cp, num_attention_heads=shape[1])
        mask_type = AttnMaskType.causal if "causal" in kind else AttnMaskType.padding
        arguments = {"config": config, "layer_number": 1, "attn_mask_type": mask_type, "attention_type": "self"}
        attention = AlibiAttention(bias=AlibiBias(), **arguments) if "alibi" in kind else SdpaAttention(**arguments)
        mask = padding[:, None, None, :] if "padded" in kind else None
        if "documents" in kind:
            mask = document_mask(documents, "causal" in kind, torch.float64, lambda values: own_part(values, env.rank, cp))
        own = [own_part(tensor, env.rank, cp, dim=0).requires_grad_() for tensor in (query, key, value)]
        result = attention(*own, mask)
        wanted = own_part(gradient, env.rank, cp, dim=0).flatten(2)
        gradients = [torch.autograd.grad(result, own, wanted, retain_graph=not again) for again in range(2)]
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
        found.append((result.detach(), *gradients[0]))
    return found


@pytest.mark.parametrize("cp", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_attention(ranks, kind, cp):
    seeds = list(range(6))
    of_ranks = ranks.run(cp, attention_of_rank, kind=kind, seeds=seeds, cp=cp)
    for index, seed in enumerate(seeds):
        *tensors, gradient, documents, padding = inputs(seed, shapes(seed))
        leaves = [tensor.requires_grad_() for tensor in tensors]
        result = plain(kind, *leaves, documents, padding)
        expected = (result.detach(), *torch.autograd.grad(result, leaves, gradient.flatten(2)))
        for number, whole in enumerate(expected):
            together = in_order(torch.stack([of_rank[index][number] for of_rank in of_ranks]))
            torch.testing.assert_close(together, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["causal", "padded"])
def test_the_backward_pass_drops_what_the_forward_pass_has_dropped(ranks, kind):
    """The result is linear in the values: <result, g> = <values, gradients of them>, if both passes draw the same."""
    seeds, cp = [1, 2, 3], 2
    of_ranks = ranks.run(cp, attention_of_rank, kind=kind, seeds=seeds, cp=cp, dropout=0.4)
    for index, seed in enumerate(seeds):
        query, key, value, gradient, documents, padding = inputs(seed, shapes(seed))
        result, _, _, of_value = (in_order(torch.stack([of_rank[index][number] for of_rank in of_ranks])) for number in range(4))
        assert float((result * gradient.flatten(2)).sum()) == pytest.approx(float((of_value * value).sum()), rel=1e-9)
        assert not torch.allclose(result, plain(kind, query, key, value, documents, padding))


def test_parts_of_a_sequence():
    sequence = torch.arange(24)
    parts = [own_part(sequence, rank, 4, dim=0) for rank in range(4)]
    assert parts[1].tolist() == [3, 4, 5, 18, 19, 20]
    assert torch.equal(in_order(torch.stack(parts)), sequence)
    assert torch.equal(by_ranks(sequence, 4), torch.stack(parts))
    whole = torch.zeros(2, 24)
    assert own_part(whole, 0, 1) is whole
