import pytest
import torch
from reference import native_shapes, small_config

from dnapretrain.convert.llama import LLAMA, entries
from dnapretrain.convert.table import GroupedQKV, StackedRows, check_names, hf_to_native, native_to_hf
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError


def slow_qkv(native: torch.Tensor, heads: int, groups: int, width: int) -> list[list[float]]:
    query, key, value = [], [], []
    row = 0
    for _ in range(groups):
        for target, count in ((query, heads // groups), (key, 1), (value, 1)):
            for _ in range(count * width):
                target.append(native[row].tolist())
                row += 1
    return [query, key, value]


@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 6), (4, 2, 6), (6, 1, 2), (1, 1, 4)])
def test_grouped_qkv_equals_a_slow_split(heads, groups, width):
    native = torch.arange((heads + 2 * groups) * width * 3, dtype=torch.float32).view(-1, 3)
    layout = GroupedQKV(heads, groups, width)
    parts = layout.split(native)
    assert [part.tolist() for part in parts] == slow_qkv(native, heads, groups, width)
    assert torch.equal(layout.join(parts), native)


def test_stacked_rows_are_gate_then_up():
    gate, up = StackedRows(2).split(torch.arange(8.0)[:, None])
    assert (gate.flatten().tolist(), up.flatten().tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])


@pytest.mark.parametrize("untie", [True, False])
def test_the_table_names_each_native_tensor_once_and_each_hf_tensor_once(untie):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = small_config(untie_embeddings_and_output_weights=untie, kv_channels=8)
    tokenizer = build_tokenizer(config.tokenizer)
    table = entries(config.model, config.max_positions, tokenizer)
    assert {entry.native: entry.native_shape for entry in table} == native_shapes(config.model, tokenizer.vocab_size)
    assert len({entry.native for entry in table}) == len(table)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA.hf_config(config.model, config.max_positions, tokenizer)))
    hf = [item for entry in table for item in entry.hf]
    assert dict(hf) == {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert len(dict(hf)) == len(hf)


def test_mis_shaped_tensors_are_named_in_both_directions():
    table = entries(small_config().model, 64, build_tokenizer(small_config().tokenizer))
    with pytest.raises(CheckpointError, match=r"embedding.word_embeddings.weight has shape \(128, 23\).*\(128, 24\)"):
        list(native_to_hf(table, lambda name: torch.zeros(128, 23)))
    with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight has shape \(11, 24\).*\(10, 24\)"):
        list(hf_to_native(table, lambda name: torch.zeros(11, 24)))


def test_check_names_says_what_is_missing_unexpected_and_double():
    check_names("x", ["a", "b"], ["b", "a"])
    with pytest.raises(CheckpointError, match=r"x: 1 named twice: b; 1 missing: a; 1 unexpected: c"):
        check_names("x", ["b", "b", "c"], ["a", "b"])


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"attention_dropout": 0.1},
        {"pretraining_tp": 2},
        {"quantization_config": {"bits": 4}},
        {"rope_theta": 10000.5, "rope_parameters": None},
        {"rope_theta": 500.0},
        {"hidden_size": None},
    ],
)
def test_what_our_decoder_cannot_express_is_refused_by_name(change):
    hf = {**LLAMA.hf_config(small_config().model, 64, build_tokenizer(small_config().tokenizer)), **change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        LLAMA.model_config(hf)


@pytest.mark.parametrize("style", ["4.x", "5.x", "both"])
def test_both_rope_styles_give_the_same_model(style):
    config = small_config(rotary_base=500_000, kv_channels=8)
    hf = LLAMA.hf_config(config.model, 64, build_tokenizer(config.tokenizer))
    if style == "4.x":
        del hf["rope_parameters"]
    if style == "5.x":
        del hf["rope_theta"]
    read = LLAMA.model_config(hf)
    assert read == config.model.model_copy(update={"max_position_embeddings": 64})
