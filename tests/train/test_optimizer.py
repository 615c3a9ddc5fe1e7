"""The schedule at its corners, weight decay on matrices only, bad steps left out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import training

from dnapretrain.config_file import config_from_dict
from dnapretrain.train.optimizer import build_schedule

LR, MIN, WARM, END, BATCH = 1e-3, 1e-4, 10, 100, 8


def _rates(tiny_config, style, **optim):
    overrides = {f"optim.{key}": value for key, value in optim.items()}
    tree = tiny_config(
        **{
            "optim.lr": LR,
            "optim.min_lr": MIN,
            "optim.lr_warmup_steps": WARM,
            "optim.lr_decay_style": style,
            "train.train_steps": END,
            **overrides,
        }
    )
    optimizer = SimpleNamespace(param_groups=[{}])
    schedule = build_schedule(config_from_dict(tree), optimizer)
    rates = []
    for _ in range(END + 5):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(BATCH)
    return rates


def _between(rate, share):
    return pytest.approx(MIN + (LR - MIN) * share, rel=1e-6) == rate


@pytest.mark.parametrize(
    ("style", "half_way", "end"),
    [
        ("constant", LR, LR),
        ("linear", MIN + (LR - MIN) * 0.5, MIN),
        ("cosine", MIN + (LR - MIN) * 0.5, MIN),
        ("inverse-square-root", LR * math.sqrt(WARM / 55), LR * math.sqrt(WARM / END)),
        ("WSD", LR, MIN),
    ],
)
def test_schedules_at_their_corners(tiny_config, style, half_way, end):
    rates = _rates(tiny_config, style)
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(LR / 2)
    assert rates[WARM] == pytest.approx(LR)
    assert rates[55] == pytest.approx(half_way)
    assert rates[END] == pytest.approx(end)
    assert rates[END + 3] == pytest.approx(LR if style == "constant" else MIN)


def test_warm_up_may_begin_above_zero(tiny_config):
    rates = _rates(tiny_config, "inverse-square-root", lr_warmup_init=5e-4)
    assert rates[0] == pytest.approx(5e-4)
    assert rates[5] == pytest.approx(7.5e-4)


@pytest.mark.parametrize(
    ("style", "share"), [("linear", 0.5), ("cosine", 0.5), ("minus_sqrt", 1 - math.sqrt(0.5)), ("exponential", 2 * 0.5**0.5 - 1)]
)
def test_wsd_decays_at_the_end_only(tiny_config, style, share):
    rates = _rates(tiny_config, "WSD", lr_wsd_decay_steps=20, lr_wsd_decay_style=style)
    assert rates[80] == pytest.approx(LR)
    assert _between(rates[90], share)


def one_step_with_decay(env, store, tree):
    from dnapretrain.model.build import named_weights

    trainer, _, _ = training.begin(env, store, tree)
    weights = dict(named_weights([chunk.module for chunk in trainer.chunks]))
    with torch.no_grad():
        weights["decoder.final_layernorm.weight"].fill_(2.0)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    trainer.train_step(trainer.next_batches())
    return before, {name: weight.detach() for name, weight in weights.items()}


def test_decay_skips_norms(ranks, tiny_config):
    """With beta1 = beta2 = 0 Adam moves each weight by lr x sign: what is beyond that is decay."""
    common = {"optim.lr": 1e-2, "optim.lr_warmup_steps": 0, "optim.adam_beta1": 0.0, "optim.adam_beta2": 0.0, "optim.clip_grad": 0.0}
    before, without = ranks.run(1, one_step_with_decay, tree=tiny_config("a", **common, **{"optim.weight_decay": 0.0}))[0]
    _, decayed = ranks.run(1, one_step_with_decay, tree=tiny_config("b", **common, **{"optim.weight_decay": 0.5}))[0]
    for name, start in before.items():
        expected = without[name] - (1e-2 * 0.5 * start if start.dim() > 1 else 0.0)
        torch.testing.assert_close(decayed[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def poisoned_step(env, store, tree):
    trainer, _, _ = training.begin(env, store, tree)

    def step(poison):
        lists = [list(batches) for batches in trainer.next_batches()]
        if poison and env.rank == 0:
            lists[0][0].loss_mask_BS[:] = float("nan")
        return trainer.train_step([iter(batches) for batches in lists])

    good = step(False)
    weights = [parameter.detach().clone() for chunk in trainer.chunks for parameter in chunk.parameters()]
    schedule = trainer.schedule.num_steps
    bad = step(True)
    same = all(torch.equal(a, b) for a, b in zip(weights, (p for chunk in trainer.chunks for p in chunk.parameters()), strict=True))
    after = step(False)
    return good, bad, after, same, trainer.schedule.num_steps - schedule, trainer.position.consumed_samples


@pytest.mark.parametrize(("world_size", "layout"), [(1, {}), (2, {}), (2, {"parallel.use_distributed_optimizer": True})], ids=str)
def test_a_step_that_is_not_finite_is_left_out_on_every_rank(ranks, tiny_config, world_size, layout):
    for good, bad, after, same, schedule, consumed in ranks.run(world_size, poisoned_step, tree=tiny_config(**layout)):
        assert good.updated and after.updated and math.isfinite(after.loss)
        assert not bad.updated and not math.isfinite(bad.grad_norm)
        assert same
        assert schedule == BATCH  # the left-out step does not advance the schedule, its samples are consumed
        assert consumed == 3 * BATCH


def after_steps(env, store, tree, fused_adam, fused_gradients):
    """Losses of a few steps and the gradients of the last, which show what the updates before made of the weights."""
    trainer, _, log = training.begin(env, store, tree)
    for part in trainer.optimizer.chained_optimizers:
        assert all(group["fused"] for group in part.optimizer.param_groups)
        for group in part.optimizer.param_groups:
            group["fused"] = fused_adam
    linears = [module for chunk in trainer.chunks for module in chunk.modules() if hasattr(module, "gradient_accumulation_fusion")]
    assert linears
    assert all(linear.gradient_accumulation_fusion for linear in linears)
    for linear in linears:
        linear.gradient_accumulation_fusion = fused_gradients
    losses = [trainer.train_step(trainer.next_batches()).loss for _ in range(4)]
    weights = {name: weight for chunk in trainer.chunks for name, weight in chunk.named_parameters()}
    assert "AdamW, fused" in log
    return losses, {name: weight.main_grad.clone() for name, weight in weights.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["decoder", "post-norm ALiBi encoder"])  # the encoder's last matrix is its embedding too
def test_fused_updates_and_gradients_equal_the_plain_ones(ranks, tiny_config, model, precision):
    from train.test_layouts import MODELS

    batch = {"train.micro_batch_size": 2, "train.global_batch_size": 4, "train.precision": precision}  # two products add to each sum
    runs = []
    for number, (adam, gradients) in enumerate(((True, True), (False, True), (True, False))):
        tree = tiny_config(f"run{number}", **MODELS[model], **batch)
        runs.append(ranks.run(1, after_steps, tree=tree, fused_adam=adam, fused_gradients=gradients)[0])
    bound = 1e-4 if precision == "fp32" else 5e-2
    for losses, gradients in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=bound)
        for name, gradient in gradients.items():
            torch.testing.assert_close(runs[0][1][name], gradient, rtol=bound, atol=bound * float(gradient.abs().max()))
