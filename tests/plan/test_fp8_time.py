"""FP8 in the model of step time: every formula by a case worked out by hand, what stays in bf16, and published runs."""

from __future__ import annotations

import dataclasses

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.errors import ConfigError
from dnapretrain.model.counts import flops_per_token
from dnapretrain.parallel.gpus import Gpu, gpu_by_kind, with_network
from dnapretrain.plan.hardware import LAUNCH_SECONDS, OURS, QUANTIZATION, gather_seconds
from dnapretrain.plan.layer_time import cast_values, head_seconds, layer_seconds, matmul_seconds, work_of
from dnapretrain.plan.make import make_plan
from dnapretrain.plan.page import format_plan
from dnapretrain.plan.published import format_calibration, fp8_runs, mfu, predicted
from dnapretrain.plan.step_time import layers_in_bf16, step_time

# 100 TFLOP/s x 0.6 in bf16, 200 x 0.6 in FP8, of 10 multiprocessors; 1 TB/s x 0.8; links of 100 GB/s x 0.8.
ROUND = Gpu("round", 10**12, 100.0, (), 1e12, 10, 100e9, 10e9, 200.0, ("tensorwise", "delayed", "blockwise", "mxfp8"))
H100 = gpu_by_kind("h100")
FP8 = {"fp8": "hybrid"}
ENDS = {**FP8, "first_last_layers_bf16": True}


def decoder(length=4096, **sections):
    tree = {
        "data": {"train": "nowhere", "sequence_length": length},
        "model": {"num_layers": 8, "hidden_size": 1024, "num_attention_heads": 8, "num_query_groups": 2, "ffn_hidden_size": 2816},
        "parallel": {},
        "optim": {"lr": 1e-4},
        "train": {"run_dir": "nowhere", "train_steps": 10, "micro_batch_size": 2, "global_batch_size": 64},
    }
    return config_from_dict({name: {**section, **sections.get(name, {})} for name, section in tree.items()})


def seconds(gpu=ROUND, gpus=8, **sections):
    config = decoder(**sections)
    return step_time(config, config.data.sequence_length, 128, 0, gpus // config.parallel.model_parallel_size, gpu, OURS)


def test_operations_of_products_take_the_fp8_peak():
    # 100 tiles in ten waves; starting and ending a tile takes as long as in bf16, so twice as many terms.
    assert matmul_seconds(ROUND, 1280, 1280, 4096, is_fp8=True) == pytest.approx(2 * 1280 * 1280 * (4096 + 256) / 120e12)
    # Bound by memory: operands of one byte, a result of two.
    slow = dataclasses.replace(ROUND, memory_bandwidth=1e11)
    assert matmul_seconds(slow, 1, 1280, 10**6, is_fp8=True) == pytest.approx((1281e6 + 2 * 1280) / 0.08e12)


def test_values_that_are_cast():
    work = work_of(decoder(train=FP8), 4096)  # queries 1,024 wide, keys and values 256 each; gated: 5,632 rows
    assert cast_values(work) == (8192 * (1024 + 1024 + 1024 + 2816), 8192 * (1024 + 512 + 1024 + 5632 + 1024))
    spread = work_of(decoder(train=FP8, parallel={"tp": 2, "sequence_parallel": True}), 4096)
    assert cast_values(spread) == tuple(values / 2 for values in cast_values(work))
    # Without sequence parallelism every rank casts what lies between the regions.
    whole = work_of(decoder(train=FP8, parallel={"tp": 2}), 4096)
    assert cast_values(whole)[0] == 8192 * (2 * 1024 + (1024 + 2816) / 2)


@pytest.mark.parametrize(("recipe", "value_bytes"), [("tensorwise", 6), ("delayed", 4), ("blockwise", 4), ("mxfp8", 4)])
def test_a_layer_in_fp8(recipe, value_bytes):
    fp8 = work_of(decoder(train={**FP8, "fp8_recipe": recipe}), 4096)
    bf16 = dataclasses.replace(fp8, fp8_recipe=None)
    for way, values in enumerate(cast_values(fp8)):
        mine, plain = layer_seconds(ROUND, fp8, OURS)[way], layer_seconds(ROUND, bf16, OURS)[way]
        assert mine.quantization == pytest.approx(value_bytes * values / 0.8e12) and plain.quantization == 0
        assert plain.matmul / 2 < mine.matmul < plain.matmul
        assert (mine.attention, mine.elementwise) == (plain.attention, plain.elementwise)  # not in FP8


def test_short_casts_wait_for_the_host():
    tiny = work_of(decoder(length=32, model={"hidden_size": 64, "ffn_hidden_size": 128}, train=FP8), 32)
    assert layer_seconds(H100, tiny, OURS)[0].total == pytest.approx((28 + 4 * QUANTIZATION["tensorwise"].kernels) * LAUNCH_SECONDS)


def test_gathered_inputs_have_one_byte():
    slow = with_network(dataclasses.replace(ROUND, link_bandwidth=1e9), 8)  # nothing hides
    parallel = {"tp": 2, "sequence_parallel": True}
    forward, backward = layer_seconds(slow, work_of(decoder(train=FP8, parallel=parallel), 4096), OURS)
    wide, narrow = (gather_seconds(slow, size * 2 * 4096 * 1024, 2, 1) for size in (2, 1))
    assert forward.tensor_parallel == pytest.approx(2 * wide + 2 * narrow)  # gathered in FP8, scattered in bf16
    assert backward.tensor_parallel == pytest.approx(4 * narrow + 2 * wide, rel=0.05)
    reduced, _ = layer_seconds(slow, work_of(decoder(train=FP8, parallel={"tp": 2}), 4096), OURS)
    assert reduced.tensor_parallel == pytest.approx(4 * wide)  # all-reduces of results: bf16


def test_a_step_is_its_layers_in_fp8_those_in_bf16_and_a_head_in_bf16():
    config = decoder(train=ENDS)
    work = work_of(config, 4096)
    fp8, bf16 = layer_seconds(ROUND, work, OURS), layer_seconds(ROUND, dataclasses.replace(work, fp8_recipe=None), OURS)
    head = head_seconds(ROUND, work, 128, False)
    step = seconds(gpus=8, train=ENDS)  # four micro-batches
    assert step.matmul == pytest.approx(4 * sum(6 * fp8[way].matmul + 2 * bf16[way].matmul + head[way].matmul for way in (0, 1)))
    weights = 8 * (1024 * (1024 + 512) + 1024 * 1024 + 3 * 1024 * 2816)  # cast once per step
    assert step.quantization == pytest.approx(4 * 6 * sum(way.quantization for way in fp8) + 6 * weights / 0.8e12)
    assert step.total == pytest.approx(sum(dataclasses.astuple(step)))


def test_ends_in_bf16_lie_on_the_ends_of_the_pipeline():
    config = decoder(train={**ENDS, "num_layers_at_start_in_bf16": 2}, parallel={"pp": 4})
    assert [layers_in_bf16(config, rank) for rank in range(4)] == [2, 0, 0, 1]
    assert layers_in_bf16(decoder(train=ENDS), 0) == 2
    assert layers_in_bf16(decoder(train=FP8), 0) == layers_in_bf16(decoder(), 0) == 0
    # The slowest stage is one between the ends, all of it in FP8.
    within, without = (seconds(gpus=4, train=train, parallel={"pp": 4}) for train in (ENDS, FP8))
    assert within.matmul > without.matmul  # the stage with the head has a layer in bf16
    assert seconds(gpus=4, train=FP8, parallel={"pp": 4}).total < seconds(gpus=4, parallel={"pp": 4}).total


def test_without_fp8_nothing_changes():
    assert seconds().quantization == 0
    assert seconds(gpu=dataclasses.replace(ROUND, fp8_tflops=None)) == seconds()


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_fp8_is_faster_for_wide_models_and_never_twice_as_fast(recipe):
    gains = []
    for hidden in (512, 1024, 2048, 4096, 8192, 16384):
        model = {"hidden_size": hidden, "num_attention_heads": hidden // 128, "num_query_groups": 4, "ffn_hidden_size": 4 * hidden}
        plain, fp8 = (seconds(H100, model=model, train=train).total for train in ({}, {**FP8, "fp8_recipe": recipe}))
        gains.append(plain / fp8)
    assert gains == sorted(gains) and gains[0] < 1.1 and 1.5 < gains[-1] < 2  # narrow ones gain little: their time is not in products


@pytest.mark.parametrize("run", fp8_runs(), ids=lambda run: f"{run.name}-{run.num_gpus}-{run.gpu}-{run.config.train.global_batch_size}")
def test_published_fp8_runs_are_met_without_fitting(run):
    assert predicted(run) == pytest.approx(run.tokens_per_second_per_gpu, rel=0.18)


def test_fp8_shares_are_of_the_fp8_peak_as_published():
    """llm-foundry counts all of attention and divides by 1,979; its FP8 row of MPT 3B at 2,048 reads 27.7 %."""
    (run,) = [run for run in fp8_runs() if run.name == "MPT 3B, 2,048"]
    own = flops_per_token(run.config.model, 2048, 50_368)
    theirs = own + 6 * 32 * 2048 * 2560
    assert mfu(run, run.tokens_per_second_per_gpu) * theirs / own == pytest.approx(0.277, abs=0.005)
    errors = [abs(predicted(run) / run.tokens_per_second_per_gpu - 1) for run in fp8_runs()]
    assert sum(errors) / len(errors) < 0.10
    assert f"mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}" in format_calibration()


def test_the_plan_names_the_peak():
    config = decoder(train=FP8)
    plan = make_plan(config, 8, H100, 0.5)
    best, flops = plan["best_layouts"][0], plan["compute"]["flops_per_step"]
    assert best["mfu"] == pytest.approx(flops / best["seconds_per_step"] / (8 * 1979e12))
    assert plan["assumed"]["seconds_per_step"] == pytest.approx(flops / (8 * 1979e12 * 0.5))
    page = format_plan(plan)
    assert "989 TFLOP/s (dense bf16, 1,979 in FP8)" in page and "products of layers in FP8 (tensorwise)" in page
    assert "of 1,979 TFLOP/s (dense FP8)" in page and "FP8 casts" in page
    assert "1,979 TFLOP/s, the dense FP8 peak" in plan["formulas"]["MFU"]
    plain = make_plan(decoder(), 8, H100, 0.5)
    assert "of 989 TFLOP/s (dense bf16)" in format_plan(plain) and "dense bf16 peak" in plain["formulas"]["MFU"]
    assert plain["best_layouts"][0]["mfu"] == pytest.approx(flops / plain["best_layouts"][0]["seconds_per_step"] / (8 * 989e12))


@pytest.mark.parametrize(
    ("kind", "recipe", "says"),
    [
        ("a100-80", "tensorwise", r"a100-80 has no FP8\. .*b200, h100.*train\.fp8=none"),
        ("h200", "mxfp8", r"h200 has no fp8_recipe=mxfp8\. .*\(b200\).*tensorwise or delayed or blockwise"),
        ("l40s", "blockwise", r"l40s has no fp8_recipe=blockwise"),
    ],
)
def test_a_gpu_without_it_is_refused(kind, recipe, says):
    model = {"hidden_size": 1024, "ffn_hidden_size": 2816}
    with pytest.raises(ConfigError, match=says):
        make_plan(decoder(model=model, train={**FP8, "fp8_recipe": recipe}), 8, gpu_by_kind(kind))
