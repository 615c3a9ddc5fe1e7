"""The loss of tokens over a vocabulary spread over ranks, against torch's and Megatron-core's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

VOCAB, PADDED = 100, 128


def losses(env, store, logits, labels, dtype):
    """(losses, whether right, gradient of this rank's logits, Megatron's losses and gradient)."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from dnapretrain.config import ParallelConfig
    from dnapretrain.model.cross_entropy import TokenLoss
    from dnapretrain.parallel import platform as platforms
    from dnapretrain.parallel.groups import start_groups

    platform = platforms.start("cpu", env)
    start_groups(platform, ParallelConfig(tensor_model_parallel_size=env.world_size), 0, store)
    group = parallel_state.get_tensor_model_parallel_group()
    part = logits.to(dtype).chunk(env.world_size, dim=-1)[env.rank].clone().requires_grad_()
    weights = torch.linspace(0.0, 2.0, labels.numel()).view_as(labels)  # of some tokens 0
    losses_BS, correct_BS = TokenLoss(VOCAB, None, by_base=False)(part.clone(), labels, group, training=True)
    (gradient,) = torch.autograd.grad((losses_BS * weights).sum(), part)
    masked = part.detach().clone()
    masked[..., max(VOCAB - env.rank * part.shape[-1], 0) :] = torch.finfo(dtype).min
    masked.requires_grad_()
    of_megatron = vocab_parallel_cross_entropy(masked.clone(), labels.T.contiguous()).T
    (gradient_of_megatron,) = torch.autograd.grad((of_megatron * weights).sum(), masked)
    return tuple(result.detach() for result in (losses_BS, correct_BS, gradient, of_megatron, gradient_of_megatron))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world_size", [1, 2])
def test_cross_entropy_is_that_of_torch_and_of_megatron(ranks, world_size, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(12, 2, PADDED, generator=generator) * 4).to(dtype)
    logits[0, 0, 3] = 200.0  # its probability is 1 to the last bit
    logits[1, 0, 5] = 200.0  # and the label's below what fp32 can hold
    labels = torch.randint(0, VOCAB, (2, 12), generator=generator)
    labels[0, 0], labels[0, 1] = 3, 6
    results = ranks.run(world_size, losses, logits=logits, labels=labels, dtype=dtype)
    whole = logits[..., :VOCAB].float().transpose(0, 1).clone().requires_grad_()
    expected = F.cross_entropy(whole.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    (of_logits,) = torch.autograd.grad((expected * torch.linspace(0.0, 2.0, labels.numel()).view_as(labels)).sum(), whole)
    rounding = 1e-5 if dtype is torch.float32 else 1e-2
    for result in results:
        torch.testing.assert_close(result[0], expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result[0], result[3], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result[2], result[4], rtol=rounding, atol=rounding)
        assert torch.equal(result[1], whole.argmax(-1) == labels)
    gradient = torch.cat([result[2] for result in results], dim=-1)
    torch.testing.assert_close(gradient[..., :VOCAB].float(), of_logits.transpose(0, 1), rtol=rounding, atol=rounding)
    assert not gradient[..., VOCAB:].any()
