"""The engine on a CUDA device, torch spec: same numbers as the CPU, bf16 learns, checkpoints resume exactly and move to the CPU."""

from __future__ import annotations

import json
import math

import torch
from gpu_support import command_line, deterministic, device, losses, report, run_config, steps, train, train_on_cpu, workplace

LOSS_BOUND = 1e-4
"""Relative; both sides compute in fp32 and differ in the order of their sums."""
NORM_BOUND = 1e-3


def test_losses_equal_those_of_the_cpu() -> None:
    device()
    with workplace() as folder:
        here = run_config(folder, "here")
        train(here)
        there = train_on_cpu(here, folder)
        loss = max(abs(a / b - 1) for a, b in zip(losses(here), losses(there), strict=True))
        norms = [(a["grad_norm"], b["grad_norm"]) for a, b in zip(steps(here), steps(there), strict=True)]
        norm = max(abs(a / b - 1) for a, b in norms)
    differences = f"loss differs by {loss:.1e}, gradient norm by {norm:.1e} (relative, largest)"
    report("CUDA against CPU ranks, torch spec, fp32, 6 steps", differences)
    assert loss < LOSS_BOUND
    assert norm < NORM_BOUND


def test_bf16_learns() -> None:
    device()
    with workplace() as folder:
        config = run_config(folder, "bf16", train__precision="bf16", train__train_steps=20)
        train(config)
        seen, updated = losses(config), [record["updated"] for record in steps(config)]
    report("bf16 training, torch spec, 20 steps", f"loss {seen[0]:.3f} to {seen[-1]:.3f}")
    assert all(map(math.isfinite, seen))
    assert all(updated)
    assert seen[-1] < 0.7 * seen[0]


def test_resume_is_bitwise() -> None:
    resume_is_bitwise(use_distributed_optimizer=False)


def test_resume_with_the_distributed_optimizer_is_bitwise() -> None:
    resume_is_bitwise(use_distributed_optimizer=True)


def resume_is_bitwise(use_distributed_optimizer: bool) -> None:
    """Train 6 steps twice (the same?), then 3, stop and 3 more: losses, gradient norms and weights must be the same bits."""
    device()
    settings = {"train__precision": "bf16", "parallel__use_distributed_optimizer": use_distributed_optimizer}
    with workplace() as folder, deterministic():
        whole, again, parted = (run_config(folder, name, **settings) for name in ("whole", "again", "parted"))
        expected = train(whole)
        control = train(again)
        assert losses(again) == losses(whole) and same(control, expected), "two runs without a stop differ: kernels not deterministic"
        train(run_config(folder, "parted", train__stop_at_step=3, **settings))
        found = train(parted)
        numbers = [[(record["loss"], record["grad_norm"]) for record in steps(config)] for config in (parted, whole)]
    assert numbers[0] == numbers[1]
    assert same(found, expected)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)


def test_checkpoint_is_read_on_the_cpu() -> None:
    device()
    with workplace() as folder:
        config = run_config(folder, "run")
        train(config)
        records = [json.loads(line) for line in (config.train.run_dir / "log.jsonl").read_text().splitlines()]
        here = [record for record in records if record["kind"] == "eval"][-1]
        there = json.loads(command_line("evaluate", config.train.run_dir, "train.device=cpu", "--json"))["valid"]
    assert there["num_targets"] == here["num_targets"]
    assert math.isclose(there["loss"], here["loss"], rel_tol=LOSS_BOUND)


def test_a_part_of_the_queries_sees_its_keys_and_no_others() -> None:
    """What a context-parallel rank computes: causal attention of some queries over all keys up to the last of them, in bf16."""
    from types import SimpleNamespace

    from megatron.core.transformer.enums import AttnMaskType

    from dnapretrain.model.layers import SdpaAttention

    where = device()
    config = SimpleNamespace(attention_dropout=0.0, context_parallel_size=2)
    attention = SdpaAttention(config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    query, key, value, gradient = (torch.randn(1, heads, 1024, 64, generator=generator) for heads in (8, 2, 2, 8))
    part = slice(512, 768)
    results = []
    for dtype, place in ((torch.float32, "cpu"), (torch.bfloat16, where)):
        leaves = [
            tensor.to(place, dtype).requires_grad_() for tensor in (query[:, :, part], key[:, :, : part.stop], value[:, :, : part.stop])
        ]
        context = attention.attend(*leaves, None)
        gradients = torch.autograd.grad(context, leaves, gradient[:, :, part].to(place, dtype))
        results.append([tensor.float().cpu() for tensor in (context.detach(), *gradients)])
    differences = [float((here - there).abs().max() / there.abs().max()) for there, here in zip(*results, strict=True)]
    report("causal attention of a part of the queries, bf16 against fp32", f"differs by {max(differences):.1e} (of the largest value)")
    assert max(differences) < 2e-2
