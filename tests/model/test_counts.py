"""Closed formulas against published numbers of parameters and against the real model chunks of every rank."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict
from dnapretrain.model.counts import (
    flops_per_token,
    layers_on_rank,
    pipeline_ends,
    rank_parameters,
    stored_parameters,
    total_parameters,
)

ALL_BIASES = {"attention_bias": True, "ffn_in_bias": True, "ffn_out_bias": True}
LAYER_NORM = {"kind": "encoder", "normalization": "LayerNorm"}
GENERATOR = {"num_attention_heads": 32, "num_query_groups": 4}
NT_V1 = {
    **LAYER_NORM,
    **ALL_BIASES,
    "num_attention_heads": 20,
    "activation": "gelu",
    "position_embedding_type": "learned_absolute",
    "max_position_embeddings": 1000,
}
NT_V2 = {**LAYER_NORM, "attention_bias": True, "num_attention_heads": 16}
DNABERT2 = {
    **LAYER_NORM,
    "attention_bias": True,
    "ffn_out_bias": True,
    "norm_position": "post",
    "activation": "geglu",
    "position_embedding_type": "alibi",
    "embedding_norm": True,
    "type_vocab_size": 2,
    "untie_embeddings_and_output_weights": False,
}
AIDO = {**LAYER_NORM, **ALL_BIASES, "untie_embeddings_and_output_weights": False}


def sizes(layers: int, hidden: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": ffn, **more}


def run_config(model: dict[str, Any], sequence_length: int = 512, **parallel: Any) -> RunConfig:
    masking = {"mlm_probability": 0.15} if model.get("kind") == "encoder" else {}
    return config_from_dict(
        {
            "data": {"train": "nowhere", "sequence_length": sequence_length, "masking": masking},
            "tokenizer": {"kind": "kmer", "k": 6},
            "model": model,
            "parallel": parallel,
            "optim": {"lr": 1e-3},
            "train": {"run_dir": "nowhere", "train_steps": 1, "micro_batch_size": 1, "global_batch_size": 64},
        }
    )


PUBLISHED = {
    "generator-1.2b": (sizes(26, 2048, 5632, **GENERATOR), 4128, 0, 1_162_061_824),
    "generator-3b": (sizes(30, 3072, 8448, **GENERATOR), 4128, 0, 2_998_262_784),
    # The published files of NT v1 hold a contact head of layers x heads + 1 weights beside the language model.
    "nt-v1-500m": (sizes(24, 1280, 5120, **NT_V1), 4105, 1, 485_699_306 - (24 * 20 + 1)),
    "nt-v1-2.5b": (sizes(32, 2560, 10240, **NT_V1), 4105, 1, 2_547_801_226 - (32 * 20 + 1)),
    "nt-v2-50m": (sizes(12, 512, 2048, **NT_V2), 4107, 1, 54_855_179),
    "nt-v2-100m": (sizes(22, 512, 2048, **NT_V2), 4107, 1, 96_839_179),
    "nt-v2-250m": (sizes(24, 768, 3072, **NT_V2), 4107, 1, 233_545_995),
    "nt-v2-500m": (sizes(29, 1024, 4096, **NT_V2), 4107, 1, 496_245_771),
    "dnabert2": (sizes(12, 768, 3072, num_attention_heads=12, **DNABERT2), 4096, 3, 117_074_176),
    "aido-300m": (sizes(24, 1024, 2688, num_attention_heads=16, **AIDO), 16, 0, 300_264_464),
    "aido-7b": (sizes(32, 4352, 11584, num_attention_heads=32, **AIDO), 16, 0, 7_285_036_304),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name):
    model, vocab_size, pad_id, published = PUBLISHED[name]
    config = run_config(model)
    assert total_parameters(config, vocab_size, pad_id) == published
    tables = 2 if config.model.untie_embeddings_and_output_weights else 1
    padding = padded_vocab_size(vocab_size) - vocab_size
    with_bias = 1 if config.is_masked else 0
    assert stored_parameters(config, vocab_size, pad_id) == published + padding * (tables * config.model.hidden_size + with_bias)


@pytest.mark.parametrize("name", ["generator-3b", "nt-v1-2.5b", "aido-7b"])
def test_the_stages_together_are_the_model(name):
    model, vocab_size, pad_id, _ = PUBLISHED[name]
    config = run_config(model, pp=2)
    copy = 0 if config.model.untie_embeddings_and_output_weights else padded_vocab_size(vocab_size) * config.model.hidden_size
    stages = [rank_parameters(config, vocab_size, pad_id, stage) for stage in range(2)]
    assert sum(stages) == stored_parameters(config, vocab_size, pad_id) + copy


def counted(env, store, layouts):
    """(parallel, rank, parameters) where the real chunks differ from the formula, and how many ranks were built.

    Every tensor- and pipeline-parallel place is played, each by another of its data-parallel ranks.
    """
    import torch

    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.build import build_chunks
    from dnapretrain.parallel.groups import pretend_rank
    from dnapretrain.parallel.platform import Platform

    different, built = [], 0
    for model, parallel, world_size in layouts:
        config = run_config(model, **parallel)
        tokenizer = build_tokenizer(config.tokenizer)
        tp, pp = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
        dp = world_size // (tp * pp)
        for pp_rank, tp_rank in itertools.product(range(pp), range(tp)):
            rank = tp_rank + tp * ((11 * built) % dp) + tp * dp * pp_rank
            with pretend_rank(rank, world_size, config.parallel), torch.device("meta"):
                platform = Platform(torch.device("meta"), "fake", rank, world_size)
                chunks = build_chunks(config, tokenizer, platform, initialize_weights=False)
            number = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
            if number != rank_parameters(config, tokenizer.vocab_size, tokenizer.pad_id, pp_rank):
                different.append((parallel, rank, number))
            built += 1
    return different, built


@pytest.mark.parametrize(
    ("name", "parallel", "places"),
    [("generator-3b", {"tp": 4, "pp": 2, "vpp": 5}, 8), ("aido-7b", {"tp": 8, "pp": 4, "sequence_parallel": True}, 32)],
)
def test_ranks_of_a_256_rank_job(ranks, name, parallel, places):
    assert ranks.run(1, counted, layouts=[(PUBLISHED[name][0], parallel, 256)])[0] == ([], places)


ENDS = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")


def test_every_rank_of_small_jobs_of_every_family(ranks):
    layouts = [
        (sizes(6, 64, 96, num_attention_heads=8, num_query_groups=4, untie_embeddings_and_output_weights=False), {"pp": 2, "vpp": 3}, 2),
        (sizes(6, 64, 96, num_attention_heads=8, num_query_groups=4), {"tp": 4, "pp": 3}, 12),
        (sizes(6, 64, 96, **{**NT_V1, "num_attention_heads": 8}), {"tp": 2, "pp": 2}, 4),
        (sizes(6, 64, 96, **NT_V2), {"tp": 4, "pp": 2, "vpp": 3}, 8),
        (sizes(29, 64, 96, **NT_V2), {"pp": 4, "num_layers_in_last_pipeline_stage": 8}, 4),
        (sizes(29, 64, 96, **NT_V2), {"tp": 2, "pp": 2, "num_layers_in_first_pipeline_stage": 15}, 4),
        (sizes(10, 64, 96, **NT_V2), {"pp": 3, "vpp": 2, **dict.fromkeys(ENDS, 2)}, 3),
        (sizes(6, 96, 96, num_attention_heads=12, **DNABERT2), {"tp": 4, "pp": 3}, 12),
        (sizes(6, 96, 96, num_attention_heads=12, **DNABERT2), {}, 1),
        (sizes(6, 64, 96, kind="encoder", num_attention_heads=8, num_query_groups=2, position_embedding_type="none"), {"tp": 2}, 2),
    ]
    different, built = ranks.run(1, counted, layouts=layouts)[0]
    assert different == []
    assert built == sum(world_size for _, _, world_size in layouts)


def test_flops_of_a_decoder_equal_a_count_by_hand():
    config = run_config(PUBLISHED["generator-1.2b"][0], sequence_length=16_384)
    layer = 2048 * 2048 + 2 * 256 * 2048 + 2048 * 2048 + 3 * 5632 * 2048  # query, key and value, output, feed-forward
    matrices = 26 * layer + 2048 * 4224
    attention = 26 * 2 * (2 * 2048 * 16_384 / 2)  # q k^T and probabilities x v; a query sees half of the keys on average
    assert flops_per_token(config.model, 16_384, 4128) == 3 * (2 * matrices + attention)


def test_flops_of_an_encoder_equal_a_count_by_hand():
    config = run_config(sizes(2, 8, 12, num_attention_heads=2, **{**DNABERT2, "activation": "gelu"}), sequence_length=10)
    layer = 3 * 8 * 8 + 8 * 8 + 2 * 8 * 12
    matrices = 2 * layer + 8 * 8 + 8 * 128  # layers, dense of the head, output over the padded vocabulary
    attention = 2 * 2 * (2 * 8 * 10)
    assert flops_per_token(config.model, 10, 100) == 3 * (2 * matrices + attention)


@pytest.mark.parametrize(("layers", "pp"), [(29, 2), (29, 4), (29, 8), (30, 4), (7, 3), (4, 3), (3, 2)])
def test_uneven_pipelines_are_as_even_as_can_be(layers, pp):
    first, last = pipeline_ends(layers, pp)
    config = run_config(sizes(layers, 8, 12, num_attention_heads=2), pp=pp, **dict(zip(ENDS, (first, last), strict=True)))
    spread = [layers_on_rank(config, rank) for rank in range(pp)]
    assert sum(spread) == layers and max(spread) == -(-layers // pp) and min(spread) >= 1


def test_pipelines_that_need_no_ends_or_leave_them_nothing():
    assert pipeline_ends(30, 5) is None  # divides
    assert pipeline_ends(29, 16) is None  # two layers on each of 14 ranks leave one
    assert pipeline_ends(5, 4) is None
    assert pipeline_ends(5, 1) is None
