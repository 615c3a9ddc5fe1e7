"""The closed formula of activations against the bytes that autograd keeps of real models, and the schedule's micro-batches in flight."""

from __future__ import annotations

import dataclasses

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.model.memory import busiest_rank, chunks_in_flight, rank_memory, stage_activations

TOLERANCE = 0.03
"""Small tensors that the formula leaves out, such as dropout's factors per sample."""


def kept_bytes(env, store, tree, padded=False):
    """Bytes of the storages that autograd keeps between forward and backward of one micro-batch, and of the ALiBi bias; weights not."""
    import torch

    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model.batches import document_mask
    from dnapretrain.model.build import build_chunks, wrap_for_precision
    from dnapretrain.model.layers import AlibiBias
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    config = config_from_dict(tree)
    platform = platforms.start("cpu", env)
    start_groups(platform, config.parallel, config.train.seed, store)
    tokenizer = build_tokenizer(config.tokenizer)
    chunks = build_chunks(config, tokenizer, platform)
    (module,) = wrap_for_precision(chunks, config.train.precision)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()  # held, so that its address is not given to another
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    shape = (config.train.micro_batch_size, config.data.sequence_length)
    tokens = torch.randint(5, tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(shape[0], 1, 1, shape[1], dtype=torch.bool) if padded else None
    if padded:
        mask[..., -3:] = True
    if config.data.document_attention:
        documents = torch.arange(shape[1]).expand(shape) // 50
        mask = document_mask(documents, not config.is_masked, torch.bfloat16 if config.train.precision == "bf16" else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(tokens, torch.arange(shape[1]).expand(shape), mask, labels=tokens)
    for attention in module.modules():
        bias = getattr(attention, "bias", None)
        for tensor in (bias._plain, bias._masked) if isinstance(bias, AlibiBias) else ():
            if tensor is not None:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values()), stage_activations(config, tokenizer.vocab_size, 1, 0, is_cuda=False)


DECODER = {"num_query_groups": 2}
NT_V1 = {
    "num_query_groups": None,
    "kind": "encoder",
    "normalization": "LayerNorm",
    "activation": "gelu",
    "position_embedding_type": "learned_absolute",
    "token_dropout": 0.12,
    "attention_bias": True,
    "ffn_in_bias": True,
    "ffn_out_bias": True,
}
DNABERT2 = {
    "num_query_groups": None,
    "kind": "encoder",
    "normalization": "LayerNorm",
    "norm_position": "post",
    "activation": "geglu",
    "attention_bias": True,
    "ffn_out_bias": True,
    "position_embedding_type": "alibi",
    "embedding_norm": True,
    "type_vocab_size": 2,
    "hidden_dropout": 0.1,
    "ffn_dropout": "inner",
    "untie_embeddings_and_output_weights": False,
}
DOCUMENTS = {"data.sampling": "packed", "data.document_attention": True}
ENCODER = {"num_query_groups": 1, "kind": "encoder", "position_embedding_type": "none", "hidden_dropout": 0.1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "padded", "settings"),
    [
        (DECODER, False, {}),
        (DECODER, False, {"train.recompute": "selective"}),
        (DECODER, False, {"train.recompute": "full"}),
        (DECODER, False, {"tokenizer.kind": "kmer", "tokenizer.k": 5, "train.micro_batch_size": 1}),
        (DECODER, False, {"tokenizer.kind": "kmer", "tokenizer.k": 3, "train.loss": "nucleotide", "train.micro_batch_size": 1}),
        (DECODER, False, {"parallel.tp": 2}),
        (DECODER, False, {"parallel.tp": 2, "parallel.sequence_parallel": True}),
        (NT_V1, False, {}),
        (NT_V1, True, {"parallel.tp": 2, "parallel.sequence_parallel": True}),
        (DNABERT2, True, {}),
        (DNABERT2, True, {"parallel.tp": 2}),
        (ENCODER, False, {}),
        ({**ENCODER, "num_query_groups": 2}, False, {}),
        (ENCODER, False, {"train.recompute": "full"}),
        (DECODER, False, DOCUMENTS),
        (DECODER, False, {**DOCUMENTS, "parallel.tp": 2}),
        (DECODER, False, {**DOCUMENTS, "train.recompute": "full"}),
        (DECODER, False, {**DOCUMENTS, "train.recompute": "selective"}),
        (DNABERT2, False, DOCUMENTS),
        (DNABERT2, False, {**DOCUMENTS, "train.recompute": "selective"}),
        (ENCODER, False, DOCUMENTS),
        ({**ENCODER, "num_query_groups": 2}, False, DOCUMENTS),
        ({**ENCODER, "num_query_groups": None}, False, DOCUMENTS),
    ],
)
def test_activations_are_what_autograd_keeps(ranks, tiny_config, precision, model, padded, settings):
    size = {"model.hidden_size": 128, "model.ffn_hidden_size": 320, "data.sequence_length": 128}
    tree = tiny_config(**{**size, "train.precision": precision, **settings})
    tree["model"].update(model)
    if model is not DECODER:
        tree["data"]["masking"] = {"mlm_probability": 0.15}
    for kept, formula in ranks.run(settings.get("parallel.tp", 1), kept_bytes, tree=tree, padded=padded):
        assert formula == pytest.approx(kept, rel=TOLERANCE)


def outstanding(env, store, tree):
    """The most micro-batches of any model chunk that wait for their backward pass at once on this rank, in a real step."""
    from training import begin

    trainer, _, _ = begin(env, store, tree)
    now, most = 0, 0

    def went_forward(module, inputs, output):
        nonlocal now, most
        now += 1
        most = max(most, now)
        (output[0] if isinstance(output, tuple) else output).register_hook(went_back)

    def went_back(gradient):
        nonlocal now
        now -= 1

    for chunk in trainer.chunks:
        chunk.register_forward_hook(went_forward)
    trainer.train_step(trainer.next_batches())
    return most


@pytest.mark.parametrize(("pp", "vpp", "samples"), [(2, None, 8), (2, None, 2), (2, 2, 8), (2, 2, 4), (3, None, 12), (3, 2, 12)])
def test_micro_batches_in_flight_are_those_of_the_real_schedule(ranks, tiny_config, pp, vpp, samples):
    tree = tiny_config(
        **{"parallel.pp": pp, "parallel.vpp": vpp, "model.num_layers": 6 if pp == 3 else 4, "train.global_batch_size": samples}
    )
    expected = [chunks_in_flight(pp, vpp, rank, samples // 2) for rank in range(pp)]
    assert ranks.run(pp, outstanding, tree=tree) == expected


def test_parts_of_a_rank(tiny_config):
    config = config_from_dict(tiny_config(**{"train.precision": "bf16", "parallel.use_distributed_optimizer": True}))
    memory = rank_memory(config, 10, 0, 4, 0)
    parameters = memory.parameters
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters // 4)
    plain = config_from_dict(tiny_config())
    memory = rank_memory(plain, 10, 0, 4, 0)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    parts = dataclasses.asdict(memory)
    assert memory.total == sum(value for name, value in parts.items() if name not in ("pp_rank", "parameters"))


def test_the_busiest_rank_is_the_one_that_needs_most(tiny_config):
    config = config_from_dict(tiny_config(**{"parallel.pp": 4, "train.global_batch_size": 16, "data.sequence_length": 512}))
    of_stages = [rank_memory(config, 10, 0, 1, stage) for stage in range(4)]
    assert of_stages[0].activations > 1.5 * of_stages[2].activations  # four micro-batches in flight, and two
    assert busiest_rank(config, 10, 0, 1) == max(of_stages, key=lambda memory: memory.total)
