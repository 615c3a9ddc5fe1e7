"""The model of step time: every formula by a case worked out by hand, what must grow with what, and published runs."""

from __future__ import annotations

import dataclasses

import pytest

from dnapretrain.config_file import config_from_dict
from dnapretrain.model.counts import rank_parameters
from dnapretrain.parallel.gpus import Gpu, gpu_by_kind, with_network
from dnapretrain.plan import hardware
from dnapretrain.plan.hardware import (
    LAUNCH_SECONDS,
    LINK_LATENCY,
    MEGATRON,
    NETWORK_LATENCY,
    OURS,
    STEP_SECONDS,
    exchange_seconds,
    gather_seconds,
    ring_step_seconds,
    send_seconds,
)
from dnapretrain.plan.layer_time import attention_seconds, elementwise_passes, layer_seconds, matmul_seconds, work_of
from dnapretrain.plan.published import dna_runs, format_calibration, mfu, predicted, reference_runs
from dnapretrain.plan.step_time import exposed_seconds, step_time

# 100 TFLOP/s x 0.6 of 10 multiprocessors, 1 TB/s x 0.8, links of 100 GB/s x 0.8, adapters of 10 GB/s x 0.8.
ROUND = Gpu("round", 10**12, 100.0, (), 1e12, 10, 100e9, 10e9)


def decoder(length=4096, **sections):
    tree = {
        "data": {"train": "nowhere", "sequence_length": length},
        "model": {"num_layers": 8, "hidden_size": 1024, "num_attention_heads": 8, "ffn_hidden_size": 2816},
        "parallel": {},
        "optim": {"lr": 1e-4},
        "train": {"run_dir": "nowhere", "train_steps": 10, "micro_batch_size": 2, "global_batch_size": 64},
    }
    return config_from_dict({name: {**section, **sections.get(name, {})} for name, section in tree.items()})


H100 = gpu_by_kind("h100")


def seconds(gpu=H100, gpus=8, engine=OURS, **sections):
    config = decoder(**sections)
    return step_time(config, config.data.sequence_length, 128, 0, gpus // config.parallel.model_parallel_size, gpu, engine)


def test_bytes_of_collectives():
    # 80 GB on four ranks of a node: three quarters pass each link of 80 GB/s; three hops.
    assert gather_seconds(ROUND, 80e9, 4, 1) == pytest.approx(0.75 + 3 * LINK_LATENCY)
    # 16 ranks on two nodes, all eight adapters of a node for one ring: 8 x 8 GB/s.
    assert gather_seconds(ROUND, 64e9, 16, 1) == pytest.approx(15 / 16 + 15 * NETWORK_LATENCY)
    # Every fourth rank: four rings share the node's adapters.
    assert gather_seconds(ROUND, 64e9, 16, 4) == pytest.approx(4 * 15 / 16 + 15 * NETWORK_LATENCY)
    # One rank of each node: an adapter of its own; nothing to do for one rank.
    assert gather_seconds(ROUND, 64e9, 2, 8) == pytest.approx(8 * 0.5 + NETWORK_LATENCY)
    assert gather_seconds(ROUND, 64e9, 1, 8) == 0
    assert send_seconds(ROUND, 8e9, 4) == pytest.approx(0.1 + LINK_LATENCY)
    assert send_seconds(ROUND, 8e9, 8) == pytest.approx(1.0 + NETWORK_LATENCY)


def test_no_ring_is_faster_than_a_link():
    fast = with_network(ROUND, 8 * 1000)
    assert gather_seconds(fast, 80e9, 16, 1) == pytest.approx(15 / 16 + 15 * NETWORK_LATENCY)


def test_operations_of_products_come_in_whole_waves():
    # 1,280 x 1,280 results are 100 tiles: ten waves of ten; 128 terms more per tile.
    assert matmul_seconds(ROUND, 1280, 1280, 4096) == pytest.approx(2 * 1280 * 1280 * (4096 + 128) / 60e12)
    assert matmul_seconds(ROUND, 1281, 1280, 4096) == pytest.approx(11 / 10 * 2 * 1280 * 1280 * (4096 + 128) / 60e12)
    # One row: the matrix is read, and that takes longer than the arithmetic.
    slow = dataclasses.replace(ROUND, memory_bandwidth=1e11)
    assert matmul_seconds(slow, 1, 1280, 10**6) == pytest.approx(2 * (1281e6 + 1280) / 0.08e12)


def test_operations_of_attention():
    work = work_of(decoder(), 4096)  # 8 heads of 128: 128 / 160 of a share of 0.55
    forward, backward = attention_seconds(ROUND, work, OURS)
    assert forward == pytest.approx(4 * 8192 * 4096 * 1024 / 2 / (100e12 * 0.55 * 0.8))
    assert backward == pytest.approx(2.5 * forward / 0.8)
    both_ways = dataclasses.replace(work, is_causal=False)
    assert attention_seconds(ROUND, both_ways, OURS)[0] == pytest.approx(2 * forward)
    masked = dataclasses.replace(work, has_mask=True)  # causality saves nothing, and the kernel is half as fast
    assert attention_seconds(ROUND, masked, OURS)[0] == pytest.approx(4 * forward)
    split = work_of(decoder(parallel={"tp": 2, "cp": 4}), 4096)
    assert attention_seconds(ROUND, split, OURS)[0] == pytest.approx(forward / 8)
    through_memory = dataclasses.replace(OURS, fused_attention=False)
    pairs = 8192 * 4096
    expected = 4 * pairs * 1024 / (60e12 * 0.8) + 6 * 2 * 8 * pairs / 0.8e12
    assert attention_seconds(ROUND, work, through_memory)[0] == pytest.approx(expected)


def test_passes_over_memory():
    work = work_of(decoder(), 4096)
    assert elementwise_passes(work, MEGATRON)[0] == 8192 * (10 * 1024 + 2 * 2048 + 3 * 2816)
    assert elementwise_passes(work, OURS)[0] == 8192 * (10 * 1024 + 10 * 2048 + 5 * 2816)
    spread = work_of(decoder(parallel={"tp": 2, "sequence_parallel": True}), 4096)
    assert elementwise_passes(spread, OURS)[0] == elementwise_passes(work, OURS)[0] / 2


def test_recomputation_costs_the_forward_pass_again():
    ways = ("none", "selective", "full")
    of = {way: layer_seconds(gpu_by_kind("h100"), work_of(decoder(train={"recompute": way}), 4096), OURS) for way in ways}
    forward, backward = of["none"]
    assert of["full"][1].recomputed == pytest.approx(forward.total) and of["full"][1].total == pytest.approx(backward.total + forward.total)
    assert of["selective"][1].recomputed == pytest.approx(forward.attention)


def test_collectives_of_a_layer():
    slow = with_network(dataclasses.replace(ROUND, link_bandwidth=1e9), 8)  # nothing hides
    tokens_of_hidden = 2 * 2 * 4096 * 1024
    gather = gather_seconds(slow, tokens_of_hidden, 2, 1)
    for sequence_parallel in (False, True):
        work = work_of(decoder(parallel={"tp": 2, "sequence_parallel": sequence_parallel}), 4096)
        forward, backward = layer_seconds(slow, work, OURS)
        assert forward.tensor_parallel == pytest.approx(4 * gather)
        # Both ways half of it may hide: with sequence parallelism two more gathers, of the inputs.
        assert backward.tensor_parallel == pytest.approx((6 if sequence_parallel else 4) * gather, rel=0.05)


def test_communication_of_context_parallelism():
    slow = dataclasses.replace(ROUND, link_bandwidth=1e9)  # 0.8 GB/s

    def seen(cp_comm_type, gpu=slow, length=4096, **sections):
        work = work_of(decoder(length, parallel={"cp": 4, "cp_comm_type": cp_comm_type}, **sections), length)
        return tuple(way.context_parallel for way in layer_seconds(gpu, work, OURS))

    width = 2 * 2 * 1024 * 1024  # bytes of 1,024 of the tokens of two samples, 1,024 wide
    gathered = gather_seconds(slow, 4 * 2 * width, 4, 1)  # keys and values of all ranks
    assert seen("all_gather") == pytest.approx((gathered, 2 * gathered))
    # Three steps, each beside a quarter of attention: 8 heads of 128, causal, so half of 8,192 x 4,096 pairs, spread over four ranks.
    attention = 4 * 8192 * 4096 / 4 * 1024 / 2 / (100e12 * 0.55 * 0.8)
    step = 2 * width / 0.8e9 + LINK_LATENCY
    step_backward = 4 * width / 0.8e9 + LINK_LATENCY  # with the gradients so far
    assert seen("p2p") == pytest.approx((3 * (step - attention / 4), 3 * (step_backward - attention * 2.5 / 0.8 / 4)))
    assert seen("p2p", H100, 65_536) == (0, 0)  # hidden behind attention, which grows with the square of the length
    # Queries, keys, values and result: three quarters of each leave the rank.
    exchanged = 0.75 * 4 * width / 0.8e9 + LINK_LATENCY
    assert seen("a2a") == pytest.approx((exchanged, exchanged))
    # Layers of torch gather, whatever is left at its default.
    assert seen("p2p", model={"transformer_impl": "torch"}) == seen("p2p", train={"precision": "fp32"}) == seen("all_gather")


def test_messages_of_context_parallelism_between_nodes():
    assert ring_step_seconds(ROUND, 8e9, 4, 2) == pytest.approx(0.1 + LINK_LATENCY)  # eight ranks: a node
    assert ring_step_seconds(ROUND, 8e9, 4, 4) == pytest.approx(1.0 + NETWORK_LATENCY)  # the slowest link, an adapter, is waited for
    assert exchange_seconds(ROUND, 8e9, 4, 2) == pytest.approx(0.75 * 0.1 + LINK_LATENCY)
    # 16 ranks, every second one: four in a node, so 12 of 16 parts pass the adapter.
    assert exchange_seconds(ROUND, 8e9, 16, 2) == pytest.approx(12 / 16 * 1.0 + NETWORK_LATENCY)


def test_short_kernels_wait_for_the_host():
    tiny = work_of(decoder(length=32, model={"hidden_size": 64, "ffn_hidden_size": 128}), 32)
    forward, _ = layer_seconds(gpu_by_kind("h100"), tiny, OURS)
    assert forward.total == pytest.approx(28 * LAUNCH_SECONDS)


def test_bubble_of_even_stages():
    # Ends weigh little beside 80 layers: (pp - 1) / (micro-batches x vpp).
    for vpp, m, copies in ((None, 8, 1), (2, 8, 1), (5, 16, 1), (None, 4, 2)):
        parallel = {"pp": 4, "vpp": vpp}
        train = {"micro_batch_size": 64 // m // copies}
        step = seconds(gpus=4 * copies, model={"num_layers": 80}, parallel=parallel, train=train)
        busy = step.matmul + step.attention + step.elementwise
        assert step.bubble / busy == pytest.approx(3 / (m * (vpp or 1)), rel=0.05)
    assert seconds(gpus=1).bubble == 0


def test_an_uneven_pipeline_waits_for_its_longest_stage():
    ends = {"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 7}
    even, uneven = seconds(gpus=2, parallel={"pp": 2}), seconds(gpus=2, parallel={"pp": 2, **ends})
    assert uneven.matmul == pytest.approx(7 / 4 * even.matmul, rel=0.05)
    assert uneven.bubble < even.bubble


def test_messages_of_the_pipeline():
    config = decoder(parallel={"pp": 2})
    step = step_time(config, 4096, 128, 0, 1, ROUND, OURS)
    send = send_seconds(ROUND, 2 * 2 * 4096 * 1024, 1)
    assert step.pipeline_parallel == pytest.approx(2 * (32 + 1) * send)
    interleaved = decoder(parallel={"pp": 2, "vpp": 4})
    assert step_time(interleaved, 4096, 128, 0, 1, ROUND, OURS).pipeline_parallel == pytest.approx(2 * send)  # hidden but for the filling


def test_gradients_and_weights_of_copies():
    parameters = rank_parameters(decoder(), 128, 0, 0)
    reduce, gather = (gather_seconds(ROUND, size * parameters, 16, 1) for size in (4, 2))
    step = seconds(ROUND, 16)
    assert step.data_parallel == pytest.approx(2 * reduce)  # an all-reduce
    assert step.optimizer == pytest.approx(38 * parameters / 0.8e12 + STEP_SECONDS)
    step = seconds(ROUND, 16, parallel={"use_distributed_optimizer": True})
    assert step.data_parallel == pytest.approx(reduce + gather)
    assert step.optimizer == pytest.approx((30 / 16 + 8) * parameters / 0.8e12 + STEP_SECONDS)
    overlap = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
    bucket = hardware.BUCKET_PARAMETERS / parameters
    assert seconds(ROUND, 16, parallel=overlap).data_parallel == pytest.approx(bucket * (reduce + gather))
    # Ranks that share a sample share its gradients too.
    of_context = seconds(ROUND, 16, parallel={"cp": 4, "use_distributed_optimizer": True})
    assert of_context.data_parallel == pytest.approx(reduce + gather)


def test_what_does_not_hide_is_seen():
    assert exposed_seconds(10.0, 4.0, 400_000_000) == 6.0
    assert exposed_seconds(10.0, 40.0, 400_000_000) == pytest.approx(1.0)
    assert exposed_seconds(10.0, 40.0, 10_000_000) == 10.0


def test_what_grows_with_what():
    base = seconds(gpus=16, parallel={"tp": 2})
    assert seconds(gpus=16, parallel={"tp": 2}, train={"recompute": "full"}).total > base.total
    assert seconds(gpus=16, parallel={"tp": 2}, model={"num_layers": 16}).total > base.total
    assert seconds(gpus=16, parallel={"tp": 2}, length=8192).total > base.total
    assert seconds(with_network(gpu_by_kind("h100"), 1), 16, parallel={"tp": 2}).total > base.total
    assert seconds(gpu_by_kind("a100-80"), 16, parallel={"tp": 2}).total > base.total
    assert seconds(gpus=16, engine=MEGATRON, parallel={"tp": 2}).total < base.total
    assert seconds(gpus=32, parallel={"tp": 2}).total < base.total
    assert seconds(gpus=16, parallel={"pp": 4}, train={"micro_batch_size": 4}).bubble > seconds(gpus=16, parallel={"pp": 4}).bubble
    assert base.total == pytest.approx(sum(dataclasses.astuple(base)))


def test_more_gpus_never_finish_later_than_fewer_and_gain_less_and_less():
    of = [seconds(gpus=gpus, parallel={"use_distributed_optimizer": True}).total * gpus for gpus in (1, 2, 4, 8, 16, 32)]
    assert of == sorted(of)


@pytest.mark.parametrize("run", reference_runs(), ids=lambda run: f"{run.name}-{run.num_gpus}-{run.gpu}")
def test_runs_of_well_kept_trainers_are_met(run):
    assert predicted(run) == pytest.approx(run.tokens_per_second_per_gpu, rel=0.15)


def test_the_mean_error_is_what_the_table_says():
    errors = [abs(predicted(run) / run.tokens_per_second_per_gpu - 1) for run in reference_runs()]
    assert sum(errors) / len(errors) < 0.045
    table = format_calibration()
    assert f"mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}" in table
    assert all(run.name in table for run in (*reference_runs(), *dna_runs()))


def test_dna_runs_reached_less_than_the_formula_says():
    reached = {run.name: mfu(run, run.tokens_per_second_per_gpu) for run in dna_runs()}
    assert reached["AIDO.DNA-7B"] == pytest.approx(0.118, abs=0.002) and reached["NT 2.5B"] == pytest.approx(0.05, abs=0.002)
    assert all(predicted(run) > run.tokens_per_second_per_gpu for run in dna_runs())


def test_published_shares_of_the_peak_are_computed_as_published():
    """Narayanan's 145.6B: 148 TFLOP/s with recomputation and all of attention are 47 % of the peak; without them 35 %."""
    (run,) = [run for run in reference_runs() if run.name == "GPT 145.6B"]
    assert mfu(run, run.tokens_per_second_per_gpu) == pytest.approx(148 / 312 * 3 / 4, rel=0.02)
