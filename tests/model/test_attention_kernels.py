"""FlexAttention against `scaled_dot_product_attention` with masks and biases as tensors: forward; it has no backward pass on CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dnapretrain.config import ModelConfig
from dnapretrain.model import attention_kernels
from dnapretrain.model.attention_kernels import FlexAlibiAttention, FlexAttention, why_not_flex
from dnapretrain.model.batches import document_mask

B, S, N, D = 2, 200, 4, 16


def contexts(env, store, groups, causal, alibi, masked):
    """Contexts of FlexAttention, twice, of the plain path, and how many block masks were made."""
    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.config import ParallelConfig
    from dnapretrain.model.layers import AlibiAttention, AlibiBias, SdpaAttention
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    start_groups(platforms.start("cpu", env), ParallelConfig(), 0, store)
    config = SimpleNamespace(attention_dropout=0.0, num_attention_heads=N, context_parallel_size=1)
    settings = {"attn_mask_type": AttnMaskType.causal if causal else AttnMaskType.padding, "layer_number": 1, "attention_type": "self"}
    flex = (FlexAlibiAttention if alibi else FlexAttention)(config, **settings)
    plain = AlibiAttention(config, bias=AlibiBias(), **settings) if alibi else SdpaAttention(config, **settings)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(S, B, heads, D, generator=generator) for heads in (N, groups, groups))
    documents = torch.randint(0, 30, (B, S), generator=generator).sort(dim=1).values
    padding = torch.arange(S) >= torch.tensor([[S], [S - 77]])
    given = {"documents": documents[:, None, None], "padding": padding[:, None, None], "nothing": None}[masked]
    as_tensor = document_mask(documents, causal, torch.float32) if masked == "documents" else given
    attention_kernels._masks.clear()
    with torch.no_grad():
        first, again = flex(query, key, value, given), flex(query, key, value, given)
        return first, again, plain(query, key, value, as_tensor), len(attention_kernels._masks)


CASES = [
    *[(groups, causal, False, "documents") for groups in (1, 4) for causal in (True, False)],
    *[(4, False, True, masked) for masked in ("documents", "padding", "nothing")],
    (2, True, False, "nothing"),
    (4, False, False, "padding"),
]


@pytest.mark.parametrize(("groups", "causal", "alibi", "masked"), CASES)
def test_flex_attention_equals_the_plain_path(ranks, groups, causal, alibi, masked):
    arguments = {"groups": groups, "causal": causal, "alibi": alibi, "masked": masked}
    first, again, plain, made = ranks.run(1, contexts, **arguments)[0]
    torch.testing.assert_close(first, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, again)
    assert made == 1


def test_the_rule_names_its_reason(monkeypatch):
    shape = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 8}
    rope, alibi = ModelConfig(**shape), ModelConfig(**shape, kind="encoder", position_embedding_type="alibi")
    monkeypatch.setattr(attention_kernels.importlib.util, "find_spec", lambda _: object())
    assert why_not_flex(rope, True, False, 1) == "no bias, no documents"
    assert why_not_flex(rope, True, True, 1) is None
    assert why_not_flex(alibi, True, False, 1) is None
    assert "context-parallel" in why_not_flex(rope, True, True, 2)
    assert "CUDA" in why_not_flex(alibi, False, False, 1)
    assert "dropout" in why_not_flex(alibi.model_copy(update={"attention_dropout": 0.1}), True, False, 1)
    assert "heads of 16" in why_not_flex(rope.model_copy(update={"num_attention_heads": 8}), True, True, 1)
    monkeypatch.setattr(attention_kernels.importlib.util, "find_spec", lambda _: None)
    assert "Triton" in why_not_flex(alibi, True, False, 1)
