"""The code for CUDA on a device that only pretends (`pretend_cuda`): no GPU needed, so this file is not marked gpu.

Each operation of a run is seen: a tensor left on the host, or a collective of the wrong group, fails here as it would on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pretend_cuda
import pretend_places
import pytest
from gpu_support import run_config, train, workplace

from dnapretrain.parallel.launch import _free_port

ENCODER = {"model__kind": "encoder", "data__masking": {"mlm_probability": 0.15}}
SHARDED = {f"parallel__{name}": True for name in ("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather")}
RUNS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "bf16, distributed optimizer, overlapped": {"train__precision": "bf16", **SHARDED},
    "6-mers scored base by base, recomputed": {
        "tokenizer__kind": "kmer",
        "tokenizer__k": 6,
        "train__loss": "nucleotide",
        "train__recompute": "full",
    },
    "encoder": {**ENCODER, "model__normalization": "LayerNorm", "model__embedding_norm": True, "train__precision": "bf16"},
    "ALiBi": {**ENCODER, "model__position_embedding_type": "alibi", "model__hidden_dropout": 0.1, "model__attention_dropout": 0.1},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor, sequence": {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": True, "train__precision": "bf16"},
    "pipeline": {"parallel__pipeline_model_parallel_size": 2},
    "context": {"parallel__context_parallel_size": 2, **ENCODER},
    "data, sharded": {"train__precision": "bf16", "train__check_weight_hash_across_dp_replicas_interval": 2, **SHARDED},
}
WAITS_OF_A_STEP = 5
"""Number of tokens, gradient norm, the losses, the judgement over all ranks and the number that is sent there."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[list[ProcessPoolExecutor]]:
    """Two processes whose GPU is pretended."""
    pools = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), pretend_cuda.install) for _ in range(2)]
    yield pools
    for pool in pools:
        pool.shutdown()


def test_what_cuda_refuses_is_refused(ranks: list[ProcessPoolExecutor]) -> None:
    refused = ranks[0].submit(mistakes).result()
    assert refused.keys() == {"two devices", "numpy", "index of another device", "nccl", "fork"}
    assert all("WrongDeviceError" in error for error in refused.values()), refused


def mistakes() -> dict[str, str]:
    """What was said of each mistake."""
    import torch
    import torch.distributed as dist

    there, here = torch.ones(3, 4, device="cuda"), torch.ones(3, 4)
    assert there.is_cuda and there.device == (there @ here.to("cuda").T).device == torch.device("cuda", 0)
    assert not there.cpu().is_cuda and (there + torch.tensor(1.0)).is_cuda, "a single number may lie on the host"
    layer = torch.nn.Linear(4, 2).cuda()
    layer(there).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.is_cuda
    dist.init_process_group("nccl", rank=0, world_size=1, store=dist.HashStore())

    def in_a_child() -> None:
        # Before Python 3.12 a fork beside threads of gloo can hang; there are none of them yet that run.
        reader, writer = os.pipe()
        if not (child := os.fork()):
            try:
                there.add_(1)
                os.write(writer, b"nothing")
            except RuntimeError as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        said = os.read(reader, 1000).decode()
        if said.startswith("WrongDeviceError"):
            raise pretend_places.WrongDeviceError(said)

    said = {}
    tries = {
        "two devices": lambda: there + here,
        "numpy": lambda: there.numpy(),
        "index of another device": lambda: here[torch.zeros(1, dtype=torch.int64, device="cuda")],
        "nccl": lambda: dist.all_reduce(here),
        "fork": in_a_child,
    }
    for name, attempt in tries.items():
        try:
            attempt()
        except RuntimeError as error:
            said[name] = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    return said


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_to_its_device(ranks: list[ProcessPoolExecutor], name: str) -> None:
    """Training, a checkpoint in the background, resuming, evaluation; and no wait of the host per layer, weight or micro-batch."""
    with workplace() as folder:
        steps = ranks[0].submit(run, folder, RUNS[name]).result(300)
    assert len(steps) == 6
    assert max(sum(waits.values()) for waits in steps) <= WAITS_OF_A_STEP, steps


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_keep_to_their_devices(ranks: list[ProcessPoolExecutor], name: str) -> None:
    """Also: what goes through NCCL lies on the GPU, what goes through gloo does not."""
    ports = [_free_port(), _free_port()]
    with workplace() as folder:
        answers = [pool.submit(run, folder, LAYOUTS[name], rank, 2, ports) for rank, pool in enumerate(ranks)]
        steps = [waits for answer in answers for waits in answer.result(300)]
    assert len(steps) == 12
    assert not [reason for waits in steps for reason in waits if "cuda.synchronize" in reason]


def run(folder: Path, settings: dict[str, Any], rank: int = 0, world_size: int = 1, ports: Sequence[int] = (0, 0)) -> list[dict[str, int]]:
    """Three steps, three more after a resume: how often the host waited for the GPU in each, by reason."""
    from dnapretrain.train.trainer import Trainer

    seen: list[dict[str, int]] = []
    plain = Trainer.train_step

    def watched(self: Trainer, batches: Any) -> Any:
        before = pretend_places.waits.copy()
        report = plain(self, batches)
        seen.append(dict(pretend_places.waits - before))
        return report

    Trainer.train_step = watched  # type: ignore[method-assign]
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    try:
        for last, port in zip((3, 6), ports, strict=True):
            if world_size > 1:
                os.environ.update({name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()})
            train(run_config(folder, "run", train__stop_at_step=last, **settings))
    finally:
        Trainer.train_step = plain  # type: ignore[method-assign]
        for name in (*place, "MASTER_PORT"):
            os.environ.pop(name, None)
    return seen
