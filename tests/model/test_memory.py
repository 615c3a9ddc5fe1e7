"""The closed formula of activations against the bytes that autograd keeps of real models, and the schedule's micro-batches in flight."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.model.memory import busiest_rank, chunks_in_flight, layer_activations, rank_memory, stage_activations

PARTS = ("weights", "gradients", "optimizer", "activations", "working", "allowance")
TOLERANCE = 0.03
"""Small tensors that the formula leaves out, such as dropout's factors per sample."""


def kept_bytes(env, store, tree, padded=False):
    """Bytes of the storages that autograd keeps between forward and backward of one micro-batch, and of the ALiBi bias; weights not."""
    import torch

    from dnapretrain.data.tokens.tokenizers import build_tokenizer
    from dnapretrain.model import context_parallel
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
    packed = []

    def pack(tensor):
        # Not held: Megatron-core adds residuals with gradients even where a layer is recomputed, and autograd lets that go again.
        packed.append(weakref.ref(tensor.untyped_storage()))
        return tensor.detach()  # an output that its own node has saved would hold the node for ever

    plain_pack = context_parallel._KeysAndValues.pack

    def pack_of_attention(self, tensor):
        for own in self.own:
            pack(own)
        packed = plain_pack(self, tensor)
        return pack(packed) if isinstance(packed, torch.Tensor) else packed

    cp = config.parallel.context_parallel_size
    shape = (config.train.micro_batch_size, config.data.sequence_length)
    tokens = torch.randint(5, tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(shape[0], 1, 1, shape[1], dtype=torch.bool) if padded else None
    if padded:
        mask[..., -3:] = True
    if config.data.document_attention:
        documents = torch.arange(shape[1]).expand(shape) // 50
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        mask = document_mask(documents, not config.is_masked, dtype, lambda values: context_parallel.own_part(values, env.rank % cp, cp))
    tokens, positions = (context_parallel.own_part(values, 0, cp) for values in (tokens, torch.arange(shape[1]).expand(shape)))
    fused_as_it_is = torch.compiler.set_stance("force_eager")  # what it keeps is the same, and nothing need be compiled
    context_parallel._KeysAndValues.pack = pack_of_attention
    try:
        with fused_as_it_is, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(tokens, positions, mask, labels=tokens)
    finally:
        context_parallel._KeysAndValues.pack = plain_pack
    gc.collect()
    alive = [storage for reference in packed if (storage := reference()) is not None]
    kept = {storage.data_ptr(): storage for storage in alive if storage.data_ptr() not in weights}
    for attention in module.modules():
        bias = getattr(attention, "bias", None)
        for tensor in (bias._plain, bias._masked) if isinstance(bias, AlibiBias) else ():
            if tensor is not None:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    del output
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
NT_V2 = {"num_query_groups": None, "kind": "encoder", "normalization": "LayerNorm", "attention_bias": True}
AIDO_DNA = {**NT_V2, "ffn_in_bias": True, "ffn_out_bias": True, "untie_embeddings_and_output_weights": False}
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
        (DECODER, False, {"train.bias_activation_fusion": True}),
        (DECODER, False, {"parallel.tp": 2}),
        (DECODER, False, {"parallel.tp": 2, "parallel.sequence_parallel": True}),
        (NT_V1, False, {}),
        (NT_V1, False, {"train.recompute": "selective"}),
        (NT_V1, False, {"train.recompute": "full"}),
        (NT_V2, False, {}),
        (NT_V2, False, {"train.recompute": "selective"}),
        (NT_V2, False, {"train.recompute": "full"}),
        (AIDO_DNA, False, {}),
        (AIDO_DNA, False, {"train.recompute": "selective"}),
        (AIDO_DNA, False, {"train.recompute": "full"}),
        (NT_V1, True, {"parallel.tp": 2, "parallel.sequence_parallel": True}),
        (DNABERT2, True, {}),
        (DNABERT2, True, {"parallel.tp": 2}),
        (DNABERT2, True, {"train.recompute": "selective"}),
        (DNABERT2, True, {"train.recompute": "full"}),
        (ENCODER, False, {}),
        ({**ENCODER, "num_query_groups": 2}, False, {}),
        (ENCODER, False, {"train.recompute": "full"}),
        (DECODER, False, DOCUMENTS),
        (DECODER, False, {**DOCUMENTS, "parallel.tp": 2}),
        (DECODER, False, {"parallel.cp": 2}),
        (DECODER, False, {**DOCUMENTS, "parallel.cp": 2}),
        (DECODER, False, {"parallel.cp": 2, "train.recompute": "full"}),
        (DNABERT2, True, {"parallel.cp": 2}),
        (NT_V1, False, {"parallel.cp": 2}),
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
    for kept, formula in ranks.run(settings.get("parallel.tp", 1) * settings.get("parallel.cp", 1), kept_bytes, tree=tree, padded=padded):
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


WIDE = {"model.transformer_impl": "auto"}
"""Not torch: FP8 is Transformer Engine's."""


def test_parts_of_a_rank(tiny_config):
    config = config_from_dict(tiny_config(**{"train.precision": "bf16", "parallel.use_distributed_optimizer": True}))
    memory = rank_memory(config, 10, 0, 4, 0)
    parameters = memory.parameters
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters // 4)
    plain = config_from_dict(tiny_config())
    memory = rank_memory(plain, 10, 0, 4, 0)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    in_fp8 = rank_memory(config_from_dict(tiny_config(**{"train.precision": "bf16", "train.fp8": "hybrid", **WIDE})), 10, 0, 4, 0)
    in_bf16 = rank_memory(config_from_dict(tiny_config(**{"train.precision": "bf16", **WIDE})), 10, 0, 4, 0)
    of_layers = 4 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96)  # qkv, projection, gated feed-forward
    assert in_fp8.weights - in_bf16.weights == 2 * of_layers
    parts = dataclasses.asdict(memory)
    assert memory.total == sum(value for name, value in parts.items() if name in PARTS)


def test_the_busiest_rank_is_the_one_that_needs_most(tiny_config):
    config = config_from_dict(tiny_config(**{"parallel.pp": 4, "train.global_batch_size": 16, "data.sequence_length": 512}))
    of_stages = [rank_memory(config, 10, 0, 1, stage) for stage in range(4)]
    assert of_stages[0].activations > 1.5 * of_stages[2].activations  # four micro-batches in flight, and two
    assert busiest_rank(config, 10, 0, 1) == max(of_stages, key=lambda memory: memory.total)


def test_scores_of_transformer_engines_fp32_attention_are_kept(tiny_config):
    """On CUDA, where its layers are taken: 2 samples x 4 heads x 32^2 scores of 4 bytes, with dropout 9; torch's kernels keep none.
    Without a fused SwiGLU it keeps 2 x 96 values of each token besides."""
    names, fused = ("torch", "auto"), {"train.bias_activation_fusion": True}
    torch_path, te = (config_from_dict(tiny_config(**fused, **{"model.transformer_impl": name})) for name in names)
    plain_torch, plain_te = (config_from_dict(tiny_config(**{"model.transformer_impl": name})) for name in names)
    assert layer_activations(plain_torch) == layer_activations(torch_path)
    assert layer_activations(plain_te) - layer_activations(te) == 2 * 32 * 2 * 96 * 4
    statistics = 2 * 32 * 4 * 4
    scores = 4 * 2 * 4 * 32**2
    assert layer_activations(te) - layer_activations(torch_path) == scores - statistics
    assert layer_activations(te, recompute="selective") == layer_activations(torch_path, recompute="selective")
    assert layer_activations(te, is_cuda=False) == layer_activations(torch_path, is_cuda=False)
    in_bf16 = [config_from_dict(tiny_config(**fused, **{"model.transformer_impl": name, "train.precision": "bf16"})) for name in names]
    assert layer_activations(in_bf16[0]) == layer_activations(in_bf16[1])


def test_layers_share_the_alibi_bias(tiny_config):
    """Of Transformer Engine one; of torch one more for each of two samples that may be padded."""
    trees = [tiny_config(**{"train.precision": "bf16", "train.recompute": "selective"}) for _ in range(2)]
    for tree, name in zip(trees, ("torch", "auto"), strict=True):
        tree["model"].update({**DNABERT2, "activation": "gelu", "transformer_impl": name})
        tree["data"]["masking"] = {"mlm_probability": 0.15}
    torch_path, te = (stage_activations(config_from_dict(tree), 10, 1, 0) for tree in trees)
    assert torch_path - te == 2 * 4 * 32**2 * 2  # 4 heads


def test_context_parallel_ranks_share_the_sequence(tiny_config):
    whole, half = (config_from_dict(tiny_config(**{"train.precision": "bf16", "parallel.cp": cp})) for cp in (1, 2))
    both_halves = 2 * 32 * 64 * 2  # attention's results of both halves of a causal sequence, and these behind each other
    assert layer_activations(half) * 2 == layer_activations(whole) + both_halves
    assert rank_memory(half, 10, 0, 2, 0).weights == rank_memory(whole, 10, 0, 4, 0).weights
    shared = {"train.precision": "bf16", "parallel.use_distributed_optimizer": True}
    whole, half = (config_from_dict(tiny_config(**shared, **{"parallel.cp": cp})) for cp in (1, 2))
    assert rank_memory(half, 10, 0, 2, 0).optimizer == rank_memory(whole, 10, 0, 4, 0).optimizer


def test_no_stage_between_needs_more_than_the_second(tiny_config):
    settings = {"parallel.pp": 8, "model.num_layers": 8, "train.global_batch_size": 32, "data.sequence_length": 256}
    for recompute in ("none", "full"):
        config = config_from_dict(tiny_config(**settings, **{"train.recompute": recompute}))
        needed = [rank_memory(config, 10, 0, 1, stage).total for stage in range(8)]
        assert max(needed) == busiest_rank(config, 10, 0, 1).total and needed[1:7] == sorted(needed[1:7], reverse=True)
