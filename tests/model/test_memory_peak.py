"""The formula of a rank's memory against real steps on CPU: the most bytes that are alive at once, and the optimizer's state."""

from __future__ import annotations

import pytest

TOLERANCE = 0.10
SIZE = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "ffn_hidden_size": 320, "num_query_groups": None}
ENCODER = {**SIZE, "kind": "encoder", "normalization": "LayerNorm", "attention_bias": True}
FAMILIES = {
    "generator": {**SIZE, "num_query_groups": 2},
    "nt-v1": {
        **ENCODER,
        "activation": "gelu",
        "position_embedding_type": "learned_absolute",
        "token_dropout": 0.12,
        "ffn_in_bias": True,
        "ffn_out_bias": True,
        "ffn_hidden_size": 512,
    },
    "nt-v2": ENCODER,
    "dnabert2": {
        **ENCODER,
        "norm_position": "post",
        "activation": "geglu",
        "ffn_out_bias": True,
        "position_embedding_type": "alibi",
        "embedding_norm": True,
        "type_vocab_size": 2,
        "hidden_dropout": 0.1,
        "ffn_dropout": "inner",
        "untie_embeddings_and_output_weights": False,
        "ffn_hidden_size": 512,
    },
    "aido-dna": {**ENCODER, "ffn_in_bias": True, "ffn_out_bias": True, "untie_embeddings_and_output_weights": False},
}


def real_step(env, store, tree):
    """(most bytes above what lives between steps, by the formula), (bytes of the optimizer's state and main weights, by the formula)."""
    import gc

    import torch
    from alive_bytes import Alive
    from training import begin

    from dnapretrain.config_file import config_from_dict
    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.layers import AlibiAttention
    from dnapretrain.model.memory import _working, rank_memory, stage_activations

    trainer, _, _ = begin(env, store, tree)
    trainer.train_step(trainer.next_batches())  # makes the optimizer's state
    for chunk in trainer.chunks:
        for attention in chunk.modules():
            if isinstance(attention, AlibiAttention):
                attention.bias.__init__()  # made anew, and counted, in the next step
    gc.collect()
    batches = trainer.next_batches()
    with Alive() as alive:
        trainer.train_step(batches)

    config = config_from_dict(tree)
    tokenizer = build_tokenizer(config.tokenizer)
    copies = env.world_size // config.parallel.model_parallel_size
    stage = env.rank * config.parallel.pipeline_model_parallel_size // env.world_size
    (part,) = trainer.optimizer.chained_optimizers
    state = [value for of_weight in part.optimizer.state.values() for value in of_weight.values() if isinstance(value, torch.Tensor)]
    main = [weight for group in part.optimizer.param_groups for weight in group["params"]] if config.train.precision == "bf16" else []
    held = sum(value.numel() * value.element_size() for value in (*state, *main))
    by_formula = stage_activations(config, tokenizer.vocab_size, copies, stage, is_cuda=False)
    by_formula += _working(config, tokenizer.vocab_size, stage, is_cuda=False)
    return (alive.most, by_formula), (held, rank_memory(config, tokenizer.vocab_size, tokenizer.pad_id, copies, stage).optimizer)


def family_tree(tiny_config, family, **settings):
    tree = tiny_config(**{"data.sequence_length": 256, **settings})
    tree["model"].update(FAMILIES[family])
    if FAMILIES[family].get("kind") == "encoder":
        tree["data"]["masking"] = {"mlm_probability": 0.15}
    if family == "dnabert2":
        tree["data"]["window_length"] = 200  # padded: every sample has a bias of its own
    return tree


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_step_holds_what_the_formula_says(ranks, tiny_config, family, recompute):
    tree = family_tree(tiny_config, family, **{"train.recompute": recompute, "train.global_batch_size": 4})
    (((most, formula), (held, optimizer)),) = ranks.run(1, real_step, tree=tree)
    assert formula == pytest.approx(most, rel=TOLERANCE)
    assert optimizer == pytest.approx(held, rel=0.001)


def test_stages_of_a_pipeline_and_main_weights_shared_by_copies(ranks, tiny_config):
    settings = {"parallel.pp": 2, "train.global_batch_size": 8}
    for (most, formula), _ in ranks.run(2, real_step, tree=family_tree(tiny_config, "nt-v2", **settings)):
        assert formula == pytest.approx(most, rel=0.15)
    settings = {"parallel.use_distributed_optimizer": True, "train.precision": "bf16"}
    shares = [optimizer for _, optimizer in ranks.run(2, real_step, tree=family_tree(tiny_config, "nt-v2", **settings))]
    assert sum(formula for _, formula in shares) == pytest.approx(sum(held for held, _ in shares), rel=0.01)
