"""What surrounds the capture of CUDA graphs: who must rest, what is kept, and how a failed capture ends. Graphs: `test_graphs`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dnapretrain.config_file import config_from_dict
from dnapretrain.train.step_kernels import StepKernels


@pytest.fixture
def kernels(tiny_config):
    rests = []

    def build(impl):
        tree = tiny_config(**{"train.precision": "bf16", "train.cuda_graph_impl": impl, "model.transformer_impl": "auto"})
        built = StepKernels(config_from_dict(tree), [], None, 1, lambda: rests.append(built.steps_begun))
        built.rests = rests
        built._capture = lambda: rests.append("captured")
        return built

    return build


@pytest.mark.parametrize(
    ("impl", "rests"),
    [("none", []), ("local", [1]), ("transformer_engine", [3, "captured"])],  # after the first step; before the fourth
)
def test_other_threads_rest_before_a_capture_and_only_then(kernels, impl, rests):
    made = kernels(impl)
    for _ in range(6):
        made.begin_step()
        made.passes_done()
    assert made.rests == rests


def test_buffers_that_a_graph_reads_are_given_to_no_other(kernels):
    from megatron.core.transformer.cuda_graphs import _CudagraphGlobalRecord, delete_cuda_graphs

    kernels("local")
    pool = _CudagraphGlobalRecord.tensor_reuse_pool
    pool.insert(torch.zeros(1))
    assert not pool.pool
    delete_cuda_graphs()


def test_the_error_of_a_failed_capture_is_not_hidden(kernels):
    made = kernels("transformer_engine")
    made._helper = SimpleNamespace(graphs_created=lambda: False)  # without delete_cuda_graphs, which then has nothing to delete
    made.end()
