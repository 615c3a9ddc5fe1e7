"""On the CPU, gradients in bf16 are those in fp32 up to rounding: what is summed over tokens is summed in fp32."""

from types import SimpleNamespace

import pytest
import torch
import training
from train.test_layouts import ENCODER

from dnapretrain.model.layers import LayerNorm
from dnapretrain.parallel import cpu_engine

TOKENS, HIDDEN = 2048, 64


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, HIDDEN, generator=generator), torch.randn(TOKENS, HIDDEN, generator=generator) + 0.1


def test_layer_norm():
    x, gradient = inputs()
    norm = LayerNorm(SimpleNamespace(params_dtype=torch.bfloat16, sequence_parallel=False), HIDDEN, 1e-5)
    output = norm(x.bfloat16())
    assert output.dtype == norm.weight.dtype == torch.bfloat16
    output.backward(gradient.bfloat16())
    plain = torch.nn.LayerNorm(HIDDEN)
    true = plain(x.bfloat16().float())
    true.backward(gradient.bfloat16().float())
    assert relative(output, true) < 4e-3
    assert relative(norm.weight.grad, plain.weight.grad) < 4e-3
    assert relative(norm.bias.grad, plain.bias.grad) < 4e-3


def test_embedding_of_few_letters():
    _, gradient = inputs()
    ids = torch.arange(TOKENS) % 5
    weight = torch.randn(8, HIDDEN, dtype=torch.bfloat16).requires_grad_()
    rows = cpu_engine.embedding(ids, weight)
    assert torch.equal(rows, weight[ids])
    rows.backward(gradient.bfloat16())
    true = torch.zeros(8, HIDDEN, dtype=torch.double).index_add_(0, ids, gradient.bfloat16().double())
    assert relative(weight.grad, true) < 4e-3


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_a_whole_encoder(ranks, tiny_config, tmp_path, normalization):
    """Also what Megatron-core's own embedding does."""
    tree = {**ENCODER, "model.normalization": normalization, "model.embedding_norm": True, "train.micro_batch_size": 8}
    wide, narrow = (
        ranks.run(1, gradients, tree=tiny_config(**tree, **{"train.precision": precision, "train.run_dir": str(tmp_path / precision)}))[0]
        for precision in ("fp32", "bf16")
    )
    assert wide.keys() == narrow.keys() and len(wide) > 20
    errors = {name: relative(narrow[name], wide[name]) for name in wide}
    assert max(errors.values()) < 0.04, errors


def gradients(env, store, tree):
    from dnapretrain.model.build import named_weights
    from dnapretrain.model.loss import forward_step
    from dnapretrain.train.checkpoint import unwrapped

    trainer, _, _ = training.begin(env, store, tree)
    output, loss_function = forward_step(trainer.next_batches()[0], trainer.chunks[0])
    loss_sum, num_targets, _ = loss_function(output)
    (loss_sum / num_targets).backward()
    return {name: weight.main_grad.float() for name, weight in named_weights([unwrapped(trainer.chunks[0])])}
